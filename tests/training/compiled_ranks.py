"""Two steps of a small Progressive GAN, compiled or not, as one process of some."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training import backends
from hires_gan.training.compiling import Compiler
from hires_gan.training.levers import Levers
from hires_gan.training.world import World

WIDTH = {"fmap_base": 64, "fmap_max": 8}
PROGRESSIVE = {
    "name": "progressive",
    "resolution": 8,
    "generator": {"latent_size": 8, **WIDTH},
    "discriminator": {**WIDTH, "group_size": 2},
    "loss": {"name": "wgan_gp"},
}
BATCH, STEPS = 8, 2


def entered(world: World, levers: Levers) -> backends.Backend:
    """At the start of the last stage."""
    recipe = build_recipe(TypeAdapter(RecipeSettings).validate_python(PROGRESSIVE), BATCH, torch.float64, 3, None)
    backend = backends.Backend(recipe, world.device, 3, world=world, levers=levers)
    backend.enter(recipe.stages[-1])
    return backend


def stepped(world: World, levers: Levers, micro: int) -> dict[str, Tensor]:
    """The weights behind the steps; with `compile`, fails where something was not."""
    backend = entered(world, levers)
    recipe, own = backend.recipe, backend.share(BATCH)
    for number in range(STEPS):
        draw = torch.Generator().manual_seed(number)
        images = torch.rand((BATCH, 3, 8, 8), generator=draw, dtype=torch.float64) * 2 - 1
        nimg = recipe.stages[-1].start + number * BATCH
        backend.step(recipe.phases(nimg), Batch(images, None).part(slice(own.start, own.stop)), nimg, micro)
    assert backend.compiler.refused == {}
    assert len(backend.compiler.seconds) == (2 if levers.compile == "all" else 0)
    return {f"{name}.{key}": v.detach() for name, p in recipe.players.items() for key, v in p.state_dict().items()}


def compiled(world: World, folder: Path, micro: int) -> int:
    """What each process does; each writes its weights."""
    backends.Compiler = lambda enabled: Compiler(enabled, "aot_eager")  # type: ignore[misc,assignment]
    found = {name: value.contiguous() for name, value in stepped(world, Levers(compile="all"), micro).items()}
    save_file(found, folder / f"{world.rank}.safetensors")
    return 0


def refused(world: World, folder: Path) -> int:
    """Ranks 1 and 2 could not compile one phase, and later rank 2 cannot compile another one."""
    backend = entered(world, Levers(compile="all"))
    if not world.first:
        backend.compiler.refused["generator phase"] = "OSError: no compiler"
    backend.tell_remarks()
    if world.rank == 2:
        backend.compiler.refused["discriminator phase"] = "OSError: no space"
    for _ in range(2):
        backend.tell_remarks()
    backend.enter(backend.recipe.stages[-1])  # where nothing is refused
    backend.tell_remarks()
    return 0
