"""An option is obeyed or refused in one line; a profile's value without effect on a method is named."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
import yaml

from data_download import __main__ as data_download
from tvf_core import bench, checkpoints, commands
from tvf_core.data import load
from tvf_core.evaluation import learn2reg
from tvf_core.methods import METHODS, NetworkConfig, available
from tvf_core.model import Model
from tvf_core.pairwise import convexadam, lddmm
from tvf_core.paths import WEIGHTS
from tvf_core.reporting import tables
from tvf_core.training import profiles, train
from tvf_core.training.profiles import Profile

SHIPPED = sorted(WEIGHTS.glob("*/*.safetensors"))
TUNED = {  # as they were before profiles named them: every stored result of these methods was made with them
    "demo_faces": {
        "lddmm": dict(
            alpha=0.01,
            gamma=0.01,
            beta=2,
            weight=1.5e4,
            steps=4,
            integrator="heun",
            scales=[8, 4, 2, 1],
            iterations=[20, 20, 20, 40],
            similarity="mse",
        )
    },
    "demo_brains": {
        "lddmm": dict(
            alpha=0.01,
            gamma=0.001,
            beta=2,
            weight=1e7,
            steps=4,
            integrator="heun",
            scales=[8, 4, 2],
            iterations=[20, 20, 50],
            similarity="mse",
        ),
        "convexadam": convexadam.DEFAULTS | dict(lambda_weight=0.5),
    },
}
TUNED["anatomies"] = TUNED["demo_brains"]


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_has_the_options_that_change_its_network(method):
    """A method has an option if another value gives another network or flow; else the option is refused."""
    entry = METHODS[method]
    for dim in entry.dims:
        own = entry.options(dim)
        assert NetworkConfig(method, dim).stored() == {"method": method, "dim": dim} | {
            k: v for k, v in own.items() if v != ""
        }
        other = dict(size="tiny", time_steps=3, head="full" if own.get("head") == "half" else "half")
        for option, value in other.items():
            if option not in own:
                with pytest.raises(ValueError, match=f"{method}.*{option}"):
                    NetworkConfig(method, dim, **{option: value})
                continue
            with torch.device("meta"):
                shapes = [
                    {
                        k: v.shape
                        for k, v in Model(NetworkConfig(method, dim, **o)).network.state_dict().items()
                    }
                    for o in ({}, {option: value})
                ]
            assert shapes[0] != shapes[1]


def test_what_does_not_fit_is_left_out_and_told():
    config, left = NetworkConfig.fitting("vm-2", 3, size="huge", time_steps=99, integrator="rk4", head="half")
    assert config == NetworkConfig("vm-2", 3)
    assert left == dict(size="huge", time_steps=99, integrator="rk4", head="half")
    config, left = NetworkConfig.fitting(
        "tm-tvf", 2, size="tiny", time_steps=3, integrator="euler", head="half"
    )
    assert config == NetworkConfig("tm-tvf", 2, "tiny", 3, "euler") and left == {"head": "half"}
    config, left = NetworkConfig.fitting("vm-diff", 2, integrator="euler", size="")
    assert config.integrator == "squaring" and left == {"integrator": "euler"}
    with pytest.raises(ValueError, match="giant"):
        NetworkConfig.fitting("tm", 2, size="giant")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_weights_of_older_versions_are_read_and_kept(path, tmp_path):
    """They store options that their method does not have; written anew they store only what it has."""
    model = checkpoints.load(path)
    method = path.stem.partition("-seed")[0]
    assert model.config.method == method and model.config == NetworkConfig(method, model.config.dim)
    checkpoints.save(tmp_path / "again.safetensors", model.network.state_dict(), model.config)
    again = checkpoints.load(tmp_path / "again.safetensors")
    assert again.config == model.config
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)


def test_there_are_shipped_weights_to_read():
    assert len(SHIPPED) > 20


@pytest.mark.parametrize("in_profile", [True, False])
@pytest.mark.parametrize("flag", ["recompute", "auto-fit"])
def test_a_flag_wins_over_the_profile_both_ways(flag, in_profile, tmp_path, monkeypatch):
    key, seen = flag.replace("-", "_"), []
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": "toy2d", "steps": 2, key: in_profile}))

    def stand_in(method, profile, **rest):
        seen.append(getattr(profile, key))
        raise ValueError("far enough")

    monkeypatch.setattr(commands.training.training, "train", stand_in)
    for given in ([], [f"--{flag}"], [f"--no-{flag}"]):
        options = ["train", "--method", "tm", "--profile", str(tmp_path / "mine.yaml"), *given]
        monkeypatch.setattr(sys, "argv", ["tvf", *options])
        with pytest.raises(SystemExit, match="far enough"):
            commands.main()
    assert seen == [in_profile, True, False]


def test_a_training_says_what_has_no_effect_and_its_card_does_not_list_it(toy_data, tmp_path, capsys):
    profile = Profile(
        "toy2d",
        size="tiny",
        time_steps=3,
        integrator="euler",
        steps=2,
        epochs=7,
        validations=1,
        validation_pairs=1,
        constants={"tm-tvf-lddmm": {"alpha": 0.02}},
    )
    card = train.train("vm-2", profile, out=tmp_path / "vm-2", progress=False)
    [line] = [x for x in capsys.readouterr().err.splitlines() if "no effect" in x]
    assert line.startswith("vm-2:")
    assert all(x in line for x in ("size tiny", "time_steps 3", "integrator euler", "epochs 7"))
    assert card["settings"]["network"] == {"method": "vm-2", "dim": 2}
    assert not {"size", "time_steps", "integrator", "epochs"} & set(card["settings"])
    assert card["settings"]["constants"] == {}
    card = train.train("tm-tvf", profile.change(epochs=0), out=tmp_path / "tm-tvf", progress=False)
    assert "no effect" not in capsys.readouterr().err
    assert card["settings"]["network"] == {
        "method": "tm-tvf",
        "dim": 2,
        "size": "tiny",
        "time_steps": 3,
        "integrator": "euler",
    }


def test_other_losses_leave_constants_of_the_profile_without_effect(toy_data, tmp_path, capsys):
    """The released term has no beta: `tvf train --losses mse 1 lddmm_released 1`, the profile names beta."""
    profile = Profile("toy2d", size="tiny", time_steps=2, steps=2, validations=1, validation_pairs=1).change(
        constants={"tm-tvf-lddmm": {"alpha": 0.02, "beta": 2}},
        losses={"tm-tvf-lddmm": {"mse": 1.0, "lddmm_released": 1.0}},
    )
    card = train.train("tm-tvf-lddmm", profile, out=tmp_path, progress=False)
    assert "no effect on it: constant beta 2\n" in capsys.readouterr().err
    assert card["settings"]["constants"] == {"alpha": 0.02}


def test_the_list_of_methods_says_which_networks_have_sizes(monkeypatch, capsys):
    shown = {}
    for size in ("tiny", "huge"):
        monkeypatch.setattr(sys, "argv", ["tvf", "methods", "--size", size])
        commands.main()
        table, _, said = capsys.readouterr().out.partition("\n\n")
        shown[size] = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
        named = set(re.findall(r"[\w-]+", said.split(";")[0])) & set(METHODS)
        assert f"size {size}" in said and named == {m for m, entry in METHODS.items() if entry.sizes}
    assert named == {m for m in METHODS if shown["tiny"][m] != shown["huge"][m]}


@pytest.mark.parametrize("method, check", [("lddmm", lddmm.check), ("convexadam", convexadam.check)])
def test_defaults_are_those_of_the_solver_and_have_sources(method, check):
    for dim in METHODS[method].dims:
        defaults = lddmm.DEFAULTS[dim] if method == "lddmm" else convexadam.DEFAULTS
        assert {name: number.value for name, number in METHODS[method].constants[dim].items()} == defaults
        assert all(number.source for number in METHODS[method].constants[dim].values())
        check(defaults, dim)
        assert Model(NetworkConfig(method, dim)).constants == json.loads(json.dumps(defaults))


@pytest.mark.parametrize("name", TUNED)
def test_the_profiles_name_the_constants_of_the_stored_results(name):
    profile = profiles.read(name)
    assert profile.data == name
    dim = 2 if name == "demo_faces" else 3
    found = {m: profile.to_register(m) for m in available(dim)}
    for method, expected in TUNED[name].items():
        assert Model(NetworkConfig(method, dim), constants=found.pop(method)).constants == expected
    assert not any(found.values())


@pytest.fixture
def solver(monkeypatch):
    """LDDMM that does nothing but tell what it was called with."""
    calls = []

    def solve(moving, fixed, **constants):
        calls.append(constants)
        return METHODS["identity"].solve(moving, fixed)

    entry = METHODS["lddmm"]
    monkeypatch.setitem(METHODS, "lddmm", type(entry)(**{**vars(entry), "solve": solve}))
    return calls


def test_a_profile_reaches_the_method_and_the_summary(solver, toy_data, tmp_path, monkeypatch, capsys):
    mine = {"steps": 2, "scales": [4, 2], "iterations": 3}
    values = {"data": "toy2d", "steps": 1, "constants": {"lddmm": mine}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    options = ["--method", "lddmm", "--data", "toy2d"]
    summary = tmp_path / "toy2d" / "lddmm.json"
    for given, expected in (
        ([], METHODS["lddmm"].constants[2]),
        (["--profile", str(tmp_path / "mine.yaml"), "--replace"], mine),
    ):
        expected = {k: getattr(v, "value", v) for k, v in (METHODS["lddmm"].constants[2] | expected).items()}
        expected = json.loads(json.dumps(expected))
        for repeated in (False, True):  # the second time the summary is there
            solver.clear()
            monkeypatch.setattr(sys, "argv", ["tvf", "evaluate", *options, "--out", str(tmp_path), *given])
            commands.main()
            assert solver == ([] if repeated else [expected] * len(load("toy2d", "test")))
            assert json.loads(summary.read_text())["card"]["settings"]["constants"] == expected
    solver.clear()
    draw = [*options, "--profile", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["tvf", "draw", *draw])
    commands.main()
    assert solver == [expected]


def test_the_submission_is_made_with_the_constants_and_remembers_them(solver, tmp_path, monkeypatch):
    brains = load("demo_brains", "val")
    monkeypatch.setattr(learn2reg, "load_pairs", lambda *_: brains)
    learn2reg.export("lddmm", "demo_brains", tmp_path, constants={"steps": 2}, progress=False)
    assert {call["steps"] for call in solver} == {2} and len(solver) == len(brains)
    about = json.loads((tmp_path / "submission.json").read_text())
    assert about["constants"]["steps"] == 2 and about["constants"]["scales"] == [8, 4, 2]
    with pytest.raises(ValueError, match="other settings"):
        learn2reg.export("lddmm", "demo_brains", tmp_path, progress=False)


@pytest.mark.parametrize("dim, shape", [(2, (33, 40)), (3, (17, 20, 18))])
def test_a_model_registers_with_the_constants_that_it_is_given(dim, shape, smooth_image):
    moving, fixed = smooth_image(shape, seed=0), smooth_image(shape, seed=1)
    mine = dict(steps=2, scales=[4, 2], iterations=[2, 3], integrator="euler", weight=50.0)
    found = Model(NetworkConfig("lddmm", dim), constants=mine).register(moving, fixed)
    settings = {k: lddmm.DEFAULTS[dim][k] for k in ("alpha", "gamma", "beta")} | mine
    expected, _ = lddmm.register(moving, fixed, **settings)
    assert torch.equal(found.displacement, expected.displacement) and found.integrator == "euler"
    assert found.velocity.shape[1] == 2


def test_the_sources_show_defaults_and_the_profiles_that_replace_them():
    _, rows = tables.sources()
    found = {(row[0], row[2], row[3]): row[4] for row in rows}
    assert found["convexadam", "lambda_weight", "1.25"] == "default of convexAdam 0.2.0"
    assert found["convexadam", "lambda_weight", "0.5"] == "profile anatomies, demo_brains"
    assert found["lddmm", "weight", "1.5e+04"] == "profile demo_faces"
    assert found["lddmm", "weight", "1e+04"] == "profile london"
    assert found["lddmm", "scales", "8, 4, 2, 1"] == "profile demo_faces, london, london_lncc, london_smooth"
    assert all(row[4] for row in rows)


OTHER = {"labels": 9, "network": "small", "time_steps": 3, "batch": 2, "compiled": True}


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("name", bench.OPERATIONS)
def test_an_option_of_the_benchmark_is_refused_where_it_has_no_effect(name, option):
    """Without it the operation gives the same tensors, and has the same forms, as with another value."""
    small = bench.Setting(shape=(16, 17, 18), labels=5, network="tiny", time_steps=2)
    operations = [bench.OPERATIONS[name](s) for s in (small, replace(small, **{option: OTHER[option]}))]
    alike = operations[0].forms.keys() == operations[1].forms.keys()
    if option != "compiled":
        first, second = [], []
        for operation, results in zip(operations, (first, second)):
            torch.manual_seed(0)
            results += operation.forms["ours"]()
        alike &= len(first) == len(second)
        alike &= all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second))
    if alike:
        with pytest.raises(ValueError, match=f"{option}: no effect on {name}"):
            bench.check_used([option], [name])
    else:
        bench.check_used([option], [name])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("lncc --time-steps 4 8", ["time_steps", "no effect on lncc", "flow"]),
        ("flow --network huge", ["network", "no effect on flow", "forward"]),
        ("loading --batch 4", ["batch", "loading"]),
        ("train-step --compiled", ["compiled", "forward"]),
        ("lncc --variants ours litreal", ["litreal", "literal"]),
        ("lncd", ["lncd", "lncc", "all"]),
    ],
)
def test_the_benchmark_refuses_before_it_measures(arguments, words, monkeypatch):
    monkeypatch.setattr(bench.measure, "rates", lambda device: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["tvf", "bench", *arguments.split(), "--size", "16", "16", "16"])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"save_minutes": -1}, {"save_minutes": float("nan")}, {"workers": -1}])
def test_a_training_refuses_what_it_could_not_obey(options, toy_data, tmp_path):
    with pytest.raises(ValueError, match=next(iter(options))):
        train.train("tm", Profile("toy2d", steps=1), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", ["rafd --crop 1 2 3", "oasis --partial", "oasis --accept-terms"])
def test_the_download_refuses_what_belongs_to_a_source(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["data_download", *arguments.split(), "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"{arguments.split()[1]} has no effect .* add --source"):
        data_download.main()
