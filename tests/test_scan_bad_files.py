"""Damaged and wrong files: one line each that begins with the file's name, nothing else, and little memory.

The tests with hypothesis change valid files in their headers, lengths and bytes.
"""

import contextlib
import gzip
import io
import os
import struct
import tempfile
import tracemalloc
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from tvf_core.scans.grids import Grid
from tvf_core.scans.images import read_image, read_labels
from tvf_core.scans.points import Points, read_points

RNG = np.random.default_rng(9)
EXAMPLES = settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
ERRORS = (ValueError, OSError)
# Fields of the header: offset and form, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
FIELDS = {
    "sizeof_hdr": (0, "i"),
    **{f"dim[{k}]": (40 + 2 * k, "h") for k in range(8)},
    "intent_code": (68, "h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    **{f"pixdim[{k}]": (76 + 4 * k, "f") for k in range(8)},
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    **{f"quatern {k}": (256 + 4 * k, "f") for k in range(6)},
    **{f"srow {k}": (280 + 4 * k, "f") for k in range(12)},
    "magic": (344, "i"),
}


def nifti(values, q=1, s=1):
    affine = np.array([[0.5, 0, 0, 3], [0, -2, 0, 4], [0, 0, 1.5, -9], [0, 0, 0, 1]])
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine if q else None, q)
    image.set_sform(affine if s else None, s)
    return image.to_bytes()


VALUES = RNG.integers(0, 50, (5, 4, 6))
NIFTIS = [
    nifti(VALUES.astype(np.float32)),
    nifti(VALUES.astype(np.int16), s=2),
    nifti(VALUES.astype(np.float64), q=0),
    nifti(VALUES[:, :, 0].astype(np.uint8)),
    nifti(VALUES[:, :, :1].astype(np.int32), s=0),
    nifti(VALUES[..., None].astype(np.float32), q=0, s=0),
    nifti(RNG.random((3, 4, 2, 3)).astype(np.float32)),
]


def picture(array, form="PNG", **how):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **how)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
GREY = RNG.integers(0, 256, (9, 13)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (9, 13, 4)).astype(np.uint8)
PICTURES = [
    picture(GREY),
    picture(GREY.astype(np.uint16) * 257),
    picture(GREY > 99),
    picture(COLOURS),
    picture(COLOURS[..., :3], exif=TURNED),
    picture(GREY, "JPEG"),
    picture(COLOURS[..., :3], "JPEG", exif=TURNED),
]
TABLES = [
    b"x,y,z\n1,2,3\n-4,5.5,6\n",
    b"label,x,y,z,t\n7,1,2,3,0\n8,4,5,6,0\n",
    b'\xef\xbb\xbfx,y\r\n1,"2"\r\n3,4\r\n',
]


@contextlib.contextmanager
def a_file(content, name):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning on the screen is no clear line
        path = Path(folder, name)
        path.write_bytes(content)
        yield path
        assert [file.name for file in path.parent.iterdir()] == [name]


def outcome(read, path, *args, **kwargs):
    """What was read, or the message, which is one line and begins with the file's name."""
    try:
        return read(path, *args, **kwargs)
    except ERRORS as error:
        message = str(error)
        assert type(error) in (ValueError, OSError, FileNotFoundError), repr(error)
        assert message.startswith(str(path)) and len(message.splitlines()) == 1, message
        assert error.__suppress_context__ or error.__context__ is None, repr(error.__context__)
        return message[len(str(path)) :]


def assert_sound(scan):
    """Either a message, or an image that can be worked with."""
    if isinstance(scan, str):
        event("refused")
        return
    event("read")
    assert np.isfinite(scan.values).all() and scan.values.shape == scan.grid.shape
    assert np.isfinite(scan.grid.affine).all() and scan.grid.dim in (2, 3)
    index = np.zeros((1, scan.grid.dim))
    np.testing.assert_allclose(scan.grid.index(scan.grid.world(index + 1)), index + 1, atol=1e-3)
    assert all("\n" not in note for note in scan.notes)


def numbers(form):
    """Values of a field: any, and those that do harm."""
    if form == "f":
        odd = [0.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), 1e-3, 352.0, 347.0, 400.5]
        return st.sampled_from(odd) | st.floats(width=32)
    bits = 8 * struct.calcsize(form)
    low, high = (0, 255) if form == "B" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    odd = [
        v for v in (-1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 128, 512, 768, 1280, 2304, high, low) if low <= v <= high
    ]
    return st.sampled_from(odd) | st.integers(low, high)


