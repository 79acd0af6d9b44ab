"""Checkpoints of the released code: exact reading, refusal in one line, and no execution of code in them."""

import contextlib
import os
import pickle
import re
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro
from safetensors import safe_open
from test_wrong_input import rejects
from torch import nn

from tvf_core import checkpoints, commands
from tvf_core.data.pairs import DATASETS
from tvf_core.methods import METHODS, NetworkConfig, available, swin_config
from tvf_core.model import Model
from tvf_core.networks.swin import relative_position_index
from tvf_core.paths import ROOT

INDEX = "relative_position_index"
TABLE = "transformer.layers.{}.blocks.0.attn.relative_position_bias_table"
TABLE_INDEX = f"transformer.layers.0.blocks.0.attn.{INDEX}"


def configuration(method, window, steps=8, head="half", embed=6, depths=(2, 2, 2, 2), heads=(2, 2, 2, 2)):
    size = dict(embed=embed, depths=depths, heads=heads, window=window)
    return fitting(method, len(window), size, steps, head)


def fitting(method, dim, size, steps, head):
    """A released TM, which has a head, or TM-TVF, which has time steps."""
    options = dict(size=size, time_steps=steps, head=head, integrator="released")
    return NetworkConfig.fitting(method, dim, **options)[0]


def random_model(config):
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    # In a new network, heads and biases are nearly zero, so that differences would not show.
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def released_state(model, image=None):
    """The network's state dict as the released code writes it, for images of ``image`` (32 windows)."""
    config, state = model.config, {}
    window = swin_config(config).window
    image = image or [32 * w for w in window]
    for name, tensor in model.network.state_dict().items():
        name = name.removeprefix("backbone.")
        state[name] = tensor
        if name.endswith("relative_position_bias_table"):
            state[name.replace("relative_position_bias_table", INDEX)] = relative_position_index(window)
    state["spatial_trans.grid"] = torch.zeros(1).expand(1, config.dim, *image)  # stored as one number
    if config.method == "tm-tvf":
        state["spatial_trans_down.grid"] = torch.zeros(1).expand(1, config.dim, *(s // 2 for s in image))
    elif config.head == "half":
        state["c2.0.weight"] = torch.zeros(16, 2, *[3] * config.dim)
    return state


def checkpoint(state):
    optimizer = {
        "state": {0: {"step": 7, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": np.round(np.float64(1e-4) * 0.9, 8), "betas": (0.9, 0.999), "params": [0]}],
    }
    return {"epoch": 3, "state_dict": state, "best_dsc": np.float64(0.8), "optimizer": optimizer}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dsc0.8.pth.tar"


@pytest.fixture(scope="module")
def small():
    return random_model(configuration("tm-tvf", (2, 4), steps=2))


@pytest.fixture
def state(small):
    return released_state(small)


def assert_weights(model, wanted):
    ours = model.network.state_dict()
    assert ours.keys() == wanted.keys() and {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert not [name for name, tensor in ours.items() if not torch.equal(tensor, wanted[name])]


ROUND_TRIP = {
    "tm-tvf 2D, N=1": configuration("tm-tvf", (4, 4), 1),
    "tm-tvf 2D, N=3, depths": configuration("tm-tvf", (2, 4), 3, depths=(1, 2, 3, 2)),
    "tm-tvf 2D, N=12, heads": configuration("tm-tvf", (4, 2), 12, embed=8, heads=(1, 2, 4, 8)),
    "tm-tvf 3D, N=1": configuration("tm-tvf", (3, 2, 2), 1, depths=(1, 1, 2, 1)),
    "tm-tvf 3D, N=3": configuration("tm-tvf", (2, 3, 2), 3, embed=8, depths=(1, 1, 1, 2)),
    "tm-tvf 3D, N=12": configuration("tm-tvf", (2, 2, 3), 12, depths=(1, 1, 1, 1), heads=(1, 2, 3, 6)),
    "tm 2D full": configuration("tm", (2, 4), head="full", depths=(1, 2, 3, 2)),
    "tm 2D half": configuration("tm", (4, 2), head="half", embed=8, heads=(1, 2, 4, 8)),
    "tm 3D full": configuration("tm", (2, 3, 2), head="full"),
    "tm 3D half": configuration("tm", (3, 2, 2), head="half"),
}


@pytest.mark.parametrize("case", ROUND_TRIP)
def test_a_network_comes_back_as_it_was(case, path, smooth_image):
    original = random_model(ROUND_TRIP[case])
    torch.save(checkpoint(released_state(original)), path)
    model = checkpoints.load(path)
    assert model.config == original.config
    assert_weights(model, original.network.state_dict())
    shape = (40, 36) if model.config.dim == 2 else (20, 24, 18)
    moving, fixed = smooth_image(shape), smooth_image(shape, seed=1)
    u, wanted = (m.register(moving, fixed).displacement for m in (model, original))
    assert torch.equal(u, wanted)
    assert wanted.isfinite().all() and wanted.std() > 0.1


@pytest.mark.parametrize("window", [(4, 1), pytest.param((2, 1, 3), id="3D")])
def test_a_window_one_voxel_thin_comes_back(window):
    config = configuration("tm-tvf", window, 1)
    assert checkpoints.released_config(released_state(Model(config))) == config


@pytest.mark.parametrize(
    "method,dim,size,steps,head,entries",
    [  # the numbers of entries were counted in the released code
        ("tm-tvf", 3, "large", 12, "half", 323),
        ("tm-tvf", 3, "large", 8, "half", 303),
        ("tm-tvf", 3, "base", 12, "half", 219),
        ("tm", 3, "large", 8, "half", 268),
        ("tm", 3, "large", 8, "full", 270),
        ("tm", 3, "base", 8, "half", 164),
        ("tm", 2, "base", 8, "full", 166),
        ("tm", 2, "tiny", 8, "full", 166),
        ("tm", 2, "demo", 8, "half", 0),
    ],
)
def test_named_sizes_are_recognised(method, dim, size, steps, head, entries):
    config = fitting(method, dim, size, steps, head)
    with torch.device("meta"):  # only shapes, without allocating gigabytes
        model = Model(config)
    state = released_state(model)
    assert not entries or len(state) == entries
    assert checkpoints.released_config(state) == config
    for left_out in (INDEX, "grid") if size != "demo" else (INDEX,):
        state = {name: tensor for name, tensor in state.items() if not name.endswith(left_out)}
        assert checkpoints.released_config(state) == config, f"without {left_out}"


KINDS = {
    "bare state dict": (lambda state: state, {}),
    "DataParallel": (
        lambda state: checkpoint({f"module.{name}": tensor for name, tensor in state.items()}),
        {},
    ),
    "half precision": (
        lambda state: checkpoint({n: t.half() if t.is_floating_point() else t for n, t in state.items()}),
        {},
    ),
    "format before PyTorch 1.6": (checkpoint, {"_use_new_zipfile_serialization": False}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_read(kind, small, state, path):
    change, how = KINDS[kind]
    torch.save(change(state), path, **how)
    model = checkpoints.load(path)
    assert model.config == small.config
    wanted = small.network.state_dict()
    assert_weights(
        model, {n: t.half().float() for n, t in wanted.items()} if kind == "half precision" else wanted
    )


def test_numpy_numbers_under_their_old_name_are_read(small, state, path):
    torch.save(checkpoint(state), path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    now, then = b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"
    assert now in members[pickled] or then in members[pickled]
    members[pickled] = members[pickled].replace(now, then)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    assert checkpoints.load(path).config == small.config


def test_reading_leaves_no_pickle_permission_behind(state, path):
    torch.save(checkpoint(state), path)
    before = list(torch.serialization.get_safe_globals())
    checkpoints.load(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def without(state, *endings):
    return {name: tensor for name, tensor in state.items() if not name.endswith(endings)}


@pytest.mark.parametrize("window", [(2, 4), (4, 2), (2, 3, 2), (3, 2, 2)])
def test_window_from_the_image_size(window):
    config = configuration("tm-tvf", window, 1)
    state = without(released_state(Model(config)), INDEX)
    assert checkpoints.released_config(state) == config


@pytest.mark.parametrize("window", [(8, 8), (5, 6, 7)])
def test_published_window_without_index_and_image_size(window):
    config = configuration("tm-tvf", window, 1)
    assert checkpoints.released_config(without(released_state(Model(config)), INDEX, ".grid")) == config


@pytest.mark.parametrize("image", [None, (100, 90)], ids=["no image size", "another image size"])
def test_open_window_is_asked_for_and_taken(image, small, path):
    state = released_state(small, image)
    torch.save(without(state, INDEX) if image else without(state, INDEX, ".grid"), path)
    with pytest.raises(ValueError, match=path.name) as caught:
        checkpoints.load(path)
    assert set(re.findall(r"\(\d+, \d+\)", str(caught.value))) == {"(1, 11)", "(2, 4)", "(4, 2)", "(11, 1)"}
    for window in [(2, 4), (4, 2)]:
        assert swin_config(checkpoints.load(path, window).config).window == window


@pytest.mark.parametrize("window", [(3, 3), (2, 4, 1), (2,), (-1, -3), (0, 4)])
def test_window_that_does_not_fit_is_named(window, state, path):
    torch.save(without(state, INDEX), path)
    with rejects(ValueError, path.name, str(window), "21"):
        checkpoints.load(path, window)


def test_window_against_the_index_is_named(state):
    with rejects(ValueError, "(4, 2)"):
        checkpoints.released_config(state, (4, 2))


def test_index_of_no_window_is_named(state, path):
    state[TABLE_INDEX] = relative_position_index((2, 4)).flip(0)
    torch.save(state, path)
    with rejects(ValueError, path.name, INDEX):
        checkpoints.load(path)


def test_missing_file_is_named(path):
    with rejects(FileNotFoundError, path.name):
        checkpoints.load(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("part", [0, 1, 3, 500, 0.5, -1])
def test_cut_off_file_is_named(part, zipped, state, path):
    torch.save(checkpoint(state), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if isinstance(part, float) else part])
    with rejects(ValueError, path.name, "cut short"):
        checkpoints.load(path)


FILES = {
    "text": b"These are not the weights you are looking for.\n" * 20,
    "page of a failed download": b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>"
    b"</head></html>",
    "random bytes": np.random.default_rng(0).bytes(5000),
    "pickle of a list": pickle.dumps([1, 2, 3], protocol=2),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_file_is_named(kind, path):
    path.write_bytes(FILES[kind])
    with rejects(ValueError, path.name, "not a checkpoint"):
        checkpoints.load(path)


def test_zip_of_something_else_is_named(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("README.txt", "hello")
    with rejects(ValueError, path.name, "not a checkpoint"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3, "best_dsc": np.float64(0.8)},
        {"epoch": 3, "state_dict": [1, 2]},
        {"state_dict": {}},
        {},
        [torch.zeros(2)],
        torch.zeros(2),
        {"state_dict": {"transformer.patch_embed.proj.weight": "text"}},
    ],
    ids=[
        "no state dict",
        "list as state dict",
        "empty state dict",
        "empty",
        "list",
        "tensor",
        "text for a tensor",
    ],
)
def test_content_without_state_dict_is_named(content, path):
    torch.save(content, path)
    with rejects(ValueError, path.name, "no state dict"):
        checkpoints.load(path)


def dropped(name):
    return lambda state: state.pop(name)


def put(name, tensor):
    return lambda state: state.update({name: tensor})


def only(*beginnings):
    return lambda state: [state.pop(name) for name in list(state) if not name.startswith(beginnings)]


PATCH, HEAD = "transformer.patch_embed.proj.weight", "reg_heads.1.0.bias"
NETWORKS = {
    "no encoder": (only("up", "reg"), ["missing", PATCH]),
    "three stages": (
        lambda state: [state.pop(name) for name in list(state) if "layers.3." in name],
        ["4 stages", "found 3"],
    ),
    "no patches": (dropped(PATCH), ["missing", PATCH]),
    "no table": (dropped(TABLE.format(2)), ["missing", TABLE.format(2)]),
    "no qkv": (
        dropped("transformer.layers.1.blocks.1.attn.qkv.weight"),
        ["missing", "layers.1.blocks.1.attn.qkv.weight"],
    ),
    "no bias of a head": (dropped(HEAD), ["missing", HEAD]),
    "half a step more": (put("cs.2.0.weight", torch.zeros(3, 2, 3, 3)), ["unexpected", "cs.2.0.weight"]),
    "one more": (
        put("transformer.absolute_pos_embed", torch.zeros(3)),
        ["unexpected", "transformer.absolute_pos_embed"],
    ),
    "TM's head as well": (put("reg_head.0.bias", torch.zeros(2)), ["unexpected", "reg_head.0.bias"]),
    "head in 3D": (put(HEAD, torch.zeros(3)), [HEAD, "(3,)", "(2,)"]),
    "scalar": (put("up1.conv2.0.weight", torch.zeros(())), ["up1.conv2.0.weight", "()", "(12, 12, 3, 3)"]),
    "table of another window": (
        put(TABLE.format(1), torch.zeros(9, 2)),
        [TABLE.format(1), "(9, 2)", "(21, 2)"],
    ),
    "heads that do not divide": (put(TABLE.format(0), torch.zeros(21, 4)), ["heads", "stage 0"]),
    "patches of 2": (put(PATCH, torch.zeros(6, 2, 2, 2)), ["patches", "(6, 2, 2, 2)"]),
    "one image": (put(PATCH, torch.zeros(6, 1, 4, 4)), ["patches", "(6, 1, 4, 4)"]),
    "1D patches": (put(PATCH, torch.zeros(6, 2, 4)), [PATCH, "(6, 2, 4)"]),
    "scalar patches": (put(PATCH, torch.zeros(())), [PATCH, "()"]),
    "flat table": (put(TABLE.format(1), torch.zeros(21)), [TABLE.format(1), "(21,)"]),
    "no heads": (put(TABLE.format(0), torch.zeros(21, 0)), ["heads"]),
    "scalar index": (put(TABLE_INDEX, torch.tensor(3)), [INDEX]),
    "sparse weights": (put("up1.conv2.0.weight", torch.zeros(12, 12, 3, 3).to_sparse()), []),
    "name of two lines": (put("a\nb", torch.zeros(1)), ["unexpected"]),
}


@pytest.mark.parametrize(
    "change,words", [pytest.param(*values, id=case) for case, values in NETWORKS.items()]
)
def test_other_network_is_named(change, words, state, path):
    change(state)
    torch.save(checkpoint(state), path)
    with rejects(ValueError, path.name, *words):
        checkpoints.load(path)


def test_state_dict_of_another_model_is_named(path):
    torch.save(nn.Linear(3, 3).state_dict(), path)
    with rejects(ValueError, path.name, "TM-TVF", "VM-2", "CycleMorph", "LapIRN"):
        checkpoints.load(path)


@pytest.mark.parametrize("method,dim", [("vm-2", 2), ("vm-diff", 3), ("cyclemorph", 3), ("lapirn", 2)])
def test_a_released_baseline_that_lacks_a_tensor_is_named(method, dim, path):
    """The table of names is used in reverse to write the names of the released file."""
    mark, (_, names) = next(
        (mark, entry) for mark, entry in checkpoints.BASELINES.items() if entry[0] == method
    )
    torch.save(
        {mark: torch.zeros(4, 2, *[3] * dim), "down_conv.weight": torch.zeros(16, 16, *[3] * dim)}, path
    )
    with rejects(ValueError, path.name, "missing"):
        checkpoints.load(path)


@pytest.mark.parametrize("dim, method", [(d, m) for d in (2, 3) for m in available(d) if METHODS[m].build])
def test_compact_files_keep_the_layers_that_give_the_field(dim, method):
    """In every network, each layer with one output for each axis of space is below the limit."""
    state = Model(NetworkConfig(method, dim)).network.state_dict()
    heads = [t for t in state.values() if t.dim() == dim + 2 and t.shape[0] == dim]
    assert heads and max(t.numel() for t in heads) <= checkpoints.COMPACT_ABOVE[dim]


@pytest.mark.parametrize("size", [2_001, 5_000])
def test_compact_files_round_matrices_and_keep_long_vectors(size, tmp_path):
    config = configuration("tm-tvf", (2, 4), 1, embed=8)
    state = {"weight": torch.randn(3, size, 2), "bias": torch.randn(size), "zero": torch.zeros(2, size)}
    checkpoints.save(tmp_path / "w.safetensors", state, config, compact=True)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
    assert torch.equal(stored["bias"], state["bias"]) and stored["weight"].dtype == torch.int8
    scale = stored["weight" + checkpoints.SCALE]
    largest = state["weight"].flatten(1).abs().amax(1)
    torch.testing.assert_close(scale, largest / 127)
    back = stored["weight"] * scale.view(-1, 1, 1)
    assert ((back - state["weight"]).abs() <= largest.view(-1, 1, 1) / 254 * 1.001).all()
    assert not stored["zero"].any()


def test_missing_first_layer_of_the_full_head_is_named(path):
    state = released_state(Model(configuration("tm", (2, 4), head="full")))
    torch.save(without(state, "up4.conv1.0.weight"), path)
    with rejects(ValueError, path.name, "missing", "up4.conv1.0.weight"):
        checkpoints.load(path)


class Runs:
    """Object whose unpickling calls ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def numpy_scalar(thing):
    return Runs(np.float64(0).__reduce__()[0], np.dtype(object), thing)


# Name: (content, words of the refusal). There are no tensors, which a plain pickle may not hold either.
PLACES = {
    "beside the weights": (lambda runs: {"state_dict": {}, "note": runs}, ["refused"]),
    "among the weights": (lambda runs: {"state_dict": {"up0.conv1.0.weight": runs}}, ["refused"]),
    "in an array of objects": (
        lambda runs: {"state_dict": {}, "note": np.array([runs], dtype=object)},
        ["refused", "_reconstruct"],
    ),
    "in a NumPy scalar": (lambda runs: {"state_dict": {}, "best_dsc": numpy_scalar(runs)}, []),
}
WRITERS = {
    "zip": (torch.save, lambda path: torch.load(path, weights_only=False)),
    "before PyTorch 1.6": (
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda path: torch.load(path, weights_only=False),
    ),
    "pickle": (
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
        lambda path: pickle.loads(path.read_bytes()),
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("function", ["mkdir", "exec"])
def test_code_in_a_pickle_is_not_run(function, place, writer, path):
    ran = path.with_name("ran")
    runs = {"mkdir": Runs(os.mkdir, str(ran)), "exec": Runs(exec, f"import os; os.mkdir({str(ran)!r})")}[
        function
    ]
    (content, words), (write, read_trustingly) = PLACES[place], WRITERS[writer]
    write(content(runs), path)
    # NumPy refuses objects as scalars, but only after the code has run.
    with contextlib.suppress(ValueError, TypeError, RuntimeError):
        read_trustingly(path)
    ran.rmdir()  # fails if the code in the file did not run
    with rejects(ValueError, path.name, *words, *([function] if words == ["refused"] else [])):
        checkpoints.load(path)
    assert not ran.exists()


def test_pickled_network_is_refused(path):
    torch.save(nn.Linear(3, 3), path)
    with rejects(ValueError, path.name, "refused", "torch.nn.modules.linear.Linear"):
        checkpoints.load(path)


@pytest.mark.parametrize("method", ["", "tm-tvf", "tm-tvf-lddmm"])
def test_convert_keeps_every_bit(method, path, tmp_path):
    model = random_model(configuration("tm-tvf", (2, 4), 1, embed=8))
    largest = max(tensor.numel() for tensor in model.network.state_dict().values())
    assert largest > checkpoints.COMPACT_ABOVE[3]  # so that rounding would show
    torch.save(checkpoint(released_state(model)), path)
    out = tmp_path / "new" / "weights.safetensors"
    commands.weights.convert(path, out, method)
    converted = checkpoints.load(out)
    assert_weights(converted, model.network.state_dict())
    assert swin_config(converted.config) == swin_config(model.config)
    plain = replace(converted.config, size=model.config.size)  # JSON has lists for tuples
    assert plain == replace(model.config, method=method or "tm-tvf")
    with safe_open(out, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}


@pytest.mark.parametrize(
    "method,words",
    [
        ("tm", ["tm-tvf", "not of tm"]),
        ("vm-tvf", ["tm-tvf", "vm-tvf"]),
        ("identity", ["tm-tvf", "identity"]),
        ("lddmm", ["tm-tvf", "not of lddmm"]),
        ("lddmmm", ["lddmmm", "tm-tvf-lddmm"]),
    ],
)
def test_convert_to_another_method_is_refused(method, words, state, path, tmp_path):
    torch.save(checkpoint(state), path)
    with rejects(ValueError, *words):
        commands.weights.convert(path, tmp_path / "weights.safetensors", method)
    assert list(tmp_path.iterdir()) == [path]


def test_convert_refuses_the_name_of_the_output_before_it_reads(tmp_path):
    with rejects(ValueError, "weights.pth", ".safetensors"):
        commands.weights.convert(tmp_path / "nothing.pth.tar", tmp_path / "weights.pth")
    assert not list(tmp_path.iterdir())


def test_convert_refuses_what_is_converted_already_and_says_what_it_cannot_write(
    state, path, tmp_path, monkeypatch
):
    torch.save(checkpoint(state), path)
    (tmp_path / "folder.safetensors").mkdir()
    with rejects(ValueError, "folder.safetensors", "must be a file"):
        commands.weights.convert(path, tmp_path / "folder.safetensors")
    commands.weights.convert(path, tmp_path / "out.safetensors")
    with rejects(ValueError, "out.safetensors", "already"):
        commands.weights.convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")
    full = checkpoints.SafetensorError("I/O error:\nNo space left on device")
    monkeypatch.setattr(checkpoints, "save_file", lambda *args, **kwargs: (_ for _ in ()).throw(full))
    with rejects(OSError, "cannot write", "again.safetensors", "No space left"):
        commands.weights.convert(path, tmp_path / "again.safetensors")
    assert sorted(p.name for p in tmp_path.glob("*again*")) == []


def test_window_is_for_released_checkpoints_only(state, path, tmp_path):
    torch.save(checkpoint(state), path)
    commands.weights.convert(path, tmp_path / "out.safetensors")
    with rejects(ValueError, "out.safetensors", "released checkpoints only"):
        checkpoints.load(tmp_path / "out.safetensors", (4, 4))


def test_failed_convert_writes_nothing(state, path, tmp_path):
    torch.save(checkpoint(without(state, HEAD)), path)
    out = tmp_path / "weights.safetensors"
    with rejects(ValueError, path.name, HEAD):
        commands.weights.convert(path, out)
    assert list(tmp_path.iterdir()) == [path]
    out.write_bytes(b"what was there")
    with rejects(ValueError, path.name, HEAD):
        commands.weights.convert(path, out)
    assert out.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 2


def test_convert_on_the_command_line(small, state, path, tmp_path, monkeypatch, capsys):
    torch.save(without(state, INDEX, ".grid"), path)
    out = tmp_path / "weights.safetensors"
    command = ["tvf", "convert", str(path), str(out), "--method", "tm-tvf-lddmm"]
    monkeypatch.setattr(sys, "argv", command)
    with rejects(SystemExit, "tvf: ", path.name, "window", "(2, 4)", "(4, 2)"):
        commands.main()
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", [*command, "--window", "2", "4"])
    commands.main()
    printed = capsys.readouterr().out
    parameters = sum(p.numel() for p in small.network.parameters())
    assert all(
        word in printed
        for word in (out.name, "tm-tvf-lddmm", "2D", "2 velocity fields", f"{parameters:,} parameters")
    )
    model = checkpoints.load(out)
    assert model.config.method == "tm-tvf-lddmm" and swin_config(model.config).window == (2, 4)
    assert_weights(model, small.network.state_dict())


def test_the_command_on_the_page_of_released_weights_runs_on_every_data_set(monkeypatch):
    page = (ROOT / "book" / "released_weights.md").read_text(encoding="utf-8")
    [command] = re.findall(r"`tvf (evaluate [^`]*)`", page)
    asked = []
    monkeypatch.setattr(
        commands.evaluation.evaluation, "evaluate", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    monkeypatch.setattr(commands.evaluation, "print_summary", lambda summary: None)
    for data in DATASETS:
        words = command.split()
        words[words.index("--data") + 1] = data
        commands.app.cli(args=words, config=(tyro.conf.OmitArgPrefixes,))
        args, kwargs = asked.pop()
        assert args == ("tm-tvf", data) and str(kwargs["weights"]) == "FILE" and kwargs["split"] == "val"
    assert command.split()[command.split().index("--data") + 1] in DATASETS
    assert "embedded data only" not in page
