"""`hires-gan evaluate`: the numbers of a checkpoint, by one process or by several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from hires_gan import checkpoint
from hires_gan.data.domains import Domains, open_data
from hires_gan.data.settings import DataSettings
from hires_gan.data.waiting import never
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName
from hires_gan.evaluation.crew import Crew, in_step
from hires_gan.evaluation.evaluator import COMMAND, Counts, Evaluator, counted
from hires_gan.evaluation.fitting import check_fit
from hires_gan.evaluation.instruments import COMMAND_NAMES, Instruments, Sources, open_instruments, require_same
from hires_gan.evaluation.protocol import checkpoint_record
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.results import Result, of_directions
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.evaluation.subjects import Generated, Subject, Translated
from hires_gan.inference.loading import build, find
from hires_gan.progress import say
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.munit_settings import MunitSettings
from hires_gan.recipes.protocol import LabelDistribution, Recipe
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.settings import IntByResolution

_RECIPE: TypeAdapter[RecipeSettings] = TypeAdapter(RecipeSettings)
_BATCH: TypeAdapter[int | dict[int, int]] = TypeAdapter(IntByResolution)
COUNT = EvaluationSettings().count
"""Fakes where nothing else is said: as many as in training."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        metrics: Which numbers.
        data: The shards: one location, or NAME=LOCATION for each domain; none for those of the checkpoint.
        count: How many fakes.
        reals: How many reals; None for all.
        seed: Of the latents or styles; None for the run's own, which its evaluations have.
        sources: Of feature networks and weights.
    """

    metrics: tuple[MetricName, ...] = ("swd",)
    data: tuple[str, ...] = ()
    count: int = COUNT
    reals: int | None = None
    seed: int | None = None
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        saved: The checkpoint.
        result: The numbers, on the first process.
        missing: The metrics that could not be computed, or came out as no finite number, and why.
    """

    saved: checkpoint.Checkpoint
    result: Result
    missing: Mapping[str, str]

    def as_json(self) -> str:
        """For a file."""
        about = {"checkpoint": str(self.saved.folder), "nimg": self.saved.nimg, "missing": dict(self.missing)}
        return json.dumps({**about, **json.loads(self.result.as_json())}, indent=1) + "\n"


@dataclass(frozen=True)
class _Model:
    """A checkpoint, ready to make images."""

    saved: checkpoint.Checkpoint
    settings: RecipeSettings
    network: nn.Module
    recipe: Recipe


def agreed_checkpoint(reference: str, crew: Crew) -> checkpoint.Checkpoint:
    """A checkpoint, the same for all: a run that is training may write another one meanwhile.

    Args:
        reference: As for `inference.loading.find`.
        crew: The processes; all of them have to come here.

    Raises:
        UsageError: If there is no such checkpoint.
        Failure: If it is damaged, or the processes find different ones.
    """
    saved = in_step(crew, lambda: find(reference))
    first = crew.gathered([saved.nimg, saved.state["files"]])[0]

    def check() -> None:
        if [saved.nimg, saved.state["files"]] != first:
            raise Failure(
                f"the processes have found other checkpoints behind {reference}; name one checkpoint's own folder"
            )

    in_step(crew, check)
    return saved


def evaluate(saved: checkpoint.Checkpoint, request: Request, crew: Crew, device: torch.device) -> Report:
    """Measure a checkpoint; all processes have to come here.

    Args:
        saved: The checkpoint, as `agreed_checkpoint` gives it.
        request: What is asked for.
        crew: The processes.
        device: Where this one computes.

    Raises:
        UsageError: If what is asked for does not fit the checkpoint or the data, or the processes differ in what they
            are asked for, in the data, or in the networks that they measure with.
        Failure: If something is damaged, or a metric cannot be computed.
    """
    model, reals = in_step(crew, lambda: _opened_with_reals(saved, request, crew, device))
    require_same(crew, in_step(crew, lambda: _identities(request, reals)))
    side = model.settings.resolution
    instruments = in_step(crew, lambda: open_instruments(request.metrics, request.sources, device, COMMAND_NAMES, side))
    instruments.agree(crew)
    for reason, names in instruments.reasons().items():
        say(f"warning: {', '.join(names)} cannot be computed: {reason}")
    result = _measure(model, request, reals, _Judge(model, request, instruments, crew))
    left_out = {name: reason for name, reason in result.not_finite.items() if "/" not in name}
    return Report(saved, result, dict[str, str](instruments.missing.items()) | left_out)


