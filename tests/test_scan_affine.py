"""Affine registration of scans: known maps are found, and what is doubtful is said."""

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from tvf_core.scans import affine, affine_levels, affine_trial
from tvf_core.scans.grids import Grid, map_by
from tvf_core.scans.mutual_information import bin_places, joint_histogram, normalised

# Sizes that are odd and even, spacings that differ, axes that run other ways.
GRIDS = {
    2: Grid((61, 72), np.array([[0.0, -1.5, 50.0], [-2.0, 0.0, 60.0], [0, 0, 1]])),
    3: Grid(
        (34, 41, 38), np.array([[-4.0, 0, 0, 66.0], [0, 0, 4.2, -80.0], [0, -4.0, 0, 81.0], [0, 0, 0, 1]])
    ),
}
STARTS = {
    2: affine_trial.Start(20.0, 15.0, 0.1, (80, 75), 1.7),
    3: affine_trial.Start(28.0, 35.0, 0.1, (50, 49, 52), 4.0),
}


def picture(dim, seed=0):
    """Image (1, 1, *S) of blobs within an ellipse, on a black ground."""
    rng, shape = np.random.default_rng(seed), GRIDS[dim].shape
    blobs = ndi.gaussian_filter(rng.normal(size=shape), 2.0)
    places = [(i - (s - 1) / 2) / s for i, s in zip(np.indices(shape), shape, strict=True)]
    weights = np.arange(dim) * 2.5 + 7
    inside = sum(w * p**2 for w, p in zip(weights, places, strict=True)) < 1 + 0.4 * places[0]
    image = np.where(inside, (0.5 + 0.15 * blobs / blobs.std()).clip(0.1, 1), 0)
    return torch.from_numpy(image).float()[None, None]


def moved(dim, seed):
    """Fixed image, moved image, its grid, and the matrix from fixed to moving world."""
    image = picture(dim)
    target, grid, matrix, _ = affine_trial.move(image, GRIDS[dim], np.random.default_rng(seed), STARTS[dim])
    return image, target, grid, matrix


def corner_error(found, matrix, dim):
    """Largest distance, in voxels, between the places of the corners of the fixed image."""
    grid = GRIDS[dim]
    apart = map_by(found, grid.corners()) - map_by(matrix, grid.corners())
    return np.linalg.norm(apart, axis=1).max() / min(grid.spacing)


@pytest.mark.parametrize(("dim", "seed"), [(2, 1), (2, 4), (3, 5)])
def test_a_known_affine_map_is_found(dim, seed):
    image, target, grid, matrix = moved(dim, seed)
    stages = []
    found, report = affine.register(
        target, image, grid, GRIDS[dim], progress=lambda *stage: stages.append(stage)
    )
    assert found.dtype == np.float64 and found.shape == (dim + 1, dim + 1)
    assert corner_error(np.eye(dim + 1), matrix, dim) > 6
    assert corner_error(found, matrix, dim) < 0.5
    assert not report.warnings and report.similarity_after > report.similarity_before + 0.1
    assert stages[0] == ("search", 0.0) and stages[-1] == ("optimise", 1.0)
    assert np.allclose(report.singular_values, np.linalg.svd(matrix[:-1, :-1])[1], atol=0.02)
    known = affine_trial.move(image, GRIDS[dim], np.random.default_rng(seed), STARTS[dim])[3]
    assert report.turn == pytest.approx(known["turn"], abs=1)


