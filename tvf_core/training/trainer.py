"""One training run: the things it consists of, and the things it does, one method each."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .. import checkpoints
from ..card import peak_mb, reset_peak, run_card
from ..data import PairData, batches
from ..data.loading import default_workers
from ..methods import METHODS, NetworkConfig
from ..model import Model, objective
from ..networks.swin import recompute_activations
from . import memory, validation
from .history import History, TensorBoard, mean_loss, read_history
from .interrupts import Interrupts, not_for_children
from .not_finite import NotFiniteSteps, at_validation
from .precision import refuse_two_planes
from .profiles import Profile
from .run_folder import RunFolder
from .sampling import PairSampler, mirrored, step_seed


@dataclass
class Trainer:
    """A training run: :func:`tvf_core.training.train.train` calls these methods in the order in which they
    stand.

    Parameters
    ----------
    method, profile, config : what is trained, how, and the network.
    data, held_out : the splits for training and for validation.
    scored : numbers of the pairs of ``held_out`` by which the best weights are chosen.
    sampler : gives the pairs of every step.
    steps : of the whole training.
    run : the folder of the run.
    accelerator : the devices and processes.
    on_nonfinite, workers, tensorboard, watch, progress : as for :func:`tvf_core.training.train.train`.
    """

    method: str
    profile: Profile
    config: NetworkConfig
    data: PairData
    held_out: PairData
    scored: list[int]
    sampler: PairSampler
    steps: int
    run: RunFolder
    accelerator: Accelerator
    on_nonfinite: str = "stop"
    workers: int | None = None
    tensorboard: bool = False
    watch: Callable[[dict], None] | None = None
    progress: bool = True

    def __post_init__(self):
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.directions = METHODS[self.method].objective.directions
        self.metric = "dice" if self.held_out.label_numbers else "ssim"
        self.recomputes = False  # not known before the network is made
        # A saved state holds these four beside the objective and the optimiser.
        self.begin, self.best, self.best_weights, self.spent = 0, -math.inf, None, 0.0

    @property
    def share(self) -> int:
        """Pairs that go through the network of one process at once."""
        return self.profile.batch // self.accelerator.num_processes // self.profile.accumulate

    def put_aside(self) -> None:
        """Move an earlier run out of the folder."""
        if place := self.run.put_aside():
            self.run.say(f"the run that was in {self.run.path} is now in {place}")
        self.accelerator.wait_for_everyone()  # before another process looks for a state

    def prepare(self) -> None:
        """Make the network, its objective and the optimiser."""
        profile, accelerator = self.profile, self.accelerator
        torch.manual_seed(profile.seed)
        self.network = Model(self.config).network
        self.recomputes = recompute_activations(self.network, profile.recompute)
        losses, constants = profile.losses.get(self.method), profile.constants.get(self.method)
        self.objective = objective(self.config, self.network, self.data.label_numbers, losses, constants)
        if accelerator.mixed_precision == "bf16" and self.device.type == "cpu":
            refuse_two_planes(self.objective)
        if profile.auto_fit:  # before accelerate wraps the objective: the wrapper counts backward passes
            module, end = self.objective.to(self.device), (self.steps - 1) / self.steps
            self.profile = memory.fit(profile, self.recomputes, module, self.data, accelerator, end)
            self.run.say(f"auto_fit: {memory.about(self.profile)}")
        # The objective may hold more parameters than the network.
        optimizer = torch.optim.Adam(self.objective.parameters(), lr=profile.lr, amsgrad=True)
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.not_finite = NotFiniteSteps(self.on_nonfinite, scaled=accelerator.scaler is not None)

    def resume(self) -> None:
        """Take up the newest saved state, if there is one, and show ``watch`` the records so far."""
        if state := self.run.load():
            self.objective.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.begin, self.best, self.best_weights, self.spent = (
                state[key] for key in ("step", "best", "best_weights", "seconds")
            )
            for record in read_history(self.run.path, self.begin) if self.watch and self.main else ():
                self.watch(record)
        begins = self.accelerator.gather(torch.tensor([self.begin], device=self.device))
        if len(set(begins.tolist())) > 1:
            raise ValueError(
                f"{self.run.path}: the processes found different states in it; "
                "it must be a folder that all machines share"
            )

    @contextlib.contextmanager
    def opened(self, stop: Interrupts) -> Iterator[tqdm]:
        """Open what the steps need: loaded batches, the log and the progress bar, which counts the steps.

        ``stop`` tells whether this process was asked to stop.
        """
        execution = {"processes": self.accelerator.num_processes, "accumulate": self.profile.accumulate}
        execution |= {"recompute": self.profile.recompute, "device": str(self.device)}
        self.run.begin(execution)
        workers = self._default_workers() if self.workers is None else self.workers
        pairs = (pairs for step in range(self.begin, self.steps) for pairs, _ in self._parts(step))
        self.batches = batches(self.data, pairs, self.device, workers)
        self.bar = tqdm(
            range(self.begin, self.steps),
            initial=self.begin,
            total=self.steps,
            desc=f"{self.method} on {self.data.name}",
            unit="step",
            disable=not (self.progress and self.main),
            mininterval=1.0,
        )
        self.stop, self.stopping = stop, False
        reset_peak(self.device)
        self.start = self.saved = time.time()
        with contextlib.closing(self.batches), contextlib.ExitStack() as opened:
            logs = (History, TensorBoard) if self.tensorboard else (History,)
            self.logs = [opened.enter_context(log(self.run.path, self.begin)) for log in logs if self.main]
            self.followers = [*self.logs, self.watch] if self.watch and self.main else self.logs
            opened.enter_context(self.bar)
            with not_for_children() if workers else contextlib.nullcontext():
                self.batch = next(self.batches)
            yield self.bar

    def step(self, number: int) -> dict:
        """Learn from the pairs of a step, give its record; FloatingPointError where the training must end."""
        accelerator, optimizer = self.accelerator, self.optimizer
        torch.manual_seed(step_seed(self.profile.seed, number, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = self.profile.lr * (1 - number / self.steps) ** 0.9
        self.wrapped.train()
        optimizer.zero_grad()
        terms = self._gradients(number)
        accelerator.unscale_gradients(optimizer)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.objective.parameters() if p.grad is not None]
        )
        record = self._record(number, terms, norm)
        accepted = self.not_finite.accepts(record)
        if accepted:
            optimizer.step()
        elif accelerator.scaler:
            accelerator.scaler.update()  # without this it refuses the next step
        if self.not_finite.must_stop(accepted):
            saved = self.save(number, last=True)
            names = self.data.names
            pairs = [f"{names[i]} -> {names[j]}" for i, j in self.sampler(number * self.directions)]
            raise FloatingPointError(self.not_finite.message(record, pairs, saved))
        return record if accepted else record | {"skipped": True}

    def validation_is_due(self, done: int) -> bool:
        """Whether the weights are scored after so many steps."""
        return done % max(1, self.steps // self.profile.validations) == 0 or done == self.steps

    def validate(self, record: dict) -> float | None:
        """The validation score of the weights after a step, whose record is given; the best weights are kept.

        Where a displacement is not finite, there is no score. FloatingPointError where the training must end
        then: it does not, if there are weights with a score and either it is to skip what is not finite, or
        this was its last step.
        """
        try:
            with self.accelerator.autocast():
                score = validation.validate(
                    self.network, self.config, self.held_out, self.scored, self.accelerator, self.share
                )
        except validation.NotFinitePairs as error:
            done = record["step"] + 1
            if self.best_weights is not None and (self.on_nonfinite == "skip" or done == self.steps):
                what = "it has no score, and the best weights before it are kept"
                self.run.say(at_validation(record["step"], error.pairs, what))
                return None
            self.tell(record)  # the state must not be ahead of the history
            # After the last step nothing is left to do: its state would count as that of a finished run.
            saved = done < self.steps and self.save(done, last=True)
            state = "the state after it is saved" if saved else "the last state that was saved is as it was"
            remedy = "Look at these pairs; --resume new starts again, with a lower learning rate"
            raise FloatingPointError(
                at_validation(record["step"], error.pairs, f"{state}. {remedy}")
            ) from None
        # A validation takes long enough for a signal to arrive.
        self.stopping = self.stopping or self.accelerator.reduce(self._interrupted()).item() > 0
        # The best score is NaN in states of an earlier version, which took pairs without a score.
        if self.best_weights is None or math.isnan(self.best) or score > self.best:
            self.best = score
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
            self.run.keep(self._write_weights, "the best weights so far")
        return score

    def tell(self, record: dict) -> None:
        """Write a record into the log, pass it to ``watch`` and show its loss terms on the progress bar."""
        for follow in self.followers:
            follow(record)
        terms = {name: f"{record[name]:.3f}" for name in self.terms}
        self.bar.set_postfix(terms | {f"best {self.metric}": f"{self.best:.4f}"}, refresh=False)

    def minutes_since_save(self) -> float:
        """Minutes since the state was saved last, or since the steps began."""
        return (time.time() - self.saved) / 60

    def save(self, done: int, last: bool = False) -> bool:
        """Save the state after so many steps; give whether that worked. ``last``: the processes then end."""
        for log in self.logs[:1]:
            log.sync()  # the state must not be ahead of the history
        scaler = self.accelerator.scaler
        saved = self.run.save(
            done,
            {
                "trained": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_weights": self.best_weights,
                "scaler": scaler.state_dict() if scaler else {},
                "seconds": self._seconds(),
            },
        )
        self.saved = time.time()
        if last:  # a launcher ends all processes when the first one ends
            self.accelerator.wait_for_everyone()
        return saved

    def finish(self, code: str) -> None:
        """Write the best weights and the run card. ``code`` is the hash of the code that trained."""
        if not self.main:
            return
        seconds, records = self._seconds(), read_history(self.run.path)
        self._write_weights()
        card = run_card(self.run.recipe, seconds, self.device, code)
        card |= {
            "execution": self.run.execution | {"peak_mb": round(peak_mb(self.device), 1)},
            "validation": {"score": self.best, "pairs": len(self.scored), "metric": self.metric},
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "pairs_seen": self.steps * self.directions * self.profile.batch,
            "loss": {"first": mean_loss(records[:20]), "last": mean_loss(records[-20:])},
        }
        self.run.end(card)

    def _default_workers(self) -> int:
        """How many processes load batches for this one; each training process on this machine has its own."""
        together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = default_workers(self.device, together * self.share * self.data.pair_bytes)
        return min(workers, max(1, (os.cpu_count() or 1) // together))

    def _parts(self, step: int) -> list[tuple[list[tuple[int, int]], list[bool]]]:
        """For each part of a step: this process's pairs, and which of them are mirrored."""
        process, parts = self.accelerator.process_index, self.profile.accumulate
        return self.sampler.parts(step * self.directions, process, parts, self.share)

    def _gradients(self, step: int) -> dict[str, torch.Tensor]:
        """Compute the gradients of a step part after part; give each loss term as its mean over the parts."""
        parts, summed = self._parts(step), 0.0
        for k, (_, flips) in enumerate(parts, 1):
            together = contextlib.nullcontext() if k == len(parts) else self.accelerator.no_sync(self.wrapped)
            with together:  # processes exchange their gradients once a step, in its last part
                terms = self.wrapped(mirrored(self.batch, flips), step / self.steps)
                self.accelerator.backward(sum(terms.values()) / len(parts))
            self.batch = next(self.batches, None)  # read and sent while a GPU still computes
            summed = summed + torch.stack([term.detach().float() for term in terms.values()]) / len(parts)
        return dict(zip(terms, summed.unbind()))

    def _record(self, step: int, terms: dict[str, torch.Tensor], norm: torch.Tensor) -> dict:
        """The numbers of a step, as means over the processes, and whether any of these was asked to stop."""
        # Here, once a step, the computer waits for its GPU. All processes get the same numbers and act alike.
        local = torch.stack([*terms.values(), norm.float(), self._interrupted()])
        *values, norm, stopping = self.accelerator.reduce(local, "mean").tolist()
        self.terms, self.stopping = list(terms), stopping > 0
        return {
            "step": step,
            "loss": sum(values),
            **dict(zip(terms, values)),
            "grad_norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(self._seconds(), 3),
        }

    def _interrupted(self) -> torch.Tensor:
        """1 where this process was asked to stop, else 0."""
        return torch.tensor(float(self.stop.number > 0), device=self.device)

    def _write_weights(self) -> None:
        checkpoints.save(self.run.weights, self.best_weights, self.config)

    def _seconds(self) -> float:
        """Time that the training has taken, with the time before it was stopped."""
        return self.spent + time.time() - self.start
