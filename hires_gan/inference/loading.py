"""From a checkpoint to the averaged generator as a plain module."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.recipes.families import build_for_inference
from hires_gan.recipes.settings import RecipeSettings

_RECIPE: TypeAdapter[RecipeSettings] = TypeAdapter(RecipeSettings)


def find(reference: str | Path) -> checkpoint.Checkpoint:
    """The checkpoint behind a checkpoint directory, a run directory (its latest) or a `models:/` or `runs:/` URI.

    The files `best` and `latest` in a run's folder of checkpoints stand for those that they name.

    Raises:
        UsageError: If there is nothing there.
        Failure: If what is there is damaged.
    """
    if str(reference).startswith(("models:/", "runs:/")):
        from hires_gan.tracking.flavour import fetch_model

        return checkpoint.read(fetch_model(str(reference)))
    folder = Path(reference)
    if not folder.is_dir():
        if folder.name in (checkpoint.BEST, checkpoint.LATEST) and (folder.is_file() or _has_any(folder.parent)):
            return _pointed(folder)
        raise UsageError(f"there is no folder {folder}; give a checkpoint, a run's folder or models:/NAME/VERSION")
    if (folder / checkpoint.STATE).is_file():
        return checkpoint.read(folder)
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        raise UsageError(f"{folder} is no checkpoint and no run with a checkpoint")
    return found


def _has_any(root: Path) -> bool:
    """Whether it is a run's folder of checkpoints."""
    return any(root.glob(f"*/{checkpoint.STATE}"))


def _pointed(pointer: Path) -> checkpoint.Checkpoint:
    """The checkpoint that a run's `best` or `latest` names.

    Raises:
        UsageError: If there is none.
    """
    root, name = pointer.parent, checkpoint.pointed(pointer.parent, pointer.name)
    if pointer.name == checkpoint.LATEST:  # also where it is missing or names none: the newest that is there
        found = checkpoint.latest(root)
    else:
        found = checkpoint.read(root / name) if name and (root / name / checkpoint.STATE).is_file() else None
    if found is None:
        what = "is not there" if name is None else f"names {name}, which is not there"
        raise UsageError(f"{pointer} {what}; give another checkpoint, or the run's folder for its latest one")
    return found


def load(reference: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The averaged generator of a checkpoint.

    Args:
        reference: A checkpoint directory, a run directory (its latest checkpoint), the files `best` or `latest` in its
            `checkpoints`, or `models:/NAME/VERSION`.
        device: Where it shall be.

    Returns:
        A module in evaluation mode, without gradients: latents `[n, latent_size]`, and int64 labels `[n]` if it is
        conditional, to images `[n, 3, r, r]` in about [-1, 1], at the growth of the checkpoint. Of MUNIT a
        `networks.translation.Translator`: images `[n, 3, h, w]`, styles `[n, style_size]`, the names of their domain
        and of the target's, to translations.

    Raises:
        UsageError: If there is no such checkpoint.
        Failure: If it is damaged, or of a recipe that this version does not know.
    """
    return build(find(reference)).to(device)


def find_generator(reference: str | Path, purpose: str) -> checkpoint.Checkpoint:
    """As `find`, for what needs a generator that makes images from nothing.

    Args:
        reference: As for `find`.
        purpose: What it is needed for, in words.

    Raises:
        UsageError: If there is no checkpoint, or it holds a model that translates images.
        Failure: If it is damaged.
    """
    saved = find(reference)
    recipe = saved.state["configuration"]["recipe"]["name"]
    if "domains" in saved.state["inference"]:
        raise UsageError(
            f"{reference} holds a {recipe} model, which translates images and makes none from nothing: it cannot be "
            f"used {purpose}; use `hires-gan translate`"
        )
    return saved


def build(saved: checkpoint.Checkpoint) -> nn.Module:
    """The averaged generator of an opened checkpoint, on the CPU."""
    configuration = saved.state["configuration"]
    try:
        settings: RecipeSettings = _RECIPE.validate_python(configuration["recipe"])
    except ValidationError as error:
        name = configuration["recipe"].get("name")
        raise Failure(
            f"{saved.folder} holds a {name} model with settings that this version does not know "
            f"({error.error_count()} of them); use the version that wrote it, {saved.state.get('versions')}"
        ) from error
    dtype = torch.float64 if configuration["precision"] == "fp64" else torch.float32
    clamped = configuration["precision"] in ("bf16", "fp16")
    network = build_for_inference(settings, dtype, saved.state["inference"], clamped)
    checkpoint.load_exactly(network, saved.tensors("generator.average"), "generator.average")
    return network.eval().requires_grad_(False)
