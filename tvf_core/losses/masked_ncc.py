"""Local normalised cross-correlation against one fixed image, of which only the voxels in a mask count.

:func:`tvf_core.losses.lncc` takes the space around the images for zeros. Here the windows hold the voxels
inside the mask and nothing else, at the mask's edge as at the image's: what lies outside has no influence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..fields import for_sums
from .local_ncc import window_sums


class MaskedNCC:
    """Negative sum of the squared local correlations inside a mask, divided by all voxels of the image.

    Parameters
    ----------
    fixed : (1, 1, *S) intensities in [0, 1], which every call compares with.
    mask : (1, 1, *S), above 0 where a voxel counts; None: everywhere.
    window, eps : as for :func:`tvf_core.losses.lncc`, with which this agrees where no window meets the edge
        of the image or of the mask.

    Notes
    -----
    A voxel outside the mask adds 0 to the sum, like one around which nothing is to be seen. So a mask leaves
    the worth of each voxel inside as it was, beside an energy that is a mean over the whole image. Sums
    are float64 (float32 on Apple's GPUs), and there are first derivatives only.
    """

    def __init__(self, fixed: torch.Tensor, mask: torch.Tensor | None, window: int, eps: float = 1e-5):
        self.window, self.eps = window, eps
        precise = for_sums(fixed.device)
        inside = torch.ones_like(fixed) if mask is None else mask > 0
        self.mask = inside.to(precise)
        self.fixed = fixed.to(precise) * self.mask
        count, total, squares = self.sums(self.mask, self.fixed, self.fixed.square())
        self.share = self.mask / count.clamp_min(1)  # one over the number of voxels; 0 outside the mask
        self.mean = total * self.share
        self.variance = (squares - total * self.mean).clamp_(min=0)

    def sums(self, *maps: torch.Tensor) -> torch.Tensor:
        """Sums over the window around every voxel, maps being zero outside the grid."""
        stack, radius = torch.cat(maps), self.window // 2
        for axis in range(2, stack.dim()):
            sides = [0, 0] * (stack.dim() - 1 - axis) + [radius, radius]
            stack = window_sums(F.pad(stack, sides), axis, self.window)
        return stack.split(1)

    def __call__(self, warped: torch.Tensor) -> torch.Tensor:
        return _Compare.apply(warped, self)


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, warped, to):
        image = warped.to(to.mask.dtype) * to.mask
        total, squares, cross = to.sums(image, image.square(), image * to.fixed)
        mean = total * to.share
        variance = squares.addcmul_(total, mean, value=-1).clamp_(min=0)
        cross = cross.addcmul_(total, to.mean, value=-1)
        ratio = cross / (variance * to.variance).add_(to.eps) * to.mask
        if ctx.needs_input_grad[0]:
            own = ratio.square() * to.variance
            summed = to.sums(ratio, own, ratio * to.mean - own * mean)
            slope = summed[0] * to.fixed - summed[1] * image - summed[2]
            ctx.save_for_backward((slope * to.mask * (-2 / warped.numel())).to(warped.dtype))
        return (-(cross * ratio).sum() / warped.numel()).to(warped.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0], None