@st.composite
def changed_bytes(draw, originals, fields=None):
    """One of the files with some fields, some bytes or its length changed."""
    content = bytearray(draw(st.sampled_from(originals)))
    if fields:
        for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=4)):
            offset, form = fields[name]
            content[offset : offset + struct.calcsize(form)] = struct.pack(f"<{form}", draw(numbers(form)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    how = draw(st.sampled_from(["whole", "whole", "cut", "longer", "spliced"]))
    if how == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    if how == "longer":
        return bytes(content) + draw(st.binary(max_size=40))
    if how == "spliced":
        at = draw(st.integers(0, len(content)))
        return bytes(content[:at]) + draw(st.binary(max_size=40)) + bytes(content[at:])
    return bytes(content)


def right_checksums(content):
    """A PNG with correct checksums, so that what is wrong in its parts reaches the decoder."""
    found, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        part = content[at + 4 : at + 8 + length]
        found.append(content[at : at + 4] + part + zlib.crc32(part).to_bytes(4, "big"))
        at += 12 + length
    return b"".join(found)


@EXAMPLES
@given(
    changed_bytes(NIFTIS, FIELDS),
    st.sampled_from(["plain", "packed", "cut"]),
    st.booleans(),
    st.integers(0, 3),
)
def test_changed_nifti(content, how, nearest, volume):
    if how != "plain":
        content = gzip.compress(content, 1)
        content = content[: len(content) * 3 // 4] if how == "cut" else content
    with a_file(content, "scan.nii.gz") as path:
        assert_sound(outcome(read_image, path, volume=volume or None, nearest_rotation=nearest))
        scan = outcome(read_labels, path, Grid((5, 4, 6), np.diag([0.5, -2, 1.5, 1])), "moving")
        assert isinstance(scan, str) or (scan.values.dtype == np.int64 and scan.values.min() >= 0)


@EXAMPLES
@given(changed_bytes([gzip.compress(content, 1, mtime=0) for content in NIFTIS]))
def test_changed_gzip(content):
    with a_file(content, "scan.nii.gz") as path:
        assert_sound(outcome(read_image, path))


@EXAMPLES
@given(changed_bytes(PICTURES), st.booleans())
def test_changed_picture(content, mended):
    if mended and content.startswith(b"\x89PNG"):
        content = right_checksums(content)
    with a_file(content, "picture.png") as path:
        assert_sound(outcome(read_image, path))
        outcome(read_labels, path, Grid((13, 9), np.diag([-1.0, -1, 1])), "fixed")


@EXAMPLES
@given(changed_bytes(TABLES), st.sampled_from([2, 3]))
def test_changed_table(content, dim):
    with a_file(content, "points.csv") as path:
        points = outcome(read_points, path, dim)
        if isinstance(points, Points):
            assert np.isfinite(points.positions).all() and points.positions.shape == (len(points.rows), dim)


def test_the_originals_are_read(tmp_path):
    """Otherwise the tests above would see the same refusal all the time."""
    for number, content in enumerate(NIFTIS[:-1] + PICTURES):
        with a_file(content, f"{number}.nii.gz") as path:
            scan = outcome(read_image, path)
            assert not isinstance(scan, str), scan
            assert np.isfinite(scan.values).all()
    for content, dim in zip(TABLES, (3, 3, 2)):
        with a_file(content, "points.csv") as path:
            assert isinstance(outcome(read_points, path, dim), Points)


def with_fields(content, **changes):
    content = bytearray(content)
    for name, value in changes.items():
        offset, form = FIELDS[name.replace("__", "[") + "]" * ("__" in name)]
        content[offset : offset + struct.calcsize(form)] = struct.pack(f"<{form}", value)
    return bytes(content)


HUGE = with_fields(NIFTIS[0], dim__1=32767, dim__2=32767, dim__3=32767)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"some text", "is not a NIfTI, PNG or JPEG image"),
        (gzip.compress(b"some text"), "is not a NIfTI, PNG or JPEG image"),
        (bytes(128) + b"DICM" + bytes(500), "is a DICOM file"),
        (b"NRRD0004\n", "is an NRRD file"),
        (NIFTIS[0][:300], "cut short (damaged download?)"),
        (NIFTIS[0][:-1], "cut short (damaged download?)"),
        (gzip.compress(NIFTIS[0])[:-200], "cut short (damaged download?)"),
        (gzip.compress(NIFTIS[0])[:-4], "cut short (damaged download?)"),
        (gzip.compress(NIFTIS[0], mtime=0)[:-8] + bytes(8), "is damaged"),
        (with_fields(NIFTIS[0], dim__0=2, dim__2=0), "damaged header"),
        (with_fields(NIFTIS[0], dim__0=0), "damaged header"),
        (with_fields(NIFTIS[0], dim__3=-6), "damaged header"),
        (with_fields(NIFTIS[0], datatype=32), "complex values are not supported"),
        (with_fields(NIFTIS[0], datatype=128), "colours are not supported"),
        (with_fields(NIFTIS[0], datatype=1536), "128-bit numbers are not supported"),
        (with_fields(NIFTIS[0], pixdim__2=0), "voxel size is 0 along axis 2"),
        (with_fields(NIFTIS[0], pixdim__1=-1), "voxel size is -1 along axis 1"),
        (with_fields(NIFTIS[0], pixdim__1=float("nan")), "voxel size is nan along axis 1"),
        (with_fields(NIFTIS[0], pixdim__1=1e20), "cannot be right"),
        (with_fields(NIFTIS[0], vox_offset=1e30), "voxels begin at byte 1e+30"),
        (with_fields(NIFTIS[0], vox_offset=347), "voxels begin at byte 347"),
        (with_fields(NIFTIS[0], vox_offset=3000), "cut short"),
        (with_fields(NIFTIS[0], scl_slope=1, scl_inter=float("inf")), "scl_inter is inf"),
        (with_fields(NIFTIS[0], magic=int.from_bytes(b"ni1\0", "little")), ".hdr/.img pair"),
        (with_fields(NIFTIS[0], magic=0), "is no NIfTI file"),
        (with_fields(NIFTIS[2], **{f"srow {k}": 0 for k in range(12)}), "sform is not a position"),
        (with_fields(NIFTIS[2], **{"srow 1": 1.0, "srow 5": 0}), "sform is singular"),
        (with_fields(NIFTIS[2], **{"srow 3": 1e12}), "origin"),
        (nib.Nifti1Image(np.zeros((3, 3, 3, 1, 3), "f4"), np.eye(4)).to_bytes(), "displacement field"),
        (nifti(RNG.random((9,)).astype("f4")), "has one axis"),
        (PICTURES[0][:-60], "cut short (damaged download?)"),
        (PICTURES[5][:-60], "cut short (damaged download?)"),
        (PICTURES[0][:30], "damaged"),
        (picture(GREY[:1]), "13 x 1 pixels"),
        (HUGE, "cut short (damaged download?): its header says 32767 x 32767 x 32767 voxels"),
        (gzip.compress(HUGE), "cut short (damaged download?): its header says 32767 x 32767 x 32767 voxels"),
    ],
)
def test_message(content, message):
    with a_file(content, "scan.nii.gz") as path:
        assert message in outcome(read_image, path)


