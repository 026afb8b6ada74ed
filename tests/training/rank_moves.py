"""Run by each of several processes: a state moves between data parallel and DeepSpeed, and must stay as it is.

python rank_moves.py STAGE
"""

from __future__ import annotations

import sys

import torch
from accelerate import PartialState
from pydantic import TypeAdapter
from rank_steps import BATCH, FAMILIES, SIDE
from torch import Tensor

from hires_gan.checkpoint import Tensors
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.world import World, join
from hires_gan.training.zero import Engines


def backend_of(world: World, engines: Engines | None) -> Backend:
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": SIDE, **FAMILIES["stylegan2"]})
    recipe = build_recipe(block, BATCH, torch.float32, 3, None, ("image",))
    return Backend(recipe, world.device, 3, "reference", world, engines)


def step(backend: Backend, number: int) -> None:
    images = torch.rand((BATCH, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(number)) * 2 - 1
    own = backend.share(BATCH)
    batch = Batch(images, None).part(slice(own.start, own.stop))
    first = number * BATCH
    backend.recipe.advance(first + BATCH, backend.step(backend.recipe.phases(first), batch, first, 2))
    backend.update_average(0.9)


def moved(parts: dict[str, Tensors], backend: Backend) -> Backend:
    backend.load_weights(parts)
    backend.enter(backend.recipe.stages[0])
    backend.load_optimizers(parts)
    return backend


def copied(backend: Backend) -> dict[str, Tensors]:
    return {part: {name: v.clone() for name, v in tensors.items()} for part, tensors in backend.tensors().items()}


def same(one: dict[str, Tensors], other: dict[str, Tensors]) -> None:
    """Bit for bit, names and shapes included."""
    assert one.keys() == other.keys()
    for part, tensors in one.items():
        assert tensors.keys() == other[part].keys(), part
        for name, value in tensors.items():
            assert torch.equal(value, other[part][name]), (part, name)


def close(one: Tensor, other: Tensor, what: str) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=what)


def main(stage: int) -> None:
    world = join(PartialState(cpu=True).device, 60)
    engines = Engines(["generator", "discriminator"], stage, world)  # type: ignore[arg-type]
    parallel = backend_of(world, None)
    parallel.enter(parallel.recipe.stages[0])
    step(parallel, 0)
    step(parallel, 1)
    written = copied(parallel)
    divided = moved(written, backend_of(world, engines))
    same(written, divided.tensors())
    step(divided, 2)
    written = copied(divided)
    again = moved(written, backend_of(world, None))
    same(written, again.tensors())
    step(parallel, 2)  # what would have been without the detour
    for name, value in parallel.tensors()["generator"].items():
        close(written["generator"][name], value, name)
    print(f"rank {world.rank}: ZeRO-{stage} gives back what it was given", flush=True)
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]))
