"""`hires-gan import-nvlabs`: a checkpoint of stylegan2-ada-pytorch, or of stylegan3's StyleGAN2, as one of ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import write_whole
from hires_gan.inference.nvlabs_file import ForeignModule, ForeignNetwork, flatten, read_file
from hires_gan.inference.nvlabs_layout import (
    DiscriminatorLayout,
    GeneratorLayout,
    discriminator_layout,
    generator_layout,
)
from hires_gan.inference.nvlabs_names import Origin, discriminator_names, generator_names
from hires_gan.progress import say
from hires_gan.recipes.stylegan2 import build_discriminator, build_generator
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings

_LEFT_OUT = re.compile(r"(?:.*\.)?(resample_filter|magnitude_ema)")
"""Tensors that are no weights: filters, which are checked, and averages that only training reads."""

_PARTS = {"G_ema": "generator.average", "G": "generator", "D": "discriminator"}


@dataclass(frozen=True)
class Imported:
    """What came of a file.

    Attributes:
        saved: The checkpoint.
        lines: What was mapped and what was left out, for people.
    """

    saved: checkpoint.Checkpoint
    lines: list[str]


@dataclass(frozen=True)
class _Converted:
    tensors: dict[str, Tensor]
    left_out: Counter[str]
    turned: int

    def line(self, theirs: str) -> str:
        values = sum(tensor.numel() for tensor in self.tensors.values())
        left = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items())) or "nothing"
        turned = f" ({self.turned} kernels turned by half a turn)" if self.turned else ""
        return f"{theirs} -> {_PARTS[theirs]}: {len(self.tensors)} tensors, {values:,} values{turned}; left out: {left}"


def import_nvlabs(path: Path, out: Path) -> Imported:
    """Map the weights of a file onto our networks, and write them as a run's folder with one checkpoint.

    Args:
        path: The `.pkl` file; nothing in it is executed.
        out: The folder, which must not have checkpoints yet: `generate`, `project`, `export` and `run.init_from` take
            it. `recipe.yaml` in it holds the settings of the networks, as a base for configurations.

    Raises:
        UsageError: If there is no such file, or the folder has checkpoints.
        Failure: If the file is damaged, holds what is not on the closed list, or is of another architecture.
    """
    if (out / "checkpoints").exists() or (out / checkpoint.STATE).exists():
        raise UsageError(f"--out is {out}, which has a checkpoint already; choose a new folder")
    content = read_file(path)
    networks = _networks(content, path)
    generator = generator_layout(networks["G_ema"])
    judge = discriminator_layout(networks["D"]) if "D" in networks else None
    settings = _settings(generator, judge, path)
    converted = {
        name: _converted(network, settings, generator, judge if name == "D" else None)
        for name, network in networks.items()
    }
    parts = {_PARTS[name]: one.tensors for name, one in converted.items()}
    lines = [one.line(name) for name, one in converted.items()]
    if "G" not in networks:
        parts["generator"] = parts["generator.average"]
        lines.append("G is not in the file: the generator to train is G_ema")
    lines += _remarks(generator, networks, set(content) - set(networks))
    configuration = _configuration(settings, generator, judge)
    _write_recipe(out, configuration)
    saved = checkpoint.write(out / "checkpoints", 0, parts, _state(configuration, generator, path, lines))
    return Imported(saved, lines)


def _networks(content: Mapping[str, Any], path: Path) -> dict[str, ForeignNetwork]:
    """The networks of the file, G_ema first."""
    if not isinstance(content.get("G_ema"), ForeignModule):
        keys = ", ".join(sorted(content)[:8]) or "nothing"
        raise Failure(f"{path} has no network G_ema; it holds {keys:.200}: give a checkpoint of StyleGAN2 in PyTorch")
    return {
        name: flatten(content[name], f"{name} of {path}")
        for name in _PARTS
        if isinstance(content.get(name), ForeignModule)
    }


def _settings(generator: GeneratorLayout, judge: DiscriminatorLayout | None, path: Path) -> StyleGAN2Settings:
    """The `recipe` block with which our networks have the sizes of the file's."""
    if judge is not None:
        for what in ("resolution", "classes"):
            one, other = getattr(generator, what), getattr(judge, what)
            if one != other:
                raise Failure(f"{path} is damaged: {what} is {one} for G_ema and {other} for D")
        if judge.classes and judge.mapping_layers != 8:
            raise Failure(
                f"D of {path} maps classes through {judge.mapping_layers} layers; 8 is what our discriminator has"
            )
    discriminator = {} if judge is None else _own(judge, "architecture", "fmap_base", "fmap_max", "group_size")
    return StyleGAN2Settings.model_validate(
        {
            "name": "stylegan2",
            "resolution": generator.resolution,
            "generator": _own(generator, "latent_size", "w_size", "mapping_layers", "fmap_base", "fmap_max"),
            "discriminator": discriminator,
            "labels": generator.classes > 0,
            "low_precision_resolutions": generator.half,
        }
    )


def _own(layout: object, *names: str) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in names}


