"""Files of images read safely: what kind a file is, and the voxels of a NIfTI in pieces, gzip or not."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from .headers import Header

PIECE = 1 << 20  # voxels that are converted at a time
DEFLATE = 1032  # gzip makes a file at most this many times smaller, https://zlib.net/zlib_tech.html
LARGEST_LABEL = 1 << 24  # up to here, 32-bit floats, in which ANTs holds labels, are exact
OTHER_KINDS = (
    (128, b"DICM", "is a DICOM file; convert the series to NIfTI first, such as with dcm2niix"),
    (0, b"NRRD", "is an NRRD file; save it as NIfTI (.nii.gz)"),
    (0, b"ObjectType", "is a MetaImage file; save it as NIfTI (.nii.gz)"),
    (0, b"\x89HDF", "is an HDF5 file; save it as NIfTI (.nii.gz)"),
    (0, b"II*\0", "is a TIFF file; save it as PNG or NIfTI"),
    (0, b"MM\0*", "is a TIFF file; save it as PNG or NIfTI"),
)


@contextlib.contextmanager
def opened(path: Path):
    """Open a file and yield ``(file, start, size)``: what it holds, unpacked if it is gzip.

    Yields
    ------
    file, start, size : the open binary file after its first 540 bytes, these bytes, and the number of bytes
        that the file can hold at most when unpacked.

    Raises
    ------
    FileNotFoundError, OSError, ValueError : there is no such file, it cannot be read, or it is damaged,
        wherever in the block that comes to light. One line, which begins with the file's name.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give one image (dcm2niix makes one of a DICOM folder)")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no ordinary file")
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            size = os.fstat(raw.fileno()).st_size
            with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as file:
                yield file, file.read(540), size * DEFLATE if packed else size
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except EOFError:
        raise ValueError(f"{path} is cut short (damaged download?)") from None
    except (gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{path} is damaged: its gzip data cannot be unpacked (damaged download?)") from None
    except MemoryError:
        raise ValueError(f"{path} does not fit into the memory at hand") from None
    except OSError as error:
        if error.strerror is None:  # one of ours, which says all
            raise
        raise OSError(f"{path} cannot be read ({error.strerror})") from None


def unknown(start: bytes, where: str) -> ValueError:
    """The error for a file that is no NIfTI, PNG or JPEG: it names the kind of file if it is a known one."""
    if not start:
        return ValueError(f"{where} is empty")
    for offset, mark, text in OTHER_KINDS:
        if start[offset:].startswith(mark):
            return ValueError(f"{where} {text}")
    return ValueError(f"{where} is not a NIfTI, PNG or JPEG image")


def memory_at_hand() -> float:
    """Bytes of memory that are free for this process; infinity where the system does not tell."""
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # the limit of a container
        free.append(float(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return min(free)


def must_fit(sizes, where: str) -> None:
    """Refuse an image whose voxels alone, with 8 bytes each, do not fit into the memory at hand."""
    needed, free = 8 * math.prod(sizes), memory_at_hand()
    if needed > free:
        raise ValueError(
            f"{where}: {' x '.join(map(str, sizes))} voxels do not fit into the memory at hand "
            f"({needed / 2**30:.1f} of {free / 2**30:.1f} GB): crop or downsample it"
        )


def volume_of(header: Header, volume: int | None, where: str) -> int:
    """Number, from 0, of the volume to read; ValueError if a file of several needs one to be chosen."""
    count = header.sizes[3] if len(header.sizes) == 4 else 1
    if volume is None and count > 1:
        raise ValueError(f"{where} has {count} volumes; choose one with --volume N (0 to {count - 1})")
    if volume is not None and not 0 <= volume < count:
        volumes = f"{count} volumes (0 to {count - 1})" if count > 1 else "one volume (0)"
        raise ValueError(f"{where} has {volumes}, not number {volume}")
    return volume or 0


def read_voxels(file, size: int, header: Header, volume: int, where: str, labels: bool = False):
    """Read one volume: float32 values, or int64 labels, and how many values were not finite.

    Parameters
    ----------
    file, size : as :func:`opened` yields them; ``file`` may stand anywhere.
    header, volume, where : what it holds, which volume, and the file's name for messages.
    labels : read whole numbers from 0 to 2**24, exactly.

    Returns
    -------
    values, missing : (X, Y[, Z]) float32 or int64, and the number of voxels that were NaN or infinite, or do
        not fit into 32 bits; they are 0 in ``values``.

    Raises
    ------
    ValueError : the file ends too early, does not fit into memory, or has no such labels; one line.
    """
    sizes = header.sizes[:3]
    count, width = math.prod(sizes), header.type.itemsize
    begin = header.offset + volume * count * width
    if begin + count * width > size:
        raise _short(where, header)
    must_fit(sizes, where)
    file.seek(begin)
    values = np.empty(count, dtype=np.int64 if labels else np.float32)
    missing = 0
    for first in range(0, count, PIECE):
        number = min(PIECE, count - first)
        block = file.read(number * width)
        if len(block) < number * width:
            raise _short(where, header)
        piece = np.frombuffer(block, dtype=header.type)
        with np.errstate(all="ignore"):
            if header.slope != 1 or header.intercept != 0:
                piece = piece.astype(np.float64) * header.slope + header.intercept
            if labels:
                values[first : first + number] = whole(piece, where)
                continue
            piece = piece.astype(np.float32)
        bad = ~np.isfinite(piece)
        if bad.any():
            missing += int(bad.sum())
            piece[bad] = 0
        values[first : first + number] = piece
    file.read(1)  # at its end, gzip compares the checksum
    return np.ascontiguousarray(values.reshape(sizes, order="F")), missing


def whole(values: np.ndarray, where: str) -> np.ndarray:
    """Labels as int64; ValueError unless they are whole numbers from 0 to 2**24."""
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise ValueError(f"{where}: not whole numbers; labels and masks have one whole number per voxel")
    if values.size and values.min() < 0:
        raise ValueError(f"{where}: has negative labels, such as {values.min():.10g}; number them from 0")
    if values.size and values.max() > LARGEST_LABEL:
        raise ValueError(
            f"{where}: has label {float(values.max()):.10g}, but ANTs confuses labels above {LARGEST_LABEL}; "
            "number them anew"
        )
    return values.astype(np.int64)


def _short(where: str, header: Header) -> ValueError:
    sizes = " x ".join(map(str, header.sizes))
    return ValueError(f"{where} is cut short (damaged download?): its header says {sizes} voxels")
