"""How well a map and its inverse undo each other."""

from __future__ import annotations

import torch

from ..fields import compose


def inverse_consistency_error(forward: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """How far each point x is from where ``Id + inverse`` after ``Id + forward`` sends it.

    Parameters
    ----------
    forward, inverse : (B, D, *S) displacements in voxels.

    Returns
    -------
    (B, *S) distances in voxels, 0 where the two maps undo each other; NaN where the point, or what is read of
    the inverse there, is not finite.
    """
    distance = compose(inverse, forward).norm(dim=1)
    return distance + 0 * distance  # an infinite one becomes NaN
