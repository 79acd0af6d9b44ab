"""Local normalised cross-correlation, streamed: one pass over the volume that gives value and gradient.

A window of width w holds w^D voxels, and every voxel lies in w^D windows. Box sums are separable, so along
each axis a sum of w neighbours is built from sums of 1, 2, 4, ... of them. Along the first axis the volume
arrives a few planes at a time, small enough for a processor's cache, and a running sum adds the plane that
enters the window and subtracts the one that leaves. The gradient is three more box sums of what the
correlation of each window depends on; it follows the planes at half a window's distance, so that nothing
but the gradient itself is kept for the backward pass.

All sums are float64 (float32 on Apple's GPUs): a variance is a small difference of large sums, and in float32
its rounding errors on bright constant regions outweigh the true gradient elsewhere.
"""

from __future__ import annotations

import math
from collections import deque

import torch

from ..checks import check_number, spatial_rank
from ..fields import average_down, for_sums

# Voxels of one batch of planes. A processor works in its cache; a GPU wants long vectors.
CHUNK = {"cpu": 40_000, "cuda": 2_000_000}


def lncc(a: torch.Tensor, b: torch.Tensor, window: int = 9, eps: float = 1e-5) -> torch.Tensor:
    """Negative mean squared local correlation of two images, in [-1, 0] (NCC of the paper's eq. 3).

    Parameters
    ----------
    a, b : (B, 1, *S) intensities in [0, 1].
    window : edge of the cubic window, odd and at least 3; voxels outside the image count as zero, as in the
        released code.
    eps : added to the product of the windows' variance sums; a window without contrast gives 0.

    Notes
    -----
    The head of this module says how it is computed. Sums are float64 whatever the images are (float32 on
    Apple's GPUs, which have no float64), because the variances are differences of nearly equal sums. Second
    derivatives are refused.
    """
    spatial_rank(a, "a")
    if a.shape[1] != 1:
        raise ValueError(f"a: expected one channel (batch, 1, *space), got shape {tuple(a.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    check_number(window, "window", 3, whole=True)
    if window % 2 == 0:
        raise ValueError(f"window: expected an odd size of at least 3, got {window}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    wanted = [image.requires_grad and torch.is_grad_enabled() for image in (a, b)]
    return lncc_with_gradients(a, b, window, eps, *wanted)[0]


def multiscale_lncc(a: torch.Tensor, b: torch.Tensor, windows=(7, 5, 3), eps: float = 1e-5) -> torch.Tensor:
    """Sum of :func:`lncc` over a pyramid of the images, scale i weighted by 2^-i (Mok & Chung 2020).

    Parameters
    ----------
    a, b : (B, 1, *S) intensities in [0, 1].
    windows : edge of the window at each scale, finest first. Between scales both images are averaged down
        (width 3 at every second voxel; voxels outside do not count), as in the authors' code.

    Notes
    -----
    In [-1.75, 0] for three scales: the authors' code does not divide by the sum of the weights.
    """
    total = 0
    for scale, window in enumerate(windows):
        if scale:
            a, b = average_down(a), average_down(b)
        total = total + lncc(a, b, window, eps) / 2**scale
    return total


@torch.library.custom_op("tvf_core::lncc", mutates_args=())
def lncc_with_gradients(
    a: torch.Tensor, b: torch.Tensor, window: int, eps: float, for_a: bool, for_b: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Negative mean squared local correlation and its gradients.

    Parameters
    ----------
    a, b : (B, 1, *S) float32 or float64.
    window, eps : as for :func:`lncc`, the public function.
    for_a, for_b : whether the gradient for a, for b is wanted.

    Returns
    -------
    The value, and for each image the gradient (its shape), or an empty tensor.
    """
    wanted = [k for k, want in enumerate((for_a, for_b)) if want]
    correlation = _Correlation([image.movedim(1, 0) for image in (a, b)], window, eps, wanted)
    for first in range(0, a.shape[2], correlation.rows):
        correlation.push(first)
    correlation.finish()
    value = (-correlation.total / a.numel()).to(a.dtype)
    return value, *[g.movedim(0, 1).contiguous() if g.dim() > 1 else g for g in correlation.gradients]


class _Correlation:
    """Sum of the squared local correlations of two images, and its gradients, from a few planes at a time.

    Parameters
    ----------
    images : two of shape (1, B, depth, *rest).
    window, eps : as for :func:`lncc`.
    wanted : numbers of the images whose gradients are wanted.

    Attributes
    ----------
    rows : planes that :meth:`push` takes at once.
    total : sum of the squared correlations, once :meth:`finish` has returned.
    gradients : for each image, of :func:`lncc`; empty where it is not wanted.
    """

    def __init__(self, images: list[torch.Tensor], window: int, eps: float, wanted: list[int]):
        self.images, self.eps, self.wanted = images, eps, wanted
        _, batch, depth, *rest = images[0].shape
        device, radius = images[0].device, window // 2
        self.depth, self.volume = depth, window ** (1 + len(rest))
        self.rows = min(depth, max(1, CHUNK.get(device.type, CHUNK["cuda"]) // (batch * math.prod(rest))))
        self.inside = (..., *[slice(radius, radius + s) for s in rest])
        self.precise = for_sums(device)

        def padded(maps):  # zeros around the planes; the margin stays zero while the planes change
            shape = maps, batch, self.rows, *[s + 2 * radius for s in rest]
            return torch.zeros(shape, dtype=self.precise, device=device)

        # What box sums are taken of: the images' moments, then what the gradients depend on.
        self.moments, self.slopes = padded(5), padded(1 + 2 * len(wanted))
        self.sums, self.slope_sums = _BoxSums(window), _BoxSums(window)
        self.total, self.collected = torch.zeros((), dtype=self.precise, device=device), 0
        self.gradients = [
            torch.empty_like(image) if k in wanted else image.new_empty(0) for k, image in enumerate(images)
        ]

    def push(self, first: int) -> None:
        """Take the next planes, which begin at number ``first``: ``rows`` of them, or those that are left."""
        chunk = self.moments[:, :, : min(self.rows, self.depth - first)]
        one, two, *products = chunk[self.inside]
        one.copy_(self.images[0][0, :, first : first + self.rows])
        two.copy_(self.images[1][0, :, first : first + self.rows])
        for product, factors in zip(products, ((one, one), (two, two), (one, two))):
            torch.mul(*factors, out=product)
        self._proceed(self.sums.push(chunk))

    def finish(self) -> None:
        """Complete the windows that reach beyond the last plane."""
        self._proceed(self.sums.finish(self.rows))
        if self.wanted:
            for summed in self.slope_sums.finish(self.rows):
                self._collect(summed)

    def _proceed(self, complete) -> None:
        for sums_of_moments in complete:
            slopes = self._correlate(sums_of_moments)
            if self.wanted:
                for summed in self.slope_sums.push(slopes):
                    self._collect(summed)

    def _correlate(self, sums_of_moments: torch.Tensor) -> torch.Tensor | None:
        """Add the squared correlations of some planes to the total; give what the gradients sum up."""
        sum_a, sum_b, sum_aa, sum_bb, cross = sums_of_moments.unbind()
        means = [sum_a / self.volume, sum_b / self.volume]
        cross.addcmul_(sum_a, means[1], value=-1)
        variances = [
            sum_aa.addcmul_(sum_a, means[0], value=-1).clamp_(min=0),
            sum_bb.addcmul_(sum_b, means[1], value=-1).clamp_(min=0),
        ]
        ratio = cross / (variances[0] * variances[1]).add_(self.eps)
        self.total += (cross * ratio).sum()
        if not self.wanted:
            return None
        out = self.slopes[:, :, : ratio.shape[1]]
        inner = out[self.inside]
        inner[0].copy_(ratio)  # half the slope in the covariance: it meets the other image
        for place, k in enumerate(self.wanted):
            constant, own = inner[1 + 2 * place], inner[2 + 2 * place]
            torch.mul(ratio, ratio, out=own).mul_(variances[1 - k])  # minus the slope in the own variance
            torch.mul(ratio, means[1 - k], out=constant).addcmul_(own, means[k], value=-1)
        return out

    def _collect(self, summed: torch.Tensor) -> None:
        """Write the gradients of the planes whose windows are all known."""
        here = slice(self.collected, self.collected + summed.shape[2])
        for place, k in enumerate(self.wanted):
            own, other = (self.images[i][0, :, here].to(self.precise) for i in (k, 1 - k))
            slope = (summed[0] * other).sub_(summed[1 + 2 * place])
            slope.addcmul_(summed[2 + 2 * place], own, value=-1)
            self.gradients[k][0, :, here] = slope.mul_(-2 / self.images[k].numel())
        self.collected = here.stop


class _BoxSums:
    """Box sums of maps ``(M, B, depth, *rest)`` that arrive plane by plane; outside they are zero."""

    def __init__(self, window: int):
        self.window = window
        self.arrived = 0
        self.held = deque([None] * window, window)  # planes within the running sum; None is a plane of zeros
        self.sum = None

    def push(self, planes: torch.Tensor):
        """Take planes padded in all axes but the first spatial one; yield the sums they complete, if any."""
        for axis in range(planes.dim() - 1, 2, -1):
            planes = window_sums(planes, axis, self.window)
        if self.sum is None:
            self.sum = torch.zeros_like(planes[:, :, 0])
        yield from self._slide(planes.unbind(2))

    def finish(self, rows: int):
        """Yield the remaining sums, at most ``rows`` planes at once; beyond the last plane maps are zero."""
        for left in range(self.window // 2, 0, -rows):
            yield from self._slide([None] * min(left, rows))

    def _slide(self, planes):
        out = self.sum.new_empty(*self.sum.shape[:2], len(planes), *self.sum.shape[2:])
        for k, plane in enumerate(planes):
            leaving, result = self.held[0], out[:, :, k]
            self.held.append(plane)
            if plane is None:
                result.copy_(self.sum)
            else:
                torch.add(self.sum, plane, out=result)
            if leaving is not None:
                result.sub_(leaving)
            self.sum = result
        incomplete = max(0, self.window // 2 - self.arrived)  # the first windows centre outside
        self.arrived += len(planes)
        if incomplete < len(planes):
            # a copy, since its reader works in place while the running sum goes on from the last plane
            yield out[:, :, incomplete:].clone()


def window_sums(x: torch.Tensor, axis: int, window: int) -> torch.Tensor:
    """Sums of ``window`` neighbours along an axis, where the window fits: ``s`` become ``s - window + 1``.

    From sums of 1, 2, 4, ... neighbours, those that the binary digits of the window name: four additions
    for a width of 9.
    """
    size, out, start, width = x.shape[axis] - window + 1, None, 0, 1
    while True:
        if window & width:
            part = x.narrow(axis, start, size)
            out = part if out is None else out + part
            start += width
        if 2 * width > window:
            return out
        x = x.narrow(axis, 0, x.shape[axis] - width) + x.narrow(axis, width, x.shape[axis] - width)
        width *= 2


@lncc_with_gradients.register_fake
def _(a, b, window, eps, for_a, for_b):
    return a.new_empty(()), *[x.new_empty(x.shape if wanted else 0) for x, wanted in ((a, for_a), (b, for_b))]


def _keep_gradients(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.wanted = inputs[4:]


def _scale_gradients(ctx, slope, *second):
    if any(s is not None for s in second):
        raise NotImplementedError("lncc has first derivatives only")
    gradients = [
        slope * g if wanted and slope is not None else None
        for g, wanted in zip(ctx.saved_tensors, ctx.wanted)
    ]
    return *gradients, None, None, None, None


lncc_with_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)
