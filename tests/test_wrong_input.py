"""Wrong input raises an error at once, in one line that says what was given and what is expected."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tvf_core import checkpoints, commands, data, fields, integrate, losses, metrics, released
from tvf_core.evaluation import evaluate, learn2reg
from tvf_core.methods import NetworkConfig, available
from tvf_core.model import Model
from tvf_core.registration import Registration
from tvf_core.training import profiles, train
from tvf_core.training.profiles import Profile

PLANE, SOLID = (1, 1, 24, 20), (1, 1, 20, 18, 17)


@contextlib.contextmanager
def rejects(error, *words):
    """The block must raise ``error`` with a message of one line that holds every word."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message.strip() and len(message) < 400, message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


def changed(shape, value):
    image = torch.rand(shape)
    image.view(-1)[7] = value
    return image


PAIRS = {  # name: (dim of the model, moving, fixed, error, words)
    "two shapes": (
        2,
        torch.rand(PLANE),
        torch.rand(1, 1, 24, 21),
        ValueError,
        ["(1, 1, 24, 20)", "(1, 1, 24, 21)", "same shape"],
    ),
    "two batch sizes": (
        2,
        torch.rand(PLANE),
        torch.rand(2, 1, 24, 20),
        ValueError,
        ["(2, 1, 24, 20)", "same shape"],
    ),
    "NaN": (2, torch.rand(PLANE), changed(PLANE, torch.nan), ValueError, ["fixed", "NaN", "finite"]),
    "infinite": (
        3,
        changed(SOLID, torch.inf),
        torch.rand(SOLID),
        ValueError,
        ["moving", "infinite", "finite"],
    ),
    "no batch axis in 3D": (
        3,
        torch.rand(SOLID[1:]),
        torch.rand(SOLID[1:]),
        ValueError,
        ["3D", "(1, 20, 18, 17)", "batch"],
    ),
    "no batch axis in 2D": (
        2,
        torch.rand(PLANE[1:]),
        torch.rand(PLANE[1:]),
        ValueError,
        ["(1, 24, 20)", "batch"],
    ),
    "bare array of 3D": (
        3,
        torch.rand(SOLID[2:]),
        torch.rand(SOLID[2:]),
        ValueError,
        ["(20, 18, 17)", "batch"],
    ),
    "3D for 2D": (2, torch.rand(SOLID), torch.rand(SOLID), ValueError, ["2D", "(1, 1, 20, 18, 17)"]),
    "2D for 3D": (3, torch.rand(PLANE), torch.rand(PLANE), ValueError, ["3D", "(1, 1, 24, 20)"]),
    "two channels": (
        2,
        torch.rand(1, 2, 24, 20),
        torch.rand(1, 2, 24, 20),
        ValueError,
        ["one channel", "(1, 2, 24, 20)"],
    ),
    "integers": (
        2,
        torch.ones(PLANE, dtype=torch.uint8),
        torch.rand(PLANE),
        TypeError,
        ["floating-point", "uint8"],
    ),
    "no pairs": (
        2,
        torch.rand(0, 1, 24, 20),
        torch.rand(0, 1, 24, 20),
        ValueError,
        ["nothing", "(0, 1, 24, 20)"],
    ),
    "no voxels": (3, torch.rand(1, 1, 5, 0, 6), torch.rand(1, 1, 5, 0, 6), ValueError, ["(1, 1, 5, 0, 6)"]),
    "array": (2, np.ones(PLANE), torch.rand(PLANE), TypeError, ["torch.Tensor", "ndarray"]),
}


@pytest.mark.parametrize("method", ["identity", "tm", "tm-tvf"])
@pytest.mark.parametrize("case", PAIRS)
def test_register_rejects(case, method):
    dim, moving, fixed, error, words = PAIRS[case]
    model = Model(NetworkConfig.fitting(method, dim, time_steps=1)[0])
    with rejects(error, *words):
        model.register(moving, fixed)


@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1), (0, 1.001), (-0.01, 0.5)])
@pytest.mark.parametrize("dim", [2, 3])
def test_every_method_refuses_intensities_outside_0_to_1(dim, low, high):
    good = torch.rand(1, 1, *(20, 18, 17)[:dim])
    bad = torch.full_like(good, low)
    bad.view(-1)[5] = high
    for method in available(dim):
        with torch.device("meta"):  # the images are looked at before the network
            model = Model(NetworkConfig.fitting(method, dim, time_steps=1)[0])
        for pair, name in (((bad, good), "moving"), ((good, bad), "fixed")):
            words = [f"{name}: intensities from {low} to {high}", "expected [0, 1]", "(x - x.min())"]
            with rejects(ValueError, *words):
                model.register(*pair)
    rounded = good.clone()
    rounded.view(-1)[:2] = torch.tensor([-5e-5, 1 + 5e-5])  # as resampling by splines gives
    Model(NetworkConfig("identity", dim)).register(rounded, good)


