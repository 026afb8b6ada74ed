"""What both style-based generators share: truncation, mixing, the running mean of W, the layers' noise."""

from __future__ import annotations

import pytest
import torch
from plain_style_layers import normal
from torch import Tensor

from hires_gan.networks import stylegan, stylegan2
from hires_gan.networks.growth import Width
from hires_gan.networks.styles import ConstantNoise

TINY = Width(base=64, most=8)
Generator = stylegan.Generator | stylegan2.Generator


@pytest.fixture(params=["stylegan", "stylegan2"])
def generator(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    kind = {"stylegan": stylegan.Generator, "stylegan2": stylegan2.Generator}[request.param]
    network = kind(32, latent_size=6, w_size=5, mapping_layers=2, width=TINY).double()
    with torch.no_grad():
        network.w_average.copy_(normal(5, seed=7))
    return network


def test_truncation_draws_every_layer_towards_the_mean(generator: Generator) -> None:
    ws = normal(3, 8, 5)
    found = generator.truncate(ws, 0.7)
    for n in range(3):
        for layer in range(8):
            for d in range(5):
                mean = generator.w_average[d].item()
                assert found[n, layer, d].item() == pytest.approx(mean + 0.7 * (ws[n, layer, d].item() - mean))
    torch.testing.assert_close(generator.truncate(ws, 0.0), generator.w_average.expand(3, 8, 5))
    assert generator.truncate(ws, 1.0) is ws
    beyond = generator.truncate(ws, 1.5) - generator.w_average
    torch.testing.assert_close(beyond, 1.5 * (ws - generator.w_average))


@pytest.mark.parametrize("cutoff", [0, 1, 5, 8, 20])
def test_truncation_ends_at_the_cutoff(generator: Generator, cutoff: int) -> None:
    ws = normal(2, 8, 5)
    found, all_layers = generator.truncate(ws, 0.5, cutoff), generator.truncate(ws, 0.5)
    assert found.shape == ws.shape
    for layer in range(8):
        assert torch.equal(found[:, layer], (all_layers if layer < cutoff else ws)[:, layer])


def test_mixing_has_a_cutoff_for_each_sample(generator: Generator) -> None:
    ws, other, cutoffs = normal(4, 8, 5), normal(4, 8, 5, seed=1), torch.tensor([0, 3, 8, 100])
    mixed = generator.mix(ws, other, cutoffs)
    for n, cutoff in enumerate(cutoffs.tolist()):
        for layer in range(8):
            assert torch.equal(mixed[n, layer], (ws if layer < cutoff else other)[n, layer])


def test_the_mean_of_w_moves_when_it_is_told_to_and_only_then(generator: Generator) -> None:
    before, mean = generator.w_average.clone(), normal(5, seed=2)
    generator.train()
    generator(normal(4, 6)).sum().backward()
    assert torch.equal(generator.w_average, before)
    generator.track_w(mean.float(), 0.75)
    torch.testing.assert_close(generator.w_average, 0.75 * before + 0.25 * mean, rtol=1e-6, atol=1e-6)
    assert not generator.w_average.requires_grad


def test_forward_is_mapping_truncation_and_synthesis_with_the_constant_noise(generator: Generator) -> None:
    latents = normal(3, 6)
    w = generator.mapping(latents)
    ws = w[:, None].repeat(1, generator.num_ws, 1)
    assert torch.equal(generator.styles(latents), ws)
    torch.testing.assert_close(generator(latents), generator.synthesis(ws), rtol=1e-10, atol=1e-10)
    expected = generator.synthesis(generator.truncate(ws, 0.6, 4), generator.synthesis.noise.tensors())
    torch.testing.assert_close(generator(latents, truncation=0.6, cutoff=4), expected, rtol=1e-10, atol=1e-10)
    assert generator.w_average.dtype == torch.float64
    assert (generator.latent_size, generator.classes, generator.resolution) == (6, 0, 32)


def test_the_state_has_the_mean_and_the_noise_and_no_filters(generator: Generator) -> None:
    state = generator.state_dict()
    parameters = {name for name, _ in generator.named_parameters()}
    first = ["4_0", "4_1"] if isinstance(generator, stylegan.Generator) else ["4_0"]
    names = [f"synthesis.noise.{name}" for name in (*first, "8_0", "8_1", "16_0", "16_1", "32_0", "32_1")]
    assert state.keys() - parameters == {"w_average", *names}
    shapes = [tuple(state[name].shape) for name in names]
    assert shapes == generator.synthesis.noise_shapes
    assert sum(h * w for h, w in shapes) == generator.synthesis.noise_total


def test_weights_and_noise_follow_from_torchs_generator() -> None:
    for kind in (stylegan, stylegan2):
        networks = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            networks.append(
                (kind.Generator(16, 6, 5, width=TINY).state_dict(), kind.Discriminator(16, width=TINY).state_dict())
            )
        for same, again, other in zip(*networks, strict=True):
            assert all(torch.equal(same[name], again[name]) for name in same)
            random = [name for name in same if name.endswith("weight") or "noise." in name]
            assert not any(torch.equal(same[name], other[name]) for name in random if "noise_weight" not in name)


def test_numbers_are_cut_into_the_layers_noise(generator: Generator) -> None:
    synthesis = generator.synthesis
    flat = torch.arange(2.0 * synthesis.noise_total).reshape(2, -1)
    parts = synthesis.split_noise(flat)
    assert [tuple(part.shape) for part in parts] == [(2, 1, *shape) for shape in synthesis.noise_shapes]
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), flat)
    with pytest.raises(ValueError, match=r"the noise is \[2, 20\]; \[n, total\] is allowed, with a total of one of"):
        synthesis.split_noise(flat[:, :20])


def test_given_noise_is_used_as_it_is(generator: Generator) -> None:
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "noise" in name:
                parameter.fill_(0.5)
    ws, synthesis = generator.styles(normal(2, 6)), generator.synthesis
    constant = synthesis(ws)
    assert torch.equal(synthesis(ws, synthesis.noise.tensors()), constant)
    repeated = [part.repeat(2, 1, 1, 1) for part in synthesis.noise.tensors()]
    torch.testing.assert_close(synthesis(ws, repeated), constant, rtol=1e-12, atol=1e-12)
    for layer in range(len(repeated)):
        changed = list(repeated)
        changed[layer] = changed[layer].clone()
        changed[layer][1] = changed[layer][1].flip(-1)
        images = synthesis(ws, changed)
        torch.testing.assert_close(images[0], constant[0], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(images[1], constant[1])
    single = [part.float() for part in repeated]
    torch.testing.assert_close(synthesis(ws, single), constant, rtol=1e-4, atol=1e-4)


def test_styles_and_noise_of_another_shape_are_refused(generator: Generator) -> None:
    synthesis, ws = generator.synthesis, normal(2, 8, 5)
    for wrong in (ws[:, :7], ws[:, :, :4], ws[0]):
        with pytest.raises(ValueError, match=r"styles are \[.*\]; \[n, 8, 5\] is allowed"):
            synthesis(wrong)
    noise = synthesis.noise.tensors()
    with pytest.raises(ValueError, match="there is noise for 3 layers"):
        synthesis(ws, noise[:3])
    with pytest.raises(ValueError, match="there is noise for 9 layers"):
        synthesis(ws, [*noise, *noise][:9])
    with pytest.raises(ValueError, match=r"noise 1 is \[3, 1, .*\]; \[2 or 1, 1, "):
        synthesis(ws, [noise[0], noise[1].repeat(3, 1, 1, 1), *noise[2:]])


def test_a_class_changes_an_image() -> None:
    for kind in (stylegan, stylegan2):
        torch.manual_seed(0)
        network = kind.Generator(16, 6, 5, classes=3, mapping_layers=2, width=TINY).double()
        latents = normal(1, 6).repeat(3, 1)
        images: Tensor = network(latents, torch.tensor([0, 1, 1]))
        assert not torch.allclose(images[0], images[1])
        torch.testing.assert_close(images[1], images[2])
        with pytest.raises(ValueError, match="labels missing; classes is 3"):
            network(latents)


def test_constant_noise_is_named_by_resolution() -> None:
    noise = ConstantNoise([4, 8, 8])
    assert list(noise.state_dict()) == ["4_0", "8_0", "8_1"]
    assert noise.total_at(4) == 16
    assert noise.total_at(8) == 144
    assert not torch.equal(noise.tensors()[1], noise.tensors()[2])
    assert not list(noise.parameters())
