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
import torch
import typer

from hires_gan.cli_bench import app
from hires_gan.config import load_configuration
from hires_gan.ops import native
from hires_gan.ops.build_record import BuildRecord

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
    "-m pip") while [ "$1" != --target ]; do shift; done; mkdir -p "$2";;
    "-c import json"*) echo 60.5; exit {timed};;
    "-c import sys, torch;"*) exit {built};;
    "-c import nvidia.dali") exit {dali};;
esac
"""
BUILD = ["setup.py", "--quiet", "build_ext", "--inplace"]
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
        [sys.executable, program, "gpu.mk"],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/training/test_graphs.py::" in done.stdout


class Made:
    """`make PART` with a Python and a compute-sanitizer of ours, and the calls that it made.

    That Python's exit codes: of tests; where it is asked whether the ops are built already, which they are not; where
    it imports DALI; and where it reads how long a step took.
    """

    def __init__(self, folder: Path, code: int = 0, built: int = 1, dali: int = 0, timed: int = 0) -> None:
        self.folder, self.out, self.root = folder, folder / "out", ROOT
        self.tools, self.record = folder / "tools", folder / "calls"
        self.answers = {"calls": self.record, "code": code, "built": built, "dali": dali, "timed": timed}
        self.python = self.program("python", PYTHON, **self.answers)
        self.sanitizer = self.program("compute-sanitizer", SANITIZER, tools=self.tools, python=self.python)

    def program(self, name: str, text: str, **values: object) -> Path:
        path = self.folder / name
        path.write_text(text.format(**values))
        path.chmod(0o755)
        return path

    def __call__(self, *targets: str) -> subprocess.CompletedProcess[str]:
        own = (f"GPU_PYTHON={self.python}", f"OUT={self.out}", f"SANITIZER={self.sanitizer}", f"DIALS={self.dials}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = ["make", "--no-print-directory", *own, *targets]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=120)

    @property
    def dials(self) -> Path:
        """Where the dials' images and runs are."""
        return self.folder / "dials"

    @property
    def calls(self) -> list[list[str]]:
        return [line.split("\037")[:-1] for line in self.record.read_text().splitlines()]

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


def names(arguments: list[list[str]]) -> list[str]:
    """Of the files that are written."""
    return [Path(after(one, "--out")).name for one in arguments]


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
        assert given["out"].parent == made.out or given["out"] == made.dials
        assert re.fullmatch(r"[A-Za-z0-9._-]+", given["out"].name), "some machines give back no other file"
        if given.get("config"):
            load_configuration(ROOT / given["config"], given["overrides"] or [])
    assert {one[0] for one in made.benches} == set(typer.main.get_command(app).list_commands(None))


