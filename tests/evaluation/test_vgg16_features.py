"""VGG16 as the feature network, from a file that is far thinner than the published one; and how images are cut up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import tiny_networks as tiny
import torch
import torchvision
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.evaluation import weights as weights_module
from hires_gan.evaluation.features import (
    MOST_ON_CPU,
    MOST_ON_GPU,
    PIXELS,
    VGG16,
    Extractor,
    open_extractor,
)
from hires_gan.evaluation.fidelity import precision_recall
from hires_gan.evaluation.instruments import COMMAND_NAMES, CONFIGURATION_NAMES, Sources, open_instruments
from hires_gan.networks.vgg import VGG_SHA256, VGG_URL

CPU = torch.device("cpu")


def thin_vgg16(**_: object) -> nn.Module:
    """torchvision's VGG16 with few maps and its own names and layers; its features are as many as published."""
    layers = [4, "M", 4, "M", 8, "M", 8, "M", 8, "M"]
    network = torchvision.models.VGG(torchvision.models.vgg.make_layers(layers), init_weights=False)  # type: ignore[arg-type]
    for number, (entering, leaving) in {0: (8 * 49, 32), 3: (32, 4096), 6: (4096, 10)}.items():
        network.classifier[number] = nn.Linear(entering, leaving)
    return network


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of thin weights that passes for the published one, and torch hub's empty cache without a network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models, "vgg16", thin_vgg16)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(thin_vgg16().state_dict(), tmp_path / "vgg16.pth")
    digest = hashlib.sha256((tmp_path / "vgg16.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(weights_module, "VGG_SHA256", digest)
    return tmp_path / "vgg16.pth"


def test_features_are_torch_fidelitys(published: Path) -> None:
    import torch_fidelity.feature_extractor_vgg16 as module

    theirs = module.FeatureExtractorVGG16("theirs", ["fc2_relu"], feature_extractor_weights_path=str(published))
    ours = open_extractor("vgg16", published, False, CPU)
    for side in (40, 300):
        images = tiny.pictures(MOST_ON_CPU, seed=0, side=side)
        (expected,) = theirs(images)
        found = ours(images)
        assert torch.equal(found.features, expected) and found.features.shape[1] == 4096 and found.logits is None
        assert 0.0 < float((expected > 0).float().mean()) < 1.0 and not (expected < 0).any()  # behind the rectifier
    assert (ours.name, ours.checksum) == ("vgg16", weights_module.VGG_SHA256)
    assert ours.version.startswith("torch-fidelity 0.") and "224x224" in ours.resize and ours.random is None


def test_it_looks_for_the_layer_that_torch_fidelity_takes_for_precision_and_recall() -> None:
    import torch_fidelity.feature_extractor_vgg16 as module

    layer = module.FeatureExtractorVGG16.get_default_feature_layer_for_metric("prc")
    assert layer == "fc2_relu" and module.FeatureExtractorVGG16.INPUT_IMAGE_SIZE == 224


def test_precision_and_recall_are_torch_fidelitys_from_images_on(published: Path) -> None:
    import torch_fidelity

    reals, fakes = tiny.pictures(24, seed=1), tiny.pictures(24, seed=2, brightness=110)
    expected = torch_fidelity.calculate_metrics(
        input1=tiny.Pictures(fakes),
        input2=tiny.Pictures(reals),
        prc=True,
        feature_extractor="vgg16",
        feature_extractor_weights_path=str(published),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    network = open_extractor("vgg16", published, False, CPU)
    found = precision_recall(network(reals).features, network(fakes).features)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)
    assert 0 < expected["precision"] < 1


def test_its_file_is_found_by_either_option_or_in_the_cache(published: Path, tmp_path: Path) -> None:
    for sources in (Sources(VGG16, weights=published), Sources(VGG16, vgg=published)):
        found = open_instruments(("precision",), sources, CPU, COMMAND_NAMES)
        assert found.extractor is not None and found.extractor.name == "vgg16" and not found.missing
    other = tmp_path / "other.pth"
    found = open_instruments(("precision",), Sources(VGG16, weights=published, vgg=other), CPU, COMMAND_NAMES)
    assert found.extractor is not None, "--weights is of the feature network, whatever it is"
    cached = tmp_path / "hub" / "checkpoints" / VGG_URL.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    cached.symlink_to(published)
    assert open_instruments(("precision",), Sources(VGG16), CPU, COMMAND_NAMES).extractor is not None


def test_without_its_file_metrics_are_left_out_with_the_remedy(published: Path) -> None:
    found = open_instruments(("precision", "swd"), Sources(VGG16), CPU, CONFIGURATION_NAMES)
    assert found.extractor is None and list(found.missing) == ["precision"]
    assert "there are no VGG16 weights in" in found.missing["precision"]
    assert "evaluation.download=true, or name their file with evaluation.vgg" in found.missing["precision"]
    found = open_instruments(("precision",), Sources(VGG16, download=True), CPU, COMMAND_NAMES)
    assert "cannot download" in found.missing["precision"] and "name it with --vgg" in found.missing["precision"]


def test_what_takes_logits_is_refused_before_an_image_is_made() -> None:
    for names, option in ((COMMAND_NAMES, "--features"), (CONFIGURATION_NAMES, "evaluation.features")):
        with pytest.raises(
            UsageError, match=f"inception_score needs the logits of a classifier, and {option} is vgg16,"
        ):
            open_instruments(("precision", "inception_score"), Sources(VGG16), CPU, names)


def test_another_file_is_refused_unread(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "VGG_SHA256", VGG_SHA256)
    with pytest.raises(
        UsageError, match=r"vgg16.pth is not torchvision's vgg16-397923af.pth: its sha256 is .*, not 397"
    ):
        open_instruments(("precision",), Sources(VGG16, vgg=published), CPU, COMMAND_NAMES)
    for sources, option in ((Sources(VGG16, vgg=tmp_path / "no"), "--vgg"), (Sources(VGG16, tmp_path / "no"), "--wei")):
        with pytest.raises(UsageError, match=f"^{option}.*no cannot be read .No such file or directory.; give torchv"):
            open_instruments(("precision",), sources, CPU, COMMAND_NAMES)


def test_a_file_of_another_network_is_refused(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(2, 2)}, path)
    monkeypatch.setattr(weights_module, "VGG_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UsageError, match="--weights: .*other.pth is of another network"):
        open_extractor("vgg16", path, False, CPU)


# --- chunks -----------------------------------------------------------------------------------------------------------


def extractor(device: str, side: int | None, network: object = None) -> Extractor:
    return Extractor(network, "tiny", "tiny 1", "0", "none", torch.device(device), side=side)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 4, 8, 64, 256, 299, 300, 512, 1000, 1024, 2048, 8192])
