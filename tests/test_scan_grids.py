"""Grids in world coordinates: positions, common field of view, resampling."""

import numpy as np
import pytest
import torch
from nibabel import affines
from scipy import ndimage

from tvf_core.scans import grids
from tvf_core.scans.grids import Grid, resample, working_grid


def turned(angle, spacing, origin, flips=(1, 1, 1)):
    """Affine of a grid turned about z and x, with these voxels and first voxel."""
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = about_z @ about_x @ np.diag(np.multiply(spacing, flips))
    return affines.from_matvec(matrix, origin)


def smooth_function(points):
    """A function of the world, linear but for slow waves; (..., D) -> (...)."""
    points = np.asarray(points)
    return points @ np.arange(1, points.shape[-1] + 1) / 40 + np.sin(points / 9).sum(-1)


@pytest.mark.parametrize(
    "grid", [Grid((5, 4), np.diag([-1, 2, 1])), Grid((3, 4, 5), turned(0.3, (1, 2, 3), (9, 8, 7)))]
)
def test_world_and_index_agree_with_nibabel_and_invert_each_other(grid):
    points = np.random.default_rng(0).uniform(-3, 9, (2, 7, grid.dim))
    assert np.allclose(grid.world(points), affines.apply_affine(grid.affine, points), atol=1e-12)
    assert np.allclose(grid.index(grid.world(points)), points, atol=1e-12)
    assert np.allclose(grid.spacing, affines.voxel_sizes(grid.affine))


def test_corners_are_those_of_the_voxels():
    corners = Grid((4, 5), np.diag([2.0, -3.0, 1.0])).corners()
    assert sorted(map(tuple, corners)) == [(-1, -13.5), (-1, 1.5), (7, -13.5), (7, 1.5)]


def test_distance_of_grids():
    grid = Grid((4, 5), np.diag([2.0, 3.0, 1.0]))
    moved = grid.affine.copy()
    moved[:2, 2] += (3, 4)
    assert grid.distance(grid) == 0 and grid.distance(Grid((4, 5), moved)) == pytest.approx(5)
    assert grid.distance(Grid((4, 6), grid.affine)) == float("inf")


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4,), np.eye(2), "2 or 3 sizes"),
        ((4, 0), np.eye(3), "at least 1"),
        ((4, 4), np.eye(4), "3 x 3"),
        ((4, 4), np.diag([1, 0, 1]), "singular"),
        ((4, 4), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), "singular"),
        ((4, 4), np.diag([1, np.nan, 1]), "NaN"),
        ((4, 4), np.diag([1, 1, 2]), "last row"),
    ],
)
def test_what_is_no_grid(shape, affine, message):
    with pytest.raises(ValueError, match=message) as error:
        Grid(shape, affine)
    assert "\n" not in str(error.value)


def test_working_grid_of_upright_images_covers_what_both_cover():
    fixed = Grid((20, 30, 10), np.diag([1.0, 1.0, 3.0, 1.0]))  # -0.5 .. 19.5, -0.5 .. 29.5, -1.5 .. 28.5
    shifted = np.diag([2.0, 2.0, 2.0, 1.0])
    shifted[:3, 3] = (5.5, -20, 0.5)  # 4.5 .., -21 .. 19, -0.5 ..
    grid = working_grid(fixed, Grid((20, 20, 20), shifted), np.eye(4), spacing=1)
    assert grid.shape == (15, 20, 29) and np.allclose(grid.affine[:3, :3], np.eye(3))
    corners = grid.corners()
    assert np.allclose(corners.min(0), (4.5, -0.75, -0.5)) and np.allclose(
        corners.max(0), (19.5, 19.25, 28.5)
    )


def test_default_spacing_is_the_coarser_geometric_mean():
    thin, cube = Grid((60, 60, 8), np.diag([0.5, 0.5, 6, 1])), Grid((30, 30, 30), np.eye(4))
    assert working_grid(thin, cube, np.eye(4)).spacing == pytest.approx([1.5 ** (1 / 3)] * 3)
    assert working_grid(cube, cube, np.eye(4)).spacing == (1, 1, 1)


@pytest.mark.parametrize("multiple", [16, (8, 16, 4)])
def test_sizes_are_multiples_and_the_centre_stays(multiple):
    fixed = Grid((33, 40, 21), turned(0.4, (1, 1.2, 2), (3, -8, 5), (1, -1, 1)))
    free, rounded = (working_grid(fixed, fixed, np.eye(4), 1.5, m) for m in (1, multiple))
    assert all(s % m == 0 for s, m in zip(rounded.shape, np.broadcast_to(multiple, 3)))
    assert all(0 <= r - f < m for r, f, m in zip(rounded.shape, free.shape, np.broadcast_to(multiple, 3)))
    centre = fixed.corners().mean(0)
    assert np.allclose(free.corners().mean(0), centre) and np.allclose(rounded.corners().mean(0), centre)