def _converted(
    network: ForeignNetwork,
    settings: StyleGAN2Settings,
    generator: GeneratorLayout,
    judge: DiscriminatorLayout | None,
) -> _Converted:
    """The tensors of a network under our names: every one of ours, and none of theirs unnoticed.

    It is a generator; where there is a `judge`, the discriminator of that layout.
    """
    resolution, classes = settings.resolution, generator.classes
    with torch.device("meta"):  # names and shapes alone
        if judge is not None:
            ours = build_discriminator(settings, torch.float32, classes).state_dict()
            names = discriminator_names(resolution, judge.architecture, judge.mapping_layers, classes > 0)
        else:
            ours = build_generator(settings, torch.float32, classes).state_dict()
            names = generator_names(resolution, generator.mapping_layers, classes > 0)
    names, absent = _without_noise(names, network) if not generator.noise else (names, {})
    _check_shapes(network, ours, names)
    tensors = {name: _taken(network, origin) for name, origin in names.items()}
    tensors |= {name: torch.zeros(ours[name].shape) for name in absent}
    used = {origin.name for origin in names.values()}
    left = [_LEFT_OUT.fullmatch(name) for name in network.tensors.keys() - used]
    return _Converted(tensors, Counter(match[1] for match in left if match), sum(o.turned for o in names.values()))


def _without_noise(
    names: Mapping[str, Origin], network: ForeignNetwork
) -> tuple[dict[str, Origin], Mapping[str, Origin]]:
    """Apart: the noise and its strength, which a network without noise lacks; ours has a strength of 0."""
    absent = {
        name: origin
        for name, origin in names.items()
        if origin.name not in network.tensors and origin.name.endswith(("noise_strength", "noise_const"))
    }
    return {name: origin for name, origin in names.items() if name not in absent}, absent


def _check_shapes(network: ForeignNetwork, ours: Mapping[str, Tensor], names: Mapping[str, Origin]) -> None:
    used = {origin.name for origin in names.values()}
    problems = [f"{name} is missing" for name in used - network.tensors.keys()]
    problems += [
        f"{origin.name} is {list(network.tensors[origin.name].shape)}, not {list(ours[name].shape)}"
        for name, origin in names.items()
        if origin.name in network.tensors and network.tensors[origin.name].shape != tuple(ours[name].shape)
    ]
    problems += [f"{name} is unknown" for name in network.tensors.keys() - used if not _LEFT_OUT.fullmatch(name)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Failure(
            f"{network.what} is not a StyleGAN2 that can be built here: {', '.join(sorted(problems)[:3])}{more}"
        )


def _taken(network: ForeignNetwork, origin: Origin) -> Tensor:
    """A tensor in float32, its kernel as ours are."""
    tensor = network.tensors[origin.name].tensor().float()
    if not tensor.isfinite().all():
        raise Failure(f"{network.what} has values in {origin.name} that are not finite; its training has diverged")
    return tensor.flip((2, 3)) if origin.turned else tensor


def _remarks(generator: GeneratorLayout, networks: Mapping[str, ForeignNetwork], others: set[str]) -> list[str]:
    lines = [] if "D" in networks else ["D is not in the file: training needs a discriminator to start from"]
    if not generator.noise:
        lines.append("the layers take no noise: ours have noise of 0, with a strength of 0")
    if any(part.get("conv_clamp") is not None for part in networks["G_ema"].attributes.values()):
        lines.append("its layers clamp what they put out; ours do so where a network was trained in half precision")
    if others:
        lines.append(f"left out: {', '.join(sorted(others)):.200}")
    lines.append("what was not in the file: optimizers' states, images shown, the mean path length, augmentation's p")
    return lines


def _configuration(
    settings: StyleGAN2Settings, generator: GeneratorLayout, judge: DiscriminatorLayout | None
) -> dict[str, Any]:
    """What the file says of a configuration; the rest is for whoever trains on."""
    group = settings.discriminator.group_size
    return {
        "recipe": settings.model_dump(mode="json"),
        "precision": "fp16" if generator.half else "fp32",
        "batch": {"size": group * max(1, 32 // group)},
    }


def _state(
    configuration: Mapping[str, Any], generator: GeneratorLayout, path: Path, lines: list[str]
) -> dict[str, Any]:
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "configuration": configuration,
        "configuration_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "inference": {"resolution": generator.resolution, "classes": generator.classes},
        "recipe": {"path_mean": 0.0},
        "data": None,
        "mlflow_run_id": None,
        "imported": {"file": path.name, "sha256": digest, "notes": lines},
        "versions": {name: version(name) for name in ("hires-gan", "torch")},
    }


def _write_recipe(out: Path, configuration: Mapping[str, Any]) -> None:
    text = "# The networks of an imported checkpoint: a base for configurations that train it on.\n"
    text += yaml.safe_dump(dict(configuration), sort_keys=False)
    write_whole(out / "recipe.yaml", lambda partial: partial.write_text(text, encoding="utf-8"))


def report(imported: Imported) -> None:
    """Say what was mapped, what was left out, and what to look at."""
    for line in imported.lines:
        say(line)
    folder = imported.saved.folder.parent.parent
    say(f"look at it: hires-gan generate {folder} --seeds 0-15 --truncation 0.7 --out {folder / 'images'}")
