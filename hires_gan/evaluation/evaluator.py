"""The metrics of a model against the data, by all processes together: the reals are described once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.averages import NotFinite, exact_mean, unless_not_finite
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need, check_count
from hires_gan.evaluation.comparing import Comparison, Found, Number, Sets, comparisons, of_features
from hires_gan.evaluation.crew import Alone, Crew, by_first, in_step, own_chunks
from hires_gan.evaluation.describing import Description, describe
from hires_gan.evaluation.fidelity import torch_fidelity
from hires_gan.evaluation.instruments import Instruments, weights_of
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.perceptual import FEATURES_SIDE
from hires_gan.evaluation.preservation import LAYER
from hires_gan.evaluation.protocol import QUANTISATION, CheckpointRecord, DataRecord, make_record
from hires_gan.evaluation.real_features import FeatureCache, RealFeatures, RealsKey
from hires_gan.evaluation.reals import CHUNK, Reals
from hires_gan.evaluation.results import LeftOut, Measured, Result, left_out
from hires_gan.evaluation.sampled import Parameters, Sampling, sampling
from hires_gan.evaluation.similarity import scales_at
from hires_gan.evaluation.subjects import Generated, Shown, Subject, Translated
from hires_gan.evaluation.swd import (
    DIRECTIONS,
    LOWEST_RESOLUTION,
    MAXIMUM_IMAGES,
    PATCH_SIZE,
    PATCHES_PER_IMAGE,
    Descriptors,
    compared,
    mean_distance,
    memory_needed,
)
from hires_gan.memory import available_memory
from hires_gan.progress import ProgressBar, say

_SWD: Parameters = {"patches": PATCHES_PER_IMAGE, "patch_size": PATCH_SIZE, "directions": DIRECTIONS}


@dataclass(frozen=True)
class Options:
    """What a user sets, for errors to name it.

    Attributes:
        metrics: What names metrics.
        count: What says how many fakes there are.
    """

    metrics: str
    count: str


CONFIGURATION = Options("evaluation.metrics", "evaluation.count")
COMMAND = Options("--metrics", "--count")


@dataclass(frozen=True)
class Counts:
    """How many images there are of each kind.

    Attributes:
        fakes: Generated ones, or translations.
        reals: The first ones of the data.
    """

    fakes: int
    reals: int

    @property
    def patched(self) -> int:
        """How many of both sets the sliced Wasserstein distance takes."""
        return min(self.fakes, self.reals, MAXIMUM_IMAGES)

    def of(self, metric: str) -> int:
        """How many fakes a metric looks at."""
        return self.patched if metric == "swd" else self.fakes


def counted(count: int, reals: int | None, there: int, inputs: int | None = None) -> Counts:
    """How many images are compared.

    Args:
        count: How many fakes are wanted.
        reals: How many reals; None for all.
        there: So many reals there are.
        inputs: So many images can be translated; None where images come from latents.
    """
    return Counts(count if inputs is None else min(count, inputs), there if reals is None else min(reals, there))


class Evaluator:
    """Measures models against a fixed set of reals.

    Args:
        metrics: Which numbers; those that the instruments are missing for are left out.
        counts: How many images.
        reals: With what is compared, and at which resolution.
        instruments: What metrics need, on the device that computes.
        device: Where the metrics are computed.
        crew: The processes that measure together; all of them make an evaluator alike.
        cache: The folder where the features of reals are kept; None for the user's.
        options: What counts and metrics were given to, for errors.

    Raises:
        UsageError: If a metric cannot be taken at the resolution, or of so few images.
    """

    def __init__(
        self,
        metrics: Sequence[MetricName],
        counts: Counts,
        reals: Reals,
        instruments: Instruments,
        device: torch.device,
        crew: Crew | None = None,
        cache: Path | None = None,
        options: Options = CONFIGURATION,
    ) -> None:
        self.metrics = [name for name in metrics if name not in instruments.missing]
        self.counts, self.reals, self.instruments, self.device = counts, reals, instruments, device
        self.crew: Crew = crew or Alone()
        self.resolution = reals.resolution
        self._cache, self._options = cache, options
        check_metrics(self.metrics, counts, self.resolution, options)
        self._patches: Descriptors | None = None
        self._real: RealFeatures | None = None
        self._described = False
        self._replaced = {"patches": 0, "features": 0}

    def measure(self, subject: Subject, checkpoint: CheckpointRecord, stopped: Asked) -> Result | None:
        """All metrics.

        All processes have to come here; where one gives up, all do.

        Args:
            subject: What is judged.
            checkpoint: For the records.
            stopped: Asked between batches of images and while they are compared, and while the reals are waited for;
                the measurement is given up once it is true.

        Returns:
            The numbers, on the first process, and which metrics came out as none that is finite; None if it was given
            up.

        Raises:
            UsageError: If the feature network does not give what a metric needs.
            Failure: If the host has too little memory for so many images, or images cannot be read.
        """
        try:
            return Result.of(_Evaluation(self, subject, checkpoint, stopped).measured())
        except Stopped:
            return None

    def describe_reals(self, stopped: Asked) -> None:
        """Take of the reals what is needed and not there yet.

        Raises:
            Stopped: If `stopped` became true in any of the processes.
            Failure: If there is too little memory, or images cannot be read.
        """
        patches = None
        if "swd" in self.metrics and self._patches is None:
            patches = in_step(self.crew, self.new_patches)
        wanted = bool(of_features(self.metrics)) and not self._described and not self._read(stopped)
        extractor = self.instruments.extractor if wanted else None
        description = Description(patches, extractor, self.counts.reals)
        if description.count:
            chunks = own_chunks(description.count, CHUNK, self.crew)
            images = (Shown(part) for part in self.reals.chunks(chunks, stopped))
            in_step(self.crew, lambda: describe("describing reals", description, chunks, images, stopped))
            in_step(self.crew, description.check_finite)
        if wanted:
            self._keep(description.features(self.crew), stopped)
        if patches is not None:
            self._patches = patches
            self._replaced["patches"] = len(self.reals.replaced(self.counts.patched, self.crew))

    def new_patches(self) -> Descriptors:
        """Room for the patches of one set."""
        needed = memory_needed(self.resolution, self.counts.patched, 1 if self._patches else 2, self.crew)
        available = available_memory()
        if needed > available:
            raise Failure(
                f"{self._options.count} {self.counts.patched} at {self.resolution}x{self.resolution} needs "
                f"{needed / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB are available; lower it, or "
                "free memory"
            )
        return Descriptors(self.resolution, self.counts.patched, self.device, self.crew)

    @property
    def real_patches(self) -> Descriptors:
        """Those of the reals."""
        assert self._patches is not None, "reals are described before they are compared"
        return self._patches

    def data(self, featured: bool) -> DataRecord:
        """What is recorded of the reals.

        Args:
            featured: Whether features of them are compared, which may have been kept before images became corrupt.
        """
        replaced = self._replaced["features" if featured else "patches"]
        return self.reals.record().model_copy(update={"replaced": replaced})

    @property
    def real_features(self) -> RealFeatures | None:
        """Those of the reals, on the first process."""
        return self._real

    def _read(self, stopped: Asked) -> bool:
        """Whether the features of the reals were kept, by an earlier evaluation."""
        self._real = by_first(self.crew, lambda asked: FeatureCache(self._cache).read(self._key(), asked), stopped)
        self._described = self.crew.any(self._real is not None)
        return self._described

    def _keep(self, features: Tensor | None, stopped: Asked) -> None:
        replaced = len(self.reals.replaced(self.counts.reals, self.crew))

        def keep(asked: Asked) -> None:
            assert features is not None, "the first process has those of all"
            self._real = RealFeatures(features, moments(features, asked))
            if replaced:
                say(
                    f"features of reals are not kept: {replaced} of the {self.counts.reals:,} images are corrupt, and "
                    "others stand in their places; once the shards are mended they are"
                )
            else:
                FeatureCache(self._cache).write(self._key(), self._real, asked)

        by_first(self.crew, keep, stopped)
        self._described, self._replaced["features"] = True, replaced

    def _key(self) -> RealsKey:
        data, extractor = self.reals.record(), self.instruments.extractor
        assert extractor is not None
        return RealsKey(
            data=data.digest,
            domain=data.domain,
            column=data.column,
            resolution=self.resolution,
            count=self.counts.reals,
            order_seed=data.order_seed,
            decoder=data.decoder,
            extractor=extractor.name,
            extractor_version=extractor.version,
            checksum=extractor.checksum,
            resize=extractor.resize,
            device=self.device.type,
        )


class _Evaluation:
    """One evaluation of one subject."""

    def __init__(self, evaluator: Evaluator, subject: Subject, checkpoint: CheckpointRecord, stopped: Asked) -> None:
        self.own, self.subject, self.checkpoint, self.stopped = evaluator, subject, checkpoint, stopped
        self.crew, self.metrics, self.counts = evaluator.crew, evaluator.metrics, evaluator.counts
        self._replaced_inputs: list[int] = []

    def measured(self) -> list[Measured | LeftOut]:
        """All metrics, in the order in which they were asked for; none on any process but the first."""
        self.own.describe_reals(self.stopped)
        fakes = self._fakes()
        found = [*self._patched(fakes), *self._featured(fakes), *self._preserved(fakes), *self._sampled()]
        for reason, names in left_out(found).items():
            say(f"warning: left out of this evaluation: {', '.join(names)}: {reason}")
        return sorted(found, key=lambda one: self.metrics.index(one.metric))

    def _fakes(self) -> Description:
        extractor = self.own.instruments.extractor if self._wanted(Need.FEATURES, Need.LOGITS) else None
        content = self.own.instruments.content if "content_preservation" in self.metrics else None
        patches = in_step(self.crew, self.own.new_patches) if "swd" in self.metrics else None
        description = Description(patches, extractor, self.counts.fakes, content)
        if description.count:
            chunks = own_chunks(description.count, CHUNK, self.crew)
            images = self.subject.chunks(chunks, self.stopped)
            title = "generating and describing fakes"
            in_step(self.crew, lambda: describe(title, description, chunks, images, self.stopped))
            self._note_inputs()
        return description

    def _note_inputs(self) -> None:
        """Learn from all processes which of the inputs are corrupt, as far as they have been read."""
        if isinstance(self.subject, Translated):
            self._replaced_inputs = self.subject.reals.replaced(self.counts.fakes, self.crew)

    def _wanted(self, *needs: Need) -> list[MetricName]:
        return [name for name in self.metrics if METRICS[name].need in needs]

    def _patched(self, fakes: Description) -> list[Measured | LeftOut]:
        if fakes.patches is None:
            return []
        count = self.counts.patched
        lack = fakes.spoiled(count, self.crew)
        if lack is not None:
            return self._record("swd", lack, count)
        levels: dict[int, float] = {}
        with ProgressBar("comparing", len(fakes.patches.resolutions), "levels", lasting=False) as bar:
            for resolution in fakes.patches.resolutions:
                levels[resolution] = self._level(fakes.patches, resolution) or 0.0
                bar.advance()
        details = {str(resolution): distance for resolution, distance in levels.items()}
        return self._record("swd", mean_distance(levels), count, reals=count, parameters=_SWD, details=details)

    def _level(self, fakes: Descriptors, resolution: int) -> float | None:
        """The distance at one level, on the first process."""
        real, fake = self.own.real_patches.gathered(resolution), fakes.gathered(resolution)

        def compare(stopped: Asked) -> float:
            assert real is not None and fake is not None, "the first process has those of all"
            return compared(real, fake, self.own.device, stopped)

        return by_first(self.crew, compare, self.stopped)

    def _featured(self, fakes: Description) -> list[Measured | LeftOut]:
        wanted = self._wanted(Need.FEATURES, Need.LOGITS)
        if not wanted:
            return []
        lack = fakes.spoiled(self.counts.fakes, self.crew) or fakes.lack(self.crew)
        if lack is not None:
            return [one for name in wanted for one in self._feature(name, lack)]
        features = fakes.features(self.crew)
        logits = fakes.logits(self.crew) if "inception_score" in wanted else None
        sets = None if features is None else Sets(self.own.real_features, features, logits, self.own.device)
        found: Found = {}
        groups = comparisons(wanted)
        with ProgressBar("comparing features", len(groups), "metrics", lasting=False) as bar:
            for compare in groups:
                found |= by_first(self.crew, partial(self._compared, compare, sets), self.stopped) or {}
                bar.advance()
        return [one for name in wanted if name in found for one in self._feature(name, found[name])]

    def _compared(self, compare: Comparison, sets: Sets | None, stopped: Asked) -> Found:
        assert sets is not None, "the first process has the features of all"
        return compare(sets, stopped)

    def _feature(self, name: MetricName, number: Number | NotFinite) -> list[Measured | LeftOut]:
        value, deviation = (number, None) if isinstance(number, NotFinite) else number
        reals = self.counts.reals if METRICS[name].need == Need.FEATURES else None
        return self._record(name, value, self.counts.fakes, reals=reals, deviation=deviation, featured=True)

    def _preserved(self, fakes: Description) -> list[Measured | LeftOut]:
        content = self.own.instruments.content
        if "content_preservation" not in self.metrics or content is None:
            return []
        value: float | NotFinite | None = fakes.spoiled(self.counts.fakes, self.crew)
        if value is None:
            rows = fakes.preserved(self.crew)
            value = in_step(self.crew, lambda: _mean(rows, "content_preservation"))
        parameters: Parameters = {"layer": LAYER, "vgg16": weights_of(content), "reduced_to": FEATURES_SIDE}
        return self._record("content_preservation", value, self.counts.fakes, parameters=parameters)

    def _sampled(self) -> list[Measured | LeftOut]:
        """The metrics of single samples."""
        found: list[Measured | LeftOut] = []
        for name in self._wanted(Need.IMAGES, Need.GENERATOR, Need.TRANSLATOR):
            if name == "content_preservation":
                continue
            how = in_step(self.crew, partial(self._sampling, name))
            value = how.measure(self.crew, self.stopped)
            self._note_inputs()
            quantisation = QUANTISATION if how.quantised else None
            found += self._record(
                name, value, how.fakes, parameters=how.parameters, seeds=how.seeds, quantisation=quantisation
            )
        return found

    def _sampling(self, name: MetricName) -> Sampling:
        return sampling(name, self.subject, self.counts.fakes, self.own.instruments, self.stopped)

    def _made_from(self, fakes: int) -> Parameters:
        """What the first fakes follow from, beside the network."""
        if isinstance(self.subject, Translated):
            return self.subject.parameters(sum(number < fakes for number in self._replaced_inputs))
        return self.subject.parameters if isinstance(self.subject, Generated) else {}

    def _compared_with(self, featured: bool) -> DataRecord:
        """The reals, as this subject is compared with them."""
        source = self.subject.source if isinstance(self.subject, Translated) else None
        return self.own.data(featured).model_copy(update={"source": source})

    def _record(
        self,
        name: MetricName,
        value: float | NotFinite,
        fakes: int,
        *,
        reals: int | None = None,
        deviation: float | None = None,
        featured: bool = False,
        parameters: Parameters | None = None,
        details: dict[str, float] | None = None,
        seeds: dict[str, int] | None = None,
        quantisation: str | None = QUANTISATION,
    ) -> list[Measured | LeftOut]:
        """One number as it is kept, or why there is none; nothing on any process but the first."""
        if not self.crew.first:
            return []
        if isinstance(value, NotFinite):
            return [LeftOut(name, str(value))]
        record = make_record(
            name,
            value,
            resolution=self.own.resolution,
            checkpoint=self.checkpoint,
            deviation=deviation,
            reals=reals,
            fakes=fakes,
            data=None if reals is None else self._compared_with(featured),
            extractor=self.own.instruments.extractor if featured else None,
            parameters={**(parameters or {}), **self._made_from(fakes)},
            seeds=self.subject.seeds if seeds is None else seeds,
            quantisation=quantisation,
            device=self.own.device,
        )
        return [Measured(record, details or {})]


def _mean(rows: Tensor | None, name: MetricName) -> float | NotFinite:
    """The mean over samples, or why there is none; 0 on all processes but the first, which has them."""
    return unless_not_finite(lambda: 0.0 if rows is None else exact_mean(rows, name))


def check_metrics(metrics: Sequence[MetricName], counts: Counts, resolution: int, options: Options) -> None:
    """Make sure that metrics can be taken of so many images of this size.

    Raises:
        UsageError: If one cannot, or what computes it is not installed.
    """
    if "swd" in metrics and resolution < LOWEST_RESOLUTION:
        raise UsageError(
            f"{options.metrics} has swd, which needs images of at least {LOWEST_RESOLUTION} pixels, but "
            f"recipe.resolution is {resolution}; leave swd out"
        )
    for name in metrics:
        need, library = METRICS[name].need, METRICS[name].library
        if library:
            torch_fidelity(library)
        if need == Need.IMAGES:
            scales_at(resolution)
        check_count(name, counts.of(name), "fakes")
        if need in (Need.FEATURES, Need.PATCHES):
            check_count(name, counts.reals, "reals")
