"""What a run shows of its averaged network, and how it is judged: images from latents, or translations of images."""

from __future__ import annotations

from itertools import permutations
from typing import Protocol

import torch
from torch import Tensor, nn

from hires_gan.data.domains import Domains
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.settings import DataSettings
from hires_gan.data.waiting import Asked, Stopped
from hires_gan.errors import UsageError
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.crew import in_step
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.fitting import check_fit
from hires_gan.evaluation.instruments import CONFIGURATION_NAMES, Instruments, Sources, open_instruments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.results import Result, of_directions
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.evaluation.subjects import Draws, Generated, Grows, Translated
from hires_gan.inference.images import Pixels, Table, grid, limit_side, pixels_of
from hires_gan.progress import say
from hires_gan.recipes.protocol import Recipe
from hires_gan.training.settings import Plan
from hires_gan.training.world import World

_STYLES = 4


class Gallery(Protocol):
    """The pictures and the numbers of an averaged network."""

    @property
    def metrics(self) -> list[MetricName]:
        """Which numbers, without those that cannot be had here."""

    def count(self, metric: str) -> int:
        """How many images a metric looks at."""

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader, in which what is auto was decided."""

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """The grids, by name.

        Raises:
            hires_gan.data.waiting.Stopped: If `stopped` became true while images were waited for.
        """

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> Result | None:
        """All metrics, on the first process; None if it was given up. All processes have to come here."""


def open_gallery(plan: Plan, recipe: Recipe, data: Domains, world: World, corrupt: CorruptRows) -> Gallery:
    """The gallery of a recipe; all processes have to come here.

    Raises:
        UsageError: If a metric cannot be taken of this recipe, at this resolution, or of so few images; if a file that
            is named for it cannot be used; if that of `evaluation.best` cannot be computed.
        Failure: If a feature network cannot be made.
    """
    instruments = in_step(world, lambda: _instruments(plan, world))
    instruments.agree(world)
    return in_step(world, lambda: _hung(plan, recipe, data, world, corrupt, instruments))


def metrics_of(settings: EvaluationSettings) -> tuple[MetricName, ...]:
    """The metrics that are ever computed."""
    return settings.metrics if settings.every_kimg is not None else ()


def _instruments(plan: Plan, world: World) -> Instruments:
    settings, metrics = plan.evaluation, metrics_of(plan.evaluation)
    check_fit(metrics, plan.recipe.name, plan.recipe.translates, "evaluation.metrics")
    sources = Sources(settings.features, settings.weights, settings.vgg, settings.alexnet, settings.download)
    return open_instruments(metrics, sources, world.device, CONFIGURATION_NAMES, plan.recipe.resolution)


def _hung(
    plan: Plan, recipe: Recipe, data: Domains, world: World, corrupt: CorruptRows, instruments: Instruments
) -> Gallery:
    best = plan.evaluation.best
    if best in instruments.missing:
        raise UsageError(f"evaluation.best is {best}, which cannot be computed: {instruments.missing[best]}")
    for reason, names in instruments.reasons().items():
        say(f"warning: evaluations leave out {', '.join(names)}: {reason}")
    reals = {name: Reals(data.only(name), plan.data, plan.recipe.resolution, corrupt) for name in data.names}
    if plan.recipe.translates:
        return Translations(recipe, plan, reals, instruments, world)  # type: ignore[arg-type]
    (only,) = reals.values()
    return Creations(recipe, plan, only, instruments, world)  # type: ignore[arg-type]


class Creations:
    """Images from fixed latents.

    Args:
        recipe: Whose images they are.
        plan: The configuration.
        reals: With what they are compared.
        instruments: What metrics need.
        world: The processes.
    """

    def __init__(self, recipe: Draws, plan: Plan, reals: Reals, instruments: Instruments, world: World) -> None:
        self.recipe, self.samples, self.resolution = recipe, plan.samples, plan.recipe.resolution
        self.precision = plan.precision
        settings = plan.evaluation
        counts = counted(settings.count, settings.reals, len(reals))
        self.evaluator = Evaluator(metrics_of(settings), counts, reals, instruments, world.device, world)

    @property
    def metrics(self) -> list[MetricName]:
        """Which numbers."""
        return self.evaluator.metrics

    def count(self, metric: str) -> int:
        """How many images a metric looks at."""
        return self.evaluator.counts.of(metric)

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader."""
        self.evaluator.reals.data = data

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """One grid."""
        images = self._subject(network, nimg).at(torch.arange(self.samples.count), stopped)
        return {"grid": limit_side(grid(images.cpu()))}

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> Result | None:
        """The metrics of the images of the first latents."""
        return self.evaluator.measure(
            self._subject(network, nimg), CheckpointRecord(nimg=nimg, precision=self.precision), stopped
        )

    def _subject(self, network: nn.Module, nimg: int) -> Generated:
        return Generated(self.recipe, network, nimg, self.resolution)


