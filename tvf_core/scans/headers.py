"""Headers of NIfTI files: what the file holds, and where ITK places it in the world."""

from __future__ import annotations

import dataclasses
import itertools
import math

import nibabel as nib
import numpy as np

# Codes of nifti1.h, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
OTHER_TYPES = {
    1: "one bit per voxel",
    32: "complex values",
    128: "colours",
    1536: "128-bit numbers",
    1792: "complex values",
    2048: "complex values",
    2304: "colours",
}
MILLIMETRES = {1: 1000.0, 3: 0.001}  # metre, micron; everything else is taken as mm
RIGHT_ANGLE = 1e-4  # ITK's tolerance for the directions of the axes
FORMS = ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540))


@dataclasses.dataclass(frozen=True)
class Header:
    """What a NIfTI file holds.

    Parameters
    ----------
    sizes : number of voxels along each axis, axes of size 1 at the end left out from the fourth on.
    type : of the stored numbers, in their byte order.
    offset : number of bytes before the first voxel.
    slope, intercept : a voxel's value is ``slope * stored + intercept``.
    record : the fields of the header as they are stored.
    """

    sizes: tuple[int, ...]
    type: np.dtype
    offset: int
    slope: float
    intercept: float
    record: np.void


def parse(block: bytes, where: str, vectors: bool = False) -> Header | None:
    """Read the first bytes of a file; None if they are no NIfTI header.

    Parameters
    ----------
    block : at least 540 bytes, or as many as the file has.
    where : the file's name, with which every message begins.
    vectors : let more than four axes pass, which displacement fields have.

    Raises
    ------
    ValueError : the header is damaged, or of a kind that cannot be used; one line.
    """
    for form, length in FORMS:
        for order in "<>":
            if block[:4] != np.array(length, dtype=order + "i4").tobytes():
                continue
            if len(block) < length:
                raise ValueError(f"{where} is cut short (damaged download?): it ends within its header")
            record = np.frombuffer(block[:length], form.template_dtype.newbyteorder(order))[0]
            return _checked(record, order, length, where, vectors)
    return None


