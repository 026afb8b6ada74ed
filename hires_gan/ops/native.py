"""The compiled libraries: loaded once, when the ops are imported, and never a reason to fail then."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hires_gan.ops.build_record import FILE, BuildRecord, Library, fingerprint, read

DEVICES = ("cpu", "cuda")
REMEDY = "run `make ops`, or `pip install --no-build-isolation -c constraints.txt -e .`"

_FOLDER = Path(__file__).resolve().parent
_SOURCES = _FOLDER.parent.parent / "csrc"
_NOT_LOADED = "it has not been loaded yet"
_reasons: dict[str, str] = dict.fromkeys(DEVICES, _NOT_LOADED)
"""Why a library is not loaded, by device; empty once it is."""


def load() -> None:
    """Load what was built and fits this torch; never raises: `why_not` tells what kept a library out."""
    built = record()
    for device in DEVICES:
        if _reasons[device]:
            _reasons[device] = _load(device, built)


def available(device_type: str) -> bool:
    """Whether the kernels for a type of device, cpu or cuda, are loaded; a GPU need not be there."""
    return _reasons.get(device_type) == ""


def why_not(device_type: str) -> str:
    """A clause that says why the kernels for a type of device are not there; empty if they are."""
    return _reasons.get(device_type, f"there are no kernels for {device_type}")


def record() -> BuildRecord | None:
    """What the build left behind; None if there was none here."""
    return read(_FOLDER)


def record_path() -> Path:
    """Where the record lies, with all that the compilers said."""
    return _FOLDER / FILE


def sources_changed() -> bool:
    """Whether the sources beside the package, in a checkout, are others than the libraries were built from."""
    built, sources = record(), fingerprint(_SOURCES)
    return built is not None and sources not in ("", built.sources)


def describe(device_type: str) -> str:
    """One library in a line: for what it was built and by what, or why it is not there."""
    built = record()
    library = built.libraries.get(device_type, Library()) if built else Library()
    if built is None or not library.built:
        return why_not(device_type)
    by = f"nvcc {built.nvcc}, for {', '.join(built.architectures)}" if device_type == "cuda" else built.compiler
    loaded = f"not loaded: {why_not(device_type)}" if why_not(device_type) else "loaded"
    return f"built by {by}, against torch {built.torch}; {loaded}"


def _load(device: str, built: BuildRecord | None) -> str:
    """Load one library; returns why that was not possible, or nothing."""
    path = _FOLDER / f"native_{device}.abi3.so"
    if built is None:
        return f"it was not built: {REMEDY}"
    library = built.libraries.get(device, Library(why="the build did not come to it"))
    if not library.built:
        return f"it was not built: {library.why}{f' ({library.error})' if library.error else ''}"
    if not path.is_file():
        return f"{path.name} is gone since it was built: {REMEDY}"
    unfit = _unfit(device, built)
    if unfit:
        return f"{unfit}: {REMEDY}"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return f"{error} (it was built against torch {built.torch}, and torch is {torch.__version__}: {REMEDY})"
    return ""


def _unfit(device: str, built: BuildRecord) -> str:
    """Why this torch cannot use a library; empty if it can."""
    if _numbers(torch.__version__) < _numbers(built.target):
        return f"it is built for torch {built.target} or newer, and torch is {torch.__version__}"
    if device == "cuda" and torch.version.cuda is None:
        return "torch is built without CUDA"
    if device == "cuda" and _numbers(torch.version.cuda or "")[:1] != _numbers(built.torch_cuda)[:1]:
        return f"it is built for CUDA {built.torch_cuda}, and torch for CUDA {torch.version.cuda}"
    return ""


def _numbers(version: str) -> list[int]:
    """The first two numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
