"""PNG and JPEG pictures as grey 2D images, on the grid that ITK gives them."""

from __future__ import annotations

import contextlib
import re
import struct
import warnings

import numpy as np
from PIL import Image

from .voxels import must_fit, whole

MARKS = PNG, JPEG = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin
JPEG_UNITS = {1: 25.4, 2: 10.0}  # mm: JFIF counts the pixels of an inch or of a centimetre
DECIMAL = re.compile(rb"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
PNG_SCALE = 64  # bytes of PNG's chunk sCAL that are read; those of two numbers are fewer
LUMINANCE = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)  # ITU-R BT.709, as in ITK and scikit-image
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
TURNS = {  # its values, from the EXIF standard, and what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_affine() -> np.ndarray:
    """Affine of a picture: pixels of 1 mm, x to the right and y down in LPS, first pixel at the origin."""
    return np.diag([-1.0, -1.0, 1.0])


def read_picture(file, where: str, labels: bool = False) -> tuple[np.ndarray, list[str], bool]:
    """Read a PNG or JPEG, whose pixels have a size of 1.

    Colours become grey by luminance, 0.2125 R + 0.7154 G + 0.0721 B, and an alpha channel makes its
    transparent parts black, both as ITK does it. A picture with an EXIF tag for its orientation is turned as
    the tag says, which ITK does not do. A size of pixels in the file (:func:`pixel_size`) is not used,
    because few pictures tell a true one; ITK does use it.

    Parameters
    ----------
    file : open binary file, at its beginning.
    where : the file's name, with which every message begins.
    labels : read whole numbers: of a picture with a palette its numbers, no JPEG, no colours.

    Returns
    -------
    values, notes, differs : (X, Y) float32, or int64 labels; one line for everything that was done to it;
        whether ITK turns or places the file otherwise.

    Raises
    ------
    ValueError : it cannot be decoded, or is no picture that can be used; one line.
    """
    notes: list[str] = []
    image = _decoded(file, where)
    kind, turn = image.format, TURNS.get(_orientation(image))
    pixel = pixel_size(file, image.info)
    if turn is not None:
        image = image.transpose(turn)
        notes.append("turned as its EXIF tag says; ITK does not do that: use the copy with our transforms")
    if pixel != (1, 1):
        notes.append(
            f"pixels taken as 1 x 1; ITK takes {pixel[0]:.4g} x {pixel[1]:.4g} mm from the file: "
            "use the copy with our transforms"
        )
    _must_have_extent(image.size, where)
    if labels:
        if kind != "PNG":
            raise ValueError(f"{where}: JPEG changes the numbers of labels; save them as PNG")
        grey = whole(_label_numbers(image, where), where)
    else:
        grey = _grey(image, notes)
    return np.ascontiguousarray(grey.T), notes, turn is not None or pixel != (1, 1)


def picture_shape(file, where: str) -> tuple[int, int]:
    """Shape (X, Y) that :func:`read_picture` gives the same picture, without its pixels."""
    with _one_line_errors(where):
        image = _opened(file, where)
        shape = image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size
    _must_have_extent(shape, where)
    return shape


def pixel_size(file, info: dict) -> tuple[float, float]:
    """Size of a pixel, in mm, that ITK takes from a PNG or JPEG; 1 x 1 if the file has none for it.

    It is that of a JPEG's JFIF segment in pixels per inch or centimetre, and that of a PNG's chunk sCAL,
    which ITK writes into its pictures; its unit, metre or radian, is ignored. ITK reads neither the
    resolution of the EXIF data nor a PNG's chunk pHYs. Tried with SimpleITK 2.5.7.

    Parameters
    ----------
    file : open binary file of the picture; it may stand anywhere.
    info : what Pillow found in it.
    """
    file.seek(0)
    if file.read(len(PNG)) == PNG:
        return _png_scale(file)
    density = info.get("jfif_density", (0, 0))
    if info.get("jfif_unit") not in JPEG_UNITS or min(density) <= 0:
        return 1.0, 1.0
    return tuple(JPEG_UNITS[info["jfif_unit"]] / number for number in density)


def _png_scale(file) -> tuple[float, float]:
    """Both numbers of the chunk sCAL before the pixels; 1 and 1 if there is none that libpng accepts."""
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        (length,) = struct.unpack(">I", head[:4])
        if head[4:] == b"sCAL" and length <= PNG_SCALE:
            unit, numbers = file.read(1), file.read(length - 1).split(b"\0")
            if unit in (b"\1", b"\2") and len(numbers) == 2 and all(map(DECIMAL.fullmatch, numbers)):
                size = float(numbers[0]), float(numbers[1])
                return size if 0 < min(size) and max(size) < np.inf else (1.0, 1.0)
            return 1.0, 1.0
        file.seek(length + 4, 1)  # the checksum too
    return 1.0, 1.0


def _must_have_extent(size, where: str) -> None:
    if min(size) < 2:
        raise ValueError(f"{where} has {size[0]} x {size[1]} pixels; an image needs 2 along each axis")


def _decoded(file, where: str) -> Image.Image:
    """The picture with all its pixels read; any error of the decoder becomes one line."""
    with _one_line_errors(where):
        image = _opened(file, where)
        image.load()
        return image


def _opened(file, where: str) -> Image.Image:
    image = Image.open(file, formats=("PNG", "JPEG"))
    must_fit(image.size, where)
    return image


@contextlib.contextmanager
def _one_line_errors(where: str):
    """Turn any error of a decoder into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise ValueError(f"{where} has more than {limit / 1e6:.0f} million pixels; make it smaller") from None
    except Exception as error:  # decoders fail in many ways on damaged bytes: struct.error, SyntaxError, ...
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise ValueError(f"{where} is cut short (damaged download?)") from None
        raise ValueError(f"{where} is damaged: it cannot be decoded (damaged download?)") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none or if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data, which the picture does not need
        return 1


def _grey(image: Image.Image, notes: list[str]) -> np.ndarray:
    """Grey values (rows, columns) float32."""
    if image.mode == "1":
        return np.asarray(image).astype(np.float32) * 255
    if image.mode.startswith(("I", "F")):
        return np.asarray(image).astype(np.float32)
    clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if image.mode in ("L", "LA"):
        channels = np.asarray(image.convert("LA" if clear else "L"), dtype=np.float32)
        grey = channels[..., 0] if clear else channels
    else:
        channels = np.asarray(image.convert("RGBA" if clear else "RGB"), dtype=np.float32)
        grey = channels[..., :3] @ LUMINANCE
        notes.append("colours converted to grey by luminance")
    if clear and channels[..., -1].min() < 255:
        notes.append("transparent parts taken as black")
        grey = grey * channels[..., -1] / 255
    return grey


def _label_numbers(image: Image.Image, where: str) -> np.ndarray:
    """Label numbers (rows, columns) as they are stored."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * 255
    if image.mode in ("L", "P") or image.mode.startswith("I"):
        return np.asarray(image)
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise ValueError(f"{where}: labels in colours; save one number per pixel (grey, or with a palette)")
    return channels[..., 0]
