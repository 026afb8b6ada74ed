"""What becomes of an evaluation: it is recorded, the best so far is kept, and a run that diverges is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from hires_gan import checkpoint
from hires_gan.errors import Failure
from hires_gan.evaluation.alike import differences, protocol_of
from hires_gan.evaluation.catalogue import METRICS, is_better
from hires_gan.evaluation.protocol import Record
from hires_gan.evaluation.results import Result
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.progress import say
from hires_gan.tracking.protocols import fingerprint


class Diverged(Failure):
    """A run that ends since its evaluations were much worse than its best one, or no number, for too long."""


@dataclass(frozen=True)
class Best:
    """The best value of a metric so far.

    Attributes:
        metric: What was measured.
        count: On how many images.
        value: The value.
        nimg: When.
        records: How it was taken; none by a version that did not keep them.
    """

    metric: str
    count: int
    value: float
    nimg: int
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that was written behind the evaluation."""
        return checkpoint.directory_name(self.nimg)

    @property
    def readable(self) -> bool:
        """Whether this version knows how it was taken."""
        try:
            self._taken()
        except ValidationError:
            return False
        return True

    def _taken(self) -> list[Record]:
        return [Record.model_validate(record) for record in self.records]

    @property
    def measure(self) -> str:
        """Equal for two values that may be compared: 12 hexadecimal digits; empty where no records were kept."""
        return fingerprint(protocol_of(self._taken()))[:12] if self.records else ""

    def compares(self, now: tuple[Record, ...]) -> bool:
        """Whether what is measured now is the same number; where it is not, that is said."""
        if not self.records:
            return True
        for before, record in zip(self._taken(), now, strict=False):
            changed = differences(before, record)
            if changed:
                key, (old, new) = next(iter(changed.items()))
                say(f"the best {self.metric} was measured with {key} {old}, which is now {new}: it is looked for anew")
                return False
        return True


@dataclass
class Progress:
    """Where a run stands: with the weights and the optimizers, all that a resume needs.

    Attributes:
        nimg: Images shown.
        best: The best evaluation so far.
        diverged: How many evaluations in a row, up to the last one, were much worse than the best, or no finite number.
    """

    nimg: int = 0
    best: Best | None = None
    diverged: int = 0


def known_best(state: Mapping[str, Any] | None, settings: EvaluationSettings, count: int) -> Best | None:
    """The best value of a checkpoint, unless the configuration now measures something else.

    Args:
        state: What the checkpoint says of it.
        settings: The `evaluation` block.
        count: On how many images the metric of `best` is measured now.
    """
    if state is None:
        return None
    before, reason = Best(**state), ""
    if before.metric != settings.best:
        reason = f"evaluation.best was {before.metric}, and is now {settings.best}"
    elif before.count != count:
        reason = f"the best {before.metric} was measured on {before.count:,} images, and is now on {count:,}"
    elif not before.readable:
        reason = f"how the best {before.metric} was measured cannot be read, another version has written it"
    if reason:
        say(f"{reason}: the best is looked for anew")
    return None if reason else before


def judge(progress: Progress, settings: EvaluationSettings, result: Result, count: int, where: str) -> str:
    """Compare an evaluation with the best so far, and say what it is.

    Args:
        progress: Takes the best one, and how often it was missed by far.
        settings: The `evaluation` block.
        result: What was measured just now.
        count: On how many images the metric of `best` was.
        where: The folder of checkpoints, for people.

    Returns:
        "best" if it is that so far, else "measured".

    Raises:
        Diverged: If the run has diverged for so long that it is to end.
    """
    watched = settings.best
    if watched is None:
        return "measured"
    if watched in result.not_finite:  # why is said where it was measured
        if progress.nimg:  # an untrained network has not diverged
            _count_divergence(progress, settings, f"{watched} is no finite number", where)
        return "measured"
    value, records = result.values[watched], result.records_of(watched)
    noise = max((record.deviation or 0.0 for record in records), default=0.0)
    if progress.best is not None and not progress.best.compares(records):
        progress.best, progress.diverged = None, 0
    before = progress.best
    if before is None:
        progress.diverged = 0
    else:
        _watch_divergence(progress, before, settings, value, noise, where)
    if not progress.nimg or (before is not None and not is_better(watched, value, before.value)):
        return "measured"
    described = [record.model_dump(mode="json") for record in records]
    progress.best = Best(watched, count, value, progress.nimg, described)
    _say_if_blind(before, progress.best, noise)
    return "best"


