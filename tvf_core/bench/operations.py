"""Operations that ``tvf bench`` measures, each with its inputs and in several forms.

A form is a function that does the work and returns the tensors by which forms are compared. Inputs are
synthetic: a subject is a set of regions around random points, painted and blurred.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage, spatial
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import fields, integrate, losses
from ..checks import one_of
from ..losses.objectives import standard_terms
from ..methods import METHODS, SIZES, NetworkConfig, swin_config
from ..model import Model
from ..networks.swin import WindowAttention, recompute_activations
from . import literal, peers

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """Sizes, network and device for which operations are measured.

    Attributes
    ----------
    shape : size of the image in voxels.
    labels : number of labels, including background.
    network, time_steps : size and N of TM-TVF, which takes Euler steps.
    compiled : also measure the compiled forward pass; on a CPU this needs a C++ compiler and takes minutes.
    """

    shape: tuple[int, ...] = (96, 96, 128)
    labels: int = 36
    network: str = "base"
    time_steps: int = 8
    batch: int = 1
    device: str = "cpu"
    compiled: bool = False
    seed: int = 0

    def __post_init__(self):
        if len(self.shape) not in (2, 3) or min(self.shape) < 8:
            raise ValueError(f"size: expected 2 or 3 numbers of at least 8, got {self.shape}")
        one_of(self.network, SIZES, "network size")
        one_of(self.device, ("cpu", "cuda"), "device")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: there is no CUDA device here; known: cpu")
        for name in ("labels", "time_steps", "batch"):
            if getattr(self, name) < (2 if name == "labels" else 1):
                raise ValueError(f"{name}: {getattr(self, name)} is too few")


@dataclass(frozen=True)
class Operation:
    """Forms of one operation, ``ours`` and ``literal`` among them, and the least work that it takes.

    Attributes
    ----------
    forms : name -> function that returns the tensors to compare.
    reference : function that returns them in double precision; without it the literal form is the reference.
    moved : bytes of the inputs and results.
    arithmetic : form whose convolutions and products are counted.

    Notes
    -----
    The least time of the operation is the longer of the times in which the machine moves the bytes and does
    the arithmetic, unless an algorithm needs less arithmetic.
    """

    forms: dict[str, Callable[[], list[torch.Tensor]]]
    reference: Callable[[], list[torch.Tensor]] | None = None
    moved: float = 0.0
    arithmetic: Callable[[], list[torch.Tensor]] | None = None

    def flops(self) -> float:
        """Floating-point operations of the convolutions and products, counted during a run."""
        if self.arithmetic is None:
            return 0.0
        with FlopCounterMode(display=False) as counter:
            self.arithmetic()
        return float(counter.get_total_flops())


def lncc(s: Setting) -> Operation:
    """Local NCC with window 9, and its gradient for the warped image."""
    a, b = (image.requires_grad_(k == 0) for k, image in enumerate(painted(s)))

    def form(loss):
        def run():
            value = loss(a, b)
            return [value.detach(), *_gradients(value, [a])]

        return run

    forms = {"ours": losses.lncc, "literal": literal.lncc, **peers.lncc(len(s.shape), s.device)}
    reference = form(lambda a, b: literal.lncc(a.double(), b.double()))
    return Operation({name: form(loss) for name, loss in forms.items()}, reference, moved=3 * a.nbytes)


def label_dice(s: Setting) -> Operation:
    """Soft Dice of a warped label map, and its gradient for the displacement."""
    moving, fixed = regions(s)
    u = _displacement(s).requires_grad_()

    def form(loss):
        def run():
            value = loss(moving, u, fixed, range(s.labels))
            return [value.detach(), *_gradients(value, [u])]

        return run

    forms = {
        "ours": losses.soft_dice,
        "literal": literal.soft_dice,
        "literal, one warp": lambda *args: literal.soft_dice(*args, at_once=True),
        **peers.soft_dice(),
    }
    reference = form(lambda moving, u, *rest: literal.soft_dice(moving, u.double(), *rest))
    return Operation(
        {name: form(loss) for name, loss in forms.items()},
        reference,
        moved=2 * u.nbytes + moving.nbytes + fixed.nbytes,
    )


def attention(s: Setting) -> Operation:
    """Attention in the shifted windows of the encoder's first stage, forward and backward."""
    config = swin_config(NetworkConfig("tm", len(s.shape), s.network))
    torch.manual_seed(s.seed)
    ours = WindowAttention(config.embed, config.heads[0], config.window, shifted=True).to(s.device)
    nn.init.normal_(ours.relative_position_bias_table)
    slow = WindowAttention(config.embed, config.heads[0], config.window, shifted=True).to(s.device)
    slow.load_state_dict(ours.state_dict())
    slow.__class__ = literal.Attention
    tokens = [-(-n // 4) for n in s.shape]
    padded = [n + -n % w for n, w in zip(tokens, config.window)]
    x = torch.randn(s.batch, *padded, config.embed, device=s.device, requires_grad=True)
    forms = {
        "ours": _with_gradients(ours, x),
        "literal": _with_gradients(slow, x),
        **{name: _with_gradients(layer, x) for name, layer in peers.attention(ours).items()},
    }
    return Operation(forms, arithmetic=forms["ours"])


def decoder(s: Setting) -> Operation:
    """All N steps of the time-varying decoder, forward and backward."""
    ours, slow, images = _networks(s)
    shape = [-(-n // 4) for n in s.shape]
    features = torch.randn(s.batch, ours.backbone.channels, *shape, device=s.device, requires_grad=True)

    def form(network):
        def run():
            u, _ = network.decode(features, *images)
            weights = [p for part in (network.cs, network.up3s, network.reg_heads) for p in part.parameters()]
            return [u.detach(), *_gradients(u.square().mean(), [features, *weights])]

        return run

    forms = {"ours": form(ours), "literal": form(slow)}
    return Operation(forms, arithmetic=forms["ours"])


def flow(s: Setting) -> Operation:
    """N Euler steps on the half grid, and the gradient for the velocity."""
    half = [-(-n // 2) for n in s.shape]
    v = [_displacement(replace(s, shape=tuple(half), seed=k)) for k in range(s.time_steps)]
    v = torch.stack(v, dim=1).requires_grad_()

    def form(integrator):
        def run():
            u = integrator(v)
            return [u.detach(), *_gradients(u.square().mean(), [v])]

        return run

    forms = {"ours": lambda x: integrate.flow(x, "euler"), "literal": literal.flow}
    return Operation(
        {name: form(f) for name, f in forms.items()},
        form(lambda v: literal.flow(v.double())),
        moved=2 * v.nbytes + v[:, 0].nbytes,
    )


def forward(s: Setting) -> Operation:
    """TM-TVF from two images to the map, without gradients."""
    ours, slow, images = _networks(s)

    def form(network, precision=None):
        def run():
            network.eval()
            with torch.no_grad(), _autocast(s, precision):
                return list(network(*images))

        return run

    last = copy.deepcopy(ours)
    for module in last.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.to(
                memory_format=torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            )
    forms = {
        "ours": form(ours),
        "literal": form(slow),
        f"ours, {_half(s)}": form(ours, _half(s)),
        "ours, channels-last weights": form(last),
    }
    if s.compiled:
        forms["ours, compiled"] = form(torch.compile(ours, dynamic=False))
    return Operation(forms, arithmetic=forms["ours"])


def train_step(s: Setting) -> Operation:
    """A whole training step of TM-TVF: both directions of a pair, local NCC, Dice, diffusion, Adam.

    The forms return the losses and the gradients of the first direction.
    """
    ours, slow, images = _networks(s)
    maps = regions(s)
    pairs = [
        dict(moving=images[i], fixed=images[1 - i], moving_labels=maps[i], fixed_labels=maps[1 - i])
        for i in (0, 1)
    ]

    def slow_loss(batch, u):
        warped = fields.warp(batch["moving"], u)
        dice = 0
        if u.shape[1] == 3:
            dice = literal.soft_dice(batch["moving_labels"], u, batch["fixed_labels"], range(s.labels))
        return literal.lncc(warped, batch["fixed"]) + dice + losses.diffusion(u)

    def our_loss(batch, u):
        dim = u.shape[1]
        labels = range(s.labels if dim == 3 else 0)
        return sum(standard_terms(METHODS["tm-tvf"].weights(dim), {}, batch, u, None, labels).values())

    def form(network, loss_of, precision=None, recompute=False):
        # With a learning rate of 0, every run starts from the same weights.
        optimizer = torch.optim.Adam(network.parameters(), lr=0.0, amsgrad=True)
        scaler = torch.amp.GradScaler(s.device, enabled=precision == "fp16")

        def run():
            network.train()
            recompute_activations(network, recompute)
            torch.manual_seed(s.seed)  # for stochastic depth
            results = []
            for batch in pairs:
                with _autocast(s, precision):
                    u, _ = network(batch["moving"], batch["fixed"])
                loss = loss_of(batch, u)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                results += [loss.detach(), u.detach()]
                if len(results) == 2:
                    results += [
                        network.reg_heads[0][0].weight.grad.clone(),
                        network.backbone.up2.conv1[0].weight.grad.clone(),
                    ]
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            recompute_activations(network, False)
            return results

        return run

    forms = {
        "ours": form(ours, our_loss),
        "literal": form(slow, slow_loss),
        "ours, recomputing": form(ours, our_loss, recompute=True),
    }
    half = _half(s)
    forms[f"ours, {half}"] = form(ours, our_loss, half)
    forms[f"ours, {half}, recomputing"] = form(ours, our_loss, half, recompute=True)
    return Operation(forms, arithmetic=forms["ours"])


OPERATIONS = {
    "lncc": lncc,
    "label-dice": label_dice,
    "attention": attention,
    "decoder": decoder,
    "flow": flow,
    "forward": forward,
    "train-step": train_step,
}


def regions(s: Setting) -> list[torch.Tensor]:
    """Two label maps of regions around points in an ellipsoid; those of the second are shifted a little."""
    rng = np.random.default_rng(s.seed)
    shape = np.array(s.shape)
    centres = shape / 2 + rng.uniform(-0.3, 0.3, (s.labels - 1, len(shape))) * shape
    voxels = np.stack(np.meshgrid(*map(np.arange, s.shape), indexing="ij"), -1)
    inside = (((voxels - shape / 2 + 0.5) / (0.42 * shape)) ** 2).sum(-1) < 1
    maps = []
    for _ in range(2):
        moved = centres + rng.normal(0, 0.01, centres.shape) * shape
        nearest = spatial.cKDTree(moved).query(voxels[inside], workers=-1)[1]
        labels = np.zeros(s.shape, np.uint8 if s.labels < 256 else np.int32)
        labels[inside] = 1 + nearest
        maps.append(
            torch.from_numpy(labels)[None, None].expand(s.batch, 1, *s.shape).contiguous().to(s.device)
        )
    return maps


def painted(s: Setting) -> list[torch.Tensor]:
    """Images in [0, 1] of the label maps: one intensity per label, blurred, with noise."""
    rng = np.random.default_rng(s.seed)
    values = rng.uniform(0.2, 0.9, s.labels).astype(np.float32)
    values[0] = 0
    images = []
    for labels in regions(s):
        image = ndimage.gaussian_filter(values[labels[0, 0].cpu().numpy()], 1.0) + rng.normal(
            0, 0.02, s.shape
        )
        image = torch.from_numpy(image.clip(0, 1).astype(np.float32))[None, None]
        images.append(image.repeat(s.batch, 1, *[1] * len(s.shape)).to(s.device))
    return images


def _displacement(s: Setting) -> torch.Tensor:
    """A smooth displacement of a few voxels."""
    size = (s.batch, len(s.shape), *[6] * len(s.shape))
    coarse = np.random.default_rng(s.seed).normal(0, 3, size).astype(np.float32)
    return fields.resize(torch.from_numpy(coarse), s.shape).mul_(6 / max(s.shape)).contiguous().to(s.device)


def _networks(s: Setting) -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    """TM-TVF with weights that move voxels, its literal copy, and two images."""
    torch.manual_seed(s.seed)
    ours = Model(NetworkConfig("tm-tvf", len(s.shape), s.network, s.time_steps, "euler")).network
    for head in ours.reg_heads:
        nn.init.normal_(head[0].weight, std=0.02)
    ours = ours.to(s.device)
    return ours, literal.network(ours), painted(s)


def _with_gradients(layer: nn.Module, x: torch.Tensor) -> Callable:
    def run():
        y = layer(x)
        return [y.detach(), *_gradients(y.square().mean(), [x, *layer.parameters()])]

    return run


def _gradients(value: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    value.backward()
    gradients = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None
    return gradients


def _half(s: Setting) -> str:
    """Name of the half precision that the device supports in hardware."""
    return "bf16" if s.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _autocast(s: Setting, precision: str | None):
    return torch.autocast(s.device, PRECISIONS.get(precision or "bf16"), enabled=precision is not None)