LABELS = torch.ones(PLANE, dtype=torch.long)
ZERO = torch.zeros(1, 2, 24, 20)
CALLS = {  # name: (call, error, words)
    "labels as float": (
        lambda: losses.soft_dice(LABELS.float(), ZERO, LABELS),
        TypeError,
        ["moving_labels", "integers", "float32"],
    ),
    "labels that are no numbers": (
        lambda: losses.label_mse(LABELS, ZERO, LABELS, [0, 1.0]),
        TypeError,
        ["labels", "numbers", "[0, 1.0]"],
    ),
    "a number of labels": (
        lambda: losses.soft_dice(LABELS, ZERO, LABELS, 36),
        TypeError,
        ["labels", "such as (0, 1, 2)", "36"],
    ),
    "a label that does not count": (
        lambda: losses.label_mse(LABELS, ZERO, -LABELS, (0, 1)),
        ValueError,
        ["fixed_labels", "label -1", "none of the 2", "background"],
    ),
    "label maps by an infinite displacement": (
        lambda: fields.warp_labels(LABELS, ZERO - torch.inf),
        ValueError,
        ["displacement", "NaN or infinite"],
    ),
    "labels and displacements of two batch sizes": (
        lambda: fields.warp_labels(LABELS.expand(2, 1, 24, 20), ZERO.expand(3, 2, 24, 20)),
        ValueError,
        ["batch of 2", "batch of 3"],
    ),
    "a batch for a measure of one pair": (
        lambda: metrics.hd95(*[LABELS.expand(2, 1, 24, 20)] * 3, [1]),
        ValueError,
        ["hd95", "one pair (1, ...)", "batch of 2", "one by one"],
    ),
    "a negative voxel size": (
        lambda: metrics.hd95(LABELS, LABELS, LABELS, [1], (1, -2)),
        ValueError,
        ["spacing", "above 0", "2 for the 2 axes", "(1, -2)"],
    ),
    "voxel sizes of three axes for two": (
        lambda: metrics.hd95(LABELS, LABELS, LABELS, [1], (1, 2, 3)),
        ValueError,
        ["spacing", "2 for the 2 axes", "(1, 2, 3)"],
    ),
    "an infinite voxel size": (
        lambda: metrics.hd95(LABELS, LABELS, LABELS, [1], torch.inf),
        ValueError,
        ["spacing", "inf"],
    ),
    "a voxel size as text": (
        lambda: metrics.hd95(LABELS, LABELS, LABELS, [1], "1 mm"),
        ValueError,
        ["spacing", "1 mm"],
    ),
    "labels without channel": (
        lambda: metrics.dice(LABELS[0], LABELS, LABELS, [1]),
        ValueError,
        ["warped", "(1, 24, 20)"],
    ),
    "labels of another size": (
        lambda: metrics.dice(LABELS, LABELS, LABELS[..., :-1], [1]),
        ValueError,
        ["moving", "(24, 19)", "(24, 20)"],
    ),
    "labels for two channels": (
        lambda: losses.soft_dice(LABELS.expand(1, 2, 24, 20), ZERO, LABELS),
        ValueError,
        ["(1, 2, 24, 20)"],
    ),
    "components": (
        lambda: fields.warp(torch.rand(PLANE), torch.zeros(1, 3, 24, 20)),
        ValueError,
        ["2 components", "(1, 3, 24, 20)"],
    ),
    "integer displacement": (
        lambda: fields.warp(torch.rand(PLANE), ZERO.long()),
        TypeError,
        ["floating-point", "int64"],
    ),
    "displacement of another size": (
        lambda: fields.warp(torch.rand(PLANE), ZERO[..., 1:]),
        ValueError,
        ["(1, 1, 24, 20)", "(1, 2, 24, 19)"],
    ),
    "fields of two sizes": (
        lambda: fields.compose(ZERO, ZERO[..., 1:]),
        ValueError,
        ["(1, 2, 24, 20)", "(1, 2, 24, 19)"],
    ),
    "interpolation": (
        lambda: fields.warp(torch.rand(PLANE), ZERO, "cubic"),
        ValueError,
        ["cubic", "linear", "nearest"],
    ),
    "integrator": (lambda: integrate.flow(ZERO[:, None], "rk5"), ValueError, ["rk5", "euler", "heun", "rk4"]),
    "time": (lambda: integrate.flow(ZERO[:, None], t1=1.5), ValueError, ["[0, 1]", "1.5"]),
    "shape of the map": (
        lambda: integrate.flow(ZERO[:, None], shape=(50, 40)),
        ValueError,
        ["(50, 40)", "(24, 20)"],
    ),
    "released substeps": (
        lambda: integrate.flow(ZERO[:, None], "released", 2),
        ValueError,
        ["no sub-steps", "2"],
    ),
    "released part of an interval": (
        lambda: integrate.flow(ZERO[:, None], "released", t1=0.5),
        ValueError,
        ["whole intervals"],
    ),
    "kind": (lambda: Registration(ZERO, ZERO[:, :1]).transport(ZERO, "mesh"), ValueError, ["mesh", "points"]),
    "target": (
        lambda: Registration(ZERO, ZERO[:, :1]).transport(ZERO, to="atlas"),
        ValueError,
        ["atlas", "fixed"],
    ),
    "points": (
        lambda: Registration(ZERO, ZERO[:, :1]).transport(ZERO, "points"),
        ValueError,
        ["(1, number, 2)", "(1, 2, 24, 20)"],
    ),
    "points from numpy": (
        lambda: Registration(ZERO, ZERO[:, :1]).transport(np.zeros((1, 3, 2)), "points"),
        TypeError,
        ["ndarray"],
    ),
    "labels as image": (
        lambda: Registration(ZERO, ZERO[:, :1]).transport(ZERO[:, :1].long()),
        TypeError,
        ["labels", "int64"],
    ),
    "one time": (lambda: integrate.trajectory(ZERO[:, None], [0.5]), ValueError, ["at least two", "0.5"]),
    "points of another batch": (
        lambda: integrate.transport(ZERO[:, None], ZERO.expand(3, -1, -1, -1)),
        ValueError,
        ["(1, 2, ...)"],
    ),
    "maps of another batch": (
        lambda: fields.warp(ZERO[:, :1].expand(3, -1, -1, -1), ZERO.expand(2, -1, -1, -1)),
        ValueError,
        ["3", "2"],
    ),
    "integrator of a field": (
        lambda: Model(NetworkConfig("tm", 2)).register(ZERO[:, :1], ZERO[:, :1], "euler"),
        ValueError,
        ["no velocity"],
    ),
    "integration before the network runs": (
        lambda: Model(NetworkConfig("tm-tvf", 2)).register(ZERO[:, :1], ZERO[:, :1], substeps=0),
        ValueError,
        ["at least 1", "0"],
    ),
    "squaring of a path": (
        lambda: integrate.flow(ZERO[:, None].expand(-1, 3, -1, -1, -1), "squaring"),
        ValueError,
        ["does not change", "3 time steps"],
    ),
    "squaring substeps": (
        lambda: integrate.flow(ZERO[:, None], "squaring", 2),
        ValueError,
        ["squaring", "no sub-steps"],
    ),
    "squaring of TM-TVF": (
        lambda: Model(NetworkConfig("tm-tvf", 2, integrator="squaring")),
        ValueError,
        ["squaring", "rk4"],
    ),
    "dimension of a method": (
        lambda: NetworkConfig("convexadam", 2),
        ValueError,
        ["convexadam", "3D only", "2D"],
    ),
    "weights without a network": (
        lambda: evaluate.evaluate("identity", "toy2d", weights="w.safetensors"),
        ValueError,
        ["identity", "no weights"],
    ),
    "integrator of a solver": (
        lambda: Model(NetworkConfig("lddmm", 2)).register(ZERO[:, :1], ZERO[:, :1], "euler"),
        ValueError,
        ["integrator"],
    ),
    "loss term": (
        lambda: train.train("tm", Profile("toy2d", steps=1, losses={"tm": {"lnnc": 1.0}})),
        ValueError,
        ["lnnc", "lncc", "ssim"],
    ),
    "no loss term": (
        lambda: train.train("tm", Profile("toy2d", steps=1, losses={"tm": {}})),
        ValueError,
        ["at least one term"],
    ),
    "loss of a velocity": (
        lambda: train.train("tm", Profile("toy2d", steps=1, losses={"tm": {"lddmm": 1.0}})),
        ValueError,
        ["lddmm", "velocity"],
    ),
    "loss of its own kind": (
        lambda: train.train("lapirn", Profile("toy2d", steps=1, losses={"lapirn": {"lncc": 1.0}})),
        ValueError,
        ["lapirn", "own kind"],
    ),
    "ssim size": (
        lambda: losses.ssim(torch.rand(1, 1, 10, 20), torch.rand(1, 1, 10, 20)),
        ValueError,
        ["ssim", "11 voxels along each axis", "(10, 20)"],
    ),
    "ssim size in 3D": (
        lambda: metrics.ssim(torch.rand(1, 1, 10, 20, 3), torch.rand(1, 1, 10, 20, 3)),
        ValueError,
        ["ssim", "11 voxels along two axes", "(10, 20, 3)"],
    ),
    "ssim of a batch": (
        lambda: metrics.ssim(torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 20)),
        ValueError,
        ["ssim: expected one pair", "batch of 2", "one by one"],
    ),
    "fsim of a batch": (
        lambda: metrics.fsim(torch.rand(3, 1, 20, 20), torch.rand(3, 1, 20, 20)),
        ValueError,
        ["fsim: expected one pair", "batch of 3", "one by one"],
    ),
    "ssim of 0 to 255": (
        lambda: metrics.ssim(torch.rand(1, 1, 20, 20), 255 * torch.rand(1, 1, 20, 20)),
        ValueError,
        ["ssim: intensities from", "expected [0, 1]"],
    ),
    "ssim loss of -1 to 1": (
        lambda: losses.ssim(2 * torch.rand(1, 1, 20, 20) - 1, torch.rand(1, 1, 20, 20)),
        ValueError,
        ["ssim: intensities from -0.9", "expected [0, 1]"],
    ),
    "fsim of 0 to 255": (
        lambda: metrics.fsim(255 * torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 20)),
        ValueError,
        ["fsim: intensities from", "expected [0, 1]"],
    ),
    "released energy without inner voxels": (
        lambda: released.lddmm_energy(torch.zeros(1, 2, 3, 8, 8, 2), 0.1, 0.1),
        ValueError,
        ["lddmm_released", "at least 3 voxels", "(8, 8, 2)"],
    ),
    "squaring of TM-TVF afterwards": (
        lambda: Model(NetworkConfig("tm-tvf", 2)).register(ZERO[:, :1], ZERO[:, :1], "squaring"),
        ValueError,
        ["squaring", "TM-TVF"],
    ),
    "integrator of VM-diff": (
        lambda: NetworkConfig("vm-diff", 2, integrator="euler"),
        ValueError,
        ["vm-diff", "squaring", "euler"],
    ),
    "released rules of VM-2": (
        lambda: NetworkConfig("vm-2", 2, integrator="released"),
        ValueError,
        ["vm-2", "released"],
    ),
    "start of LapIRN": (
        lambda: Model(NetworkConfig("lapirn", 2, {"begin": 4})),
        ValueError,
        ["start", "begin"],
    ),
    "loss without labels": (
        lambda: train.train("tm", Profile("demo_faces", steps=1, losses={"tm": {"dice": 1.0}})),
        ValueError,
        ["demo_faces", "no labels", "dice"],
    ),
    "constant of a loss": (
        lambda: train.train(
            "tm-tvf-lddmm", Profile("demo_faces", steps=1, constants={"tm-tvf-lddmm": {"alfa": 1}})
        ),
        ValueError,
        ["alfa", "alpha", "gamma"],
    ),
    "negative constant": (
        lambda: train.train(
            "tm-tvf-lddmm", Profile("demo_faces", steps=1, constants={"tm-tvf-lddmm": {"alpha": -1}})
        ),
        ValueError,
        ["alpha", "-1"],
    ),
    "constant of a loss that TM does not have": (
        lambda: train.train("tm", Profile("toy2d", steps=1, constants={"tm": {"alpha": 5}})),
        ValueError,
        ["alpha", "no effect", "tm", "no constants"],
    ),
    "constant of another loss": (
        lambda: train.train("lapirn", Profile("toy2d", steps=1, constants={"lapirn": {"prior": 5}})),
        ValueError,
        ["prior", "lapirn", "frozen"],
    ),
    "constant of a term that is tried": (
        lambda: train.train(
            "tm-tvf",
            Profile(
                "toy2d",
                steps=1,
                losses={"tm-tvf": {"mse": 1, "lddmm_released": 1}},
                constants={"tm-tvf": {"beta": 2}},
            ),
        ),
        ValueError,
        ["beta", "tm-tvf", "alpha, gamma"],
    ),
    "a part of an operator's power": (
        lambda: train.train(
            "tm-tvf-lddmm", Profile("toy2d", steps=1, constants={"tm-tvf-lddmm": {"beta": 1.5}})
        ),
        ValueError,
        ["beta", "whole", "1.5"],
    ),
    "losses without a network": (
        lambda: train.train("tm", Profile("toy2d", steps=1, losses={"lddmm": {"mse": 1.0}})),
        ValueError,
        ["lddmm", "no network", "losses"],
    ),
    "mirrored brains": (
        lambda: train.train("tm", Profile("demo_brains", steps=1, flip=0.5)),
        ValueError,
        ["flip", "2D", "sides"],
    ),
    "parts of a batch": (
        lambda: train.train("tm", Profile("toy2d", steps=1, batch=3, accumulate=2)),
        ValueError,
        ["batch", "3 pairs", "2 parts", "multiple of 2"],
    ),
    "way to resume": (
        lambda: train.train("tm", Profile("toy2d", steps=1), resume="maybe"),
        ValueError,
        ["maybe", "auto", "new"],
    ),
    "answer to NaN": (
        lambda: train.train("tm", Profile("toy2d", steps=1), on_nonfinite="ignore"),
        ValueError,
        ["ignore", "stop", "skip"],
    ),
    "neither steps nor epochs": (
        lambda: train.train("tm", Profile("toy2d")),
        ValueError,
        ["steps or epochs"],
    ),
    "recomputing VM-2": (
        lambda: train.train("vm-2", Profile("demo_faces", steps=1, recompute=True)),
        ValueError,
        ["recompute", "vm-2"],
    ),
    "size of the U-Net": (
        lambda: NetworkConfig("vm-tvf", 2, "huge"),
        ValueError,
        ["vm-tvf", "one size", "huge"],
    ),
    "size of VM-2": (lambda: NetworkConfig("vm-2", 3, size="huge"), ValueError, ["vm-2", "one size", "huge"]),
    "size of CycleMorph": (
        lambda: NetworkConfig("cyclemorph", 2, "demo"),
        ValueError,
        ["cyclemorph", "one size"],
    ),
    "size without a network": (lambda: NetworkConfig("lddmm", 2, "demo"), ValueError, ["lddmm", "size"]),
    "time steps of a displacement": (
        lambda: NetworkConfig("tm", 2, time_steps=99),
        ValueError,
        ["tm", "time_steps", "99"],
    ),
    "time steps of a stationary velocity": (
        lambda: NetworkConfig("lapirn-diff", 3, time_steps=8),
        ValueError,
        ["lapirn-diff", "time_steps", "8"],
    ),
    "integrator of a displacement": (
        lambda: NetworkConfig("cyclemorph", 2, integrator="rk4"),
        ValueError,
        ["cyclemorph", "no integrator", "rk4"],
    ),
    "Euler of TM": (
        lambda: NetworkConfig("tm", 2, integrator="euler"),
        ValueError,
        ["tm", "released", "euler"],
    ),
    "Euler of the released rule": (
        lambda: NetworkConfig("tm-tvf-released", 2, integrator="euler"),
        ValueError,
        ["tm-tvf-released", "released", "euler"],
    ),
    "integrator of LDDMM's network": (
        lambda: NetworkConfig("lddmm", 2, integrator="heun"),
        ValueError,
        ["lddmm", "no integrator"],
    ),
    "head of TM-TVF": (
        lambda: NetworkConfig("tm-tvf", 2, head="full"),
        ValueError,
        ["tm-tvf", "head", "full"],
    ),
    "constants of a network": (
        lambda: Model(NetworkConfig("tm-tvf-lddmm", 2), constants={"alpha": 1.0}),
        ValueError,
        ["tm-tvf-lddmm", "training"],
    ),
    "constants of doing nothing": (
        lambda: Model(NetworkConfig("identity", 2), constants={"alpha": 1.0}),
        ValueError,
        ["identity", "no constants", "alpha"],
    ),
    "constant of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"alfa": 1.0}),
        ValueError,
        ["alfa", "alpha", "iterations"],
    ),
    "constant of ConvexAdam": (
        lambda: evaluate.evaluate("convexadam", "nowhere", constants={"lambda": 1.0}),
        ValueError,
        ["lambda", "lambda_weight"],
    ),
    "weight of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"weight": 0}),
        ValueError,
        ["weight", "above 0", "got 0"],
    ),
    "steps of LDDMM": (
        lambda: learn2reg.export("lddmm", "nowhere", "out", constants={"steps": 2.5}),
        ValueError,
        ["steps", "whole number", "2.5"],
    ),
    "integrator of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"integrator": "squaring"}),
        ValueError,
        ["squaring", "euler, heun, rk4"],
    ),
    "similarity of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"similarity": "ssim"}),
        ValueError,
        ["similarity", "'ssim'", "lncc, mse"],
    ),
    "scales of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"scales": [8, 3, 1]}),
        ValueError,
        ["scales", "powers of two", "[8, 3, 1]"],
    ),
    "iterations of LDDMM": (
        lambda: evaluate.evaluate("lddmm", "nowhere", constants={"iterations": [5, 5]}),
        ValueError,
        ["iterations", "for each scale", "[5, 5]"],
    ),
    "penalty of ConvexAdam": (
        lambda: evaluate.evaluate("convexadam", "nowhere", constants={"lambda_weight": "none"}),
        ValueError,
        ["lambda_weight", "number", "none"],
    ),
    "smoothing that ConvexAdam leaves out": (
        lambda: evaluate.evaluate(
            "convexadam", "nowhere", constants={"lambda_weight": 0, "selected_smooth": 3}
        ),
        ValueError,
        ["selected_smooth", "no effect", "lambda_weight"],
    ),
    "weights to export without a network": (
        lambda: learn2reg.export("identity", "nowhere", "out", weights="w.safetensors"),
        ValueError,
        ["identity", "no weights"],
    ),
    "weights to draw without a network": (
        lambda: commands.reporting.draw("lddmm", "nowhere", weights="w.safetensors"),
        ValueError,
        ["lddmm", "no weights"],
    ),
    "head": (lambda: NetworkConfig("tm", 2, head="third"), ValueError, ["third", "half"]),
    "no trajectory": (lambda: Registration(ZERO, ZERO[:, :1]).trajectory(), ValueError, ["not a velocity"]),
    "no substeps": (lambda: integrate.flow(ZERO[:, None], substeps=0), ValueError, ["at least 1", "got 0"]),
    "velocity without time": (lambda: integrate.flow(ZERO), ValueError, ["velocity", "(1, 24, 20)"]),
    "similarity of two channels": (
        lambda: losses.lncc(torch.rand(1, 2, 24, 20), torch.rand(1, 2, 24, 20)),
        ValueError,
        ["one channel", "(1, 2, 24, 20)"],
    ),
    "similarity shapes": (
        lambda: losses.lncc(torch.rand(PLANE), torch.rand(1, 1, 24, 19)),
        ValueError,
        ["(1, 1, 24, 19)", "same shape"],
    ),
    "mse shapes": (
        lambda: losses.mse(torch.rand(PLANE), torch.rand(1, 1, 24, 19)),
        ValueError,
        ["(1, 1, 24, 19)", "same shape"],
    ),
    "even window": (lambda: losses.lncc(torch.rand(PLANE), torch.rand(PLANE), 8), ValueError, ["odd", "8"]),
    "beta": (lambda: losses.lddmm_energy(ZERO[:, None], beta=0), ValueError, ["beta", "at least 1", "0"]),
    "SDlogJ kind": (lambda: metrics.sdlogj(ZERO, "paper"), ValueError, ["paper", "official", "textbook"]),
    "SDlogJ grid": (lambda: metrics.sdlogj(torch.zeros(1, 2, 4, 20)), ValueError, ["2 voxels", "(4, 20)"]),
    "folding convention": (
        lambda: metrics.folding_percent(ZERO, "border"),
        ValueError,
        ["border", "inner", "one-sided", "replicated"],
    ),
    "folding grid": (
        lambda: metrics.folding_percent(torch.zeros(1, 3, 9, 4, 20), "inner"),
        ValueError,
        ["2 voxels", "(9, 4, 20)"],
    ),
    "folding field": (
        lambda: metrics.folding_percent(torch.zeros(1, 2, 9, 9, 9), "inner"),
        ValueError,
        ["3 components"],
    ),
    "ssim shapes": (
        lambda: metrics.ssim(torch.rand(PLANE), torch.rand(1, 1, 24, 19)),
        ValueError,
        ["(1, 1, 24, 19)", "one shape"],
    ),
    "ssim of lines": (
        lambda: metrics.ssim(torch.rand(1, 1, 20), torch.rand(1, 1, 20)),
        ValueError,
        ["ssim", "2 or 3", "(1, 1, 20)"],
    ),
    "no voxels": (
        lambda: fields.warp(torch.zeros(1, 1, 5, 0), ZERO),
        ValueError,
        ["nothing", "(1, 1, 5, 0)"],
    ),
    "no pairs": (lambda: fields.jacobian(torch.zeros(0, 2, 5, 6)), ValueError, ["nothing", "(0, 2, 5, 6)"]),
    "padding": (lambda: fields.warp(ZERO, ZERO, padding="reflection"), ValueError, ["reflection", "border"]),
    "mode": (lambda: fields.warp(ZERO, ZERO, "cubic"), ValueError, ["cubic", "linear, nearest"]),
    "points of another rank": (
        lambda: fields.sample(ZERO, torch.zeros(1, 3, 24, 20)),
        ValueError,
        ["2D", "(1, 3, 24, 20)"],
    ),
    "points of another form": (
        lambda: fields.sample(ZERO, torch.zeros(1, 2, 7)),
        ValueError,
        ["2 further axes", "(1, 2, 7)"],
    ),
    "a grid that is not doubled": (
        lambda: fields.double(torch.zeros(1, 2, 6, 7), (100, 100)),
        ValueError,
        ["(100, 100)", "(6, 7)", "half"],
    ),
    "half a grid without an axis": (
        lambda: fields.double(torch.zeros(1, 2, 6, 7), (12,)),
        ValueError,
        ["(12,)", "(6, 7)"],
    ),
    "a matrix that is not square": (
        lambda: fields.determinant(torch.zeros(1, 2, 3, 5, 5)),
        ValueError,
        ["D = 2 or 3", "(1, 2, 3, 5, 5)"],
    ),
    "a matrix of four": (
        lambda: fields.determinant(torch.zeros(1, 4, 4, 5, 5)),
        ValueError,
        ["D = 2 or 3", "(1, 4, 4, 5, 5)"],
    ),
    "no iterations": (lambda: fields.invert(ZERO, 0), ValueError, ["iterations", "at least 1", "0"]),
    "squarings": (
        lambda: integrate.scaling_and_squaring(ZERO, -1),
        ValueError,
        ["squarings", "at least 0", "-1"],
    ),
    "times to and fro": (
        lambda: integrate.trajectory(ZERO[:, None], [0, 1, 0.5]),
        ValueError,
        ["rising or falling", "0.5"],
    ),
    "batches of a distribution": (
        lambda: losses.velocity_kl(torch.zeros(2, 2, 5, 6), torch.zeros(1, 2, 5, 6), 1.0),
        ValueError,
        ["(2, 2, 5, 6)", "(1, 2, 5, 6)", "same shape"],
    ),
    "complex images": (
        lambda: losses.lncc(ZERO[:, :1] * 1j, ZERO[:, :1] * 1j),
        TypeError,
        ["real", "complex64"],
    ),
    "arrays of NumPy": (
        lambda: metrics.fsim(np.ones(PLANE), np.ones(PLANE)),
        TypeError,
        ["fsim", "torch.Tensor", "ndarray"],
    ),
    "a window of 3.5 voxels": (
        lambda: losses.lncc(ZERO[:, :1], ZERO[:, :1], 3.5),
        ValueError,
        ["window", "whole", "3.5"],
    ),
    "half a sub-step": (
        lambda: integrate.flow(ZERO[:, None], substeps=1.5),
        ValueError,
        ["substeps", "whole", "1.5"],
    ),
    "one size for two axes": (lambda: fields.resize(ZERO, (7,)), ValueError, ["2 sizes", "(7,)"]),
    "no size": (lambda: fields.resize(ZERO, (0, 7)), ValueError, ["at least 1", "(0, 7)"]),
    "method": (lambda: Model(NetworkConfig("vxm", 2)), ValueError, ["vxm", "tm-tvf"]),
    "network size": (lambda: Model(NetworkConfig("tm", 2, "giant")), ValueError, ["giant", "demo", "large"]),
    "network integrator": (
        lambda: Model(NetworkConfig("tm-tvf", 2, integrator="rk5")),
        ValueError,
        ["rk5", "rk4"],
    ),
    "dimension": (lambda: Model(NetworkConfig("tm", 4)), ValueError, ["dim", "2 or 3", "4"]),
    "no time steps": (
        lambda: Model(NetworkConfig("tm-tvf", 2, time_steps=0)),
        ValueError,
        ["at least 1", "0"],
    ),
    "data set": (
        lambda: data.load("demo_face", "test"),
        ValueError,
        ["demo_face", "demo_faces", "demo_brains"],
    ),
    "split": (
        lambda: data.load("demo_faces", "validation"),
        ValueError,
        ["validation", "train", "val", "test"],
    ),
    "size of brains": (lambda: data.load("demo_brains", "test", 64), ValueError, ["64", "(52, 64, 56)"]),
    "subject": (lambda: data.pairs.demo_brains.make_subject(50), ValueError, ["49", "50"]),
    "expression": (lambda: data.pairs.demo_faces.render(0, "bored"), ValueError, ["bored", "happy"]),
    "face": (lambda: data.pairs.demo_faces.render(67, "happy"), ValueError, ["66", "67"]),
    "trained method": (
        lambda: train.train("identity", Profile("toy2d", steps=1)),
        ValueError,
        ["identity", "tm-tvf"],
    ),
    "evaluated method": (
        lambda: evaluate.evaluate("vxm", "toy2d"),
        ValueError,
        ["vxm", "tm-tvf", "identity"],
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_argument_is_named(case):
    call, error, words = CALLS[case]
    with rejects(error, *words):
        call()


PROFILES = {  # name: (values, words)
    "text for a number": ({"data": "demo_faces", "lr": "1e-4"}, ["lr", "float", "1e-4", "1.0e-4"]),
    "number for text": ({"data": 3}, ["data", "str", "3"]),
    "fraction of steps": ({"data": "demo_faces", "steps": 1.5}, ["steps", "int", "1.5"]),
    "truth for a number": ({"data": "demo_faces", "batch": True}, ["batch", "int", "True"]),
    "unknown key": ({"data": "demo_faces", "learning_rate": 0.1}, ["learning_rate", "lr", "batch"]),
    "no data": ({"lr": 0.1}, ["data"]),
    "no steps": ({"data": "demo_faces", "steps": 0}, ["steps or epochs", "at least 1"]),
    "negative steps": ({"data": "demo_faces", "steps": -1}, ["steps", "negative", "-1"]),
    "an epoch of what": (
        {"data": "demo_faces", "steps": 1, "epoch_of": "faces"},
        ["epoch_of", "pairs or images", "faces"],
    ),
    "a chance above 1": ({"data": "demo_faces", "steps": 1, "flip": 1.5}, ["flip", "between 0 and 1", "1.5"]),
    "text for truth": ({"data": "demo_faces", "steps": 1, "recompute": "yes"}, ["recompute", "bool", "yes"]),
    "size of networks": ({"data": "demo_faces", "steps": 1, "size": "giant"}, ["size", "giant", "huge"]),
    "integrator": ({"data": "demo_faces", "steps": 1, "integrator": "rk5"}, ["integrator", "rk5", "heun"]),
    "scales of a solver": (
        {"data": "demo_faces", "steps": 1, "constants": {"lddmm": {"scales": [4]}}},
        ["scales", "powers of two", "[4]"],
    ),
    "list of similarities of a solver": (
        {"data": "demo_faces", "steps": 1, "constants": {"lddmm": {"similarity": ["lncc"]}}},
        ["similarity", "['lncc']", "lncc, mse"],
    ),
    "similarity of a solver": (
        {"data": "demo_faces", "steps": 1, "constants": {"lddmm": {"similarity": "ncc"}}},
        ["similarity", "'ncc'", "lncc, mse"],
    ),
    "constants of another method": (
        {"data": "demo_faces", "steps": 1, "constants": {"vm-2": {"alpha": 1}}},
        ["alpha", "vm-2", "no constants"],
    ),
    "losses of no method": (
        {"data": "demo_faces", "steps": 1, "losses": {"lncc": 1.0}},
        ["lncc", "no method", "tm-tvf"],
    ),
    "losses without weights": (
        {"data": "demo_faces", "steps": 1, "losses": {"tm": "lncc"}},
        ["losses", "numbers by name", "lncc"],
    ),
    "negative rate": ({"data": "demo_faces", "lr": -0.1}, ["lr", "positive", "-0.1"]),
    "rate that is no number": ({"data": "demo_faces", "lr": float("nan")}, ["lr", "positive", "nan"]),
    "negative size": ({"data": "demo_faces", "image_size": -1}, ["image_size", "negative", "-1"]),
}


@pytest.mark.parametrize("case", PROFILES)
def test_wrong_profile_is_named(case, tmp_path):
    values, words = PROFILES[case]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with rejects(ValueError, "mine.yaml", *words):
        profiles.read(str(path))


def test_unscientific_yaml_numbers_are_caught_as_they_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: demo_faces\nlr: 1e-4\n")  # YAML 1.1 reads this as text
    with rejects(ValueError, "lr", "1.0e-4"):
        profiles.read(str(path))


def test_unknown_profile_lists_those_that_exist():
    with rejects(ValueError, "demo_face", "demo_faces", "demo_brains"):
        profiles.read("demo_face")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "data: [1, 2\n", ""], ids=["list", "broken", "empty"])
