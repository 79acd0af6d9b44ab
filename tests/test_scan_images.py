"""Scans: positions as SimpleITK and ANTs see them, values, labels, pictures, and files written for both."""

import itertools
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from tvf_core.scans.grids import Grid
from tvf_core.scans.images import check_pair, normalise, read_image, read_labels
from tvf_core.scans.pictures import pixel_size
from tvf_core.scans.writing import write_image

RNG = np.random.default_rng(5)
sitk.ProcessObject.SetGlobalWarningDisplay(False)
TURN = Rotation.from_euler("xyz", [10, -20, 35], degrees=True).as_matrix()


@pytest.fixture(autouse=True)
def no_warnings():
    """Whatever a reader decides stands in the notes; nothing is printed as a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def affine_of(linear, origin=(12, -33, 55)):
    affine = np.eye(len(linear) + 1)
    affine[:-1, :-1], affine[:-1, -1] = linear, origin[: len(linear)]
    return affine


def save(path, values, affine=None, q=1, s=1, sform=None, units="mm", dtype=None):
    """A NIfTI with a qform and a sform of its own."""
    values = np.asarray(values)
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(values, affine, dtype=dtype or values.dtype)
    image.set_qform(affine if q else None, q)
    image.set_sform((affine if sform is None else sform) if s else None, s)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def assert_where_itk_is(scan, path, tolerance=1e-3):
    """Every corner voxel lies where SimpleITK says."""
    image = sitk.ReadImage(str(path))
    assert image.GetSize() == scan.grid.shape
    signs = np.array([-1, -1, 1])[: scan.grid.dim]
    for index in itertools.product(*((0, size - 1) for size in scan.grid.shape)):
        theirs = np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index])) * signs
        np.testing.assert_allclose(scan.grid.world(index), theirs, atol=tolerance)


VOLUME = RNG.normal(size=(7, 8, 9)).astype(np.float32)
LINEAR = {
    "plain": np.eye(3),
    "las": np.diag([-1.0, 1, 1]),
    "thick": np.diag([0.5, 0.5, 6]),
    "oblique": TURN @ np.diag([0.5, 0.5, 6]),
    "oblique and flipped": TURN @ np.diag([-0.9, 1.1, -2.5]),
    "permuted": np.array([[0, 0, -1.2], [-1.1, 0, 0], [0, 1, 0]]),
    "half a turn": np.diag([-1.0, -1, 1]),
}


@pytest.mark.parametrize("name", LINEAR)
def test_position_is_that_of_itk(name, tmp_path):
    path = save(tmp_path / "a.nii.gz", VOLUME, affine_of(LINEAR[name]))
    scan = read_image(path)
    assert_where_itk_is(scan, path)
    np.testing.assert_array_equal(scan.values, VOLUME)
    np.testing.assert_allclose(scan.grid.affine, affine_of(LINEAR[name]), atol=1e-5)
    assert scan.notes == () and not scan.flat and scan.values.dtype == np.float32


@pytest.mark.parametrize(
    "q, s", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (1, 3), (4, 4), (3, 1)]
)
def test_codes_choose_the_form_that_itk_takes(q, s, tmp_path):
    affine, other = affine_of(LINEAR["oblique"]), affine_of(TURN.T @ np.diag([0.5, 0.5, 6]), (5, 6, 7))
    path = save(tmp_path / "a.nii.gz", VOLUME, affine, q, s, other)
    scan = read_image(path)
    assert_where_itk_is(scan, path)
    assert any("mm apart" in note for note in scan.notes) == bool(q and s)
    assert any("no position" in note for note in scan.notes) == (q == s == 0)


@pytest.mark.parametrize("units, factor", [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_units_become_millimetres(units, factor, tmp_path):
    path = save(tmp_path / "a.nii", VOLUME, affine_of(LINEAR["oblique"]), units=units)
    scan = read_image(path)
    assert_where_itk_is(scan, path)
    np.testing.assert_allclose(scan.grid.spacing, np.array([0.5, 0.5, 6]) * factor, rtol=1e-5)


def test_pixdim_rules_over_the_lengths_of_the_sform(tmp_path):
    path = save(tmp_path / "a.nii", VOLUME, affine_of(LINEAR["oblique"]), q=0)
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([0.55, 0.5, 6], "<f4").tobytes()
    path.write_bytes(content)
    scan = read_image(path)
    assert_where_itk_is(scan, path)
    assert "using pixdim" in scan.notes[0]


@pytest.mark.parametrize("shear", [0.02, 0.1])
def test_sheared_axes_need_a_qform_or_the_nearest_rotation(shear, tmp_path):
    sheared = affine_of(LINEAR["oblique"] @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]]))
    path = save(tmp_path / "a.nii", VOLUME, affine_of(LINEAR["oblique"]), q=1, sform=sheared)
    assert_where_itk_is(read_image(path), path)  # ITK falls back on the qform
    path = save(tmp_path / "b.nii", VOLUME, sheared, q=0)
    with pytest.raises(ValueError, match="right angles"):
        read_image(path)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    scan = read_image(path, nearest_rotation=True)
    directions = scan.grid.affine[:3, :3] / scan.grid.spacing
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-7)
    assert np.abs(directions - TURN).max() < shear and "nearest rotation" in scan.notes[0]
    written = tmp_path / "c.nii.gz"
    write_image(written, scan.values, scan.grid)
    assert_where_itk_is(scan, written)


ROTATION_2D = Rotation.from_euler("z", 25, degrees=True).as_matrix()[:2, :2]
LINEAR_2D = {
    "plain": np.eye(2),
    "flipped": np.diag([-1.0, 1]),
    "anisotropic": np.diag([0.5, 3]),
    "turned": ROTATION_2D @ np.diag([0.5, -3]),
}


@pytest.mark.parametrize("name", LINEAR_2D)
@pytest.mark.parametrize("q, s", [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)])
def test_2d_files(name, q, s, tmp_path):
    linear = np.eye(3)
    linear[:2, :2] = LINEAR_2D[name]
    path = save(tmp_path / "a.nii.gz", VOLUME[:, :, 0], affine_of(linear), q, s)
    scan = read_image(path)
    assert scan.grid.dim == 2 and not scan.flat
    assert_where_itk_is(scan, path)


def test_2d_file_that_is_tilted(tmp_path):
    once = Rotation.from_euler("x", 10, degrees=True).as_matrix()
    path = save(tmp_path / "a.nii", VOLUME[:, :, 0], affine_of(once))
    assert_where_itk_is(read_image(path), path)
    path = save(
        tmp_path / "b.nii", VOLUME[:, :, 0], affine_of(TURN)
    )  # ITK's directions are not at right angles
    with pytest.raises(ValueError, match="right angles"):
        read_image(path)
    scan = read_image(path, nearest_rotation=True)
    directions = scan.grid.affine[:2, :2]
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-6)
    path = save(tmp_path / "c.nii", VOLUME[:, :, 0], affine_of(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])))
    with pytest.raises(ValueError, match="across the x-y plane"):
        read_image(path)


def test_axes_of_size_one(tmp_path):
    affine = affine_of(np.diag([0.5, 3, 5]))
    path = save(tmp_path / "a.nii", VOLUME[:, :, :, None], affine)
    scan = read_image(path)
    assert scan.grid.dim == 3 and not scan.flat
    assert_where_itk_is(scan, path)
    for name, values in (("b.nii", VOLUME[:, :, :1]), ("c.nii", VOLUME[:, :, :1, None, None])):
        scan = read_image(save(tmp_path / name, values, affine))
        assert scan.flat and scan.grid.dim == 2
        np.testing.assert_allclose(scan.grid.affine, [[0.5, 0, 12], [0, 3, -33], [0, 0, 1]])
        np.testing.assert_array_equal(scan.values, VOLUME[:, :, 0])
    for name, values in (("d.nii", VOLUME[:1]), ("e.nii", VOLUME[:, :1]), ("f.nii", VOLUME[:1, :, :1])):
        with pytest.raises(ValueError, match="one voxel along axis"):
            read_image(save(tmp_path / name, values, affine))


@pytest.mark.parametrize("flips", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_slices_of_any_plane_keep_their_distances(flips, tmp_path):
    """Two slices of one plane, stored in other directions, lie in 2D as they lie in space."""
    for k, plane in enumerate((TURN, TURN[:, [2, 0, 1]], np.eye(3)[:, [0, 2, 1]], np.eye(3)[:, [1, 2, 0]])):
        one = affine_of(plane * [0.7, 1.2, 4])
        other = affine_of(plane * np.array([*flips, 1.0]) * [1.1, 0.8, 4])
        other[:3, 3] = one[:3, 3] + plane[:, :2] @ [5, -4]
        scans = [
            read_image(save(tmp_path / f"{k}{n}.nii", VOLUME[:, :, :1], affine))
            for n, affine in enumerate((one, other))
        ]
        points = []
        for scan, affine in zip(scans, (one, other)):
            index = np.array([[0, 0], [6, 0], [0, 7], [3.5, 2]])
            points.append((scan.grid.world(index), (affine[:3, :2] @ index.T).T + affine[:3, 3]))
        for a, b in itertools.product(points, points):
            flat = np.linalg.norm(a[0][:, None] - b[0][None], axis=-1)
            space = np.linalg.norm(a[1][:, None] - b[1][None], axis=-1)
            np.testing.assert_allclose(flat, space, atol=1e-4)


def test_values(tmp_path):
    stored = RNG.integers(-500, 500, size=(5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.1, -50)
    nib.save(image, tmp_path / "scaled.nii.gz")
    scan = read_image(tmp_path / "scaled.nii.gz")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "scaled.nii.gz"))).transpose()
    np.testing.assert_allclose(scan.values, theirs, atol=1e-4)
    np.testing.assert_allclose(scan.values, stored * 0.1 - 50, atol=1e-4)

    broken = VOLUME.copy()
    broken[0, 0, 0], broken[1, 2, 3], broken[2, 2, 2] = np.nan, np.inf, -np.inf
    scan = read_image(save(tmp_path / "broken.nii", broken))
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "broken.nii"))).transpose()
    np.testing.assert_array_equal(scan.values, theirs)
    assert scan.notes == ("3 voxels are not finite; taken as 0",)
    with pytest.raises(ValueError, match="no finite value"):
        read_image(save(tmp_path / "nothing.nii", np.full_like(broken, np.nan)))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">i2", ">f4"])
def test_every_type_of_numbers(dtype, tmp_path):
    values = (RNG.random((5, 6, 7)) * 120).astype(dtype)
    image = nib.Nifti1Image(
        values, np.eye(4), nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<"), dtype=dtype
    )
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").values, values.astype(np.float32))


def test_many_pieces(tmp_path, monkeypatch):
    """Voxels are converted in pieces; where a piece ends makes no difference."""
    monkeypatch.setattr("tvf_core.scans.voxels.PIECE", 11)
    values = (RNG.random((5, 6, 7)) * 120).astype(np.int16)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.nii.gz", values)).values, values)
    np.testing.assert_array_equal(
        read_labels(tmp_path / "a.nii.gz", Grid((5, 6, 7), np.eye(4)), "moving").values, values
    )


def test_nifti_2_and_names_that_lie(tmp_path):
    nib.save(nib.Nifti2Image(VOLUME, affine_of(LINEAR["oblique"])), tmp_path / "two.nii.gz")
    scan = read_image(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(scan.values, VOLUME)
    np.testing.assert_allclose(scan.grid.affine, affine_of(LINEAR["oblique"]), atol=1e-6)
    plain = save(tmp_path / "plain.nii", VOLUME)
    plain.rename(tmp_path / "plain.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.nii.gz").values, VOLUME)


def test_volumes(tmp_path):
    values = RNG.normal(size=(5, 6, 7, 3)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", values)
    with pytest.raises(ValueError, match=r"has 3 volumes; choose one with --volume N \(0 to 2\)"):
        read_image(path)
    for volume in range(3):
        scan = read_image(path, volume=volume)
        np.testing.assert_array_equal(scan.values, values[..., volume])
        assert scan.grid.dim == 3 and scan.notes == (f"volume {volume} of 0 to 2",)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="not number"):
            read_image(path, volume=wrong)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_labels_are_exact_and_ants_reads_what_is_written(dtype, tmp_path):
    largest = {"i1": 127, "u1": 255, "i2": 32767, "u2": 65535}.get(dtype, 1 << 24)
    values = RNG.integers(0, 9, (5, 6, 7))
    values[0, 0, :3] = largest, largest - 1, largest - 2
    like = Grid((5, 6, 7), affine_of(LINEAR["oblique"]))
    path = save(tmp_path / "a.nii.gz", values.astype(dtype), like.affine)
    scan = read_labels(path, like, "moving")
    assert scan.values.dtype == np.int64 and scan.grid is like
    np.testing.assert_array_equal(scan.values, values)
    write_image(tmp_path / "b.nii.gz", scan.values, scan.grid, labels=True)
    np.testing.assert_array_equal(ants.image_read(str(tmp_path / "b.nii.gz")).numpy(), values)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.nii.gz"))).transpose(), values
    )
    width = {255: "u1", 127: "u1", 32767: "i2"}.get(largest, "i4")
    assert nib.load(tmp_path / "b.nii.gz").get_data_dtype() == np.dtype(width)


def test_labels_that_do_not_fit(tmp_path):
    affine = affine_of(LINEAR["oblique"])
    like, labels = Grid((7, 8, 9), affine), RNG.integers(0, 9, (7, 8, 9)).astype(np.int16)

    def refused(match, values, affine=affine):
        with pytest.raises(ValueError, match=match):
            read_labels(save(tmp_path / "a.nii", values, affine), like, "moving")

    refused("not whole numbers", labels + np.float32(0.5))
    refused("not whole numbers", np.where(labels == 3, np.nan, labels).astype(np.float32))
    refused("negative labels, such as -1", labels - 1)
    refused("label 16777217", np.where(labels == 3, (1 << 24) + 1, labels.astype(np.int32)))
    refused("7 x 8 x 8 voxels, but moving has 7 x 8 x 9", labels[..., 1:])
    moved = affine.copy()
    moved[:3, 3] += [2, -1, 2]
    refused("differs from that of moving by 3 mm", labels, moved)
    moved[:3, 3] = affine[:3, 3] + [0, 0, 0.02]  # another program's rounding
    read_labels(save(tmp_path / "b.nii", labels, moved), like, "moving")


def test_2d_labels_of_a_flat_file(tmp_path):
    labels = RNG.integers(0, 9, (7, 8, 1)).astype(np.int64)
    image = read_image(save(tmp_path / "image.nii", VOLUME[:, :, :1], affine_of(np.eye(3))))
    scan = read_labels(save(tmp_path / "labels.nii", labels, affine_of(np.eye(3))), image.grid, "fixed")
    np.testing.assert_array_equal(scan.values, labels[..., 0])


GREY = RNG.integers(0, 256, (11, 16)).astype(np.uint8)  # rows, columns


def test_grey_pictures(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "8.png")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(GREY > 100).save(tmp_path / "1.png")
    Image.fromarray(GREY // 16).convert("L").save(tmp_path / "4.png", bits=4)
    Image.fromarray(GREY).save(tmp_path / "grey.jpg")
    for name in ("8.png", "16.png", "1.png", "4.png", "grey.jpg"):
        scan = read_image(tmp_path / name)
        assert_where_itk_is(scan, tmp_path / name)
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))).transpose()
        np.testing.assert_allclose(scan.values, theirs, atol=1.5 * name.endswith("jpg"))  # decoders round
        assert scan.notes == () and scan.grid.shape == (16, 11)
    assert read_image(tmp_path / "16.png").values.max() > 65000


def test_colours_become_grey_by_luminance(tmp_path):
    colours = RNG.integers(0, 256, (11, 16, 4)).astype(np.uint8)
    Image.fromarray(colours[..., :3]).save(tmp_path / "rgb.png")
    Image.fromarray(colours).save(tmp_path / "rgba.png")
    Image.fromarray(colours[..., :2], "LA").save(tmp_path / "la.png")
    Image.fromarray(colours[..., :3]).quantize(16).save(tmp_path / "palette.png")
    for name in ("rgb", "rgba", "palette"):
        scan = read_image(tmp_path / f"{name}.png")
        theirs = sitk.ReadImage(str(tmp_path / f"{name}.png"), sitk.sitkFloat64)  # ITK makes it grey
        theirs = sitk.GetArrayFromImage(theirs).transpose()
        if name == "rgba":
            theirs = (
                theirs / 255
            )  # as a floating-point number, ITK takes an alpha of 255 for 255 times opaque
        np.testing.assert_allclose(scan.values, theirs, atol=0.01)
        assert_where_itk_is(scan, tmp_path / f"{name}.png")
        assert len(scan.notes) == 1 + (name == "rgba")
    scan = read_image(tmp_path / "la.png")  # SimpleITK cannot read it
    np.testing.assert_allclose(scan.values, (colours[..., 0] * (colours[..., 1] / 255)).T, atol=0.01)
    assert scan.notes == ("transparent parts taken as black",)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").grid.shape == (16, 11)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_exif_orientation(orientation, name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.add.outer(np.arange(11) * 10, np.arange(16) * 5).astype(np.uint8)
    undo = {  # the stored rows and columns for each value of the tag, from the EXIF standard
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }
    Image.fromarray(np.ascontiguousarray(undo[orientation])).save(
        tmp_path / name, exif=exif, **({"quality": 100} if "jpg" in name else {})
    )
    scan = read_image(tmp_path / name)
    np.testing.assert_allclose(scan.values, upright.T, atol=4 * name.endswith("jpg"))
    assert scan.differs and "EXIF" in scan.notes[0]


def _with_density(path, unit, across, down):
    """A JPEG whose JFIF segment has this density."""
    _picture(path, GREY)
    content = bytearray(path.read_bytes())
    at = content.find(b"JFIF\0") + 7
    content[at : at + 5] = struct.pack(">BHH", unit, across, down)
    path.write_bytes(content)
    return path


def _with_scale(path, unit, *numbers):
    """A PNG with a chunk sCAL."""
    _picture(path, GREY)
    content, data = path.read_bytes(), b"sCAL" + bytes([unit]) + b"\0".join(numbers)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(content[:33] + chunk + content[33:])  # after the header
    return path


def _pictures_with_pixels(folder):
    exif = Image.Exif()
    exif[0x011A] = exif[0x011B] = 300.0
    exif[0x0128] = 2
    Image.fromarray(GREY).save(path := folder / "exif.jpg", exif=exif)
    yield path
    content = path.read_bytes()
    (folder / "no_jfif.jpg").write_bytes(content[:2] + content[20:])
    yield folder / "no_jfif.jpg"
    Image.fromarray(GREY).save(path := folder / "phys.png", dpi=(300, 150))
    yield path
    image = sitk.GetImageFromArray(GREY)
    image.SetSpacing((0.7, 0.25))
    sitk.WriteImage(image, folder / "itk.png")
    yield folder / "itk.png"
    densities = (300, 300), (300, 150), (1, 1), (10, 10), (0, 300), (300, 0), (72, 65535)
    for unit, (across, down) in itertools.product((0, 1, 2, 3, 255), densities):
        yield _with_density(folder / f"{unit}_{across}_{down}.jpg", unit, across, down)
    numbers = b"0.5", b"1", b"1.0", b"5e-1", b".5", b"2.", b"0", b"-1", b"+2", b"x", b"1_0", b" 1", b"1e", b""
    for unit, number in itertools.product((0, 1, 2, 3), numbers):
        yield _with_scale(folder / f"{unit}_{number.hex()}.png", unit, number, b"1")
    yield _with_scale(folder / "one.png", 1, b"0.5")
    yield _with_scale(folder / "three.png", 1, b"0.5", b"1", b"1")


def test_pixels_to_which_itk_gives_another_size(tmp_path):
    """ITK's spacing of every file is the one that we find, and a copy of the picture fits our grid."""
    differing = []
    for path in _pictures_with_pixels(tmp_path):
        theirs, scan = sitk.ReadImage(str(path)).GetSpacing(), read_image(path)
        with Image.open(path) as image, open(path, "rb") as file:
            np.testing.assert_allclose(pixel_size(file, image.info), theirs, rtol=1e-12, err_msg=path.name)
        assert scan.grid.spacing == (1, 1)
        assert scan.differs == (theirs != (1, 1)) == bool(scan.notes), path.name
        differing.append(scan.differs)
    assert 10 < sum(differing) < len(differing) - 10
    assert any("ITK takes" in note and "copy" in note for note in read_image(tmp_path / "itk.png").notes)
    scan = read_image(tmp_path / "1_300_150.jpg")
    write_image(tmp_path / "copy.png", scan.values, scan.grid)
    assert_where_itk_is(scan, tmp_path / "copy.png")
    with pytest.raises(AssertionError):
        assert_where_itk_is(scan, tmp_path / "1_300_150.jpg")


