"""AlexNet's features against torchvision's model; and weights that are at hand, or are not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import alexnet

from hires_gan.errors import Failure, UsageError
from hires_gan.networks import alexnet as module
from hires_gan.networks.alexnet import CHANNELS, AlexNetFeatures, obtain_alexnet
from hires_gan.networks.published import OptionNames

NAMES = OptionNames("--alexnet", "--download", "--metrics to swd")
FILE = "alexnet-owt-7be5be79.pth"


@pytest.fixture(scope="module")
def reference() -> torch.nn.Sequential:
    torch.manual_seed(0)
    with torch.device("meta"):  # its dense layers are 0.2 GB
        features = alexnet(weights=None).features
    features = features.to_empty(device="cpu")
    for name, parameter in features.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    return features.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(reference: torch.nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in reference.state_dict().items()}


@pytest.fixture(scope="module")
def weights_file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / FILE
    torch.save(weights | {"classifier.1.weight": torch.zeros(2)}, path)
    return path


@pytest.fixture
def published(weights_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The random weights pass for the published ones, torch hub's cache is empty, and there is no network."""
    monkeypatch.setattr(module, "ALEXNET_SHA256", hashlib.sha256(weights_file.read_bytes()).hexdigest())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return weights_file


def offline(*_: object, **__: object) -> None:
    raise URLError("no route to host")


@pytest.mark.parametrize("side", [31, 64, 100])
def test_features_are_torchvisions(reference: torch.nn.Sequential, weights: dict[str, Tensor], side: int) -> None:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    y, expected = ((x + 1) / 2 - mean) / deviation, []
    for number, layer in enumerate(reference[:12]):
        y = layer(y)
        if number in (1, 4, 7, 9, 11):
            expected.append(y.clone())
    found = AlexNetFeatures(weights)(x)
    assert tuple(one.shape[1] for one in found) == CHANNELS
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    half = AlexNetFeatures(weights)(x.bfloat16())
    assert {one.dtype for one in half} == {torch.float32}


def test_weights_come_from_the_path_the_cache_or_a_download(
    published: Path, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = obtain_alexnet(published, False, NAMES)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict().items())
    assert len(found.state_dict()) == len(weights) == 10
    assert not any(parameter.requires_grad for parameter in found.parameters())
    cached = tmp_path / "hub" / "checkpoints" / FILE
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, *_, **__: Path(path).write_bytes(published.read_bytes())
    )
    obtain_alexnet(None, True, NAMES)
    assert cached.read_bytes() == published.read_bytes()
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for download in (False, True):  # it is there now
        assert obtain_alexnet(None, download, NAMES).features[10].bias.equal(weights["features.10.bias"])


def test_without_weights_or_network_one_sentence_says_what_to_do(published: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "checkpoints" / FILE
    with pytest.raises(UsageError) as absent:
        obtain_alexnet(None, False, NAMES)
    assert str(absent.value) == (
        f"there are no AlexNet weights in {cached}; fetch torchvision's AlexNet weights with --download, or name their "
        "file with --alexnet, or set --metrics to swd"
    )
    with pytest.raises(Failure, match=rf"cannot download https.*{FILE} \(.*no route to host.*name it with --alexnet"):
        obtain_alexnet(None, True, NAMES)
    with pytest.raises(UsageError, match=rf"--alexnet: .*nothing\.pth cannot be read .*give torchvision's {FILE}"):
        obtain_alexnet(tmp_path / "nothing.pth", False, NAMES)


def test_other_files_are_refused_before_they_are_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(published.read_bytes())
    data[-100] ^= 1
    (tmp_path / "changed.pth").write_bytes(data)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UsageError, match=rf"changed\.pth is not torchvision's {FILE}: its sha256 is"):
        obtain_alexnet(tmp_path / "changed.pth", False, NAMES)


def test_weights_of_another_network_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(Failure, match=r"the AlexNet weights are of another network: .*features\.3\.bias"):
        AlexNetFeatures({name: tensor for name, tensor in weights.items() if name != "features.3.bias"})


def test_the_file_is_known_by_the_published_checksum() -> None:
    assert module.ALEXNET_URL.endswith(f"/alexnet-owt-{module.ALEXNET_SHA256[:8]}.pth")  # torchvision names it so
    assert len(bytes.fromhex(module.ALEXNET_SHA256)) == 32
