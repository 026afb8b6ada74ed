"""Feature networks: Inception from its file, others from installed packages; the same for an image in any batch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import tiny_networks as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import weights as weights_module
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.fidelity import fid, inception_score, kid, precision_recall
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.weights import CONFIGURATION, INCEPTION_FILES, INCEPTION_SHA256, state_checksum

CPU = torch.device("cpu")
FILE = INCEPTION_FILES[0]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with `tinynet` in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    tiny.install(folder, "tinynet", tiny.TINY)
    tiny.on_path(folder, "tinynet", monkeypatch)
    return folder


def own(source: str, weights: Path | None = None) -> Extractor:
    return open_extractor(source, weights, False, CPU)


def test_features_and_logits_of_an_installed_module(site: Path) -> None:
    network = own("tinynet:Tiny")
    images = tiny.pictures(5, seed=0)
    found = network(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from tinynet import Tiny  # type: ignore[import-not-found]

        expected, logits = Tiny()(images.float() / 127.5 - 1)
    torch.testing.assert_close(found.features, expected)
    torch.testing.assert_close(found.logits, logits)
    assert (network.name, network.version, network.dimension) == ("tinynet:Tiny", "tinynet 1.2", tiny.FEATURES)
    assert network.resize.startswith("none")


def test_maps_are_flattened_and_the_network_is_in_evaluation_mode(site: Path) -> None:
    network = own("tinynet:features_alone")  # it has dropout and a batch's statistics
    images = tiny.pictures(3, seed=0)
    found = network(images)
    assert found.features.shape == (3, 4 * 7 * 7) and found.features.dtype == torch.float32
    assert found.logits is None
    assert torch.equal(found.features, network(images).features)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(site: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = own("tinynet:Tiny")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = own("tinynet:Tiny")
    assert first.checksum == second.checksum
    images = tiny.pictures(2, seed=0)
    assert torch.equal(first(images).features, second(images).features)


def test_other_weights_have_another_checksum(site: Path, tmp_path: Path) -> None:
    untouched = own("tinynet:Tiny")
    state = {
        "features.weight": torch.ones(tiny.FEATURES, 3 * tiny.SIDE**2),
        "features.bias": torch.zeros(tiny.FEATURES),
        "classes.weight": torch.zeros(tiny.CLASSES, tiny.FEATURES),
        "classes.bias": torch.arange(tiny.CLASSES).float(),
    }
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    loaded = [own("tinynet:Tiny", tmp_path / name) for name in ("weights.safetensors", "weights.pth")]
    assert loaded[0].checksum == loaded[1].checksum == state_checksum(state) != untouched.checksum
    white = torch.full((1, 3, tiny.SIDE, tiny.SIDE), 255, dtype=torch.uint8)
    found = loaded[0](white)
    assert torch.equal(found.features, torch.full((1, tiny.FEATURES), 3.0 * tiny.SIDE**2))  # 255 is 1
    assert torch.equal(loaded[0](white * 0).features, -found.features)  # 0 is -1
    assert found.logits is not None and torch.equal(found.logits[0], state["classes.bias"])


def test_the_checksum_sees_names_shapes_types_and_values() -> None:
    one = {"a": torch.arange(6.0), "b": torch.zeros(())}
    changed = [
        {"c": torch.arange(6.0), "b": torch.zeros(())},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(())},
        {"a": torch.arange(6.0).view(torch.int32), "b": torch.zeros(())},
        {"a": torch.arange(6.0), "b": torch.ones(())},
        {"a": torch.arange(6.0)},
    ]
    assert len({state_checksum(state) for state in [one, *changed]}) == 6
    assert state_checksum(dict(reversed(one.items()))) == state_checksum(one)


@pytest.mark.parametrize("source", ["tinynet:Tiny", "tinynet:features_alone"])
def test_an_image_has_the_same_features_in_any_batch(source: str, site: Path) -> None:
    network = own(source)
    images = tiny.pictures(37, seed=0)
    whole = network(images).features
    for cut in (1, 5, 16, 36):
        parts = [network(part).features for part in torch.split(images, cut)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images[order]).features, whole[order])


def test_a_callable_that_is_no_module(site: Path) -> None:
    network = own("tinynet:means")
    grey = torch.full((2, 3, 4, 4), 0, dtype=torch.uint8)
    grey[1] = 255
    assert network(grey).features.tolist() == [[-1.0] * 3, [1.0] * 3]
    others = {own(f"tinynet:{name}").checksum for name in ("spoiled", "without_weights")}
    assert len(others | {network.checksum}) == 3  # none has weights: their names tell them apart
    with pytest.raises(UsageError, match="makes a function and no torch module that could take weights"):
        own("tinynet:means", site / "some.pth")


def test_what_is_not_finite_is_refused(site: Path) -> None:
    images = tiny.pictures(20, seed=0)
    images[:, 0, 0, 0] = 255
    images[17] = 0  # the network divides by whether an image has anything bright
    with pytest.raises(Failure, match="features from tinynet:spoiled of 1 of 16 images are not finite"):
        own("tinynet:spoiled")(torch.cat((images[17:18], images[:15])))
    assert own("tinynet:spoiled")(images[:16]).features.shape == (16, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tinynet:one_number", r"returns torch.float32 of shape \[\] for 16 images; a tensor \[16, ...\]"),
        ("tinynet:three_things", "returns a tuple of 3 for 16 images"),
        ("tinynet:whole_numbers", r"returns torch.int64 of shape \[16, 3\]"),
        ("tinynet:wants_224", r"tinynet:wants_224 fails on images of 16x16 \(expected images of 224\); take images of"),
    ],
)
def test_what_a_network_must_not_do_is_said(source: str, message: str, site: Path) -> None:
    with pytest.raises(Failure, match=message):
        own(source)(tiny.pictures(3, seed=0))


def test_other_images_are_refused(site: Path) -> None:
    network = own("tinynet:means")
    for images in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).byte(), torch.zeros(0, 3, 4, 4).byte()):
        with pytest.raises(Failure, match=r"takes uint8 images \[n, 3, r, r\], but was given"):
            network(images)
    network = own("tinynet:features_alone")
    network(tiny.pictures(1, seed=0))
    with pytest.raises(Failure, match="gives 900 features for images of this size, but 196 before"):
        network(tiny.pictures(1, seed=0, side=32))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("tinynet", UsageError, "inception and vgg16 are allowed, or package.module:factory of an installed package"),
        ("inception_v3", UsageError, "inception and vgg16 are allowed"),
        ("tinynet:__import__('os')", UsageError, "inception and vgg16 are allowed"),
        ("nowhere.at.all:network", UsageError, "names the module nowhere.at.all, which is not there"),
        ("tinynet:absent", UsageError, "no attribute 'absent'; look at what tinynet 1.2 offers"),
        ("tinynet.sub:network", UsageError, "No module named 'tinynet.sub'"),
        ("tinynet:CONSTANT", UsageError, "a int; something that can be called is needed"),
        ("tinynet:fails", Failure, "fails when it is called without arguments: no weights here"),
        ("tinynet:nothing", UsageError, "makes a NoneType; a torch module"),
        ("os:getcwd", UsageError, "no installed package brings"),
        ("sys:exit", UsageError, r"no installed package brings \(it comes as built-in\)"),
    ],
)
def test_what_is_no_network_is_said(source: str, error: type[Failure], message: str, site: Path) -> None:
    with pytest.raises(error, match=message) as caught:
        own(source)
    assert "--features" in str(caught.value)


def test_what_is_not_installed_is_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current folder or on PYTHONPATH, whatever it is called: also like an installed package."""
    (tmp_path / "local.py").write_text("raise SystemExit('it ran')")
    folder = tmp_path / "plain" / "inner"
    folder.mkdir(parents=True)
    (folder / "network.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in ("local:network", "plain.inner.network:make"):
        with pytest.raises(UsageError, match="which no installed package brings") as error:
            own(source)
        assert str(tmp_path) in str(error.value) and "pip install -e" in str(error.value)


def test_a_folder_that_hides_an_installed_package_is_refused(tmp_path: Path) -> None:
    """In a process of its own, whose current folder has another `torchmetrics`."""
    (tmp_path / "torchmetrics.py").write_text("raise SystemExit('it ran')")
    code = """
import sys
sys.path.insert(0, "")
from hires_gan.errors import UsageError
from hires_gan.evaluation.installed import find_installed
try:
    find_installed("torchmetrics:Metric", "--features")
except UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "which no installed package brings" in done.stdout and "torchmetrics.py" in done.stdout
    assert done.returncode == 0, done.stderr


def test_weights_that_do_not_fit_are_refused(site: Path, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save({"features.weight": Planted()}, tmp_path / "planted.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    save_file({"features.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("unpacked.pth", b"nonsense")
    for name, message in {
        "planted.pth": "cannot be read as tensors alone",
        "list.pth": "holds no state dict",
        "other.safetensors": "does not hold the weights of tinynet:Tiny: .*Missing key",
        "broken.safetensors": "it is no safetensors file",
        "archive.pth": "cannot be read as tensors alone",
        "absent.pth": "but there is no such file",
    }.items():
        with pytest.raises(UsageError, match=f"--weights.*{message}"):
            own("tinynet:Tiny", tmp_path / name)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "unpacked.pth").exists()
    with pytest.raises(UsageError, match="--download fetches published weights, but --features is tinynet:Tiny"):
        open_extractor("tinynet:Tiny", None, True, CPU)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("inception") / FILE
    torch.save(tiny.inception_tensors(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch hub's folder of weights, empty, on a machine without network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def published(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file with random values passes for the published one; its sha256."""
    sha256 = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr(weights_module, "INCEPTION_SHA256", sha256)
    return sha256


def test_the_published_checksum_is_that_of_the_files_name() -> None:
    import torch_fidelity.feature_extractor_inceptionv3 as module

    assert len(INCEPTION_SHA256) == 64
    assert all(name.endswith(f"-{INCEPTION_SHA256[:8]}.pth") for name in INCEPTION_FILES)
    assert module.URL_INCEPTION_V3.endswith(f"/{FILE}")


def test_inception_is_found_by_its_path_or_in_the_cache(inception_file: Path, hub: Path, published: str) -> None:
    named = open_extractor("inception", inception_file, False, CPU)
    for name in INCEPTION_FILES:
        (hub / name).symlink_to(inception_file)
        cached = open_extractor("inception", None, True, CPU)  # it is there: nothing is fetched
        assert cached.checksum == named.checksum == published
        (hub / name).unlink()
    assert (named.name, named.dimension) == ("inception", 2048)
    assert named.version.startswith("torch-fidelity 0.") and "299x299" in named.resize


def test_inception_gives_torch_fidelitys_features(inception_file: Path, published: str) -> None:
    import torch_fidelity.feature_extractor_inceptionv3 as module

    theirs = module.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(inception_file))
    images = tiny.pictures(2, seed=0, side=24)
    expected, logits = theirs(images)
    ours = open_extractor("inception", inception_file, False, CPU)
    ours.most = 2
    found = ours(images)
    assert torch.equal(found.features, expected)
    assert found.logits is not None and torch.equal(found.logits, logits)
    assert found.features.std() > 0.01  # random weights, but no dead network


