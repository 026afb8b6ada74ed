"""launch/pod.sh by itself: which command it starts, what it refuses, and which exit code it makes of an end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import LAUNCH, here, started

POD = LAUNCH / "pod.sh"
ENVIRONMENT = {
    "NODES": "2",
    "GPUS": "8",
    "MASTER_ADDR": "first.set",
    "MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "1",
}
DOCTOR, MEETING, ACCELERATE = "hires-gan", "python", "accelerate"
LAUNCHED = [
    f"launch --config_file {LAUNCH / 'nodes.yaml'} --num_machines 2 --num_processes 16 --machine_rank 1",
    "--main_process_ip first.set --main_process_port 29500 -m hires_gan train /mnt/config/train.yaml run.seed=3",
]


class Programs:
    """Stand-ins for the doctor and the launcher: they write down how they were called, and do what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.endings = folder, folder / "termination-log"
        self.endings.touch()
        for name in (DOCTOR, MEETING, ACCELERATE):
            self.does(name, "exit 0")

    def does(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(
            f'#!/bin/bash\necho "$@" >> {self.folder / name}.calls\nenv > {self.folder / name}.env\n{script}\n'
        )
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def variables(self, name: str) -> set[str]:
        return {line.partition("=")[0] for line in (self.folder / f"{name}.env").read_text().splitlines()}

    def start(self, *words: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
        log = self.folder / "log"
        path = f"{self.folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
        told = {**ENVIRONMENT, "PATH": path, "HIRES_GAN_ENDINGS": str(self.endings), **environment}
        with log.open("w") as file:
            process = here(["bash", str(POD), *words], env=told, stdout=file, stderr=subprocess.STDOUT)
        return started(process, log).process, log

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        process, log = self.start(*(words or ("/mnt/config/train.yaml", "run.seed=3")), **environment)
        return process.wait(60), log.read_text()

    def wait_for(self, name: str) -> None:
        self.wait_until(lambda: bool(self.calls(name)))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_the_doctor_is_asked_before_the_launcher_is_started(programs: Programs) -> None:
    assert programs.run(NEEDS="A,B", PATIENCE="7") == (0, "")
    assert programs.calls(DOCTOR) == [
        "doctor /mnt/config/train.yaml run.seed=3 --gpus 8 --wait 7 --needs A,B",
    ]
    assert programs.calls(MEETING) == ["-m hires_gan.training.meeting first.set 29500 2 1"]
    assert programs.calls(ACCELERATE) == [" ".join(LAUNCHED)]


def test_nothing_needed_is_nothing_asked_for(programs: Programs) -> None:
    programs.run()
    assert programs.calls(DOCTOR) == ["doctor /mnt/config/train.yaml run.seed=3 --gpus 8 --wait 0"]


@pytest.mark.parametrize(("restarts", "code"), [("", 2), ("0", 2), ("3", 1)])
def test_where_the_doctor_finds_something_nothing_is_started(programs: Programs, restarts: str, code: int) -> None:
    programs.does(DOCTOR, "exit 1")
    assert programs.run(RESTARTS=restarts)[0] == code
    assert programs.calls(ACCELERATE) == programs.calls(MEETING) == []


def test_where_pods_do_not_meet_nothing_is_started(programs: Programs) -> None:
    programs.does(MEETING, "exit 1")
    assert programs.run()[0] == 1
    assert programs.calls(ACCELERATE) == []


def test_without_gpus_processes_are_counted_and_kept_on_the_cpu(programs: Programs) -> None:
    assert programs.run(GPUS="0", PROCESSES="3")[0] == 0
    assert "--num_processes 6" in programs.calls(ACCELERATE)[0]
    assert "ACCELERATE_USE_CPU" in programs.variables(ACCELERATE)


def test_with_gpus_they_are_used(programs: Programs) -> None:
    programs.run()
    assert "ACCELERATE_USE_CPU" not in programs.variables(ACCELERATE)


def test_what_kubeflow_says_counts_and_is_not_handed_on(programs: Programs) -> None:
    told = {"PET_NNODES": "4", "PET_NODE_RANK": "3", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"}
    programs.run(PET_NPROC_PER_NODE="auto", **told)
    (called,) = programs.calls(ACCELERATE)
    assert "--num_machines 4 --num_processes 32 --machine_rank 3" in called
    assert "--main_process_ip job-node-0-0.job --main_process_port 29400" in called
    assert not [name for name in programs.variables(ACCELERATE) if name.startswith("PET_")]


@pytest.mark.parametrize(("name", "value"), [("LAUNCH", "zero2_nodes"), ("LAUNCH", "zero1_nodes")])
def test_another_launch_configuration(programs: Programs, name: str, value: str) -> None:
    programs.run(**{name: value})
    assert f"--config_file {LAUNCH / value}.yaml" in programs.calls(ACCELERATE)[0]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"NODES": ""}, ["NODES is ''", "from 1 to", "ConfigMap hires-gan"]),
        ({"NODES": "0"}, ["NODES is '0'"]),
        ({"NODES": "2; rm -r /"}, ["NODES is '2; rm"]),
        ({"NODES": "08"}, ["NODES is '08'"]),
        ({"MASTER_PORT": "99999"}, ["MASTER_PORT is '99999'", "from 1 to 65535"]),
        ({"GPUS": "many"}, ["GPUS is 'many'", "from 0 to"]),
        ({"GPUS": "0"}, ["PROCESSES is ''"]),
        ({"MASTER_PORT": ""}, ["MASTER_PORT is ''"]),
        ({"LAUNCH": "cluster"}, ["LAUNCH is 'cluster'", "nodes, zero1_nodes or zero2_nodes"]),
    ],
)
def test_what_the_environment_lacks_is_named(programs: Programs, environment: dict[str, str], words: list[str]) -> None:
    code, said = programs.run(**environment)
    assert code == 2
    assert said.startswith("error: ")
    assert [word for word in words if word not in said] == []
    assert programs.calls(DOCTOR) == []