def test_all_of_an_oblique_image_lies_in_its_working_grid():
    fixed = Grid((33, 40, 21), turned(0.7, (1, 1.2, 2), (3, -8, 5), (1, -1, 1)))
    grid = working_grid(fixed, fixed, np.eye(4))
    index = grid.index(fixed.corners())
    assert (index >= -0.5 - 1e-3).all() and (index <= np.array(grid.shape) - 0.5 + 1e-3).all()


def test_working_grid_uses_the_affine_and_other_directions():
    fixed = Grid((20, 20), np.diag([-1.0, -1.0, 1.0]))
    away = fixed.affine.copy()
    away[:2, 2] += 500
    matrix = np.eye(3)
    matrix[:2, 2] = 500
    moving = Grid((20, 20), away)
    with pytest.raises(ValueError, match=r"do not overlap.*707 mm.*--affine auto.*--affine FILE") as error:
        working_grid(fixed, moving, np.eye(3))
    assert "\n" not in str(error.value)
    rows = np.array([[0, -1], [-1, 0]])  # axis 0 down, axis 1 to the right, as arrays of pictures have it
    grid = working_grid(fixed, moving, matrix, directions=rows)
    assert grid.shape == (20, 20)
    assert np.allclose(fixed.index(grid.world([[0, 0], [3, 0], [0, 5]])), [[0, 0], [0, 3], [5, 0]])


def test_boxes_that_overlap_while_the_images_do_not():
    bar = Grid((100, 4), [[0.7071, -0.7071, 0], [0.7071, 0.7071, 0], [0, 0, 1]])
    beside = bar.affine.copy()
    beside[0, 2] += 20
    with pytest.raises(ValueError, match="do not overlap"):
        working_grid(bar, Grid((100, 4), beside), np.eye(3))


@pytest.mark.parametrize("bad", [{"spacing": 0}, {"spacing": float("nan")}, {"directions": np.ones((2, 2))}])
def test_bad_options_of_the_working_grid(bad):
    grid = Grid((8, 8), np.eye(3))
    with pytest.raises(ValueError, match="spacing|directions"):
        working_grid(grid, grid, np.eye(3), **bad)


