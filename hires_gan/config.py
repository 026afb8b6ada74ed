"""The configuration: one model composed of every room's settings, read from YAML files and overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from hires_gan.config_errors import Node, Schema, explain, names, not_allowed
from hires_gan.data.settings import DataSettings
from hires_gan.errors import UsageError
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.settings import Settings, at_resolution
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.training.levers import Levers
from hires_gan.training.settings import (
    BackendSettings,
    BatchSettings,
    CheckpointSettings,
    EmaSettings,
    OpsSettings,
    Performance,
    Precision,
    RunSettings,
    SamplesSettings,
)
from hires_gan.yaml_text import Document, Keys, read_document, read_value, write_yaml


class Configuration(Settings):
    """Everything that a training run is told."""

    run: RunSettings
    """What this run is called, where it lives and how long it goes on."""

    data: DataSettings
    """Where the images are and how they reach the device."""

    recipe: RecipeSettings
    """Which family is trained, and how."""

    batch: BatchSettings = BatchSettings()
    """How many images one step sees."""

    precision: Precision = "bf16"
    """In what the networks compute; fp16 clamps and scales no loss, fp64 is for checks."""

    performance: Performance = "fast"
    """fast: on a GPU, CUDA graphs, fused optimizers, and TF32 where half precision is allowed; reference: neither."""

    levers: Levers = Levers()
    """What `performance` sets together, one by one; and torch.compile, which it leaves alone."""

    ops: OpsSettings = OpsSettings()
    """Which implementation computes the compiled ops."""

    backend: BackendSettings = BackendSettings()
    """How many processes train together, and how they sum their gradients."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """When the whole state is written."""

    samples: SamplesSettings = SamplesSettings()
    """The grid of images from fixed latents."""

    ema: EmaSettings = EmaSettings(half_life_kimg=10)
    """The running average of the generator."""

    evaluation: EvaluationSettings = EvaluationSettings()
    """Which numbers judge the averaged generator, and when."""

    tracking: TrackingSettings = TrackingSettings()
    """Where runs are recorded."""

    @model_validator(mode="after")
    def _blocks_fit_together(self) -> Self:
        problems = [
            *_batch_problems(self),
            *_metric_problems(self),
            *_translation_problems(self),
            *_lever_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_configuration(path: Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read a YAML file, the files it is based on and the overrides; nothing else is touched, no path and no device.

    A later layer wins: the base, the file, the overrides (`key.path=value`) from left to right. Blocks merge key by
    key, lists and maps by resolution are replaced whole (an override can reach one entry: `batch.size.64=16`), and a
    block whose `name` changes starts afresh.

    Args:
        path: The YAML file.
        overrides: `key.path=value`, split at the first `=`, the right side read as YAML.

    Raises:
        UsageError: With all errors, one per line.
    """
    files = _chain(path)
    given, problems = _read_overrides(overrides)
    data: dict[str, Any] = {}
    for file in files:
        data = _merge(data, file.data, _SCHEMA.root)
    data = _merge(data, _as_layer(given), _SCHEMA.root)
    data, found = _settle(_with_required_blocks(data))
    try:
        configuration = Configuration.model_validate(data)
    except ValidationError as error:
        found = {**explain(error, data, _SCHEMA), **found}
        configuration = None
    problems += [_with_origin(keys, sentence, files, given) for keys, sentence in found.items()]
    if configuration is None or problems:
        raise UsageError("\n".join(problems))
    return configuration


