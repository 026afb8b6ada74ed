"""The parts of `make gpu-check`, with a Python that says what it was asked for: each asks for what is allowed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hires_gan.cli_bench import app
from hires_gan.config import load_configuration

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = (
    "gpu-ops",
    "gpu-tests",
    "gpu-compile-tests",
    "gpu-sanitize",
    "gpu-input",
    "gpu-train",
    "gpu-levers",
    "gpu-compile",
    "gpu-munit",
    "gpu-evaluate",
    "gpu-dials",
)
PYTHON = """#!/bin/sh
printf '%s\\037' "$@" >> {calls}
echo >> {calls}
case "$1 $2" in
    "-m pytest") echo "tests/test_it.py::test_it PASSED"; exit {code};;
    "-c import json"*) echo 60.5;;
esac
"""
SANITIZER = """#!/bin/sh
printf '%s ' "$@" >> {tools}
while [ "$1" != {python} ]; do shift; done
exec "$@"
"""

pytestmark = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("bash")), reason="needs make and bash on the PATH"
)


@pytest.mark.slow
def test_the_tests_of_a_gpu_are_found_where_only_the_wheels_are():
    """One module that cannot be imported would end them all, those of other folders too."""
    program = Path(__file__).with_name("bare_collection.py")
    done = subprocess.run(
        [sys.executable, program, "Makefile"],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/training/test_graphs.py::" in done.stdout


class Made:
    """`make PART` with a Python and a compute-sanitizer of ours, and the calls that it made."""

    def __init__(self, folder: Path, code: int = 0) -> None:
        self.folder, self.out = folder, folder / "out"
        self.tools, self._calls = folder / "tools", folder / "calls"
        self.python = self._program("python", PYTHON, calls=self._calls, code=code)
        self.sanitizer = self._program("compute-sanitizer", SANITIZER, tools=self.tools, python=self.python)

    def _program(self, name: str, text: str, **values: object) -> Path:
        path = self.folder / name
        path.write_text(text.format(**values))
        path.chmod(0o755)
        return path

    def __call__(self, *targets: str) -> subprocess.CompletedProcess[str]:
        own = (f"GPU_PYTHON={self.python}", f"OUT={self.out}", f"SANITIZER={self.sanitizer}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = ["make", "--no-print-directory", *own, *targets]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    @property
    def calls(self) -> list[list[str]]:
        return [line.split("\037")[:-1] for line in self._calls.read_text().splitlines()]

    @property
    def benches(self) -> list[list[str]]:
        """The arguments of `hires-gan bench`."""
        return [call[3:] for call in self.calls if call[:3] == ["-m", "hires_gan", "bench"]]

    @property
    def tests(self) -> list[list[str]]:
        """The arguments of pytest."""
        return [call[2:] for call in self.calls if call[:2] == ["-m", "pytest"]]


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of them; it raises what it refuses."""
    name, *others = arguments
    command = typer.main.get_command(app).get_command(None, name)
    return dict(command.make_context(name, others).params)


