"""N-dimensional Swin Transformer encoder (Liu et al. 2021) as TransMorph uses it (Chen et al. 2022).

One code path for 2D and 3D: every layer works on ``(B, *S, C)`` and loops over the spatial axes.
Module names follow the released TransMorph checkpoints. Where this encoder differs from the original Swin, it
follows TransMorph: no qkv bias, a patch-merging width of 2C in 3D, and shifted windows also in the last
stage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Offsets of the sub-grids that patch merging concatenates, in the order the released weights expect.
MERGE_ORDER = {
    2: [(0, 0), (1, 0), (0, 1), (1, 1)],
    3: [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)],
}


@dataclass(frozen=True)
class SwinConfig:
    """Shape of a Swin encoder: channels of the first stage, blocks and heads per stage, window per axis."""

    dim: int
    embed: int = 96
    depths: tuple[int, ...] = (2, 2, 4, 2)
    heads: tuple[int, ...] = (4, 4, 8, 8)
    window: tuple[int, ...] = (8, 8)
    patch: int = 4
    mlp_ratio: int = 4
    drop_path: float = 0.3

    def __post_init__(self):
        if self.dim not in (2, 3):
            raise ValueError(f"dim: expected 2 or 3, got {self.dim}")
        if len(self.window) != self.dim:
            raise ValueError(f"window: expected {self.dim} sizes, got {self.window}")
        for stage, heads in enumerate(self.heads):
            if heads < 1 or self.channels(stage) % heads:
                raise ValueError(
                    f"heads: stage {stage} has {self.channels(stage)} channels, not divisible by {heads}"
                )

    def channels(self, stage: int) -> int:
        return self.embed * 2**stage


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per sample with probability p, rescale the kept ones."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * keep / (1 - self.p)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned bias per relative position.

    With ``shifted``, the input was rolled by half a window, so that the last window along an axis holds two
    parts that are not adjacent in the image. As in the released code, -100 in the scores keeps the parts
    apart. The pairs of tokens concerned depend only on the axes along which a window is the last, not on the
    image size.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, ...], shifted: bool = False):
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        spans = [2 * w - 1 for w in window]
        table = torch.empty(torch.Size(spans).numel(), heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("index", relative_position_index(window), persistent=False)
        if shifted:
            self.register_buffer("masks", shift_masks(window), persistent=False)

    def forward(self, x):
        """``x``: (B, *S, C), where S are multiples of the window."""
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # (heads, tokens, tokens)
        qkv = self.qkv(x)
        if self.shifted:
            bias = bias + self.masks  # (2, ..., 2, heads, tokens, tokens)
        return self.proj(self._attend(qkv, bias.to(qkv.dtype), 0 if self.shifted else len(self.window)))

    def _attend(self, qkv, bias, axis):
        """Attention in all windows of ``qkv``.

        The volume is split along each axis from ``axis`` on, so that the last windows, which need a mask of
        their own in ``bias``, are apart from the others. Each part is then attended to with one bias.
        """
        if axis < len(self.window):
            cut = qkv.shape[1 + axis] - self.window[axis]
            parts = [self._attend(qkv.narrow(1 + axis, cut, self.window[axis]), bias[1], axis + 1)]
            if cut:
                parts.insert(0, self._attend(qkv.narrow(1 + axis, 0, cut), bias[0], axis + 1))
            return torch.cat(parts, 1 + axis)
        tokens = to_windows(qkv, self.window)
        batch, windows, volume, _ = tokens.shape
        q, k, v = tokens.reshape(batch * windows, volume, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return from_windows(
            out.transpose(1, 2).reshape(batch, windows, volume, -1), self.window, qkv.shape[1:-1]
        )


class Block(nn.Module):
    """Pre-norm transformer block: (shifted-)window attention, then an MLP, both residual."""

    def __init__(self, channels, heads, window, shifted, mlp_ratio, drop_path):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(channels)
        # As in the released code, a window one voxel thin on any axis switches shifting off on all axes.
        self.attn = WindowAttention(channels, heads, window, shifted and min(window) > 1)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(channels, mlp_ratio * channels),
                "fc2": nn.Linear(mlp_ratio * channels, channels),
            }
        )
        self.drop_path = DropPath(drop_path)

    @property
    def shift(self) -> tuple[int, ...] | None:
        """How far the volume is rolled before the attention; None without a shift.

        It follows ``attn.shifted``, so that the roll and the masks that belong to it are on or off together.
        """
        return tuple(w // 2 for w in self.window) if self.attn.shifted else None

    def forward(self, x):
        """``x``: (B, *S, C)."""
        axes = tuple(range(1, x.dim() - 1))
        shape = x.shape[1:-1]
        y = pad_to_multiple(self.norm1(x), self.window)
        if self.shift:
            y = torch.roll(y, [-s for s in self.shift], axes)
        y = self.attn(y)
        if self.shift:
            y = torch.roll(y, self.shift, axes)
        x = x + self.drop_path(y[(slice(None), *[slice(0, s) for s in shape])])
        y = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + self.drop_path(y)


class PatchMerging(nn.Module):
    """Halve the grid: concatenate the 2^D sub-grids, normalise, project to twice the channels."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(2**dim * channels)
        self.reduction = nn.Linear(2**dim * channels, 2 * channels, bias=False)
        self.offsets = MERGE_ORDER[dim]

    def forward(self, x):
        x = pad_to_multiple(x, (2,) * (x.dim() - 2))
        parts = [x[(slice(None), *[slice(o, None, 2) for o in offset])] for offset in self.offsets]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class Stage(nn.Module):
    """Blocks of one resolution, every second one shifted, and the patch merging to the next resolution."""

    def __init__(self, config: SwinConfig, stage: int, drop_paths: list[float]):
        super().__init__()
        channels = config.channels(stage)
        self.blocks = nn.ModuleList(
            Block(channels, config.heads[stage], config.window, k % 2 == 1, config.mlp_ratio, p)
            for k, p in enumerate(drop_paths)
        )
        self.recompute = False
        last = stage == len(config.depths) - 1
        self.downsample = None if last else PatchMerging(config.dim, channels)

    def forward(self, x):
        for block in self.blocks:
            x = (
                checkpoint(block, x, use_reentrant=False)
                if self.recompute and torch.is_grad_enabled()
                else block(x)
            )
        return x


