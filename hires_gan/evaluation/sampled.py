"""The metrics that are means over samples of one model: path lengths, similarity, diversity, by all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped
from hires_gan.evaluation.averages import NotFinite, exact_mean, unless_not_finite
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.crew import Crew, gathered_in_order, in_step, own_chunks
from hires_gan.evaluation.diversity import PROTOCOLS
from hires_gan.evaluation.diversity import SEED as STYLES_SEED
from hires_gan.evaluation.instruments import Instruments, weights_of
from hires_gan.evaluation.path_length import CROP, EPSILON, SAMPLES, path_length
from hires_gan.evaluation.path_length import SEED as PATHS_SEED
from hires_gan.evaluation.perceptual import FEATURES_SIDE, at_once
from hires_gan.evaluation.similarity import PAIRS, draw_pairs, pair_similarities, scales_at
from hires_gan.evaluation.similarity import SEED as PAIRS_SEED
from hires_gan.evaluation.subjects import Generated, Subject, Translated
from hires_gan.progress import ProgressBar

_INPUTS_AT_ONCE = 4  # read together, to be translated often each

Parameters = Mapping[str, str | int | float | None]


@dataclass(frozen=True)
class Sampling:
    """How a metric's samples are taken.

    Attributes:
        name: The metric.
        count: How many samples: paths, pairs, or inputs.
        fakes: How many there are: of paths and inputs each is one, pairs are drawn from this many images.
        length: Of the chunks in which processes share them.
        values: From chunks to the values of each: float64 `[n]` on the CPU.
        mean: From all values to the metric.
        parameters: For the record.
        seeds: Of what is drawn.
        quantised: Whether images became bytes.
    """

    name: MetricName
    count: int
    fakes: int
    length: int
    values: Callable[[list[range]], Iterator[Tensor]]
    mean: Callable[[Tensor, str], float]
    parameters: Parameters
    seeds: dict[str, int]
    quantised: bool = False

    def measure(self, crew: Crew, stopped: Asked) -> float | NotFinite:
        """The metric, or why there is none, on the first process; 0 on the others.

        Raises:
            Stopped: If `stopped` became true in any of the processes.
        """
        chunks = own_chunks(self.count, self.length, crew)
        rows = gathered_in_order(in_step(crew, lambda: self._rows(chunks, stopped)), self.count, self.length, crew)
        return in_step(crew, lambda: unless_not_finite(lambda: 0.0 if rows is None else self.mean(rows, self.name)))

    def _rows(self, chunks: list[range], stopped: Asked) -> Tensor:
        found = [torch.empty(0, dtype=torch.float64)]
        with ProgressBar(self.name, sum(map(len, chunks)), "samples", lasting=False) as bar:
            for values in self.values(chunks):
                found.append(values)
                bar.advance(len(values))
                if stopped():
                    raise Stopped
        return torch.cat(found)


def sampling(name: MetricName, subject: Subject, count: int, instruments: Instruments, stopped: Asked) -> Sampling:
    """How a metric of samples is taken.

    Args:
        name: One whose need is IMAGES, GENERATOR, or TRANSLATOR; not content preservation, which goes with the fakes.
        subject: What is judged, of the kind that the metric is for.
        count: How many images there may be.
        instruments: What it needs.
        stopped: Asked while inputs are waited for.
    """
    if isinstance(subject, Translated):
        return _diversity(name, subject, count, instruments, stopped)
    assert isinstance(subject, Generated)
    if METRICS[name].need == Need.IMAGES:
        return _similarity(name, subject, count)
    return _paths(name, subject, count, instruments)


def _paths(name: MetricName, subject: Generated, count: int, instruments: Instruments) -> Sampling:
    assert instruments.path is not None
    lengths = subject.paths(name, instruments.path)

    def values(chunks: list[range]) -> Iterator[Tensor]:
        for chunk in chunks:
            yield lengths.distances(torch.arange(chunk.start, chunk.stop))

    parameters: Parameters = {
        "epsilon": EPSILON,
        "space": lengths.space,
        "sampling": lengths.sampling,
        "crop": CROP if lengths.crop else "none",
        "dtype": str(lengths.dtype).removeprefix("torch."),
        "lpips": f"VGG16 {weights_of(instruments.path)}",
        "reduced_to": FEATURES_SIDE,
    }
    paths = min(SAMPLES, count)
    return Sampling(name, paths, paths, lengths.chunk, values, path_length, parameters, {"paths": PATHS_SEED})


def _similarity(name: MetricName, subject: Generated, count: int) -> Sampling:
    pairs = draw_pairs(min(PAIRS, count), count, subject.classes(torch.arange(count)))
    resolution = subject.resolution

    def values(chunks: list[range]) -> Iterator[Tensor]:
        for chunk in chunks:
            yield pair_similarities(subject.shown, pairs[chunk.start : chunk.stop], resolution)

    length = max(1, at_once(resolution) // 2)
    parameters: Parameters = {"pairs": len(pairs), "scales": scales_at(resolution)}
    seeds = {**subject.seeds, "pairs": PAIRS_SEED}
    return Sampling(name, len(pairs), count, length, values, exact_mean, parameters, seeds, quantised=True)


def _diversity(name: MetricName, subject: Translated, count: int, instruments: Instruments, stopped: Asked) -> Sampling:
    distance, protocol = instruments.diversity, PROTOCOLS[name]
    assert distance is not None

    def values(chunks: list[range]) -> Iterator[Tensor]:
        for chunk, inputs in zip(chunks, subject.reals.chunks(chunks, stopped), strict=True):
            yield subject.diversity(inputs, torch.arange(chunk.start, chunk.stop), distance, protocol)

    parameters: Parameters = {
        "outputs": protocol.outputs,
        "pairs": len(protocol.pairs),
        "lpips": f"AlexNet {weights_of(distance)}",
        "reduced_to": FEATURES_SIDE,
    }
    inputs = count if protocol.inputs is None else min(count, protocol.inputs)
    return Sampling(name, inputs, inputs, _INPUTS_AT_ONCE, values, exact_mean, parameters, {"styles": STYLES_SEED})
