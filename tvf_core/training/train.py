"""Train a method on pairs of images: one flat loop, on whatever devices accelerate finds.

The recipe is that of the released code: Adam with AMSGrad; polynomial decay of the learning rate; both
directions of every pair, each in a step of its own, unless the method's loss holds both; the weights of the
best validation are kept. Several processes share a batch. Their step equals that of one process, except for
rounding and for the numbers that a network draws (stochastic depth, velocities, codes). Everything random in
a step follows from the seed, the step and the process, so a run that was stopped continues from its last
saved state with the same results.

What one run consists of and does is in :mod:`tvf_core.training.trainer`.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .. import released
from ..card import code_hash
from ..checks import one_of
from ..data import PairData, load, without_pairs
from ..losses.objectives import LABEL_TERMS
from ..methods import METHODS, NetworkConfig
from ..metrics.structural_similarity import window_axes
from ..model import Model, check_losses
from ..networks.swin import recompute_activations
from ..paths import runs
from . import memory, not_finite, validation
from .interrupts import Interrupts
from .precision import make_accelerator
from .profiles import EXECUTION, OF_THE_NOTEBOOK, Profile, applied, check_profile
from .run_folder import RunFolder
from .sampling import PairSampler
from .trainer import Trainer

CODE = code_hash(f"import {__name__}")


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
    resume : ``auto`` continues an unfinished run in that folder, and returns a finished one; a run with other
        settings is an error. ``beside`` does the same, but leaves a run with other settings as it is and uses
        a folder beside it (:meth:`~tvf_core.training.run_folder.RunFolder.beside`). ``new`` moves what is
        there into a folder with a number and starts afresh.
    on_nonfinite : what to do where a loss or a gradient is not finite. ``stop`` saves the state before that
        step and raises an error with step, pairs and values. ``skip`` goes on without the step, unless very
        many follow each other (:mod:`tvf_core.training.not_finite`), and without scores that are not finite.
    save_minutes : how often the state is saved. It is also saved when SIGTERM or SIGINT (Ctrl-C) ends the
        run.
    workers : processes that load batches ahead; default up to 4 beside a GPU, else 0. They do not change the
        result.
    tensorboard : write losses and scores for TensorBoard as well, into ``tensorboard`` in the run's folder.
    watch : called with the record of every step, as soon as it is there.
    progress : show progress bars.

    Returns
    -------
    The run card (configuration, best validation score, seconds, versions), with the records of all steps as
    ``history`` and the path of the ``weights``.

    Raises
    ------
    ValueError : an argument or a setting is wrong, or another process trains in the folder.
    FloatingPointError : a loss or a gradient is not finite, or a displacement in a validation.
    MemoryError : a step does not fit into the memory; the message says what to lower.
    """
    if not save_minutes >= 0:  # NaN fails too
        raise ValueError(f"save_minutes: expected 0 (after every step) or more, got {save_minutes}")
    options = {"on_nonfinite": on_nonfinite, "workers": workers, "tensorboard": tensorboard}
    trainer = _set_up(method, profile, out, resume, **options, watch=watch, progress=progress)
    run, steps = trainer.run, trainer.steps
    if resume != "new" and (card := _finished(trainer)):
        return _shown(card, trainer)

    def advice():
        return memory.advice(trainer.profile, trainer.share, trainer.recomputes)

    with run.locked(), Interrupts() as stop, memory.explained(advice):
        if resume == "new":
            trainer.put_aside()
        elif card := _finished(trainer):  # another process may have finished it before the lock was free
            return _shown(card, trainer)
        trainer.prepare()
        trainer.resume()
        with trainer.opened(stop) as bar:
            for step in bar:
                record, done = trainer.step(step), step + 1
                if trainer.validation_is_due(done):
                    score = trainer.validate(record)
                    record |= {} if score is None else {"validation": score}
                trainer.tell(record)
                if done < steps and (trainer.stopping or trainer.minutes_since_save() > save_minutes):
                    saved = trainer.save(done, last=trainer.stopping)
                    if trainer.stopping:
                        stop.ask(signal.SIGTERM)  # where only another process was asked to stop
                        break
        if done == steps:
            trainer.finish(CODE)
            return _finished(trainer)
        name = signal.Signals(stop.number).name
        how = f", its state is in {run.path}" if saved else " from the state before"
        run.say(f"{name} after step {done} of {steps}; the same command continues{how}")
    # The signal takes effect at the end of the block above. If the caller handles it and goes on, it must
    # still learn that there is no result.
    raise KeyboardInterrupt


