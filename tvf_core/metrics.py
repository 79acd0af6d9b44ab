"""Scores of a registration: label overlap, smoothness of the map, image similarity.

Where the field uses one name for two things, both are here: the Learn2Reg challenge's SDlogJ
(``kind="official"``, the one in the paper's Table 2) and the standard deviation of log det J.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity

from .checks import check_labels, one_of
from .fields import jacobian_determinant

SDLOGJ_KINDS = ("official", "textbook")


def dice(warped: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, labels) -> np.ndarray:
    """Hard Dice per label as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) integer label maps; ``warped`` is ``moving`` after a
        nearest-neighbour warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in [0, 1]; NaN where a label is missing in ``fixed`` or in ``moving`` (it is left
    out of the mean), 0 where only the warp lost it.
    """
    for name, value in (("warped", warped), ("fixed", fixed), ("moving", moving)):
        check_labels(value, fixed, name)
    top = max(int(x.max()) for x in (warped, fixed, moving)) + 1
    top = max(top, max(labels) + 1)
    w, f, m = (x.flatten().long() for x in (warped, fixed, moving))
    size_w, size_f, size_m = (torch.bincount(x, minlength=top).double() for x in (w, f, m))
    overlap = torch.bincount(f[w == f], minlength=top).double()
    score = 2 * overlap / (size_w + size_f)
    score[(size_f == 0) | (size_m == 0)] = torch.nan
    return score[list(labels)].numpy()


def sdlogj(displacement: torch.Tensor, kind: str = "official") -> float:
    """Spread of the Jacobian determinant of ``Id + u`` on a log scale; smaller is smoother.

    Parameters
    ----------
    displacement : (1, D, *S) voxels.
    kind : ``official``: Learn2Reg's std of log(det J + 3), clipped to [1e-9, 1e9], two voxels cut
        off each side; about a quarter of the spread of det J. ``textbook``: std of log det J over
        the same voxels, folded voxels (det J <= 0) left out.
    """
    one_of(kind, SDLOGJ_KINDS, "SDlogJ kind")
    det = jacobian_determinant(displacement.double())
    if min(det.shape[1:]) < 5:
        raise ValueError(f"SDlogJ cuts 2 voxels off each side; got a grid of only {tuple(det.shape[1:])}")
    det = det[(slice(None), *[slice(2, -2)] * (det.dim() - 1))]
    det = (det + 3).clamp(1e-9, 1e9) if kind == "official" else det[det > 0]
    return float(det.log().std(correction=0))


def folding_percent(displacement: torch.Tensor) -> float:
    """Per cent (0 to 100) of voxels whose Jacobian determinant is not positive; all voxels count."""
    return float((jacobian_determinant(displacement.double()) <= 0).double().mean() * 100)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images in [0, 1] (Wang et al. 2004), 2D or 3D.

    Parameters
    ----------
    a, b : (1, 1, *S). Gaussian window of 11 voxels, sigma 1.5, K = (0.01, 0.03); the border of 5
        voxels that the window does not cover is left out.
    """
    if a.shape != b.shape or a.shape[:2] != (1, 1):
        raise ValueError(f"ssim: expected two images (1, 1, *space) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    return float(structural_similarity(
        a[0, 0].double().numpy(), b[0, 0].double().numpy(), data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    ))
