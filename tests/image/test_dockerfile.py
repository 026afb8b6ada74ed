"""The Dockerfile keeps its promises, as far as they can be read in it; tests/image/test_image_stages.py runs it."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile import ROOT, arguments, environment, expanded, ignore_patterns, ignored, instructions

from hires_gan.toolkit import choose_architectures

FOUND = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
LAST = [instruction for instruction in FOUND if instruction.stage == FOUND[-1].stage]
DEFAULTS = arguments(FOUND)
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(HADOLINT), "--no-color", "--failure-threshold", "style", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def last(name: str) -> str:
    """What stands behind the last instruction of a name in the last stage."""
    return [instruction.text for instruction in LAST if instruction.name == name][-1]


def copied() -> list[str]:
    """The sources of all COPY instructions that take from the build's context."""
    lines = [line for line in FOUND if line.name == "COPY" and "--from=" not in line.text]
    return [source for line in lines for source in line.words()[:-1]]


def test_hadolint_finds_nothing() -> None:
    done = lint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM ubuntu:latest\nRUN apt-get install python3\n")
    done = lint(bad)
    assert done.returncode == 1 and "DL3007" in done.stdout and "DL3008" in done.stdout


def test_every_base_is_pinned_by_its_version() -> None:
    stages = {line.words()[2] for line in FOUND if line.name == "FROM" and " AS " in line.text}
    bases = [expanded(line.words()[0], DEFAULTS) for line in FOUND if line.name == "FROM"]
    foreign = [base for base in bases if base not in stages]
    cuda = re.search(r"^cuda-toolkit==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert cuda is not None
    assert foreign == [f"nvidia/cuda:{cuda[1]}-{kind}-ubuntu24.04" for kind in ("devel", "base")]


def test_the_ops_are_for_the_gpus_that_every_build_is_for() -> None:
    asked, _ = choose_architectures(DEFAULTS["TORCH_CUDA_ARCH_LIST"], set())
    assert asked == choose_architectures(None, set())[0] == ["8.0", "9.0", "10.0+PTX"]


def test_the_image_runs_as_a_user_by_number_without_a_shell() -> None:
    assert last("USER") == "10001:10001"
    made = next(line.text for line in LAST if line.name == "RUN" and "useradd" in line.text)
    assert "--uid 10001 --gid 10001" in made and "--shell /usr/sbin/nologin" in made


def test_the_health_command_is_the_quick_doctor() -> None:
    options, _, command = last("HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == ["hires-gan", "doctor", "--quick"]
    assert "--timeout=" in options and "--interval=" in options


def test_what_stands_behind_the_name_is_the_command() -> None:
    assert json.loads(last("ENTRYPOINT")) == []
    assert json.loads(last("CMD"))[0] == "hires-gan"


def test_the_labels() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', last("LABEL")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (labels["title"], labels["licenses"]) == (project["name"], project["license"]["text"])
    assert (labels["version"], labels["revision"]) == ("${VERSION}", "${COMMIT}")
    assert set(labels) == {"title", "description", "licenses", "version", "revision"}


def test_every_cache_goes_where_a_read_only_image_can_write() -> None:
    values = environment(FOUND, {**DEFAULTS, "PATH": "/usr/bin:/bin"})
    assert values["HOME"] == "/tmp" and values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values["PATH"].split(":")[0] == "/opt/venv/bin"


def test_every_script_is_run_and_only_those() -> None:
    called = [word for line in FOUND if line.name == "RUN" for word in line.words() if word.endswith(".sh")]
    assert [Path(word).name for word in called] == ["dependencies.sh", "wheel.sh", "install.sh", "check.sh"]
    scripts = sorted((ROOT / "image").glob("*.sh"))
    assert [script.name for script in scripts] == sorted(Path(word).name for word in called)
    assert all(os.access(script, os.X_OK) for script in scripts)


def test_all_that_is_copied_is_there_and_goes_in() -> None:
    patterns = ignore_patterns()
    wrong = [path for path in copied() if not (ROOT / path).exists() or ignored(path, patterns)]
    assert wrong == [] and len(copied()) > 10


def test_the_build_gets_no_more_than_it_uses() -> None:
    let_in = {pattern[1:] for pattern in ignore_patterns() if pattern.startswith("!")}
    assert let_in == {path.split("/")[0] for path in copied()}


@pytest.mark.parametrize(
    ("path", "out"),
    [
        (".git/config", True),
        (".venv/bin/python", True),
        ("tests/image/dockerfile.py", True),
        ("runs/demo/mlflow.db", True),
        ("hires_gan/ops/native_cpu.abi3.so", True),
        ("hires_gan/ops/build.json", True),
        ("hires_gan/data/__pycache__/order.cpython-312.pyc", True),
        ("hires_gan/data/order.py", False),
        ("csrc/bias_act.cu", False),
        ("launch/eight_gpus.yaml", False),
        ("pyproject.toml", False),
    ],
)
def test_what_dockerignore_keeps_out(path: str, out: bool) -> None:
    assert ignored(path, ignore_patterns()) is out


@pytest.mark.parametrize(
    ("patterns", "path", "out"),
    [
        (["*"], "a/b", True),
        (["*", "!a"], "a/b", False),
        (["*", "!a", "a/*.so"], "a/b.so", True),
        (["*", "!a", "a/*.so"], "a/b/c.so", False),
        (["**/*.so"], "c.so", True),
        (["**/*.so"], "a/b/c.so", True),
        (["**/*.so"], "a/b/c.sox", False),
        (["a?"], "ab", True),
        (["a?"], "a/b", False),
    ],
)
def test_patterns_are_read_as_docker_reads_them(patterns: list[str], path: str, out: bool) -> None:
    assert ignored(path, patterns) is out


def test_the_requirements_are_those_of_the_package_and_of_every_extra_but_dev() -> None:
    command = [sys.executable, str(ROOT / "image/requirements.py"), str(ROOT / "pyproject.toml")]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *(need for name, needs in extras.items() if name != "dev" for need in needs)}
    assert set(listed) == wanted and set(listed).isdisjoint(extras["dev"])


def test_every_extra_but_dev_is_checked() -> None:
    checked = runpy.run_path(str(ROOT / "image/installed.py"))["EXTRAS"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(checked) == set(extras) - {"dev"}
    assert all(modules for modules in checked.values())


def test_make_gives_the_name_the_version_and_the_commit(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    command = ["make", "--silent", "image", f"DOCKER={program}", "IMAGE=registry.example/team/gan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    given = done.stdout.splitlines()
    assert given[-2:] == [f"registry.example/team/gan:{version}", "."]
    assert f"VERSION={version}" in given
    assert any(re.fullmatch(r"COMMIT=([0-9a-f]{40}(-dirty)?)?", argument) for argument in given)
    asked = [*command, "TAG=7", 'BUILD_ARGS=--pull --build-arg TORCH_CUDA_ARCH_LIST="8.9 9.0+PTX"']
    given = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    ending = ["registry.example/team/gan:7", "--pull", "--build-arg", "TORCH_CUDA_ARCH_LIST=8.9 9.0+PTX", "."]
    assert given[-5:] == ending


def test_make_says_what_is_missing_without_an_engine() -> None:
    command = ["make", "--silent", "image", "DOCKER=no-such-engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "no-such-engine is not on the PATH: install Docker" in done.stderr
