"""The doctor: what it says about this machine, and about machines broken on purpose."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hires_gan import doctor, doctor_dali, doctor_devices, doctor_folders, doctor_ops
from hires_gan.config import Configuration
from hires_gan.data import dali_pipeline
from hires_gan.doctor import Asked, Check, Part, examine, exit_code, report
from hires_gan.doctor_devices import Finding
from hires_gan.doctor_store import store
from hires_gan.ops import build_record, native, self_test
from hires_gan.ops.build_record import Library
from hires_gan.toolkit import Toolkit
from hires_gan.tracking.settings import TrackingSettings

ROOT = Path(__file__).resolve().parent.parent
EXAMINE = """
import dataclasses, json, os, resource, sys
from pathlib import Path
asked = json.loads(sys.argv[1])
events = []
watched = ("socket.connect", "subprocess.Popen")
sys.addaudithook(lambda event, args: events.append(event) if event in watched else None)
resource.setrlimit(resource.RLIMIT_NOFILE, (asked["files"], asked["files"]))
from hires_gan.doctor import Asked, examine
checks = examine(Asked(asked["quick"], run_dir=Path(asked["folder"])))
modules = [name for name in ("torchvision", "mlflow") if name in sys.modules]
print(json.dumps({"checks": [dataclasses.asdict(check) for check in checks], "events": events, "modules": modules}))
"""


def examined(folder: Path, quick: bool = False, files: int = 4096, **environment: str) -> dict[str, Any]:
    """What the doctor says in a process of its own with the environment changed."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CUDA_HOME", "MLFLOW_TRACKING_URI", "CXX")}
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT)])
    asked = json.dumps({"quick": quick, "folder": str(folder), "files": files})
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE, asked],
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    result["checks"] = {check["name"]: Check(**check) for check in result["checks"]}
    return dict(result)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder as the whole PATH, and nothing announced about CUDA."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return folder


def program(path: Path, text: str = "exit 0") -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def configured(**data: Any) -> Configuration:
    return Configuration.model_validate(
        {
            "run": {"name": "first", "total_kimg": 1, "dir": data.pop("dir", "runs")},
            "data": {"shards": "demo:photographs", **data},
            "recipe": {"name": "progressive", "resolution": 64},
        }
    )