def _watch_divergence(
    progress: Progress, best: Best, settings: EvaluationSettings, value: float, noise: float, where: str
) -> None:
    """Count evaluations that are much worse than the best, and say so.

    Raises:
        Diverged: If there were too many in a row.
    """
    if not much_worse(best.metric, value, best.value, settings.diverged, noise):
        progress.diverged = 0
        return
    than = f"the best, {best.value:.4g} at {best.nimg / 1000:.1f} kimg"
    if METRICS[best.metric].better == "lower" and noise > best.value:
        than = f"the deviation of one measurement, {noise:.2g}, and {than}"
    so_bad = f"{best.metric} is {value:.4g}, more than {settings.diverged:g} times worse than {than}"
    _count_divergence(progress, settings, so_bad, where)


def _count_divergence(progress: Progress, settings: EvaluationSettings, so_bad: str, where: str) -> None:
    """Count an evaluation that speaks of divergence, and say what it was.

    Raises:
        Diverged: If there were too many in a row.
    """
    progress.diverged += 1
    if settings.stop_diverged is None or progress.diverged < settings.stop_diverged:
        say(f"warning: {so_bad}: the run may have diverged")
        return
    times = "" if progress.diverged == 1 else f", {progress.diverged} times in a row"
    raise Diverged(
        f"{so_bad}{times}: the run has diverged (evaluation.stop_diverged is {settings.stop_diverged}); "
        f"{_way_out(progress.best, where)}"
    )


def _way_out(best: Best | None, where: str) -> str:
    if best is None:
        return "it has no best checkpoint: start a new run under another run.name with lower learning rates"
    return (
        f"the best checkpoint is {where}/{best.checkpoint}: start a new run under another run.name with run.init_from "
        "set to it and lower learning rates"
    )


def much_worse(metric: str, value: float, best: float, factor: float, noise: float = 0.0) -> bool:
    """Whether a value is so many times worse than another, and by more than the noise of a measurement.

    Args:
        metric: What was measured.
        value: What it is.
        best: The better value. KID of a good model can be 0 or below; then the value is set against the noise.
        factor: How many times.
        noise: The deviation over the parts that the value is a mean of; 0 where it is not known, and then nothing is so
            many times a value of 0 or below.
    """
    if _is_blind(metric, best, noise) or abs(value - best) <= noise:
        return False
    return value > factor * max(best, noise) if METRICS[metric].better == "lower" else value < best / factor


def _is_blind(metric: str, best: float, noise: float) -> bool:
    """Whether no value can be so many times worse than the best: that is 0 or below, and the noise is not known."""
    return METRICS[metric].better == "lower" and best <= 0 and noise <= 0


def _say_if_blind(before: Best | None, best: Best, noise: float) -> None:
    """Say that divergence is no longer seen, unless it was not before."""
    if not _is_blind(best.metric, best.value, noise) or (before and _is_blind(before.metric, before.value, noise)):
        return
    few = "; kid of more than 1,000 fakes or reals has a deviation to go by" if best.metric == "kid" else ""
    say(
        f"warning: the best {best.metric} is {best.value:.4g}, and no value is so many times that: from now on "
        "evaluation.diverged and evaluation.stop_diverged see nothing but what is no finite number; let "
        f"evaluation.best be another metric{few}"
    )


def progress_state(progress: Progress) -> dict[str, Any]:
    """What a checkpoint keeps of evaluations."""
    best = progress.best
    return {"best": None if best is None else asdict(best), "diverged": progress.diverged}


def restored(nimg: int, state: Mapping[str, Any], best: Best | None) -> Progress:
    """Where a run stood at a checkpoint; `best` None where it is looked for anew, or there was none."""
    anew = best is None and state.get("best") is not None
    return Progress(nimg, best, 0 if anew else state.get("diverged", 0))
