"""Train a method on pairs of images: one flat loop, on whatever devices accelerate finds.

The recipe of the released code: Adam with AMSGrad, polynomial decay of the learning rate, both
directions of every pair (one after the other, each its own step, unless the method's loss holds both), the weights
of the best validation kept. With several processes each draws its own ``batch`` pairs. Everything random at a step follows
from (seed, step, process), so a run that was stopped continues from its last saved state as if
nothing had happened.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from tqdm import tqdm

from . import checkpoints
from .card import code_hash, run_card
from .checks import one_of
from .data import PairData, batches, load
from .evaluate import score
from .methods import METHODS, NetworkConfig
from .model import Model, check_losses, objective
from .objectives import LABEL_TERMS
from .paths import runs, write_json, write_then_rename
from .profiles import Profile
from .swin import recompute_activations

CODE = code_hash(f"import {__name__}")


def train(method: str, profile: Profile, *, steps: int | None = None, seed: int = 0, time_steps: int = 8,
          integrator: str = "", validations: int = 8, validation_pairs: int = 12, save_minutes: float = 2.0,
          losses: dict[str, float] | None = None, precision: str = "", recompute: bool = False, workers: int | None = None,
          out: Path | None = None, progress: bool = True) -> dict:
    """Train one method and write its weights, history and run card.

    Parameters
    ----------
    method : a trainable name of ``methods.METHODS``.
    profile : data set, network size, steps, batch, learning rate.
    steps : optimiser steps of methods that see a pair in one direction per step; default the profile's. CycleMorph
        sees both and takes half as many, so that every method sees the same number of ordered pairs.
    seed : of the initial weights, the order of pairs and stochastic depth.
    time_steps, integrator : N and the solver of the TVF methods; default the method's.
    validations, validation_pairs : how often, and on how many pairs, the weights are scored (Dice
        where there are labels, else SSIM); the best are kept.
    save_minutes : how often the resumable state is saved.
    losses : term -> weight instead of the method's own, for methods with standard terms
        (:func:`tvf_core.objectives.standard_terms`).
    precision : ``fp32``, ``bf16`` or ``fp16`` of the network's arithmetic; default what ``accelerate`` is set to, else
        fp32. Fields, losses and weights stay float32. Validation uses the same arithmetic, ``evaluate`` fp32.
    recompute : keep fewer activations for the backward pass (:func:`tvf_core.swin.recompute_activations`); for networks
        with a transformer or a time-varying head.
    workers : processes that load batches ahead; default up to 4 beside a GPU, else 0. The result does not depend on them.
    out : folder for ``weights.safetensors``, ``weights.json`` (the card), ``history.jsonl`` and
        ``state.pt``; default ``runs/<data>/<method>``. An unfinished run found there is continued, a
        finished one returned; one with other settings is an error.

    Returns
    -------
    The run card: configuration, best validation score, seconds, versions.
    """
    if precision:
        one_of(precision, ("fp32", "bf16", "fp16"), "precision")
    one_of(method, [name for name, m in METHODS.items() if m.build], "trainable method")
    check_losses(method, losses)
    steps = profile.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    directions = METHODS[method].objective.directions
    steps = -(-steps // directions)
    out = Path(out) if out else runs() / profile.data / method
    AcceleratorState._reset_state()  # else the precision of an earlier training in this process would stay
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "": None}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=METHODS[method].objective.partly_used)])
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision: fp16 needs a GPU; a processor knows fp32 and bf16")
    with accelerator.main_process_first():  # one process generates the embedded data, the others find it
        splits = {name: load(profile.data, name, profile.image_size or None, progress) for name in ("train", "val")}
    if not splits["train"].classes and set(losses or ()) & set(LABEL_TERMS):
        raise ValueError(f"losses: {profile.data} has no labels for {', '.join(sorted(set(losses) & set(LABEL_TERMS)))}")
    config = NetworkConfig(method, splits["train"].dim, profile.size, time_steps, integrator)
    training = {k: v for k, v in asdict(profile).items() if k not in ("live_steps", "test_pairs", "split", "methods", "weights")}
    recipe = {"method": method, **training, "steps": steps, "seed": seed, "network": asdict(config),
              **({"losses": losses} if losses else {}), **({"origin": splits["train"].origin} if splits["train"].origin else {}), "processes": accelerator.num_processes, "precision": accelerator.mixed_precision}
    if (out / "weights.json").exists():
        card = json.loads((out / "weights.json").read_text())
        _same_settings(card["settings"], recipe, out)
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        return card | {"history": history, "weights": out / "weights.safetensors"}

    torch.manual_seed(seed)
    network = Model(config).network
    if not recompute_activations(network, recompute) and recompute:
        raise ValueError(f"recompute: {method} has no part that can compute its activations again")
    plain = objective(config, network, splits["train"].classes, losses)  # may hold more than the network: all of it is trained
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu":
        _refuse_two_planes(plain)
    optimizer = torch.optim.Adam(plain.parameters(), lr=profile.lr, amsgrad=True)
    trained, optimizer = accelerator.prepare(plain, optimizer)

    begin, best, spent, history = 0, -np.inf, 0.0, []
    state_file = out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        _same_settings(json.loads(state["recipe"]), recipe, out)
        plain.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        begin, best, spent, history = state["step"], state["best"], state["seconds"], json.loads(state["history"])
        best_weights = state["best_weights"]
    else:
        best_weights = None

    def save_state(step):
        content = {"recipe": json.dumps(recipe), "trained": plain.state_dict(), "optimizer": optimizer.state_dict(),
                   "step": step, "best": best, "best_weights": best_weights, "seconds": spent + time.time() - start,
                   "history": json.dumps(history), "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
        with write_then_rename(state_file) as temporary:
            torch.save(content, temporary)

    start = saved = time.time()
    bar = tqdm(range(begin, steps), initial=begin, total=steps, desc=f"{method} on {profile.data}",
               disable=not (progress and accelerator.is_main_process), mininterval=1.0)
    # What a step sees follows from its number alone, so that batches can be loaded ahead and a run continued.
    drawn = lambda step: draw_pairs(splits["train"], step * directions, profile.batch, seed, accelerator.process_index)  # noqa: E731
    loaded = batches(splits["train"], map(drawn, range(begin, steps)), accelerator.device, workers)
    for step in bar:
        torch.manual_seed(_seed(seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = profile.lr * (1 - step / steps) ** 0.9
        batch = next(loaded)

        trained.train()
        terms = trained(batch, step / steps)
        loss = sum(terms.values())
        if not torch.isfinite(loss):
            parts = ", ".join(f"{k} {v.item():.3g}" for k, v in terms.items())
            raise FloatingPointError(f"step {step}: loss is not finite ({parts}) for pairs {drawn(step)}; lower the learning rate")
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

        record = {"step": step, "loss": loss.item(), **{k: v.item() for k, v in terms.items()}}
        done = step + 1
        if done % max(1, steps // validations) == 0 or done == steps:
            with accelerator.autocast():
                record["validation"] = validate(network, config, splits["val"], validation_pairs, accelerator.device)
            if best_weights is None or not best >= record["validation"]:  # also if the first score was NaN
                best = record["validation"]
                best_weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        history.append(record)
        bar.set_postfix(loss=f"{record['loss']:.4f}", best=f"{best:.4f}", refresh=False)
        if accelerator.is_main_process and time.time() - saved > 60 * save_minutes and done < steps:
            save_state(done)
            saved = time.time()

    seconds = spent + time.time() - start
    card = run_card(recipe, seconds, accelerator.device, CODE) | {
        "validation": {"score": best, "pairs": min(validation_pairs, len(splits["val"])),
                       "metric": "dice" if splits["val"].classes else "ssim"},
        "parameters": sum(p.numel() for p in network.parameters()),
        "pairs_seen": steps * directions * profile.batch * accelerator.num_processes,
        "loss": {"first": _mean_loss(history[:20]), "last": _mean_loss(history[-20:])},
    }
    if accelerator.is_main_process:
        checkpoints.save(out / "weights.safetensors", best_weights, config)
        with write_then_rename(out / "history.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in history))
        write_json(out / "weights.json", card)
        state_file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return card | {"history": history, "weights": out / "weights.safetensors"}


def draw_pairs(data: PairData, step: int, batch: int, seed: int, process: int = 0) -> list[tuple[int, int]]:
    """Pairs of one step: random ones at even steps, the same ones with roles exchanged at the next step."""
    rng = np.random.default_rng([seed, step // 2, process])
    pairs = [data.pairs[k] for k in rng.integers(len(data.pairs), size=batch)]
    return [(f, m) for m, f in pairs] if step % 2 else pairs


def validate(network, config: NetworkConfig, data: PairData, limit: int, device) -> float:
    """Mean Dice (data with labels) or SSIM over ``limit`` evenly spread validation pairs."""
    model = Model(config, network)
    metric = "dice" if data.classes else "ssim"
    return float(np.mean([score(model, data, k, device, [metric])[metric] for k in data.spread(limit)]))


def _refuse_two_planes(network: torch.nn.Module) -> None:
    """Stop where a processor's bfloat16 gradient would be wrong: for the weights of a 3D convolution of images with two voxels
    along the first axis it contains memory that nobody wrote (PyTorch 2.13 on a processor with AVX512-BF16 but without AMX)."""

    def check(module, inputs):
        if inputs[0].shape[2] == 2:
            raise ValueError("precision: PyTorch's bf16 gradients on a processor are wrong where a coarse level of the network has 2 voxels "
                             "along the first axis, as it has for these images; use fp32")

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(check)


def _same_settings(found: dict, wanted: dict, out: Path) -> None:
    different = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if different:
        raise ValueError(f"{out} holds a run with other settings ({', '.join(different)}); choose another out folder or delete it")


def _seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


def _mean_loss(records: list[dict]) -> float:
    return float(np.mean([r["loss"] for r in records]))