class Translations:
    """Fixed images of each domain, translated into the other in fixed styles.

    Args:
        recipe: Whose translations they are.
        plan: The configuration.
        reals: Of each domain.
        instruments: What metrics need.
        world: The processes.
    """

    def __init__(
        self, recipe: Grows, plan: Plan, reals: dict[str, Reals], instruments: Instruments, world: World
    ) -> None:
        self.recipe, self.samples, self.reals = recipe, plan.samples, reals
        self.styles = plan.samples.styles or _STYLES
        self.resolution, self.precision = plan.recipe.resolution, plan.precision
        self.evaluators = {
            (source, target): _judge_of(plan.evaluation, reals[source], reals[target], instruments, world)
            for source, target in permutations(recipe.domains, 2)
        }
        self._inputs: dict[str, Tensor] = {}

    @property
    def metrics(self) -> list[MetricName]:
        """Which numbers."""
        return next(iter(self.evaluators.values())).metrics

    def count(self, metric: str) -> int:
        """How many images of each direction a metric looks at, of the one that has fewer."""
        return min(one.counts.of(metric) for one in self.evaluators.values())

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader."""
        for reals in self.reals.values():
            reals.data = data

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """For each direction a table: a row for each input, which comes first, then a column for each style."""
        found = {}
        for source, target in self.evaluators:
            subject = self._subject(network, nimg, source, target)
            found[subject.direction] = self._table(subject, stopped)
        return found

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> Result | None:
        """The metrics of each direction, and their mean over the directions under the metric's own name."""
        found: dict[str, Result] = {}
        for (source, target), evaluator in self.evaluators.items():
            subject = self._subject(network, nimg, source, target)
            result = evaluator.measure(subject, CheckpointRecord(nimg=nimg, precision=self.precision), stopped)
            if result is None:
                return None
            found[subject.direction] = result
        return of_directions(found)

    def _subject(self, network: nn.Module, nimg: int, source: str, target: str) -> Translated:
        return Translated(self.recipe, network, nimg, source, target, self.reals[source])

    def _table(self, subject: Translated, stopped: Asked) -> Pixels:
        inputs = self._fixed(subject.source, stopped)
        table = Table(len(inputs), 1 + self.styles, self.resolution)
        for row, image in enumerate(torch.split(inputs, 1)):
            if stopped():
                raise Stopped
            table.put(row, 0, pixels_of(image))
            repeated = image.expand(self.styles, -1, -1, -1)
            fakes = subject.of(repeated, torch.arange(self.styles))
            for column, fake in enumerate(torch.split(fakes, 1)):
                table.put(row, 1 + column, pixels_of(fake))
        return table.pixels

    def _fixed(self, domain: str, stopped: Asked) -> Tensor:
        """The inputs of the grid: uint8 `[n, 3, r, r]` on the CPU."""
        if domain not in self._inputs:
            reals = self.reals[domain]
            count = min(self.samples.count, len(reals))
            self._inputs[domain] = torch.cat([part.clone() for part in reals.first(count, stopped)])
        return self._inputs[domain]


def _judge_of(
    settings: EvaluationSettings, inputs: Reals, reals: Reals, instruments: Instruments, world: World
) -> Evaluator:
    """What judges a direction: each input is translated once, and compared with the images of the target."""
    counts = counted(settings.count, settings.reals, len(reals), len(inputs))
    return Evaluator(metrics_of(settings), counts, reals, instruments, world.device, world)
