"""Trainings that are killed, interrupted, short of disk or memory, fed NaN, or spread over processes.

The tests look at what such a training leaves, and at how it continues.
"""

import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from test_train import run

from tvf_core import commands, data, paths
from tvf_core.methods import METHODS, NetworkConfig
from tvf_core.model import Model
from tvf_core.paths import ROOT
from tvf_core.training import interrupts, not_finite, profiles, train, validation
from tvf_core.training.history import History, read_history
from tvf_core.training.profiles import Profile
from tvf_core.training.run_folder import RunFolder
from tvf_core.training.run_list import elapsed, list_runs
from tvf_core.training.sampling import PairSampler
from tvf_core.training.trainer import Trainer

STEPS = 30  # of the runs that are interrupted: enough to be met in the middle, however fast the machine is


def command(out, *options, profile="smoke_faces"):
    """``tvf train`` with the options given, else TM-TVF for some steps."""
    given = {"--method": "tm-tvf", "--steps": str(STEPS)}
    defaults = [word for name, value in given.items() if name not in options for word in (name, value)]
    return [
        sys.executable,
        "-m",
        "tvf_core",
        "train",
        "--profile",
        profile,
        "--out",
        str(out),
        *defaults,
        *options,
    ]


def here(out, method="tm-tvf", steps=STEPS, **changes):
    """What :func:`command` does, in this process."""
    return train.train(
        method, profiles.read("smoke_faces").change(steps=steps, **changes), out=out, progress=False
    )


def same_weights(one, other):
    a, b = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def losses(folder):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_history(folder)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    here(out)
    return out


