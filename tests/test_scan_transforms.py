"""Files of transforms against SimpleITK, ANTsPy and nibabel; the file of a velocity; errors in one line."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel import affines
from safetensors.torch import save_file

from tvf_core import integrate
from tvf_core.scans import transforms
from tvf_core.scans.flows import Flow, read_flow, write_flow
from tvf_core.scans.grids import Grid
from tvf_core.scans.maps import Linear, Warp, compose, map_points

sitk = pytest.importorskip("SimpleITK")
ants = pytest.importorskip("ants")


def random_matrix(dim, seed=0):
    rng = np.random.default_rng(seed)
    matrix = np.eye(dim) + rng.normal(0, 0.1, (dim, dim))
    return affines.from_matvec(matrix, rng.normal(0, 5, dim))


def smooth_field(grid, size=3.0, seed=0):
    """Slow waves in the world, (*S, D) mm, which do not vanish at the border."""
    rng = np.random.default_rng(seed)
    places = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    waves = [np.sin(places @ rng.normal(0, 0.08, grid.dim) + rng.uniform(0, 6)) for _ in range(grid.dim)]
    return (size * np.stack(waves, -1)).astype(np.float32)


def flip(points):
    """RAS to LPS and back."""
    return points * np.array([-1, -1, 1])[: points.shape[-1]]


def by_sitk(transform, points):
    return flip(np.array([transform.TransformPoint(p) for p in flip(points).tolist()]))


OBLIQUE = affines.from_matvec(
    np.array([[-0.9, 0.3, 0.1], [0.35, 1.2, -0.2], [0.05, 0.15, 2.1]]) @ np.eye(3), [12, -20, 7]
)


def oblique(flips=(1, 1, 1), spacing=(0.9, 1.3, 2.1)):
    """Orthonormal axes turned about all three directions, with these voxels and flips."""
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    return affines.from_matvec(q @ np.diag(np.multiply(spacing, flips)), [12, -20, 7])


GRIDS = {
    "3D oblique": Grid((16, 15, 11), oblique()),
    "3D flipped": Grid((16, 15, 11), np.diag([-1.0, 1.5, -2.0, 1.0])),
    "2D": Grid((21, 16), [[0.9, -0.4, 3], [0.4, 0.9, -8], [0, 0, 1]]),
    "2D picture": Grid((21, 16), np.diag([-1.0, -1.0, 1.0])),
}


def points_around(grid, number=300, share=1.3):
    """Points in and around a grid, none of them within 1e-3 voxels of the edge of its voxels."""
    rng = np.random.default_rng(3)
    index = (rng.random((number, grid.dim)) - 0.5) * share * grid.shape + (np.array(grid.shape) - 1) / 2
    return grid.world(index)


@pytest.mark.parametrize("dim", [2, 3])
def test_affine_mat_is_byte_for_byte_that_of_simpleitk(tmp_path, dim):
    matrix = random_matrix(dim)
    transforms.write_affine(tmp_path / "ours.mat", matrix)
    signs = np.diag([-1, -1, 1][:dim])
    theirs = sitk.AffineTransform(dim)
    theirs.SetMatrix((signs @ matrix[:-1, :-1] @ signs).ravel().tolist())
    theirs.SetTranslation((signs @ matrix[:-1, -1]).tolist())
    sitk.WriteTransform(theirs, str(tmp_path / "theirs.mat"))
    assert (tmp_path / "ours.mat").read_bytes() == (tmp_path / "theirs.mat").read_bytes()


@pytest.mark.parametrize("suffix", [".mat", ".txt", ".tfm"])
@pytest.mark.parametrize("dim", [2, 3])
def test_affine_files_are_read_by_itk_and_by_us(tmp_path, suffix, dim):
    matrix, points = random_matrix(dim), np.random.default_rng(1).normal(0, 50, (20, dim))
    path = tmp_path / f"affine{suffix}"
    transforms.write_affine(path, matrix)
    wanted = affines.apply_affine(matrix, points)
    assert np.abs(by_sitk(sitk.ReadTransform(str(path)), points) - wanted).max() < 1e-10
    theirs = ants.read_transform(str(path))
    assert (
        np.abs(flip(np.array([theirs.apply_to_point(p) for p in flip(points).tolist()])) - wanted).max()
        < 1e-3
    )
    (ours,) = transforms.read(path, dim)
    assert np.abs(ours.points(points) - wanted).max() < 1e-12
    (back,) = transforms.read(f"[{path},1]")
    assert np.abs(back.points(wanted) - points).max() < 1e-10
    (same,) = transforms.read(f"[{path}, 0]")
    assert np.array_equal(same.matrix, ours.matrix)


def of_itk():
    """Transforms of ITK with a centre that is not 0."""
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((np.eye(3) + np.random.default_rng(5).normal(0, 0.1, (3, 3))).ravel().tolist())
    affine.SetTranslation((3, -4, 5.5))
    affine.SetCenter((20, 30.5, -10))
    plane = sitk.AffineTransform(2)
    plane.SetMatrix((1.1, 0.2, -0.1, 0.9))
    plane.SetCenter((20, 30.5))
    euler = sitk.Euler3DTransform((20, 30.5, -10), 0.3, -0.2, 0.5, (1, 2, 3))
    other = sitk.Euler3DTransform((20, 30.5, -10), 0.3, -0.2, 0.5, (1, 2, 3))
    other.SetComputeZYX(True)
    several = sitk.CompositeTransform([affine, sitk.TranslationTransform(3, (5, 6, 7)), euler])
    return {
        "affine": affine,
        "affine 2D": plane,
        "euler": euler,
        "euler ZYX": other,
        "euler 2D": sitk.Euler2DTransform((20, 30.5), 0.3, (1, 2)),
        "translation": sitk.TranslationTransform(3, (5, 6, 7)),
        "identity": sitk.Transform(3, sitk.sitkIdentity),
        "composite": several,
    }


@pytest.mark.parametrize(  # SimpleITK writes no composite as .mat
    ("name", "suffix"),
    [(n, s) for n in of_itk() for s in (".mat", ".txt", ".tfm") if (n, s) != ("composite", ".mat")],
)
def test_transforms_of_itk_with_a_centre(tmp_path, name, suffix):
    theirs = of_itk()[name]
    sitk.WriteTransform(theirs, str(tmp_path / f"a{suffix}"))
    points = np.random.default_rng(1).normal(0, 50, (20, theirs.GetDimension()))
    chain = transforms.read(tmp_path / f"a{suffix}")
    wanted = by_sitk(theirs, points)
    assert np.abs(map_points(chain, points) - wanted).max() < 1e-9
    back = transforms.read(f"[{tmp_path}/a{suffix},1]")
    assert np.abs(map_points(back, wanted) - points).max() < 1e-8


def test_the_affine_of_ants_itself(tmp_path):
    """ANTs writes AffineTransform_float_3_3 with the centre of the image as fixed parameters."""
    blob = ants.from_numpy(np.pad(np.random.default_rng(0).random((8, 8, 8)), 8).astype(np.float32))
    found = ants.registration(
        blob, blob, "Affine", outprefix=str(tmp_path / "a"), aff_iterations=(2, 0, 0, 0)
    )["fwdtransforms"]
    assert b"AffineTransform_float_3_3" in Path(found[0]).read_bytes()
    affine = ants.create_ants_transform(
        "AffineTransform",
        precision="float",
        dimension=3,
        matrix=np.eye(3) + 0.1,
        offset=[1, 2, 3],
        center=[20, 30, -10],
    )
    ants.write_transform(affine, str(tmp_path / "b.mat"))
    points = np.random.default_rng(1).normal(0, 50, (20, 3))
    for path in (tmp_path / "b.mat", *found):
        theirs = ants.read_transform(str(path))
        wanted = flip(np.array([theirs.apply_to_point(p) for p in flip(points).tolist()]))
        assert np.abs(map_points(transforms.read(path), points) - wanted).max() < 1e-4


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_field_files_map_points_as_itk_and_ants_do(tmp_path, name, suffix):
    grid = GRIDS[name]
    path, field = tmp_path / f"1Warp{suffix}", smooth_field(grid)
    transforms.write_warp(path, field, grid)
    (ours,) = transforms.read(path)
    assert ours.grid.distance(grid) < 1e-4 and np.array_equal(ours.displacement, field)
    points = points_around(grid)
    moved = ours.points(points)
    stays = np.abs(moved - points).max(1) == 0
    assert 0.1 < stays.mean() < 0.8  # outside the grid the map is the identity
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    theirs = sitk.DisplacementFieldTransform(image)
    assert np.abs(by_sitk(theirs, points) - moved).max() < 2e-3
    frame = {axis: flip(points)[:, k] for k, axis in enumerate("xyz"[: grid.dim])}
    import pandas

    by_ants = ants.apply_transforms_to_points(grid.dim, pandas.DataFrame(frame), [str(path)])
    assert np.abs(flip(by_ants.to_numpy()[:, : grid.dim]) - moved).max() < 2e-3


def test_points_between_voxels_are_interpolated_linearly():
    grid = GRIDS["3D oblique"]
    field, points = smooth_field(grid), points_around(grid, share=0.9)
    index = grid.index(points)
    low = np.floor(index).astype(int)
    wanted = points.copy()
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, index - low, 1 - (index - low)), axis=1)
        wanted += weight[:, None] * field[tuple((low + corner).T)]
    assert np.abs(Warp(field, grid).points(points) - wanted).max() < 1e-5


def test_an_extended_warp_keeps_its_border():
    grid = Grid((5, 4), np.diag([2.0, 2.0, 1.0]))
    field = smooth_field(grid)
    assert np.allclose(Warp(field, grid, True).points([-50.0, 2]), [-50, 2] + field[0, 1])
    assert Warp(field, grid).points([-50.0, 2]).tolist() == [-50, 2]
    # the half voxel beyond the last centres belongs to the grid, in files too
    assert np.allclose(Warp(field, grid).points([-0.9, 2.0]), [-0.9, 2] + field[0, 1])
    assert Warp(field, grid).points([-1.1, 2.0]).tolist() == [-1.1, 2]


def test_fields_in_voxels_become_millimetres_of_the_world():
    grid = GRIDS["3D flipped"]
    u = torch.zeros(1, 3, *grid.shape)
    u[:, 0], u[:, 2] = 2, -1
    warp = Warp.from_voxels(u, grid)
    assert np.allclose(warp.displacement, [-2, 0, 2])
    index = [[3.0, 4, 5]]
    assert np.allclose(grid.index(warp.points(grid.world(index))), [[5, 4, 4]])


@pytest.mark.parametrize("name", ["3D oblique", "2D"])
def test_inverse_of_a_field_without_velocity(name):
    grid = GRIDS[name]
    warp = Warp(smooth_field(grid, 1.5), grid, extended=True)
    points = points_around(grid, share=0.6)
    assert np.abs(warp.inverse().points(warp.points(points)) - points).max() < 0.1 * min(grid.spacing)


def test_field_files_are_the_same_bytes_and_no_half_file_stays(tmp_path):
    grid = GRIDS["2D"]
    for name in ("a.nii.gz", "b.nii.gz"):
        transforms.write_warp(tmp_path / name, smooth_field(grid), grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (21, 16, 1, 1, 2) and image.header["intent_code"] == 1007
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.get_data_dtype() == np.float32 and image.header.get_xyzt_units()[0] == "mm"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_what_is_not_finite_in_a_field_is_zero_as_in_itk(tmp_path):
    grid = GRIDS["2D"]
    field = smooth_field(grid)
    field[3, 4], field[5, 6, 1] = np.nan, np.inf
    transforms.write_warp(tmp_path / "a.nii.gz", field, grid)
    (ours,) = transforms.read(tmp_path / "a.nii.gz")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))).transpose(1, 0, 2)
    assert np.array_equal(-ours.displacement, theirs) and (ours.displacement[3, 4] == 0).all()


def changed_field(path, dim, units="mm", pixdim=None, q=1, s=1, sform=None, slope=None):
    """A field of ours with another header."""
    grid = GRIDS["2D" if dim == 2 else "3D oblique"]
    transforms.write_warp(path, smooth_field(grid), grid)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    header["qform_code"], header["sform_code"] = q, s
    header.set_xyzt_units(units)
    for axis, row in enumerate([] if sform is None else sform[:3]):
        header[f"srow_{'xyz'[axis]}"] = row
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope
    path.write_bytes(header.binaryblock + bytes(content[348:]))
    return path


MOVED = oblique((1, -1, 1)) + affines.from_matvec(np.zeros((3, 3)), [5, 0, -3]) - np.diag([0, 0, 0, 1])
SHEARED = oblique() @ affines.from_matvec([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"units": "meter"},
        {"units": "micron"},
        {"units": "unknown"},
        {"pixdim": (0.5, 1.7, 1.1)},
        {"sform": SHEARED},  # ITK then takes the qform
        {"sform": MOVED, "s": 2},
        {"sform": MOVED, "s": 1},
        {"q": 0},
        {"s": 0},
        {"q": 0, "s": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_field_lies_where_itk_places_it(tmp_path, dim, options):
    if dim == 2 and "sform" in options:
        pytest.skip("a 3D position")
    path = changed_field(tmp_path / "1Warp.nii", dim, **options)
    (ours,) = transforms.read(path)
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    assert image.GetDimension() == dim and image.GetSize() == ours.grid.shape
    scale = max(1.0, np.abs(ours.grid.corners()).max())
    for index in np.ndindex(*[2] * dim):
        index = [int(i) for i in np.multiply(index, np.subtract(ours.grid.shape, 1))]
        theirs = flip(np.array(image.TransformIndexToPhysicalPoint(index)))
        assert np.abs(theirs - ours.grid.world(index)).max() < 1e-5 * scale
    theirs = flip(sitk.GetArrayFromImage(image).swapaxes(0, dim - 1))
    assert np.abs(theirs - ours.displacement).max() < 1e-5


@pytest.mark.parametrize("dim", [2, 3])
def test_slope_and_intercept_of_a_field(tmp_path, dim):
    """As nibabel applies them; ITK 5.4 applies them to the first voxels of a field only."""
    path = changed_field(tmp_path / "1Warp.nii", dim, slope=(2, 0.5))
    (ours,) = transforms.read(path)
    wanted = nib.load(path).get_fdata().reshape(*ours.grid.shape, dim)
    assert np.abs(flip(wanted) - ours.displacement).max() < 1e-5


def test_a_field_without_right_angles_is_refused(tmp_path):
    path = changed_field(tmp_path / "a.nii", 3, q=0, sform=SHEARED)
    one_line(lambda: transforms.read(path), "right angles")
    path = changed_field(tmp_path / "b.nii", 3, pixdim=(0, 1, 1))
    one_line(lambda: transforms.read(path), "voxel size is 0")


# The file of a velocity


def velocity(shape, steps=3, size=2.0):
    waves = torch.stack(torch.meshgrid(*[torch.linspace(0, 3, s) for s in shape], indexing="ij"))
    dim = len(shape)
    return torch.stack(
        [
            torch.stack([size * torch.sin(waves.roll(k, 0)[0] + d + k) for d in range(dim)])
            for k in range(steps)
        ]
    )[None]


def a_flow(name="3D oblique", half=False, **options):
    grid = GRIDS[name]
    shape = [-(-s // 2) for s in grid.shape] if half else grid.shape
    options.setdefault("matrix", random_matrix(grid.dim))
    return Flow(velocity(shape, size=1.0 if half else 2.0), grid, versions={"tvf_core": "1"}, **options)


@pytest.mark.parametrize("name", ["3D oblique", "2D"])
@pytest.mark.parametrize("half", [False, True])
def test_velocity_file_round_trip(tmp_path, name, half):
    flow = a_flow(name, half, integrator="heun", substeps=2)
    write_flow(tmp_path / "velocity.safetensors", flow)
    again = read_flow(tmp_path / "velocity.safetensors")
    assert torch.equal(again.velocity, flow.velocity) and np.array_equal(again.matrix, flow.matrix)
    assert again.grid.distance(flow.grid) == 0
    assert (again.integrator, again.substeps, again.versions) == ("heun", 2, {"tvf_core": "1"})
    assert [p.name for p in tmp_path.iterdir()] == ["velocity.safetensors"]
    # the chain, at the working grid's own voxels, against the displacement in voxels
    index = np.moveaxis(np.indices(flow.grid.shape), 0, -1)
    u = integrate.flow(flow.velocity, "heun", 2, shape=flow.grid.shape)[0].movedim(0, -1).numpy()
    wanted = affines.apply_affine(flow.matrix, flow.grid.world(index + u))
    chain = transforms.read(tmp_path / "velocity.safetensors")
    assert np.abs(map_points(chain, flow.grid.world(index)) - wanted).max() < 1e-4


@pytest.mark.parametrize("integrator", ["rk4", "released"])
@pytest.mark.parametrize("name", ["3D oblique", "2D"])
def test_forward_then_backward_is_below_a_tenth_of_a_voxel(tmp_path, name, integrator):
    size = 1.0 if integrator == "rk4" else 0.3  # the released rule folds earlier; then it has no inverse
    flow = a_flow(name, integrator=integrator)
    flow = dataclasses.replace(flow, velocity=flow.velocity * size)
    write_flow(tmp_path / "v.safetensors", flow)
    points = points_around(flow.grid, share=0.7)
    there = map_points(transforms.read(tmp_path / "v.safetensors"), points)
    assert np.abs(there - points).max() > 2
    back = map_points(transforms.read(f"[{tmp_path}/v.safetensors,1]"), there)
    assert np.abs(flow.grid.index(back) - flow.grid.index(points)).max() < 0.1


def test_warp_on_another_grid_does_the_same():
    flow = a_flow()
    fixed = Grid((40, 38, 24), oblique((-1, 1, 1), (0.4, 0.5, 0.9)))
    placed = fixed.affine.copy()
    placed[:3, 3] += flow.grid.corners().mean(0) - fixed.corners().mean(0)
    fixed = Grid(fixed.shape, placed)
    on = flow.warp().on(fixed)
    assert on.grid is fixed and not on.extended
    points = points_around(fixed, share=0.9)
    assert np.abs(on.points(points) - flow.warp().points(points)).max() < 0.05
    edge = fixed.world([[0.0, 0, 0]])
    assert np.abs(on.points(edge) - flow.warp().points(edge)).max() < 1e-4


def test_chain_order_and_composition():
    grid = GRIDS["3D oblique"]
    matrix = random_matrix(3)
    warp, linear = Warp(smooth_field(grid), grid), Linear(matrix)
    points = points_around(grid, share=0.8)
    wanted = affines.apply_affine(matrix, warp.points(points))
    assert np.allclose(map_points([warp, linear], points), wanted, atol=1e-9)
    assert np.abs(map_points([linear, warp], points) - wanted).max() > 1
    one = compose([warp, linear], grid)
    at = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    assert np.abs(at + one.displacement - map_points([warp, linear], at)).max() < 1e-4
    assert map_points([], points) is not points and np.array_equal(map_points([], points), points)
    assert map_points([linear], np.zeros((0, 3))).shape == (0, 3)


# Errors


def one_line(call, message, kind=ValueError):
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def field_file(path, shape=(6, 5, 4, 1, 3), intent=1007, dtype=np.float32):
    image = nib.Nifti1Image(np.zeros(shape, dtype), np.eye(4))
    image.header.set_intent(intent)
    nib.save(image, path)
    return path


def test_errors_about_files(tmp_path):
    read = transforms.read
    one_line(lambda: read(tmp_path / "no.mat"), "no such file", FileNotFoundError)
    one_line(lambda: read(f"[{tmp_path}/no.nii.gz,1]"), "no such file", FileNotFoundError)
    (tmp_path / "folder.mat").mkdir()
    one_line(lambda: read(tmp_path / "folder.mat"), "is a folder", FileNotFoundError)
    one_line(lambda: read("[a.mat"), r"\[file,1\]")
    (tmp_path / "a.h5").write_bytes(b"x")
    one_line(lambda: read(tmp_path / "a.h5"), "not a transform; expected .mat, .txt")


def test_errors_about_fields(tmp_path):
    good = field_file(tmp_path / "good.nii.gz")
    assert transforms.read(good, 3)[0].dim == 3
    one_line(lambda: transforms.read(f"[{good},1]"), "cannot be inverted; use its 1InverseWarp")
    one_line(lambda: transforms.read(good, 2), "in 3D; expected 2D")
    for name, options, message in (
        ("intent", {"intent": 1006}, "intent code is 1006, expected 1007"),
        ("none", {"intent": 0}, "intent code is 0"),
        ("flat", {"shape": (6, 5, 4, 3)}, "its shape is"),
        ("image", {"shape": (6, 5, 4)}, "its shape is"),
        ("mixed", {"shape": (6, 5, 4, 1, 2)}, "its shape is"),
        ("whole", {"dtype": np.int16}, "floating-point"),
    ):
        path = field_file(tmp_path / f"{name}.nii.gz", **options)
        one_line(lambda: transforms.read(path), message)
    (tmp_path / "text.nii.gz").write_text("hello")
    one_line(lambda: transforms.read(tmp_path / "text.nii.gz"), "not a NIfTI")
    field_file(tmp_path / "long.nii", shape=(30, 30, 30, 1, 3))
    content = (tmp_path / "long.nii").read_bytes()
    (tmp_path / "short.nii").write_bytes(content[: len(content) // 2])
    one_line(lambda: transforms.read(tmp_path / "short.nii"), "cut short")
    content = good.read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(content[:-20])
    one_line(lambda: transforms.read(tmp_path / "short.nii.gz"), "cut short|not a NIfTI")
    huge = nib.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000, 1, 3))
    huge.set_data_dtype(np.float32)
    huge.set_intent(1007)
    (tmp_path / "huge.nii").write_bytes(huge.binaryblock + bytes(2000))
    one_line(lambda: transforms.read(tmp_path / "huge.nii"), "cut short|not a NIfTI")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an affine"),
        (b"hello world", "first line"),
        (b"\xff\xfe\x00" * 30, "no text"),
        (b"#Insight Transform File V1.0\n", "no transform"),
        (
            b"#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2 x\n",
            "not numbers",
        ),
        (
            b"#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2\n",
            "numbers of",
        ),
        (
            b"#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1 2\n",
            "BSplineTransform in 3D; save it as",
        ),
        (b"#Insight Transform File V1.0\nTransform: what\n", "unknown kind"),
        (
            b"#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\n"
            b"Parameters: 0 0 0 0 1 1\nFixedParameters: 0 0\n",
            "singular",
        ),
        (
            b"#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\n"
            b"Parameters: 1 0 0 nan 1 1\nFixedParameters: 0 0\n",
            "NaN",
        ),
    ],
)
def test_errors_about_texts(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    one_line(lambda: transforms.read(tmp_path / "a.txt"), message)


def test_errors_about_mat_files(tmp_path):
    transforms.write_affine(tmp_path / "a.mat", random_matrix(3))
    content = (tmp_path / "a.mat").read_bytes()
    for number in range(len(content)):  # cut anywhere: an error, except between the two columns
        (tmp_path / "b.mat").write_bytes(content[:number])
        one_line(lambda: transforms.read(tmp_path / "b.mat"), "not an affine transform")
    rng = np.random.default_rng(0)
    for _ in range(300):  # any bytes changed: an affine map or one line, and nothing else
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = rng.integers(256)
        (tmp_path / "b.mat").write_bytes(bytes(changed))
        try:
            assert len(transforms.read(tmp_path / "b.mat")) == 1
        except ValueError as error:
            assert "\n" not in str(error)
    one_line(lambda: transforms.read(tmp_path / "a.mat", 2), "in 3D; expected 2D")


def test_errors_about_velocity_files(tmp_path):
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"hello")
    one_line(lambda: transforms.read(path), "not a velocity")
    save_file({"a": torch.zeros(2)}, path)
    one_line(lambda: transforms.read(path), "no velocity of this package")
    flow = a_flow()
    tensors = {
        "velocity": flow.velocity,
        "grid_shape": torch.tensor(flow.grid.shape),
        "grid_affine": torch.tensor(flow.grid.affine.tolist(), dtype=torch.float64),
        "affine": torch.eye(4, dtype=torch.float64),
    }
    facts = {"format": 1, "integrator": "rk4", "substeps": 1, "versions": {}}

    def written(tensors, **changed):
        save_file(tensors, path, metadata={"flow": json.dumps(facts | changed)})
        return lambda: transforms.read(path)

    assert len(written(tensors)()) == 2
    one_line(written(tensors, format=2), "reads 1")
    one_line(written(tensors, integrator="magic"), "unknown integrator")
    one_line(written(tensors, substeps=0), "substeps")
    one_line(written(tensors | {"velocity": flow.velocity[:, :, :2].contiguous()}), r"expected \(1, T, 3")
    one_line(written(tensors | {"velocity": flow.velocity * torch.nan}), "finite")
    one_line(written(tensors | {"affine": torch.zeros(4, 4)}), "last row|singular")
    one_line(written(tensors | {"grid_shape": torch.tensor([3, 3, 3])}), "neither that of its grid")
    tensors.pop("affine")
    one_line(written(tensors), "not a velocity that can be used")


def test_errors_of_writing_and_of_points(tmp_path):
    one_line(lambda: transforms.write_affine(tmp_path / "a.xfm", np.eye(4)), "written as .mat")
    one_line(lambda: transforms.write_affine(tmp_path / "a.mat", np.zeros((4, 4))), "last row|singular")
    grid = Grid((4, 4), np.eye(3))
    one_line(lambda: transforms.write_warp(tmp_path / "a.mha", np.zeros((4, 4, 2)), grid), r".nii or .nii.gz")
    one_line(lambda: transforms.write_warp(tmp_path / "a.nii", np.zeros((4, 5, 2)), grid), "expected shape")
    assert not list(tmp_path.iterdir())
    one_line(lambda: map_points([Linear(np.eye(4))], np.zeros((3, 2))), "transform 1 is 3D, a point is 2D")
    one_line(lambda: map_points([], np.zeros((3, 4))), "points: expected")