def test_without_inceptions_weights_it_is_said_where_they_were_looked_for(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        open_extractor("inception", None, False, CPU)
    assert str(error.value) == (
        f"FID's Inception needs {FILE} (95 MB), which is not in {hub}; name the file with --weights, fetch it with "
        f"--download, or set --metrics to swd, which needs no weights"
    )
    with pytest.raises(UsageError, match=r"evaluation.download=true, or set evaluation.metrics to \[swd\]"):
        open_extractor("inception", None, False, CPU, CONFIGURATION)
    with pytest.raises(UsageError, match="--weights is .*absent.pth, but there is no such file; name the file"):
        open_extractor("inception", tmp_path / "absent.pth", False, CPU)
    with pytest.raises(Failure, match=r"cannot download .*no route to host.*; fetch it elsewhere and name it with"):
        open_extractor("inception", None, True, CPU)


def test_another_file_is_refused_unread(hub: Path, inception_file: Path) -> None:
    with pytest.raises(UsageError, match=f"{FILE} is not the published {FILE}: its sha256 is .*, not 6726825d"):
        open_extractor("inception", inception_file, False, CPU)


def test_a_file_of_another_network_is_refused(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    monkeypatch.setattr(weights_module, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UsageError, match="other.pth is of another network"):
        open_extractor("inception", path, False, CPU)


def theirs(reals: Tensor, fakes: Tensor, extractor: str, **settings: object) -> dict[str, float]:
    """torch-fidelity's own evaluation, from images to numbers."""
    import torch_fidelity

    found: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=tiny.Pictures(fakes),
        input2=tiny.Pictures(reals),
        fid=True,
        kid=True,
        kid_subset_size=min(1000, len(reals), len(fakes)),
        isc=True,
        prc=True,
        feature_extractor=extractor,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        **settings,
    )
    return found


def ours(reals: Tensor, fakes: Tensor, network: Extractor) -> dict[str, float]:
    a, b = network(reals), network(fakes)
    assert b.logits is not None
    distance, score = kid(a.features, b.features), inception_score(b.logits)
    precision, recall = precision_recall(a.features, b.features)
    return {
        "frechet_inception_distance": fid(moments(a.features), moments(b.features)),
        "kernel_inception_distance_mean": distance.mean,
        "kernel_inception_distance_std": distance.deviation,
        "inception_score_mean": score.mean,
        "inception_score_std": score.deviation,
        "precision": precision,
        "recall": recall,
    }


def test_numbers_are_torch_fidelitys_from_images_on(site: Path) -> None:
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Registered(FeatureExtractorBase):
        """The tiny network, as torch-fidelity wants it."""

        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)
            torch.manual_seed(0)
            from tinynet import Tiny

            self.network = Tiny()

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            both = dict(zip(("features", "logits"), self.network(images.float() / 127.5 - 1), strict=True))
            return tuple(both[name] for name in self.features_list)

    torch_fidelity.register_feature_extractor("tiny", Registered)
    reals, fakes = tiny.pictures(1100, seed=1), tiny.pictures(1050, seed=2, brightness=110)
    with torch.random.fork_rng():
        expected = theirs(reals, fakes, "tiny")
    found = ours(reals, fakes, own("tinynet:Tiny"))
    assert found == {name: pytest.approx(expected[name], rel=1e-3) for name in found}
    assert expected["kernel_inception_distance_std"] > 0 and 0 < expected["precision"] < 1


@pytest.mark.slow
def test_numbers_are_torch_fidelitys_with_inception(inception_file: Path, published: str) -> None:
    reals, fakes = tiny.pictures(10, seed=1, side=32), tiny.pictures(10, seed=2, side=32, brightness=90)
    expected = theirs(
        reals, fakes, "inception-v3-compat", feature_extractor_weights_path=str(inception_file), batch_size=10
    )
    network = open_extractor("inception", inception_file, False, CPU)
    network.most = 5
    found = ours(reals, fakes, network)
    assert found["frechet_inception_distance"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found["kernel_inception_distance_mean"] == pytest.approx(
        expected["kernel_inception_distance_mean"], rel=1e-3
    )
    assert found["inception_score_mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-3)


@pytest.mark.slow
def test_an_image_has_the_same_inception_features_in_any_batch(inception_file: Path, published: str) -> None:
    network = open_extractor("inception", inception_file, False, CPU)
    network.most = 4
    images = tiny.pictures(6, seed=0, side=40)
    whole = network(images).features
    for cut in (1, 3):
        parts = torch.cat([network(part).features for part in torch.split(images, cut)])
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
