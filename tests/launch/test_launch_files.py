"""Every file in `launch/` trains, started as its comment says, by two processes on the CPU."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port
from launching import LAUNCH, ROOT, SHORT, SUMMED, accelerated, commands, latest, launch, nimg_of, status_of

YAMLS = sorted(path.name for path in LAUNCH.glob("*.yaml"))


def test_every_file_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert [path.name for path in LAUNCH.iterdir() if f'"{path.name}"' not in tests] == []


@pytest.mark.parametrize("name", YAMLS)
def test_nothing_in_a_file_changes_what_is_trained(name: str) -> None:
    content = yaml.safe_load((LAUNCH / name).read_text())
    assert content["mixed_precision"] == "no"
    if content["distributed_type"] == "DEEPSPEED":
        block = content["deepspeed_config"]
        assert (block["gradient_clipping"], block["gradient_accumulation_steps"]) == (0.0, 1)


@pytest.mark.parametrize("name", YAMLS)
def test_a_file_sets_nothing_that_accelerate_does_not_read(name: str) -> None:
    """These have a default on the command line, which stands whatever a file says."""
    content = yaml.safe_load((LAUNCH / name).read_text())
    assert not content.keys() & {"rdzv_backend", "same_network", "max_restarts"}


def trained(settings: dict[str, Any], write_config: Any, tmp_path: Path, name: str, *options: str) -> str:
    """What a short run said that was started as the file's first command line says."""
    settings["evaluation"]["every_kimg"] = None
    command = accelerated(commands(name, write_config(settings))[0], *options)
    return launch([*command, SHORT], tmp_path / "log").succeeded()


@pytest.mark.slow
def test_one_gpu(settings: dict[str, Any], write_config: Any, tmp_path: Path) -> None:
    said = trained(settings, write_config, tmp_path, "one_gpu.yaml")
    assert "processes" not in said
    assert latest(settings, "small").state["world_size"] == 1


@pytest.mark.slow
def test_the_launcher_of_one_process_hands_a_signal_on(
    settings: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    settings["run"]["total_kimg"] = 50
    folder = Path(settings["run"]["dir"]) / "small"
    (command,) = commands("one_gpu.yaml", write_config(settings))
    run = launch(command, tmp_path / "log")
    run.wait_for(lambda: nimg_of(folder) > 60)
    trainer = status_of(folder)["process"]
    assert trainer != run.process.pid
    run.process.send_signal(signal.SIGTERM)
    run.ended()
    assert status_of(folder)["state"] == "preempted", run.said
    assert latest(settings, "small").nimg == status_of(folder)["nimg"]
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)


def test_two_processes_on_the_cpu(settings: dict[str, Any], write_config: Any, tmp_path: Path) -> None:
    """As the file stands: no option, no variable."""
    said = trained(settings, write_config, tmp_path, "cpu.yaml")
    assert "as the first of 2 processes, 2 of them here" in said
    assert latest(settings, "small").state["world_size"] == 2


@pytest.mark.slow
def test_eight_gpus_are_two_processes_here(settings: dict[str, Any], write_config: Any, tmp_path: Path) -> None:
    trained(settings, write_config, tmp_path, "eight_gpus.yaml", "--num_processes", "2")
    assert latest(settings, "small").state["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMMED)
def test_the_files_of_several_machines_serve_one(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, name: str
) -> None:
    one = ("--num_machines", "1", "--num_processes", "2", "--main_process_port", str(free_port()))
    said = trained(settings, write_config, tmp_path, name, *one)
    assert f"gradients are summed by {SUMMED[name]}\n" in said
    assert latest(settings, "small").state["world_size"] == 2


@pytest.mark.slow
def test_torchrun_on_one_machine(settings: dict[str, Any], write_config: Any, tmp_path: Path) -> None:
    command = commands("torchrun.sh", write_config(settings))[0]
    launch([*command, SHORT], tmp_path / "log", GPUS="2").succeeded()
    assert latest(settings, "small").state["world_size"] == 2


def test_torchrun_on_several_machines_has_to_be_told_where_they_meet(tmp_path: Path) -> None:
    run = launch([str(LAUNCH / "torchrun.sh"), "configs/demo.yaml"], tmp_path / "log", NODES="2", GPUS="1")
    assert run.ended() == 1
    assert "HOST: is not set: name the machine where all others meet" in run.said


def test_the_readme_names_no_file_that_is_not_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"\blaunch/([\w.]+\.(?:yaml|sh|sbatch))", page.read_text())}
    assert named <= {path.name for path in LAUNCH.iterdir()}