def require_all(report: Report, failures: Sequence[str] = ()) -> None:
    """Let it be known by the exit code that something is missing.

    Args:
        report: What was found.
        failures: What else failed, as clauses.

    Raises:
        Failure: If a metric that was asked for could not be computed, or something else failed.
    """
    missing = f"{', '.join(report.missing)} could not be computed, for what is said above" if report.missing else ""
    told = [*failures, *filter(None, [missing])]
    if told:
        raise Failure("; besides, ".join(told))


def _opened_with_reals(
    saved: checkpoint.Checkpoint, request: Request, crew: Crew, device: torch.device
) -> tuple[_Model, dict[str, Reals]]:
    model, data = _opened(saved, request, device)
    settings, resolution = _settings(saved, request), model.settings.resolution
    domains = saved.state["inference"].get("domains", data.names)  # in this order, whatever that of the data
    return model, {name: Reals(data.only(name), settings, resolution, share=crew.neighbours) for name in domains}


def _identities(request: Request, reals: Mapping[str, Reals]) -> dict[str, tuple[str, str] | None]:
    """What has to be the same in all processes before any of them measures; where data lie may differ."""
    asked = f"{', '.join(request.metrics)}; count {request.count}, reals {request.reals}, seed {request.seed}"
    found: dict[str, tuple[str, str] | None] = {"arguments": (asked, asked)}
    for name, one in reals.items():
        record = one.record()
        what = "data" if len(reals) == 1 else f"data of {name}"
        identity = f"{record.digest} {record.column} {record.decoder}"
        found[what] = identity, f"{record.name} with digest {record.digest[:12]}, by {record.decoder}"
    return found


def _opened(saved: checkpoint.Checkpoint, request: Request, device: torch.device) -> tuple[_Model, Domains]:
    """The model and the data, if these fit it.

    Raises:
        UsageError: If they do not.
    """
    configuration = saved.state["configuration"]
    network = build(saved).to(device)
    settings = _RECIPE.validate_python(configuration["recipe"])
    check_fit(request.metrics, settings.name, settings.translates, "--metrics")
    data = open_data(_settings(saved, request))
    _check_domains(saved, data)
    _check_sizes(settings, data)
    labels = _labels(saved, data)
    # A checkpoint that was imported belongs to no run.
    seed = configuration.get("run", {}).get("seed", 0) if request.seed is None else request.seed
    dtype = torch.float64 if configuration["precision"] == "fp64" else torch.float32
    batch = _BATCH.validate_python(configuration["batch"]["size"])
    domains = saved.state["inference"].get("domains", ())
    recipe = build_recipe(_without_losses(settings), batch, dtype, seed, labels, domains)
    return _Model(saved, settings, network, recipe), data


def _without_losses(settings: RecipeSettings) -> RecipeSettings:
    """Settings that need no weights beside the checkpoint's: nothing is trained here."""
    if isinstance(settings, MunitSettings):
        return settings.model_copy(update={"loss": settings.loss.model_copy(update={"perceptual": 0.0})})
    return settings


def _settings(saved: checkpoint.Checkpoint, request: Request) -> DataSettings:
    """The `data` block: the checkpoint's, with other shards where they are named.

    Raises:
        UsageError: If they are not named as they can be.
    """
    kept: dict[str, Any] = saved.state["configuration"].get("data", {})
    try:
        return DataSettings.model_validate({**kept, **_locations(request.data)})
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise UsageError(f"--data: {reason}") from error


def _locations(data: Sequence[str]) -> dict[str, Any]:
    """What `--data` says, as keys of the `data` block."""
    named = dict(one.split("=", 1) for one in data if _is_named(one))
    if not data:
        return {}
    if len(named) == len(data):
        return {"shards": None, "domains": named}
    if len(data) > 1:
        raise UsageError(
            f"--data is given {len(data)} times, as {', '.join(data)}; name one shard set, or one for each domain, as "
            "in --data a=SHARDS --data b=SHARDS"
        )
    return {"shards": data[0], "domains": None}


