"""The doctor in a container: what it asks of a pod, and what it says of one that lacks something."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hires_gan import doctor_asked, doctor_folders, doctor_pod
from hires_gan.doctor import Asked, examine
from hires_gan.doctor_asked import asked_gpus, environment, split_names
from hires_gan.doctor_devices import Finding
from hires_gan.doctor_folders import disk, temporary
from hires_gan.doctor_pod import mount_of
from hires_gan.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
EMPTY_DIR = "/var/lib/kubelet/pods/1f/volumes/kubernetes.io~empty-dir/runs"


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def mounted(monkeypatch: pytest.MonkeyPatch, folder: Path, *mounts: str) -> None:
    """Have the kernel tell of these file systems: a root, a mount point, and a kind each; and of the container's."""
    lines = ["700 600 0:300 / / ro,relatime master:3 - overlay overlay ro,lowerdir=/a"]
    for number, mount in enumerate(mounts):
        root, point, kind = mount.split(" ")
        lines.append(f"{701 + number} 700 0:{301 + number} {root} {point} rw - {kind} /dev/sdb rw")
    table = folder / "mountinfo"
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(doctor_pod, "_MOUNTS", table)


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hires_gan", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


# Mounts


def test_the_file_system_below_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    (place / "deep").mkdir(parents=True)
    escaped = str(place).replace(" ", r"\040")
    mounted(monkeypatch, tmp_path, f"/first {escaped} ext4", f"/second {escaped} nfs4", f"/ {tmp_path}/a xfs")
    for folder in (place, place / "deep"):
        found = mount_of(folder)
        assert found is not None
        assert (found.point, found.root, found.kind) == (place, "/second", "nfs4"), "the last one hides the first"
    root = mount_of(tmp_path)
    assert root is not None
    assert (root.point, root.kind) == (Path("/"), "overlay")
    monkeypatch.setattr(doctor_pod, "_MOUNTS", tmp_path / "absent")
    assert mount_of(place) is None


def test_the_kernel_tells_of_the_root() -> None:
    found = mount_of(Path("/"))
    assert found is not None
    assert found.point == Path("/")
    assert found.kind


def test_runs_that_would_be_lost_with_the_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pod: None) -> None:
    mounted(monkeypatch, tmp_path)
    status, found, remedy, passing = disk(tmp_path / "runs")
    assert (status, passing) == ("wrong", True)
    lost = "where no volume is mounted: what the container's own file system takes is lost with it"
    assert found == f"run.dir is {tmp_path}/runs, {lost}"
    assert "`kubectl get pvc`" in remedy
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert disk(tmp_path / "runs").status == "ok"


def test_runs_on_a_volume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pod: None) -> None:
    mounted(monkeypatch, tmp_path, f"/claim {tmp_path} nfs4")
    assert disk(tmp_path / "runs").status == "ok"
    assert disk(tmp_path / "runs").found.endswith(f"free at {tmp_path}")
    mounted(monkeypatch, tmp_path, f"{EMPTY_DIR} {tmp_path} ext4")
    assert disk(tmp_path / "runs").status == "ok"
    assert disk(tmp_path / "runs").found.endswith("in an emptyDir, which is lost with the pod")
    mounted(monkeypatch, tmp_path, f"/ {tmp_path} tmpfs")
    assert disk(tmp_path / "runs").found.endswith("in memory, which is lost with the pod")


def test_runs_on_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    finding = disk(tmp_path)
    assert finding.status == "wrong"
    assert finding.found == f"{tmp_path} has no locks (No locks available)"
    assert "POSIX locks" in finding.remedy


def test_a_volume_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pod: None) -> None:
    mounted(monkeypatch, tmp_path, f"/claim {tmp_path} nfs4")
    monkeypatch.setattr(doctor_folders, "unwritable", lambda folder: "Permission denied")
    finding = disk(tmp_path)
    assert finding.status == "wrong"
    assert f"let user {os.getuid()} write there: on volumes that know no fsGroup" in finding.remedy


# Variables