def test_without_a_configuration_nothing_is_started(programs: Programs) -> None:
    process, log = programs.start()
    assert (process.wait(60), log.read_text()) == (2, "error: no configuration: give CONFIG [key=value ...]\n")


@pytest.mark.parametrize(
    ("endings", "code"),
    [
        (["75: stopped", "75: stopped"], 75),
        (["75: stopped", "1: lost another process"], 75),
        (["2: batch.size is wrong", "2: another process has said why"], 2),
        (["2: data.shards is missing", "1: lost another process"], 2),
        (["1: out of GPU memory"], 1),
        ([], 1),
        (["12: x", "1: exit code 2: of something else"], 1),
    ],
)
def test_launchers_make_one_of_every_exit_code(programs: Programs, endings: list[str], code: int) -> None:
    written = "".join(f'echo "exit code {line}" >> "$HIRES_GAN_ENDINGS"; ' for line in endings)
    programs.does(ACCELERATE, f"{written} exit 1")
    assert programs.run()[0] == code


def test_another_exit_code_of_the_launcher_stays(programs: Programs) -> None:
    programs.does(ACCELERATE, "exit 137")
    assert programs.run()[0] == 137


def test_without_a_termination_log_the_exit_code_is_known_all_the_same(programs: Programs) -> None:
    programs.does(ACCELERATE, 'echo "exit code 75: x" >> "$HIRES_GAN_ENDINGS"; exit 1')
    code, _ = programs.run(HIRES_GAN_ENDINGS=str(programs.folder / "absent" / "log"), TMPDIR=str(programs.folder))
    assert code == 75


def test_the_launcher_gets_the_signal_and_its_end_is_waited_for(programs: Programs) -> None:
    programs.does(
        ACCELERATE,
        'trap \'sleep 0.5; echo "exit code 75: stopped" >> "$HIRES_GAN_ENDINGS"; echo saved; exit 1\' TERM\n'
        "touch $0.listens; while true; do sleep 0.05; done",
    )
    process, log = programs.start("train.yaml")
    programs.wait_until((programs.folder / f"{ACCELERATE}.listens").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert log.read_text() == "saved\n"


@pytest.mark.parametrize("name", [DOCTOR, MEETING])
def test_a_signal_before_the_launcher_starts_nothing(programs: Programs, name: str) -> None:
    programs.does(name, "exec sleep 60")
    process, _ = programs.start("train.yaml")
    programs.wait_for(name)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert programs.calls(ACCELERATE) == []


@pytest.mark.parametrize("code", [0, 3, 137])
def test_the_exit_code_of_one_that_ends_at_once_is_known(programs: Programs, code: int) -> None:
    """It may have ended before anybody asks."""
    programs.does(DOCTOR, f"trap 'exit {code}' TERM; kill -TERM $PPID; while true; do sleep 0.01; done")
    ends = '[[ -z $stopped ]] || exit "$code" #'
    script = POD.read_text().replace("[[ -z $stopped ]] || exit 75", ends, 1)
    (programs.folder / "pod.sh").write_text(script.replace('here=$(dirname "$0")', f"here={LAUNCH}"))
    for _ in range(10):
        path = f"{programs.folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
        told = {**ENVIRONMENT, "PATH": path, "HIRES_GAN_ENDINGS": str(programs.endings)}
        assert subprocess.run(["bash", programs.folder / "pod.sh", "x"], env=told, timeout=60).returncode == code


def test_whatever_ends_behind_a_signal_is_to_go_on(programs: Programs) -> None:
    programs.does(ACCELERATE, "exec sleep 60")  # killed by the signal, as before a process listens
    process, _ = programs.start("train.yaml")
    programs.wait_for(ACCELERATE)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