def test_labels_in_pictures(tmp_path):
    numbers = (GREY // 32).astype(np.uint8)
    like = read_image(_picture(tmp_path / "image.png", GREY)).grid
    palette = Image.fromarray(numbers).copy()
    palette.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.stack([numbers] * 3, -1)).save(tmp_path / "grey_as_rgb.png")
    Image.fromarray(numbers.astype(np.uint16) * 300).save(tmp_path / "16.png")
    for name, factor in (("palette", 1), ("grey_as_rgb", 1), ("16", 300)):
        scan = read_labels(tmp_path / f"{name}.png", like, "fixed")
        np.testing.assert_array_equal(scan.values, numbers.T.astype(int) * factor)
    Image.fromarray(RNG.integers(0, 256, (11, 16, 3)).astype(np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="labels in colours"):
        read_labels(tmp_path / "rgb.png", like, "fixed")
    with pytest.raises(ValueError, match="JPEG changes"):
        read_labels(_picture(tmp_path / "a.jpg", numbers), like, "fixed")


def _picture(path, grey):
    Image.fromarray(grey).save(path)
    return path


@pytest.mark.parametrize("name", LINEAR)
def test_written_files_are_read_by_simpleitk_and_ants(name, tmp_path):
    grid = Grid(VOLUME.shape, affine_of(LINEAR[name]))
    for end in (".nii", ".nii.gz"):
        path = tmp_path / f"a{end}"
        write_image(path, VOLUME, grid)
        again = read_image(path)
        assert again.notes == () and again.grid.distance(grid) < 1e-4
        assert_where_itk_is(again, path)
        image, theirs = sitk.ReadImage(str(path)), ants.image_read(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), VOLUME)
        np.testing.assert_array_equal(theirs.numpy(), VOLUME)
        np.testing.assert_allclose(theirs.origin, grid.world([0, 0, 0]) * [-1, -1, 1], atol=1e-4)
        np.testing.assert_allclose(nib.load(path).affine, grid.affine, atol=1e-4)
        header = nib.load(path).header
        assert header["qform_code"] == header["sform_code"] == 1 and header.get_xyzt_units()[0] == "mm"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii", "a.nii.gz"]