def test_profile_that_is_not_key_value_yaml_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with rejects(ValueError, "mine.yaml"):
        profiles.read(str(path))


@pytest.fixture
def weights(tmp_path):
    """Write a weights file: ``weights(config, state=None)``."""

    def write(config, state=None):
        path = tmp_path / "given.safetensors"
        checkpoints.save(path, state or Model(config).network.state_dict(), config)
        return path

    return write


def test_missing_weights_say_how_to_get_them(toy_data, tmp_path):
    with rejects(FileNotFoundError, "nothing.safetensors", "tvf train"):
        evaluate.evaluate("tm", "toy2d", weights=tmp_path / "nothing.safetensors", progress=False)


def test_random_bytes_are_no_weights(tmp_path):
    path = tmp_path / "given.safetensors"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with rejects(ValueError, "given.safetensors", "not a weights file"):
        checkpoints.load(path)


def test_cut_off_weights_are_no_weights(weights):
    path = weights(NetworkConfig("tm", 2))
    path.write_bytes(path.read_bytes()[:-1000])
    with rejects(ValueError, "given.safetensors", "not a weights file"):
        checkpoints.load(path)


def test_safetensors_of_another_program_are_no_weights(tmp_path):
    path = tmp_path / "given.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with rejects(ValueError, "given.safetensors", "not a weights file"):
        checkpoints.load(path)