def test_the_report_says_what_the_matrix_does():
    angle = np.radians(12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ np.diag([1.2, 0.9])
    level = type("Level", (), {"compare": lambda self, m: (torch.tensor([1.3, 1.2]), torch.tensor([1, 0.3]))})
    level.by_chance = lambda self, m: 1.0
    content = affine_levels.Content(None, np.array([0.0, 0.0]), 100.0)
    matrix[:2, 2] = (3, -4)
    report = affine._report(matrix, np.eye(3), level(), content, 0.0)
    assert report.turn == pytest.approx(12) and report.shift == pytest.approx(5)
    assert report.singular_values == pytest.approx((1.2, 0.9)) and report.overlap == pytest.approx(0.3)
    assert len(report.warnings) == 2
    assert "only 30% of the fixed image" in report.warnings[0]
    assert "did not improve the similarity (1.3000 to 1.2000)" in report.warnings[1]


def test_a_contrast_that_is_exchanged_does_no_harm():
    image, target, grid, matrix = moved(3, 7)
    target = torch.where(target > 0.05, 1 - target, 0)
    found, report = affine.register(target, image, grid, GRIDS[3])
    assert corner_error(found, matrix, 3) < 1 and not report.warnings


def test_images_that_do_not_overlap_at_the_start_are_brought_together():
    image, target, grid, matrix = moved(2, 5)
    away = np.eye(3)
    away[:2, 2] = (900, -700)
    found, report = affine.register(target, image, Grid(grid.shape, away @ grid.affine), GRIDS[2])
    assert report.similarity_before == 1 and report.shift > 1000
    assert corner_error(found, away @ matrix, 2) < 0.5


def test_where_the_mask_is_not_nothing_is_compared():
    """Two objects go opposite ways: a mask decides which of them is followed."""
    objects = [picture(2, seed)[0, 0].numpy() for seed in (0, 1)]
    fixed, moving = (
        torch.from_numpy(np.hstack([np.roll(image, step, (0, 1)) for image, step in zip(objects, steps)]))
        for steps in (((0, 0), (0, 0)), ((4, 3), (-4, -3)))
    )
    grid = Grid(fixed.shape, GRIDS[2].affine)
    for side, step in ((0, (4, 3)), (1, (-4, -3))):
        mask = torch.zeros(1, 1, *fixed.shape)
        mask[..., side * 72 : (side + 1) * 72] = fixed[None, None, :, side * 72 : (side + 1) * 72] > 0
        found, _ = affine.register(moving[None, None], fixed[None, None], grid, grid, mask=mask)
        middle = np.array([30, 36 + 72 * side])
        place = grid.index(map_by(found, grid.world(middle)))
        assert np.linalg.norm(place - middle - step) < 0.3


def test_large_images_and_tiny_masks_have_a_middle():
    grid = Grid((150, 151, 152), np.diag([1.0, 1.0, 1.0, 1.0]))
    image = torch.zeros(1, 1, *grid.shape)
    image[..., 20:81, 40:61, 100:121] = 1
    content = affine_levels.find_content(image, grid, None)
    assert np.allclose(content.middle, (50, 50, 110), atol=0.6) and content.side == pytest.approx(61, abs=2)
    mask = torch.zeros_like(image)
    mask[..., 22, 42, 103] = 1
    content = affine_levels.find_content(image, grid, mask)
    assert np.allclose(content.middle, (22, 42, 103))
    level = affine_levels.Level(image, image, grid, grid, content, 8.0, 3000, 32, torch.Generator())
    assert 1 < len(level.points) < 150 and np.abs(level.points.numpy()).max() < 30


def test_a_rigid_map_keeps_lengths_and_a_start_replaces_the_search():
    image, target, grid, matrix = moved(2, 7)
    rigid, report = affine.register(target, image, grid, GRIDS[2], kind="rigid")
    assert np.allclose(rigid[:2, :2].T @ rigid[:2, :2], np.eye(2), atol=1e-9)
    assert np.linalg.det(rigid[:2, :2]) == pytest.approx(1) and report.singular_values == pytest.approx(
        (1, 1)
    )
    near = matrix @ np.array([[1, 0.03, 3], [-0.03, 1, -3], [0, 0, 1.0]])
    found, report = affine.register(target, image, grid, GRIDS[2], start=near)
    assert corner_error(found, matrix, 2) < 0.5 < corner_error(near, matrix, 2)
    assert report.similarity_before > 1.1  # that of the start, not that of the files' own positions


def test_the_same_seed_gives_the_same_matrix():
    image, target, grid, _ = moved(2, 8)
    state = torch.get_rng_state()
    first, second, third = (
        affine.register(target, image, grid, GRIDS[2], seed=seed)[0] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, third)
    assert np.allclose(first, third, atol=0.3)
    assert torch.equal(state, torch.get_rng_state())  # the generator of others is left alone


def test_hopeless_images_are_warned_of():
    image, rng = picture(2), np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((1, 1, 300, 300))).float()
    far = Grid((300, 300), np.diag([0.5, 0.5, 1.0]))
    _, report = affine.register(noise, image, far, GRIDS[2])
    assert any("hardly anything in common" in line for line in report.warnings)
    part = Grid((12, 12), np.array([[-2.0, 0, 12], [0, -2.0, 12], [0, 0, 1]]))
    _, report = affine.register(image[..., 20:32, 20:32], image, part, GRIDS[2], kind="rigid")
    assert any("% of the fixed image lies inside" in line for line in report.warnings)
    start = np.diag([2.0, 2.0, 1.0])
    large = Grid(GRIDS[2].shape, np.diag([2.0, 2.0, 1.0]) @ GRIDS[2].affine)
    found, report = affine.register(image, image, large, GRIDS[2], start=start)
    assert np.allclose(found, start, atol=0.5) and any("stretches by 2.0" in w for w in report.warnings)


def test_the_histogram_counts_beyond_the_whole_numbers_of_float32():
    """One sample that weighs 2**24 stands for as many samples; 1000 more in its bin must count."""
    places = bin_places(torch.cat([torch.zeros(1001), torch.ones(1000)]))
    weights = torch.ones(1, 2001)
    weights[0, 0] = 2**24
    values = places[1].clone()[None]
    found = joint_histogram(places, values, weights)
    assert found.dtype == torch.float32
    total = 2**24 + 2000
    assert found[0, 0, 0].item() == pytest.approx((2**24 + 1000) / total, rel=1e-7)
    assert found[0, -1, -1].item() == pytest.approx(1000 / total, rel=2e-6)


