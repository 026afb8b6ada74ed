"""Run by each of several processes: one step of a few recipes, whose parameters the first one writes down.

python rank_steps.py OUT CELL...; a cell is FAMILY:OPTIMIZER:MICRO or, under DeepSpeed, FAMILY:OPTIMIZER:MICRO:STAGE,
such as stylegan2:sgd:2:1. All cells of a call have the same stage, or none. OPTIMIZER is adam (in float64), sgd (in
float32), still (Adam in float32 with a learning rate of 0: its moments tell the gradients) or exact (that in float64).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, OptimizerPlan, Recipe
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.learners import adam
from hires_gan.training.world import World, join
from hires_gan.training.zero import Engines

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


def descent(parameters: list[nn.Parameter], plan: OptimizerPlan, fused: bool) -> torch.optim.Optimizer:
    """Plain gradient descent: in float32, Adam makes whole steps of gradients that are rounding alone."""
    return torch.optim.SGD(parameters, lr=0.01)


def stir(recipe: Recipe) -> None:
    """Biases and gains that begin at 0 would tell a gradient's rounding alone."""
    chance = torch.Generator().manual_seed(5)
    for player in recipe.players.values():
        for parameter in player.parameters():
            noise = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
            parameter.data.add_(0.1 * noise.to(parameter.dtype))


def stepped(world: World, cell: str, engines: Engines | None = None) -> dict[str, Tensor]:
    """All weights behind one step in which every phase is due, its means, and the optimizers' moments."""
    family, optimizer, micro, *_ = cell.split(":")
    dtype = torch.float64 if optimizer in ("adam", "exact") else torch.float32
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": SIDE, **FAMILIES[family]})
    domains = ("a", "b") if family == "munit" else ("image",)
    recipe = build_recipe(block, BATCH, dtype, 3, None, domains)
    make = descent if optimizer == "sgd" else adam
    stir(recipe)
    backend = Backend(recipe, world.device, 3, "reference", world, engines, make)
    stage = recipe.stages[-1]
    if optimizer in ("still", "exact"):
        plans = {name: replace(plan, learning_rate=0.0) for name, plan in stage.optimizers.items()}
        stage = replace(stage, optimizers=plans)
    backend.enter(stage)
    shape = (len(domains) * BATCH, 3, SIDE, SIDE)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype) * 2 - 1
    own = backend.share(BATCH)
    batch = Batch(images, None, domains).part(slice(own.start, own.stop))
    means = backend.step(recipe.phases(stage.start), batch, stage.start, int(micro))
    recipe.advance(stage.start + BATCH, means)
    found = {f"mean.{name}": value for name, value in means.items()}
    for part, tensors in backend.tensors().items():
        found |= {f"{part}.{name}": value.detach() for name, value in tensors.items()}
    for learner in backend.learners.values():
        learner.close()
    return found


def compare(folder: Path, cell: str) -> None:
    """Hold what processes have written to `folder` to what one process does: each tensor, by its largest entry."""
    optimizer = cell.split(":")[1]
    expected = stepped(World(torch.device("cpu")), cell)
    found = load_file(folder / f"{cell}.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # What is left of scores whose terms cancel out is told in float64 alone; moments, by the gradients' own test.
        if not (optimizer == "sgd" and name.startswith("mean.")) and ".optimizer." not in name:
            largest, tolerance = float(value.abs().max()), 1e-9 if optimizer == "adam" else 1e-6
            assert float((found[name] - value).abs().max()) <= tolerance * largest, (cell, name)


def main(out: Path, cells: list[str]) -> None:
    world = join(PartialState(cpu=True).device, 60)
    stages = {cell.split(":")[3:][0] for cell in cells if cell.count(":") == 3}
    engines = Engines(["generator", "discriminator"], 2 if "2" in stages else 1, world) if stages else None
    for cell in cells:
        found = stepped(world, cell, engines)
        print(f"rank {world.rank} of {world.size}: {cell}", flush=True)
        if world.first:
            save_file({name: value.contiguous().clone() for name, value in found.items()}, out / f"{cell}.safetensors")
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
