"""Networks: published parameter counts, literal versions of their parts, velocities that give their maps."""

import gc
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from scipy import ndimage
from torch import nn

from tvf_core import fields, integrate, metrics, released
from tvf_core.checkpoints import load as load_weights
from tvf_core.checkpoints import shipped
from tvf_core.data import load
from tvf_core.methods import METHODS, PUBLISHED_WINDOW, SIZES, NetworkConfig, swin_config
from tvf_core.model import Model, objective
from tvf_core.networks import lapirn, layers, swin
from tvf_core.networks.layers import InstanceNorm
from tvf_core.networks.swin import Swin, SwinConfig
from tvf_core.networks.time_varying import TimeVaryingVelocity
from tvf_core.networks.transmorph import TransMorph
from tvf_core.networks.voxelmorph import VoxelMorphBackbone
from tvf_core.registration import Registration

# Parameter counts of TM and TM-TVF, counted in networks made by the released code.
COUNTS = {  # (dim, what): tiny, small, base, large
    (3, "encoder"): (144_462, 6_441_864, 25_581_216, 70_695_536),
    (3, "shared"): (226_110, 11_667_336, 46_483_104, 107_854_448),
    (3, "step"): (12_261, 40_611, 73_011, 94_611),
    (3, "tvf8"): (324_198, 11_992_224, 47_067_192, 108_611_336),
    (3, "tvf12"): (373_242, 12_154_668, 47_359_236, 108_989_780),
    (3, "tm half"): (239_235, 11_708_811, 46_556_979, 107_949_923),
    (3, "tm full"): (244_527, 11_757_195, 46_771_251, 108_343_907),
    (2, "encoder"): (103_518, 6_005_016, 23_950_368, 67_770_640),
    (2, "step"): (3_944, 13_394, 24_194, 31_394),
    (2, "tm full"): (136_730, 7_776_650, 31_013_570, 80_319_954),
    (2, "tvf8"): (162_286, 7_853_992, 31_111_216, 80_408_096),
    (2, "tvf12"): (178_062, 7_907_568, 31_207_992, 80_533_672),
}
# Weights of a convolution that the released half-resolution TM holds but never calls; ours leaves it out.
UNUSED_C2 = 27 * 2 * 16

# One method per kind. The released rules, whose warp is not the identity at zero, have tests of their own.
WITH_NETWORK = [
    name for name, entry in METHODS.items() if entry.build and name not in ("tm-tvf-lddmm", "tm-tvf-released")
]
ODD_SIZES = [(33, 47), (20, 25, 18)]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("column,size", list(enumerate(["tiny", "small", "base", "large"])), ids=str)
@pytest.mark.parametrize("dim", [2, 3])
def test_parameter_counts_are_the_published_ones(dim, column, size):
    config = NetworkConfig("tm-tvf", dim, size)
    with torch.device("meta"):  # takes no memory
        tvf8 = Model(config).network
        tvf12 = Model(NetworkConfig("tm-tvf", dim, size, time_steps=12)).network
        full, half = (TransMorph(swin_config(config), head) for head in ("full", "half"))
    ours = {
        "encoder": count(tvf8.backbone.transformer),
        "shared": count(tvf8.backbone),
        "tvf8": count(tvf8),
        "tvf12": count(tvf12),
        "step": (count(tvf12) - count(tvf8)) // 4,
        "tm full": count(full),
        "tm half": count(half) + UNUSED_C2,
    }
    expected = {what: row[column] for (d, what), row in COUNTS.items() if d == dim}
    assert {what: ours[what] for what in expected} == expected