def _is_named(location: str) -> bool:
    return location.partition("=")[0].isidentifier() and "=" in location


def _check_domains(saved: checkpoint.Checkpoint, data: Domains) -> None:
    domains = tuple(saved.state["inference"].get("domains", ()))
    found = "plain images" if data.is_plain else f"the domains {', '.join(data.names)}"
    if not domains and not data.is_plain:
        raise UsageError(f"--data: {data.location} has {found}, but {saved.folder} makes plain images; name such a set")
    if domains and set(domains) != set(data.names):
        each = " ".join(f"--data {name}=SHARDS" for name in domains)
        raise UsageError(
            f"--data: {data.location} has {found}, but {saved.folder} translates between {', '.join(domains)}; name a "
            f"set of pairs of these, or {each}"
        )


def _check_sizes(settings: RecipeSettings, data: Domains) -> None:
    for source in data.sources:
        found, images = source.shards.resolution, f"images{data.of(source)} in {source.location}"
        if found < settings.resolution:
            raise UsageError(
                f"--data: {images} have {found}x{found} pixels, and the model's have {settings.resolution}x"
                f"{settings.resolution}; prepare them again at --resolution {settings.resolution}, from large originals"
            )
        if found > settings.resolution:
            say(f"{images}, of {found} pixels, are reduced to {settings.resolution} by 2x2 box averages")


def _labels(saved: checkpoint.Checkpoint, data: Domains) -> LabelDistribution | None:
    """How often each class occurs in the data, for a conditional generator.

    Raises:
        UsageError: If the data have no classes, or others.
    """
    classes = saved.state["inference"].get("classes", 0)
    if not classes:
        return None
    counts = data.sources[0].shards.label_counts
    if counts is None or len(counts) != classes:
        found = "no labels" if counts is None else f"labels of {len(counts)} classes"
        raise UsageError(
            f"--data: {data.location} has {found}, but the generator of {saved.folder} has {classes} classes; name a "
            "set with the same ones"
        )
    return LabelDistribution(tuple(int(count) for count in counts))


def _measure(model: _Model, request: Request, reals: Mapping[str, Reals], judge: _Judge) -> Result:
    if not model.settings.translates:
        (only,) = reals.values()
        counts = counted(request.count, request.reals, len(only))
        return judge(counts, only, Generated(model.recipe, model.network, model.saved.nimg, only.resolution))  # type: ignore[arg-type]
    found: dict[str, Result] = {}
    for source, target in permutations(reals, 2):
        say(f"{source} to {target}")
        counts = counted(request.count, request.reals, len(reals[target]), len(reals[source]))
        subject = Translated(model.recipe, model.network, model.saved.nimg, source, target, reals[source])  # type: ignore[arg-type]
        found[subject.direction] = judge(counts, reals[target], subject)
    return of_directions(found)


class _Judge:
    """Measures one subject after the other, by all processes."""

    def __init__(self, model: _Model, request: Request, instruments: Instruments, crew: Crew) -> None:
        self.model, self.request, self.instruments, self.crew = model, request, instruments, crew
        self.device = next(model.network.parameters()).device

    def __call__(self, counts: Counts, reals: Reals, subject: Subject) -> Result:
        """All numbers of a subject."""
        evaluator = in_step(self.crew, lambda: self._evaluator(counts, reals))
        result = evaluator.measure(subject, checkpoint_record(self.model.saved.state), never)
        assert result is not None, "nobody asks to stop"
        return result

    def _evaluator(self, counts: Counts, reals: Reals) -> Evaluator:
        return Evaluator(self.request.metrics, counts, reals, self.instruments, self.device, self.crew, options=COMMAND)


def table(result: Result) -> list[tuple[str, str, str, str]]:
    """A row for each number: the metric, the direction of a translation, the value, which way is better."""
    rows: list[tuple[str, str, str, str]] = []
    for name, value in result.values.items():
        metric, _, direction = name.partition("/")
        last = name.rpartition("/")[2]
        if last.isdecimal() or last == "deviation":
            continue
        deviation = result.values.get(f"{name}/deviation")
        shown = f"{value:.5g}" + ("" if deviation is None else f" ± {deviation:.2g}")
        rows.append((METRICS[metric].label, direction.replace("_to_", " to "), shown, METRICS[metric].better))
    return rows