def test_killed_three_times_a_run_ends_with_the_weights_of_one_that_was_not(undisturbed, tmp_path):
    cut, state, moments = tmp_path / "cut", tmp_path / "cut" / "state.pt", []
    for _ in range(3):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(command(cut, "--save-minutes", "0"), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.01)  # until it has got further than the last time
        time.sleep(random.uniform(0.0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        moments.append(RunFolder(cut, json.loads((cut / "run.json").read_text())["recipe"]).load()["step"])
    assert moments == sorted(set(moments)) and moments[-1] < STEPS, moments
    here(cut)
    assert same_weights(cut, undisturbed) and losses(cut) == losses(undisturbed)
    assert {f.name for f in cut.iterdir()} == {
        f.name for f in undisturbed.iterdir()
    }  # no states, no parts of files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_ends_the_run_as_it_always_would(number, undisturbed, tmp_path):
    """A terminal sends the signal to all processes: those that load data must not end the run first."""
    out = tmp_path / "cut"
    process = subprocess.Popen(
        command(out, "--workers", "2"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = out / "history.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGTERM if number == signal.SIGTERM else 1)
    assert (
        f"{number.name} after step" in errors
        and f"the same command continues, its state is in {out}" in errors
        and "Traceback" not in errors
    ), errors
    done = len(read_history(out))
    [entry] = list_runs(tmp_path)
    assert (entry["state"], entry["step"], entry["steps"]) == ("stopped", done, STEPS) and 2 <= done < STEPS
    assert torch.load(out / "state.pt", weights_only=True)["step"] == done  # not one step is done again
    if number == signal.SIGTERM:
        here(out)
        assert same_weights(out, undisturbed)


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_was_told_to_ignore_a_signal_goes_on_and_saves_at_the_other(ignored, tmp_path):
    """A shell without job control lets what ends in ``&`` ignore SIGINT."""
    [number] = {signal.SIGINT, signal.SIGTERM} - {ignored}
    asked = f'trap "" {ignored.name.removeprefix("SIG")}; exec "$@"'
    words = command(tmp_path, "--method", "vm-2", "--steps", "100000")
    process = subprocess.Popen(
        ["sh", "-c", asked, "sh", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "history.jsonl"

    def wait_for_steps(count):
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= count):
            time.sleep(0.02)
        return process.poll() is None

    assert wait_for_steps(2)
    os.killpg(process.pid, ignored)
    assert wait_for_steps(len(read_history(tmp_path)) + 3)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    done = len(read_history(tmp_path))
    assert f"{number.name} after step {done} of 100000; the same command continues, its state is in" in errors
    assert process.returncode == (-signal.SIGTERM if number == signal.SIGTERM else 1), errors
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == done


@pytest.mark.parametrize(
    "method", ["tm-tvf", "cyclemorph", "clapirn", "vm-diff"]
)  # stochastic depth, a partner, drawn codes, drawn velocities
def test_a_stopped_run_continues_bit_by_bit(method, toy_data, tmp_path):
    directions, shared = METHODS[method].objective.directions, dict(flip=0.5, batch=2, validations=6)
    whole = run(method, "toy2d", 6 * directions, tmp_path / "whole", **shared)

    def stop_at_3(record):
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(method, "toy2d", 6 * directions, tmp_path / "parts", watch=stop_at_3, **shared)
    assert not (tmp_path / "parts" / "weights.json").exists()
    kept = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["step"]
    seen = []
    parts = run(
        method,
        "toy2d",
        6 * directions,
        tmp_path / "parts",
        watch=lambda record: seen.append(record["step"]),
        **shared,
    )
    assert kept == 4 and seen == list(
        range(6)
    )  # the step in which the signal is seen is the last; a watcher sees all of them
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and [
        r["step"] for r in parts["history"]
    ] == list(range(6))
    assert same_weights(tmp_path / "whole", tmp_path / "parts") and parts["validation"] == whole["validation"]
    assert not list((tmp_path / "parts").glob("state*"))


def stop_after(step):
    def watch(record):
        if record["step"] == step:
            raise KeyboardInterrupt

    return watch


def stopped(out, step, **settings):
    """A run that was stopped in the middle, with states of the two last steps."""
    with pytest.raises(KeyboardInterrupt):
        run("tm", "toy2d", 6, out, save_minutes=0, watch=stop_after(step), **settings)


@pytest.mark.parametrize("harm", ["a bit", "the end", "all"])
def test_a_damaged_state_is_told_and_the_one_before_it_used(harm, toy_data, tmp_path, capsys):
    whole = run("tm", "toy2d", 6, tmp_path / "whole")
    stopped(tmp_path / "cut", 4)
    state = tmp_path / "cut" / "state.pt"
    content = bytearray(state.read_bytes())
    if harm == "a bit":
        content[len(content) // 2] ^= 1
    state.write_bytes({"a bit": content, "the end": content[:-500], "all": b"nothing"}[harm])
    before = torch.load(tmp_path / "cut" / "state.previous.pt", weights_only=True)["step"]
    again = run("tm", "toy2d", 6, tmp_path / "cut")
    said = capsys.readouterr().err
    assert f"{state} is damaged" in said and f"the one before it, of step {before}" in said and before == 3
    assert [r["loss"] for r in again["history"]] == [r["loss"] for r in whole["history"]]
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_where_both_states_are_damaged_a_new_start_is_offered_and_puts_the_run_aside(
    toy_data, tmp_path, capsys
):
    stopped(tmp_path / "cut", 4)
    for name in ("state.pt", "state.previous.pt"):
        (tmp_path / "cut" / name).write_bytes(b"PK\x05\x06" + bytes(40))
    with pytest.raises(ValueError, match="state.pt is damaged.*state.previous.pt is damaged.*--resume new"):
        run("tm", "toy2d", 6, tmp_path / "cut")
    run("tm", "toy2d", 6, tmp_path / "cut", resume="new")
    assert f"is now in {tmp_path / 'cut.1'}" in capsys.readouterr().err
    assert (tmp_path / "cut.1" / "history.jsonl").exists() and (tmp_path / "cut" / "weights.json").exists()


def test_without_a_newest_state_the_one_before_it_is_used(toy_data, tmp_path):
    stopped(tmp_path / "cut", 4)
    (tmp_path / "cut" / "state.pt").unlink()  # killed between two renames
    assert len(run("tm", "toy2d", 6, tmp_path / "cut")["history"]) == 6


def test_a_run_of_other_settings_is_refused_stopped_or_finished(toy_data, tmp_path):
    stopped(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 here\).*--resume new"):
            run("tm", "toy2d", 6, tmp_path, seed=1)
        run("tm", "toy2d", 6, tmp_path)


def test_two_trainings_in_one_folder_are_refused(toy_data, tmp_path):
    def another(record):
        with pytest.raises(ValueError, match="another process is training here"):
            run("tm", "toy2d", 2, tmp_path)
        with pytest.raises(ValueError, match="another process is training here"):
            run("tm", "toy2d", 2, tmp_path, resume="new")
        assert [entry["state"] for entry in list_runs(tmp_path)] == ["running"]

    run("tm", "toy2d", 2, tmp_path, watch=another)
    assert [entry["state"] for entry in list_runs(tmp_path)] == ["finished"]


def test_an_earlier_run_is_put_aside_while_its_folder_stays_locked(toy_data, tmp_path, monkeypatch):
    """No other process can begin in the folder between the move of its files and the end of the training."""
    stopped(tmp_path / "cut", 4)
    moves, rename = [], type(tmp_path).rename

    def seen(self, target):
        with pytest.raises(Timeout), FileLock(tmp_path / "cut" / ".lock", timeout=0):
            pass
        moves.append(self.name)
        return rename(self, target)

    def locked(record):
        with pytest.raises(Timeout), FileLock(tmp_path / "cut" / ".lock", timeout=0):
            pass

    monkeypatch.setattr(type(tmp_path), "rename", seen)
    before = {f.name: f.read_bytes() for f in (tmp_path / "cut").iterdir()}
    run("tm", "toy2d", 2, tmp_path / "cut", resume="new", watch=locked)
    after = {f.name: f.read_bytes() for f in (tmp_path / "cut.1").iterdir()}
    assert moves and after == {name: content for name, content in before.items() if name != ".lock"}
    assert "state.pt" in after and (tmp_path / "cut" / "weights.json").exists()


def test_putting_aside_that_was_interrupted_is_repeated_and_loses_nothing(toy_data, tmp_path, monkeypatch):
    stopped(tmp_path / "cut", 4)
    rename, moves = type(tmp_path).rename, []

    def power_cut(self, target):
        if len(moves) == 2:
            raise KeyboardInterrupt
        moves.append(self.name)
        return rename(self, target)

    before = {f.name for f in (tmp_path / "cut").iterdir()} - {".lock"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tmp_path), "rename", power_cut)
        run("tm", "toy2d", 2, tmp_path / "cut", resume="new")
    run("tm", "toy2d", 2, tmp_path / "cut", resume="new")
    first, second = ({f.name for f in (tmp_path / f"cut.{k}").iterdir()} for k in (1, 2))
    assert first == set(moves) and first | second == before and not first & second


def leave(folder, name, process, machine=None, age=0.0):
    """A temporary file as a killed process leaves it."""
    file = folder / f".{name}.{machine or paths.this_machine()}.{process}.part"
    folder.mkdir(exist_ok=True)
    file.write_bytes(b"half")
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_only_leftovers_of_trainings_that_ended_are_deleted(toy_data, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = 2 * 24 * 3600
    gone = [
        leave(tmp_path, "state.pt", ended.pid),
        leave(tmp_path, "weights.safetensors", os.getppid(), age=old),
        leave(tmp_path, "history.jsonl", ended.pid, "another-machine", old),
    ]
    kept = [
        leave(tmp_path, "weights.json", os.getppid()),  # that process lives
        leave(tmp_path, "state.pt", ended.pid, "another-machine"),  # there, such a process may live
        leave(tmp_path, "tm.csv", ended.pid, age=old),  # no file of a training
    ]
    run("tm", "toy2d", 2, tmp_path)
    assert not any(file.exists() for file in gone) and all(file.exists() for file in kept)


def test_where_locks_do_not_work_nothing_of_others_is_deleted(toy_data, tmp_path, monkeypatch, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    others = [leave(tmp_path, "state.pt", os.getppid()), leave(tmp_path, "state.pt", ended.pid, age=1e6)]

    def no_locks(self, *args, **kwargs):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    run("tm", "toy2d", 2, tmp_path)
    assert "cannot be locked" in capsys.readouterr().err and all(file.exists() for file in others)
    assert [entry["state"] for entry in list_runs(tmp_path)] == ["finished"]


def test_a_full_disk_leaves_the_last_state_good_and_the_log_whole(toy_data, tmp_path, capfd):
    """A limit on the size of files stands for the disk: the state exceeds it, and later the log does."""
    whole = run("tm", "toy2d", 6, tmp_path / "whole", save_minutes=0)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    good, limit = {}, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record["step"] == 2:  # the state of step 2 is there
            good["bytes"] = (tmp_path / "full" / "state.pt").read_bytes()
            resource.setrlimit(
                resource.RLIMIT_FSIZE, ((tmp_path / "full" / "history.jsonl").stat().st_size + 10, hard)
            )
        if record["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert (tmp_path / "full" / "state.pt").read_bytes() == good["bytes"]
            assert not list((tmp_path / "full").glob(".state*"))

    try:
        full = run("tm", "toy2d", 6, tmp_path / "full", save_minutes=0, watch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capfd.readouterr().err
    assert "the state of step 3 could not be saved in" in said and "of step 2, is as it was" in said
    assert [r["loss"] for r in full["history"]] == [r["loss"] for r in whole["history"]]
    assert same_weights(tmp_path / "full", tmp_path / "whole")


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("answer", ["stop", "skip"])
def test_what_is_not_finite_stops_or_is_skipped_and_harms_nothing(
    where, answer, toy_data, tmp_path, monkeypatch
):
    forward = METHODS["tm"].objective.forward
    steps = iter(range(100))

    def broken(self, batch, progress=0.0):
        terms = forward(self, batch, progress)
        if next(steps) == 3:
            nothing = torch.zeros((), requires_grad=True)
            terms["lncc"] = (
                terms["lncc"] * math.nan
                if where == "loss"
                else terms["lncc"] + nothing.sqrt() * next(self.network.parameters()).sum()
            )
            if where == "gradient":  # the loss is as it was, the slope of a root at zero is infinite
                terms["lncc"] = terms["lncc"] + (next(self.network.parameters()).sum() * 0).sqrt()
        return terms

    monkeypatch.setattr(METHODS["tm"].objective, "forward", broken)
    if answer == "skip":
        card = run("tm", "toy2d", 6, tmp_path, on_nonfinite="skip")
        assert [r["step"] for r in card["history"] if r.get("skipped")] == [3]
        assert all(
            math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"])
            for r in card["history"]
            if r["step"] != 3
        )
        assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[3])["grad_norm"] is None
        return
    with pytest.raises(FloatingPointError) as caught:
        run("tm", "toy2d", 6, tmp_path)
    said = str(caught.value)
    pairs = [f"i{a} -> i{b}" for a, b in PairSampler(data.load("toy2d", "train"), 1)(3)]
    assert (
        said.startswith("step 3: not finite (loss ")
        and pairs[0] in said
        and "lncc " in said
        and "grad_norm " in said
        and "\n" not in said
    )
    assert "the state before it is saved" in said and "skip" in said and "lower learning rate" in said
    card = run("tm", "toy2d", 6, tmp_path)  # whatever it was is over: nothing of it was kept
    assert torch.isfinite(
        torch.cat([t.flatten().float() for t in load_file(tmp_path / "weights.safetensors").values()])
    ).all()
    assert [r["step"] for r in card["history"]] == list(range(6))


@pytest.fixture
def breaking(monkeypatch):
    """``breaking(number)``: that call of ``register``, from 0, raises as for a field that is not finite."""

    def arrange(number):
        calls, register = iter(range(100)), Model.register

        def broken(self, moving, fixed):
            if next(calls) == number:
                raise FloatingPointError("the displacement is not finite")
            return register(self, moving, fixed)

        monkeypatch.setattr(Model, "register", broken)

    return arrange


def test_a_validation_that_is_not_finite_ends_the_training_which_can_go_on(toy_data, tmp_path, breaking):
    settings = dict(validations=3, validation_pairs=1)
    whole = run("tm", "toy2d", 6, tmp_path / "whole", **settings)
    breaking(1)
    with pytest.raises(FloatingPointError) as caught:
        run("tm", "toy2d", 6, tmp_path / "cut", **settings)
    said = str(caught.value)
    assert said.startswith(
        "step 3: the validation after it gave a displacement that is not finite for i4->i5;"
    )
    assert "the state after it is saved" in said and "--resume new" in said and "\n" not in said
    assert [r["step"] for r in read_history(tmp_path / "cut")] == [0, 1, 2, 3]
    again = run("tm", "toy2d", 6, tmp_path / "cut", **settings)
    assert [r["loss"] for r in again["history"]] == [r["loss"] for r in whole["history"]]
    scores = [[r.get("validation") for r in card["history"]] for card in (whole, again)]
    assert scores[0][3] is not None and scores[1] == [*scores[0][:3], None, *scores[0][4:]]


@pytest.mark.parametrize("steps, on_nonfinite", [(4, "stop"), (6, "skip")])
def test_a_validation_without_a_score_is_left_out_where_weights_with_one_are_there(
    steps, on_nonfinite, toy_data, tmp_path, breaking, capsys
):
    settings = dict(validations=steps // 2, validation_pairs=1)
    whole = run("tm", "toy2d", steps, tmp_path / "whole", **settings)
    breaking(1)  # the second validation: the last one of four steps
    card = run("tm", "toy2d", steps, tmp_path / "cut", on_nonfinite=on_nonfinite, **settings)
    assert "step 3: " in (said := capsys.readouterr().err) and "the best weights before it are kept" in said
    scores = [[r.get("validation") for r in c["history"]] for c in (whole, card)]
    assert scores[0][3] is not None and scores[1] == [*scores[0][:3], None, *scores[0][4:]]
    assert card["validation"]["score"] == max(score for score in scores[1] if score is not None)


def test_without_any_score_a_training_is_not_finished(toy_data, tmp_path, breaking):
    breaking(0)
    with pytest.raises(FloatingPointError, match="step 3: the validation .* that was saved is as it was"):
        run("tm", "toy2d", 4, tmp_path, validations=1)
    assert not (tmp_path / "weights.json").exists()
    card = run("tm", "toy2d", 4, tmp_path, validations=1)  # its steps are made again
    assert [r["step"] for r in card["history"]] == [0, 1, 2, 3] and card["validation"]["score"] > 0


class Two:
    """Stands for the accelerator of one of two processes; the other failed at ``other`` (-1: not at all)."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, process_index, other):
        self.process_index, self.other = process_index, torch.tensor([other])

    def gather(self, mine):
        return torch.cat([mine, self.other] if self.process_index == 0 else [self.other, mine])


@pytest.mark.parametrize(
    "process, own, other, pair", [(0, 1, -1, 2), (0, 100, 1, 3), (1, 100, 0, 0), (1, 0, -1, 1)]
)
def test_every_process_learns_of_a_validation_that_is_not_finite(
    process, own, other, pair, toy_data, breaking
):
    part, config = data.load("toy2d", "train"), NetworkConfig("vm-2", 2)
    breaking(own)  # the pairs 0 and 2 are for the first process, 1 and 3 for the second
    with pytest.raises(validation.NotFinitePairs) as told:
        validation.validate(Model(config).network, config, part, [0, 1, 2, 3], Two(process, other))
    assert told.value.pairs == [part.pair_name(pair)]


def test_skipping_ends_when_nothing_else_happens(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(not_finite, "IN_A_ROW", 4)
    forward = METHODS["tm"].objective.forward
    monkeypatch.setattr(
        METHODS["tm"].objective,
        "forward",
        lambda self, *args: {k: v * math.nan for k, v in forward(self, *args).items()},
    )
    with pytest.raises(FloatingPointError, match="step 3: .*the last of 4 such steps in a row"):
        run("tm", "toy2d", 9, tmp_path, on_nonfinite="skip")


def test_a_learning_rate_far_too_high_ends_with_one_line(toy_data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d: not finite \(loss .*lower learning rate"):
        run("tm", "toy2d", 6, tmp_path, lr=1e30)
    assert not (tmp_path / "weights.json").exists()


STARVED = """
import resource, sys
import torch
from tvf_core import commands
from tvf_core.training import train
from tvf_core.data import load
train.load = lambda name, split, *rest: load(name, split)
torch.nn.Conv2d(1, 1, 3)(torch.rand(1, 1, 64, 64)).sum().backward()
used = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)), -1))
commands.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_too_little_memory_ends_with_a_line_that_says_what_to_lower(tmp_path):
    options = command(tmp_path / "run", "--batch", "64", "--steps", "2", profile="demo_faces")[3:]
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(400 * 2**20), *options], cwd=ROOT, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        last.startswith("tvf: out of memory with 64 pairs at once; try, in this order: accumulate 2 ")
        and "recompute" in last
        and "auto_fit" in last
    )


@pytest.mark.parametrize(
    "fits, expected",
    [
        ((False, 4), (False, 1)),
        ((False, 2), (False, 2)),
        ((False, 1), (False, 4)),
        ((True, 2), (True, 2)),
        ((True, 1), (True, 4)),
    ],
)
def test_auto_fit_takes_the_first_settings_that_fit_and_trains_the_same(
    fits, expected, toy_data, tmp_path, monkeypatch, capsys
):
    """``fits``: with or without recomputing, how many pairs at once the memory holds."""
    plain = run("tm-tvf", "toy2d", 3, tmp_path / "plain", batch=4)
    forward = METHODS["tm-tvf"].objective.forward

    def limited(self, batch, progress=0.0):
        recomputes = any(getattr(module, "recompute", False) for module in self.modules())
        if len(batch["moving"]) > fits[1] * (1 if recomputes == fits[0] else 4 if recomputes else 0.25):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(self, batch, progress)

    monkeypatch.setattr(METHODS["tm-tvf"].objective, "forward", limited)
    fitted = run("tm-tvf", "toy2d", 3, tmp_path / "fitted", batch=4, auto_fit=True)
    assert (fitted["execution"]["recompute"], fitted["execution"]["accumulate"]) == expected
    assert (
        f"{'' if expected[0] else 'not '}recomputing, every batch in {expected[1]} part"
        in capsys.readouterr().err
    )
    if expected == (False, 1):  # the attempts left nothing behind
        assert losses(tmp_path / "fitted") == losses(tmp_path / "plain")
    assert fitted["settings"] == plain["settings"]


def test_auto_fit_says_when_nothing_fits(toy_data, tmp_path, monkeypatch):
    def never(*args):
        raise MemoryError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(METHODS["tm"].objective, "forward", never)
    with pytest.raises(MemoryError, match="out of memory with 1 pair at once.*smaller images"):
        run("tm", "toy2d", 3, tmp_path, batch=4, auto_fit=True)


def test_other_errors_are_not_taken_for_too_little_memory(toy_data, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(METHODS["tm"].objective, "forward", broken)
    for auto_fit in (False, True):
        with pytest.raises(RuntimeError, match="shapes do not match"):
            run("tm", "toy2d", 3, tmp_path, auto_fit=auto_fit)


@pytest.mark.parametrize("method", ["vm-2", "lapirn"])
def test_parts_of_a_batch_give_the_step_of_the_whole(method, toy_data, tmp_path):
    whole, parts = (
        run(method, "toy2d", 8, tmp_path / str(n), batch=4, accumulate=n, flip=0.5) for n in (1, 4)
    )
    for a, b in zip(whole["history"], parts["history"], strict=True):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4) and b["grad_norm"] == pytest.approx(
            a["grad_norm"], rel=1e-3
        )
    assert whole["settings"] == parts["settings"]  # so that one may continue the other


def two_processes(*arguments):
    """Start ``tvf train`` in two processes of torchrun's."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *command(*arguments)[1:],
    ]
    return subprocess.Popen(
        [sys.executable, *launch],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_with_a_pair_each_train_as_one_with_two(tmp_path):
    """LapIRN draws nothing, and its first steps leave two levels without gradients."""
    process = two_processes(
        tmp_path / "2",
        "--batch",
        "2",
        "--auto-fit",
        "--save-minutes",
        "0.005",
        "--method",
        "lapirn",
        "--steps",
        "8",
    )
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-2000:]
    here(tmp_path / "1", "lapirn", 8, batch=2)
    one, two = (read_history(tmp_path / str(count)) for count in (1, 2))
    assert len(one) == len(two) == 8 and one[0]["loss"] != one[1]["loss"]
    for a, b in zip(one, two):
        for key in a.keys() - {"seconds"}:
            assert b[key] == pytest.approx(a[key], rel=2e-4, abs=1e-6), key
    card = json.loads((tmp_path / "2" / "weights.json").read_text())
    assert card["execution"]["processes"] == 2 and card["pairs_seen"] == 16
    assert card["settings"] == json.loads((tmp_path / "1" / "weights.json").read_text())["settings"]


def test_two_processes_stop_at_a_signal_together_and_one_may_go_on(tmp_path):
    process = two_processes(tmp_path, "--batch", "2", "--method", "vm-2")
    log = tmp_path / "history.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    step = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert f"SIGTERM after step {step} of {STEPS}" in errors and len(read_history(tmp_path)) == step
    here(tmp_path, "vm-2", batch=2)
    assert [r["step"] for r in read_history(tmp_path)] == list(range(STEPS))


def test_runs_are_listed(toy_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TVF_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tvf", "runs"])
    commands.main()
    assert f"no runs in {tmp_path}" in capsys.readouterr().out
    run("tm", "toy2d", 2, tmp_path / "toy2d" / "tm")
    stopped(tmp_path / "toy2d" / "other", 3)
    commands.main()
    header, newest, older = capsys.readouterr().out.splitlines()
    titles = "run state steps best validation trained for changed unlike its neighbour"
    assert header.split() == titles.split()
    best = max(r["validation"] for r in read_history(tmp_path / "toy2d" / "other") if "validation" in r)
    assert newest.split()[:7] == ["toy2d/other", "stopped", "4", "of", "6", "dice", f"{best:.4f}"]
    assert older.split()[:5] == ["toy2d/tm", "finished", "2", "of", "2"] and older.endswith("ago")
    run("tm", "toy2d", 2, tmp_path / "toy2d" / "tm", seed=1, batch=2, resume="beside")
    commands.main()
    beside = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(
        r"toy2d/tm-[0-9a-f]{8} +finished .* ago +batch: 1 there, 2 here, seed: 0 there, 1 here", beside
    )
    (tmp_path / "toy2d" / "tm" / "run.json").write_text("")  # it says nothing about its neighbour
    assert {entry["run"][:8]: entry["state"] for entry in list_runs()}["toy2d/tm"] in ("damaged", "finished")
    assert all(entry["unlike"] == "" for entry in list_runs())


@pytest.mark.parametrize(
    "seconds, text",
    [(3.4, "3 s"), (75, "1 min 15 s"), (3600 * 5 + 61, "5 h 01 min"), (86400 * 3 + 7200, "3 d 02 h")],
)
def test_times_are_told_for_people(seconds, text):
    assert elapsed(seconds) == text


def test_tensorboard_has_the_records(toy_data, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    card = run("tm", "toy2d", 4, tmp_path, tensorboard=True)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "lncc", "diffusion", "grad_norm", "lr", "validation"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(
        [r["loss"] for r in card["history"]], rel=1e-5
    )


def test_a_log_with_gaps_is_read_cut_and_told(tmp_path, capsys):
    lines = [json.dumps({"step": k, "loss": k / 2}) for k in range(6)]
    lines[2] = '{"step": 2, "lo'
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + '\n{"step": 6')
    assert [r["step"] for r in read_history(tmp_path)] == [0, 1, 3, 4, 5]
    with History(tmp_path, 5) as log:
        log({"step": 5, "loss": math.inf})
    assert "lacks 1 of the 5 steps" in capsys.readouterr().err
    assert [(r["step"], r["loss"]) for r in read_history(tmp_path)] == [
        (0, 0),
        (1, 0.5),
        (3, 1.5),
        (4, 2),
        (5, pytest.approx(math.nan, nan_ok=True)),
    ]


def test_a_card_or_a_recipe_that_cannot_be_read_loses_nothing(toy_data, tmp_path):
    stopped(tmp_path, 4)
    (tmp_path / "run.json").write_text("")
    (tmp_path / "weights.json").write_text("")  # the machine went down when it was written
    assert [entry["state"] for entry in list_runs(tmp_path)] == ["damaged"]
    assert len(run("tm", "toy2d", 6, tmp_path)["history"]) == 6
    (tmp_path / "weights.json").write_text("")
    with pytest.raises(ValueError, match="weights.json is damaged.*--resume new"):
        run("tm", "toy2d", 6, tmp_path)


def test_a_read_error_does_not_count_as_damage(toy_data, tmp_path, monkeypatch):
    stopped(tmp_path, 4)
    for error in (
        OSError(107, "Transport endpoint is not connected"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *args, **kwargs: (_ for _ in ()).throw(error))
            with pytest.raises((OSError, MemoryError)):
                run("tm", "toy2d", 6, tmp_path)
        assert (tmp_path / "state.pt").exists() and not (tmp_path / "state.damaged.pt").exists()


def test_who_ignores_a_signal_goes_on_ignoring_it(toy_data, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        card = run("tm", "toy2d", 3, tmp_path, watch=lambda record: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(card["history"]) == 3


def test_one_more_signal_is_delivered_at_once_but_an_echo_is_not(monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    with pytest.raises(KeyboardInterrupt, match="late"), interrupts.Interrupts() as stop:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 1
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGINT
        clock[0] += 5
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("late") from None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_shown_to_who_watches(toy_data, tmp_path):
    first, seen = run("tm", "toy2d", 3, tmp_path), []
    run("tm", "toy2d", 3, tmp_path, watch=seen.append)
    assert seen == first["history"]


def test_a_run_that_another_process_finishes_before_the_lock_is_free_is_not_trained_again(
    toy_data, tmp_path, monkeypatch
):
    profile = Profile("toy2d", size="tiny", steps=2, validations=1, validation_pairs=1)
    first = train.train("vm-2", profile, out=tmp_path / "run", progress=False)
    finished, asked = RunFolder.finished, []
    late = lambda self: asked.append(1) or (finished(self) if asked[1:] else None)  # noqa: E731
    monkeypatch.setattr(RunFolder, "finished", late)
    monkeypatch.setattr(Trainer, "prepare", lambda self: pytest.fail("trained again"))
    seen = []
    again = train.train("vm-2", profile, out=tmp_path / "run", progress=False, watch=seen.append)
    assert again == first and [record["step"] for record in seen] == [0, 1]