def _checked(record, order: str, length: int, where: str, vectors: bool) -> Header:
    magic = bytes(record["magic"])[:3]
    if magic not in (b"n+1", b"n+2"):
        kind = "is the header of an .hdr/.img pair" if magic in (b"ni1", b"ni2") else "is no NIfTI file"
        raise ValueError(f"{where} {kind}; save the image as one file, .nii or .nii.gz")
    count = int(record["dim"][0])
    sizes = [int(size) for size in record["dim"][1 : 1 + max(count, 0)]]
    if not 1 <= count <= 7 or min(sizes) < 1:
        raise ValueError(f"{where} has a damaged header: its sizes are {_plain(record['dim'])}")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) < 2:
        raise ValueError(f"{where} has one axis; an image has 2 or 3")
    if len(sizes) > 4 and not vectors:
        raise ValueError(
            f"{where} has {len(sizes)} axes ({_plain(sizes)}): it is a displacement field or other "
            "vectors, not an image"
        )
    code = int(record["datatype"])
    if code not in TYPES:
        kind = OTHER_TYPES.get(code, f"values of unknown type {code}")
        raise ValueError(f"{where}: {kind} are not supported; save one real number per voxel")
    offset, minimum = float(record["vox_offset"]), length + 4
    if offset == 0:
        offset = minimum
    if not minimum <= offset < 2**62:
        raise ValueError(f"{where} has a damaged header: its voxels begin at byte {offset:.6g}")
    slope, intercept = float(record["scl_slope"]), float(record["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # both mean: not scaled
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise ValueError(f"{where} has a damaged header: its intercept scl_inter is {intercept}")
    return Header(tuple(sizes), np.dtype(order + TYPES[code]), int(offset), slope, intercept, record)


@np.errstate(all="ignore")  # damaged headers hold anything; what is not finite is refused below
def place(header: Header, where: str, nearest_rotation: bool = False) -> tuple[np.ndarray, list[str]]:
    """Affine, in RAS millimetres, by which ITK places the image of a header in the world.

    ITK takes the sform only if its code is 1 or there is no qform, and if its axes are at right angles;
    otherwise the qform. The axes' directions come from there, and the voxel size from ``pixdim``. Metres
    and microns become millimetres. Without sform and qform, the first voxel is at the origin and the axes
    run to the left, to the back and to the top. A 2D image takes the first two rows and columns.
    Source: ``SetImageIOOrientationFromNIfTI`` in ITK's ``itkNiftiImageIO.cxx``.

    Parameters
    ----------
    header : of the file.
    where : the file's name, with which every message begins.
    nearest_rotation : take the rotation nearest to axes that are not at right angles, instead of refusing.

    Returns
    -------
    affine, notes : (D+1, D+1) float64; one line for every decision that a user should know of.

    Raises
    ------
    ValueError : there is no such place; one line.
    """
    record, dim = header.record, min(len(header.sizes), 3)
    pixels = np.array(record["pixdim"][1 : dim + 1], dtype=np.float64)
    for axis, size in enumerate(pixels):
        if not (np.isfinite(size) and size > 0):
            raise ValueError(f"{where}: voxel size is {size:.6g} along axis {axis + 1}; correct its pixdim")
    scale = MILLIMETRES.get(int(record["xyzt_units"]) & 7, 1.0)
    spacing = pixels * scale
    if not (1e-6 < spacing.min() and spacing.max() < 1e6):
        raise ValueError(f"{where}: voxels of {_mm(spacing)} cannot be right; correct its pixdim and units")
    notes = []
    if spacing.min() < 0.01 or spacing.max() > 50:
        notes.append(f"voxels of {_mm(spacing)} are unusual: check the voxel size and the units")
    if scale != 1:
        notes.append(f"voxel size in {'metres' if scale > 1 else 'microns'}, converted to {_mm(spacing)}")
    matrix, decisions = _chosen(record, header.sizes[:dim], scale, where)
    if matrix is None:
        return np.diag([-spacing[0], -spacing[1], *spacing[2:], 1.0]), notes + decisions
    part = _right_angled(matrix[:3, :3], where, nearest_rotation, decisions)
    if dim == 2:
        if directions(part[:2, :2]) is None or abs(np.linalg.det(directions(part[:2, :2]))) < 1e-3:
            raise ValueError(f"{where} is a 2D image across the x-y plane; save it as (X, Y, 1)")
        part = _right_angled(part[:2, :2], where, nearest_rotation, decisions)
    affine = np.eye(dim + 1)
    affine[:dim, :dim] = part * spacing
    affine[:dim, dim] = matrix[:dim, 3]
    if not np.abs(affine).max() < 1e9:
        raise ValueError(
            f"{where}: an origin of {_mm(affine[:dim, dim])} cannot be right; correct its header"
        )
    return affine, notes + decisions


def _chosen(record, sizes, scale: float, where: str):
    """Matrix in mm of the form that ITK takes, None if there is none, and notes."""
    codes = int(record["qform_code"]), int(record["sform_code"])
    forms = _qform(record) if codes[0] > 0 else None, _sform(record) if codes[1] > 0 else None
    q, s = (None if form is None else np.diag([scale] * 3 + [1.0]) @ form for form in forms)
    if q is None and s is None:
        return None, ["header has no position: first voxel taken as the origin, axes as LPS, as ITK does"]
    notes = []
    square = s is not None and right_angles(s[:3, :3])
    if s is not None and (q is None or (codes[1] == 1 and square)):
        chosen, name = s, "sform"
    else:
        chosen, name = q, "qform"
    if directions(chosen[:3, :3]) is None or not np.isfinite(chosen).all():
        raise ValueError(f"{where}: its {name} is not a position (zeros or NaN); correct its header")
    if name == "sform" and abs(np.linalg.det(directions(s[:3, :3]))) < 1e-3:
        raise ValueError(f"{where}: its sform is singular, two axes run the same way; correct its header")
    if q is not None and s is not None:
        apart = _apart(q, s, sizes)
        if not apart <= 0.1:
            far = f"{apart:.3g} mm apart" if np.isfinite(apart) else "differently"
            notes.append(f"qform and sform place it {far}; using the one that ITK uses ({name})")
    if name == "sform":
        lengths = np.linalg.norm(s[:3, : len(sizes)], axis=0)
        spacing = np.array(record["pixdim"][1 : 1 + len(sizes)], dtype=np.float64) * scale
        if np.abs(lengths / spacing - 1).max() > 1e-3:
            notes.append(
                f"sform has voxels of {_mm(lengths)}, pixdim {_mm(spacing)}; using pixdim, as ITK does"
            )
    return chosen, notes


def _right_angled(part: np.ndarray, where: str, nearest_rotation: bool, notes: list[str]) -> np.ndarray:
    """Directions of the axes; if they are not at right angles, the nearest rotation or an error."""
    found = directions(part)
    if right_angles(part):
        return found
    shear = np.abs(found.T @ found - np.eye(len(found))).max()
    if not nearest_rotation:
        raise ValueError(
            f"{where}: axes are not at right angles (shear {shear:.2g}); ITK and ANTs refuse or misplace it: "
            "resample it, or, of an image, take the nearest rotation (--nearest-rotation)"
        )
    left, _, right = np.linalg.svd(found)
    notes.append(f"axes were not at right angles (shear {shear:.2g}); took the nearest rotation")
    return left @ right


def directions(matrix: np.ndarray) -> np.ndarray | None:
    """Columns scaled to length 1; None if one of them is zero or not finite."""
    lengths = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(matrix).all() and np.isfinite(lengths).all() and lengths.min() > 0):
        return None
    return matrix / lengths


def right_angles(matrix: np.ndarray) -> bool:
    """Whether the columns are at right angles, as ITK judges it."""
    found = directions(matrix)
    return found is not None and np.abs(found @ found.T - np.eye(len(found))).max() <= RIGHT_ANGLE


def _sform(record) -> np.ndarray:
    rows = [np.array(record[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"]
    return np.array([*rows, [0, 0, 0, 1]])


def _qform(record) -> np.ndarray:
    """Matrix of the quaternion: method 2 of ``nifti1.h``."""
    b, c, d = (float(record[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if rest < 1e-7:  # a turn by 180 degrees
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, *(x / length if length else math.nan for x in (b, c, d))
    else:
        a = math.sqrt(rest) if rest > 0 else math.nan
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    sizes = np.array(record["pixdim"][1:4], dtype=np.float64)
    sizes = np.where(sizes > 0, sizes, 1.0)  # 2D files have 0 as their third size
    sizes[2] *= -1 if record["pixdim"][0] < 0 else 1
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * sizes
    matrix[:3, 3] = [float(record[f"qoffset_{axis}"]) for axis in "xyz"]
    return matrix


def _apart(one: np.ndarray, other: np.ndarray, sizes) -> float:
    """How far two matrices place the corners of an image apart, at most, in mm."""
    corners = np.array(
        list(itertools.product(*((0, size - 1) for size in sizes), *[(0,)] * (3 - len(sizes))))
    )
    with np.errstate(all="ignore"):
        difference = one - other
        moved = corners @ difference[:3, :3].T + difference[:3, 3]
        return float(np.linalg.norm(moved, axis=1).max())


def _mm(sizes) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def _plain(sizes) -> str:
    return " x ".join(str(int(size)) for size in sizes)
