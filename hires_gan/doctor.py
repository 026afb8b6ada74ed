"""What this machine can do, and what is wrong with it: a line per part, with the remedy."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml
from rich.text import Text

from hires_gan.cores import usable_cores
from hires_gan.doctor_dali import dali
from hires_gan.doctor_devices import GIB, Finding, Status, compiler, cuda, driver, gpu_count, importable_torch, toolkit
from hires_gan.doctor_ops import compiled
from hires_gan.errors import Failure
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import open_store, reason, redact, resolve_uri, sqlite_path
from hires_gan.training.settings import Plan

LEAST_DISK = 1 * GIB
"""A whole state at 1024x1024 is just under this."""
LEAST_SHARED_MEMORY = 1 * GIB
"""NCCL, between the GPUs of one machine, fails in the 64 MiB that containers get by default."""
LEAST_FILES = 1024
"""The usual soft limit of open files."""

_COLOURS = {"ok": "green", "missing": "yellow", "wrong": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    needed: bool = True
    """Whether training needs it; what is not needed may be missing."""


def examine(quick: bool = False, configuration: Plan | None = None, run_dir: Path | None = None) -> list[Check]:
    """Look at everything that training depends on; nothing is printed, and nothing is left behind.

    Args:
        quick: Only what takes a moment and no network: packages, devices, disk, limits.
        configuration: Whose run.dir, data.workers and tracking.uri are held against this machine.
        run_dir: The folder of all runs, in place of the configuration's.

    Returns:
        One check per part, in a fixed order; a check that fails in an unforeseen way is `wrong`, with what it said.
    """
    folder = run_dir or (configuration.run.dir if configuration else Path("runs"))
    workers = configuration.data.workers if configuration else "auto"
    tracking = configuration.tracking if configuration else TrackingSettings()
    checks: list[tuple[str, bool, Callable[[], Finding]]] = [
        ("Python", True, _python),
        ("packages", True, _packages),
        ("torch", True, _torch),
        ("torchvision", True, _torchvision_for_torch if quick else _torchvision),
        ("driver", False, driver),
        ("CUDA", False, cuda),
        ("processors", True, lambda: _processors(workers)),
        ("open files", True, _open_files),
        ("shared memory", True, _shared_memory),
        ("disk", True, lambda: _disk(folder)),
    ]
    if not quick:
        checks += [
            ("compiler", False, compiler),
            ("CUDA toolkit", False, toolkit),
            ("ops, CPU", False, lambda: compiled("cpu")),
            ("ops, CUDA", False, lambda: compiled("cuda")),
            ("DALI", False, dali),
            ("DeepSpeed", False, lambda: _optional("deepspeed", "deepspeed")),
            ("accelerate", True, _accelerate),
            ("MLflow store", True, lambda: _store(tracking, folder)),
        ]
    return [_guarded(name, needed, check) for name, needed, check in checks]


def report(checks: Iterable[Check]) -> Text:
    """The checks as lines for a terminal: status, part, what was found, remedy."""
    text = Text()
    for check in checks:
        text.append(f"{check.status:<8}", style=_COLOURS[check.status])
        optional = " (optional)" if check.status == "missing" and not check.needed else ""
        text.append(f"{check.name:<15}{check.found}{optional}")
        text.append(f": {check.remedy}\n" if check.remedy else "\n")
    text.rstrip()
    return text


def exit_code(checks: Iterable[Check]) -> int:
    """1 if something is wrong, or missing although it is needed; else 0."""
    return int(any(check.status == "wrong" or (check.status == "missing" and check.needed) for check in checks))


def _guarded(name: str, needed: bool, check: Callable[[], Finding]) -> Check:
    try:
        finding = check()
    except Exception as error:  # whatever is broken here is what the doctor is asked about
        finding = Finding("wrong", f"the check failed: {type(error).__name__}: {reason(error)}")
    return Check(name, finding.status, finding.found, finding.remedy, needed)


# Software


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("ok", found)
    return Finding("wrong", found, "make the environment with Python 3.11 or 3.12")


def _packages() -> Finding:
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(line) for line in metadata.requires("hires-gan") or []]
    except metadata.PackageNotFoundError:
        return Finding("missing", "hires-gan itself is not installed", "run `make setup`, or `pip install -e .`")
    needs = [need for need in needs if need.marker is None]  # extras have one
    problems = []
    for need in needs:
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(version, prereleases=True):
            problems.append(f"{need.name} is {version}, {need.specifier} is needed")
    if problems:
        return Finding("wrong", "; ".join(problems), "run `pip install -c constraints.txt -e .`")
    return Finding("ok", f"all {len(needs)} that training needs")


def _torch() -> Finding:
    if find_spec("torch") is None:
        return Finding("missing", "not installed", "run `pip install -c constraints.txt torch torchvision`")
    import torch

    return Finding("ok", f"{torch.__version__}, built {_built(torch.version.cuda)}")


def _built(cuda: str | None) -> str:
    return f"for CUDA {cuda}" if cuda else "without CUDA"


def _torchvision_for_torch() -> Finding:
    """By what the package asks for: importing it takes longer than all other quick checks together."""
    from packaging.requirements import Requirement

    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return Finding("missing", "not installed", "run `pip install -c constraints.txt torchvision`")
    torch = metadata.version("torch")
    for need in map(Requirement, metadata.requires("torchvision") or []):
        if need.name == "torch" and not need.specifier.contains(torch, prereleases=True):
            return _mismatch(f"{version} was built for torch {need.specifier}, but torch is {torch}")
    return Finding("ok", version)


def _torchvision() -> Finding:
    check = _torchvision_for_torch()
    torch = importable_torch()
    if check.status != "ok" or torch is None:
        return check
    try:
        import torchvision

        torch.ops.torchvision.nms  # noqa: B018 - the lookup fails if the compiled half was not loaded
    except (RuntimeError, AttributeError) as error:
        return _mismatch(f"{check.found} does not match torch ({reason(error)})")
    return Finding("ok", str(torchvision.__version__))


def _mismatch(found: str) -> Finding:
    return Finding("wrong", found, "run `pip install --force-reinstall -c constraints.txt torch torchvision`")


def _optional(package: str, extra: str) -> Finding:
    try:
        return Finding("ok", metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding("missing", "not installed", f"run `pip install -c constraints.txt -e .[{extra}]`")


def _accelerate() -> Finding:
    version = metadata.version("accelerate")
    precision, where = os.environ.get("ACCELERATE_MIXED_PRECISION"), "ACCELERATE_MIXED_PRECISION"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    folder = Path(os.environ.get("HF_HOME", cache)).expanduser() / "accelerate"
    file = next(
        (path for path in (folder / "default_config.yaml", folder / "default_config.json") if path.exists()), None
    )
    if precision is None and file is not None:
        launch = yaml.safe_load(file.read_text(encoding="utf-8"))  # YAML reads JSON too
        precision, where = (launch.get("mixed_precision") if isinstance(launch, dict) else None), str(file)
    if precision not in (None, False, "no"):  # YAML 1.1 makes False of an unquoted no
        return Finding(
            "wrong",
            f"{version}, but {where} asks for mixed precision {precision}",
            "set it to no: the networks cast layer by layer, by `precision` in the configuration",
        )
    return Finding("ok", f"{version}, {f'launch configuration {file}' if file else 'no launch configuration'}")


# Limits of the machine


def _processors(workers: int | Literal["auto"]) -> Finding:
    cores, usable = len(os.sched_getaffinity(0)), usable_cores()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    found = f"{cores} cores" if usable == cores else f"{cores} cores, of which the container may use {usable}"
    automatic = max(1, usable // processes - 1)
    meaning = "auto (measured when a run starts)" if workers == "auto" else str(workers)
    asked = f"data.workers is {meaning}" + (f" in each of {processes} processes" if processes > 1 else "")
    if automatic * processes > usable and workers != 0:
        return Finding("wrong", f"{found}, but {asked}", "set data.workers=0, or start fewer processes")
    if workers != "auto" and workers * processes > usable:
        return Finding("wrong", f"{found}, but {asked}", f"set data.workers={automatic}, or auto")
    return Finding("ok", f"{found}; {asked}")


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return Finding("wrong", f"at most {soft}, fewer than {LEAST_FILES}", "run `ulimit -n 65536` before")
    return Finding("ok", f"at most {'any number' if soft == resource.RLIM_INFINITY else soft}")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - it is what is examined
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            "wrong", f"{folder} is not there or not writable", "mount a tmpfs there: worker processes lock by it"
        )
    size = shutil.disk_usage(folder).total
    found = f"{_size(size)} at {folder}"
    if size < LEAST_SHARED_MEMORY and gpu_count() > 1:
        remedy = "start the container with `--shm-size=2g`, or mount a memory-backed emptyDir there"
        return Finding("wrong", f"{found}, too little for several GPUs", remedy)
    return Finding("ok", found)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _nearest_folder(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in `folder`; None if one can. Tried out: permissions do not tell the whole."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _disk(folder: Path) -> Finding:
    nearest = _nearest_folder(folder)
    if not nearest.is_dir():
        return Finding("wrong", f"{nearest} is a file", "choose a folder in run.dir")
    why = _unwritable(nearest)
    free = shutil.disk_usage(nearest).free
    if free < LEAST_DISK:
        return Finding("wrong", f"{_size(free)} free at {nearest}", "free at least 1 GiB, or choose another run.dir")
    if why:
        return Finding("wrong", f"{nearest} is not writable ({why})", "choose a run.dir where you may write")
    return Finding("ok", f"{_size(free)} free at {nearest}")


# Tracking


def _store(settings: TrackingSettings, folder: Path) -> Finding:
    try:
        uri = resolve_uri(settings, folder)
        file = sqlite_path(uri)
        if file is not None:
            return _sqlite_store(file)
        open_store(uri)
    except Failure as failure:
        return Finding("wrong", str(failure))
    return Finding("ok", f"{redact(uri)} answers")


def _sqlite_store(file: Path) -> Finding:
    """Nothing is made here: the first run makes the file."""
    nearest = _nearest_folder(file.parent)
    remedy = "choose another run.dir, or tracking.uri"
    if not nearest.is_dir() or (why := _unwritable(nearest)):
        return Finding("wrong", f"{nearest} cannot take {file.name} ({why if nearest.is_dir() else 'a file'})", remedy)
    if not file.exists():
        return Finding("ok", f"{file}, made by the first run")
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=5)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("wrong", f"{file} cannot be used ({error})", remedy)
    return Finding("ok", str(file))
