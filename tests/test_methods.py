"""Every method, 2D and 3D: training, known translations, the package's conventions, and published sizes."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import torch

from tvf_core import checkpoints, commands, data, fields, integrate, losses, metrics, released
from tvf_core.evaluation import evaluate
from tvf_core.losses import objectives
from tvf_core.methods import METHODS, NetworkConfig, available
from tvf_core.model import Model, objective
from tvf_core.networks import lapirn
from tvf_core.pairwise import lddmm
from tvf_core.paths import ROOT
from tvf_core.registration import Registration
from tvf_core.reporting import tables
from tvf_core.training import profiles, train, validation
from tvf_core.training.profiles import Profile
from tvf_core.training.sampling import PairSampler

# Parameter counts of the released networks; those of LapIRN by its start channel.
COUNTS = [
    ("vm-2", 3, "large", 301_411),
    ("vm-2", 2, "large", 100_530),
    ("vm-diff", 3, "large", 307_878),
    ("vm-diff", 2, "large", 102_532),
    ("cyclemorph", 3, "large", 361_299),
    ("cyclemorph", 2, "large", 120_602),
    ("lapirn", 3, "large", 923_748),
    ("lapirn", 2, "large", 309_792),
    ("lapirn-diff", 3, "large", 923_748),
    ("lapirn", 3, {"start": 4}, 305_520),
    ("lapirn", 3, {"start": 6}, 680_616),
    ("lapirn", 3, {"start": 8}, 1_203_936),
    ("clapirn", 3, "large", 1_222_068),
    ("clapirn", 3, "small", 557_040),
    ("clapirn", 2, {"start": 64}, 26_783_424),
]


@pytest.mark.parametrize("method,dim,size,expected", COUNTS, ids=str)
def test_parameter_counts_of_the_baselines_are_the_published_ones(method, dim, size, expected):
    with torch.device("meta"):
        network = Model(NetworkConfig.fitting(method, dim, size=size)[0]).network
    assert sum(p.numel() for p in network.parameters()) == expected


def test_parameter_counts_of_lapirn_by_level():
    with torch.device("meta"):
        levels = lapirn.LapIRN(3, 7).levels
    sums = itertools.accumulate(sum(p.numel() for p in level.parameters()) for level in levels)
    assert list(sums) == [306_404, 615_076, 923_748]


DATA = {2: "demo_faces", 3: "demo_brains"}
EVERY = [(method, dim) for dim in (2, 3) for method in available(dim) if method != "identity"]


@pytest.mark.parametrize("method,dim", EVERY)
def test_a_known_translation_comes_back_along_each_axis(method, dim):
    pairs = data.load(DATA[dim], "test")
    fixed = pairs.batch([pairs.spread(3)[1]])["fixed"]
    model = evaluate.load_model(method, pairs, constants=profiles.read(DATA[dim]).to_register(method))
    for axis, t in enumerate((2.0, -2.0, 2.0)[:dim]):
        shift = torch.zeros(1, dim, *pairs.shape)
        shift[:, axis] = -t
        # moving(x) = fixed(x - t), so that warped(x) = moving(x + u(x)) needs u = t.
        moving = fields.warp(fixed, shift, padding="border")
        result = model.register(moving, fixed)
        # A motion along the axis is visible only where the image changes along it.
        weight = torch.diff(fixed, dim=2 + axis, append=fixed.narrow(2 + axis, -1, 1)).square()
        found = ((result.displacement * weight).flatten(2).sum(-1) / weight.sum())[0]
        # These methods converge on each pair; networks only come near.
        exact = method == "convexadam" or (method, dim) == ("lddmm", 3)
        # Within its budget CycleMorph has learnt to align the image, but partly by other motions.
        lost = method == "cyclemorph"
        assert (0.93 if exact else 0.1 if lost else 0.4) < found[axis] / t < (1.07 if exact else 1.2), found
        assert lost or all(abs(u) < 0.3 * abs(t) for k, u in enumerate(found) if k != axis), found
        warped = fields.warp(moving, result.displacement)
        assert losses.mse(warped, fixed) < 0.3 * losses.mse(moving, fixed)
        if method != "tm-tvf-released":
            back = ((result.inverse() * weight).flatten(2).sum(-1) / weight.sum())[0]
            assert lost or 0.3 < -back[axis] / t < 1.2, back
            assert metrics.inverse_consistency_error(result.displacement, result.inverse()).mean() < 0.1


@pytest.mark.parametrize("dim,pairs", [(2, 6400), (3, 1200)])
def test_all_shipped_weights_had_one_budget(dim, pairs):
    """The cards give the number of ordered pairs seen in training, which is the one in the README."""
    for method in [m for m in available(dim) if METHODS[m].build]:
        card = json.loads(checkpoints.shipped(method, DATA[dim]).with_suffix(".json").read_text())
        settings = card["settings"]
        assert (
            settings["steps"]
            * settings["batch"]
            * settings.get("processes", 1)
            * METHODS[method].objective.directions
            == pairs
        )
        assert card["parameters"] == sum(
            p.numel() for p in evaluate.load_model(method, data.load(DATA[dim], "val")).network.parameters()
        )
    assert f"{pairs:,}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("method,dim", EVERY)
def test_inverses_are_labelled_by_how_they_are_made(method, dim):
    pairs = data.load(DATA[dim], "test")
    item = pairs.batch([pairs.spread(3)[0]])
    constants = profiles.read(DATA[dim]).to_register(method)
    result = evaluate.load_model(method, pairs, constants=constants).register(item["moving"], item["fixed"])
    iterated = torch.equal(result.inverse(), fields.invert(result.displacement))
    error = metrics.inverse_consistency_error(result.displacement, result.inverse()).mean()
    kind = METHODS[method].inverse.split(":")[0]
    assert kind == ("approximate" if iterated else "exact" if error < 0.1 else "none")
    assert METHODS[method].has_velocity == (result.velocity is not None)


def test_every_method_of_the_paper_is_there_in_its_dimensions():
    printed = tables.ledger()["tables"]
    for name, dim in (("table1", 2), ("table2", 3)):
        assert set(printed[name]["values"]) <= set(available(dim))
    assert "convexadam" not in available(2) and "convexadam" in available(3)


def test_every_number_of_the_training_has_a_source():
    for entry in METHODS.values():
        assert entry.source or entry.field == "none"
        for dim in entry.dims:
            numbers = entry.losses.get(dim, {}) | entry.constants.get(dim, {})
            assert numbers or entry.field == "none"
            assert bool(entry.build) == bool(entry.losses)
            assert all(len(number.source) > 10 for number in numbers.values())


def test_equations_of_the_paper_are_cited_by_their_numbers():
    """Eq. 1: the variational problem of LDDMM; eq. 2: the loss of TM-TVF_LDDMM; eq. 3: the loss of TM-TVF."""
    paper = "Chen, Frey & Du 2022"
    assert METHODS["lddmm"].source == "Beg et al. 2005 (IJCV 61); the paper's eq. 1"
    assert METHODS["tm-tvf-lddmm"].source == f"{paper}, eq. 2"
    assert METHODS["tm-tvf"].source == f"{paper}, eq. 3"
    terms = METHODS["tm-tvf-lddmm"].losses
    assert set(terms[2]) == {"mse", "lddmm"} and set(terms[3]) == {"mse", "label_mse", "lddmm"}
    for number in (number for dim in (2, 3) for number in terms[dim].values()):
        assert "eq. 2" in number.source and "eq. 1" not in number.source and "eq. 3" not in number.source
    for dim in (2, 3):
        assert any("eq. 3" in number.source for number in METHODS["tm-tvf"].losses[dim].values())
    # the differential equation has no number; what is said of a loss names the equation that has it
    assert not re.search(r"eq\. *\d", integrate.__doc__)
    for function, number in {
        losses.label_mse: 2,
        released.lddmm_energy: 2,
        losses.lncc: 3,
        losses.soft_dice: 3,
        losses.diffusion: 3,
        lddmm.register: 1,
    }.items():
        assert set(re.findall(r"eq\. *(\d)", function.__doc__)) == {str(number)}, function.__name__


@pytest.mark.parametrize("sources", [False, True])
def test_the_command_lists_methods_and_sources(sources, capsys):
    commands.methods.methods(sources=sources)
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    names = {line.split()[0] for line in lines[1:]}
    if sources:
        assert names == {"all"} | set(METHODS) - {"identity"}
        assert any("1 / sigma^2" in line and "1e+04" in line for line in lines if line.startswith("vm-diff"))
    else:
        assert names == set(METHODS)
        row = next(line for line in lines if line.startswith("convexadam"))
        assert "3D" in row and "convexAdam 0.2.0" in row and "approximate" in row


def test_published_sizes_are_counted_without_building_them():
    header, rows = tables.methods("large")
    counts = {row[0]: row[header.index("3D")] for row in rows}
    assert counts["lapirn"] == "923,748" and counts["tm-tvf"] == "108,611,336"


def build(method, dim, size="demo", **kwargs):
    torch.manual_seed(0)
    config, _ = NetworkConfig.fitting(method, dim, size=size, **kwargs)
    network = Model(config).network
    return network, objective(config, network, labels=range(3))


def batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(2, 1, *shape, generator=generator) for _ in range(2)]
    maps = [torch.randint(0, 3, (2, 1, *shape), generator=generator) for _ in range(2)]
    return {"moving": images[0], "fixed": images[1], "moving_labels": maps[0], "fixed_labels": maps[1]}


def lively_parameters(module, scale=0.3):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=scale / max(1, p[0].numel()) ** 0.5)


@pytest.mark.parametrize("shape", [(19, 22), (17, 18, 20)], ids=str)
def test_cyclemorph_minimises_its_formula(shape):
    network, whole = build("cyclemorph", len(shape))
    lively_parameters(whole, 2.0)
    b = batch(shape)
    moving, fixed = b["moving"], b["fixed"]

    def g(which, x, y):  # x warped by the field that registers it to y
        return fields.warp(x, which(x, y)[0])

    there, back = g(whole.network, moving, fixed), g(whole.partner, fixed, moving)
    expected = {
        "lncc": losses.lncc(there, fixed) + losses.lncc(back, moving),
        "diffusion": losses.diffusion(network(moving, fixed)[0])
        + losses.diffusion(whole.partner(fixed, moving)[0]),
        "cycle": 0.1
        * (
            (g(whole.partner, there, back) - moving).abs().mean()
            + (g(whole.network, back, there) - fixed).abs().mean()
        ),
        "identity": 0.5
        * (
            losses.lncc(g(whole.network, fixed, fixed), fixed)
            + losses.lncc(g(whole.partner, moving, moving), moving)
        ),
    }
    found = whole(b)
    assert network(moving, fixed)[0].abs().max() > 0.1
    torch.testing.assert_close(found, expected)
    sum(found.values()).backward()
    assert all(p.grad is not None for p in whole.parameters())
    # Only one direction is needed for registration.
    assert not any("partner" in name for name in network.state_dict())


def test_cyclemorph_sees_as_many_ordered_pairs_in_half_the_steps(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "validate", lambda *args: 1.0)
    seen, draw = [], PairSampler.__call__
    monkeypatch.setattr(
        PairSampler, "__call__", lambda self, step: (step in seen or seen.append(step), draw(self, step))[1]
    )
    cards = {}
    for method in ("vm-2", "cyclemorph"):
        seen.clear()
        cards[method] = train.train(
            method, Profile("toy2d", steps=7, batch=2), out=tmp_path / method, progress=False
        )
    assert cards["vm-2"]["pairs_seen"] == 14 and len(cards["vm-2"]["history"]) == 7
    # The number of pairs is rounded up to whole steps.
    assert cards["cyclemorph"]["pairs_seen"] == 16 and len(cards["cyclemorph"]["history"]) == 4
    assert seen == [0, 2, 4, 6]  # no pair comes a second time in the other direction


def test_vm_diff_draws_in_training_and_takes_the_mean_to_register(smooth_image):
    network, whole = build("vm-diff", 2)
    torch.nn.init.normal_(network.flow_mean.weight, std=0.5)
    b = batch((24, 21))
    mean, log_variance = network.distribution(b["moving"], b["fixed"])
    torch.testing.assert_close(log_variance, torch.full_like(mean, -10.0))
    torch.manual_seed(5)
    terms = whole(b)
    torch.manual_seed(5)
    drawn = mean + np.exp(-5) * torch.randn_like(mean)
    warped = fields.warp(b["moving"], network.displacement(drawn, (24, 21)))
    torch.testing.assert_close(terms["mse"], 1e4 * losses.mse(warped, b["fixed"]))
    torch.testing.assert_close(terms["kl"], losses.velocity_kl(mean, log_variance, 25.0))
    displacement, velocity = network(b["moving"], b["fixed"])
    assert torch.equal(velocity[:, 0], mean)
    torch.testing.assert_close(displacement, network.displacement(mean, (24, 21)))
    sum(whole(b).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in whole.parameters())


def test_lapirn_grows_level_by_level(monkeypatch):
    network, whole = build("lapirn", 2)
    lively_parameters(network)
    calls, pyramid = [], network.pyramid
    monkeypatch.setattr(
        network,
        "pyramid",
        lambda m, f, level, frozen, code: (calls.append((level, frozen)), pyramid(m, f, level, frozen, code))[
            1
        ],
    )
    b = batch((33, 30))
    trained = {}
    for progress in (0, 0.249, 0.25, 0.26, 0.27, 0.5, 0.51, 0.52, 0.999):
        network.zero_grad()
        sum(whole(b, progress).values()).backward()
        trained[progress] = [
            any(p.grad is not None and p.grad.any() for p in level.parameters()) for level in network.levels
        ]
    assert calls == [
        (1, False),
        (1, False),
        (2, True),
        (2, True),
        (2, False),
        (3, True),
        (3, True),
        (3, False),
        (3, False),
    ]
    assert (
        list(trained.values())
        == [[True, False, False]] * 2
        + [[False, True, False]] * 2
        + [[True, True, False]]
        + [[False, False, True]] * 2
        + [[True, True, True]] * 2
    )


@pytest.mark.parametrize("method", ["lapirn", "lapirn-diff"])
def test_lapirn_compares_each_level_with_the_averaged_fixed_image(method):
    network, whole = build(method, 3)
    lively_parameters(network, 2.0)
    b = batch((18, 17, 16))
    fixed = [b["fixed"], fields.average_down(b["fixed"])]
    fixed.append(fields.average_down(fixed[1]))
    levels = network.pyramid(b["moving"], b["fixed"])
    weight = {"lapirn": 1.0, "lapirn-diff": 3.5}[method]
    for k, (progress, windows) in enumerate(((0.1, (3,)), (0.4, (5, 3)), (0.9, (7, 5, 3)))):
        u, v = levels[k]
        assert u.shape[2:] == fixed[2 - k].shape[2:]
        # Points of the coarse grid in the full image: the first and last voxels coincide.
        ratio = torch.tensor([(n - 1) / (s - 1) for n, s in zip((18, 17, 16), u.shape[2:])]).view(
            1, 3, 1, 1, 1
        )
        warped = fields.sample(b["moving"], (fields.identity_grid(u.shape[2:]) + u) * ratio, padding="border")
        terms = whole(b, progress)
        torch.testing.assert_close(
            terms["multiscale_lncc"], losses.multiscale_lncc(warped, fixed[2 - k], windows)
        )
        # The authors multiply normalised values by (size - 1), which gives twice the value in voxels.
        rough = (u if v is None else v[:, 0]) * 2
        penalty = sum(torch.diff(rough, dim=a).square().mean() for a in (2, 3, 4)) / 3
        torch.testing.assert_close(terms["diffusion"], weight * penalty)
        assert ("dice" in terms) == (k == 2)


def test_the_code_of_conditional_lapirn_is_what_it_registers_with():
    network, whole = build("clapirn", 2)
    lively_parameters(network, 1.5)
    b = batch((24, 21))
    default = network(b["moving"], b["fixed"])[0]
    network.code = 0.9
    other = network(b["moving"], b["fixed"])[0]
    assert (default - other).abs().max() > 1e-3
    for code, expected in ((0.1, default), (0.9, other)):
        torch.testing.assert_close(
            network.pyramid(b["moving"], b["fixed"], code=torch.full((2, 1), code))[-1][0], expected
        )
    torch.manual_seed(3)
    code = torch.rand(1, 1).item()
    torch.manual_seed(3)
    terms = whole(b, 0.9)
    u = network.pyramid(b["moving"], b["fixed"], code=torch.full((2, 1), code))[-1][0]
    torch.testing.assert_close(terms["diffusion"], 10 * code * 4 * losses.diffusion(u))


@pytest.mark.parametrize("method", ["vm-diff", "lapirn-diff"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_stationary_velocity_is_explained_by_its_flow(method, dim, smooth_image):
    shape = (33, 30) if dim == 2 else (21, 20, 19)
    network, _ = build(method, dim)
    model = Model(NetworkConfig(method, dim), network)
    lively_parameters(network, 1.5)
    moving, fixed = smooth_image(shape, seed=0), smooth_image(shape, seed=1)
    velocity = model.register(moving, fixed).velocity
    # The field must be small, because a random one is rough (and softsign bends large values).
    with torch.no_grad():
        for layer in (
            [network.flow_mean] if method == "vm-diff" else [level.output[2] for level in network.levels]
        ):
            for p in layer.parameters():
                p *= (0.3 if method == "vm-diff" else 0.003) / velocity.abs().max()
    result = model.register(moving, fixed)
    torch.testing.assert_close(result.displacement, network(moving, fixed)[0])
    assert result.displacement.abs().max() > 0.03 and result.velocity.shape[1] == 1
    fine = model.register(moving, fixed, "rk4", 32)
    assert (fine.displacement - result.displacement).abs().mean() < 0.1 * result.displacement.abs().mean()
    error = metrics.inverse_consistency_error(result.displacement, result.inverse())
    assert error.mean() < 0.1 * result.displacement.norm(dim=1).mean()
    torch.testing.assert_close(result.trajectory([0, 1])[:, 1], result.displacement)


def test_a_released_vm_diff_has_no_velocity_to_integrate_anew():
    image = torch.rand(1, 1, 24, 21)
    model = Model(NetworkConfig("vm-diff", 2, integrator="released"))
    assert model.register(image, image).velocity is None
    with pytest.raises(ValueError, match="no velocity"):
        model.register(image, image, "rk4", 4)


def test_another_integrator_leaves_the_warp_of_a_method_as_it_is():
    network, _ = build("lapirn-diff", 2)
    lively_parameters(network)
    image = torch.rand(1, 1, 24, 21)
    result = Model(NetworkConfig("lapirn-diff", 2), network).register(image, image.flip(-1), "rk4", 8)
    torch.testing.assert_close(result.warped, fields.warp(image, result.displacement, padding="border"))


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_lddmm_is_the_same_in_whatever_mode_it_is_called(mode, smooth_image):
    moving, fixed = smooth_image((32, 29), seed=0), smooth_image((32, 29), seed=1)
    expected = lddmm.register(moving, fixed, iterations=5)[0].displacement
    with mode():
        torch.testing.assert_close(lddmm.register(moving, fixed, iterations=5)[0].displacement, expected)
    half = lddmm.register(moving.half(), fixed.half(), iterations=5)[0].displacement
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_losses_can_be_exchanged(toy_data, tmp_path):
    profile = Profile(
        "toy2d",
        size="tiny",
        steps=2,
        time_steps=2,
        losses={"tm-tvf": {"ssim": 1.0, "velocity_diffusion": 0.5}},
        validations=1,
        validation_pairs=1,
    )
    card = train.train("tm-tvf", profile, out=tmp_path, progress=False)
    assert set(card["history"][0]) >= {"ssim", "velocity_diffusion"} and "lncc" not in card["history"][0]
    assert card["settings"]["losses"] == {"ssim": 1.0, "velocity_diffusion": 0.5}
    assert -1 <= card["history"][0]["ssim"] < 0


def test_known_terms_are_those_that_methods_use():
    standard = {
        term
        for entry in METHODS.values()
        if entry.objective is objectives.Objective
        for dim in entry.losses
        for term in entry.losses[dim]
    }
    assert standard <= set(objectives.TERMS)


@pytest.mark.parametrize("method", [m for m in available(2) if METHODS[m].build])
def test_a_network_whose_map_is_not_finite_is_one_line(method):
    torch.manual_seed(0)
    model = Model(NetworkConfig.fitting(method, 2, time_steps=2)[0])
    moving, fixed = torch.rand(2, 1, 1, 32, 32)
    model.register(moving, fixed)
    for flaw in (torch.nan, torch.inf):
        for weights in model.network.parameters():
            weights.data.view(-1)[0] = flaw
        with pytest.raises(
            FloatingPointError, match="^.*: the displacement has NaN or inf.*weights"
        ) as caught:
            model.register(moving, fixed)
        assert str(caught.value).startswith(model.title) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["displacement", "velocity"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_solver_whose_map_is_not_finite_is_one_line(dim, name, monkeypatch):
    def solve(moving, fixed):
        spoilt = torch.zeros(1, dim, *moving.shape[2:])
        spoilt[..., -1] = torch.nan
        found = {"displacement": torch.zeros_like(spoilt), name: spoilt}
        if "velocity" in found:
            found["velocity"] = found["velocity"][:, None]
        return Registration(warped=moving, **found)

    monkeypatch.setitem(METHODS, "identity", dataclasses.replace(METHODS["identity"], solve=solve))
    image = torch.rand(1, 1, *(6, 5, 4)[:dim])
    with pytest.raises(FloatingPointError, match=f": the {name} has NaN or infinite values"):
        Model(NetworkConfig("identity", dim)).register(image, image)


def test_the_inverse_of_a_registration_that_is_not_finite_is_not_finite():
    field = torch.zeros(1, 2, 6, 5)
    field[0, 1, 3, 2] = torch.nan
    still = torch.zeros_like(field)
    for result in (Registration(field, still), Registration(still, still, field[:, None])):
        assert result.inverse()[0, 1, 3, 2].isnan() and result.inverse()[0, :, 0, 0].isfinite().all()


def test_the_field_before_registration_is_no_half_precision():
    image = torch.rand(1, 1, 5, 6).half()
    assert Model(NetworkConfig("identity", 2)).register(image, image).displacement.dtype == torch.float32
