"""How well a map and its inverse undo each other."""

from __future__ import annotations

import torch

from ..fields import compose


def inverse_consistency_error(forward: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Distance in voxels, ``(B, *S)``, between x and where ``Id + inverse`` after ``Id + forward`` sends it."""
    return compose(inverse, forward).norm(dim=1)
