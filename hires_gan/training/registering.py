"""The models of a run in MLflow: the last one, and the best."""

from __future__ import annotations

from hires_gan import checkpoint
from hires_gan.evaluation.catalogue import METRICS
from hires_gan.progress import say
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.names import EVALUATION
from hires_gan.tracking.tracker import Tracker
from hires_gan.training.judging import Diverged
from hires_gan.training.trainer import Trainer

TRACKING_WAIT = 60.0
"""Seconds for which a run waits at its end for what the store lacks."""
SHORT_WAIT = 5.0
"""Where it ends before it is finished."""


def log_model(trainer: Trainer, tracker: Tracker) -> None:
    """Log the averaged generator, which is in the last checkpoint, as a model of the MLflow run.

    With `tracking.register_as` the best one as well, if it is another, before it: the newest version is the last one.
    """
    root, register_as = trainer.folder.checkpoints, trainer.plan.tracking.register_as
    last, best = checkpoint.latest(root), trainer.progress.best
    if last is None:
        return
    if register_as and best is not None and best.nimg != last.nimg and (root / best.checkpoint).is_dir():
        tracker.log_model(root / best.checkpoint, model_card(trainer, checkpoint.read(root / best.checkpoint)))
    tracker.log_model(last.folder, model_card(trainer, last))


def register_best(trainer: Trainer, tracker: Tracker, error: BaseException) -> float:
    """Log the best model of a run that has diverged, where it is to be registered; whatever goes wrong is said.

    Returns:
        How many seconds to wait for tracking.
    """
    best, name = trainer.progress.best, trainer.plan.tracking.register_as
    if not isinstance(error, Diverged) or best is None or name is None:
        return SHORT_WAIT
    try:
        saved = checkpoint.read(trainer.folder.checkpoints / best.checkpoint)
        tracker.log_model(saved.folder, model_card(trainer, saved))
    except Exception as problem:  # the run ends with what went wrong first
        say(f"the best model, of {best.nimg / 1000:.1f} kimg, is not registered as {name}: {problem}")
        return SHORT_WAIT
    say(f"the best model, of {best.nimg / 1000:.1f} kimg, is logged before the run ends, to be registered as {name}")
    # A launcher has ended the other processes by now, and ends this one as soon as its own patience is over.
    return TRACKING_WAIT if trainer.world.alone else min(TRACKING_WAIT, trainer.plan.backend.grace)


def model_card(trainer: Trainer, saved: checkpoint.Checkpoint) -> ModelCard:
    """What MLflow shows of a checkpoint of this run."""
    recipe, best = trainer.plan.recipe, trainer.progress.best
    return ModelCard(
        recipe.name,
        saved.state["inference"]["resolution"],
        checkpoint.FORMAT_VERSION,
        saved.nimg,
        register_as=trainer.plan.tracking.register_as,
        translates=recipe.translates,
        is_best=best is not None and best.nimg == saved.nimg,
        watched="" if best is None else f"{EVALUATION}{best.metric}",
        value=best.value if best is not None and best.nimg == saved.nimg else None,
        higher_is_better=best is not None and METRICS[best.metric].better == "higher",
        compared="" if best is None else best.measure,
        config=str(trainer.folder.config),
    )