def test_files_that_are_none(tmp_path, monkeypatch):
    assert "does not exist" in outcome(read_image, tmp_path / "none.nii")
    assert "does not exist" in outcome(read_labels, tmp_path / "none.nii", Grid((2, 2), np.eye(3)), "fixed")
    assert "is a folder" in outcome(read_image, tmp_path)
    os.mkfifo(tmp_path / "pipe.nii")
    assert "no ordinary file" in outcome(read_image, tmp_path / "pipe.nii")
    (tmp_path / "file").write_text("x", "utf-8")
    assert "cannot be read (Not a directory)" in outcome(read_image, tmp_path / "file" / "a.nii")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "file")

    monkeypatch.setattr("builtins.open", denied)
    assert outcome(read_image, tmp_path / "file") == " cannot be read (Permission denied)"


def test_a_volume_that_is_not_there():
    with a_file(PICTURES[0], "a.png") as path:
        assert "has one volume (0), not number 1" in outcome(read_image, path, volume=1)
    with a_file(NIFTIS[0], "a.nii") as path:
        assert "has one volume (0), not number 1" in outcome(read_image, path, volume=1)


def huge_picture():
    """A PNG that says it has 60000 x 60000 pixels."""
    content = PICTURES[0]
    return right_checksums(content[:16] + struct.pack(">II", 60000, 60000) + content[24:])


@pytest.mark.parametrize("content", [HUGE, gzip.compress(HUGE), huge_picture()])
def test_a_header_that_claims_much_costs_little(content):
    with a_file(content, "scan.nii.gz") as path:
        tracemalloc.start()
        try:
            assert isinstance(outcome(read_image, path), str)
            assert tracemalloc.get_traced_memory()[1] < 2e6
        finally:
            tracemalloc.stop()


def test_more_than_the_memory_at_hand(monkeypatch):
    """An honest file that is too large is refused before its voxels are read."""
    monkeypatch.setattr("tvf_core.scans.voxels.memory_at_hand", lambda: 8 * 119)
    with a_file(NIFTIS[0], "a.nii") as path:
        assert "5 x 4 x 6 voxels do not fit into the memory at hand" in outcome(read_image, path)
    monkeypatch.setattr("tvf_core.scans.voxels.memory_at_hand", lambda: 8 * 116)
    with a_file(PICTURES[0], "a.png") as path:
        assert "13 x 9 voxels do not fit into the memory at hand" in outcome(read_image, path)


def test_too_many_pixels(monkeypatch):
    with a_file(huge_picture(), "a.png") as path:
        assert "has more than 89 million pixels; make it smaller" in outcome(read_image, path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with a_file(PICTURES[0], "a.png") as path:
        assert "pixels; make it smaller" in outcome(read_image, path)
