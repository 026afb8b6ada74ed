"""Where the CUDA toolkit is, and for which GPUs it compiles.

It is known by its headers: the nvcc on the PATH can be a wrapper that lies elsewhere. The build and the doctor ask
here; nothing but the standard library is imported, since the build may run without torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
"""A100 and its family, H100 and H200, B200; newer GPUs compile the PTX when they first meet it."""


class Toolkit(NamedTuple):
    """A toolkit that was found, or why there is none."""

    root: Path | None
    how: str
    """What led there; without a root, a clause that says what was looked for."""


def find_toolkit(usual: Path = Path("/usr/local")) -> Toolkit:
    """The toolkit that CUDA_HOME names, else that of the nvcc on the PATH, else the one in the usual place.

    Args:
        usual: The folder in which toolkits are installed, as cuda or cuda-<version>.
    """
    named = os.environ.get("CUDA_HOME")
    if named:
        lacks = _lacks(Path(named))
        found = f"CUDA_HOME is {named}, where there is no {lacks}"
        return Toolkit(None, found) if lacks else Toolkit(Path(named), "CUDA_HOME")
    for root, how in _candidates(usual):
        if not _lacks(root):
            return Toolkit(root, how)
    nvcc = shutil.which("nvcc")
    path = f"{nvcc} does not say where its headers are" if nvcc else "no nvcc is on the PATH"
    return Toolkit(None, f"CUDA_HOME is not set, {path}, and {usual} has no cuda")


def _candidates(usual: Path) -> Iterator[tuple[Path, str]]:
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).resolve().parent.parent, "the nvcc on the PATH"
        yield from ((root, f"what {nvcc} calls its place") for root in _announced(nvcc))
    yield usual / "cuda", "the usual place"
    newest = sorted(usual.glob("cuda-*"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    yield from ((root, "the usual place") for root in reversed(newest))


def _announced(nvcc: str) -> Iterator[Path]:
    """The roots that nvcc itself names: a wrapper passes the question on to the real one."""
    lines = _output([nvcc, "--dryrun", "-x", "cu", os.devnull]).splitlines()
    for line in lines:
        if match := re.fullmatch(r"#\$ TOP=(.+)", line.strip()):
            yield Path(match[1]).resolve()
    for line in lines:
        if match := re.fullmatch(r"#\$ _HERE_=(.+)", line.strip()):
            yield Path(match[1]).resolve().parent


def _lacks(root: Path) -> str:
    """What a toolkit must have and this folder has not; empty for a toolkit."""
    if not header_folders(root):
        return "include/cuda_runtime.h"
    return "" if (root / "bin/nvcc").is_file() else "bin/nvcc"


def header_folders(root: Path) -> list[Path]:
    """The folders of a toolkit that hold the runtime's headers; some packages keep them by target."""
    folders = [root / "include", *sorted(root.glob("targets/*/include"))]
    return [folder for folder in folders if (folder / "cuda_runtime.h").is_file()]


def library_folders(root: Path) -> list[Path]:
    """The folders of a toolkit that hold the static runtime."""
    folders = [root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib"))]
    return [folder for folder in folders if (folder / "libcudart_static.a").is_file()]


def nvcc_version(root: Path) -> str:
    """The compiler's version, such as 13.0.88; empty if it does not say."""
    match = re.search(r"\bV(\d+(?:\.\d+)+)", _output([str(root / "bin/nvcc"), "--version"]))
    return match[1] if match else ""


def known_architectures(root: Path) -> set[str]:
    """The compute capabilities that nvcc compiles for, such as 9.0; empty if it does not say."""
    listing = _output([str(root / "bin/nvcc"), "--list-gpu-code"])
    return {f"{match[1]}.{match[2]}" for match in re.finditer(r"\bsm_(\d+)(\d)\b", listing)}


def choose_architectures(asked: str | None, known: set[str]) -> tuple[list[str], list[str]]:
    """Those to compile for, and those left out because this nvcc does not know them.

    Args:
        asked: TORCH_CUDA_ARCH_LIST, or None or empty for the default: capabilities between spaces or semicolons, each
            with +PTX where it is to be compilable for newer GPUs too; names such as Hopper are for torch to resolve.
        known: What the compiler knows; empty if it did not say: then nothing is left out.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for name in re.split(r"[;\s]+", (asked or DEFAULT_ARCHITECTURES).strip("; \t\n")):
        match = re.fullmatch(r"(\d+\.\d+)[af]?(\+PTX)?", name)
        (dropped if match and known and match[1] not in known else kept).append(name)
    if not asked and kept and dropped and not any(name.endswith("+PTX") for name in kept):
        kept[-1] += "+PTX"  # an older nvcc lacks the newest GPUs: they get the PTX of the newest that it knows
    return kept, dropped


def _output(command: list[str]) -> str:
    """What a program prints, on either stream; empty if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr
