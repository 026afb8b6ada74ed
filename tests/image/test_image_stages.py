"""What the stages of the Dockerfile do, done without a container engine: its own RUN lines, over what COPY takes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from dockerfile import ROOT, Instruction, arguments, environment, ignore_patterns, ignored, instructions

from hires_gan.toolkit import find_toolkit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FOUND = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
VALUES = {**arguments(FOUND), "PATH": os.defpath}
NEEDED = 12 * 2**30  # bytes: 7 GB of environment, and what pip downloads and unpacks on the way
NOT_IN_A_BUILD = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "HIRES_GAN_BUILD", "TORCH_CUDA_ARCH_LIST"}


class Stages(NamedTuple):
    """What the stages left in one folder."""

    folder: Path

    def command(self, script: str) -> list[str]:
        """The command of the RUN line that calls a script, with the image's folders moved below this one."""
        line = next(line for line in FOUND if line.name == "RUN" and f"image/{script}" in line.text)
        words = shlex.split(line.text)
        first = next(index for index, word in enumerate(words) if word.endswith(script))
        inside = {"/opt/venv": str(self.folder / "venv"), "/dist": str(self.folder / "dist")}
        return [str(self.folder / "src/image" / script), *(inside[word] for word in words[first + 1 :])]


def call(command: list[str], environ: dict[str, str], cwd: Path, limit: float = 900) -> tuple[int, str]:
    """Exit code and output of a command; whatever it started ends with it, also where the time is over."""
    process = subprocess.Popen(
        command, env=environ, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output.decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def others_reach(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def interpreter() -> Path:
    """A Python that any user reaches, if there is one: the image's user has to run it."""
    own = Path(sys.executable).resolve()
    for path in (own, Path("/usr/bin/python3.12"), Path("/usr/bin/python3.11")):
        if path.exists() and others_reach(path.resolve()):
            done = subprocess.run([str(path), "-c", "import ensurepip, venv"], timeout=60, check=False)
            if done.returncode == 0:
                return path
    return own


def copy(line: Instruction, folder: Path) -> None:
    """Do what a COPY instruction does, from this checkout through .dockerignore."""
    patterns = ignore_patterns()
    *sources, target = line.words()
    for source in sources:
        origin = ROOT / source
        files = [path for path in origin.rglob("*") if path.is_file()] if origin.is_dir() else [origin]
        for file in files:
            within = Path(target) / (file.relative_to(origin) if origin.is_dir() else file.name)
            if not ignored(file.relative_to(ROOT).as_posix(), patterns):
                (folder / within).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, folder / within)
                if mode := re.search(r"--chmod=(\d+)", line.text):
                    (folder / within).chmod(int(mode[1], 8))


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    """The folder in which the first two stages ran, and the last one's installation."""
    if find_toolkit().root is None:
        pytest.skip(f"the image's ops are built by nvcc: {find_toolkit().how}")
    folder = Path(tempfile.mkdtemp(prefix="hires-gan-image-", dir="/var/tmp"))
    try:
        if shutil.disk_usage(folder).free < NEEDED:
            pytest.skip(f"the image's environment needs {NEEDED >> 30} GiB in /var/tmp")
        folder.chmod(0o755)
        run_stages(Stages(folder))
        yield Stages(folder)
    finally:
        shutil.rmtree(folder)


def run_stages(stages: Stages) -> None:
    source = stages.folder / "src"
    environ = {name: value for name, value in os.environ.items() if name not in NOT_IN_A_BUILD}
    environ |= {"PYTHON": str(interpreter()), "TORCH_CUDA_ARCH_LIST": VALUES["TORCH_CUDA_ARCH_LIST"]}
    for line in FOUND:
        if line.name == "COPY" and line.stage < FOUND[-1].stage:
            copy(line, source)
        for script in ("dependencies.sh", "wheel.sh"):
            if line.name == "RUN" and script in line.text:
                code, output = call(stages.command(script), environ, source)
                assert code == 0, output
    code, output = call(stages.command("install.sh"), environ, source)
    assert code == 0, output


def image_environment(stages: Stages) -> dict[str, str]:
    """The variables of the image's last stage, with its PATH moved."""
    variables = environment(FOUND, VALUES | {"COMMIT": ""})
    variables["PATH"] = f"{stages.folder / 'venv/bin'}:{os.defpath}"
    return {**variables, "TORCH_CUDA_ARCH_LIST": VALUES["TORCH_CUDA_ARCH_LIST"], "OMP_NUM_THREADS": "1"}


def why_not_confined(stages: Stages) -> str:
    """Why nothing can be run here as in a pod; empty if it can."""
    if os.geteuid() != 0:
        return "only root can make its root file system read-only"
    if not others_reach((stages.folder / "venv/bin/python").resolve()):
        return "the Python here is one that no other user reaches"
    code, output = call(["unshare", "--mount", str(ROOT / "tests/image/read_only.sh"), "true"], {}, Path("/"), 60)
    return "" if code == 0 else f"mount namespaces are forbidden: {output.strip()}"


def test_the_wheel_holds_both_libraries_and_their_record(stages: Stages) -> None:
    (wheel,) = (stages.folder / "dist").iterdir()
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hires_gan/ops/")}
    assert {f"hires_gan/ops/{name}" for name in ("native_cpu.abi3.so", "native_cuda.abi3.so", "build.json")} <= names


def test_the_library_holds_code_for_a100_h100_and_b200(stages: Stages) -> None:
    (packages,) = (stages.folder / "venv").glob("lib/python*/site-packages")
    program, library = packages / "triton/backends/nvidia/bin/cuobjdump", packages / "hires_gan/ops/native_cuda.abi3.so"
    command = [str(program), "--list-elf", "--list-ptx", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    kinds = set(re.findall(r"(sm_\d+\.(?:cubin|ptx))\b", listed))
    assert kinds == {"sm_80.cubin", "sm_90.cubin", "sm_100.cubin", "sm_100.ptx"}


def test_it_works_where_only_tmp_can_be_written(stages: Stages) -> None:
    """As a user without a name, on a read-only root file system, where this machine allows that."""
    why = why_not_confined(stages)
    confined = [] if why else ["unshare", "--mount", str(stages.folder / "read_only.sh")]
    shutil.copy(ROOT / "tests/image/read_only.sh", stages.folder)
    with tempfile.TemporaryDirectory() as home:
        environ = {**image_environment(stages), **({"HOME": home, "TMPDIR": home} if why else {})}
        code, output = call([*confined, *stages.command("check.sh")], environ, Path("/"))
        assert code == 0, output
        assert "finished at 0.3 kimg" in output and "loaded" in output and "ok      packages" in output
        assert list(Path(home).iterdir()) == []
    if why:
        pytest.skip(f"it works, but was not tried on a read-only root file system: {why}")


def test_ops_that_lack_a_gpu_are_told(stages: Stages) -> None:
    environ = {**image_environment(stages), "TORCH_CUDA_ARCH_LIST": "8.0 9.0 12.0"}
    command = [str(stages.folder / "venv/bin/python"), str(stages.folder / "src/image/installed.py")]
    code, output = call(command, environ, Path("/"), 120)
    assert code == 1
    assert "the compiled ops are for 8.0, 9.0, 10.0+PTX, and TORCH_CUDA_ARCH_LIST asks for 8.0, 9.0, 12.0" in output


def test_missing_byte_code_is_told(stages: Stages) -> None:
    (code_file,) = (stages.folder / "venv").glob("lib/python*/site-packages/hires_gan/__pycache__/losses.*.pyc")
    kept = code_file.rename(code_file.with_suffix(".kept"))
    command = [str(stages.folder / "venv/bin/python"), str(stages.folder / "src/image/installed.py")]
    try:
        code, output = call(command, image_environment(stages), Path("/"), 120)
    finally:
        kept.rename(code_file)
    assert code == 1 and "1 modules have no byte code" in output and "losses.py" in output