def to_yaml(configuration: Configuration) -> str:
    """The resolved configuration, every default filled in, as a file that loads to an equal one."""
    return write_yaml(_plain(configuration.model_dump()))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors and as a reference of every key."""
    schema = Configuration.model_json_schema()
    base = {"type": "string", "description": "A file, relative to this one, whose keys hold where this one has none."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"base": base, **schema["properties"]},
    }


@dataclass(frozen=True)
class _Override:
    text: str
    keys: Keys
    value: Any


class _Entries(dict[Any, Any]):
    """Single entries of a map by resolution, which join those that are there instead of replacing them."""


_SCHEMA = Schema(Configuration)
_LOWEST_FOR_SWD = 16  # the metric's own constant is out of reach here: importing it imports torch


def _batch_problems(configuration: Configuration) -> Iterator[str]:
    recipe, batch = configuration.recipe, configuration.batch
    start, group = recipe.first_resolution, recipe.group_size
    if isinstance(batch.size, dict) and min(batch.size) > start:
        yield (
            f"batch.size has no entry for resolution {start}, at which training starts; "
            f"the lowest of the map is {min(batch.size)}: add an entry for {start}"
        )
        return
    resolutions = [2**power for power in range(start.bit_length() - 1, recipe.resolution.bit_length())]
    first = {at_resolution(batch.size, resolution): resolution for resolution in reversed(resolutions)}
    for size, resolution in reversed(first.items()):
        together = recipe.group(size)
        if size % min(group, size):
            lower = size // group * group
            yield (
                f"batch.size is {size} at resolution {resolution}, not a multiple of recipe.discriminator.group_size, "
                f"{group}; take {lower} or {lower + group}, or a group_size that divides {size}"
            )
        elif isinstance(batch.per_device, int) and batch.per_device < size and batch.per_device % together:
            yield (
                f"batch.per_device is {batch.per_device}, not whole groups of {together} samples at resolution "
                f"{resolution} (batch.size {size}, recipe.discriminator.group_size {group}); "
                f"take a multiple of {together}, or auto"
            )


def _metric_problems(configuration: Configuration) -> Iterator[str]:
    resolution = configuration.recipe.resolution
    if "swd" in configuration.evaluation.metrics and resolution < _LOWEST_FOR_SWD:
        yield (
            f"evaluation.metrics has swd, which needs recipe.resolution to be {_LOWEST_FOR_SWD} or more, but it is "
            f"{resolution}; set evaluation.metrics=[] and evaluation.best=null, or take a higher resolution"
        )


def _translation_problems(configuration: Configuration) -> Iterator[str]:
    if configuration.recipe.translates and configuration.precision == "fp16":
        yield (
            f"precision is fp16, whose range is too small for the gradients of {configuration.recipe.name}; bf16, fp32 "
            "and fp64 are allowed"
        )
    if not configuration.recipe.translates and configuration.samples.styles is not None:
        yield (
            f"samples.styles is {configuration.samples.styles}, but {configuration.recipe.name} makes images from "
            "latents; set it to null"
        )


def _lever_problems(configuration: Configuration) -> Iterator[str]:
    compiled = configuration.levers.compile or "none"
    if configuration.run.deterministic and compiled != "none":
        yield (
            f"levers.compile is {compiled}, but run.deterministic is true: compiled kernels are chosen by timing, and "
            "need not repeat bit for bit; set one of them otherwise"
        )


def _chain(path: Path) -> list[Document]:
    """The file and those it is based on, the deepest base first, without their `base` keys."""
    documents: list[Document] = []
    visited: list[Path] = []
    while True:
        document = read_document(path)
        visited.append(path)
        documents.insert(0, document)
        base = document.data.pop("base", None)
        if base is None and ("base",) not in document.lines:  # `base: null` is refused below
            return documents
        where = f"{path}, line {document.lines.get(('base',), 1)}"
        if not isinstance(base, str) or not base:
            raise UsageError(
                f"{where}: base names one YAML file, relative to this one, such as `base: progressive.yaml`"
            )
        path = path.parent / base
        if not path.is_file():
            raise UsageError(f"{where}: base is {base}, but there is no file {path}")
        if path.resolve() in [other.resolve() for other in visited]:
            circle = " -> ".join(str(other) for other in [*visited, path])
            raise UsageError(f"{where}: the bases form a circle, {circle}; take one `base` out")


def _read_overrides(overrides: Sequence[str]) -> tuple[list[_Override], list[str]]:
    given, problems = [], []
    for text in overrides:
        key, equals, right = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals:
            problems.append(f"{text!r} is no override; write key=value, such as run.seed=1")
        elif not all(keys):
            problems.append(f"{text!r} names no key; write key.path=value, such as run.seed=1")
        else:
            try:
                given.append(_Override(text, keys, read_value(right, f"override {text!r}")))
            except UsageError as error:
                problems.append(f"{error}; quote the value if it is text")
    return given, problems


def _as_layer(given: Sequence[_Override]) -> dict[str, Any]:
    """All overrides as one layer, so that their order matters only where they name the same key."""
    layer: dict[str, Any] = {}
    for override in given:
        nested = _nested(override.keys, override.value, _SCHEMA.root)
        layer = _merge(layer, nested, _SCHEMA.root, within_layer=True)
    return layer


def _nested(keys: Keys, value: Any, node: Node | None) -> Any:
    if not keys:
        return value
    if node is not None and not _SCHEMA.blocks(node):
        key = int(keys[0]) if keys[0].isdecimal() else keys[0]
        return _Entries({key: _nested(keys[1:], value, None)})
    return {keys[0]: _nested(keys[1:], value, _SCHEMA.child(node, keys[0]))}


def _merge(old: Any, new: Any, node: Node | None, within_layer: bool = False) -> Any:
    """`old` with what `new` says; neither is changed."""
    blocks = _SCHEMA.blocks(node)
    if isinstance(new, _Entries):
        joined = {**(old if isinstance(old, Mapping) else {}), **new}
        return _Entries(joined) if within_layer and (old is None or isinstance(old, _Entries)) else joined
    if not isinstance(new, Mapping) or not blocks:
        return new
    kept = dict(old) if isinstance(old, Mapping) else {}
    known = [name for block in blocks for name in names(block)]
    if known and not within_layer:
        default = (node or {}).get("default")
        name = kept.get("name", default.get("name") if isinstance(default, Mapping) else None)
        if new.get("name", name) != name and new["name"] in known:  # a misspelt name is one error, not many
            kept = {}
        elif name is not None:
            kept = {"name": name, **kept}
    for key, value in new.items():
        kept[str(key)] = _merge(kept.get(str(key)), value, _SCHEMA.child(node, str(key), {**kept, **new}), within_layer)
    return kept


def _with_required_blocks(data: dict[str, Any]) -> dict[str, Any]:
    """An absent block is an empty one, so that the keys it needs are named, not only the block."""
    blocks: dict[str, Any] = {
        key: {} for key in _SCHEMA.root["required"] if _SCHEMA.blocks(_SCHEMA.child(_SCHEMA.root, key))
    }
    return {**blocks, **data}


def _settle(data: dict[str, Any]) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Mend and refuse what pydantic takes otherwise: 42 is a name where text is asked for, true is never a number."""
    problems: dict[Keys, str] = {}

    def settle(value: Any, keys: Keys, node: Node | None) -> Any:
        if node is None:
            return value
        if isinstance(value, Mapping):
            return {
                key: settle(item, (*keys, str(key)), _SCHEMA.child(node, str(key), value))
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [settle(item, (*keys, str(i)), _SCHEMA.child(node, str(i))) for i, item in enumerate(value)]
        kinds = {branch.get("type") for branch in _SCHEMA.branches(node)}
        if isinstance(value, bool) and "boolean" not in kinds:
            problems[keys] = not_allowed(keys, value, node, _SCHEMA)
        elif isinstance(value, int) and not isinstance(value, bool) and kinds and kinds <= {"string", "null"}:
            return str(value)
        return value

    return {key: settle(value, (key,), _SCHEMA.child(_SCHEMA.root, key)) for key, value in data.items()}, problems


def _with_origin(keys: Keys, sentence: str, files: Sequence[Document], given: Sequence[_Override]) -> str:
    for override in reversed(given):
        shared = min(len(keys), len(override.keys))
        if keys and keys[:shared] == override.keys[:shared]:
            return f"{sentence} (override {override.text})"
    for file in reversed(files):
        if keys in file.lines:
            return f"{sentence} ({file.name}, line {file.lines[keys]})"
    return f"{sentence} ({files[-1].name})" if keys else sentence


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        named = {"name": value["name"]} if "name" in value else {}  # a subclass's `name` comes after what it inherits
        return {key: _plain(item) for key, item in {**named, **value}.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
