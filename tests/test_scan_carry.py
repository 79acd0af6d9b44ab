"""``tvf apply`` and ``tvf compose`` on files: labels, references of any kind, and what a PNG can hold."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tvf_core.scans import transforms
from tvf_core.scans.carry import apply_file, compose_files
from tvf_core.scans.images import read_grid, read_image, read_labels

RNG = np.random.default_rng(4)
AFFINE = nib.affines.from_matvec(np.diag([-1.0, 1.5, 2.0]), [9, -4, 3])
VALUES = RNG.random((7, 6, 5)).astype(np.float32)


def save(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def shift(tmp_path):
    """Paths of affine maps in 2D and 3D that move by whole voxels of the pictures and of AFFINE."""
    paths = {}
    for dim, move in ((2, (-2, -1)), (3, (-1, 1.5, 0))):
        paths[dim] = tmp_path / f"shift{dim}.mat"
        transforms.write_affine(paths[dim], nib.affines.from_matvec(np.eye(dim), move))
    return paths


def palette_labels(path, numbers):
    picture = Image.fromarray(numbers)
    picture.putpalette([250, 3, 7, 1, 255, 90, 13, 13, 200, 77, 77, 77])
    picture.save(path)
    return path


@pytest.mark.parametrize("kind", ["nearest", "smooth"])
def test_a_palette_does_not_change_labels(kind, shift, tmp_path):
    numbers = RNG.integers(0, 4, (9, 12)).astype(np.uint8)
    source = palette_labels(tmp_path / "labels.png", numbers)
    apply_file(source, tmp_path / "out.png", [shift[2]], source, interpolation=kind)
    wanted = np.zeros_like(numbers)
    wanted[:-1, :-2] = numbers[1:, 2:]  # two pixels from the right and one from below (LPS)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), wanted)


@pytest.mark.parametrize(
    ("bad", "told"), [(np.nan, "not whole"), (1.5, "not whole"), (-1, "negative"), (2**24 + 2, "confuses")]
)
def test_labels_are_checked_as_elsewhere(bad, told, shift, tmp_path):
    labels = np.ones((7, 6, 5), np.float64)
    labels[2, 3, 4] = bad
    source = save(tmp_path / "labels.nii.gz", labels)
    with pytest.raises(ValueError, match=told) as error:
        apply_file(source, tmp_path / "out.nii.gz", [shift[3]], source, interpolation="nearest")
    assert "\n" not in str(error.value) and not (tmp_path / "out.nii.gz").exists()


def test_one_volume_of_labels(shift, tmp_path):
    labels = RNG.integers(0, 5, (7, 6, 5, 3)).astype(np.int16)
    source, out = save(tmp_path / "labels.nii.gz", labels), tmp_path / "out.nii.gz"
    assert np.array_equal(read_labels(source, volume=2).values, labels[..., 2])
    apply_file(source, out, [shift[3]], source, interpolation="nearest", volume=1)
    wanted = np.zeros((7, 6, 5))  # the map goes one voxel along each of the first two axes
    wanted[:-1, :-1] = labels[1:, 1:, :, 1]
    assert np.array_equal(nib.load(out).get_fdata(), wanted)


def test_a_reference_needs_only_its_header(shift, tmp_path):
    source = save(tmp_path / "source.nii.gz", VALUES)
    three = save(tmp_path / "three.nii", VALUES)
    four = save(tmp_path / "four.nii", np.stack([VALUES] * 4, -1))
    four.write_bytes(four.read_bytes()[:600])  # no voxel of it is read
    save(tmp_path / "empty.nii", np.full_like(VALUES, np.nan))
    apply_file(source, tmp_path / "a.nii", [shift[3]], three)
    compose_files([shift[3]], three, tmp_path / "warp.nii.gz")
    for name in ("four", "empty"):
        reference = tmp_path / f"{name}.nii"
        apply_file(source, tmp_path / f"{name}_out.nii", [shift[3]], reference)
        compose_files([shift[3]], reference, tmp_path / f"{name}_warp.nii.gz")
        assert (tmp_path / f"{name}_out.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()
        same = [(tmp_path / f"{end}warp.nii.gz").read_bytes() for end in (f"{name}_", "")]
        assert same[0] == same[1]


@pytest.mark.parametrize("name", ["3D", "2D", "flat", "png", "turned jpg"])
def test_the_frame_is_that_of_the_image(name, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    grey = Image.fromarray((VALUES[..., 0] * 255).astype(np.uint8))
    tilted = nib.affines.from_matvec([[0.8, 0, 0.6], [0, 2, 0], [-0.6, 0, 0.8]], [1, 2, 3])
    if name == "png":
        grey.save(path := tmp_path / "a.png")
    elif name == "turned jpg":
        grey.save(path := tmp_path / "a.jpg", exif=tag)
    else:
        values = {"3D": VALUES, "2D": VALUES[..., 0], "flat": VALUES[..., :1]}[name]
        path = save(tmp_path / "a.nii", values, np.eye(4) if name == "2D" else tilted)
    frame, scan = read_grid(path), read_image(path)
    assert frame.grid.shape == scan.grid.shape and frame.grid.distance(scan.grid) == 0
    assert (frame.flat, frame.picture, frame.path) == (scan.flat, scan.picture, scan.path)
    assert (frame.slab is None) == (scan.slab is None) == (name != "flat")
    assert name != "flat" or np.array_equal(frame.slab, scan.slab)


def test_a_reference_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "a.nii").write_bytes(b"hello")
    huge = nib.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000))
    huge["pixdim"][1:4] = 1
    huge["magic"] = b"n+1"
    (tmp_path / "huge.nii").write_bytes(huge.binaryblock + bytes(300))
    for name, told in (("a.png", "damaged|cut short"), ("a.nii", "not a NIfTI"), ("huge.nii", "memory")):
        with pytest.raises(ValueError, match=told) as error:
            read_grid(tmp_path / name)
        assert "\n" not in str(error.value)


def test_nearest_rotation_of_source_and_reference(shift, tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.2
    image = nib.Nifti1Image(VALUES, sheared)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "sheared.nii")
    straight = save(tmp_path / "straight.nii", VALUES)
    grid = read_image(tmp_path / "sheared.nii", nearest_rotation=True).grid
    for source, reference in (("sheared", "straight"), ("straight", "sheared")):
        paths = tmp_path / f"{source}.nii", tmp_path / f"to_{reference}.nii", [shift[3]]
        with pytest.raises(ValueError, match="right angles"):
            apply_file(*paths, tmp_path / f"{reference}.nii")
        apply_file(*paths, tmp_path / f"{reference}.nii", nearest_rotation=True)
    assert read_image(tmp_path / "to_sheared.nii").grid.distance(grid) < 1e-4
    assert read_image(tmp_path / "to_straight.nii").grid.distance(read_image(straight).grid) < 1e-4
    with pytest.raises(ValueError, match="right angles"):
        compose_files([shift[3]], tmp_path / "sheared.nii", tmp_path / "warp.nii.gz")
    compose_files([shift[3]], tmp_path / "sheared.nii", tmp_path / "warp.nii.gz", nearest_rotation=True)
    assert sitk.ReadImage(str(tmp_path / "warp.nii.gz")).GetSize() == (7, 6, 5)


def test_a_png_holds_pictures_and_labels_only(shift, tmp_path):
    numbers = RNG.integers(0, 4, (9, 12)).astype(np.uint8)
    picture = palette_labels(tmp_path / "picture.png", numbers)
    unit = save(tmp_path / "unit.nii", RNG.random((12, 9)).astype(np.float32), np.diag([-1.0, -1, 1, 1]))
    labels = save(tmp_path / "labels.nii", numbers.T.astype(np.int32) * 21845, np.diag([-1.0, -1, 1, 1]))
    many = save(tmp_path / "many.nii", numbers.T.astype(np.int32) * 21846, np.diag([-1.0, -1, 1, 1]))
    out, moved = tmp_path / "out.png", [tmp_path / "none.mat"]  # missing, and not looked for
    for source, reference, kind, told in (
        (unit, picture, "linear", "round"),
        (labels, picture, "linear", "round"),
        (many, picture, "nearest", "labels up to 65535, not 65538"),
        (picture, save(tmp_path / "other.nii", numbers.T), "linear", "cannot hold the grid"),
        (picture, save(tmp_path / "volume.nii", VALUES), "linear", "cannot hold the grid"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            apply_file(source, out, moved, reference, interpolation=kind)
        assert "\n" not in str(error.value) and not out.exists()
    apply_file(labels, out, [shift[2]], picture, interpolation="nearest")
    assert np.asarray(Image.open(out)).max() == 65535
    apply_file(picture, out, [shift[2]], picture, replace=True)
    apply_file(unit, tmp_path / "out.nii.gz", [shift[2]], picture)
    assert 0 < nib.load(tmp_path / "out.nii.gz").get_fdata().max() < 1