CASES = {
    "3D, oblique and flipped to oblique": (
        Grid((31, 24, 17), turned(0.2, (1, 1.3, 2.1), (-10, 5, 3), (-1, 1, 1))),
        Grid((20, 21, 22), turned(-0.3, (0.9, 1, 1.1), (-22, 12, 8))),
        affines.from_matvec([[1.05, 0.1, 0], [-0.05, 0.95, 0.1], [0, 0.02, 1.02]], [2, -3, 1]),
    ),
    "2D": (
        Grid((40, 31), np.diag([-1.0, -1.5, 1.0])),
        Grid((25, 28), [[1.0, 0.2, -18], [-0.2, 1.0, -30], [0, 0, 1]]),
        np.array([[0.9, 0.1, 1], [0, 1.1, -2], [0, 0, 1]]),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["linear", "nearest"])
def test_resample_equals_scipy(name, kind):
    source, target, matrix = CASES[name]
    values = np.random.default_rng(1).random(source.shape, np.float32)
    whole = np.linalg.inv(source.affine) @ matrix @ target.affine
    index = affines.apply_affine(whole, np.moveaxis(np.indices(target.shape), 0, -1))
    wanted = ndimage.map_coordinates(
        values, np.moveaxis(index, -1, 0), order=int(kind == "linear"), mode="nearest"
    )
    inside = ((index >= -0.5) & (index < np.array(source.shape) - 0.5)).all(-1)
    assert 0.1 < inside.mean() < 0.99
    got = resample(torch.from_numpy(values)[None, None], source, target, matrix, kind, -7.0, low_pass=False)
    assert got.dtype == torch.float32
    assert np.abs(got[0, 0].numpy() - np.where(inside, wanted, -7)).max() < (
        2e-5 if kind == "linear" else 1e-12
    )


def test_positions_are_good_on_long_axes():
    """A ramp of 512 voxels in float32, looked up at places between them: its value is the position."""
    source = Grid((512, 6, 6), turned(0.3, (0.7, 0.7, 0.7), (-150, 80, 30)))
    target = Grid(
        (640, 5, 5), source.affine @ affines.from_matvec(np.diag([0.79, 0.9, 0.9]), [0.13, 0.2, 0.3])
    )
    ramp = torch.arange(512.0).view(1, 1, -1, 1, 1).expand(1, 1, 512, 6, 6)
    got = resample(ramp, source, target, low_pass=False)[0, 0, :, 2, 2].double()
    assert (got - (0.13 + 0.79 * torch.arange(640, dtype=torch.float64))).abs().max() < 1e-4


def test_blocks_make_no_difference(monkeypatch):
    source, target, matrix = CASES["3D, oblique and flipped to oblique"]
    values = torch.rand(1, 2, *source.shape)
    whole = resample(values, source, target, matrix)
    monkeypatch.setattr(grids, "BLOCK", 1001)
    assert torch.allclose(resample(values, source, target, matrix), whole, atol=1e-6)


def test_whole_numbers_stay_exact():
    grid = Grid((6, 5), np.eye(3))
    labels = torch.randint(2**24, 2**40, (1, 1, 6, 5))
    assert torch.equal(resample(labels, grid, grid, kind="nearest"), labels)


def test_a_profile_of_one_voxel_becomes_as_wide_as_the_target():
    """Full width at half maximum of a Gaussian of one voxel, on an axis that gets 3 times as coarse."""
    assert grids.smoothing(np.diag([3.0, 1.0, 0.5, 1.0])) == pytest.approx([8**0.5 / 2.355, 0, 0])
    x = np.arange(201) - 100
    values = torch.from_numpy(np.exp(-(x**2) * np.log(2) * 4)).view(1, 1, -1, 1).expand(1, 1, -1, 3)
    got = grids.smooth(values, [8**0.5 / 2.355, 0])
    # a Gaussian of variance a has, after smoothing by b, variance a + b
    moments = (got[0, 0, :, 1] * torch.from_numpy(x**2)).sum() / got[0, 0, :, 1].sum()
    before = (values[0, 0, :, 1] * torch.from_numpy(x**2)).sum() / values[0, 0, :, 1].sum()
    assert moments - before == pytest.approx(8 / 2.355**2, rel=0.01)


def test_smoothing_equals_scipy():
    values = np.random.default_rng(2).random((9, 30, 11), np.float32)
    got = grids.smooth(torch.from_numpy(values)[None, None], [0.7, 2.5, 0])[0, 0].numpy()
    wanted = ndimage.gaussian_filter(values.astype(float), [0.7, 2.5, 0], mode="nearest", truncate=4)
    assert np.abs(got - wanted).max() < 1e-4
    constant = torch.full((1, 1, 8, 8), 3.0)
    assert torch.allclose(grids.smooth(constant, [2, 1]), constant)


def test_low_pass_keeps_waves_out_that_the_target_cannot_show():
    fine, coarse = Grid((120, 8), np.eye(3)), Grid((24, 8), np.diag([5.0, 1.0, 1.0]))
    wave = torch.cos(torch.arange(120.0) * 2 * np.pi / 5.5).view(1, 1, -1, 1).expand(1, 1, 120, 8)
    inner = (..., slice(3, -3), slice(None))
    assert resample(wave, fine, coarse, low_pass=False)[inner].abs().max() > 0.9
    assert resample(wave, fine, coarse)[inner].abs().max() < 0.15


def test_a_smooth_image_survives_the_way_to_the_working_grid():
    source, _, matrix = CASES["3D, oblique and flipped to oblique"]
    image = smooth_function(source.world(np.moveaxis(np.indices(source.shape), 0, -1)))
    grid = working_grid(source, source, np.eye(4), 1.0)
    got = resample(torch.from_numpy(image)[None, None], source, grid, low_pass=False)[0, 0].numpy()
    places = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    index = source.index(places)
    deep = ((index >= 0) & (index <= np.array(source.shape) - 1)).all(-1)
    assert deep.mean() > 0.2
    assert np.abs(got - smooth_function(places))[deep].max() < 0.02


def test_memory_of_resampling_is_bounded(monkeypatch):
    """Beside the image and the result there are two more images, while it is smoothed, and a block."""
    monkeypatch.setattr(grids, "BLOCK", 2**14)
    grid = Grid((96, 96, 96), np.eye(4))  # its coordinates in float64 would take 21 MB, six times the image
    values = torch.rand(1, 1, *grid.shape)
    with torch.profiler.profile(profile_memory=True) as record:
        resample(values, grid, Grid(grid.shape, np.diag([1.1, 1.1, 1.1, 1])))
    now = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    image = values.numel() * 4
    assert image * 2 < most < image * 2 + 4e6


@pytest.mark.parametrize(
    ("values", "target", "message"),
    [
        (torch.zeros(1, 1, 4, 5), Grid((4, 4), np.eye(3)), "expected"),
        (torch.zeros(1, 1, 4, 4), Grid((4, 4, 4), np.eye(4)), "2D.*3D"),
    ],
)
def test_resample_refuses(values, target, message):
    with pytest.raises(ValueError, match=message):
        resample(values, Grid((4, 4), np.eye(3)), target)
