"""Feature networks of one's own: which state of a package in the works they are, and whether weights are chance."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import tiny_networks as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hires_gan.errors import UsageError
from hires_gan.evaluation import installed
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.installed import source_digest
from hires_gan.evaluation.instruments import COMMAND_NAMES, CONFIGURATION_NAMES, Sources, open_instruments

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