@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_voxelmorph_backbone_gives_quarter_resolution_features_of_the_published_widths(shape):
    dim, taps = len(shape), 3 ** len(shape)
    backbone = VoxelMorphBackbone(dim)
    assert backbone(torch.rand(1, 2, *shape)).shape == (1, 32, *[-(-s // 4) for s in shape])
    # The layers of VM-2 go down to 1/16 (16, 32, 32, 32 channels); then 32 channels follow at 1/16, at 1/8
    # and at 1/4 (the last two with 64 input channels), each with bias.
    layers = [(2, 16), (16, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32)]
    assert count(backbone) == sum(a * b * taps + b for a, b in layers)


@pytest.mark.parametrize("window", [(4, 3), (5, 5), (3, 4, 2)], ids=str)
def test_relative_position_index_is_the_published_formula(window):
    tokens = list(itertools.product(*map(range, window)))
    index = swin.relative_position_index(window)
    for (i, p), (j, q) in itertools.product(enumerate(tokens), repeat=2):
        r = [a - b + w - 1 for a, b, w in zip(p, q, window)]
        spans = [2 * w - 1 for w in window]
        expected = (
            r[0] * spans[1] + r[1]
            if len(window) == 2
            else r[0] * spans[1] * spans[2] + r[1] * spans[2] + r[2]
        )
        assert index[i, j] == expected
    assert set(index.flatten().tolist()) == set(range(math.prod(2 * w - 1 for w in window)))


@pytest.mark.parametrize("shape,window", [((8, 6), (4, 3)), ((4, 6, 10), (2, 3, 5))], ids=str)
def test_windows_are_literal_blocks_and_come_back(shape, window):
    x = torch.arange(2 * math.prod(shape) * 3).view(2, *shape, 3)
    windows = swin.to_windows(x, window)
    for number, corner in enumerate(itertools.product(*[range(0, s, w) for s, w in zip(shape, window)])):
        block = x[(slice(None), *[slice(c, c + w) for c, w in zip(corner, window)])]
        assert torch.equal(windows[:, number], block.reshape(2, -1, 3))
    assert torch.equal(swin.from_windows(windows, window, shape), x)


def literal_mask(shape, window, corner):
    """Additive mask of the window at ``corner`` of a volume that was rolled by half a window.

    Two tokens of a window are separated if only one of them wrapped around the (padded) edge of an axis."""
    tokens = [[c + o for c, o in zip(corner, offset)] for offset in np.ndindex(*window)]
    wrapped = [[p >= n - w // 2 for p, n, w in zip(token, shape, window)] for token in tokens]
    return torch.tensor([[0.0 if i == j else -100.0 for j in wrapped] for i in wrapped])


def corners(shape, window):
    return itertools.product(*[range(0, s, w) for s, w in zip(shape, window)])


ATTENTION_SIZES = [  # some have one window only, along some axes or along all
    ((8, 9), (4, 3)),
    ((4, 9), (4, 3)),
    ((12, 3), (4, 3)),
    ((4, 3), (4, 3)),
    ((10, 15), (5, 5)),
    ((4, 6, 4), (2, 3, 4)),
    ((2, 3, 8), (2, 3, 4)),
    ((6, 3, 4), (2, 3, 2)),
    ((6, 3, 2), (2, 3, 2)),
    ((3, 4, 2), (3, 4, 2)),
]


@pytest.mark.parametrize("shape,window", ATTENTION_SIZES, ids=str)
def test_shift_masks_separate_what_only_the_cyclic_shift_brought_together(shape, window):
    masks = swin.shift_masks(window)
    volume = math.prod(window)
    assert masks.shape == (*[2] * len(window), 1, volume, volume)
    assert (masks[(1,) * len(window)] != 0).any() and not masks[(0,) * len(window)].any()
    for corner in corners(shape, window):
        last = tuple(int(c + w == s) for c, w, s in zip(corner, window, shape))
        assert torch.equal(masks[(*last, 0)], literal_mask(shape, window, corner))


def literal_attention(layer, x, shifted):
    """Every window cut out by itself, every head by itself, softmax written out."""
    heads, channels, window = layer.heads, x.shape[-1], layer.window
    depth, index = channels // heads, swin.relative_position_index(window)
    result = torch.empty_like(x)
    for b, corner in itertools.product(range(len(x)), corners(x.shape[1:-1], window)):
        box = (b, *[slice(c, c + w) for c, w in zip(corner, window)])
        # The shape is (tokens, 3 * heads * depth), in this order.
        projected = x[box].reshape(-1, channels) @ layer.qkv.weight.T
        out = []
        for h in range(heads):
            q, k, v = (projected[:, part * channels + h * depth :][:, :depth] for part in range(3))
            logits = q @ k.T / math.sqrt(depth) + layer.relative_position_bias_table[index, h]
            if shifted:
                logits = logits + literal_mask(x.shape[1:-1], window, corner).to(x.dtype)
            weights = torch.exp(logits - logits.max(1, keepdim=True).values)
            out.append(weights / weights.sum(1, keepdim=True) @ v)
        result[box] = (torch.cat(out, 1) @ layer.proj.weight.T + layer.proj.bias).view(*window, channels)
    return result


@pytest.mark.parametrize("shape,window", ATTENTION_SIZES, ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_equals_a_literal_softmax(shape, window, shifted):
    torch.manual_seed(0)
    layer = swin.WindowAttention(6, 2, window, shifted).double()
    nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(2, *shape, 6, dtype=torch.float64, requires_grad=True)
    slope, leaves = torch.randn_like(x), [x, *layer.parameters()]
    expected, found = literal_attention(layer, x, shifted), layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for ours, literal in zip(
        *(torch.autograd.grad((out * slope).sum(), leaves) for out in (found, expected))
    ):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.float()(x.float()), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape,window", ATTENTION_SIZES, ids=str)
def test_a_block_whose_shift_is_switched_off_is_one_that_was_built_without(shape, window):
    torch.manual_seed(0)
    block, plain = (swin.Block(4, 2, window, shifted, 2, 0.0).double() for shifted in (True, False))
    nn.init.normal_(block.attn.relative_position_bias_table)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(1, *shape, 4, dtype=torch.float64)
    moved = x.clone()
    moved[(0, *[0] * len(shape))] += torch.randn(
        4
    )  # the first corner, which the roll brings to the last window
    shifted = block(x)
    reached = (block(moved) - shifted).abs().amax(-1)[0] > 1e-9
    block.attn.shifted = False
    unshifted = block(x)
    assert torch.equal(unshifted, plain(x)) and (unshifted - shifted).abs().max() > 1e-3
    # with a shift the corner reaches the half window that was cut off with it, without one a whole window
    assert int(reached.sum()) == math.prod(w // 2 for w in window)
    now = (block(moved) - unshifted).abs().amax(-1)[0] > 1e-9
    assert int(now.sum()) == math.prod(window) and (reached & ~now).sum() == 0
    block.attn.shifted = True
    assert torch.equal(block(x), shifted)
    with pytest.raises(AttributeError):  # the roll alone cannot be switched off: its masks would stay
        block.shift = None


def test_the_shift_of_the_last_stage_moves_the_map_of_the_shipped_network():
    pairs = load("demo_faces", "test", 128)
    model = load_weights(shipped("tm-tvf", "demo_faces"))
    stage = model.network.backbone.transformer.layers[-1]
    item = pairs.batch([0])
    before = model.register(item["moving"], item["fixed"]).displacement
    shifted = [block for block in stage.blocks if block.attn.shifted]
    assert shifted and all(
        block.window == (4, 4) for block in shifted
    )  # 128 / 32: one window covers the stage
    for block in shifted:
        block.attn.shifted = False
    switched = model.register(item["moving"], item["fixed"]).displacement
    config = swin_config(model.config)
    rebuilt = swin.Stage(config, 3, [0.0] * config.depths[3])
    rebuilt.blocks = nn.ModuleList(
        swin.Block(config.channels(3), config.heads[3], config.window, False, config.mlp_ratio, 0.0)
        for _ in stage.blocks
    )
    rebuilt.load_state_dict(stage.state_dict())
    model.network.backbone.transformer.layers[-1] = rebuilt
    built_without = model.register(item["moving"], item["fixed"]).displacement
    torch.testing.assert_close(switched, built_without, rtol=0, atol=1e-6)
    assert 1e-5 < (switched - before).norm(dim=1).mean() < 0.01


@pytest.mark.parametrize("dim", [2, 3])
def test_patch_merging_concatenates_the_subgrids_in_the_released_order(dim):
    order = {2: ["00", "10", "01", "11"], 3: ["000", "100", "010", "001", "110", "011", "101", "111"]}[dim]
    merging = swin.PatchMerging(dim, 2)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    shape = (6, 5, 4)[:dim]  # the odd axis is padded with a zero
    x = torch.randn(1, *shape, 2, generator=torch.Generator().manual_seed(0))
    out = merging(x)
    assert out.shape == (1, *[(s + 1) // 2 for s in shape], 2 * 2**dim)
    for where in np.ndindex(*out.shape[1:-1]):
        for k, offsets in enumerate(order):
            source = [2 * w + int(o) for w, o in zip(where, offsets)]
            value = x[(0, *source)] if all(a < s for a, s in zip(source, shape)) else torch.zeros(2)
            assert torch.equal(out[(0, *where)][2 * k : 2 * k + 2], value)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = swin.DropPath(0.3), torch.ones(4000, 2, 3)
    assert torch.equal(layer.eval()(x), x)
    values = layer.train()(x).flatten(1)
    assert torch.equal(values.min(1).values, values.max(1).values)
    kept = values[:, 0] > 0
    torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / 0.7))
    assert kept.float().mean() == pytest.approx(0.7, abs=0.03)


def test_drop_path_rises_linearly_over_all_blocks():
    encoder = Swin(SwinConfig(2, 8, (2, 2, 4, 2), (2, 2, 2, 2), (4, 4)))
    rates = [block.drop_path.p for layer in encoder.layers for block in layer.blocks]
    np.testing.assert_allclose(rates, [0.3 * k / 9 for k in range(10)], atol=1e-7)


def test_every_second_block_is_shifted_by_half_a_window():
    encoder = Swin(SwinConfig(3, 12, (2, 2, 4, 2), (2, 2, 2, 2), (5, 6, 7)))
    shifts = [[block.shift for block in layer.blocks] for layer in encoder.layers]
    assert shifts == [[None, (2, 3, 3)] * (depth // 2) for depth in (2, 2, 4, 2)]


def test_published_windows_and_sizes_are_the_papers():
    assert PUBLISHED_WINDOW == {2: (8, 8), 3: (5, 6, 7)}
    assert SIZES["large"] == dict(embed=128, depths=(2, 2, 12, 2), heads=(4, 4, 8, 16))


def pair(shape, make, batch=1):
    images = [make(shape, seed=k) for k in range(2 * batch)]
    return torch.cat(images[:batch]), torch.cat(images[batch:])


def build(method, dim, **kwargs):
    torch.manual_seed(0)
    return Model(NetworkConfig.fitting(method, dim, **kwargs)[0])


@pytest.mark.parametrize("method", ["identity", *WITH_NETWORK])
@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_untrained_methods_start_near_the_identity_at_any_size(method, shape, smooth_image):
    moving, fixed = pair(shape, smooth_image, batch=2)
    result = build(method, len(shape), time_steps=2).register(moving, fixed)
    assert result.displacement.shape == (2, len(shape), *shape)
    assert result.displacement.abs().max() < 0.05
    torch.testing.assert_close(result.warped, moving, atol=0.05, rtol=0)
    if method != "identity":
        assert result.displacement.any()


@pytest.mark.parametrize("method", WITH_NETWORK)
@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_warped_is_the_moving_image_under_the_displacement(method, shape, smooth_image):
    moving, fixed = pair(shape, smooth_image)
    model = lively(build(method, len(shape), time_steps=3))
    result = model.register(moving, fixed)
    assert result.displacement.abs().max() > 0.1
    torch.testing.assert_close(
        result.warped, fields.warp(moving, result.displacement, padding=model.network.convention.padding)
    )


@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_the_released_method_halves_warps_and_integrates_by_its_own_rules(shape, smooth_image):
    moving, fixed = pair(shape, smooth_image)
    model, seen = lively(build("tm-tvf-released", len(shape), time_steps=3)), []
    for context in model.network.cs:
        context.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    result = model.register(moving, fixed)
    half = integrate.trajectory(result.velocity, method="released")
    for k, image in enumerate(seen):
        expected = released.halve(moving) if k == 0 else released.warp(released.halve(moving), half[:, k])
        torch.testing.assert_close(image, torch.cat([expected, released.halve(fixed)], 1))
    torch.testing.assert_close(result.displacement, released.double(half[:, -1], shape))
    # Training uses the same map.
    torch.testing.assert_close(result.displacement, model.network(moving, fixed)[0])
    torch.testing.assert_close(result.warped, released.warp(moving, result.displacement))
    assert (result.warped - fields.warp(moving, result.displacement)).abs().max() > 0.01


QUICK = {
    "lddmm": dict(steps=2, iterations=2, scales=(2,)),
    "convexadam": dict(grid_sp=4, disp_hw=2, selected_niter=4),
}


@pytest.mark.parametrize("method", [name for name in METHODS if name in WITH_NETWORK or name in QUICK])
@pytest.mark.parametrize("dim", [2, 3])
def test_batched_pairs_do_not_influence_each_other(method, dim, smooth_image):
    if dim not in METHODS[method].dims:
        pytest.skip(f"{method} works in {METHODS[method].dims[0]}D only")
    moving, fixed = pair((33, 47) if dim == 2 else (20, 25, 18), smooth_image, batch=2)
    if method in QUICK:
        model = Model(NetworkConfig(method, dim), constants=QUICK[method])
    else:
        model = lively(build(method, dim, time_steps=2))
    together = model.register(moving, fixed).displacement
    for k in (0, 1):
        alone = model.register(moving[k : k + 1], fixed[k : k + 1]).displacement
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def smallest(method, dim, **kwargs):
    """A network of a method that is as small as it gets, with heads that give a visible motion."""
    size = dict(embed=4, depths=(2, 1, 1, 1), heads=(1, 1, 1, 1), window=(2,) * dim)
    return lively(build(method, dim, size="tiny" if "lapirn" in method else size, time_steps=2, **kwargs))


TRAINABLE = [(name, dim) for dim in (2, 3) for name, entry in METHODS.items() if entry.build]
SMALL_SIZES = {
    2: [(17, 13), (1, 20), (20, 1), (5, 3), (16, 16), (1, 1)],
    3: [(18, 17, 1), (1, 9, 17), (17, 9, 2), (3, 4, 5), (1, 1, 16), (1, 1, 1)],
}


@pytest.mark.parametrize("method,dim", TRAINABLE)
def test_every_image_size_is_registered_and_trained_with(method, dim):
    options = [{}, {"integrator": "released"}] if method in ("tm", "vm-tvf", "vm-diff") else [{}]
    for option, shape in itertools.product(options, SMALL_SIZES[dim]):
        model = smallest(method, dim, **option)
        generator = torch.Generator().manual_seed(0)
        batch = {name: torch.rand(1, 1, *shape, generator=generator) for name in ("moving", "fixed")}
        batch |= {f"{name}_labels": (3 * image).long() for name, image in batch.items()}
        result = model.register(batch["moving"], batch["fixed"])
        assert result.displacement.shape == (1, dim, *shape)
        for field in (result.displacement, result.inverse(), result.warped):
            assert torch.isfinite(field).all(), (option, shape)
        whole = objective(model.config, model.network, (0, 1, 2)).train()
        for progress in (0.1, 0.4, 0.9) if "lapirn" in method else (0,):
            whole.zero_grad()
            loss = sum(whole(batch, progress).values())
            loss.backward()
            gradients = [p.grad for p in whole.parameters() if p.grad is not None]
            assert loss.isfinite() and all(g.isfinite().all() for g in gradients), (option, shape, progress)
            # a single voxel, or a coarse level of one, has nowhere to move
            assert any(g.any() for g in gradients) or max(shape) <= 16, (option, shape, progress)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("method,dim", TRAINABLE)
def test_a_network_of_any_precision_registers(method, dim, dtype, smooth_image):
    moving, fixed = pair((33, 28) if dim == 2 else (18, 17, 20), smooth_image)
    model = smallest(method, dim)
    expected = model.register(moving, fixed)
    model.network.to(dtype)
    found = model.register(moving, fixed)
    wide = torch.promote_types(dtype, torch.float32)
    fields_of = [(found.displacement, expected.displacement)]
    fields_of += [(found.velocity, expected.velocity)] if expected.velocity is not None else []
    for field, reference in fields_of:
        assert field.dtype == wide and reference.abs().max() > 0.1
        # bfloat16 keeps 8 bits and float16 11; the networks enlarge their rounding errors
        bound = {torch.bfloat16: 0.15, torch.float16: 0.02, torch.float64: 1e-3}[dtype]
        assert (field - reference).norm() < bound * reference.norm()
    # only the network computes in it: the image that is warped keeps its digits
    padding, sampled = model.network.convention.padding, model.network.convention.sampled
    warped = fields.warp(moving.to(wide), sampled(found.displacement), padding=padding)
    assert found.warped.dtype == wide
    torch.testing.assert_close(found.warped, warped, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_field_has_more_digits_than_the_network_that_predicts_it(dtype, dim):
    torch.manual_seed(0)
    head = layers.registration_head(dim, 5).to(dtype)
    nn.init.normal_(head[0].weight)
    x = torch.randn(2, 5, *(9, 8, 7)[:dim], dtype=dtype)
    found = layers.predict(head, x)
    exact = (F.conv2d if dim == 2 else F.conv3d)(
        x.double(), head[0].weight.double(), head[0].bias.double(), padding=1
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_channel_of_one_voxel_is_normalised_to_zero():
    for dim in (2, 3):
        x = torch.randn(2, 3, *[1] * dim, requires_grad=True)
        found = InstanceNorm()(x)
        # PyTorch refuses one image, and takes two
        assert torch.equal(found, F.group_norm(x, 3)) and not found.any()
        found.sum().backward()
        assert not x.grad.any()
        assert torch.equal(InstanceNorm()(x[:1]), found[:1])


@pytest.mark.parametrize(
    "shape,coarse", [((4, 9), (1, 3)), ((1, 8), (1, 2)), ((3, 7, 2), (1, 2, 1))], ids=str
)
def test_a_lone_voxel_of_a_coarse_grid_reads_the_middle_of_the_image(shape, coarse):
    rng = np.random.default_rng(0)
    image, u = torch.tensor(rng.random((1, 1, *shape))), torch.tensor(rng.random((1, len(shape), *coarse)))
    u[:, [axis for axis, s in enumerate(coarse) if s == 1]] = 0  # what LapIRN gives there
    found = lapirn.read(image, u)
    for where in np.ndindex(*coarse):
        place = [
            (s - 1) / 2 if c == 1 else (w + u[(0, d, *where)].item()) * (s - 1) / (c - 1)
            for d, (w, s, c) in enumerate(zip(where, shape, coarse))
        ]
        expected = ndimage.map_coordinates(
            image[0, 0].numpy(), np.array(place)[:, None], order=1, mode="nearest"
        )
        assert found[(0, 0, *where)].item() == pytest.approx(expected[0], abs=1e-9)


@pytest.mark.parametrize("integrator", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_the_velocity_explains_the_displacement(integrator, shape, smooth_image):
    moving, fixed = pair(shape, smooth_image)
    result = lively(build("tm-tvf", len(shape), time_steps=3, integrator=integrator)).register(moving, fixed)
    assert result.velocity.shape == (1, 3, len(shape), *[-(-s // 2) for s in shape])
    torch.testing.assert_close(result.displacement, integrate.flow(result.velocity, integrator, shape=shape))
    other = "heun" if integrator == "euler" else "euler"
    assert not torch.allclose(
        result.displacement, integrate.flow(result.velocity, other, shape=shape), atol=1e-5
    )


@pytest.mark.parametrize("shape", ODD_SIZES, ids=str)
def test_training_doubles_the_map_of_the_half_grid(shape, smooth_image):
    network = lively(build("tm-tvf", len(shape), time_steps=3)).network
    displacement, velocity = network(*pair(shape, smooth_image))
    torch.testing.assert_close(displacement, fields.double(integrate.flow(velocity, "rk4"), shape))


def test_integrator_and_substeps_can_be_chosen_after_training(smooth_image):
    moving, fixed = pair((33, 47), smooth_image)
    model = lively(build("tm-tvf", 2, time_steps=3, integrator="euler"), 0.2)
    result = model.register(moving, fixed, substeps=4)
    assert (result.integrator, result.substeps) == ("euler", 4)
    plain, exact = model.register(moving, fixed), model.register(moving, fixed, "rk4", 16)
    assert torch.equal(result.velocity, plain.velocity)  # only the integration differs
    error = [(r.displacement - exact.displacement).norm(dim=1).mean() for r in (plain, result)]
    assert error[0] / error[1] == pytest.approx(4, rel=0.4)  # Euler has order 1
    torch.testing.assert_close(exact.warped, fields.warp(moving, exact.displacement))
    torch.testing.assert_close(exact.trajectory()[:, -1], exact.displacement, atol=1e-4, rtol=0)


def test_each_step_sees_the_moving_image_under_the_map_so_far(smooth_image):
    moving, fixed = pair((33, 47), smooth_image)
    model, seen = lively(build("tm-tvf", 2, time_steps=4)), []
    for context in model.network.cs:
        context.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    velocity = model.register(moving, fixed).velocity
    path = integrate.trajectory(velocity)
    for k, image in enumerate(seen):
        torch.testing.assert_close(image[:, :1], fields.warp(fields.halve(moving), path[:, k]))
        torch.testing.assert_close(image[:, 1:], fields.halve(fixed))
    assert len(seen) == 4 and (seen[3] - seen[0]).abs().max() > 0.01


def test_a_change_of_one_step_changes_only_the_later_velocities_and_itself(smooth_image):
    moving, fixed = pair((33, 47), smooth_image)
    model = lively(build("tm-tvf", 2, time_steps=4))
    before = model.register(moving, fixed).velocity
    with torch.no_grad():
        model.network.reg_heads[1][0].bias += 0.5
    after = model.register(moving, fixed).velocity
    changed = [not torch.allclose(before[:, k], after[:, k], atol=1e-6) for k in range(4)]
    assert changed == [False, True, True, True]


def test_changing_the_moving_image_changes_the_velocities(smooth_image):
    moving, fixed = pair((33, 47), smooth_image)
    model = lively(build("tm-tvf", 2, time_steps=2))
    first, second = (model.register(m, fixed).velocity for m in (moving, moving.flip(-1)))
    assert all((first - second).abs()[:, k].max() > 1e-3 for k in range(2))


@pytest.mark.parametrize("method", WITH_NETWORK)
@pytest.mark.parametrize("shape", [(40, 33), (33, 20, 18)], ids=str)
def test_gradients_reach_every_parameter(method, shape, smooth_image):
    network = lively(build(method, len(shape), time_steps=3)).network
    displacement, _ = network(*pair(shape, smooth_image))
    (
        displacement * torch.randn(displacement.shape, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # The variance of VM-diff enters only its loss.
    assert not [name for name in dead if "flow_sigma" not in name]


@pytest.mark.parametrize("shape", [(15, 18), (5, 8, 7)], ids=str)
def test_instance_norm_is_that_of_pytorch_and_keeps_its_digits(shape):
    torch.manual_seed(0)
    x = torch.randn(2, 6, *shape) + 40 * torch.rand(2, 6, *[1] * len(shape))  # means far above the spread
    layouts = [x, x.movedim(1, -1).contiguous().movedim(-1, 1), torch.cat([x, x], 1)[:, :6]]
    slope = torch.randn(x.shape)
    exact = x.double().requires_grad_()
    expected = F.instance_norm(exact)
    (gradient,) = torch.autograd.grad(expected, exact, slope.double())
    for view, (dtype, tolerance) in itertools.product(
        layouts, [(torch.float64, 1e-12), (torch.float32, 1e-5)]
    ):
        leaf = view.to(dtype).requires_grad_()
        found = InstanceNorm()(leaf)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        (found_gradient,) = torch.autograd.grad(found, leaf, slope.to(dtype))
        torch.testing.assert_close(found_gradient.double(), gradient, rtol=0, atol=tolerance)


TOY_SIZES = [(17, 18), (20, 17), (17, 9, 10), (9, 10, 18)]


def toy(shape, steps=3, depths=(2, 2, 2, 2), window=(2, 2, 2), dtype=torch.float64, **kwargs):
    """The smallest TM-TVF, with heads that give a visible motion."""
    size = dict(embed=8, depths=depths, heads=(2, 2, 2, 2), window=window[: len(shape)])
    return lively(build("tm-tvf", len(shape), size=size, time_steps=steps, **kwargs)).network.to(dtype)


def literal_decoder(network, moving, fixed):
    """The decoder as the released code writes it, upsampling and concatenating features at every step."""
    own = network.method == "released"
    halve, double, warp = (
        (released if own else fields).__dict__[name] for name in ("halve", "double", "warp")
    )
    steps, convolve, mode = (
        network.steps,
        *((F.conv2d, "bilinear") if network.dim == 2 else (F.conv3d, "trilinear")),
    )
    features, (small, target) = network.backbone(torch.cat([moving, fixed], 1)), map(halve, (moving, fixed))
    shape = small.shape[2:]

    def unit(module, x):
        return F.leaky_relu(F.instance_norm(convolve(x, module[0].weight, padding=1)), 0.01)

    def read(v, u):  # v(x + u(x))
        return fields.warp(v, u, padding="border")

    u, velocities = torch.zeros(len(moving), network.dim, *shape, dtype=moving.dtype), []
    for k in range(steps):
        warped = small if k == 0 else warp(small, u)  # the released warp moves even at zero displacement
        context = unit(network.cs[k], torch.cat([warped, target], 1))
        fine = F.interpolate(features, scale_factor=2, mode=mode, align_corners=False)
        fine = fine[(..., *[slice(0, s) for s in shape])]
        x = unit(network.up3s[k].conv2, unit(network.up3s[k].conv1, torch.cat([fine, context], 1)))
        interval = convolve(x, network.reg_heads[k][0].weight, network.reg_heads[k][0].bias, padding=1)
        velocities.append(steps * interval)
        if own:
            u = u + released.warp(interval, interval)
        elif network.method == "euler":
            u = u + read(interval, u)
        else:
            k1 = read(interval, u)
            k2 = read(interval, u + k1 / 2)
            k3 = read(interval, u + k2 / 2)
            u = u + (k1 + 2 * k2 + 2 * k3 + read(interval, u + k3)) / 6
    return double(u, moving.shape[2:]), torch.stack(velocities, 1)


def outcome(network, inputs, call=None):
    """Displacement, velocity, and the gradient of a random functional of both for every parameter."""
    outputs = (call or network)(*inputs)
    generator = torch.Generator().manual_seed(0)
    total = sum((x * torch.randn(x.shape, generator=generator).to(x.dtype)).sum() for x in outputs)
    names, parameters = zip(*network.named_parameters())
    return {
        "displacement": outputs[0].detach(),
        "velocity": outputs[1].detach(),
        **dict(zip(names, torch.autograd.grad(total, parameters))),
    }


def largest_difference(found, expected):
    """Largest difference of several tensors, each relative to its largest expected value, and its name."""
    assert found.keys() == expected.keys()
    # Where the mask separates all tokens, the bias table's gradient is about exp(-100) and gives no scale.
    parts = torch.stack(
        [(found[k] - e).abs().max() / e.abs().max().clamp_min(1e-30) for k, e in expected.items()]
    )
    worst = int(parts.argmax())
    return float(parts[worst]), list(expected)[worst]


@pytest.mark.parametrize("integrator", ["euler", "rk4", "released"])
@pytest.mark.parametrize("shape,batch", list(zip(TOY_SIZES, (2, 1, 1, 2))), ids=str)
def test_the_time_varying_decoder_equals_its_literal_form(integrator, shape, batch, smooth_image):
    inputs = [image.double() for image in pair(shape, smooth_image, batch)]
    network = toy(shape, integrator=integrator)
    found = outcome(network, inputs)
    assert found["displacement"].abs().max() > 0.3
    difference, where = largest_difference(
        found, outcome(network, inputs, lambda *x: literal_decoder(network, *x))
    )
    assert difference < 1e-9, where


@pytest.mark.parametrize("integrator", ["euler", "rk4", "released"])
@pytest.mark.parametrize("shape", [(17, 18), (17, 9, 10)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_computing_activations_again_changes_nothing(integrator, shape, training, smooth_image):
    inputs = [image.double() for image in pair(shape, smooth_image, 2)]
    network = toy(shape, integrator=integrator).train(training)  # with stochastic depth
    evaluations, results = [], []
    for module in (network.cs[0], network.backbone.transformer.layers[0].blocks[0].attn):
        module.register_forward_hook(lambda *_: evaluations.append(1))
    for on in (False, True):
        swin.recompute_activations(network, on)
        torch.manual_seed(3)
        results.append(outcome(network, inputs))
    assert len(evaluations) == 2 + 4
    difference, where = largest_difference(results[1], results[0])
    assert difference < 1e-12, where
    with torch.no_grad():
        torch.manual_seed(3)
        again = network(*inputs)[0]
        assert len(evaluations) == 8
        torch.testing.assert_close(again, results[0]["displacement"], rtol=0, atol=1e-12)
        # In training, other random draws make another network.
        assert torch.allclose(network(*inputs)[0], again, atol=1e-3) != training


# No size gives a level of 2 planes; see precision.refuse_two_planes.
@pytest.mark.parametrize("shape", [(17, 18), (33, 9, 10)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_half_precision_leaves_fields_in_float32_and_close(shape, recompute, smooth_image):
    inputs = pair(shape, smooth_image, 2)
    network = toy(shape, dtype=torch.float32)
    expected = outcome(network, inputs)
    swin.recompute_activations(network, recompute)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(network, inputs)
    for name in ("displacement", "velocity"):
        assert found[name].dtype == torch.float32 and not torch.equal(found[name], expected[name])
        # bfloat16 keeps 8 bits; instance norms divide by small spreads and so enlarge the rounding errors.
        assert (found[name] - expected[name]).norm() < 0.1 * expected[name].norm()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("shape,backend", [((17, 18), "eager"), ((17, 9, 10), "aot_eager")], ids=str)
def test_a_whole_training_step_compiles_without_a_graph_break(shape, backend, smooth_image):
    moving, fixed = (image.double() for image in pair(shape, smooth_image, 2))
    network = toy(shape, steps=2, depths=(2, 1, 1, 1), window=(2, 4, 4)).train()
    names, parameters = zip(*network.named_parameters())
    batch = {
        "moving": moving,
        "fixed": fixed,
        "moving_labels": (4 * moving).int(),
        "fixed_labels": (4 * fixed).int(),
    }

    whole = objective(NetworkConfig("tm-tvf", len(shape)), network, (0, 1, 2, 3, 4))

    def loss(batch):
        return sum(whole(batch).values())

    results = []
    for step in (loss, torch.compile(loss, fullgraph=True, backend=backend, dynamic=False)):
        torch.manual_seed(2)
        value = step(batch)
        results.append({"loss": value.detach(), **dict(zip(names, torch.autograd.grad(value, parameters)))})
    difference, where = largest_difference(results[1], results[0])
    assert difference < 1e-9, where


def registration(shape, smooth_velocity):
    """A registration as if a network had predicted a velocity on the half grid."""
    velocity = smooth_velocity([-(-s // 2) for s in shape], amplitude=1.0)
    displacement = integrate.flow(velocity, shape=shape)
    assert displacement.abs().max() > 1
    return Registration(displacement, torch.zeros(1, 1, *shape), velocity, "rk4")


@pytest.mark.parametrize("shape", [(64, 57), (44, 41, 42)], ids=str)
def test_inverse_of_a_registration_undoes_it(shape, smooth_velocity):
    result = registration(shape, smooth_velocity)
    for error in (
        metrics.inverse_consistency_error(result.displacement, result.inverse()),
        metrics.inverse_consistency_error(result.inverse(), result.displacement),
    ):
        assert error.mean() < 0.01 and error.max() < 0.1


def blob(shape, centre, width=2.5):
    grid = fields.identity_grid(shape)
    return torch.exp(
        -(grid - centre.view(1, -1, *[1] * len(shape))).square().sum(1, keepdim=True) / (2 * width**2)
    )


@pytest.mark.parametrize("shape", [(64, 57), (44, 41, 42)], ids=str)
@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("with_velocity", [True, False])
def test_points_images_and_labels_move_together(shape, to, with_velocity, smooth_velocity):
    result = registration(shape, smooth_velocity)
    if not with_velocity:
        result = Registration(result.displacement, result.warped)
    centre = torch.tensor([0.45 * s for s in shape])
    point = result.transport(centre.view(1, 1, -1), "points", to)[0, 0]
    assert (point - centre).norm() > 0.5
    image = result.transport(blob(shape, centre), "image", to)
    weights = image.clamp_min(1e-6).pow(8)  # only near the peak does a smooth map keep the shape of the blob
    peak = (weights * fields.identity_grid(shape)).flatten(2).sum(-1)[0] / weights.sum()
    assert (peak - point).norm() < 0.3
    labels = (blob(shape, centre) > 0.5).long()
    carried = result.transport(labels, "labels", to)
    assert carried.dtype == labels.dtype
    agreement = (carried == (image > 0.5)).float().mean()
    assert agreement > 0.998 and carried.any()


@pytest.mark.parametrize("shape", [(64, 57), (44, 41, 42)], ids=str)
def test_transport_there_and_back_returns_to_the_start(shape, smooth_velocity):
    result = registration(shape, smooth_velocity)
    points = torch.rand(1, 200, len(shape), generator=torch.Generator().manual_seed(0)) * (
        torch.tensor(shape) - 1
    )
    there = result.transport(points, "points", "fixed")
    assert (there - points).norm(dim=-1).max() > 1
    back = result.transport(there, "points", "moving")
    assert (back - points).norm(dim=-1).max() < 2e-3
    labels = sum(
        (k + 1) * (blob(shape, torch.tensor([f * s for s in shape]), 4.0) > 0.5).long()
        for k, f in enumerate((0.3, 0.65))
    )
    back = result.transport(result.transport(labels, "labels", "fixed"), "labels", "moving")
    for k in (1, 2):
        overlap = 2 * ((back == k) & (labels == k)).sum() / ((back == k).sum() + (labels == k).sum())
        assert overlap > 0.9  # two nearest-neighbour warps lose some of the rim


@pytest.mark.parametrize("shape", [(64, 57), (44, 41, 42)], ids=str)
def test_transport_under_the_released_rule_still_inverts(shape, smooth_velocity):
    # The released "inverse" does not invert; points, images and labels come back by a fixed-point iteration.
    velocity = smooth_velocity([-(-s // 2) for s in shape], amplitude=6.0)
    displacement = integrate.flow(velocity, "released", shape=shape)
    result = Registration(displacement, torch.zeros(1, 1, *shape), velocity, "released")
    points = torch.rand(1, 200, len(shape), generator=torch.Generator().manual_seed(0)) * (
        torch.tensor(shape) - 1
    )
    back = result.transport(result.transport(points, "points", "moving"), "points", "fixed")
    assert (back - points).norm(dim=-1).mean() < 0.02
    assert metrics.inverse_consistency_error(displacement, result.inverse()).mean() > 0.05
    image = blob(shape, torch.tensor([0.4 * s for s in shape]), 4.0)
    there = result.transport(image, "image", "moving")
    torch.testing.assert_close(result.transport(there, "image", "fixed"), image, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_floating_type_are_registered(dtype, smooth_image):
    moving, fixed = pair((33, 47), smooth_image)
    model = lively(build("tm-tvf", 2, time_steps=2))
    result = model.register(moving.to(dtype), fixed.to(dtype))
    expected = model.register(moving.to(dtype).float(), fixed.to(dtype).float())
    assert (
        torch.equal(result.displacement, expected.displacement) and result.displacement.dtype == torch.float32
    )


def test_the_title_of_a_network_names_the_released_rules(smooth_image):
    assert build("tm-tvf", 2, integrator="released").title == "TM-TVF (released rules)"
    assert build("tm-tvf-released", 2).title == METHODS["tm-tvf-released"].title
    assert build("tm-tvf", 2).title == "TM-TVF"


def test_points_follow_an_affine_velocity_exactly():
    # Stretch about the origin of the half grid: v = log(1.5) (y - 5), in half-grid voxels.
    half, shape = (21, 18), (41, 36)
    velocity = math.log(1.5) * (fields.identity_grid(half) - 5)[:, None].expand(-1, 2, -1, -1, -1)
    result = Registration(
        integrate.flow(velocity, substeps=8, shape=shape), torch.zeros(1, 1, *shape), velocity, "rk4", 8
    )
    points = torch.tensor([[[9.0, 12.25], [14.0, 4.5]]])
    centre = 2 * (5 + 0.5) - 0.5
    torch.testing.assert_close(
        result.transport(points, "points", "moving"), centre + 1.5 * (points - centre), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        result.transport(points, "points", "fixed"), centre + (points - centre) / 1.5, atol=1e-4, rtol=0
    )


def test_inverse_of_a_registration_takes_a_velocity_on_the_full_grid_as_it_is(smooth_velocity):
    velocity = smooth_velocity((40, 37))
    displacement = integrate.flow(velocity, "heun")
    result = Registration(displacement, torch.zeros(1, 1, 40, 37), velocity, "heun")
    assert metrics.inverse_consistency_error(displacement, result.inverse()).max() < 0.05


def test_inverse_of_a_registration_without_velocity_undoes_it_too(smooth_field):
    u = smooth_field((40, 37), amplitude=1.2)
    result = Registration(u, torch.zeros(1, 1, 40, 37))
    assert metrics.inverse_consistency_error(result.inverse(), u).max() < 1e-3


def test_every_step_has_its_own_weights():
    network = build("tm-tvf", 2, time_steps=3).network
    assert isinstance(network, TimeVaryingVelocity)
    for modules in (network.cs, network.up3s, network.reg_heads):
        weights = [next(m.parameters()) for m in modules]
        assert len({w.data_ptr() for w in weights}) == 3


@pytest.mark.parametrize(
    "shape,window", [((8, 6), (4, 3)), ((7, 8), (4, 3)), ((4, 5, 3), (2, 3, 2))], ids=str
)
@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_reaches_exactly_its_window_and_a_shifted_one_never_wraps(shape, window, shifted):
    torch.manual_seed(0)
    block = swin.Block(4, 2, window, shifted, 2, 0.0)
    x = torch.randn(1, *shape, 4)
    before = block(x)

    def number(p):  # windows of a shifted block begin half a window earlier; the first and last are cut short
        return tuple((a + (w - w // 2 if shifted else 0)) // w for a, w in zip(p, window))

    tokens = list(np.ndindex(*shape))
    for p in tokens[::11]:
        moved = x.clone()
        moved[(0, *p)] += torch.randn(4)
        changed = (block(moved) - before).abs().amax(-1)[0] > 1e-6
        assert {q for q in tokens if changed[q]} == {q for q in tokens if number(q) == number(p)}


def test_a_head_predicts_the_displacement_of_one_interval(smooth_image):
    model = build("tm-tvf", 2, time_steps=4)
    for head in model.network.reg_heads:
        nn.init.zeros_(head[0].weight)
        nn.init.constant_(head[0].bias, 0.25)
    result = model.register(*pair((33, 47), smooth_image))
    torch.testing.assert_close(result.velocity, torch.full_like(result.velocity, 4 * 0.25))
    torch.testing.assert_close(
        result.displacement, torch.full_like(result.displacement, 2 * 4 * 0.25), atol=1e-5, rtol=0
    )


def test_a_recomputing_step_leaves_nothing_to_the_garbage_collector(smooth_image):
    # A reference cycle would keep the recomputed graphs of all intervals alive and so undo the saving.
    model = build("tm-tvf", 2, time_steps=3)
    swin.recompute_activations(model.network.train())
    moving, fixed = pair((40, 37), smooth_image)
    gc.collect()
    gc.disable()
    try:
        displacement, _ = model.network(moving, fixed)
        displacement.square().mean().backward()
        del displacement
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [thing for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept
