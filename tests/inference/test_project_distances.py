"""Distances from a target, each against another's or a literal one; and weights that are at hand, or are not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torchvision.models import vgg16

from hires_gan.errors import Failure, UsageError
from hires_gan.inference import features
from hires_gan.inference.distances import (
    DistanceOptions,
    FeatureDistance,
    PixelDistance,
    choose_kind,
    make_distance,
)
from hires_gan.inference.features import OPTIONS, load_lpips, lpips_file
from hires_gan.networks import vgg as vgg_module
from hires_gan.networks.vgg import VGG16Features, cached_vgg, load_vgg


def images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network():
    """torchvision's own VGG16, with random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = vgg16()
    convolutions = empty.features.to_empty(device="cpu")
    for name, parameter in convolutions.named_parameters():
        torch.nn.init.kaiming_normal_(parameter) if name.endswith("weight") else torch.nn.init.zeros_(parameter)
    return convolutions.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(network) -> dict[str, torch.Tensor]:
    return {f"features.{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    torch.save(weights | {"classifier.0.weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def published(weights_file, monkeypatch, tmp_path):
    """The random weights pass for the published ones, and torch hub's cache is empty."""
    monkeypatch.setattr(vgg_module, "VGG_SHA256", hashlib.sha256(weights_file.read_bytes()).hexdigest())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return weights_file


def literal_pixels(x: np.ndarray, y: np.ndarray) -> float:
    frequencies = np.abs(np.abs(np.fft.rfft2(x, norm="ortho")) - np.abs(np.fft.rfft2(y, norm="ortho"))).mean()
    levels = []
    while True:
        levels.append(np.abs(x - y).mean() + ((x - y) ** 2).mean())
        if x.shape[-1] <= 8:
            return float(np.mean(levels) + frequencies)
        x, y = ((a[:, ::2, ::2] + a[:, 1::2, ::2] + a[:, ::2, 1::2] + a[:, 1::2, 1::2]) / 4 for a in (x, y))


@pytest.mark.parametrize("side", [4, 8, 32])
def test_the_distance_of_pixels(side):
    target, others = images(1, side, 1), images(3, side, 2)
    found = PixelDistance(target)(others)
    expected = [literal_pixels(other.double().numpy(), target[0].double().numpy()) for other in others]
    assert np.allclose(found, expected, rtol=1e-5)
    assert PixelDistance(target)(target) == 0


@pytest.mark.parametrize("side", [4, 16])
def test_gradients_are_finite_even_at_the_target(side, weights):
    target = images(1, side)
    for distance in (PixelDistance(target), FeatureDistance(target, VGG16Features(weights), None)):
        for start in (target, torch.zeros_like(target), images(1, side, 5)):
            x = start.clone().requires_grad_(True)
            distance(x).sum().backward()
            assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0


def test_features_are_torchvisions(network, weights):
    x = images(2, 32)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = ((x + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    expected = []
    for number, layer in enumerate(network):
        y = layer(y)
        if number in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
            expected.append(y.clone())
    found = VGG16Features(weights)(x)
    assert [tensor.shape[1] for tensor in found] == [64, 128, 256, 512, 512]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_lpips_by_its_formula(weights):
    """Zhang et al. 2018, equation 1, written out."""
    vgg = VGG16Features(weights)
    linear = [torch.rand(count, generator=torch.Generator().manual_seed(count)) for count in vgg_module.CHANNELS]
    target, other = images(1, 32, 1), images(1, 32, 2)
    expected = 0.0
    for one, two, weight in zip(vgg(target), vgg(other), linear, strict=True):
        _, channels, height, width = one.shape
        a, b = (x[0].reshape(channels, -1).double().numpy() for x in (one, two))
        unit = a / np.linalg.norm(a, axis=0) - b / np.linalg.norm(b, axis=0)
        expected += (weight.double().numpy()[:, None] * unit**2).sum() / (height * width)
    assert FeatureDistance(target, vgg, linear)(other).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_lpips_is_the_published_one():
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    reference = lpips._LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    convolutions = {f"features.{name}": tensor for name, tensor in vgg_of(reference).items()}
    file = lpips_file()
    assert file is not None
    target, others = images(1, 64, 1), images(2, 64, 2)
    found = FeatureDistance(target, VGG16Features(convolutions), load_lpips(file))(others)
    expected = reference(others, target.expand(2, -1, -1, -1)).flatten()
    assert torch.allclose(found, expected.detach(), rtol=1e-3)
    assert found.min() > 0.01
    assert all(weight.min() >= 0 for weight in load_lpips(file))


def vgg_of(reference) -> dict[str, torch.Tensor]:
    """The convolutions of a reference that has cut VGG16 into five parts, numbered on."""
    return {name.split(".", 1)[1]: tensor for name, tensor in reference.net.state_dict().items()}


def test_features_compare_larger_images_at_256(weights):
    vgg = VGG16Features(weights)
    target, other = images(1, 512, 1), images(1, 512, 2)
    halves = [x.reshape(1, 3, 256, 2, 256, 2).mean((3, 5)) for x in (target, other)]
    with torch.no_grad():
        found = FeatureDistance(target, vgg, None)(other)
        expected = [a / a.norm(dim=1, keepdim=True) for a in vgg(halves[0])]
        layers = zip(expected, vgg(halves[1]), strict=True)
        differences = [(a - b / b.norm(dim=1, keepdim=True)).square().sum(1).mean() for a, b in layers]
    assert found.item() == pytest.approx(sum(x.item() for x in differences) / 5, rel=1e-4)


def test_auto_takes_pixels_where_there_are_no_weights_and_says_how_to_get_them(published, capsys):
    assert choose_kind(DistanceOptions()) == ("pixel", None)
    said = capsys.readouterr().err
    assert "distance: pixels and frequencies" in said
    assert "fetch torchvision's VGG16 weights with --download, or name their file with --weights" in said


def test_auto_takes_lpips_or_vgg_where_their_weights_are(published, monkeypatch, capsys):
    cached_vgg().parent.mkdir(parents=True)
    cached_vgg().write_bytes(published.read_bytes())
    for wanted in (DistanceOptions(), DistanceOptions("lpips")):
        assert choose_kind(wanted) == ("lpips", cached_vgg())
    assert choose_kind(DistanceOptions(weights=published)) == ("lpips", published)
    assert choose_kind(DistanceOptions("vgg")) == ("vgg", cached_vgg())
    capsys.readouterr()
    monkeypatch.setattr("hires_gan.inference.distances.lpips_file", lambda: None)
    assert choose_kind(DistanceOptions()) == ("vgg", cached_vgg())
    assert "VGG16's features. For LPIPS, the weights of its last layers are not installed" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"--distance is lpips, but the weights .* install torchmetrics"):
        choose_kind(DistanceOptions("lpips"))


def test_distances_that_cannot_be_had(published, tmp_path):
    for kind in ("lpips", "vgg"):
        with pytest.raises(UsageError, match=rf"--distance is {kind}, but there are no VGG16 weights in .*hub.*--down"):
            choose_kind(DistanceOptions(kind))
    with pytest.raises(UsageError, match="--weights is given, but --distance pixel needs no weights"):
        choose_kind(DistanceOptions("pixel", published))
    with pytest.raises(UsageError, match="--download is given, but --distance pixel needs no weights"):
        choose_kind(DistanceOptions("pixel", download=True))
    with pytest.raises(UsageError, match="--weights and --download are both given"):
        choose_kind(DistanceOptions("auto", published, download=True))
    with pytest.raises(UsageError, match=r"--weights: .*nothing\.pth cannot be read"):
        make_distance("vgg", images(1, 16), tmp_path / "nothing.pth")


def test_weights_are_checked_before_they_are_read(published, tmp_path):
    changed = tmp_path / "changed.pth"
    data = bytearray(published.read_bytes())
    data[-100] ^= 1
    changed.write_bytes(data)
    with pytest.raises(UsageError, match=r"changed\.pth is not torchvision's vgg16-397923af\.pth: its sha256 is"):
        make_distance("vgg", images(1, 16), changed)
    distance = make_distance("vgg", images(1, 16, 1), published)
    assert distance(images(1, 16, 1)) == 0
    assert distance(images(1, 16, 2)) > 0


def test_the_files_are_known_by_the_published_checksums():
    assert vgg_module.VGG_URL.endswith(f"/vgg16-{vgg_module.VGG_SHA256[:8]}.pth")  # torchvision names them so
    pytest.importorskip("torchmetrics")
    file = lpips_file()
    assert file is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() == features.LPIPS_SHA256


def test_weights_of_another_network_are_refused(weights, tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    torch.save({name: tensor for name, tensor in weights.items() if "features.2." not in name}, path)
    monkeypatch.setattr(vgg_module, "VGG_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(Failure, match=r"the VGG16 weights are of another network: .*features\.2\."):
        load_vgg(path, OPTIONS)


def test_a_download_is_asked_for_and_checked(published, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(vgg_module, "VGG_URL", published.as_uri())
    assert choose_kind(DistanceOptions("vgg", download=True)) == ("vgg", cached_vgg())
    assert cached_vgg().read_bytes() == published.read_bytes()
    assert "downloading file://" in capsys.readouterr().err
    cached_vgg().unlink()
    monkeypatch.setattr(vgg_module, "VGG_SHA256", "0" * 64)
    with pytest.raises(Failure, match=r"cannot download file://.*name it with --weights"):
        choose_kind(DistanceOptions("vgg", download=True))
    assert not cached_vgg().exists()
    monkeypatch.setattr(vgg_module, "VGG_URL", (tmp_path / "nothing.pth").as_uri())
    with pytest.raises(Failure, match=r"cannot download file://"):
        choose_kind(DistanceOptions("vgg", download=True))
