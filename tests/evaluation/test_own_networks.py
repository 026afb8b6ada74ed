"""Feature networks of one's own: which state of a package in the works they are, and whether weights are chance."""

from __future__ import annotations

import importlib
import math
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_networks as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_metrics import random_vgg
from safetensors.torch import save_file
from test_crew import both
from tiny_models import configured

from hires_gan.data.replacement import CorruptRows
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import installed
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.installed import source_digest
from hires_gan.evaluation.instruments import (
    COMMAND_NAMES,
    CONFIGURATION_NAMES,
    Instruments,
    Sources,
    open_instruments,
)
from hires_gan.evaluation.probe import are_close, sketch, sketch_digest
from hires_gan.evaluation.weights import state_checksum
from hires_gan.training import gallery
from hires_gan.training.world import World

CPU = torch.device("cpu")
VERSION = r"^inwork 1\.2 \(in the works, source [0-9a-f]{8}\)$"


def own(source: str, weights: Path | None = None) -> Extractor:
    return open_extractor(source, weights, False, CPU)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


# --- packages in the works --------------------------------------------------------------------------------------------

PACKAGE = {
    "__init__.py": "",
    "layers.py": "def mean(images):\n    return images.mean((2, 3))\n",
    "deep/__init__.py": "",
    "deep/network.py": "from inwork.layers import mean\n\n\ndef make():\n    return mean\n",
}


@pytest.fixture
def package(tmp_path: Path, site: Path) -> Path:
    """The folder of `inwork`, a package that is installed in place."""
    folder = tmp_path / "work & more" / "inwork"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    tiny.install_in_place(site, folder.parent, "inwork")
    return folder


def imported_anew(package: Path, monkeypatch: pytest.MonkeyPatch) -> Extractor:
    """As in a process that has not imported it yet."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("inwork", "inwork.layers", "inwork.deep", "inwork.deep.network"):
        tiny.on_path(package.parent, name, monkeypatch)
    return own("inwork.deep.network:make")


def test_a_changed_package_in_the_works_is_another_network(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At an equal version, and though nothing of it has weights; a file that is no Python changes nothing."""
    before = imported_anew(package, monkeypatch)
    assert re.fullmatch(VERSION, before.version)
    (package / "notes.txt").write_text("nothing that runs")
    same = imported_anew(package, monkeypatch)
    assert (same.version, same.checksum) == (before.version, before.checksum)
    (package / "layers.py").write_text("def mean(images):\n    return images.amax((2, 3))  # the largest\n")
    after = imported_anew(package, monkeypatch)
    assert re.fullmatch(VERSION, after.version)
    assert after.version != before.version and after.checksum != before.checksum
    images = tiny.pictures(2, seed=0)
    assert not torch.equal(after(images).features, before(images).features)


def test_what_was_imported_is_what_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is changed while its module runs is not what computes."""
    before = imported_anew(package, monkeypatch).version
    (package / "layers.py").write_text("raise SystemExit('imported again')")
    assert own("inwork.deep.network:make").version == before
    assert source_digest(package, "it")[:8] not in before


def test_a_module_by_itself_that_is_installed_in_place(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "work"
    source.mkdir()
    (source / "inwork.py").write_text(tiny.TINY)
    (source / "beside.py").write_text("nothing of it")
    tiny.install_in_place(site, source, "inwork")
    tiny.on_path(source, "inwork", monkeypatch)
    before = own("inwork:Tiny")
    assert source_digest(source / "inwork.py", "it")[:8] in before.version
    (source / "inwork.py").write_text(tiny.TINY.replace("images.flatten(1)", "-images.flatten(1)"))
    tiny.on_path(source, "inwork", monkeypatch)
    assert own("inwork:Tiny").checksum != before.checksum, "equal weights, another network"
    info = next(site.glob("inwork-*.dist-info"))
    (info / "direct_url.json").write_text('{"url": "' + source.as_uri() + '", "dir_info": {}}')
    with pytest.raises(UsageError, match="which no installed package brings"):
        own("inwork:Tiny")


def test_what_is_installed_as_it_is_has_a_version_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.install(site, "tinynet", tiny.TINY)
    tiny.on_path(site, "tinynet", monkeypatch)
    assert own("tinynet:Tiny").version == "tinynet 1.2"


def test_a_package_that_is_too_large_or_cannot_be_read_is_refused_before_it_runs(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.on_path(package.parent, "inwork", monkeypatch)
    (package / "__init__.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr(installed, "MOST_FILES", 3)
    with pytest.raises(UsageError, match=r"--features is of inwork 1.2, .* has 4 Python files, more than the 3 .* -e$"):
        own("inwork:make")

    def refused(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read what nobody may
    with pytest.raises(UsageError, match=r"^it has .*\.py, which cannot be read \(Permission denied\), .* without -e$"):
        source_digest(package, "it")


@given(st.dictionaries(st.sampled_from(["a.py", "b.py", "sub/a.py", "sub/deep/c.py"]), st.binary(max_size=20)))
def test_digests_tell_files_apart_and_do_not_depend_on_the_place(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    def written(names: list[str]) -> str:
        folder = tmp_path_factory.mktemp("source")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(files[name])
        return source_digest(folder, "it")

    digest = written(list(files))
    assert written(list(reversed(files))) == digest
    for name in files:
        assert written([other for other in files if other != name]) != digest
        files[name] += b"#"
        assert written(list(files)) != digest
        files[name] = files[name][:-1]


# --- random weights ---------------------------------------------------------------------------------------------------

FACTORIES = """
import itertools
import numpy as np
import torch
from torch import nn

count = itertools.count()


def trained():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))  # draws, before it is given what was learned
    nn.init.ones_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    return network


def random_head():
    network = trained()
    network.append(nn.Linear(3, 2))
    return network


def without_weights():
    return nn.Flatten()


def once():
    if next(count):
        raise RuntimeError("only once")
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def of_numpy():
    network = trained()
    network[1].weight = nn.Parameter(torch.from_numpy(np.random.default_rng().random((3, 12), np.float32)))
    return network
"""


@pytest.fixture
def factories(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.install(site, "factories", FACTORIES)
    tiny.on_path(site, "factories", monkeypatch)


@pytest.mark.parametrize(
    ("name", "random"),
    [
        ("trained", None),
        ("random_head", "2.weight"),
        ("without_weights", None),
        ("once", None),
        ("of_numpy", "1.weight"),
    ],
)
def test_random_weights_are_found_among_others(name: str, random: str | None, factories: None) -> None:
    assert own(f"factories:{name}").random == random


def test_looking_leaves_numbers_and_generator_alone(factories: None) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = own("factories:random_head")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    from factories import random_head  # type: ignore[import-not-found]

    images = tiny.pictures(3, seed=0, side=2)
    assert torch.equal(first(images).features, random_head()(images.float() / 127.5 - 1))


def test_random_weights_are_said_once_and_taken(
    factories: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = Sources("factories:random_head")
    found = open_instruments(("fid", "kid", "swd"), sources, CPU, COMMAND_NAMES)
    assert found.extractor is not None and not found.missing
    assert capfd.readouterr().err == (
        "warning: the weights of factories:random_head are random ones, 2.weight among them: its factory makes others "
        "with every seed, and numbers from them mean little; name a file with --weights\n"
    )
    open_instruments(("fid",), sources, CPU, CONFIGURATION_NAMES)
    assert capfd.readouterr().err.endswith("name a file with evaluation.weights\n")
    state = {
        "1.weight": torch.ones(3, 12),
        "1.bias": torch.ones(3),
        "2.weight": torch.ones(2, 3),
        "2.bias": torch.ones(2),
    }
    save_file(state, tmp_path / "learned.safetensors")
    open_instruments(("fid",), Sources("factories:random_head", tmp_path / "learned.safetensors"), CPU, COMMAND_NAMES)
    assert not capfd.readouterr().err


# --- weights that are not in a state dict -----------------------------------------------------------------------------

HIDING = """
import numpy as np
import torch
from torch import nn

value = 1.0
shape = (3, 48)


def weights():
    return torch.full(shape, value)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 3, bias=False)
        self.layer.weight = nn.Parameter(weights())
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        raise RuntimeError("the method is what is called")

    def feats(self, images):
        return self.dropout(self.layer(images.flatten(1)))


class Plain(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, images):
        held = self.held["deep"][0] if isinstance(self.held, dict) else self.held
        return images.flatten(1) @ torch.as_tensor(held).T


class Unsaved(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("held", weights(), persistent=False)

    def forward(self, images):
        return images.flatten(1) @ self.held.T


class Derived(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 3)
        self.twice = self.layer.weight * 2
        self.again = [self.layer, self]

    def forward(self, images):
        return self.layer(images.flatten(1))


def method():
    return Net().feats


def plain():
    return Plain(weights())


def deep():
    return Plain({"deep": [weights()]})


def array():
    return Plain(weights().numpy())


def closure():
    held = weights()
    return lambda images: images.flatten(1) @ held.T


def random_plain():
    return Plain(torch.randn(shape))


def training():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Dropout(0.5))
    return lambda images: network(images)


def of_a_batch():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3))
    return lambda images: network(images)


def of_a_batch_as_module():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def wide():
    return lambda images: images.mean((2, 3)).reshape(-1, 3) / (images.amax((1, 2, 3)) > 1)[:, None]
"""


@pytest.fixture
def hiding(site: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tiny.install(site, "hiding", HIDING)
    tiny.on_path(site, "hiding", monkeypatch)
    return importlib.import_module("hiding")


def tried(name: str, side: int | None = 4) -> Extractor:
    return open_extractor(f"hiding:{name}", None, False, CPU, side=side)


@pytest.mark.parametrize("name", ["method", "plain", "deep", "array", "Unsaved", "closure"])
def test_networks_with_other_weights_have_other_checksums(
    name: str, hiding: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the weights are; without a trial those of a closure alone cannot be told apart."""
    before = tried(name).checksum
    assert tried(name).checksum == before
    assert (tried(name, None).checksum == before) == (name != "closure")
    monkeypatch.setattr(hiding, "value", 1.01)
    assert tried(name).checksum != before


