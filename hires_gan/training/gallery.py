"""What a run shows of its averaged network, and how it is judged: images from latents, or translations of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Protocol

import torch
from torch import Tensor, nn

from hires_gan.data.domains import Domains
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.settings import DataSettings
from hires_gan.data.waiting import Stopped
from hires_gan.evaluation.evaluator import Evaluator
from hires_gan.evaluation.reals import Reals
from hires_gan.inference.images import Pixels, Table, enlarge, grid, limit_side, pixels_of, to_uint8
from hires_gan.recipes.protocol import Generates, Recipe, Translates
from hires_gan.training.settings import Plan, SamplesSettings

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""That many pass through a network at once where nothing else is said."""
_STYLES = 4

Asked = Callable[[], bool]
"""Whether somebody wants it to stop."""


class Gallery(Protocol):
    """The pictures and the numbers of an averaged network."""

    @property
    def count(self) -> int:
        """How many images the metrics compare."""

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader, in which what is auto was decided."""

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """The grids, by name.

        Raises:
            hires_gan.data.waiting.Stopped: If `stopped` became true while images were waited for.
        """

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, float] | None:
        """All metrics by name; None if it was given up since `stopped` became true."""


def open_gallery(plan: Plan, recipe: Recipe, data: Domains, device: torch.device, corrupt: CorruptRows) -> Gallery:
    """The gallery of a recipe.

    Raises:
        UsageError: If a metric cannot be taken at the resolution.
    """
    reals = {name: Reals(data.only(name), plan.data, plan.recipe.resolution, corrupt) for name in data.names}
    if plan.recipe.translates:
        return Translations(recipe, plan, reals, device)  # type: ignore[arg-type]
    (only,) = reals.values()
    return Creations(recipe, plan.samples, Evaluator(plan.evaluation, only, device), device)  # type: ignore[arg-type]


class Creations:
    """Images from fixed latents.

    Args:
        recipe: Whose images they are.
        samples: The `samples` block.
        evaluator: What judges.
        device: Where the network is.
    """

    def __init__(self, recipe: Generates, samples: SamplesSettings, evaluator: Evaluator, device: torch.device) -> None:
        self.recipe, self.samples, self.evaluator, self.device = recipe, samples, evaluator, device

    @property
    def count(self) -> int:
        """How many images the metrics compare."""
        return self.evaluator.count

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader."""
        self.evaluator.reals.data = data

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """One grid."""
        parts = []
        for part in self._fakes(network, nimg, self.samples.count):
            parts.append(part.cpu())
            if stopped():
                raise Stopped
        return {"grid": limit_side(grid(torch.cat(parts)))}

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, float] | None:
        """The metrics of the images of the first latents."""
        return self.evaluator.measure(lambda count: self._fakes(network, nimg, count), stopped)

    def _fakes(self, network: nn.Module, nimg: int, count: int) -> Iterator[Tensor]:
        """Images of the fixed latents, enlarged to the resolution of the evaluation."""
        resolution = self.evaluator.resolution
        for part in torch.split(torch.arange(count, device=self.device), chunk_at(resolution)):
            with torch.no_grad():
                images = self.recipe.sample(network, part, nimg)
            yield enlarge(to_uint8(images), resolution)