@pytest.mark.parametrize("name", LINEAR_2D)
def test_written_2d_files(name, tmp_path):
    grid = Grid((7, 8), affine_of(LINEAR_2D[name]))
    write_image(tmp_path / "a.nii.gz", VOLUME[:, :, 0], grid)
    assert_where_itk_is(read_image(tmp_path / "a.nii.gz"), tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").grid.distance(grid) < 1e-4
    np.testing.assert_array_equal(ants.image_read(str(tmp_path / "a.nii.gz")).numpy(), VOLUME[:, :, 0])
    write_image(tmp_path / "b.nii.gz", VOLUME[:, :, 0], grid, flat=True)
    again = read_image(tmp_path / "b.nii.gz")
    assert again.flat and again.grid.distance(grid) < 1e-4


def test_a_flat_file_goes_back_to_its_place_in_space(tmp_path):
    affine = affine_of(TURN[:, [2, 0, 1]] * [0.7, 1.2, 4])
    scan = read_image(save(tmp_path / "a.nii", VOLUME[:, :, :1], affine))
    write_image(tmp_path / "b.nii", scan.values, scan.grid, flat=scan.flat, slab=scan.slab)
    a, b = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.nii", "b.nii"))
    for point in ((0, 0, 0), (6, 7, 0)):
        np.testing.assert_allclose(*(i.TransformIndexToPhysicalPoint(point) for i in (a, b)), atol=1e-4)
    assert read_image(tmp_path / "b.nii").grid.distance(scan.grid) < 1e-4


def test_written_pictures(tmp_path):
    scan = read_image(_picture(tmp_path / "a.png", GREY))
    write_image(tmp_path / "b.png", scan.values + 0.4, scan.grid)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), GREY)
    write_image(tmp_path / "c.png", scan.values * 257, scan.grid)
    again = sitk.ReadImage(str(tmp_path / "c.png"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), GREY.astype(np.uint16) * 257)
    for values, grid in ((scan.values * 300, scan.grid), (scan.values, Grid((16, 11), np.eye(3)))):
        with pytest.raises(ValueError, match="PNG"):
            write_image(tmp_path / "d.png", values, grid)
    with pytest.raises(ValueError, match="must end in"):
        write_image(tmp_path / "d.jpg", scan.values, scan.grid)
    with pytest.raises(ValueError, match="do not fit a grid"):
        write_image(tmp_path / "d.nii", scan.values[1:], scan.grid)
    assert not list(tmp_path.glob("d*")) and not list(tmp_path.glob(".*"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    grid = Grid(VOLUME.shape, np.eye(4))
    write_image(tmp_path / "a.nii.gz", VOLUME, grid)
    before = (tmp_path / "a.nii.gz").read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.nii.gz", VOLUME + 1, grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_pairs(tmp_path):
    three = read_image(save(tmp_path / "three.nii", VOLUME))
    two = read_image(save(tmp_path / "two.nii", VOLUME[:, :, 0]))
    constant = read_image(save(tmp_path / "constant.nii", np.full_like(VOLUME, 3)))
    check_pair(three, three)
    with pytest.raises(ValueError, match=r"three.nii is 3D, .*two.nii is 2D"):
        check_pair(three, two)
    with pytest.raises(ValueError, match=r"constant.nii has one value everywhere"):
        check_pair(three, constant)


def head(share, background, seed=0):
    """A made T1 scan: tissues of 60, 110 and 150 in a ball that fills ``share`` of it; and the ball."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    radius = np.linalg.norm(x, axis=0)
    edge = np.quantile(radius, share)
    tissue = np.where(radius < 0.5 * edge, 150, np.where(radius < 0.8 * edge, 110, 60)) + rng.normal(
        0, 4, radius.shape
    )
    inside = radius < edge
    return np.where(inside, tissue, background(rng, radius.shape)).astype(np.float32), inside


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("noisy", [False, True])
def test_normalise_a_head_in_much_air(share, noisy):
    """White matter ends high and air low, however much air there is and whether it is 0 or noise."""
    values, inside = head(share, lambda rng, shape: rng.rayleigh(4, shape) if noisy else np.zeros(shape))
    values.flat[np.flatnonzero(inside)[:: inside.sum() // 3]] = 5000  # four bright voxels
    scaled, note = normalise(values)
    white = inside & (values > 140) & (values < 200)
    assert 0.75 < np.median(scaled[white]) <= 1 and np.median(scaled[~inside]) < 0.05
    grey = np.median(scaled[inside & (values > 100) & (values < 120)])
    assert np.median(scaled[white]) - grey > 0.15
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1 and "became 0 to 1" in note


def test_normalise_ct():
    """Lung, fat and soft tissue stay apart, in spite of padding of -3024 and metal."""
    rng = np.random.default_rng(1)
    kinds = {"air": -1000, "lung": -800, "fat": -100, "soft": 50, "bone": 700}
    which = rng.choice(5, size=(40, 40, 40), p=[0.4, 0.1, 0.15, 0.3, 0.05])
    values = np.array(list(kinds.values()))[which] + rng.normal(0, 15, which.shape).round()
    values = values.astype(np.float32)
    values[:8] = -3024
    values[20, 20, :3] = 20000
    scaled, _ = normalise(values)
    air, lung, fat, soft, bone = (np.median(scaled[8:][which[8:] == k]) for k in range(5))
    assert air < 0.05 and lung - air > 0.08 and soft - fat > 0.06 and bone > 0.85
    assert (scaled[:8] == 0).all()


def test_normalise_is_linear_between_its_bounds():
    """Against the sentences of the docstring, computed literally; also for a photograph."""
    rng = np.random.default_rng(2)
    photo = rng.gamma(4, 20, (61, 47)).astype(np.float32)
    high = np.percentile(photo[photo > photo.mean()], 99.5)
    low = np.percentile(photo, 0.5)
    np.testing.assert_allclose(normalise(photo)[0], np.clip((photo - low) / (high - low), 0, 1), atol=1e-6)
    cut = photo.copy()
    cut[:30] = 80  # a background in the middle of the values
    rest = photo[30:]
    high, low = np.percentile(rest[rest > rest.mean()], 99.5), np.percentile(rest, 0.5)
    np.testing.assert_allclose(normalise(cut)[0], np.clip((cut - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(normalise(photo * 7 - 900)[0], normalise(photo)[0], atol=1e-5)


def test_normalise_odd_cases(monkeypatch):
    np.testing.assert_allclose(normalise(np.array([0, 0, 1, 0.0]))[0], [0, 0, 1, 0])  # a mask
    np.testing.assert_allclose(
        normalise(np.array([-3e38, -3e38, 0, 3e38], dtype=np.float32))[0], [0, 0, 0, 1], atol=0.01
    )
    with pytest.raises(ValueError, match="one value everywhere"):
        normalise(np.full((3, 4), 7.0))
    values, _ = head(0.3, lambda rng, shape: np.zeros(shape))
    whole = normalise(values)[0]
    monkeypatch.setattr("tvf_core.scans.images.SAMPLE", 10_000)
    assert np.abs(normalise(values)[0] - whole).max() < 0.03


@settings(max_examples=120, derandomize=True, deadline=None, database=None)
@given(
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    units=st.sampled_from([0, 1, 2, 3]),
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    quaternion=st.tuples(*[st.floats(-0.625, 0.625, width=32)] * 3),
    sizes=st.tuples(*[st.floats(0.5, 6, width=32)] * 3),
    stretch=st.sampled_from([0, 1e-5, 4e-4, 0.01, 0.2]),
    factor=st.sampled_from([-1, 0, 1]),
    flat=st.booleans(),
)
def test_random_headers_are_read_as_itk_reads_them(
    codes, units, turn, quaternion, sizes, stretch, factor, flat
):
    """Any codes, units, quaternion, factor q, and a sform that may be sheared: ITK reads it alike."""
    linear = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * sizes
    linear[:, 1] += stretch * linear[:, 0]
    image = nib.Nifti1Image(VOLUME[:, :, 0] if flat else VOLUME, np.eye(4))
    content = bytearray(image.to_bytes())
    content[76:92] = np.array([factor, *sizes], "<f4").tobytes()
    content[123] = units
    content[252:280] = struct.pack("<hh6f", *codes, *quaternion, 5, -6, 7)
    content[280:328] = np.c_[linear, [12, -33, 55]].astype("<f4").tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii")
        path.write_bytes(content)
        try:
            scan = read_image(path)
        except ValueError:
            event("refused")
            if not flat:
                with pytest.raises(RuntimeError, match="orthonormal"):
                    sitk.ReadImage(str(path))
            return
        event("read")
        assert_where_itk_is(scan, path, 1e-3 * max(1, scan.grid.spacing[0]))
