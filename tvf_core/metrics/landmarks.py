"""How far a registration leaves corresponding points apart."""

from __future__ import annotations

import torch

from ..fields import at_least_float32, transform_points


def landmark_error(displacement: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """How far each landmark of the fixed image, sent to the moving one by a map, lands from its counterpart.

    Also called target registration error. Nothing in it depends on intensities, so that it judges methods
    that make images alike by whether they bring the same places together.

    Parameters
    ----------
    displacement : (B, D, *S) voxels; it pulls the moving image onto the fixed one, so that it sends points of
        the fixed image to the moving one. Between voxels it is interpolated linearly.
    fixed, moving : (B, K, D) landmarks in voxels along the axes of the images; the k-th point of both is the
        same place of the face or of the anatomy.

    Returns
    -------
    (B, K) distances in voxels of the moving image.
    """
    if moving.shape != fixed.shape:
        raise ValueError(
            f"landmarks: expected as many in the moving image as in the fixed one, got "
            f"{tuple(moving.shape)} and {tuple(fixed.shape)}"
        )
    fixed, moving = (points.to(at_least_float32(points)) for points in (fixed, moving))
    return (transform_points(fixed, displacement) - moving).norm(dim=2)