class PatchEmbed(nn.Module):
    """Split the image into patches and embed each: (B, channels, *S) -> (B, *S/patch, C)."""

    def __init__(self, config: SwinConfig, channels: int):
        super().__init__()
        conv = nn.Conv2d if config.dim == 2 else nn.Conv3d
        self.patch = config.patch
        self.proj = conv(channels, config.embed, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.embed)

    def forward(self, x):
        pads = [p for s in reversed(x.shape[2:]) for p in (0, -s % self.patch)]
        return self.norm(self.proj(F.pad(x, pads)).movedim(1, -1))


class Swin(nn.Module):
    """Swin encoder: image -> list of feature maps ``(B, C 2^s, *S / (4 2^s))``, finest first."""

    def __init__(self, config: SwinConfig, channels: int = 2):
        super().__init__()
        self.patch_embed = PatchEmbed(config, channels)
        blocks = sum(config.depths)
        rates = [config.drop_path * k / max(1, blocks - 1) for k in range(blocks)]  # rising with depth
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            self.layers.append(Stage(config, stage, [rates.pop(0) for _ in range(depth)]))
            self.add_module(f"norm{stage}", nn.LayerNorm(config.channels(stage)))

    def forward(self, image):
        x = self.patch_embed(image)
        features = []
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            features.append(self.get_submodule(f"norm{stage}")(x).movedim(-1, 1))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return features


def recompute_activations(network: nn.Module, on: bool = True) -> bool:
    """Switch activation checkpointing on or off, which saves memory in training.

    The backward pass then computes the activations inside transformer blocks and inside the intervals of
    TM-TVF again; only their inputs and outputs are stored. Other layers store their activations as before.
    Values and gradients stay the same, at the cost of at most one more forward pass.

    Returns
    -------
    Whether the network has any such part.
    """
    parts = [module for module in network.modules() if hasattr(module, "recompute")]
    for module in parts:
        module.recompute = on
    return bool(parts)


def relative_position_index(window: tuple[int, ...]) -> torch.Tensor:
    """Row of the bias table for each pair of tokens in a window: ``(V, V)``, V the voxels of the window."""
    coords = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing="ij")).flatten(1)
    index = torch.zeros(coords.shape[1], coords.shape[1], dtype=torch.long)
    for axis, w in enumerate(window):
        relative = coords[axis][:, None] - coords[axis][None, :] + w - 1
        index = index * (2 * w - 1) + relative
    return index


def pad_to_multiple(x: torch.Tensor, multiple: tuple[int, ...]) -> torch.Tensor:
    """Zero-pad the spatial axes of ``(B, *S, C)`` at their ends to multiples of ``multiple``."""
    pads = [p for s, m in zip(reversed(x.shape[1:-1]), reversed(multiple)) for p in (0, -s % m)]
    return F.pad(x, [0, 0, *pads]) if any(pads) else x


def to_windows(x: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
    """(B, *S, C) -> (B, windows, tokens, C); S must be multiples of the window."""
    dim = len(window)
    split = [n for s, w in zip(x.shape[1:-1], window) for n in (s // w, w)]
    x = x.view(x.shape[0], *split, x.shape[-1])
    order = [0, *range(1, 2 * dim, 2), *range(2, 2 * dim + 1, 2), 2 * dim + 1]
    volume = torch.Size(window).numel()
    return x.permute(order).reshape(x.shape[0], -1, volume, x.shape[-1])


def from_windows(x: torch.Tensor, window: tuple[int, ...], shape) -> torch.Tensor:
    """Inverse of :func:`to_windows`."""
    dim = len(window)
    x = x.view(x.shape[0], *[s // w for s, w in zip(shape, window)], *window, x.shape[-1])
    order = [0, *[a for k in range(dim) for a in (1 + k, 1 + dim + k)], 2 * dim + 1]
    return x.permute(order).reshape(x.shape[0], *shape, x.shape[-1])


def shift_masks(window: tuple[int, ...]) -> torch.Tensor:
    """Additive attention masks of shifted windows, ``(2, ..., 2, 1, tokens, tokens)``.

    There is one index per axis: 1 for the last window along that axis, 0 for the others. A mask is -100
    between tokens that only the roll by half a window brought together, and 0 elsewhere.
    """
    coords = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing="ij")).flatten(1)
    wrapped = [c >= w - w // 2 for c, w in zip(coords, window)]  # came from the other end of the axis
    masks = torch.zeros(*[2] * len(window), 1, len(coords[0]), len(coords[0]))
    for last in itertools.product((0, 1), repeat=len(window)):
        for far, is_last in zip(wrapped, last):
            if is_last:
                masks[(*last, 0, far[:, None] != far[None, :])] = -100.0
    return masks