def test_quick_asks_no_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = examined(tmp_path, quick=True, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert list(result["checks"]) == [
        "Python", "packages", "torch", "torchvision", "driver", "CUDA", "processors", "open files", "shared memory",
        "temporary files", "disk",
    ]  # fmt: skip
    assert result["events"] == []
    assert result["modules"] == [], "importing them takes longer than everything else"
    assert list(tmp_path.iterdir()) == []
    for name in ("Python", "packages", "torch", "torchvision", "open files", "disk"):
        assert result["checks"][name].status == "ok", result["checks"][name]


def test_a_machine_broken_in_every_way(tmp_path: Path, bare: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("mixed_precision: bf16\n")
    with socket.socket() as unused:  # bound, never listening: a port that refuses
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        checks = examined(
            Path("/proc/nowhere"),
            files=200,
            MLFLOW_TRACKING_URI=uri,
            HF_HOME=str(tmp_path),
            CUDA_HOME=str(tmp_path),
        )["checks"]
    assert checks["compiler"] == Check(
        "compiler",
        "missing",
        "no c++ or g++ or clang++ on the PATH",
        "install a C++ compiler, such as `apt install g++`",
        needed=False,
    )
    assert checks["open files"].found == "at most 200, fewer than 1024"
    assert checks["disk"].status == "wrong"
    assert checks["disk"].remedy
    assert checks["accelerate"].status == "wrong"
    assert f"{tmp_path}/accelerate/default_config.yaml asks for mixed precision bf16" in checks["accelerate"].found
    assert checks["CUDA toolkit"].found == f"CUDA_HOME is {tmp_path}, where there is no include/cuda_runtime.h"
    assert checks["MLflow store"].status == "wrong"
    assert uri in checks["MLflow store"].found
    assert "connection refused" in checks["MLflow store"].found.lower()
    assert not checks["ops, CPU"].needed
    assert not checks["ops, CUDA"].needed
    assert exit_code(checks.values()) == 1


def test_a_torchvision_of_another_torch_and_a_torch_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "one" / "torchvision").mkdir(parents=True)
    (tmp_path / "one" / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    torchvision = examined(tmp_path, PYTHONPATH=str(tmp_path / "one"))["checks"]["torchvision"]
    assert torchvision.status == "wrong"
    assert "does not match torch (operator torchvision::nms does not exist)" in torchvision.found
    assert "constraints.txt" in torchvision.remedy

    (tmp_path / "two" / "torch").mkdir(parents=True)
    (tmp_path / "two" / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    checks = examined(tmp_path, quick=True, PYTHONPATH=str(tmp_path / "two"))["checks"]
    assert checks["torch"].found == "the check failed: OSError: libcudart.so.13: cannot open"
    assert [name for name, check in checks.items() if check.status == "wrong"] == ["torch"]
    assert checks["CUDA"].found == "torch cannot be imported"


def test_a_check_that_crashes_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("a: [\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    check = Part("accelerate", True, doctor._accelerate).check()
    assert (check.name, check.status) == ("accelerate", "wrong")
    assert check.found == "the check failed: ParserError: while parsing a flow node"


@pytest.mark.parametrize("text", ["mixed_precision: no\n", "mixed_precision: 'no'\n", "num_processes: 2\n", ""])
def test_a_launch_configuration_without_mixed_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(text)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert doctor._accelerate().status == "ok"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert "ACCELERATE_MIXED_PRECISION asks for mixed precision fp16" in doctor._accelerate().found


def test_a_compiler_that_cannot_compile(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "g++", "exit 1")
    assert doctor_devices.compiler().status == "wrong"
    assert str(bare / "g++") in doctor_devices.compiler().found
    program(bare / "c++")
    assert doctor_devices.compiler() == Finding("ok", str(bare / "c++"), "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor_devices.compiler().found == "no no-such-compiler on the PATH"


def test_the_toolkit_is_known_by_its_headers(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(how: str) -> None:
        monkeypatch.setattr(doctor_devices, "find_toolkit", lambda: Toolkit(None, how))

    found("CUDA_HOME is not set, and so on")
    assert doctor_devices.toolkit().status == "missing"
    assert "make ops" in doctor_devices.toolkit().remedy
    monkeypatch.setenv("CUDA_HOME", str(bare))
    found(f"CUDA_HOME is {bare}, and so on")
    assert doctor_devices.toolkit() == Finding(
        "wrong", f"CUDA_HOME is {bare}, and so on", "export CUDA_HOME=<the folder of the CUDA toolkit>, or unset it"
    )  # fmt: skip
    monkeypatch.undo()
    headers, compiler = bare.parent / "targets" / "x86_64-linux" / "include", bare.parent / "bin" / "nvcc"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime.h").touch()
    program(compiler, "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    monkeypatch.setenv("CUDA_HOME", str(bare.parent))
    assert doctor_devices.toolkit() == Finding("ok", f"{bare.parent}, nvcc 13.0.88, by CUDA_HOME", "")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Finding]:
    """Has the doctor look at a record of a build; what is said about the CUDA library, or that for a device."""
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(native, "_SOURCES", tmp_path / "none")

    def look(device: str = "cuda", **facts: Any) -> Finding:
        build_record.write(tmp_path, build_record.BuildRecord(**facts))
        return doctor_ops.compiled(device)

    return look


def test_ops_that_were_not_built(record: Callable[..., Finding], tmp_path: Path) -> None:
    assert doctor_ops.compiled("cpu") == Finding("missing", "not built", native.REMEDY)
    asked = {device: Library(why="HIRES_GAN_BUILD was none") for device in ("cpu", "cuda")}
    assert record("cpu", libraries=asked) == Finding("missing", "not built: HIRES_GAN_BUILD was none", native.REMEDY)
    lacks = {"cuda": Library(why="there is no CUDA toolkit: and so on")}
    finding = record(torch_cuda="13.0", libraries=lacks)
    assert finding.status == "missing"
    assert finding.remedy.startswith("install the CUDA toolkit 13.0, then run `make ops`")


def test_ops_whose_compiler_failed(record: Callable[..., Finding], tmp_path: Path) -> None:
    failed = build_record.failure("it did not compile", "[1/2] c++ -c a.cpp\na.cpp:3:1: error: no such thing\nmore")
    finding = record("cpu", libraries={"cpu": failed})
    assert finding.status == "wrong"
    assert finding.found == "it did not compile: a.cpp:3:1: error: no such thing"
    assert str(tmp_path / "build.json") in finding.remedy


def test_ops_that_do_not_load_and_ops_of_other_sources(
    record: Callable[..., Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = {"cpu": Library(built=True)}
    monkeypatch.setitem(native._reasons, "cpu", "the loader says no")
    assert record("cpu", libraries=built) == Finding("wrong", "the loader says no", "")
    monkeypatch.setitem(native._reasons, "cpu", "")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    (tmp_path / "new.cpp").touch()
    finding = record("cpu", libraries=built)
    assert (finding.status, finding.remedy) == ("wrong", "run `make ops`")
    assert finding.found.endswith("; the sources in csrc changed since")


def test_ops_that_compute_wrongly(record: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native._reasons, "cpu", "")
    monkeypatch.setattr(self_test, "self_test", lambda device: None)
    facts = {"torch": "2.11.0", "compiler": "c++ 12", "libraries": {"cpu": Library(built=True)}}
    assert record("cpu", **facts) == Finding(
        "ok", "built by c++ 12, against torch 2.11.0; loaded; self-test passed", ""
    )
    monkeypatch.setattr(self_test, "self_test", lambda device: "1 is 2")
    assert record("cpu", **facts).status == "wrong"
    assert record("cpu", **facts).found.endswith("the self-test failed: 1 is 2")


def test_run_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor_folders.disk(tmp_path / "deep" / "er").status == "ok"
    assert doctor_folders.disk(tmp_path / "file" / "runs").found == f"{tmp_path}/file is a file"
    assert doctor_folders.disk(Path("/proc/nowhere")).status == "wrong"
    assert not (tmp_path / "deep").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_folders, "LEAST_DISK", 2**60)
    finding = doctor_folders.disk(tmp_path)
    assert finding.status == "wrong"
    assert finding.remedy == "free at least 1 GiB, or choose another run.dir"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert "not writable (Permission denied)" in doctor_folders.disk(tmp_path).found


def test_stores_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a b#c"
    settings = TrackingSettings()
    assert store(settings, folder).status == "ok"
    assert not folder.exists(), "the first run makes it"
    folder.mkdir()
    file = folder / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE runs (id)")
    connection.close()
    before = file.read_bytes()
    assert store(settings, folder) == Finding("ok", str(file), "")
    assert file.read_bytes() == before
    file.write_bytes(b"not a database" * 100)
    assert store(settings, folder).status == "wrong"
    assert "file is not a database" in store(settings, folder).found
    assert store(settings, Path("/proc/nowhere")).status == "wrong"
    (tmp_path / "file").touch()
    assert store(settings, tmp_path / "file").found == f"{tmp_path}/file cannot take mlflow.db (a file)"


def test_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    checks = {check.name: check for check in examine(Asked(True, configured(workers=256, dir=tmp_path)))}
    assert checks["processors"].status == ("wrong" if cores < 256 else "ok")
    assert checks["disk"].found.endswith(f"free at {tmp_path}")
    automatic = doctor._processors("auto")
    assert automatic.status == "ok"
    assert automatic.found.endswith("; data.workers is auto (measured when a run starts)")
    assert doctor._processors(0).found.endswith("; data.workers is 0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    finding = doctor._processors(2)
    assert finding.found.endswith("but data.workers is 2 in each of 1000 processes")
    assert finding.remedy == "set data.workers=0, or start fewer processes"
    finding = doctor._processors("auto")
    assert finding.status == "wrong"
    assert finding.found.endswith("but data.workers is auto (measured when a run starts) in each of 1000 processes")
    assert doctor._processors(0).status == "ok"


def test_workers_in_a_container_with_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    start = "64 cores, of which the container may use 4"
    assert doctor._processors("auto") == Finding(
        "ok", f"{start}; data.workers is auto (measured when a run starts)", ""
    )
    assert doctor._processors(4).status == "ok"
    assert doctor._processors(63) == Finding("wrong", f"{start}, but data.workers is 63", "set data.workers=3, or auto")


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._shared_memory(folder=tmp_path / "none").status == "wrong"
    monkeypatch.setattr(doctor, "LEAST_SHARED_MEMORY", 2**60)
    monkeypatch.setattr(doctor, "gpu_count", lambda: 1)
    assert doctor._shared_memory(folder=tmp_path).status == "ok", "only NCCL needs much of it"
    monkeypatch.setattr(doctor, "gpu_count", lambda: 2)
    assert doctor._shared_memory(folder=tmp_path).remedy.startswith("start the container with `--shm-size=2g`")


def test_an_optional_package_that_is_absent() -> None:
    assert doctor._optional("no-such-package", "dali") == Finding(
        "missing",
        "not installed",
        "run `pip install -c constraints.txt -e .[dali]`",
    )
    assert doctor._optional("torch", "dali").status == "ok"


def test_dali_is_tried_and_not_only_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali")
    status, found, *_ = doctor_dali.dali()
    assert status == "ok"
    assert re.match(r"nvidia-dali-cuda1\d0 \d\S+, for CUDA 1\d; it loads, and can decode on the ", found)
    monkeypatch.setattr(doctor_dali, "gpu_count", lambda: 1)
    monkeypatch.setattr(dali_pipeline, "_cuda_of_driver", lambda: 11080)
    status, found, *_ = doctor_dali.dali()
    assert status == "wrong"
    assert "NVIDIA driver is for CUDA up to 11.8: update the driver" in found
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert doctor_dali.dali().status == "wrong"
    monkeypatch.setattr(doctor_dali, "_PACKAGES", ("no-such-package",))
    assert doctor_dali.dali() == Finding("missing", "not installed", "run `pip install -c constraints.txt -e .[dali]`")


@pytest.mark.parametrize(
    ("supports", "built", "status"),
    [((12, 8), "13.0", "wrong"), ((13, 0), "13.2", "ok"), ((13, 2), "12.6", "ok"), ((12, 8), None, "ok")],
)
def test_a_driver_older_than_torch_needs(supports: tuple[int, int], built: str | None, status: str) -> None:
    assert doctor_devices._driver_for_torch("570.10", supports, built).status == status


@pytest.mark.parametrize(
    ("built", "driver", "visible", "status", "word"),
    [
        ("13.0", False, None, "missing", "no GPU"),
        (None, False, None, "missing", "no GPU"),
        (None, True, None, "wrong", "without CUDA"),
        ("13.0", True, "", "missing", "hides"),
        ("13.0", True, "-1", "missing", "hides"),
        ("13.0", True, "1", "wrong", "CUDA_VISIBLE_DEVICES is 1"),
        ("13.0", True, None, "wrong", "not set"),
    ],
)
def test_no_device(built: str | None, driver: bool, visible: str | None, status: str, word: str) -> None:
    finding = doctor_devices._no_device(built, driver, visible)
    assert finding.status == status
    assert word in finding.found


@pytest.mark.parametrize(
    ("capability", "kernels", "fits"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((7, 0), ["sm_75", "sm_80", "compute_80"], False),
        ((12, 0), ["sm_100", "compute_100"], True),
        ((12, 0), ["sm_100", "sm_100a"], False),
        ((9, 0), ["gfx90a"], True),
    ],
)
def test_kernels_for_a_gpu(capability: tuple[int, int], kernels: list[str], fits: bool) -> None:
    assert doctor_devices.runs_on(capability, kernels) is fits


@pytest.mark.gpu
def test_a_gpu_is_seen() -> None:
    checks = {check.name: check for check in examine(Asked(quick=True))}
    assert checks["CUDA"].status == "ok"
    assert checks["driver"].status == "ok"


def test_the_report_and_the_exit_code() -> None:
    fine = Check("torch", "ok", "2.11.0")
    optional = Check("DALI", "missing", "not installed", "install it", needed=False)
    missing = Check("torch", "missing", "not installed", "install [it]")
    wrong = Check("CUDA", "wrong", "torch sees no GPU", "look", needed=False)
    assert report([fine, optional, missing]).plain == (
        "ok      torch           2.11.0\n"
        "missing DALI            not installed (optional): install it\n"
        "missing torch           not installed: install [it]"
    )
    assert [exit_code(checks) for checks in ([fine], [fine, optional], [missing], [fine, wrong])] == [0, 0, 1, 1]
