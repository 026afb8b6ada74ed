"""Run by each of several processes: one step of a few recipes, whose parameters the first one writes down.

python rank_steps.py OUT CELL...; a cell is FAMILY:OPTIMIZER:MICRO, such as stylegan2:adam:2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Replicas
from hires_gan.training.world import World, join

BATCH, SIDE = 8, 16
WIDTH = {"fmap_base": 64, "fmap_max": 8}
STYLE = {"latent_size": 8, "w_size": 8, "mapping_layers": 2, **WIDTH}
FAMILIES: dict[str, dict[str, Any]] = {
    "progressive": {
        "name": "progressive",
        "generator": {"latent_size": 8, **WIDTH},
        "discriminator": {**WIDTH, "group_size": 2},
        "loss": {"name": "wgan_gp"},
    },
    "stylegan": {
        "name": "stylegan",
        "generator": STYLE,
        "discriminator": {**WIDTH, "group_size": 2},
    },
    "stylegan2": {
        "name": "stylegan2",
        "generator": STYLE,
        "discriminator": {**WIDTH, "group_size": 2},
        "augment": {"probability": {"initial": 0.5}},
    },
    "munit": {
        "name": "munit",
        "generator": {"style_size": 4, "base": 4, "most": 8, "content_downs": 1, "style_downs": 2, "blocks": 1},
        "discriminator": {"scales": 2, "layers": 2, "base": 4, "most": 8, "spectral": True},
        "loss": {"name": "hinge", "style_prior": 0.1, "consistency": 1, "r1": 1},
    },
}


class Descent(Replicas):
    """With plain gradient descent: in float32, Adam makes whole steps of gradients that are rounding alone."""

    def _optimizer(self, parameters: Any, plan: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.01)


def stepped(world: World, family: str, optimizer: str, micro: int) -> dict[str, Tensor]:
    """All parameters behind one step in which every phase is due, and its means."""
    dtype = torch.float64 if optimizer == "adam" else torch.float32
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": SIDE, **FAMILIES[family]})
    domains = ("a", "b") if family == "munit" else ("image",)
    recipe = build_recipe(block, BATCH, dtype, 3, None, domains)
    kind = Replicas if optimizer == "adam" else Descent
    backend = kind(recipe, world.device, 3, "reference", world)
    stage = recipe.stages[-1]
    backend.enter(stage)
    shape = (len(domains) * BATCH, 3, SIDE, SIDE)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype) * 2 - 1
    own = backend.share(BATCH)
    batch = Batch(images, None, domains).part(slice(own.start, own.stop))
    means = backend.step(recipe.phases(stage.start), batch, stage.start, micro)
    recipe.advance(stage.start + BATCH, means)
    found = {f"mean.{name}": value for name, value in means.items()}
    for player, network in recipe.players.items():
        found |= {f"{player}.{name}": value.detach() for name, value in network.state_dict().items()}
    return found


def main(out: Path, cells: list[str]) -> None:
    world = join(PartialState(cpu=True).device, 60)
    for cell in cells:
        family, optimizer, micro = cell.split(":")
        found = stepped(world, family, optimizer, int(micro))
        print(f"rank {world.rank} of {world.size}: {cell}", flush=True)
        if world.first:
            save_file({name: value.contiguous().clone() for name, value in found.items()}, out / f"{cell}.safetensors")
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
