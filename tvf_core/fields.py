"""Displacement fields as pure functions: grid, warp, compose, resize, Jacobian, inversion.

A map phi = Id + u is stored as its displacement u, ``(B, D, *S)`` in voxels of its own grid,
component d along axis d. 2D and 3D share one code path. Fields are float32 or float64: lower
precisions are raised to float32, because half precision is too coarse for voxel coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .checks import check_field, check_labels, check_number, check_points, one_of, spatial_rank
from .labels import as_int64, from_int64

MODES = {"linear": "bilinear", "nearest": "nearest"}  # grid_sample calls trilinear "bilinear" too
PADDINGS = ("zeros", "border")


def at_least_float32(tensor: torch.Tensor) -> torch.dtype:
    """Wider of a tensor's dtype and float32; half precision is too coarse for voxel coordinates."""
    return torch.promote_types(tensor.dtype, torch.float32)


def for_sums(device: torch.device) -> torch.dtype:
    """Dtype for sums over a whole image: float64, or float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def identity_grid(shape, device=None, dtype=torch.float32) -> torch.Tensor:
    """Voxel coordinates of a grid, ``(1, D, *shape)``: component d counts along axis d."""
    axes = [torch.arange(s, device=device, dtype=dtype) for s in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: torch.Tensor, points: torch.Tensor, mode: str = "linear", padding: str = "zeros"
) -> torch.Tensor:
    """Values of an image at arbitrary voxel coordinates.

    Parameters
    ----------
    image : (B, C, *S) float; a batch of 1 is sampled at the points of every batch element.
    points : (B, D, *P) voxel coordinates on the image's grid; ``P`` is any D-dimensional shape.
    mode : ``linear`` or ``nearest``.
    padding : ``zeros``: the image is 0 outside its grid, for images and labels. ``border``: it keeps its
        border value, for fields, because a field that drops to zero outside would tear the map at the edge.

    Returns
    -------
    (B, C, *P), in the wider of the image's type and float32. It is NaN at a place that is not finite, and not
    finite where a value is read that is not.

    Notes
    -----
    Only this function converts voxels to the normalised coordinates of PyTorch's ``grid_sample``. They are
    those of ``align_corners=True``: -1 and 1 are the centres of the first and last voxel, so that a zero
    displacement is the identity for odd and even sizes. In float32 they resolve about ``s * 6e-8``
    voxels along an axis of s voxels (1e-5 at 224); float64 has no such limit in practice.
    """
    one_of(mode, MODES, "mode")
    one_of(padding, PADDINGS, "padding")
    rank = spatial_rank(image)
    if points.dim() != rank + 2 or points.shape[1] != rank:
        raise ValueError(
            f"points: expected (batch, {rank}, ...) with {rank} further axes for an image in {rank}D, "
            f"got shape {tuple(points.shape)}"
        )
    dtype = at_least_float32(image)
    # The centre is subtracted first: 2x/(s-1) - 1 would lose the last bits of large coordinates.
    half = [(s - 1) / 2 for s in image.shape[2:]]
    normalised = [(points[:, d].to(dtype) - h) / max(h, 0.5) for d, h in enumerate(half)]
    places = torch.stack(normalised[::-1], dim=1)  # grid_sample expects the last axis first
    grid = places.movedim(1, -1)  # a view: grid_sample reads it faster than a copy with the components last
    if grid.shape[0] != image.shape[0]:  # one image at many places, or many images at the same places
        batch = max(grid.shape[0], image.shape[0])
        if 1 not in (grid.shape[0], image.shape[0]):
            raise ValueError(
                f"cannot sample a batch of {image.shape[0]} images with a batch of {grid.shape[0]} maps"
            )
        grid, image = grid.expand(batch, *grid.shape[1:]), image.expand(batch, *image.shape[1:])
    values = F.grid_sample(image.to(dtype), grid, mode=MODES[mode], padding_mode=padding, align_corners=True)
    # grid_sample itself takes NaN and infinity for a place outside, whose value looks like any other.
    return values.add_(places.detach().sum(1, keepdim=True).mul_(0))


def warp(
    image: torch.Tensor, displacement: torch.Tensor, mode: str = "linear", padding: str = "zeros"
) -> torch.Tensor:
    """Pull an image back by a displacement: ``out(x) = image(x + u(x))``.

    Parameters
    ----------
    image : (B, C, *S) float. For integer label maps use :func:`warp_labels`.
    displacement : (B, D, *S) voxels, on the grid of the result.
    mode, padding : as in :func:`sample`.

    Returns
    -------
    (B, C, *S)

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(1, 1, 5, 6)
    >>> shift = torch.zeros(1, 2, 5, 6); shift[:, 1] = 1.0          # read one voxel further on
    >>> torch.allclose(warp(image, shift)[..., :-1], image[..., 1:], atol=1e-5)
    True
    """
    rank = check_field(displacement)
    if spatial_rank(image) != rank or image.shape[2:] != displacement.shape[2:]:
        raise ValueError(
            f"image {tuple(image.shape)} and displacement {tuple(displacement.shape)} differ in space"
        )
    grid = identity_grid(displacement.shape[2:], displacement.device, at_least_float32(displacement))
    return sample(image, grid + displacement, mode, padding)


def warp_labels(labels: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Pull a label map ``(B, 1, *S)`` back by nearest neighbour.

    The map may be of any integer type and hold any numbers: they come back as they are, in the same type. As
    in Learn2Reg's evaluation, a voxel becomes background (0) if its source lies outside ``[0, s - 1]`` along
    any axis, even by less than half a voxel; an axis of one voxel has no outside, as for images. ValueError
    for a displacement with NaN or infinite values, for which a label map has no number.
    """
    check_field(displacement)
    check_labels(labels, displacement)
    if not torch.stack(displacement.aminmax()).isfinite().all():
        raise ValueError("displacement: has NaN or infinite values, by which no label map can be warped")
    batch = max(len(labels), len(displacement))
    if not {len(labels), len(displacement)} <= {1, batch}:
        raise ValueError(
            f"cannot warp a batch of {len(labels)} label maps by a batch of {len(displacement)} displacements"
        )
    grid = identity_grid(displacement.shape[2:], displacement.device)
    # Labels themselves are never interpolated: the nearest voxels' coordinates are, which are small numbers.
    index = 0
    for size, nearest in zip(grid.shape[2:], warp(grid, displacement, "nearest", "border").unbind(1)):
        index = index * size + nearest.long()
    stored = as_int64(labels).flatten(1)
    warped = stored.expand(batch, -1).gather(1, index.flatten(1).expand(batch, -1))
    points = grid + displacement
    last = points.new_tensor(displacement.shape[2:]).view(1, -1, *[1] * (points.dim() - 2)) - 1
    inside = ((points >= 0) & (points <= last) | (last == 0)).all(1, keepdim=True)
    background = as_int64(labels.new_zeros(1))
    return from_int64(torch.where(inside, warped.view(batch, 1, *grid.shape[2:]), background), labels.dtype)


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Displacement of ``(Id + outer) o (Id + inner)``, i.e. ``inner(x) + outer(x + inner(x))``.

    Warping by the result equals warping the image by ``outer`` first and that result by ``inner``,
    without resampling the image twice.
    """
    return inner + warp(outer, inner, padding="border")


def transform_points(points: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Where ``Id + displacement`` sends points: ``(B, K, D)`` voxel coordinates, ``x + u(x)``.

    u is interpolated linearly between voxels and keeps its border value outside the grid. Note the
    direction: the displacement that pulls the moving image onto the fixed one sends points of the
    fixed image to the moving one.
    """
    check_points(points, displacement)
    places = points.movedim(1, -1)
    places = places.view(*places.shape, *[1] * (points.shape[2] - 1))
    return points + sample(displacement, places, padding="border").flatten(2).movedim(-1, 1)