def test_variables_that_are_not_there(monkeypatch: pytest.MonkeyPatch, pod: None) -> None:
    monkeypatch.setenv("TEAM_URI", " ")
    monkeypatch.delenv("TEAM_PASSWORD", raising=False)
    finding = environment(("TEAM_URI", "TEAM_PASSWORD"))
    assert finding.status == "wrong"
    assert not finding.passing
    assert finding.found == "TEAM_URI is empty, TEAM_PASSWORD is not set"
    assert "the ConfigMap hires-gan needs the key TEAM_URI" in finding.remedy
    assert "`kubectl create secret generic hires-gan --from-literal=TEAM_PASSWORD=...`" in finding.remedy
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert environment(("TEAM_URI", "TEAM_PASSWORD")).remedy == "export TEAM_URI=... TEAM_PASSWORD=..."


def test_variables_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_TOKEN", "hunter2\n")
    finding = environment(("TEAM_TOKEN",))
    assert finding.status == "wrong"
    assert finding.found == "a line break or a blank stands around the value of TEAM_TOKEN"
    monkeypatch.setenv("TEAM_TOKEN", "hunter2")
    assert environment(("TEAM_TOKEN",)) == Finding("ok", "TEAM_TOKEN is set")
    monkeypatch.setenv("TEAM_URI", "x")
    assert environment(("TEAM_TOKEN", "TEAM_URI")).found == "TEAM_TOKEN, TEAM_URI are set"


def test_names_of_variables() -> None:
    assert split_names(["A_1, _B", "", "C", "C"]) == ("A_1", "_B", "C")
    assert split_names([]) == ()
    for wrong in ("a", "A=1", "A,,B", "1A", "A-B"):
        with pytest.raises(UsageError, match="capital letters, digits and underscores are allowed"):
            split_names([wrong])


