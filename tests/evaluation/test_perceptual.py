"""LPIPS against its formula and torchmetrics, and how images reach networks."""

from __future__ import annotations

import hashlib
from itertools import chain

import pair_metrics as small
import pytest
import torch
from torch import Tensor

from hires_gan.errors import UsageError
from hires_gan.evaluation import perceptual
from hires_gan.evaluation.perceptual import LPIPS, at_once, equal_parts, fitted, open_lpips
from hires_gan.inference import features
from hires_gan.inference.features import load_lpips, lpips_file
from hires_gan.networks import alexnet as alexnet_module
from hires_gan.networks import vgg as vgg_module
from hires_gan.networks.published import OptionNames

NAMES = OptionNames("--alexnet", "--download", "--metrics to swd")
CHANNELS = {"alex": alexnet_module.CHANNELS, "vgg": vgg_module.CHANNELS}


@pytest.fixture(scope="module")
def alex() -> LPIPS:
    return LPIPS(small.random_alexnet(), small.random_heads(CHANNELS["alex"]))


@pytest.fixture(scope="module")
def vgg() -> LPIPS:
    return LPIPS(small.random_vgg(), small.random_heads(CHANNELS["vgg"]))


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_by_its_formula(backbone, request) -> None:
    lpips: LPIPS = request.getfixturevalue(backbone)
    a, b = small.noise_images(2, 64, 1), small.noise_images(2, 64, 2)
    found = lpips(a, b)
    assert found.dtype == torch.float64
    for k in range(2):
        total = 0.0
        heads = small.random_heads(CHANNELS[backbone])
        for x, y, head in zip(lpips.features(a), lpips.features(b), heads, strict=True):
            one, two = x[k].flatten(1).double(), y[k].flatten(1).double()
            unit = one / (one.norm(dim=0) + 1e-10) - two / (two.norm(dim=0) + 1e-10)
            total += float((head[:, None] * unit**2).sum() / unit.shape[1])
        assert found[k].item() == pytest.approx(total, rel=1e-5)
        assert total > 0.1
    assert lpips(a, a).tolist() == [0, 0]
    torch.testing.assert_close(lpips(b, a), found)


def test_lpips_on_alexnet_is_torchmetrics() -> None:
    from torchmetrics.functional.image import lpips as module

    reference = module._LPIPS(pretrained=True, net="alex", pnet_rand=True).eval()
    weights = small.alexnet_weights()
    for name, tensor in reference.net.state_dict().items():
        tensor.copy_(weights[f"features.{name.split('.', 1)[1]}"])
    file = lpips_file("alex")
    assert file is not None
    heads = load_lpips(file, "alex")
    assert all(head.min() >= 0 for head in heads)
    a, b = small.noise_images(3, 64, 1), small.noise_images(3, 64, 2)
    with torch.no_grad():
        expected = reference(a, b).flatten().double()
    assert expected.min() > 0.01
    torch.testing.assert_close(LPIPS(small.random_alexnet(), heads)(a, b), expected, rtol=1e-4, atol=0)


def test_large_images_are_reduced_and_small_ones_enlarged(alex, vgg) -> None:
    x = small.noise_images(1, 512)
    assert torch.equal(fitted(x, 16), x.reshape(1, 3, 256, 2, 256, 2).mean((3, 5)))
    assert fitted(x, 16, 64).shape[-1] == 64
    tiny = small.noise_images(1, 4)
    assert torch.equal(fitted(tiny, 16), tiny.repeat_interleave(4, 2).repeat_interleave(4, 3))
    for lpips in (alex, vgg):
        for side in (4, 8, 16, 32):
            found = lpips(small.noise_images(1, side, 1), small.noise_images(1, side, 2))
            assert found.isfinite().all() and found.item() > 0
    halves = [x.reshape(1, 3, 256, 2, 256, 2).mean((3, 5)) for x in (x, -x)]
    assert torch.equal(alex(x, -x), alex(*halves))


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (7, 3), (2, 1)])
def test_parts_have_equal_sizes_and_hold_every_row_once(count, size) -> None:
    rows = torch.arange(2 * count).reshape(count, 2)
    parts = list(equal_parts(rows, size))
    assert all(part.shape == (size, 2) for part, _ in parts)
    assert list(chain(*(part[:own].tolist() for part, own in parts))) == rows.tolist()


def test_fewer_large_images_than_small_ones_pass_at_once() -> None:
    assert [at_once(side) for side in (8, 256, 512, 1024, 2048)] == [16, 16, 8, 2, 1]


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[str, object]:
    """Files of random weights that pass for the published ones."""
    paths = {}
    for backbone, module, network in (
        ("alex", alexnet_module, small.random_alexnet()),
        ("vgg", vgg_module, small.random_vgg()),
    ):
        paths[backbone] = tmp_path / f"{backbone}.pth"
        torch.save(network.state_dict(), paths[backbone])
        sha256 = hashlib.sha256(paths[backbone].read_bytes()).hexdigest()
        monkeypatch.setattr(module, "ALEXNET_SHA256" if backbone == "alex" else "VGG_SHA256", sha256)
    return paths


def test_it_opens_with_weights_from_files_and_the_last_layers_of_a_package(files) -> None:
    a, b = small.noise_images(2, 32, 1), small.noise_images(2, 32, 2)
    networks = {"alex": small.random_alexnet, "vgg": small.random_vgg}
    for backbone, path in files.items():
        heads = load_lpips(lpips_file(backbone), backbone)
        assert tuple(map(len, heads)) == CHANNELS[backbone]
        expected: Tensor = LPIPS(networks[backbone](), heads)(a, b)
        assert torch.equal(open_lpips(backbone, path, False, NAMES)(a, b), expected)


def test_what_is_missing_is_said_in_one_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for backbone, network in (("alex", "AlexNet"), ("vgg", "VGG16")):
        with pytest.raises(UsageError, match=rf"there are no {network} weights in .*; fetch torchvision's {network} w"):
            open_lpips(backbone, None, False, NAMES)
    monkeypatch.setattr(perceptual, "lpips_file", lambda _: None)
    with pytest.raises(UsageError, match="come with torchmetrics, and that is not installed; install the extra"):
        open_lpips("alex", None, False, NAMES)


def test_the_last_layers_are_known_by_the_published_checksums() -> None:
    for backbone, sha256 in (("vgg", features.LPIPS_SHA256), ("alex", features.LPIPS_ALEX_SHA256)):
        file = lpips_file(backbone)
        assert file is not None
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    with pytest.raises(UsageError, match=r"vgg\.pth is not LPIPS's alex\.pth, version 0\.1"):
        load_lpips(lpips_file("vgg"), "alex")