@pytest.mark.parametrize("bins", [8, 32])
def test_mutual_information_equals_that_of_numpy(bins):
    """Values on the middles of the bins: then the soft histogram is the hard one of numpy."""
    rng = np.random.default_rng(1)
    fixed = rng.integers(0, bins, 4001)
    moving = np.stack([(fixed + rng.integers(0, 3, 4001)) % bins, rng.integers(0, bins, 4001)])
    weights = rng.integers(0, 2, moving.shape)
    places = bin_places(torch.from_numpy(fixed / (bins - 1)), bins)
    found = joint_histogram(
        places, torch.from_numpy(moving / (bins - 1)), torch.from_numpy(weights * 1.0), bins
    )
    edges = np.arange(bins + 1) - 0.5
    for k in range(2):
        counts = np.histogram2d(fixed, moving[k], (edges, edges), weights=weights[k])[0]
        shares = counts / counts.sum()
        assert np.allclose(found[k], shares, atol=1e-12)
        h = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (shares.sum(0), shares.sum(1), shares)]
        assert float(normalised(found)[k]) == pytest.approx((h[0] + h[1]) / h[2], rel=1e-9)


def test_the_soft_histogram_equals_a_loop_and_its_gradient_the_differences():
    rng, bins = np.random.default_rng(2), 5
    fixed, moving, weights = rng.random(40), rng.random((1, 40)), rng.random((1, 40))
    literal = np.zeros((bins, bins))
    for f, m, w in zip(fixed, moving[0], weights[0], strict=True):
        for i in range(bins):
            for j in range(bins):
                near = max(0, 1 - abs(f * (bins - 1) - i)) * max(0, 1 - abs(m * (bins - 1) - j))
                literal[i, j] += w * near
    places, weights = bin_places(torch.from_numpy(fixed), bins), torch.from_numpy(weights)
    found = joint_histogram(places, torch.from_numpy(moving), weights, bins)
    assert np.allclose(found[0], literal / literal.sum(), atol=1e-12)
    values = torch.from_numpy(moving).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: normalised(joint_histogram(places, v, weights, bins)), values)


def test_one_value_everywhere_has_no_information_and_no_wild_gradient():
    places = bin_places(torch.full((50,), 0.5))
    values = torch.full((2, 50), 0.25, requires_grad=True)
    weights = torch.stack([torch.ones(50), torch.zeros(50)])  # the second alignment has no sample inside
    similarity = normalised(joint_histogram(places, values, weights))
    similarity.sum().backward()
    assert similarity.tolist()[1] == 1 and values.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "similar"}, "kind"),
        ({"moving": torch.zeros(1, 1, 61, 72)}, "moving: has one value everywhere"),
        ({"fixed": torch.full((1, 1, 61, 72), torch.nan)}, "fixed: has values that are not finite"),
        ({"fixed": torch.zeros(1, 61, 72)}, "fixed: expected a float tensor of shape"),
        ({"mask": torch.zeros(1, 1, 61, 72)}, "mask: is empty"),
        ({"mask": torch.ones(1, 1, 5, 5)}, "mask: expected the fixed image's shape"),
        ({"start": np.zeros((3, 3))}, "start: "),
        ({"moving": picture(3), "moving_grid": GRIDS[3]}, "moving is 3D, fixed is 2D"),
    ],
)
def test_wrong_input_ends_in_a_line(change, message):
    given = {"moving": picture(2), "fixed": picture(2), "moving_grid": GRIDS[2], "fixed_grid": GRIDS[2]}
    with pytest.raises(ValueError, match=message) as caught:
        affine.register(**given | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_trial_moves_points_as_it_moves_the_image(dim):
    """The brightest places of dots lie, in the moved image, where the matrix takes them."""
    grid = GRIDS[dim]
    dots = np.array([(24, 30, 15), (12, 12, 22), (14, 32, 28)])[:, :dim]
    image = np.zeros(grid.shape)
    image[tuple(dots.T)] = (3, 2, 1)
    image = torch.from_numpy(ndi.gaussian_filter(image, 1.5)).float()[None, None]
    target, moved_grid, matrix, _ = affine_trial.move(image, grid, np.random.default_rng(9), STARTS[dim])
    for place in moved_grid.index(map_by(matrix, grid.world(dots))):
        near = np.round(place).astype(int)
        box = target[0, 0].numpy()[tuple(slice(n - 3, n + 4) for n in near)]
        middle = ndi.center_of_mass(box - box.min()) + near - 3
        assert np.linalg.norm(middle - place) < 0.6


def test_the_best_affine_map_and_the_summary_of_a_trial():
    rng = np.random.default_rng(3)
    points, matrix = rng.normal(size=(12, 3)), np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
    assert np.allclose(affine_trial.best_affine(points, map_by(matrix, points)), matrix)
    row = {"kind": "a", "best": 1.0, "before": 9.0, "seconds": 2.0, "cpu_seconds": 3.0}
    found = affine_trial.summary([row | {"excess": e} for e in (0.5, 1.0, 3.5, 0.0)])
    assert len(found) == 1 and found[0]["share"] == 0.75 and found[0]["worst_excess"] == 3.5
    assert found[0]["median_excess"] == 0.75 and found[0]["starts"] == 4
