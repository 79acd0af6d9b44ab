"""The same operations in other packages, if they are installed: neurite, MONAI and fused-lncc.

Each is adapted to our sign and signature; an empty dictionary means that no package is installed. MONAI's
local correlation is a different function, because it divides by the product of two bounded variances instead
of their product plus epsilon; it is compared for its cost only.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings

import torch

from ..networks.swin import WindowAttention, from_windows, to_windows

PACKAGES = ("neurite", "monai", "fused-lncc")


def versions() -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def lncc(dim: int, device: str) -> dict:
    """Local NCC with window 9: name -> loss of two images. fused-lncc supports only 3D on CUDA."""
    forms = {}
    if _here("neurite"):
        from neurite.nn.functional import ncc

        forms["neurite"] = lambda a, b: -ncc(a, b, window_size=9).mean()
    if _here("monai"):
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        forms["monai"] = LocalNormalizedCrossCorrelationLoss(
            spatial_dims=dim, kernel_size=9, smooth_nr=0, smooth_dr=1e-5
        )
    if (dim, device) == (3, "cuda") and _here("fused_lncc"):
        from fused_lncc import fused_lncc_loss

        forms["fused-lncc"] = lambda a, b: fused_lncc_loss(a, b, kernel_size=9) - 1
    return forms


def soft_dice() -> dict:
    """Soft Dice of a warped label map: name -> loss.

    The loss takes moving labels, displacement, fixed labels and the label numbers from 0 on.
    Its mean is over all of these, also over those that do not occur.
    """
    if not _here("monai"):
        return {}
    from monai.losses import DiceLoss
    from monai.networks import one_hot
    from monai.networks.blocks import Warp

    with warnings.catch_warnings(action="ignore"):  # MONAI warns that it uses PyTorch's sampler
        warp = Warp(mode="bilinear", padding_mode="zeros")
    dice = DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=1e-5)
    return {
        "monai": lambda moving, u, fixed, labels: dice(
            warp(one_hot(moving, len(labels)), u), one_hot(fixed, len(labels))
        )
    }


def attention(ours: WindowAttention) -> dict:
    """Attention in shifted windows with the weights of ``ours``: name -> module on ``(B, *S, C)``."""
    if not _here("monai"):
        return {}
    from monai.networks.nets.swin_unetr import WindowAttention as MonaiAttention
    from monai.networks.nets.swin_unetr import compute_mask

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = MonaiAttention(ours.proj.in_features, ours.heads, ours.window)
            self.layer.load_state_dict(
                ours.state_dict() | {"relative_position_index": self.layer.relative_position_index}
            )

        def parameters(self):  # in the order of ``ours``, so that gradients can be compared
            found = dict(self.layer.named_parameters())
            return (found[name] for name, _ in ours.named_parameters())

        def forward(self, x):
            tokens = to_windows(x, ours.window)
            mask = compute_mask(
                list(x.shape[1:-1]), ours.window, tuple(w // 2 for w in ours.window), x.device
            )
            out = self.layer(tokens.flatten(0, 1), mask)
            return from_windows(out.view_as(tokens), ours.window, x.shape[1:-1])

    return {"monai": Attention().to(ours.proj.weight.device)}


def _here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