def test_weights_that_do_not_fit_their_own_configuration_are_named(weights):
    path = weights(NetworkConfig("tm-tvf", 2), Model(NetworkConfig("tm", 2)).network.state_dict())
    with rejects(ValueError, "given.safetensors"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "config,words",
    [
        (NetworkConfig("tm", 2), ["holds tm in 2D", "tm-tvf"]),
        (NetworkConfig("tm-tvf", 3, time_steps=2), ["3D", "2D", "toy2d"]),
    ],
    ids=["method", "dimension"],
)
def test_weights_of_another_method_or_dimension_are_named(toy_data, weights, config, words):
    with rejects(ValueError, "given.safetensors", *words):
        evaluate.evaluate("tm-tvf", "toy2d", weights=weights(config), progress=False)


@pytest.mark.parametrize(
    "arguments,words",
    [
        ("train --method vxm --profile demo_faces", ["vxm", "tm-tvf"]),
        ("train --method tm --profile demo_face", ["demo_face", "demo_faces"]),
        ("train --method tm --profile toy.yaml --steps -5", ["steps", "-5"]),
        ("train --method tm --profile broken.yaml", ["broken.yaml"]),
        ("evaluate --method tm --data demo_face", ["demo_face", "demo_faces"]),
        ("evaluate --method tm --data toy2d --split all", ["all", "val"]),
        ("evaluate --method tm --data toy2d --profile demo_faces", ["profile", "tm", "network"]),
        (
            "evaluate --method lddmm --data toy2d --profile paper_rafd",
            ["paper_rafd", "no constants of lddmm"],
        ),
        ("draw --method lddmm --data toy2d --profile toy.yaml", ["toy.yaml", "no constants of lddmm"]),
        ("export-l2r --method lddmm --data toy2d --out o --profile nope", ["nope", "demo_brains"]),
        ("methods --size enormous", ["enormous", "huge"]),
        ("methods --size huge --sources", ["size", "--sources"]),
        ("evaluate --method tm --data toy2d --limit -3 --weights tm.safetensors", ["-3"]),
        (
            "evaluate --method tm --data toy2d --weights nothing.safetensors",
            ["nothing.safetensors", "tvf train"],
        ),
        ("draw --method tm --data toy2d --pair 2 --weights tm.safetensors", ["pair", "0 to 1", "2"]),
    ],
)
def test_the_command_ends_with_one_line(arguments, words, toy_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text("data: toy2d\nsteps: 3\n")
    (tmp_path / "broken.yaml").write_text("data: [1\n")
    config = NetworkConfig("tm", 2)
    checkpoints.save(tmp_path / "tm.safetensors", Model(config).network.state_dict(), config)
    monkeypatch.setattr(sys, "argv", ["tvf", *arguments.split()])
    with rejects(SystemExit, "tvf: ", *words):
        commands.main()


def test_the_installed_command_prints_no_traceback():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tvf_core.commands import main; main()",
            "train",
            "--method",
            "vxm",
            "--profile",
            "demo_faces",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode not in (0, None)
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert "vxm" in run.stderr and "tm-tvf" in run.stderr and "Traceback" not in run.stderr