def _set_up(method: str, profile: Profile, out: Path | None, resume: str, **options) -> Trainer:
    """Check all arguments, load the data and work out the recipe; nothing is written yet.

    ``options`` are those arguments of :func:`train` that the Trainer takes as they are.
    """
    profile = check_profile(profile)
    one_of(method, [name for name, m in METHODS.items() if m.build], "trainable method")
    one_of(resume, ("auto", "beside", "new"), "way to resume")
    one_of(options["on_nonfinite"], not_finite.ANSWERS, "answer to what is not finite")
    check_losses(method, profile.losses.get(method))
    if options["workers"] is not None and options["workers"] < 0:
        raise ValueError(f"workers: expected 0 or more, got {options['workers']}")
    if options["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is not here; install it with: pip install tensorboard")
    objective = METHODS[method].objective
    accelerator = make_accelerator(profile, objective.partly_used)
    data, held_out = _load(profile, accelerator, options["progress"])
    scored = validation.scorable(held_out, profile.validation_pairs)
    sampler = PairSampler(data, profile.batch, profile.seed, profile.epoch_of, profile.flip)
    steps = -(-(profile.steps or sampler.steps(profile.epochs)) // objective.directions)
    check_recipe(method, profile, data)
    profile, config, left = applied(profile, method, data.dim)
    recipe = _recipe(method, profile, config, data, steps, accelerator.mixed_precision)
    folder = Path(out) if out else runs() / data.name / method
    run = RunFolder(folder, recipe, accelerator.is_main_process)
    if resume == "beside":
        place = [run.beside().path if run.writes else None]
        broadcast_object_list(place)  # the processes must not look at different times
        run = RunFolder(place[0], recipe, run.writes)
        if run.path != folder and options["progress"]:
            run.say(f"{folder} holds a run with other settings; this one lies in {run.path}")
    if left:
        values = ", ".join(f"{key} {value}" for key, value in left.items())
        run.say(f"{method}: these values of the profile have no effect on it: {values}")
    if count := len(held_out.spread(profile.validation_pairs)) - len(scored):
        run.say(f"{count} validation pairs have no label in common; the other {len(scored)} are scored")
    return Trainer(
        method, profile, config, data, held_out, scored, sampler, steps, run, accelerator, **options
    )


def check_recipe(method: str, profile: Profile, data: PairData) -> None:
    """ValueError where a profile asks for what a method cannot do when it is trained on these data."""
    terms = profile.losses.get(method, {})
    if not data.label_numbers and (unusable := sorted(set(terms) & set(LABEL_TERMS))):
        raise ValueError(f"losses: {profile.data} has no labels for {', '.join(unusable)}")
    if "ssim" in terms:
        window_axes(data.shape)
    if "lddmm_released" in terms:  # of the velocities, which lie on the half grid
        released.has_inner_voxels([-(-size // 2) for size in data.shape])
    if profile.flip and data.dim == 3:
        raise ValueError(
            "flip: mirrors 2D images only; in a mirrored brain left and right labels would have changed sides"
        )
    if profile.recompute:  # a small network has the parts of a large one
        small, _ = NetworkConfig.fitting(method, data.dim, size="tiny")
        if not recompute_activations(Model(small).network):
            raise ValueError(f"recompute: {method} has no part that can compute its activations again")


def _load(profile: Profile, accelerator: Accelerator, progress: bool) -> list[PairData]:
    """The splits for training and for validation."""
    with accelerator.main_process_first():  # one process generates the embedded data, the others find it
        splits = [
            load(profile.data, split, profile.image_size or None, progress) for split in ("train", "val")
        ]
    if profile.more_pairs:
        splits[0] = _with_more_pairs(splits[0], profile)
    for part in splits:
        if not len(part):
            raise ValueError(
                f"{without_pairs(profile.data, part.split)}; a training learns from those of train and "
                "chooses the best weights by those of val"
            )
    return splits


def _with_more_pairs(data: PairData, profile: Profile) -> PairData:
    """The training split with the pairs of the data set that ``more_pairs`` names.

    ValueError where that one does not lie in the same folder or has no other pairs.
    """
    more = load(profile.more_pairs, "train", profile.image_size or None)
    # A folder has one fingerprint for all its lists, so the origin in the recipe stands for these pairs too.
    if more.fingerprint() != data.fingerprint() or more.names != data.names:
        raise ValueError(
            f"more_pairs: {profile.more_pairs} is no further list of pairs in the folder of {profile.data}, "
            "as london_people is of london"
        )
    if set(more.pairs) <= set(data.pairs):
        raise ValueError(f"more_pairs: {profile.more_pairs} has no pairs that {profile.data} does not have")
    # Not every image has landmarks, and no training needs them.
    return replace(data, pairs=[*data.pairs, *more.pairs], landmarks=None, landmark_scale=())


def _finished(trainer: Trainer) -> dict | None:
    """The card of a finished run, or None. The main process reads it, all processes get it."""
    card = [trainer.run.finished() if trainer.main else None]
    broadcast_object_list(card)
    return card[0]


def _shown(card: dict, trainer: Trainer) -> dict:
    """The card of a run that is finished already; ``watch`` gets its records."""
    for record in card["history"] if trainer.watch and trainer.main else ():
        trainer.watch(record)
    return card


def _recipe(
    method: str, profile: Profile, config: NetworkConfig, data: PairData, steps: int, precision: str
) -> dict:
    """Everything that decides the weights."""
    kept = {
        k: v
        for k, v in asdict(profile).items()
        if k not in (*EXECUTION, *OF_THE_NOTEBOOK, "epochs", "size", "time_steps", "integrator")
        and (k, v) != ("more_pairs", "")  # so that a run that began before this setting was there goes on
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
            "labels": bool(data.label_numbers),
            "precision": precision,
        }
    )
