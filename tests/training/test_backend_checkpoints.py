"""What a backend gives to a checkpoint, and takes back from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_backends import CPU, SMALL, progressive, reals

from hires_gan import checkpoint
from hires_gan.errors import Failure
from hires_gan.recipes.progressive import Progressive
from hires_gan.training.backends import Backend


def advance(backend: Backend, recipe: Progressive, first: int, count: int) -> None:
    for number in range(count):
        nimg = first + 8 * number
        backend.step(recipe.phases(nimg), reals(8, 16), nimg, 4)
        backend.update_average(0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_through_a_checkpoint_continue_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    recipe = progressive(dtype)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[4])
    assert not backend.average.training
    advance(backend, recipe, 400, 2)
    saved = checkpoint.write(tmp_path, 416, backend.tensors(), {})
    names = {"generator", "discriminator", "generator.optimizer", "discriminator.optimizer", "generator.average"}
    assert set(saved.state["files"]) == {f"{name}.safetensors" for name in names}
    advance(backend, recipe, 416, 2)

    again = progressive(dtype)
    resumed = Backend(again, CPU, seed=3)
    parts = {name: checkpoint.read(saved.folder).tensors(name) for name in names}
    resumed.load_weights(parts)
    resumed.enter(again.stages[4])
    resumed.load_optimizers(parts)
    for name, tensors in resumed.tensors().items():
        assert tensors.keys() == parts[name].keys()
        assert all(torch.equal(value, parts[name][key]) for key, value in tensors.items())
    advance(resumed, again, 416, 2)
    undisturbed = backend.tensors()
    for name, tensors in resumed.tensors().items():
        for key, value in tensors.items():
            assert value.dtype == undisturbed[name][key].dtype
            assert value.stride() == undisturbed[name][key].stride(), (name, key)
            assert torch.equal(value, undisturbed[name][key]), (name, key)


def test_parameters_and_moments_lie_in_channels_last_memory() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[4])
    advance(backend, recipe, 400, 1)
    key = "blocks.16.convolutions.1.weight"
    weight = recipe.players["generator"].get_parameter(key)
    moments = backend.optimizers["generator"].state[weight]
    for tensor in (weight, backend.average.get_parameter(key), moments["exp_avg"], moments["exp_avg_sq"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_optimizers_that_have_not_stepped_have_nothing_to_save() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[0])
    parts = backend.tensors()
    assert parts["generator.optimizer"] == {}
    backend.load_optimizers(parts)
    backend.step(recipe.phases(0), reals(8, 4), 0, 8)


def test_the_weights_of_another_architecture_are_refused_by_name() -> None:
    backend = Backend(progressive(torch.float32), CPU, seed=3)
    backend.enter(backend.recipe.stages[0])
    taller = {"schedule": {"start_resolution": 4}, "resolution": 32}
    for other, difference in (
        (taller, r"generator is of another architecture: .*blocks.32.* is unknown and \d+ more"),
        ({"generator": SMALL["generator"] | {"latent_size": 7}}, r"dense.weight is \[128, 7\], not \[128, 6\]"),
        ({"discriminator": SMALL["discriminator"] | {"fmap_base": 32}}, r"discriminator is of another .* is \["),
    ):
        foreign = Backend(progressive(torch.float32, **other), CPU, seed=3)
        foreign.enter(foreign.recipe.stages[0])
        with pytest.raises(Failure, match="of another architecture") as caught:
            backend.load_weights(foreign.tensors())
        caught.match(difference)
