"""Images, labels and points through written files: ours, SimpleITK's and ANTsPy's results agree."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas
import PIL.Image
import pytest
import torch
from nibabel import affines
from scipy import ndimage

from tvf_core.scans import transforms
from tvf_core.scans.applying import apply_image
from tvf_core.scans.flows import Flow, write_flow
from tvf_core.scans.grids import Grid, working_grid
from tvf_core.scans.maps import Linear, Warp, compose, map_points

sitk = pytest.importorskip("SimpleITK")
ants = pytest.importorskip("ants")


def turn(*angles):
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[[a, b, a, b], [a, b, b, a]] = np.cos(angle), np.cos(angle), np.sin(angle), -np.sin(angle)
        matrix = matrix @ one
    return matrix


def placed(shape, axes, centre):
    """Grid with these columns (mm per voxel) whose box has this centre."""
    dim = len(shape)
    middle = (np.array(shape) - 1) / 2
    return Grid(shape, affines.from_matvec(axes, np.array(centre, float)[:dim] - axes @ middle))


UPRIGHT, PERMUTED = np.eye(3), np.eye(3)[:, [2, 0, 1]] * [1, -1, -1]
TILTED = turn(0.3)[1:, 1:]
PAIRS = {  # fixed, moving
    "upright": (placed((30, 32, 28), UPRIGHT, (3, 4, 5)), placed((31, 29, 33), UPRIGHT, (0, 0, 0))),
    "oblique": (
        placed((30, 26, 15), turn(0.3, -0.2, 0.4) @ np.diag([1, 1.3, 2.1]), (3, 4, 5)),
        placed((24, 29, 25), turn(-0.1, 0.25, -0.3) @ np.diag([1.2, 1.1, 1.3]), (0, 2, 0)),
    ),
    "0.5 x 0.5 x 6 mm": (
        placed((60, 56, 6), turn(0.1, 0, 0) @ np.diag([0.5, 0.5, 6]), (3, 4, 5)),
        placed((30, 29, 33), UPRIGHT, (0, 0, 0)),
    ),
    "thick moving": (
        placed((30, 29, 33), UPRIGHT, (0, 0, 0)),
        placed((60, 56, 6), turn(0.1, 0, 0) @ np.diag([0.5, -0.5, 6]), (3, 4, 5)),
    ),
    "flipped, permuted": (
        placed((30, 26, 25), turn(0.2, 0.1, 0.3) * [-1, 1.2, 1.1], (3, 4, 5)),
        placed((24, 29, 25), PERMUTED @ turn(0.1, -0.2, 0) @ np.diag([1.2, 1.1, 1.3]), (0, 2, 0)),
    ),
    "2D": (
        placed((50, 41), TILTED @ np.diag([1, 1.4]), (3, 4)),
        placed((45, 48), TILTED.T @ np.diag([-1.2, 1.1]), (0, 2)),
    ),
    "picture": (Grid((48, 40), np.diag([-1.0, -1, 1])), Grid((44, 50), np.diag([-1.0, -1, 1]))),
}


def texture(grid, seed=0):
    """Waves of the world in 0 .. 200, on a grid."""
    rng = np.random.default_rng(seed)
    places = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    waves = sum(np.sin(places @ rng.normal(0, 0.25, grid.dim) + rng.uniform(0, 6)) for _ in range(6))
    return np.clip(100 + 25 * waves, 0, 255).astype(np.float32)


def full(affine):
    """4 x 4 form of an affine."""
    out, keep = np.eye(4), [*range(len(affine) - 1), 3]
    out[np.ix_(keep, keep)] = affine
    return out


def save(path, values, grid):
    """Write an image with nibabel or PIL; return the path as text."""
    if path.suffix == ".png":
        PIL.Image.fromarray(np.round(values).astype(np.uint8).T).save(path)
    else:
        image = nib.Nifti1Image(values, full(grid.affine))
        image.set_qform(full(grid.affine), 1)
        image.set_sform(full(grid.affine), 1)
        nib.save(image, path)
    return str(path)


@pytest.fixture(scope="module", params=PAIRS)
def files(request, tmp_path_factory):
    """A pair of images with all files that a registration writes, made from a velocity and an affine."""
    folder = tmp_path_factory.mktemp("pair")
    fixed, moving = PAIRS[request.param]
    dim = fixed.dim
    linear = turn(0.05, -0.08, 0.1)[3 - dim :, 3 - dim :] @ np.diag([1.05, 0.95, 1.03][:dim])
    matrix = affines.from_matvec(linear, [1.5, -2, 1][:dim])
    grid = working_grid(fixed, moving, matrix)
    places = torch.from_numpy(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))).float()
    waves = [torch.sin(places @ torch.linspace(0.05, 0.12 - 0.1 * k, dim) + k) for k in range(dim)]
    velocity = torch.stack([2.0 / grid.spacing[0] * torch.stack(waves) * (1 - 0.3 * t) for t in range(3)])
    flow = Flow(velocity[None], grid, matrix)
    write_flow(folder / "velocity.safetensors", flow)
    transforms.write_affine(folder / "0GenericAffine.mat", matrix)
    for name, inverse in (("1Warp", False), ("1InverseWarp", True)):
        warp = flow.warp(inverse).on(fixed)
        transforms.write_warp(folder / f"{name}.nii.gz", warp.displacement, fixed)
    suffix = ".png" if request.param == "picture" else ".nii.gz"
    found = SimpleNamespace(folder=folder, fixed=fixed, moving=moving, flow=flow, dim=dim, paths={}, scans={})
    for name, on in (("fixed", fixed), ("moving", moving)):
        values = texture(on, seed=len(name))
        values = np.round(values) if suffix == ".png" else values
        found.paths[name] = save(folder / f"{name}{suffix}", values, on)
        found.scans[name] = SimpleNamespace(values=values, grid=on)
    affine, warp, back = (
        str(folder / n) for n in ("0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz")
    )
    found.forward, found.backward = [warp, affine], [f"[{affine},1]", back]
    return found


def chain_of(names):
    return [one for name in names for one in transforms.read(name)]


def by_ants(reference, image, names, interpolator="linear"):
    return ants.apply_transforms(
        ants.image_read(reference),
        ants.image_read(image),
        transformlist=[name.strip("[]").removesuffix(",1") for name in names],
        whichtoinvert=[name.startswith("[") for name in names],
        interpolator=interpolator,
    ).numpy()


def by_sitk(reference, image, names):
    parts = []
    for name in names:
        path = name.strip("[]").removesuffix(",1")
        if path.endswith(".mat"):
            part = sitk.ReadTransform(path)
            parts.append(part.GetInverse() if name.startswith("[") else part)
        else:
            parts.append(sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64)))
    both = sitk.CompositeTransform(parts[::-1])
    source = sitk.ReadImage(image, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(
        sitk.Resample(source, sitk.ReadImage(reference), both, sitk.sitkLinear, 0.0)
    ).T


def far_from_edges(chain, reference, source, margin=0.02):
    """Voxels whose way does not pass within ``margin`` voxels of where a field or the image ends.

    There the header's float32 decides who is inside.
    """
    points = reference.world(np.moveaxis(np.indices(reference.shape), 0, -1))
    ways = []
    for one in chain:
        if isinstance(one, Warp):
            ways.append((one.grid, points))
        points = one.points(points)
    far = np.ones(reference.shape, bool)
    for grid, places in [*ways, (source, points)]:
        index = grid.index(places)
        for edge in (np.full(grid.dim, -0.5), np.array(grid.shape) - 0.5):
            far &= (np.abs(index - edge) > margin).all(-1)
    return far


DIRECTIONS = [("fixed", "moving", "forward"), ("moving", "fixed", "backward")]


@pytest.mark.parametrize(("reference", "image", "way"), DIRECTIONS)
def test_warped_images_equal_those_of_ants_and_simpleitk(files, reference, image, way):
    names, scan, grid = getattr(files, way), files.scans[image], getattr(files, reference)
    chain = chain_of(names)
    ours = apply_image(scan, grid, chain)
    far, seen = far_from_edges(chain, grid, scan.grid), ours != 0
    assert far.mean() > 0.7 and seen.mean() > 0.3
    assert np.abs(ours - apply_image(scan, grid, [])).max() > 50  # the chain does something
    for peer in (by_ants, by_sitk):
        theirs = peer(files.paths[reference], files.paths[image], names)
        assert np.abs(theirs - ours)[far].max() < 1e-3 * 200, peer.__name__


@pytest.mark.parametrize(("reference", "image", "way"), DIRECTIONS)
def test_nearest_labels_are_exactly_those_of_ants(files, tmp_path, reference, image, way):
    names, grid, source = getattr(files, way), getattr(files, reference), getattr(files, image)
    labels = (texture(source, seed=3) // 25).astype(np.uint8)
    path = save(tmp_path / "labels.nii.gz", labels, source)
    chain = chain_of(names)
    ours = apply_image(SimpleNamespace(values=labels.astype(np.int64), grid=source), grid, chain, "nearest")
    assert ours.dtype == np.int64 and len(np.unique(ours)) > 5
    reference_path = save(tmp_path / "reference.nii.gz", np.zeros(grid.shape, np.float32), grid)
    theirs = by_ants(reference_path, path, names, "nearestNeighbor")
    far = far_from_edges(chain, grid, source, 1e-3)
    # Two voxels equally near: float32 positions in headers decide, so none may be a tie
    index = source.index(map_points(chain, grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))))
    far &= (np.abs(index - np.floor(index) - 0.5) > 1e-3).all(-1)
    assert far.mean() > 0.9 and np.array_equal(theirs[far], ours[far])


@pytest.mark.parametrize(("names", "direction"), [("forward", 0), ("backward", 1)])
def test_points_move_as_in_ants(files, names, direction):
    """They go the other way than images: with the files that warp moving to fixed, from fixed to moving."""
    names, start = getattr(files, names), (files.fixed, files.moving)[direction]
    rng = np.random.default_rng(0)
    points = start.world(rng.random((50, files.dim)) * (np.array(start.shape) - 1))
    signs = np.array([-1, -1, 1])[: files.dim]
    frame = pandas.DataFrame(points * signs, columns=list("xyz"[: files.dim]))
    theirs = ants.apply_transforms_to_points(
        files.dim,
        frame,
        [name.strip("[]").removesuffix(",1") for name in names],
        whichtoinvert=[name.startswith("[") for name in names],
    ).to_numpy()[:, : files.dim]
    ours = map_points(chain_of(names), points)
    assert np.abs(ours - points).max() > 1
    assert np.abs(theirs * signs - ours).max() < 1e-3


def test_files_and_velocity_give_the_same_map_and_its_inverse(files):
    rng = np.random.default_rng(0)
    index = (0.15 + 0.7 * rng.random((300, files.dim))) * (np.array(files.fixed.shape) - 1)
    points = files.fixed.world(index)
    there = map_points(chain_of(files.forward), points)
    again = map_points(chain_of(files.backward), there)
    velocity = files.folder / "velocity.safetensors"
    direct = map_points(transforms.read(velocity), points)
    back = map_points(transforms.read(f"[{velocity},1]"), direct)
    assert np.abs(there - points).max() > 1
    assert np.abs(files.flow.grid.index(back) - files.flow.grid.index(points)).max() < 0.02
    # The fields of the files lie on the fixed grid. With slices of 6 mm they miss 0.13 mm of the map between.
    thick = max(files.fixed.spacing) > 3
    assert np.abs(direct - there).max() < (0.2 if thick else 0.03)
    assert np.abs(again - points).max() < (0.1 if thick else 0.03)


def test_composed_files_equal_the_chain_and_antsApplyTransforms(files, tmp_path):
    other = compose(chain_of(files.forward), files.fixed)
    transforms.write_warp(tmp_path / "2Warp.nii.gz", other.displacement / 3, files.fixed)
    names = [str(tmp_path / "2Warp.nii.gz"), *files.forward[::-1]]  # field, affine, field
    chain = chain_of(names)
    one = compose(chain, files.fixed)
    theirs = ants.apply_transforms(
        ants.image_read(files.paths["fixed"]),
        ants.image_read(files.paths["moving"]),
        transformlist=names,
        whichtoinvert=[False] * 3,
        compose=str(tmp_path / "a"),
    )
    (theirs,) = transforms.read(theirs if isinstance(theirs, str) else theirs[0])
    far = far_from_edges(chain, files.fixed, files.fixed, 1e-3)
    assert far.mean() > 0.9
    assert np.abs(theirs.displacement - one.displacement)[far].max() < 2e-3
    transforms.write_warp(tmp_path / "composed.nii.gz", one.displacement, files.fixed)
    scan = files.scans["moving"]
    image = apply_image(scan, files.fixed, transforms.read(tmp_path / "composed.nii.gz"))
    assert np.abs(image - apply_image(scan, files.fixed, chain))[far].max() < 1e-3 * 200


def literal_smooth(labels, grid, reference, chain):
    """An image of zeros and ones per label, linear interpolation of each, the largest wins."""
    index = grid.index(map_points(chain, reference.world(np.moveaxis(np.indices(reference.shape), 0, -1))))
    inside = ((index >= -0.5) & (index < np.array(grid.shape) - 0.5)).all(-1)
    numbers = np.unique(labels)
    scores = [
        ndimage.map_coordinates(
            (labels == k).astype(float), np.moveaxis(index, -1, 0), order=1, mode="nearest"
        )
        for k in numbers
    ]
    clear = np.sort(scores, 0)[-1] - np.sort(scores, 0)[-2] > 1e-9
    return np.where(inside, numbers[np.argmax(scores, 0)], 0), clear


@pytest.mark.parametrize("name", ["oblique", "2D"])
def test_smooth_labels_equal_a_literal_one_hot(name):
    fixed, moving = PAIRS[name]
    rng = np.random.default_rng(0)
    numbers = np.array([0, 3, -5, 2**40, 17, 2**24 + 1])
    labels = numbers[rng.integers(0, 6, moving.shape)]
    matrix = np.eye(fixed.dim + 1)
    matrix[:-1, -1] = 1.7
    chain = [Warp(np.full((*fixed.shape, fixed.dim), 0.4), fixed), Linear(matrix)]
    ours = apply_image(SimpleNamespace(values=labels, grid=moving), fixed, chain, "smooth")
    wanted, clear = literal_smooth(labels, moving, fixed, chain)
    assert clear.mean() > 0.9 and set(np.unique(ours)) == set(numbers)
    assert np.array_equal(ours[clear], wanted[clear])
    nearest = apply_image(SimpleNamespace(values=labels, grid=moving), fixed, chain, "nearest")
    assert 0.02 < (ours != nearest).mean() < 0.6


def test_of_two_equal_labels_the_smaller_wins():
    grid = Grid((4, 3), np.eye(3))
    between = Grid((3, 3), [[1, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    labels = np.array([[7] * 3, [4] * 3, [9] * 3, [9] * 3])
    ours = apply_image(SimpleNamespace(values=labels, grid=grid), between, [], "smooth")
    assert ours[:, 0].tolist() == [4, 4, 9]


def test_own_grid_and_empty_chain_change_nothing():
    grid = PAIRS["flipped, permuted"][0]
    values = texture(grid)
    scan = SimpleNamespace(values=values, grid=grid)
    assert np.abs(apply_image(scan, grid, []) - values).max() < 5e-3
    assert np.array_equal(apply_image(scan, grid, [], "nearest"), values)
    labels = SimpleNamespace(values=(values // 20).astype(np.uint8), grid=grid)
    for kind in ("nearest", "smooth"):
        got = apply_image(labels, grid, [], kind)
        assert got.dtype == np.uint8 and np.array_equal(got, labels.values)
    assert apply_image(labels, grid, []).dtype == np.float32


def test_what_lies_outside_has_the_value_asked_for():
    grid, away = Grid((4, 4), np.eye(3)), Grid((4, 4), [[1, 0, 2], [0, 1, 0], [0, 0, 1]])
    for kind in ("linear", "nearest", "smooth"):
        scan = SimpleNamespace(values=np.ones((4, 4), np.int32), grid=grid)
        got = apply_image(scan, away, [], kind, outside=-3)
        assert got.tolist() == [[1] * 4] * 2 + [[-3] * 4] * 2


@pytest.mark.parametrize(
    ("values", "reference", "chain", "kind", "message"),
    [
        (np.zeros((4, 4)), Grid((4, 4), np.eye(3)), [], "cubic", "unknown kind of interpolation 'cubic'"),
        (np.zeros((4, 4)), Grid((4, 4), np.eye(3)), [], "smooth", "whole numbers"),
        (np.zeros((4, 5)), Grid((4, 4), np.eye(3)), [], "linear", "shape"),
        (np.zeros((4, 4)), Grid((4, 4, 4), np.eye(4)), [], "linear", "the image is 2D, the reference is 3D"),
        (np.zeros((4, 4)), Grid((4, 4), np.eye(3)), "3D", "linear", "transform 1 is 3D, the image is 2D"),
    ],
)
def test_errors_in_one_line(values, reference, chain, kind, message):
    chain = [Linear(np.eye(4))] if chain == "3D" else chain
    scan = SimpleNamespace(values=values, grid=Grid((4, 4), np.eye(3)))
    with pytest.raises(ValueError, match=message) as error:
        apply_image(scan, reference, chain, kind)
    assert "\n" not in str(error.value)