# GPUs


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(doctor_asked, "gpu_count", lambda: 2)
    monkeypatch.setattr(doctor_asked, "cuda", lambda: Finding("ok", "H100, H100"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_as_many_gpus_as_asked(gpus: pytest.MonkeyPatch, pod: None) -> None:
    assert asked_gpus(2) == Finding("ok", "H100, H100")
    for count in (1, 8):
        status, found, remedy, passing = asked_gpus(count)
        assert (status, passing) == ("wrong", False)
        assert found == f"2 GPUs, but --gpus asks for {count} (H100, H100)"
        assert f"the limit nvidia.com/gpu of the pod to {count}" in remedy
    gpus.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert asked_gpus(8).found.endswith("; CUDA_VISIBLE_DEVICES is '0,1'")
    assert asked_gpus(8).remedy.startswith("unset CUDA_VISIBLE_DEVICES, or ")
    gpus.delenv("KUBERNETES_SERVICE_HOST")
    assert "nvidia-smi" in asked_gpus(8).remedy


def test_no_gpu_where_one_is_asked(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(doctor_asked, "gpu_count", lambda: 0)
    assert asked_gpus(1).found == "no GPUs, but --gpus asks for 1"


def test_gpus_are_not_looked_for_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_for() -> int:
        raise AssertionError("a GPU was looked for")

    monkeypatch.setattr("hires_gan.doctor.gpu_count", looked_for)
    checks = {check.name: check for check in examine(Asked(quick=True, gpus=0))}
    assert not {"driver", "CUDA"} & set(checks)
    assert checks["shared memory"].status == "ok"


# Temporary files


def test_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert temporary().found.endswith(f"free at {tmp_path}")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    finding = temporary()
    assert finding.status == "wrong"
    assert finding.found.startswith("TMPDIR is /proc/nowhere, which is not writable")
    assert "emptyDir at /tmp" in finding.remedy


def test_nowhere_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert temporary().status == "wrong"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert temporary().status == "ok"
    assert "the cache /proc/nowhere/hires_gan cannot be written" in temporary().found
    finding = temporary("run.init_from=models:/faces/1")
    assert finding.status == "wrong"
    assert "run.init_from=models:/faces/1 needs a cache" in finding.found
    assert "XDG_CACHE_HOME" in finding.remedy


NAMELESS = """
import dataclasses, json, pwd
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
from hires_gan.doctor import Asked, examine
print(json.dumps([dataclasses.asdict(check) for check in examine(Asked(quick=True))]))
"""


def test_a_user_without_name_and_home(tmp_path: Path) -> None:
    gone = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert [check for check in checks.values() if check["status"] == "wrong"] == []
    assert f"user {os.getuid()} has no home folder" in checks["temporary files"]["found"]


READ_ONLY = """
set -e
python=$1 closed=$2 work=$3
shift 3
if [ -n "$closed" ]; then  # the interpreter lies in somebody's home
    mount --bind "$python" "$work/python"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$python"
    mount --move "$work/python" "$python"
fi
mount -o remount,ro,bind /
mount -t tmpfs -o mode=1777 tmpfs /tmp
exec setpriv --reuid 10001 --regid 10001 --clear-groups env -i HOME=/nonexistent PATH=/usr/bin:/bin "$@"
"""


@pytest.mark.multinode
def test_a_read_only_file_system_and_a_user_without_an_entry(tmp_path: Path) -> None:
    """As a container has it; a machine that forbids file systems of one's own skips."""
    python = Path(sys.base_prefix).resolve()
    closed = [folder for folder in python.parents if not folder.stat().st_mode & stat.S_IXOTH]
    if any(ROOT.is_relative_to(folder) for folder in closed):
        pytest.skip(f"{closed[-1]} hides this repository from other users")
    if ROOT.is_relative_to("/tmp"):
        pytest.skip("this repository lies in /tmp, which is the container's own")
    if not shutil.which("setpriv") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs setpriv and a mount namespace, which this machine does not give")
    (tmp_path / "python").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", python, str(closed[-1]) if closed else "", tmp_path,
         sys.executable, "-B", "-m", "hires_gan", "doctor", "--quick"],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing disk" in done.stdout
    assert "Read-only file system) (optional)" in done.stdout
    assert "the cache /nonexistent/.cache/hires_gan cannot be written" in done.stdout


# The command


def test_a_configuration_that_no_configmap_gives(tmp_path: Path, pod: None, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, tmp_path, f"/ {tmp_path} tmpfs")
    path = tmp_path / "config" / "train.yaml"

    def problem() -> str:
        with pytest.raises(UsageError) as caught:
            doctor_pod.require_mounted(path)
        return str(caught.value)

    assert problem().startswith(f"{path} does not exist, nothing is mounted at {path.parent}: ")
    path.parent.mkdir()
    assert f"{path.parent} has nothing in it: it is the key train.yaml of the ConfigMap" in problem()
    (path.parent / "other.yaml").touch()
    assert f"{path.parent} has other.yaml: " in problem()
    for command in ("kubectl describe pod", "kubectl get configmap", "kubectl create configmap"):
        assert command in problem()
    path.touch()
    doctor_pod.require_mounted(path)


def test_a_configuration_that_is_not_there_ends_the_command() -> None:
    done = cli("/nowhere/train.yaml", "run.seed=1", KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: /nowhere/train.yaml does not exist, nothing is mounted at /nowhere: ")
    done = cli("/nowhere/train.yaml", "--needs", "lower")
    assert done.returncode == 2
    assert "--needs names 'lower'" in done.stderr
    done = cli("configs/demo.yaml", "run.sed=1")
    assert done.returncode == 2
    assert "run.sed is unknown" in done.stderr


def test_what_is_wrong_stands_at_the_end(tmp_path: Path) -> None:
    done = cli(
        "configs/demo.yaml", f"run.dir={tmp_path}", f"data.shards={tmp_path}/faces", "--quick", "--gpus", "0",
        "--needs", "NO_SUCH_TOKEN", "--needs", "PATH", "--wait", "60",
    )  # fmt: skip
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert [line.split(": ")[:2] for line in errors] == [["error", "environment"], ["error", "data"]]
    assert "NO_SUCH_TOKEN is not set" in errors[0]
    assert f"data.shards is {tmp_path}/faces, but it is not there" in errors[1]
    assert "wrong   environment     NO_SUCH_TOKEN is not set" in done.stdout
    assert os.environ["PATH"] not in done.stdout + done.stderr
