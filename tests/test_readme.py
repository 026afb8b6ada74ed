"""Every command of the README runs as it stands there: long ones shortened, `make` as far as its recipe."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from hires_gan.cli import app
from hires_gan.config import load_configuration

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent

# A run of the README, shortened to two steps at 4x4 of small networks.
SHORT = [
    "run.total_kimg=0.256",
    "recipe.generator.fmap_base=512",
    "recipe.discriminator.fmap_base=512",
    "evaluation.count=4",
    "samples.count=4",
]
STYLED = ["run.total_kimg=0.008", "batch.size=4", "recipe.generator.w_size=16", "recipe.generator.latent_size=16"]

TRANSLATED = ["run.total_kimg=0.008", "evaluation.every_kimg=null", "samples.count=2"]


def bash_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def python_blocks() -> list[str]:
    """The two examples: a trained generator, and the ops."""
    generator, ops = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return [generator, ops]


def test_the_readme_has_commands():
    commands = bash_commands()
    assert {"make demo", "make test", "hires-gan doctor"} <= set(commands)
    assert len(commands) >= 8


@pytest.mark.parametrize("command", [c for c in bash_commands() if c.startswith("make")])
def test_make_knows_the_target(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def is_for_others(command: str) -> bool:
    """Whether it is run by tests of its own: recipes of make, launches on machines that this is not."""
    return command.startswith(("make", "sbatch")) or "CONFIG" in command


def shortened(command: str) -> list[str]:
    words = shlex.split(command)
    if words[0] == "accelerate":
        return [str(BIN / words[0]), *words[1:], *SHORT, "run.name=launched", "run.total_kimg=0.064"]
    assert words[0] == "hires-gan", f"the README has a command that this test does not know: {command}"
    words[0] = str(BIN / "hires-gan")
    if words[1] == "train":
        words += TRANSLATED if "munit" in words[2] else SHORT
        words += STYLED if "stylegan2" in words[2] else []
    if words[1] == "evaluate":
        words += ["--count", "8"]
    if words[1] == "project":
        words += ["--steps", "2"]
    if words[1:3] == ["bench", "input"]:
        words += ["--resolution", "64", "--seconds", "0.5"]
    return words


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path):
    """The user's story, from a folder of images to generated ones, in an empty folder with the shipped configs."""
    for folder in ("configs", "launch"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "my-images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 255, (260, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my-images" / f"{number}.jpg")
    for command in (c for c in bash_commands() if not is_for_others(c)):
        done = subprocess.run(shortened(command), cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs" / "launched" / "checkpoints" / "latest").is_file(), "by two processes"
    assert len(list((tmp_path / "images").glob("seed*.png"))) == 16
    assert len(list((tmp_path / "translated").glob("*_style*.png"))) == 6 * 4
    code = python_blocks()[0] + "assert images.shape == (4, 3, 4, 4)\n"  # the shortened run has grown no further
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_ops_runs():
    code = python_blocks()[1] + "assert y.shape == (1, 32, 128, 128) and x.grad.shape == x.shape\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_in_the_table_parse(tmp_path):
    """`hires-gan X` in the table of commands: each is a command with a help page."""
    table = re.findall(r"^\| `hires-gan ([\w-]+)", README, re.MULTILINE)
    assert table == [
        "prepare",
        "shards",
        "train",
        "generate",
        "translate",
        "project",
        "evaluate",
        "compare",
        "export",
        "import-nvlabs",
        "config",
        "bench",
        "doctor",
    ]
    for command in table:
        done = subprocess.run([str(BIN / "hires-gan"), command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0


def documented_preparations() -> list[str]:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("hires-gan prepare")]


@pytest.mark.parametrize("command", documented_preparations())
def test_the_commands_of_the_data_set_guide_parse(command):
    group = typer.main.get_command(app)
    context = group.make_context("hires-gan", shlex.split(command, comments=True)[1:])
    name, prepare, arguments = group.resolve_command(context, [*context._protected_args, *context.args])
    assert name == "prepare"
    assert prepare.make_context(name, arguments).params["out"]


def benchmark_commands() -> list[str]:
    """Those of the pages of figures that are there to be typed: in blocks and in cells of tables, not in sentences."""
    found = []
    for page in sorted((ROOT / "benchmarks").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        blocks = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
        lines = [re.sub(r"^(?:\w+=\S* )+", "", line) for line in blocks.splitlines()]
        found += [line for line in lines if line.startswith("hires-gan ")]
        cells = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        found += re.findall(r"`(hires-gan [^`]+)`", cells)
    return found


def test_the_pages_of_figures_have_commands():
    assert {command.split()[2] for command in benchmark_commands() if command.split()[1] == "bench"} >= {
        *("input", "ops", "train", "memory", "levers", "dials", "scaling", "tracking", "evaluate")
    }


@pytest.mark.parametrize("command", benchmark_commands())
def test_the_commands_of_the_pages_of_figures_parse(command):
    """With what they stand for in capitals, such as DIR; and the configuration that they make is valid."""
    found, words = typer.main.get_command(app), shlex.split(command, comments=True)
    name, arguments = words[0], words[1:]
    while hasattr(found, "commands"):
        group = found.make_context(name, arguments)
        name, found, arguments = found.resolve_command(group, [*group._protected_args, *group.args])
    given = found.make_context(name, arguments).params
    if given.get("config"):
        load_configuration(ROOT / given["config"], given["overrides"] or [])


@pytest.mark.parametrize("command", [c for c in bash_commands() if is_for_others(c) and not c.startswith("make")])
def test_files_of_launches_are_there(command):
    (file,) = re.findall(r"launch/[\w.]+", command)
    assert (ROOT / file).is_file()


def test_files_that_the_readme_links_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`(tests/[\w/.]+\.py)", README):
        assert (ROOT / path).is_file(), path