def after(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_every_part_is_run_and_asks_for_what_is_allowed(made):
    """All of it, with all that can be named: each command is one of ours, and its configuration is valid."""
    found = made(
        *("gpu-check", f"GPU_SHARDS={made.folder}", f"GPU_SHARDS_B={made.folder}", f"GPU_IMAGES={made.folder}"),
        *(f"REFERENCE_JSON_4={made.folder}/4.json", f"REFERENCE_JSON_8={made.folder}/8.json", "DIALS_RUNS=1"),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "== failed" not in found.stdout and "not measured" not in found.stdout
    assert len(made.calls) > 50
    for arguments in made.benches:
        given = parsed(arguments)
        assert str(given["out"]).startswith(str(made.out))
        if given.get("config"):
            load_configuration(ROOT / given["config"], given["overrides"] or [])
    assert {one[0] for one in made.benches} == set(typer.main.get_command(app).list_commands(None))


def test_help_and_the_documents_name_every_part():
    text = (ROOT / "Makefile").read_text()
    parts = re.search(r"^GPU_PARTS = ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert parts is not None and tuple(parts[1].replace("\\\n", " ").split()) == PARTS
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for told in (said, (ROOT / "benchmarks" / "README.md").read_text()):
        assert [part for part in PARTS if not re.search(rf"\b{part}\b", told)] == []


def test_ops_are_built_and_measured_and_nothing_else(made):
    assert made("gpu-ops").returncode == 0
    assert made.calls[:2] == [["setup.py", "--quiet", "build_ext", "--inplace"], ["-m", "hires_gan.ops"]]
    assert [one[0] for one in made.benches] == ["ops", "ops"] and "--no-compile" in made.benches[0]
    assert not made.tests and not made.tools.exists()


@pytest.mark.parametrize(
    ("chosen", "k", "compiling"),
    [
        ((), "not (compile or inductor)", "(compile or inductor)"),
        (
            ("GPU_TESTS=tests/ops tests/data", "GPU_K=large or munit"),
            "(large or munit) and not (compile or inductor)",
            "(large or munit) and (compile or inductor)",
        ),
    ],
)
def test_tests_can_be_chosen_and_those_that_compile_are_a_part_of_their_own(chosen, k, compiling, made):
    assert made("gpu-tests", *chosen).returncode == 0
    assert made("gpu-compile-tests", *chosen).returncode == 0
    first, second = made.tests
    assert (after(first, "-m"), after(first, "-k")) == ("gpu", k)
    assert (after(second, "-m"), after(second, "-k")) == ("gpu", compiling)
    assert first[-2:] == second[-2:] if chosen else not {"tests/ops", "tests/data"} & set(first)
    assert (first[-2:] == ["tests/ops", "tests/data"]) is bool(chosen)
    assert not made.tools.exists()


@pytest.mark.slow
def test_a_test_is_in_one_of_the_two_parts(made):
    """With the real pytest, in files that have both: all tests of a GPU, and each of them once."""
    made("gpu-tests")
    made("gpu-compile-tests")

    def collected(*arguments: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
        files = ("tests/ops/test_ops_gpu.py", "tests/ops/test_ops_compile.py", "tests/training/test_graphs.py")
        found = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=120)
        return [line for line in found.stdout.splitlines() if "::" in line]

    parts = [collected("-m", "gpu", "-k", after(one, "-k")) for one in made.tests]
    assert sorted(parts[0] + parts[1]) == sorted(collected("-m", "gpu"))
    assert any("test_compiled_and_recorded_is_reference" in one for one in parts[1])
    assert any("test_inductor_on_the_gpu" in one for one in parts[1])
    assert len(parts[0]) > len(parts[1]) > 0


def test_the_sanitizer_has_a_part_of_its_own_and_each_tool_can_be_run_alone(made):
    assert made("gpu-sanitize").returncode == 0
    assert re.findall(r"--tool (\w+) --error-exitcode 1", made.tools.read_text()) == [
        "memcheck",
        "racecheck",
        "initcheck",
    ]
    assert [after(one, "-k") for one in made.tests] == ["(sanitizer)"] * 3
    assert made("gpu-sanitize", "SANITIZER_TOOLS=racecheck", "GPU_K=draws").returncode == 0
    assert after(made.tests[-1], "-k") == "(draws) and (sanitizer)" and len(made.tests) == 4
    assert "racecheck" in made.tools.read_text().splitlines()[-1]


def test_what_passed_is_kept_and_what_failed_is_told(tmp_path):
    """A log that grows, which a part that is cut off leaves, too; the exit code is that of the tests."""
    made = Made(tmp_path, code=3)
    found = made("gpu-tests")
    assert found.returncode != 0 and "== failed, with exit code 3: tested gpu-tests" in found.stdout
    made("gpu-tests", "GPU_K=large")
    lines = (made.out / "gpu-tests.log").read_text().splitlines()
    assert [line.startswith("== 20") for line in lines] == [True, False] * 2
    assert lines[1] == lines[3] == "tests/test_it.py::test_it PASSED"
    assert "(large) and not" in lines[2]
    assert "tests/test_it.py::test_it PASSED" in found.stdout


def test_the_main_figure_of_training_comes_first(made):
    assert made("gpu-train").returncode == 0
    assert [one[0] for one in made.benches] == ["train"] * 3 + ["tracking"] + ["memory"] * 3 + ["scaling"]
    assert [after(one, "--micro") for one in made.benches[:3]] == ["4", "8", "8"]


def test_real_images_are_measured_beside_another_program_and_a_straightforward_one(made):
    shards, other = made.folder / "a", made.folder / "b"
    named = (f"GPU_SHARDS={shards}", f"GPU_SHARDS_B={other}", "REFERENCE_JSON_8=8.json", "GPU_DECODER=torchvision")
    assert made("gpu-input", *named).returncode == 0
    given = [(one[0], parsed(one)) for one in made.benches[1:]]
    assert all(one["data"] == "real" and "data.decoder=torchvision" in one["overrides"] for _, one in given)
    trained = {one["out"].stem: one["reference_json"] for name, one in given if name == "train"}
    assert {name: path.name for name, path in trained.items() if path} == {"train-real-stylegan2-8": "8.json"}
    assert len(trained) == 5
    levers = {one["out"].stem: one for name, one in given if name == "levers"}
    assert list(levers) == ["levers-real-progressive", "levers-real-munit"]
    assert all(one["lever"] == ["reference", "graphs"] for one in levers.values())
    assert f"data.shards={shards}" in levers["levers-real-progressive"]["overrides"]
    assert f"data.domains={{neutral: {shards}, smiling: {other}}}" in levers["levers-real-munit"]["overrides"]


def test_a_row_of_the_levers_can_be_bounded_and_chosen(made):
    assert made("gpu-levers", "FAMILIES=munit", "EAGER=reference half", "LEVER_SECONDS=240").returncode == 0
    assert made("gpu-compile", "FAMILIES=munit", "COMPILED=compile-main", "LEVER_SECONDS=240").returncode == 0
    eager, compiled = map(parsed, made.benches)
    assert (eager["lever"], compiled["lever"]) == (["reference", "half"], ["compile-main"])
    assert eager["seconds"] == compiled["seconds"] == 240
    assert eager["out"] == compiled["out"] and eager["out"].name == "levers-munit.json", "what failed is known to both"


def test_dials_can_be_prepared_without_training(made):
    assert made("gpu-dials", f"GPU_IMAGES={made.folder}", "DIALS_RUNS=0", "DIALS_SECONDS=400").returncode == 0
    (given,) = map(parsed, made.benches)
    assert (given["runs"], given["seconds"], given["seeds"]) == (0, 400, "0,1")
    assert ["-m", "hires_gan", "prepare"] in [call[:3] for call in made.calls]


@pytest.mark.parametrize("named", ["", "3f2a"])
def test_a_copy_without_its_checkout_says_that_the_commit_is_not_known(named, made, monkeypatch):
    """And what HIRES_GAN_COMMIT names is known."""
    monkeypatch.setenv("HIRES_GAN_COMMIT", named)
    found = made("gpu-tests", "COMMIT=")
    assert ("== records will not say which commit was measured" in found.stdout) is not named
    log = shlex.split((made.out / "gpu-tests.log").read_text(), posix=False)
    assert log[log.index("commit") + 1] == f"{named or 'unknown'}:"
