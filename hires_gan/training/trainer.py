"""The training loop: steps, and what is due at their boundaries. It knows nothing of families."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.data.loader import Loader, Request
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.waiting import Stopped
from hires_gan.ema import half_life_decay
from hires_gan.errors import Elsewhere, Failure
from hires_gan.evaluation.alike import protocols_of
from hires_gan.evaluation.results import Result, in_figures
from hires_gan.evaluation.subjects import PIXELS_AT_ONCE
from hires_gan.inference.files import write_whole
from hires_gan.inference.images import save_png
from hires_gan.progress import say
from hires_gan.recipes.protocol import Recipe, Stage, stage_at
from hires_gan.tracking.exporter import Exporter
from hires_gan.tracking.names import EVALUATION
from hires_gan.tracking.protocols import Protocol
from hires_gan.tracking.tracker import Tracker
from hires_gan.training.activity import doing, waiting
from hires_gan.training.backends import Backend
from hires_gan.training.consistency import check_equal, fingerprints
from hires_gan.training.feed import Feed
from hires_gan.training.gallery import Gallery
from hires_gan.training.judging import Progress, judge, known_best, progress_state, restored
from hires_gan.training.phases import Means
from hires_gan.training.profiling import StepProfiler, span
from hires_gan.training.ranks import Ranks
from hires_gan.training.run_folder import RunFolder
from hires_gan.training.saving import Saver
from hires_gan.training.schedule import Cadence, PlannedStep, steps
from hires_gan.training.settings import BatchSettings, EmaSettings, Plan
from hires_gan.training.shares import in_words, share
from hires_gan.training.signals import StopRequest
from hires_gan.training.status import StatusLine, Stopwatch


class Trainer:
    """Trains a recipe until the end, or until it is asked to stop.

    Args:
        plan: The configuration.
        folder: The run's folder.
        recipe: What is trained.
        backend: What steps.
        gallery: What is shown, and what judges.
        tracker: Where it is recorded; None on all processes but the first.
        corrupt: The samples that could not be shown.
        state: What every checkpoint says of the run besides its progress.
        stop: Whether a signal came.
        exporter: Where it can be watched; None on all processes but the first, and where no port is set.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        recipe: Recipe,
        backend: Backend,
        gallery: Gallery,
        tracker: Tracker | None,
        corrupt: CorruptRows,
        state: dict[str, Any],
        stop: StopRequest,
        exporter: Exporter | None = None,
    ) -> None:
        self.plan, self.folder, self.recipe, self.backend = plan, folder, recipe, backend
        self.gallery, self.tracker, self.corrupt, self.state = gallery, tracker, corrupt, state
        self.exporter = exporter
        self.progress = Progress()
        self._stage: int | None = None
        self.world = backend.world
        self.stop = stop
        self.total = round(plan.run.total_kimg * 1000)
        self.cadences = {
            "log": Cadence(plan.tracking.every_kimg),
            "samples": Cadence(plan.samples.every_kimg, at_start=True),
            "evaluation": Cadence(plan.evaluation.every_kimg, at_start=True),
            "checkpoint": Cadence(plan.checkpoint.every_kimg),
        }
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self.saver = Saver(folder.checkpoints, plan.checkpoint.keep)
        self._asked: Callable[[], bool] = lambda: False
        self._stopwatch = Stopwatch()
        self.ranks = Ranks(self.world, backend.device, backend.pace, corrupt)
        self._began = time.perf_counter()
        self._taken: dict[int, float] = {}
        self._domains: tuple[str, ...] = ()
        self._division = ""
        self._cautions: set[str] = set()
        profiled = plan.run.profile and self.world.first
        self._profiler = StepProfiler(folder.path / "profile", backend.device) if profiled else None

    def current(self) -> dict[str, float]:
        """What changes between two logs, from any thread: attributes are read, nothing is computed or waited for."""
        saved = self.saver.last
        since = self._began if saved is None else self._taken.get(saved.nimg, self._began)
        return {
            "progress/kimg": self.progress.nimg / 1000,
            "progress/total_kimg": self.total / 1000,
            "checkpoint/age": time.perf_counter() - since,
            **({} if saved is None else {"checkpoint/kimg": saved.nimg / 1000}),
        }

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            Failure: If it is damaged or of another architecture.
        """
        names = [name.removesuffix(".safetensors") for name in saved.state["files"]]
        with self.world.together():
            parts = {name: saved.tensors(name) for name in names}
            self.backend.load_weights(parts)
        state = saved.state["progress"]
        best = known_best(state["best"], self.plan.evaluation, self._judged_on())
        self.progress = restored(saved.nimg, state, best)
        for name, cadence in self.cadences.items():
            cadence.last = state["cadences"][name]
        moved = dict(zip(saved.state.get("folders", ()), self.state["folders"], strict=False))
        self.corrupt.remember(state.get("corrupt", ()), moved)
        self.recipe.load_state_dict(saved.state["recipe"])
        self.backend.nonfinite.fill_(state["nonfinite"])
        self.backend.streak.fill_(state["streak"])
        self.backend.longest_streak.fill_(state["streak"])
        self._enter(stage_at(self.recipe.stages, saved.nimg))
        # A checkpoint on the border of two stages holds the optimizers of the first; the second makes them anew.
        if self._stage == state["stage"]:
            self.backend.load_optimizers(parts)
        self.saver.last = saved
        if self.world.first and self.progress.best is not None:
            self.saver.mark_best(self.progress.best.checkpoint)

    def _judged_on(self) -> int:
        """On how many images the metric that decides is measured."""
        best = self.plan.evaluation.best
        return 0 if best is None else self.gallery.count(best)

    def run(self, loader: Loader) -> bool:
        """Train to the end, or to the step boundary behind a signal.

        Args:
            loader: Where the images come from.

        Returns:
            Whether the run is finished; otherwise it was stopped after a checkpoint.

        Raises:
            Failure: If too many steps in a row had gradients that were not finite, or something outside failed.
        """
        nimg = self.progress.nimg
        feed = Feed(loader.batches(self._requests(nimg)), self.backend.device, self._dtype())
        self._stopwatch, self._domains = Stopwatch(), loader.reader.domains
        self.gallery.decode_as(loader.settings)  # what auto was decided to be holds for the reals, too
        self._enter(stage_at(self.recipe.stages, nimg))
        with StatusLine(self.plan.run.name, nimg, self.total) as status, self.saver:
            self._between_steps(status, feed)
            with contextlib.suppress(Stopped):  # a signal came before a batch, and nothing of its step was done
                for step in steps(self.recipe.stages, nimg, self.total):
                    if self.stop.agreed:
                        break
                    with self.backend.pace.step(len(self._own(step))):
                        self._step(step, feed)
                    status.advance(self.progress.nimg, self.recipe.describe(self.progress.nimg))
                    self._between_steps(status, feed)
            if self.stop.agreed and 0 < self.progress.nimg != self.cadences["checkpoint"].last:
                self._save()
        if self._profiler is not None:
            self._profiler.close()
        # A signal behind the last step leaves the last grid and evaluation to the next start.
        return self.progress.nimg >= self.total and not self.stop.agreed

    def _own(self, step: PlannedStep) -> range:
        """Which samples of a step are this process's."""
        stage = self.recipe.stages[step.stage]
        return share(step.batch, stage.group, self.world.rank, self.world.size)

    def _requests(self, nimg: int) -> Iterator[Request]:
        """What this process is to decode from `nimg` on: nothing of a step in which it has no samples."""
        for step in steps(self.recipe.stages, nimg, self.total):
            own = self._own(step)
            if own:
                yield step.request(own)

    def _step(self, step: PlannedStep, feed: Feed) -> None:
        """One step of every phase that is due.

        Raises:
            Stopped: If a signal came before its batch: nothing of it was done.
        """
        start = time.perf_counter()
        phases = self.recipe.phases(step.nimg)
        if self._profiler is not None:
            self._profiler.before(phases, self.recipe.phases(self.recipe.stages[step.stage].start))
        with span("data"):
            batch = feed.take() if self._own(step) else feed.empty(self._domains, step.resolution)
        self._enter(step.stage)
        stage = self.recipe.stages[step.stage]
        means = self.backend.step(phases, batch, step.nimg, micro_batch(self.plan.batch, stage))
        with span("average"):
            self.backend.update_average(average_decay(self.plan.ema, stage.batch, step.nimg))
        feed.copy_ahead()
        if self._profiler is not None:
            self._profiler.behind()
        self.progress.nimg = step.end
        self.recipe.advance(step.end, means)
        self._sum(means, step.batch)
        self._stopwatch.add(step.batch, time.perf_counter() - start)

    def _enter(self, stage: int) -> None:
        if stage != self._stage:
            self._stage, entered = stage, self.recipe.stages[stage]
            self.backend.enter(entered)
            if not self.world.alone:
                micro = micro_batch(self.plan.batch, entered)
                self._divided(in_words(entered.batch, entered.group, self.world.size, micro))

    def _divided(self, words: str) -> None:
        """Say how steps are divided, where that has changed."""
        if words != self._division:
            self._division = words
            say(words)

    def _between_steps(self, status: StatusLine, feed: Feed) -> None:
        """Log, sample, evaluate and save, whatever is due; after a signal only save.

        All processes come here with the same cadences. They evaluate together, and wait for the first one
        while it draws a grid. Whether a signal came to any of them, they ask each other at every boundary, and hear the
        answer at the next one: no step waits for it.
        """
        self.stop.agree(self._asked())
        self._asked = self.world.ask(self.stop.wanted is not None)
        self.saver.check()
        nimg, ended = self.progress.nimg, self.progress.nimg >= self.total
        if self._due("log", ended):
            self.ranks.tell()
            self.backend.tell_remarks()
            if self.world.first:
                self._log(status, feed)
            self._logged()
        if self._due("samples", ended) and self._by_first(self._sample):
            self.cadences["samples"].done(nimg)
        verdict = self._evaluate() if self._due("evaluation", ended) else None
        if verdict is not None:
            self.cadences["evaluation"].done(nimg)
        cadence = self.cadences["checkpoint"]
        if verdict == "best" or ((ended or self.stop.agreed) and 0 < nimg != cadence.last):
            self._save()
        elif cadence.due(nimg):
            self._save_if_finite()

    def _by_first(self, what: Callable[[], Any]) -> Any:
        """What the first process does while the others wait, and what came of it: a plain JSON value."""
        done = None
        if self.world.first:
            with doing(what.__name__.removeprefix("_")):
                done = what()
        with waiting("the first process"):
            return self.world.from_first(done)

    def _due(self, what: str, ended: bool) -> bool:
        """Whether something is due now: by its cadence, or because the run ends; never twice at one nimg."""
        cadence, nimg = self.cadences[what], self.progress.nimg
        if self.stop.agreed and what in ("samples", "evaluation"):
            return False
        return cadence.due(nimg) or (ended and cadence.every is not None and 0 < nimg != cadence.last)

    def _logged(self) -> None:
        """Begin new means, and stop a run that does not learn any more: where the first process stops, all do."""
        self._sums = {}
        self.cadences["log"].done(self.progress.nimg)
        self._check_finite()

    def _sum(self, means: Means, images: int) -> None:
        """Add up on the device: reading the values would make the step wait."""
        for name, mean in means.items():
            if name.startswith("average/"):  # for the recipe alone
                continue
            total, count = self._sums.get(name, (torch.zeros_like(mean), 0))
            self._sums[name] = (total + mean.double() * images, count + images)

    def _log(self, status: StatusLine, feed: Feed) -> None:
        """Send the means since the last time, and show the status line."""
        nimg, stage = self.progress.nimg, self.recipe.stages[self._stage or 0]
        start = time.perf_counter()
        values = torch.stack([total / count for total, count in self._sums.values()]).tolist() if self._sums else []
        # Only now a GPU has done all that was launched: the wait belongs to the steps.
        self._stopwatch.add(0, time.perf_counter() - start)
        speed, memory = self._stopwatch.lap(feed.lost()), self.ranks.memory[0]
        means = dict(zip(self._sums, values, strict=True))
        self._record(
            nimg,
            means
            | {f"schedule/learning_rate_{name}": plan.rate_at(nimg) for name, plan in stage.optimizers.items()}
            | {"schedule/resolution": stage.resolution, "schedule/batch": stage.batch}
            | {"speed/images_per_second": speed.images_per_second, "speed/data_wait": speed.data_wait}
            | {"speed/seconds_per_kimg": speed.seconds_per_kimg, "memory/gib": memory / 2**30}
            | {"speed/gpus": self.world.size if self.backend.device.type == "cuda" else 0}
            | {"gradients/nonfinite": int(self.backend.nonfinite)}
            | {"data/skipped": len(self.corrupt), "data/retries": self.corrupt.retries}
            | self.ranks.metrics
            | self._checkpoint_costs(),
            self.ranks.memory_metrics,
        )
        losses = {name.removeprefix("loss/"): value for name, value in means.items() if name.startswith("loss/")}
        status.show(nimg, self.recipe.describe(nimg), speed, memory, losses, len(self.corrupt), self.ranks.words)
        self.folder.write_status("running", nimg)

    def _record(
        self,
        nimg: int,
        metrics: Mapping[str, float],
        more: Mapping[str, float] | None = None,
        protocols: Mapping[str, Protocol] | None = None,
    ) -> None:
        """Log metrics, with how they were taken; let Prometheus have them, and `more`: a value for each process."""
        self._recorded().log_metrics(nimg, metrics, protocols)
        if self.exporter is not None:
            self.exporter.log_metrics({**metrics, **(more or {})})

    def _checkpoint_costs(self) -> dict[str, float]:
        """The seconds that checkpoints took since the last time: of the training, and beside it."""
        costs, self.saver.costs = self.saver.costs, []
        blocked, background = (sum(getattr(cost, name) for cost in costs) for name in ("blocked", "background"))
        return {"checkpoint/blocked_seconds": blocked, "checkpoint/background_seconds": background} if costs else {}

    def _check_finite(self) -> None:
        streak = int(self.backend.longest_streak)
        if streak >= self.plan.run.stop_after_nonfinite:
            if not self.world.first:  # which has the same streak, and knows the checkpoints
                raise Elsewhere
            saved = self.saver.last
            last = f"the last good checkpoint is {saved.folder}" if saved else "there is no checkpoint yet"
            raise Failure(
                f"{streak} steps in a row had gradients that are not finite "
                f"({int(self.backend.nonfinite)} entries so far): the run has diverged. {last}; start a new run under "
                f"another run.name with a lower learning rate, or with precision fp32 or bf16"
            )

    def _sample(self) -> bool:
        """Draw the grid; False if a signal came meanwhile: then it is due again when the run goes on."""
        nimg = self.progress.nimg
        if self.stop.heard:  # by this process; the others agree at the next boundary
            return False
        try:
            pictures = self.gallery.pictures(self.backend.average, nimg, self.stop.interrupted)
        except Stopped:
            return False
        for name, pixels in pictures.items():
            suffix = "" if len(pictures) == 1 else f"_{name}"
            save_png(self.folder.samples / f"{nimg:012d}{suffix}.png", pixels)
            self._recorded().log_image(f"samples/{name}", nimg, pixels)
        return True

    def _evaluate(self) -> str | None:
        """Measure the average, all processes together: "best" if it is that so far; None if a signal came meanwhile."""
        verdict = None
        with doing("evaluate"):
            if self.world.any(self.stop.heard):  # by whichever process: all of them leave it
                return None
            result = self.gallery.measure(self.backend.average, self.progress.nimg, self.stop.interrupted)
            if result is None:
                return None
            with self.world.together():
                if self.world.first:
                    verdict = self._judge(result)
            return str(self.world.from_first(verdict))

    def _judge(self, result: Result) -> str:
        """Record what was measured, and compare it with the best so far.

        Raises:
            Failure: If the run has diverged for so long that it is to end, or the disk is full.
        """
        nimg, folder = self.progress.nimg, self.folder
        taken = {EVALUATION + name: protocol for name, protocol in protocols_of(result.whole).items()}
        values = result.values | dict.fromkeys(result.not_finite, math.nan)
        self._record(nimg, {EVALUATION + name: value for name, value in values.items()}, protocols=taken)
        for metric in self.gallery.metrics:
            say(f"{nimg / 1000:.1f} kimg: {metric} {in_figures(values[metric])}")
        self._caution({record.caution for record in result.records if record.caution})
        if values:
            file = folder.path / "evaluations" / f"{nimg:012d}.json"
            write_whole(file, lambda partial: partial.write_text(result.as_json(), encoding="utf-8"))
            self._recorded().log_artifact(file, "evaluations")
        return judge(self.progress, self.plan.evaluation, result, self._judged_on(), str(folder.checkpoints))

    def _caution(self, cautions: set[str]) -> None:
        """Say what few images do to a number, once."""
        for caution in sorted(cautions - self._cautions):
            say(f"caution: {caution}")
        self._cautions |= cautions

    def _save_if_finite(self) -> None:
        """Write a checkpoint, unless the last step was bad: then it stays due, for the next good one."""
        self._check_finite()
        if not int(self.backend.streak):
            self._save()

    def _save(self) -> None:
        """Write a checkpoint behind the training, make it the latest, and delete those that are not kept.

        Raises:
            Failure: If the processes' weights have come apart, or the checkpoint before could not be written.
        """
        nimg, since = self.progress.nimg, time.perf_counter()
        with doing("checkpoint"):
            self.cadences["checkpoint"].done(nimg)
            parts = self.backend.tensors()
            if not self.world.alone:
                check_equal(self.world, fingerprints(parts))
            if self.world.first:
                best = self.progress.best
                self._taken[nimg] = since
                self.saver.save(nimg, parts, self._state(), None if best is None else best.checkpoint, since)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint says besides the tensors."""
        progress = {
            "stage": self._stage,
            "nonfinite": int(self.backend.nonfinite),
            "streak": int(self.backend.streak),
            "cadences": {name: cadence.last for name, cadence in self.cadences.items()},
            "corrupt": list(self.corrupt.rows()),
            **progress_state(self.progress),
        }
        inference = self.recipe.inference(self.progress.nimg)
        return self.state | {"progress": progress, "recipe": self.recipe.state_dict(), "inference": inference}

    def _recorded(self) -> Tracker:
        assert self.tracker is not None, "only the first process records"
        return self.tracker

    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.plan.precision == "fp64" else torch.float32


def micro_batch(settings: BatchSettings, stage: Stage) -> int:
    """How many samples go through the networks at once: whole groups, by default as many as fill 4 images of 1024x1024.

    The default is the bound that Progressive GAN's authors used for 16 GB (Karras et al. 2018, their configuration).
    """
    if settings.per_device == "auto":
        wanted = PIXELS_AT_ONCE // stage.resolution**2 // stage.group * stage.group
    else:
        wanted = settings.per_device
    return min(max(wanted, stage.group), stage.batch)


def average_decay(settings: EmaSettings, batch: int, nimg: int) -> float:
    """The factor by which the running average forgets in the step of `batch` images that begins at `nimg`."""
    if settings.half_life_kimg is not None:
        half_life = settings.half_life_kimg * 1000
    else:
        assert settings.half_life_batches is not None
        half_life = settings.half_life_batches * batch
    if settings.rampup is not None:
        half_life = min(half_life, nimg * settings.rampup)
    return half_life_decay(batch, half_life)
