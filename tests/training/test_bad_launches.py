"""Whole commands that were launched in a wrong way: one sentence from the first process, and all end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
_END = 300
"""Seconds within which each has to end; far more than they take, on a machine that does other things too."""
MANY = "the launcher started 2 processes, and backend.processes is 3"
SHARED = """
import os, sys
from pathlib import Path
from hires_gan.cli import main
from hires_gan import cli
from hires_gan.training.launch import join_launch
from hires_gan.training.run_folder import RunFolder, check_shared
from hires_gan.training.settings import BackendSettings

def checked():
    world = join_launch(BackendSettings(timeout=300))
    folder = Path(sys.argv[1 + (world.rank if len(sys.argv) > 2 else 0)])
    if world.first:
        RunFolder(folder)
    check_shared(world, folder, delay=1)
    assert list(folder.glob(".shared*")) == [] or not world.first
    print("shared", world.rank, flush=True)
    world.leave()

cli.app = checked
main()
"""


@pytest.fixture
def config(settings: dict[str, Any], write_config: Any) -> str:
    settings["backend"] = {"timeout": 300}
    settings["evaluation"]["every_kimg"] = None
    return str(write_config(settings))


def torchrun(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return ended([*launcher, *command], more)


def ended(command: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=_END)


def train(config: str, *overrides: str) -> list[str]:
    return ["-m", "hires_gan", "train", config, *overrides]


def refuses(ran: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert ran.returncode != 0
    assert ran.stderr.count("error: ") == 1, ran.stderr
    assert f"error: {sentence}" in ran.stderr, ran.stderr


def test_a_launch_configuration_that_is_not_obeyed_is_refused_by_the_first(config: str) -> None:
    ran = torchrun(*train(config), ACCELERATE_MIXED_PRECISION="bf16")
    refuses(ran, "the launch configuration sets mixed_precision to bf16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "environment", "sentence"),
    [
        (["backend.processes=3"], {}, MANY),
        (
            [],
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "the launch configuration asks for ZeRO-3",
        ),
        (
            [],
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "1.0"},
            "the launch configuration sets gradient_clipping to 1.0",
        ),
    ],
)
def test_two_processes_refuse_as_one(
    config: str, overrides: list[str], environment: dict[str, str], sentence: str
) -> None:
    refuses(torchrun(*train(config, *overrides), **environment), sentence)


@pytest.mark.slow
def test_what_only_one_machine_was_told_is_said_with_its_rank(config: str, tmp_path: Path) -> None:
    program = (
        "import os, sys; os.environ['ACCELERATE_MIXED_PRECISION'] = ['no', 'fp16'][int(os.environ['RANK'])]; "
        "from hires_gan.cli import main; main()"
    )
    (tmp_path / "start.py").write_text(program)
    ran = torchrun(str(tmp_path / "start.py"), "train", config)
    refuses(ran, f"rank 1 on {socket.gethostname()}: the launch configuration sets mixed_precision to fp16")


@pytest.mark.slow
def test_accelerate_on_the_cpu_of_two_machines_would_train_two_runs(config: str) -> None:
    machines = ["--cpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", "0"]
    first = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    ran = ended([*ACCELERATE, *machines, *first, *train(config)], {})
    refuses(ran, "accelerate launch was asked for several processes")


@pytest.mark.slow
def test_tasks_of_srun_that_know_nothing_of_each_other_are_refused(config: str) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    ran = ended([sys.executable, *train(config)], step)
    assert ran.returncode == 2
    refuses(ran, "srun started 2 tasks, but RANK and WORLD_SIZE are not set")


@pytest.mark.slow
def test_accelerates_deepspeed_launcher_makes_one_world_on_a_cpu(tmp_path: Path) -> None:
    """accelerate alone would take each of the two for the only one.

    DeepSpeed's launcher starts Python unbuffered, so that each piece of a print is a write of its own: a line is one
    piece, or the two processes' lines would stand in each other.
    """
    program = (
        "from hires_gan.training.launch import join_launch\n"
        "from hires_gan.training.settings import BackendSettings\n"
        "world = join_launch(BackendSettings(timeout=300, grace=60))\n"
        "from accelerate import PartialState\n"
        "print(f'of {world.size} {PartialState().num_processes}\\n', end='', flush=True)\n"
        "world.leave()\n"
    )
    (tmp_path / "start.py").write_text(program)
    launch = [*ACCELERATE, "--use_deepspeed", "--num_processes", "2", "--main_process_port", str(free_port())]
    ran = ended([*launch, str(tmp_path / "start.py")], {})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("of 2 2") == 2
    assert "gradients are summed by DeepSpeed ZeRO-2" in ran.stderr
    assert ran.stderr.count("this launcher kills its processes 30 seconds after a signal") == 1


@pytest.mark.slow
def test_a_folder_that_not_all_machines_share_is_named(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(SHARED)
    same = torchrun(str(tmp_path / "start.py"), str(tmp_path / "one"))
    assert same.returncode == 0, same.stderr
    assert same.stdout.count("shared") == 2
    ran = torchrun(str(tmp_path / "start.py"), str(tmp_path / "here"), str(tmp_path / "there"))
    refuses(ran, f"rank 1: {socket.gethostname()} does not see what the first process has written to {tmp_path}")


@pytest.mark.slow
def test_two_plain_processes_train_a_run(config: str, settings: dict[str, Any]) -> None:
    """Without any launcher: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are enough."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, *train(config, "run.total_kimg=0.032")]
    first, other = (
        subprocess.Popen(command, env=os.environ | place | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    try:
        said, nothing = (process.communicate(timeout=_END)[1] for process in (first, other))
    finally:
        for process in (first, other):
            process.kill()
    assert (first.returncode, other.returncode) == (0, 0), said + nothing
    assert "gradients are summed by data parallel" in said
    assert yaml.safe_load((Path(settings["run"]["dir"]) / "small" / "status.json").read_text())["state"] == "finished"