def test_chunks_are_bounded_by_pixels_and_cut_those_of_the_images_evenly(side: int) -> None:
    for device, most in (("cpu", MOST_ON_CPU), ("cuda", MOST_ON_GPU)):
        chunk = extractor(device, None).chunk(side)
        assert 1 <= chunk <= most and 64 % chunk == 0
        assert chunk == 1 or chunk * side**2 <= PIXELS
        assert chunk == most or 2 * chunk * side**2 > PIXELS, "no smaller than it has to be"


def test_networks_that_make_images_smaller_take_as_many_of_any_size() -> None:
    assert extractor("cpu", 299).chunk(1024) == 16 and extractor("cuda", 224).chunk(1024) == 64
    assert [extractor("cuda", None).chunk(side) for side in (256, 512, 1024)] == [64, 32, 8]
    assert [extractor("cpu", None).chunk(side) for side in (256, 512, 1024)] == [16, 16, 8]


def test_the_network_is_given_chunks_of_one_size() -> None:
    seen: list[list[int]] = []

    def network(images: Tensor) -> tuple[Tensor, None]:
        seen.append(list(images.shape))
        return images.float().mean((2, 3)), None

    found = extractor("cpu", None, network)(tiny.pictures(9, seed=0, side=1024))
    assert seen == [[8, 3, 1024, 1024]] * 2 and found.features.shape == (9, 3)


def test_a_full_gpu_is_no_fault_of_the_network() -> None:
    """The evaluation says what to do about it: `memory.telling_no_room`."""

    def full(images: Tensor) -> tuple[Tensor, None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError):
        extractor("cpu", None, full)(tiny.pictures(2, seed=0))
