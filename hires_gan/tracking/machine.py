"""What a run ran on: the commit, the versions and the hardware, as tags."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from hires_gan import __version__

_PACKAGES = ("torch", "torchvision", "accelerate", "mlflow")
_COMMIT = "HIRES_GAN_COMMIT"
"""Names the commit where there is no checkout, as in the container image; -dirty behind it: files differed from it."""


def machine_tags() -> dict[str, str]:
    """Tags of this machine and this code: `git.*`, `version.*`, `host`, `cpu.count`, `memory.gib`, `gpu.*`."""
    return {**_code_tags(), **_version_tags(), **_hardware_tags()}


def _git(*arguments: str) -> str | None:
    """The answer of git about the folder of this package; None where it has none (no git, no checkout, no time)."""
    git, folder = shutil.which("git"), Path(__file__).resolve().parent
    if git is None:
        return None
    command = [git, "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _code_tags() -> dict[str, str]:
    tags = {"mlflow.user": _user(), "mlflow.source.name": _program(sys.argv[0]), "mlflow.source.type": "LOCAL"}
    commit, dirty = _checkout() or _named(os.environ.get(_COMMIT, ""))
    return {**tags, "mlflow.source.git.commit": commit, "git.commit": commit, "git.dirty": dirty} if commit else tags


def _program(path: str) -> str:
    """What MLflow calls the source: the command, also where it runs as a module, as launchers start it."""
    return "hires-gan" if Path(path).parts[-2:] == ("hires_gan", "__main__.py") else path


def _checkout() -> tuple[str, str] | None:
    """The commit of the checkout that this file belongs to, and whether files differ: true, false or unknown."""
    # An environment inside somebody's repository is not this code's checkout: the file itself must be tracked.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git("rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return commit, "unknown" if changes is None else str(bool(changes)).lower()


def _named(commit: str) -> tuple[str, str]:
    """The same of a commit as `git describe --always --dirty` writes it; empty for none."""
    return commit.removesuffix("-dirty"), str(commit.endswith("-dirty")).lower()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return str(os.getuid())


def _version(package: str) -> str:
    """As installed; none where it is not, or was copied without what tells its version: a tag is no reason to fail."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _version_tags() -> dict[str, str]:
    import torch

    versions = {name: _version(name) for name in _PACKAGES}
    versions |= {"hires_gan": __version__, "python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    return {f"version.{name}": version for name, version in versions.items()}


def _hardware_tags() -> dict[str, str]:
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    return {
        "host": platform.node(),
        "cpu.count": str(len(os.sched_getaffinity(0))),
        "memory.gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "gpu.count": str(count),
        "gpu.name": ", ".join(names) or "none",
    }
