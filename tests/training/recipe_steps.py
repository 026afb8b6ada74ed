"""Small recipes of every family, and backends that step them on images that are told by their number."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, LabelDistribution
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.levers import AS_THE_DIAL_SAYS, Levers

WIDTH = {"fmap_base": 512, "fmap_max": 32}
STYLE = {"latent_size": 32, "w_size": 32, "mapping_layers": 2, **WIDTH}
RECIPES: dict[str, dict[str, Any]] = {
    "stylegan2": {"name": "stylegan2", "generator": STYLE, "discriminator": {**WIDTH, "group_size": 2}},
    "stylegan2, augmented, classes": {
        "name": "stylegan2",
        "generator": STYLE,
        "discriminator": {**WIDTH, "group_size": 2},
        "augment": {"probability": {"initial": 0.5}},
        "labels": True,
    },
    "stylegan": {"name": "stylegan", "generator": STYLE, "discriminator": {**WIDTH, "group_size": 2}},
    "progressive": {
        "name": "progressive",
        "generator": {"latent_size": 32, **WIDTH},
        "discriminator": {**WIDTH, "group_size": 2},
        "loss": {"name": "wgan_gp"},
    },
    "munit": {
        "name": "munit",
        "generator": {"base": 8, "most": 32, "blocks": 2, "features": 32, "recompute": True},
        "discriminator": {"scales": 2, "layers": 3, "base": 8, "most": 32, "spectral": True},
        "loss": {"name": "hinge", "style_prior": 0.1, "consistency": 1, "r1": 1, "r1_interval": 4},
        "generator_optimizer": {"halve_kimg": 0.08},
        "crop": 24,
    },
}


def built(
    settings: dict[str, Any],
    device: str,
    performance: str,
    dtype: torch.dtype = torch.float32,
    batch: int = 8,
    levers: Levers = AS_THE_DIAL_SAYS,
    fade: bool = False,
) -> Backend:
    """A backend at the last stage of a recipe; or, where it grows, at the fade before."""
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": 32, **settings})
    recipe = build_recipe(block, batch, dtype, 3, LabelDistribution((3, 1)) if block.labels else None, ("a", "b"))
    backend = Backend(recipe, torch.device(device), 3, performance, levers=levers)  # type: ignore[arg-type]
    if fade:
        del recipe.stages[-1]  # type: ignore[attr-defined]  # a list
        assert recipe.stages[-1].fade
    backend.enter(recipe.stages[-1])
    return backend


def run_steps(backend: Backend, count: int, first: int = 0, micro: int = 4, batch: int = 8) -> list[dict[str, float]]:
    """The means of some steps, from number `first` on, on images that are told by their number."""
    found = []
    for number in range(first, first + count):
        means = one_step(backend, number, drawn_batch(backend, number, batch), micro)
        found.append({name: float(value) for name, value in means.items() if value.ndim == 0})
    return found


def drawn_batch(backend: Backend, number: int, size: int = 8) -> Batch:
    """Images and labels that are told by the step's number."""
    domains, side = getattr(backend.recipe, "domains", ("image",)), backend.recipe.stages[-1].resolution
    draw = torch.Generator().manual_seed(number)
    images = torch.rand((len(domains) * size, 3, side, side), generator=draw).mul_(2).sub_(1).to(backend.device)
    return Batch(images, torch.arange(size, device=backend.device) % 2, domains)


def one_step(backend: Backend, number: int, batch: Batch, micro: int = 4) -> dict[str, Tensor]:
    """The means of one step."""
    recipe = backend.recipe
    nimg = recipe.stages[-1].start + number * len(batch)
    means = backend.step(recipe.phases(nimg), batch, nimg, micro)
    backend.update_average(0.9)
    recipe.advance(nimg + len(batch), means)
    return means


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def steps_never_wait(backend: Backend, first: int, end: int) -> None:
    """Behind `first` steps: in them what is made on first use is made, and phases are recorded."""
    batches = [drawn_batch(backend, number) for number in range(end)]
    for number in range(first):
        one_step(backend, number, batches[number])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(first, end):
            one_step(backend, number, batches[number])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(backend.nonfinite) == 0


def check_whole(backend: Backend) -> None:
    """All phases of its stage are compiled, and recorded."""
    assert backend._recorder.enabled
    assert backend.compiler.refused == {}
    assert len(backend.compiler.seconds) == len(backend.recipe.phases(backend.recipe.stages[-1].start))