def test_help_and_the_documents_name_every_part():
    text = (ROOT / "gpu.mk").read_text()
    parts = re.search(r"^GPU_PARTS = ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert parts is not None and tuple(parts[1].replace("\\\n", " ").split()) == PARTS
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for told in (said, (ROOT / "benchmarks" / "README.md").read_text()):
        assert [part for part in PARTS if not re.search(rf"\b{part}\b", told)] == []


def test_ops_are_built_and_measured_and_nothing_else(made):
    assert made("gpu-ops").returncode == 0
    assert made.calls[1:3] == [BUILD, ["-m", "hires_gan.ops"]]
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
    assert "--timeout=180" in first and "--timeout=600" in second
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
    assert all("--timeout=600" in one for one in made.tests)
    assert made("gpu-sanitize", "GPU_TIMEOUT_SLOW=90", "SANITIZER_TOOLS=memcheck").returncode == 0
    assert "--timeout=90" in made.tests[-1]


def test_a_sanitizer_that_is_missing_is_a_failure_unless_it_is_left_out(made):
    missing, left_out = made("gpu-sanitize", "SANITIZER="), made("gpu-sanitize", "SANITIZER=none")
    assert missing.returncode != 0 and "SANITIZER=none" in missing.stdout
    assert left_out.returncode == 0 and "== left out: SANITIZER is none" in left_out.stdout
    assert not made.tests


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


def test_the_main_figure_of_training_comes_first_and_tracking_last(made):
    assert made("gpu-train").returncode == 0
    assert [one[0] for one in made.benches] == ["train"] * 3 + ["memory"] * 3 + ["scaling", "tracking"]
    assert [after(one, "--micro") for one in made.benches[:3]] == ["4", "8", "8"]
    assert len(names(made.benches)) == 8


def test_parts_and_sizes_of_training_can_be_chosen(made):
    assert made("gpu-train", "TRAIN_PARTS=train", "TRAIN_SIZES=8 4", "REFERENCE_JSON_4=4.json").returncode == 0
    assert names(made.benches) == ["train-8.json", "train-4.json"]
    assert [parsed(one)["reference_json"] for one in made.benches] == [None, Path("4.json")]
    assert made("gpu-train", "TRAIN_PARTS=scaling tracking").returncode == 0
    assert names(made.benches)[2:] == ["scaling.json", "tracking.json"]


def test_tracking_says_beside_which_steps_it_is_measured(tmp_path):
    made = Made(tmp_path, timed=1)
    found = made("gpu-train", "TRAIN_PARTS=tracking")
    assert found.returncode != 0 and not made.benches
    assert "out/train-32.json, which is not there" in found.stdout and "TRAIN_SIZES=32 makes it" in found.stdout


@pytest.mark.parametrize(
    ("target", "chosen", "told"),
    [
        ("gpu-train", "TRAIN_PARTS=memroy", "TRAIN_PARTS has memroy; allowed are train memory scaling tracking"),
        ("gpu-input", "GPU_INPUT=real", "GPU_INPUT has real; allowed are train gains decoders"),
        ("gpu-input", "GAINS=stylegan-4", "GAINS has stylegan-4; allowed are stylegan2-% progressive-% munit-%"),
        ("gpu-levers", "FAMILIES=stylegan", "FAMILIES has stylegan; allowed are stylegan2 progressive munit"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_run(target, chosen, told, made):
    found = made(target, chosen)
    assert found.returncode != 0 and told in found.stderr
    assert not made.record.exists()


def test_real_images_are_measured_beside_another_program_and_a_straightforward_one(made):
    shards, other = made.folder / "a", made.folder / "b"
    named = (f"GPU_SHARDS={shards}", f"GPU_SHARDS_B={other}", "REFERENCE_JSON_8=8.json", "GPU_DECODER=torchvision")
    assert made("gpu-input", *named).returncode == 0
    *given, (last, decoders) = [(one[0], parsed(one)) for one in made.benches]
    assert (last, decoders["seconds"]) == ("input", 8), "what takes a CPU, not the GPU, comes last"
    assert all(one["data"] == "real" and "data.decoder=torchvision" in one["overrides"] for _, one in given)
    trained = {one["out"].stem: one["reference_json"] for name, one in given if name == "train"}
    assert {name: path.name for name, path in trained.items() if path} == {"train-real-stylegan2-8": "8.json"}
    assert len(trained) == 5
    levers = {one["out"].stem: one for name, one in given if name == "levers"}
    rows = {"progressive-4": 4, "progressive-8": 8, "munit-1": 1, "munit-4": 4}
    assert {name: one["micro"] for name, one in levers.items()} == {f"levers-real-{row}": n for row, n in rows.items()}
    for name, one in levers.items():
        assert one["lever"] == ["reference", "graphs"] and f"batch.size={one['micro']}" in one["overrides"]
        data = f"data.domains={{neutral: {shards}, smiling: {other}}}" if "munit" in name else f"data.shards={shards}"
        assert data in one["overrides"]


def test_parts_and_rows_on_real_images_can_be_chosen(made):
    shards = f"GPU_SHARDS={made.folder}"
    assert made("gpu-input", shards, "GPU_INPUT=gains", "GAINS=progressive-8 munit-1").returncode == 0
    found = made("gpu-input", shards, "GPU_INPUT=train decoders", "REAL=stylegan2-8", "INPUT_SECONDS=3")
    assert names(made.benches) == ["levers-real-progressive-8.json", "train-real-stylegan2-8.json", "input.json"]
    assert after(made.benches[-1], "--seconds") == "3" and "not measured" not in found.stdout
    told = made("gpu-input", shards).stdout
    assert "train-real-munit-1 is not measured: GPU_SHARDS and GPU_SHARDS_B name no two shard sets" in told
    assert "train-real-stylegan2-4 is not measured: GPU_SHARDS names no shard set" in made("gpu-input").stdout


@pytest.mark.parametrize(
    ("named", "dali", "decoder"),
    [("", 0, "dali"), ("", 1, "torchvision"), ("dali", 1, "dali"), ("dali-cpu", 0, "dali-cpu")],
)
def test_without_dali_torchvision_decodes_unless_a_decoder_is_named(named, dali, decoder, tmp_path):
    made = Made(tmp_path, dali=dali)
    found = made("gpu-input", "GPU_INPUT=train", f"GPU_SHARDS={made.folder}", f"GPU_DECODER={named}")
    assert {override for one in made.benches for override in one if "decoder" in override} == {
        f"data.decoder={decoder}"
    }
    assert ("== DALI cannot be imported" in found.stdout) is (decoder == "torchvision")
    assert (found.returncode != 0) is bool(named and dali), "what was asked for is not replaced"


def test_a_row_of_the_levers_can_be_bounded_and_chosen(made):
    assert made("gpu-levers", "FAMILIES=munit", "EAGER=reference half", "LEVER_SECONDS=240").returncode == 0
    assert made("gpu-compile", "FAMILIES=munit", "COMPILED=compile-main", "LEVER_SECONDS=240").returncode == 0
    eager, compiled = map(parsed, made.benches)
    assert (eager["lever"], compiled["lever"]) == (["reference", "half"], ["compile-main"])
    assert eager["seconds"] == compiled["seconds"] == 240
    assert eager["out"] == compiled["out"] and eager["out"].name == "levers-munit.json", "what failed is known to both"


def test_munit_can_be_divided_and_what_matters_most_comes_first(made):
    assert made("gpu-munit").returncode == 0
    assert len(made.benches) == 12 and names(made.benches)[:2] == ["munit-3-reference.json", "munit-3-fast.json"]
    made.record.unlink()
    assert made("gpu-munit", "MUNIT_DOWNS=4", "MUNIT_DIALS=fast", "MUNIT_NIMG=").returncode == 0
    assert names(made.benches) == ["munit-4-fast.json"]
    assert made("gpu-munit", "MUNIT_DOWNS=2 3", "MUNIT_DIALS=", "MUNIT_NIMG=0").returncode == 0
    assert names(made.benches)[1:] == ["munit-3-grown-0.json"], "two halvings have no room for two levels"


def test_evaluations_can_be_chosen(made):
    assert made("gpu-evaluate").returncode == 0
    assert names(made.benches) == ["evaluate-fid.json", "evaluate-fid-kid-precision-density.json"]
    assert parsed(made.benches[1])["metrics"] == "fid,kid,precision,density"
    assert made("gpu-evaluate", "EVALUATE_METRICS=kid", "EVALUATE_COUNT=1024").returncode == 0
    assert (names(made.benches)[2], parsed(made.benches[2])["count"]) == ("evaluate-kid.json", 1024)


def test_dials_can_be_prepared_without_training(made):
    assert made("gpu-dials", f"GPU_IMAGES={made.folder}", "DIALS_RUNS=0", "DIALS_SECONDS=400").returncode == 0
    (given,) = map(parsed, made.benches)
    assert (given["runs"], given["seconds"], given["seeds"]) == (0, 400, "0,1")
    (prepared,) = [call for call in made.calls if call[:3] == ["-m", "hires_gan", "prepare"]]
    assert f"data.shards={after(prepared, '--out')}" in given["overrides"]


def test_of_the_dials_what_was_compared_is_left_and_the_logs(made):
    """Images, checkpoints and stores are too many and too deep to be given back by each machine."""
    kept = {"dials.json", "comparison.html", "comparison.png", "fast-0.log"}
    (made.dials / "runs").mkdir(parents=True)
    for name in (*kept, "fast-0.json", "runs/other.log"):
        (made.dials / name).write_text(name)
    assert made("gpu-dials", f"GPU_IMAGES={made.folder}").returncode == 0
    assert {path.name for path in made.out.iterdir()} == kept


def test_the_dials_of_the_page_are_those_of_the_part(made):
    """The page's command, its placeholders filled in, asks for what the part does."""
    text = (ROOT / "benchmarks" / "README.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^hires-gan bench (dials .*)$", text, re.MULTILINE)
    assert made("gpu-dials", f"GPU_IMAGES={made.folder}").returncode == 0
    (part,) = map(parsed, made.benches)
    places = {"DIR": str(made.dials), "SHARDS": str(made.dials / "images")}
    page = parsed(shlex.split(re.sub(r"\b(DIR|SHARDS)\b", lambda found: places[found[0]], line)))
    assert page == part
    load_configuration(ROOT / page["config"], page["overrides"])


@pytest.mark.parametrize("named", ["", "3f2a"])
def test_a_copy_without_its_checkout_says_that_the_commit_is_not_known(named, made, monkeypatch):
    """And what HIRES_GAN_COMMIT names is known."""
    monkeypatch.setenv("HIRES_GAN_COMMIT", named)
    found = made("gpu-tests", "COMMIT=")
    assert ("== records will not say which commit was measured" in found.stdout) is not named
    log = shlex.split((made.out / "gpu-tests.log").read_text(), posix=False)
    assert log[log.index("commit") + 1] == f"{named or 'unknown'}:"


def test_ops_that_are_there_are_not_built_anew(tmp_path):
    made = Made(tmp_path, built=0)
    assert "== the ops are built already" in made("gpu-tests").stdout
    assert BUILD not in made.calls and ["-m", "hires_gan.ops"] in made.calls
    assert made("gpu-tests", "GPU_BUILD=always").returncode == 0
    assert BUILD in made.calls


@pytest.mark.parametrize(
    ("version", "changed", "lacking", "built"),
    [
        (str(torch.__version__), False, "", True),
        ("2.11.1", False, "", False),
        (str(torch.__version__), True, "", False),
        (str(torch.__version__), False, "cuda", False),
        (str(torch.__version__), False, "cpu", False),
        (None, False, "", False),
    ],
)
def test_ops_are_there_if_all_are_of_these_sources_and_for_this_torch(
    version, changed, lacking, built, made, monkeypatch
):
    monkeypatch.setattr(native, "record", lambda: BuildRecord(torch=version) if version else None)
    monkeypatch.setattr(native, "sources_changed", lambda: changed)
    monkeypatch.setattr(native, "available", lambda device: device != lacking)
    made("gpu-tests")
    (code,) = [call[1] for call in made.calls if call[0] == "-c"]
    with pytest.raises(SystemExit) as ended:
        exec(code, {})
    assert bool(ended.value.code) is not built


def copied(made: Made) -> Path:
    """A folder with the Makefiles alone, in which `make` runs from now on."""
    made.root = made.folder / "copy"
    made.root.mkdir()
    for name in ("Makefile", "gpu.mk"):
        shutil.copy(ROOT / name, made.root)
    return made.root


def test_wheels_are_unpacked_once_into_a_folder_of_their_own(made):
    """What the machine has stays as it is; and the package is found from any folder."""
    root = copied(made)
    (root / ".wheels").mkdir()
    (root / ".wheels" / "one-1.0-py3-none-any.whl").touch()
    made.program("python", PYTHON.replace("#!/bin/sh", '#!/bin/sh\necho "path: $PYTHONPATH"'), **made.answers)
    found = made("gpu-tests")
    assert f"path: {root}/build/wheels:{root}" in found.stdout
    made("gpu-tests")

    def unpacked() -> list[list[str]]:
        return [call for call in made.calls if call[:2] == ["-m", "pip"]]

    (only,) = unpacked()
    assert after(only, "--target") == f"{root}/build/wheels" and {"--no-index", "--no-deps", "--no-compile"} < set(only)
    later = (root / "build" / "wheels" / ".unpacked").stat().st_mtime + 10
    os.utime(root / ".wheels", (later, later))
    made("gpu-tests")
    assert len(unpacked()) == 2, "others were put there since"


def test_what_a_machine_has_already_is_fetched_where_it_is_asked_for():
    few, all_of_them = (
        subprocess.run(["make", "-n", "wheels", *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for more in ((), ("WHEELS_ALL=yes",))
    )

    def fetched(text: str) -> list[str]:
        return text.replace("\\\n", " ").partition(" -d .wheels ")[2].partition("\n")[0].split()

    assert {"mlflow", "pydantic", "webdataset"} <= set(fetched(few))
    assert not {"matplotlib", "pillow", "accelerate", "pytest"} & set(fetched(few))
    assert fetched(all_of_them)[: len(fetched(few))] == fetched(few)
    assert {"matplotlib", "pillow", "accelerate", "pytest"} <= set(fetched(all_of_them))
    assert len(set(fetched(all_of_them))) == len(fetched(all_of_them))