class Translations:
    """Fixed images of each domain, translated into the other in fixed styles.

    Args:
        recipe: Whose translations they are.
        plan: The configuration.
        reals: Of each domain.
        device: Where the network is.
    """

    def __init__(self, recipe: Translates, plan: Plan, reals: dict[str, Reals], device: torch.device) -> None:
        self.recipe, self.samples, self.reals, self.device = recipe, plan.samples, reals, device
        self.styles = plan.samples.styles or _STYLES
        self.resolution = plan.recipe.resolution
        fewest = min(map(len, reals.values()))  # each real is compared with a translation of an image of its own
        self.evaluators = {name: Evaluator(plan.evaluation, one, device, fewest) for name, one in reals.items()}
        self._inputs: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """How many images of each domain the metrics compare."""
        return min(one.count for one in self.evaluators.values())

    def decode_as(self, data: DataSettings) -> None:
        """Use the settings of the run's own loader."""
        for reals in self.reals.values():
            reals.data = data

    def pictures(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, Pixels]:
        """For each direction a table: a row for each input, which comes first, then a column for each style."""
        return {
            f"{source}_to_{target}": self._table(network, nimg, source, target, stopped)
            for source, target in self._directions()
        }

    def measure(self, network: nn.Module, nimg: int, stopped: Asked) -> dict[str, float] | None:
        """The metrics of each direction, and their mean over the directions under the metric's own name."""
        values: list[dict[str, float]] = []
        for source, target in self._directions():
            fakes = partial(self._fakes, network, nimg, source, target, stopped)
            found = self.evaluators[target].measure(fakes, stopped)
            if found is None:
                return None
            values.append(_of_direction(found, f"{source}_to_{target}"))
        return _with_means(values)

    def _directions(self) -> list[tuple[str, str]]:
        return list(permutations(self.recipe.domains, 2))

    def _fakes(
        self, network: nn.Module, nimg: int, source: str, target: str, stopped: Asked, count: int
    ) -> Iterator[Tensor]:
        """Translations of the first images, each in a style of its own."""
        first = 0
        for images in self.reals[source].first(count, stopped):
            numbers = torch.arange(first, first + len(images))
            yield self._translated(network, nimg, source, target, images, numbers)
            first += len(images)

    def _table(self, network: nn.Module, nimg: int, source: str, target: str, stopped: Asked) -> Pixels:
        inputs = self._fixed(source, stopped)
        table = Table(len(inputs), 1 + self.styles, self.resolution)
        for row, image in enumerate(torch.split(inputs, 1)):
            table.put(row, 0, pixels_of(image))
            repeated = image.expand(self.styles, -1, -1, -1)
            styles = torch.arange(self.styles)
            fakes = self._translated(network, nimg, source, target, repeated, styles)
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

    def _translated(
        self, network: nn.Module, nimg: int, source: str, target: str, images: Tensor, samples: Tensor
    ) -> Tensor:
        """uint8 to uint8, a few images at once, enlarged to the full resolution."""
        dtype, size = next(network.parameters()).dtype, chunk_at(self.resolution)
        done: list[Tensor] = []
        for part, numbers in zip(torch.split(images, size), torch.split(samples, size), strict=True):
            x = part.to(self.device, dtype).div_(127.5).sub_(1.0)
            with torch.no_grad():
                fakes = self.recipe.translate(network, x, numbers.to(self.device), nimg, source, target)
            done.append(enlarge(to_uint8(fakes), self.resolution))
        return torch.cat(done)


def chunk_at(resolution: int) -> int:
    """How many images are made at once."""
    return max(1, min(64, PIXELS_AT_ONCE // resolution**2))


def _of_direction(values: dict[str, float], direction: str) -> dict[str, float]:
    """`swd` and `swd/16` become `swd/a_to_b` and `swd/a_to_b/16`."""
    named: dict[str, float] = {}
    for name, value in values.items():
        metric, _, level = name.partition("/")
        named[f"{metric}/{direction}/{level}" if level else f"{metric}/{direction}"] = value
    return named


def _with_means(directions: Sequence[dict[str, float]]) -> dict[str, float]:
    """All values, and for each metric the mean of its values over the directions."""
    every = {name: value for values in directions for name, value in values.items()}
    whole = [name for name in every if name.count("/") == 1]
    metrics = dict.fromkeys(name.partition("/")[0] for name in whole)
    means = {
        metric: sum(every[name] for name in whole if name.startswith(f"{metric}/")) / len(directions)
        for metric in metrics
    }
    return means | every