def test_what_follows_from_parameters_is_not_in_the_checksum(hiding: ModuleType) -> None:
    """Nor are they in it twice; those of a module alone are as they were."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        state = hiding.Derived().state_dict()
    assert tried("Derived").checksum == state_checksum(state)


def test_a_method_is_treated_as_its_module(hiding: ModuleType, tmp_path: Path) -> None:
    network = tried("method")
    images = tiny.pictures(2, seed=0, side=4)
    assert torch.equal(network(images).features, network(images).features), "it is in eval()"
    assert network.checksum == state_checksum(hiding.Net().state_dict())
    save_file({"layer.weight": torch.zeros(3, 48)}, tmp_path / "zero.safetensors")
    assert not open_extractor("hiding:method", tmp_path / "zero.safetensors", False, CPU)(images).features.any()


def test_random_weights_are_found_in_attributes(hiding: ModuleType) -> None:
    assert tried("random_plain").random == "attribute .held"
    assert tried("plain").random is None


@pytest.mark.parametrize("name", ["training", "of_a_batch"])
def test_a_network_that_is_not_in_eval_is_refused(name: str, hiding: ModuleType) -> None:
    words = f"the feature network hiding:{name} gives other features for the same images: put it into eval"
    with pytest.raises(Failure, match=words):
        tried(name)
    with pytest.raises(Failure, match=words):
        open_instruments(("fid",), Sources(f"hiding:{name}"), CPU, COMMAND_NAMES, 4)


def test_runs_try_a_network_at_their_resolution(hiding: ModuleType, tmp_path: Path) -> None:
    settings = {"metrics": ["fid"], "best": None, "features": "hiding:training"}
    plan = configured("progressive", tmp_path, evaluation=settings)
    with pytest.raises(Failure, match="hiding:training fails on images of 16x16"):
        gallery.open_gallery(plan, None, None, World(CPU), CorruptRows(0))  # type: ignore[arg-type]


def test_a_module_is_put_into_eval_before_it_is_tried(hiding: ModuleType) -> None:
    tried("of_a_batch_as_module")


def test_a_network_that_does_not_take_the_size_is_refused_at_once(hiding: ModuleType) -> None:
    with pytest.raises(Failure, match="hiding:closure fails on images of 8x8"):
        tried("closure", 8)


def test_what_is_not_finite_for_noise_is_not_tried(hiding: ModuleType) -> None:
    assert not tried("wide").sketch


@given(st.integers(1, 300), st.floats(-6, 6), st.integers(0, 99))
def test_sketches_bear_rounding_and_tell_networks_apart(dimension: int, scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(2, dimension, generator=random) * 10**scale
    numbers = sketch(features)
    rounded = features * (1 + 1e-5 * torch.randn(2, dimension, generator=random))
    assert are_close(numbers, sketch(rounded))
    assert not are_close(numbers, sketch(features * 1.1))
    assert sketch_digest(numbers) != sketch_digest(sketch(features * 1.1))
    assert not are_close(numbers, numbers[:-1])
    assert all(map(math.isfinite, sketch(torch.zeros(2, dimension))))


# --- several processes ------------------------------------------------------------------------------------------------


def agreeing(*found: Instruments) -> list[str]:
    """What each of two processes is told."""
    return [str(one) for one in both(lambda crew: found[crew.rank].agree(crew))]


def test_processes_agree_on_all_that_they_measure_with(hiding: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tried("method")
    assert agreeing(Instruments(first), Instruments(tried("method"))) == ["None"] * 2
    assert agreeing(Instruments(first), Instruments(missing={"fid": "it is not here"})) == ["None"] * 2
    monkeypatch.setattr(hiding, "value", 2.0)
    second = tried("method")
    said = agreeing(Instruments(first), Instruments(second))
    has = [f"hiding:method of hiding 1.2 with sha256 {one.checksum[:12]}" for one in (first, second)]
    who = [f"process {rank} on {socket.gethostname()}: {one}" for rank, one in enumerate(has)]
    start = "start all of them with the same files, packages and arguments"
    assert said == [f"the processes do not have the same feature network ({'; '.join(who)}): {start}"] * 2
    one, other = random_vgg(), random_vgg()
    other.get_parameter(next(name for name, _ in other.named_parameters())).data += 1
    (said,) = set(agreeing(Instruments(content=one), Instruments(content=other)))
    assert said.startswith("the processes do not have the same VGG16 of content preservation (process 0 on ")


def test_rounding_is_no_difference_between_processes(hiding: ModuleType) -> None:
    """A checksum that depends on it is that of the first, so that all keep and record the same."""
    one, other = tried("closure"), tried("closure")
    other.sketch, other.checksum = [value + 1e-3 for value in other.sketch], "of another rounding"
    assert agreeing(Instruments(one), Instruments(other)) == ["None"] * 2
    assert other.checksum == one.checksum
    other.sketch, other.checksum = [value + 1.0 for value in other.sketch], "of another network"
    (said,) = set(agreeing(Instruments(one), Instruments(other)))
    assert "the same feature network" in said and "with sha256 of another n)" in said
