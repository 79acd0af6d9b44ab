"""Train a method on pairs of images: one flat loop, on whatever devices accelerate finds.

The recipe of the released code: Adam with AMSGrad, polynomial decay of the learning rate, both directions of every pair (one
after the other, each its own step, unless the method's loss holds both), the weights of the best validation kept. A batch is
shared by the processes: the step is the same but for rounding, and for what a network draws (stochastic depth, velocities, codes).
Everything random at a step follows from (seed, step, process): a run that was stopped continues from its last saved state as if
nothing had happened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import accelerate.utils
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from tqdm import tqdm

from .. import checkpoints, fields, losses, metrics
from ..card import code_hash, peak_mb, reset_peak, run_card
from ..checks import one_of
from ..data import PairData, batches, load
from ..data.loading import default_workers
from ..losses.objectives import LABEL_TERMS
from ..methods import METHODS, NetworkConfig
from ..model import Model, check_losses, objective
from ..networks.swin import recompute_activations
from ..paths import runs
from . import memory
from .history import History, TensorBoard, read_history
from .interrupts import Interrupts, not_for_children
from .profiles import EXECUTION, OF_THE_NOTEBOOK, Profile, applied, check_profile
from .run_folder import RunFolder
from .sampling import PairSampler

CODE = code_hash(f"import {__name__}")
IN_A_ROW = 50  # steps without an update, one after the other, after which nobody expects another one


def train(
    method: str,
    profile: Profile,
    *,
    out: Path | None = None,
    resume: str = "auto",
    on_nonfinite: str = "stop",
    save_minutes: float = 2.0,
    workers: int | None = None,
    tensorboard: bool = False,
    watch: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> dict:
    """Train one method and write its weights, history and run card.

    Parameters
    ----------
    method : a trainable name of ``methods.METHODS``.
    profile : the recipe: data set, network size, steps, batch, learning rate and the rest.
    out : folder of the run (:mod:`tvf_core.training.run_folder`); default ``runs/<data>/<method>``.
    resume : ``auto`` continues an unfinished run in that folder and returns a finished one; one of other settings is an error.
        ``new`` puts what is there aside, under a name with a number, and starts afresh.
    on_nonfinite : where a loss or a gradient is not finite, ``stop`` with step, pairs and values, the state before that step
        saved; or ``skip`` the step, as long as it is not one of many in a row.
    save_minutes : how often the state is saved. It is saved, too, when SIGTERM or SIGINT (Ctrl-C) end the run.
    workers : processes that load batches ahead; default up to 4 beside a GPU, else 0. The result does not depend on them.
    tensorboard : write losses and scores for TensorBoard as well, into ``tensorboard`` in the run's folder.
    watch : called with every record of the history, as soon as it is there.

    Returns
    -------
    The run card: configuration, best validation score, seconds, versions; with the ``history`` and the file of the ``weights``.

    Raises
    ------
    FloatingPointError : a loss or a gradient is not finite.
    MemoryError : a step does not fit into the memory; says what to lower.
    """
    profile = check_profile(profile)
    one_of(method, [name for name, m in METHODS.items() if m.build], "trainable method")
    one_of(resume, ("auto", "new"), "way to resume")
    one_of(on_nonfinite, ("stop", "skip"), "answer to what is not finite")
    check_losses(method, profile.losses.get(method))
    if not save_minutes >= 0:  # NaN fails too
        raise ValueError(f"save_minutes: expected 0 (after every step) or more, got {save_minutes}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is not here; install it with: pip install tensorboard")
    AcceleratorState._reset_state()  # else the precision of an earlier training in this process would stay
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "": None}.get(profile.precision, profile.precision),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=METHODS[method].objective.partly_used)
        ],
    )
    device, processes, main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    if accelerator.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("precision: fp16 needs a GPU; a processor knows fp32 and bf16")
    if profile.batch % (processes * profile.accumulate):
        raise ValueError(
            f"batch: {profile.batch} pairs cannot be shared evenly by {processes} processes x {profile.accumulate} parts; "
            f"choose a multiple of {processes * profile.accumulate}"
        )
    with accelerator.main_process_first():  # one process generates the embedded data, the others find it
        data, held_out = (
            load(profile.data, split, profile.image_size or None, progress) for split in ("train", "val")
        )
    for part in (data, held_out):
        if not len(part):
            raise ValueError(
                f"{profile.data}: the split {part.split!r} has no pairs; a training needs some to learn from and some to choose the best weights"
            )
    sampler = PairSampler(data, profile.batch, profile.seed, profile.epoch_of, profile.flip)
    directions = METHODS[method].objective.directions
    steps = -(-(profile.steps or sampler.steps(profile.epochs)) // directions)
    profile, config, left = applied(profile, method, data.dim)
    recipe = _recipe(method, profile, config, data, steps, accelerator.mixed_precision)
    run = RunFolder(Path(out) if out else runs() / data.name / method, recipe, main)
    if resume == "new" and (place := run.put_aside()):
        run.say(f"the run that was in {run.path} is now in {place}")
    if left:
        values = ", ".join(f"{key} {value}" for key, value in left.items())
        run.say(f"{method}: these values of the profile have no effect on it: {values}")
    if card := _from_main(accelerator, run.finished() if main else None):
        for record in card["history"] if watch and main else ():
            watch(record)
        return card

    share, recomputes = profile.batch // processes // profile.accumulate, False
    with run.locked(), Interrupts() as stop, memory.explained(lambda: (profile, share, recomputes)):
        torch.manual_seed(profile.seed)
        network = Model(config).network
        recomputes = recompute_activations(network, profile.recompute)
        if profile.recompute and not recomputes:
            raise ValueError(f"recompute: {method} has no part that can compute its activations again")
        plain = objective(
            config, network, data.classes, profile.losses.get(method), profile.constants.get(method)
        )
        if accelerator.mixed_precision == "bf16" and device.type == "cpu":
            _refuse_two_planes(plain)
        if profile.auto_fit:  # before accelerate sees the network: it counts the backward passes
            profile = memory.fit(
                profile, processes, recomputes, plain.to(device), data, accelerator, (steps - 1) / steps
            )
            run.say(
                f"auto_fit: {'' if profile.recompute else 'not '}recomputing, every batch in {profile.accumulate} part{'s' * (profile.accumulate > 1)}"
            )
        parts, share = profile.accumulate, profile.batch // processes // profile.accumulate
        optimizer = torch.optim.Adam(
            plain.parameters(), lr=profile.lr, amsgrad=True
        )  # the objective may hold more than the network
        trained, optimizer = accelerator.prepare(plain, optimizer)

        begin, best, best_weights, spent = 0, -math.inf, None, 0.0
        if state := run.load():
            plain.load_state_dict(state["trained"])
            optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(state["scaler"])
            begin, best, best_weights, spent = (
                state[key] for key in ("step", "best", "best_weights", "seconds")
            )
            if watch and main:
                for record in read_history(run.path, begin):
                    watch(record)
        state = None  # frees it
        if len(set(accelerator.gather(torch.tensor([begin], device=device)).tolist())) > 1:
            raise ValueError(
                f"{run.path}: the processes found different states in it; it must be a folder that all machines share"
            )

        def mine(step):
            """For each part of a step: this process's pairs, and which of them are mirrored."""
            first = accelerator.process_index * parts * share
            cuts = [slice(first + part * share, first + (part + 1) * share) for part in range(parts)]
            return [(sampler(step * directions)[cut], sampler.flips(step * directions)[cut]) for cut in cuts]

        def save(step, last=False):
            for log in logs[:1]:
                log.sync()  # the state must not be ahead of the history
            well = run.save(
                step,
                {
                    "trained": plain.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "best_weights": best_weights,
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "seconds": spent + time.time() - start,
                },
            )
            if last:  # a launcher ends all processes when the first one goes
                accelerator.wait_for_everyone()
            return well

        run.begin(
            {
                "processes": processes,
                "accumulate": parts,
                "recompute": profile.recompute,
                "device": str(device),
            }
        )
        if workers is None:  # the other processes of this machine have theirs, too
            together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            size = 2 * share * math.prod(data.shape) * (1 + (data.labels is not None))
            workers = min(default_workers(device, together * size), max(1, (os.cpu_count() or 1) // together))
        loaded = batches(
            data, (pairs for step in range(begin, steps) for pairs, _ in mine(step)), device, workers
        )
        bar = tqdm(
            range(begin, steps),
            initial=begin,
            total=steps,
            desc=f"{method} on {data.name}",
            unit="step",
            disable=not (progress and main),
            mininterval=1.0,
        )
        metric, every, in_a_row = (
            "dice" if held_out.classes else "ssim",
            max(1, steps // profile.validations),
            0,
        )
        reset_peak(device)
        start = saved = time.time()
        with contextlib.closing(loaded), contextlib.ExitStack() as opened:
            logs = (
                [
                    opened.enter_context(log(run.path, begin))
                    for log in (History, *([TensorBoard] * tensorboard))
                ]
                if main
                else []
            )
            followers = [*logs, watch] if watch and main else logs
            opened.enter_context(bar)
            with not_for_children() if workers else contextlib.nullcontext():
                batch = next(loaded)
            for step in bar:
                torch.manual_seed(_seed(profile.seed, step, accelerator.process_index))
                for group in optimizer.param_groups:
                    group["lr"] = profile.lr * (1 - step / steps) ** 0.9
                trained.train()
                optimizer.zero_grad()
                summed = 0.0
                for part, (_, mirrored) in enumerate(mine(step)):
                    with contextlib.nullcontext() if part == parts - 1 else accelerator.no_sync(trained):
                        terms = trained(_mirrored(batch, mirrored), step / steps)
                        accelerator.backward(sum(terms.values()) / parts)
                    batch = next(loaded, None)  # read and sent while a GPU still computes
                    summed = summed + torch.stack([term.detach().float() for term in terms.values()]) / parts
                accelerator.unscale_gradients(optimizer)
                norm = torch.nn.utils.get_total_norm(
                    [p.grad for p in plain.parameters() if p.grad is not None]
                )
                # The one time in a step that the computer waits for its GPU; all processes see the same numbers, and stop together.
                *values, norm, stopping = accelerator.reduce(
                    torch.cat(
                        [
                            summed,
                            torch.stack([norm.float(), torch.tensor(float(stop.number > 0), device=device)]),
                        ]
                    ),
                    "mean",
                ).tolist()
                record = {
                    "step": step,
                    "loss": sum(values),
                    **dict(zip(terms, values)),
                    "grad_norm": norm,
                    "lr": optimizer.param_groups[0]["lr"],
                    "seconds": round(spent + time.time() - start, 3),
                }
                finite = math.isfinite(sum(values)) and (
                    math.isfinite(norm) or accelerator.scaler is not None
                )  # fp16: the scaler leaves such steps out
                in_a_row = 0 if finite and math.isfinite(norm) else in_a_row + 1
                if finite:
                    optimizer.step()
                elif accelerator.scaler:
                    accelerator.scaler.update()  # or it refuses the next step
                if (not finite and on_nonfinite == "stop") or in_a_row == IN_A_ROW:
                    kept = save(step, last=True)
                    raise FloatingPointError(
                        _not_finite(
                            record,
                            [data.names[i] + " -> " + data.names[j] for i, j in sampler(step * directions)],
                            kept,
                            in_a_row,
                        )
                    )
                if not finite:
                    record["skipped"] = True

                done = step + 1
                if done % every == 0 or done == steps:
                    with accelerator.autocast():
                        record["validation"] = validate(
                            network, config, held_out, profile.validation_pairs, accelerator, share
                        )
                    stopping = (
                        stopping
                        or accelerator.reduce(torch.tensor(float(stop.number > 0), device=device)).item()
                    )  # that took a while
                    if best_weights is None or math.isnan(best) or record["validation"] > best:
                        best = record["validation"]
                        best_weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
                        run.keep(
                            lambda: checkpoints.save(run.weights, best_weights, config),
                            "the best weights so far",
                        )
                for follow in followers:
                    follow(record)
                bar.set_postfix(
                    {name: f"{value:.3f}" for name, value in zip(terms, values)}
                    | {f"best {metric}": f"{best:.4f}"},
                    refresh=False,
                )
                if done < steps and (stopping or time.time() - saved > 60 * save_minutes):
                    kept, saved = save(done, last=stopping > 0), time.time()
                    if stopping:
                        stop.ask(signal.SIGTERM)  # if another process was
                        break
        if stop.number and done < steps:
            run.say(
                f"{signal.Signals(stop.number).name} after step {done} of {steps}; the same command continues"
                + (f", its state is in {run.path}" if kept else " from the state before")
            )
        else:
            if main:
                seconds, records = spent + time.time() - start, read_history(run.path)
                checkpoints.save(run.weights, best_weights, config)
                run.end(
                    run_card(recipe, seconds, device, CODE)
                    | {
                        "execution": run.execution | {"peak_mb": round(peak_mb(device), 1)},
                        "validation": {
                            "score": best,
                            "pairs": len(held_out.spread(profile.validation_pairs)),
                            "metric": metric,
                        },
                        "parameters": sum(p.numel() for p in network.parameters()),
                        "pairs_seen": steps * directions * profile.batch,
                        "loss": {"first": _mean_loss(records[:20]), "last": _mean_loss(records[-20:])},
                    }
                )
            return _from_main(accelerator, run.finished() if main else None)
    raise KeyboardInterrupt  # who caught the signal lets the process go on


def validate(
    network, config: NetworkConfig, data: PairData, limit: int, accelerator: Accelerator, at_once: int = 1
) -> float:
    """Mean Dice (data with labels) or SSIM over ``limit`` evenly spread validation pairs, shared by the processes, on their devices."""
    model, scores = Model(config, network), []
    chosen = data.spread(limit)[accelerator.process_index :: accelerator.num_processes]
    for first in range(0, len(chosen), at_once):
        pair = {
            name: value.to(accelerator.device)
            for name, value in data.batch(chosen[first : first + at_once]).items()
        }
        u = model.register(pair["moving"], pair["fixed"]).displacement
        if data.classes:
            labels = [
                x.cpu()
                for x in (
                    fields.warp_labels(pair["moving_labels"], u),
                    pair["fixed_labels"],
                    pair["moving_labels"],
                )
            ]
            scores += [
                np.nanmean(metrics.dice(*(x[k : k + 1] for x in labels), list(data.label_names)))
                for k in range(len(u))
            ]
        else:
            warped = fields.warp(pair["moving"], u)
            scores += [
                -float(losses.ssim(warped[k : k + 1], pair["fixed"][k : k + 1])) for k in range(len(u))
            ]
    total, count = accelerator.reduce(
        torch.tensor([sum(scores), len(scores)], device=accelerator.device, dtype=torch.float32), "sum"
    ).tolist()
    return total / count


def _from_main(accelerator: Accelerator, value):
    """What the main process has, in all of them."""
    values = [value]
    accelerate.utils.broadcast_object_list(values)
    return values[0]


def _recipe(
    method: str, profile: Profile, config: NetworkConfig, data: PairData, steps: int, precision: str
) -> dict:
    """Everything that decides the weights, checked against the data."""
    if not data.classes and set(profile.losses.get(method, ())) & set(LABEL_TERMS):
        raise ValueError(
            f"losses: {profile.data} has no labels for {', '.join(sorted(set(profile.losses[method]) & set(LABEL_TERMS)))}"
        )
    if profile.flip and data.dim == 3:
        raise ValueError(
            "flip: mirrors 2D images only; in a mirrored brain left and right labels would have changed sides"
        )
    kept = {
        k: v
        for k, v in asdict(profile).items()
        if k not in (*EXECUTION, *OF_THE_NOTEBOOK, "epochs", "size", "time_steps", "integrator")
    }
    return (
        {"method": method}
        | kept
        | {
            "data": data.name,  # not the path of a folder, which may be moved: origin tells other data
            "steps": steps,
            "losses": profile.losses.get(method, {}),
            "constants": profile.constants.get(method, {}),
            "network": config.stored(),
            "origin": data.origin,
            "labels": bool(data.classes),
            "precision": precision,
        }
    )


def _mirrored(batch: dict, flags: list[bool]) -> dict:
    """A batch with some of its pairs mirrored along the last axis."""
    if not any(flags):
        return batch
    return {
        name: torch.stack([x.flip(-1) if flag else x for x, flag in zip(value, flags)])
        for name, value in batch.items()
    }


def _not_finite(record: dict, pairs: list[str], kept: bool, in_a_row: int) -> str:
    """One line for a step whose loss or gradient is not finite."""
    numbers = ", ".join(f"{k} {v:.3g}" for k, v in record.items() if k not in ("step", "lr", "seconds"))
    more = f" and {len(pairs) - 4} more" * (len(pairs) > 4)
    return (
        f"step {record['step']}: not finite ({numbers}; learning rate {record['lr']:.2g}) for {', '.join(pairs[:4])}{more}"
        + f", the last of {in_a_row} such steps in a row" * (in_a_row > 1)
        + f"; {'the state before it is saved' if kept else 'the state before it could not be saved'}. "
        "Look at these pairs; on_nonfinite 'skip' goes on without them, resume 'new' starts again, with a lower learning rate"
    )


def _refuse_two_planes(network: torch.nn.Module) -> None:
    """Stop where a processor's bfloat16 gradient would be wrong: for the weights of a 3D convolution of images with two voxels
    along the first axis it contains memory that nobody wrote (PyTorch 2.13 on a processor with AVX512-BF16 but without AMX)."""

    def check(module, inputs):
        if inputs[0].shape[2] == 2:
            raise ValueError(
                "precision: PyTorch's bf16 gradients on a processor are wrong where a coarse level of the network has 2 voxels "
                "along the first axis, as it has for these images; use fp32"
            )

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(check)


def _seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


def _mean_loss(records: list[dict]) -> float:
    return float(np.nanmean([r["loss"] for r in records]))  # without the steps that were skipped