def resize(displacement: torch.Tensor, shape) -> torch.Tensor:
    """Resample a displacement to another grid over the same field of view, in voxels of the new grid.

    The interpolation is linear with ``align_corners=False``, which matches the voxel centres of 2 x 2 average
    pooling. Doubling the size doubles the values.
    """
    rank = check_field(displacement)
    if not isinstance(shape, Sequence) or len(shape) != rank or min(shape) < 1:
        raise ValueError(f"shape: expected {rank} sizes of at least 1, got {shape}")
    shape = tuple(int(s) for s in shape)
    if shape == tuple(displacement.shape[2:]):
        return displacement
    mode = "bilinear" if rank == 2 else "trilinear"
    out = F.interpolate(displacement, size=shape, mode=mode, align_corners=False)
    scale = [new / old for new, old in zip(shape, displacement.shape[2:])]
    return out * out.new_tensor(scale).view(1, -1, *[1] * rank)


def halve(image: torch.Tensor) -> torch.Tensor:
    """Halve an image to ``ceil(S / 2)`` by 2 x 2 (x 2) averages; an odd last voxel is not averaged."""
    return pool(image, 2, ceil_mode=True)


def average_down(image: torch.Tensor) -> torch.Tensor:
    """Halve an image ``(B, C, *S)`` to ``ceil(S / 2)`` by means of width 3 at every second voxel.

    At the border, the mean is over the voxels inside the image only.
    """
    return pool(image, 3, 1, count_include_pad=False)


