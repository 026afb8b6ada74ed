"""What the build of the compiled ops left behind: which libraries there are, for what, by which compilers, or why not.

`setup.py` writes it as build.json beside the libraries, `native.py` reads it. Only the standard library is imported:
the build may run without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "build.json"
TARGET = (2, 11)
"""The version of libtorch's stable ABI that the sources are written to: the oldest torch that loads the libraries."""
LOG_LINES = 60
LINE_WIDTH = 500

_COMMAND = re.compile(r"^\[\d+/\d+\] |^FAILED: |^ninja: ")
_ERROR = re.compile(
    r"\berror\b[^:]*:|\bfatal\b[^:]*:|cannot find|undefined reference|No such file|command not found", re.I
)
_LINKER = re.compile(r"^collect2: |returned non-zero exit status|Error compiling objects")


@dataclass(frozen=True)
class Library:
    """How the build of one library ended."""

    built: bool = False
    why: str = ""
    """Why it is not there, a clause; empty if it is."""
    error: str = ""
    """The compiler's most telling line, if it failed."""
    log: tuple[str, ...] = ()
    """The compiler's last lines, if it failed."""


@dataclass(frozen=True)
class BuildRecord:
    """The outcome of a build."""

    asked: str = ""
    """HIRES_GAN_BUILD: cuda, cpu, none, or empty."""
    torch: str = ""
    """The version built against; empty if there was none."""
    torch_cuda: str = ""
    """The CUDA that torch was built for; empty for a torch without CUDA."""
    target: str = ".".join(map(str, TARGET))
    """The oldest torch that loads the libraries."""
    compiler: str = ""
    """The C++ compiler's first line about itself."""
    toolkit: str = ""
    """The folder of the CUDA toolkit."""
    nvcc: str = ""
    """Its compiler's version."""
    architectures: tuple[str, ...] = ()
    """Compute capabilities that the CUDA library holds code for, with +PTX where newer GPUs can compile it."""
    left_out: tuple[str, ...] = ()
    """Those asked for that this nvcc does not know."""
    sources: str = ""
    """`fingerprint` of the sources."""
    libraries: dict[str, Library] = field(default_factory=dict)
    """By device: cpu, cuda."""


def write(folder: Path, record: BuildRecord) -> None:
    """Put the record into a folder, as build.json."""
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> BuildRecord | None:
    """The record in a folder; None if there is none, or one that another version of the package wrote."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        libraries = {str(device): Library(**_tuples(entry)) for device, entry in data.pop("libraries").items()}
        return BuildRecord(**_tuples(data), libraries=libraries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def fingerprint(folder: Path) -> str:
    """SHA-256 of the names and contents of all sources in a folder, in the order of their names; empty without any."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.glob("*") if path.suffix in (".cpp", ".cu", ".h", ".cuh"))
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest() if files else ""


def failure(why: str, output: str) -> Library:
    """A library whose compiler failed, by what the compiler printed."""
    lines = [line.rstrip()[:LINE_WIDTH] for line in output.splitlines() if line.strip()]
    return Library(why=why, error=telling_line(lines), log=tuple(lines[-LOG_LINES:]))


def telling_line(lines: list[str]) -> str:
    """The first line that names an error: what follows are its consequences; without one, the last line."""
    said = [line for line in lines if not _COMMAND.search(line)]
    errors = [line for line in said if _ERROR.search(line) and not _LINKER.search(line)]
    return next(iter([*errors, *reversed(said)]), "").strip()
