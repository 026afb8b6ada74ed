"""VGG16 and the perceptual distance against their formulas; and weights that are at hand, or are not."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from urllib.error import URLError

import literal_munit as literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.networks import vgg as module
from hires_gan.networks.vgg import (
    LAYERS,
    Layer,
    OptionNames,
    VGG16Features,
    cached_vgg,
    instance_normalised,
    obtain_vgg,
    perceptual_distance,
)

NAMES = OptionNames("recipe.vgg.weights", "recipe.vgg.download=true", "recipe.loss.perceptual=0")
FILE = "vgg16-397923af.pth"

# Simonyan and Zisserman 2015, table 1, column D: the number of torchvision's layer, and the maps before and behind it.
BLOCKS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
DEEP: tuple[Layer, ...] = ("relu4_3", "relu5_3")


def random_weights() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    weights = {}
    for number, inputs, outputs in (layer for block in BLOCKS for layer in block):
        kernels = torch.randn(outputs, inputs, 3, 3, generator=random) * math.sqrt(2 / (9 * inputs))
        weights[f"features.{number}.weight"] = kernels
        weights[f"features.{number}.bias"] = torch.randn(outputs, generator=random) * 0.1
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def vgg(weights: dict[str, Tensor]) -> VGG16Features:
    return VGG16Features(weights)


@pytest.fixture(scope="module")
def wide(weights: dict[str, Tensor]) -> VGG16Features:
    """In float64, for what is compared tightly."""
    return VGG16Features(weights).double()


@pytest.fixture(scope="module")
def weights_file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / FILE
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def published(weights_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The random weights pass for the published ones, torch hub's cache is empty, and there is no network."""
    monkeypatch.setattr(module, "VGG_SHA256", hashlib.sha256(weights_file.read_bytes()).hexdigest())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return weights_file


def offline(*_: object, **__: object) -> None:
    raise URLError("no route to host")


def images(count: int, side: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=random, dtype=torch.float64) * 2 - 1


def literal_maps(x: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    means, deviations = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()  # as float32 has them
    channels = zip(x.unbind(1), means, deviations, strict=True)
    x = torch.stack([((channel + 1) / 2 - mean) / deviation for channel, mean, deviation in channels], 1)
    found = {}
    for i, block in enumerate(BLOCKS, 1):
        x = x if i == 1 else F.max_pool2d(x, 2)
        for number, _, _ in block:
            kernels, bias = (weights[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
            x = F.conv2d(x, kernels, bias, padding=1).clamp_min(0)
        found[f"relu{i}_{len(block)}"] = x
    return found


def literal_distance(a: Tensor, b: Tensor) -> Tensor:
    one, two = literal.instance_normalised(a), literal.instance_normalised(b)
    return torch.stack([((x - y) ** 2).sum() / x.numel() for x, y in zip(one, two, strict=True)])


def test_features_are_those_of_the_formulas_at_each_layer(
    wide: VGG16Features, vgg: VGG16Features, weights: dict[str, Tensor]
) -> None:
    x = images(2, 32)
    expected = literal_maps(x, weights)
    assert list(expected) == list(LAYERS)
    for layer, found in zip(LAYERS, wide(x), strict=True):
        torch.testing.assert_close(found, expected[layer], rtol=1e-9, atol=1e-9)
        assert torch.equal(wide.features_at(x, layer), found)
        torch.testing.assert_close(vgg.features_at(x, layer).double(), expected[layer], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("layer", "layers"), [("relu1_2", 4), ("relu4_3", 23), ("relu5_3", 30)])
def test_nothing_behind_the_layer_is_computed(vgg: VGG16Features, layer: Layer, layers: int) -> None:
    passed: list[int] = []
    hooks = [
        part.register_forward_hook(lambda *_, number=number: passed.append(number))
        for number, part in enumerate(vgg.features)
    ]
    vgg.features_at(images(1, 16), layer)
    for hook in hooks:
        hook.remove()
    assert passed == list(range(layers))


def test_a_layer_that_is_not_there_is_refused(vgg: VGG16Features) -> None:
    with pytest.raises(ValueError, match=r"layer is 'relu5_1'; relu1_2, .*, relu5_3 are allowed"):
        vgg.features_at(images(1, 16), "relu5_1")  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", DEEP)
def test_the_distance_and_its_gradients_are_those_of_the_formulas(
    wide: VGG16Features, weights: dict[str, Tensor], layer: Layer
) -> None:
    a, b, coefficients = images(2, 32, 1), images(2, 32, 2), torch.tensor([1.0, -0.7], dtype=torch.float64)
    found_of, expected_of = [(one.clone().requires_grad_(), two.clone().requires_grad_()) for one, two in [(a, b)] * 2]
    found = perceptual_distance(*(wide.features_at(x, layer) for x in found_of))
    expected = literal_distance(*(literal_maps(x, weights)[layer] for x in expected_of))
    assert found.shape == (2,)
    assert expected.min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found_gradients = torch.autograd.grad(found @ coefficients, found_of)
    for one, two in zip(found_gradients, torch.autograd.grad(expected @ coefficients, expected_of), strict=True):
        assert two.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6 * two.abs().max().item())


def test_the_distance_leaves_out_means_and_deviations_of_channels() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 5, 8, 8, generator=random, dtype=torch.float64)
    scale, shift = torch.rand(2, 3, 5, 1, 1, generator=random, dtype=torch.float64) + 1
    torch.testing.assert_close(perceptual_distance(a * scale + shift, b), perceptual_distance(a, b), rtol=1e-4, atol=0)
    assert perceptual_distance(a * scale + shift, a).max() < 1e-9
    assert perceptual_distance(a, b).min() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_instance_normalisation_takes_half_precision_in_float32(dtype: torch.dtype) -> None:
    x = (300 + 400 * images(2, 16)).to(dtype)
    found = instance_normalised(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), literal.instance_normalised(x.double()), rtol=1e-4, atol=1e-4)
    variance, mean = torch.var_mean(found, (2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance, torch.ones(2, 3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_features_of_bfloat16_images_are_computed_in_float32(vgg: VGG16Features, autocast: bool) -> None:
    x = images(1, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = vgg.features_at(x, "relu4_3")
        every = vgg(x)
    assert {one.dtype for one in (found, *every)} == {torch.float32}
    assert torch.equal(found, vgg(x.float())[3])
    assert torch.equal(every[4], vgg(x.float())[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", DEEP)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_values_and_gradients(
    vgg: VGG16Features, value: float, layer: Layer, dtype: torch.dtype
) -> None:
    flat = torch.full((1, 3, 32, 32), value, dtype=dtype)
    for a, b in ((flat, images(1, 32).to(dtype)), (flat, flat), (flat, -flat)):
        pair = a.clone().requires_grad_(), b.clone().requires_grad_()
        found = perceptual_distance(*(vgg.features_at(x, layer) for x in pair))
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        found.sum().backward()
        for x in pair:
            assert x.grad is not None
            assert x.grad.dtype == dtype
            assert x.grad.isfinite().all()


def test_constant_features_give_finite_values_and_gradients() -> None:
    """Of the padding's edge, constant images have features that are not constant: these here are."""
    for value in (0.0, 1.0, -3e4):
        a = torch.full((2, 4, 8, 8), value, requires_grad=True)
        b = images(2, 8)[:, [0, 1, 2, 0]].float().requires_grad_()
        found = perceptual_distance(a, b)
        expected = literal_distance(a.detach().double(), b.detach().double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
        found.sum().backward()
        assert a.grad is not None and b.grad is not None
        assert a.grad.isfinite().all() and b.grad.isfinite().all()
        assert a.grad.abs().max() > 0


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a is of shape \[2, 4, 8, 8\] and b of \[1, 4, 8, 8\]"):
        perceptual_distance(torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \[1, 512, 1, 1\].* single pixel; take larger images, or an earl"):
        perceptual_distance(torch.zeros(1, 512, 1, 1), torch.zeros(1, 512, 1, 1))


def test_weights_come_from_the_path_or_the_cache(published: Path, weights: dict[str, Tensor]) -> None:
    for download in (False, True):  # there is no network, and none is needed
        found = obtain_vgg(published, download, NAMES)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict().items())
        assert len(found.state_dict()) == len(weights)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    cached_vgg().parent.mkdir(parents=True)
    cached_vgg().write_bytes(published.read_bytes())
    for download in (False, True):
        assert obtain_vgg(None, download, NAMES).features[0].weight.equal(weights["features.0.weight"])


def test_weights_are_downloaded_where_that_is_asked_for(
    published: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(url: str, path: str, sha256: str, progress: bool) -> None:
        asked.append((url, sha256))
        Path(path).write_bytes(published.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert obtain_vgg(None, True, NAMES).features[28].bias.equal(weights["features.28.bias"])
    assert asked == [(module.VGG_URL, module.VGG_SHA256)]


def test_without_weights_or_network_one_sentence_says_what_to_do(published: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as absent:
        obtain_vgg(None, False, NAMES)
    assert str(absent.value) == (
        f"there are no VGG16 weights in {cached_vgg()}; fetch torchvision's VGG16 weights with "
        "recipe.vgg.download=true, or name their file with recipe.vgg.weights, or set recipe.loss.perceptual=0"
    )
    with pytest.raises(Failure) as unreachable:
        obtain_vgg(None, True, NAMES)
    assert not isinstance(unreachable.value, UsageError)
    assert str(unreachable.value) == (
        f"cannot download {module.VGG_URL} (<urlopen error no route to host>); fetch it elsewhere and name it with "
        "recipe.vgg.weights, or set recipe.loss.perceptual=0"
    )
    missing = tmp_path / "nothing.pth"
    with pytest.raises(UsageError) as unreadable:
        obtain_vgg(missing, True, NAMES)
    assert str(unreadable.value) == (
        f"recipe.vgg.weights: {missing} cannot be read (No such file or directory); give torchvision's {FILE}, "
        "or set recipe.loss.perceptual=0"
    )


def test_nothing_is_said_of_doing_without_where_one_cannot(published: Path) -> None:
    with pytest.raises(UsageError, match=r"with --download, or name their file with --weights$"):
        obtain_vgg(None, False, OptionNames("--weights", "--download"))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("damage", ["changed", "truncated", "empty"])
def test_damaged_files_are_refused_before_they_are_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, cached: bool
) -> None:
    data = bytearray(published.read_bytes())
    data[-100] ^= 1
    path = cached_vgg() if cached else tmp_path / "damaged.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes({"changed": data, "truncated": data[:-1000], "empty": b""}[damage])
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UsageError) as refused:
        obtain_vgg(None if cached else path, True, NAMES)
    assert str(refused.value) == (
        f"{path} is not torchvision's {FILE}: its sha256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, not "
        f"{module.VGG_SHA256}; fetch it anew, or set recipe.loss.perceptual=0"
    )