def pool(image: torch.Tensor, width: int, padding: int = 0, **options) -> torch.Tensor:
    """Means of windows at every second voxel, for images of any size and type.

    It is PyTorch's ``avg_pool2d`` or ``avg_pool3d`` with its ``options``, which in 3D refuses a window wider
    than the image and, on a processor, half precision. The window covers an axis that is shorter than it.
    """
    average = F.avg_pool2d if spatial_rank(image) == 2 else F.avg_pool3d
    widths = [min(width, s) for s in image.shape[2:]]
    paddings = [padding * (w == width) for w in widths]
    means = average(image.to(at_least_float32(image)), widths, 2, paddings, **options)
    return means.to(image.dtype) if image.is_floating_point() else means


def double(displacement: torch.Tensor, shape) -> torch.Tensor:
    """Resample a field from the half grid of :func:`halve` to the full grid ``shape``, values doubled.

    ValueError for a grid that it does not halve.
    """
    check_field(displacement)
    if tuple(-(-int(s) // 2) for s in shape) != tuple(displacement.shape[2:]):
        raise ValueError(
            f"shape: {tuple(shape)} is no grid of which {tuple(displacement.shape[2:])} is the half"
        )
    fine = resize(displacement, [2 * s for s in displacement.shape[2:]])
    return fine[(..., *[slice(0, int(s)) for s in shape])]


def jacobian(displacement: torch.Tensor) -> torch.Tensor:
    """Jacobian matrix of ``Id + u``: ``(B, D, D, *S)``, entry [c, a] = d phi_c / d x_a.

    Central differences inside, one-sided at the border. Along an axis of one voxel u cannot change: its
    derivative is 0. Where u is not finite, and where it is so in the next voxel, the entries are NaN.
    """
    rank = check_field(displacement)
    unknown = 0 * displacement  # NaN where u is not finite, whose own value no central difference looks at
    u, shape = displacement + unknown, displacement.shape[2:]
    slopes = iter(torch.gradient(u, dim=[2 + axis for axis, size in enumerate(shape) if size > 1]))
    grad = torch.stack([next(slopes) if size > 1 else unknown for size in shape], dim=2)
    eye = torch.eye(rank, device=grad.device, dtype=grad.dtype)
    return grad.add_(eye.view(1, rank, rank, *[1] * rank)).add_(unknown[:, :, None])


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Determinant of the Jacobian of ``Id + u``, ``(B, *S)``; <= 0 means the map folds there."""
    return determinant(jacobian(displacement))


def determinant(matrix: torch.Tensor) -> torch.Tensor:
    """Determinant of ``(B, D, D, *S)`` matrices, D = 2 or 3, by the explicit formula, without pivoting."""
    m = matrix
    if m.dim() < 3 or tuple(m.shape[1:3]) not in ((2, 2), (3, 3)):
        raise ValueError(f"matrix: expected (batch, D, D, *space), D = 2 or 3, got shape {tuple(m.shape)}")
    if m.shape[1] == 2:
        return m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
    return (
        m[:, 0, 0] * (m[:, 1, 1] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 1])
        - m[:, 0, 1] * (m[:, 1, 0] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 0])
        + m[:, 0, 2] * (m[:, 1, 0] * m[:, 2, 1] - m[:, 1, 1] * m[:, 2, 0])
    )


def invert(displacement: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """Approximate inverse of ``Id + u`` by the fixed point ``w <- -u o (Id + w)``.

    It serves fields that come without a velocity. It converges where the gradient of u stays below 1;
    where the map folds, no inverse exists and the result is meaningless. The inverse of a map that comes
    from a velocity needs no iteration: ``integrate.flow(velocity, t0=1, t1=0)``.
    """
    check_field(displacement)
    check_number(iterations, "iterations", 1, whole=True)
    inverse = torch.zeros_like(displacement)
    for _ in range(iterations):
        inverse = -warp(displacement, inverse, padding="border")
    return inverse
