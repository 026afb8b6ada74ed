"""What this machine can do, and what is wrong with it: a line per part, with the remedy."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml
from rich.text import Text

from hires_gan.cores import usable_cores
from hires_gan.doctor_asked import asked_gpus, environment
from hires_gan.doctor_dali import dali
from hires_gan.doctor_data import data
from hires_gan.doctor_devices import GIB, Finding, Status, compiler, cuda, driver, gpu_count, importable_torch, toolkit
from hires_gan.doctor_folders import disk, size, temporary, unasked
from hires_gan.doctor_ops import DEVICES, compiled
from hires_gan.doctor_pod import in_pod
from hires_gan.doctor_store import store
from hires_gan.progress import say
from hires_gan.settings import expanded
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import reason
from hires_gan.training.settings import Plan

LEAST_SHARED_MEMORY = 1 * GIB
"""NCCL, between the GPUs of one machine, fails in the 64 MiB that containers get by default."""
LEAST_FILES = 1024
"""The usual soft limit of open files."""
PAUSE = 5.0
"""Seconds between two looks at what may come by itself."""

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
    passing: bool = False
    """Whether it may be well after a while, though nobody does anything on this machine."""

    @property
    def bad(self) -> bool:
        """Whether training cannot do with it: it is wrong, or missing although it is needed."""
        return self.status == "wrong" or (self.status == "missing" and self.needed)


@dataclass(frozen=True)
class Part:
    """What one line of the report is about, and how it is looked at, as often as wanted."""

    name: str
    needed: bool
    look: Callable[[], Finding]

    def check(self) -> Check:
        """Look now; what fails in an unforeseen way is `wrong`, with what it said."""
        try:
            finding = self.look()
        except Exception as error:  # whatever is broken here is what the doctor is asked about
            finding = Finding("wrong", f"the check failed: {type(error).__name__}: {reason(error)}")
        return Check(self.name, finding.status, finding.found, finding.remedy, self.needed, finding.passing)


@dataclass(frozen=True)
class Asked:
    """What the doctor is asked to look at.

    Attributes:
        quick: Only what takes a moment and no network: packages, devices, disk, limits.
        configuration: Whose data, run.dir, data.workers and tracking.uri are held against this machine.
        run_dir: The folder of all runs, in place of the configuration's.
        gpus: How many GPUs torch has to see; None: as many as there are; 0: none is looked for.
        needs: Environment variables that have to be set.
    """

    quick: bool = False
    configuration: Plan | None = None
    run_dir: Path | None = None
    gpus: int | None = None
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the runs would be."""
        return self.run_dir or (self.configuration.run.dir if self.configuration else Path("runs"))

    @property
    def named(self) -> bool:
        """Whether somebody has named that folder: only then it has to be usable."""
        return bool(self.run_dir or self.configuration)


def examine(asked: Asked, wait: float = 0.0, pause: float = PAUSE) -> list[Check]:
    """Look at everything that training depends on; nothing is left behind.

    Args:
        asked: What to look at.
        wait: Seconds in which what is wrong may come by itself. Nothing is printed but a line if that is waited for.
        pause: Seconds between two looks at it.

    Returns:
        One check per part, in a fixed order; a check that fails in an unforeseen way is `wrong`, with what it said.
    """
    parts = _parts(asked)
    checks = [part.check() for part in parts]
    end = time.monotonic() + wait
    if time.monotonic() < end and worth_waiting(checks):
        absent = "; ".join(f"{check.name}: {check.found}" for check in checks if check.bad)
        say(f"waiting up to {wait:g} s: {absent}")
    while worth_waiting(checks) and (left := end - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        checks = [part.check() if check.bad else check for part, check in zip(parts, checks, strict=True)]
    return checks


def worth_waiting(checks: Iterable[Check]) -> bool:
    """Whether something is wrong, and all that is may come by itself."""
    bad = [check for check in checks if check.bad]
    return bool(bad) and all(check.passing for check in bad)


def _parts(asked: Asked) -> list[Part]:
    """What there is to look at, in the order of the report."""
    return [*_software(asked), *_gpus(asked), *_limits(asked), *_places(asked), *([] if asked.quick else _rest(asked))]


def _software(asked: Asked) -> list[Part]:
    return [
        Part("Python", True, _python),
        Part("packages", True, _packages),
        Part("torch", True, _torch),
        Part("torchvision", True, _torchvision_for_torch if asked.quick else _torchvision),
    ]


def _gpus(asked: Asked) -> list[Part]:
    count = asked.gpus
    if count == 0:
        return []
    if count is None:
        return [Part("driver", False, driver), Part("CUDA", False, cuda)]
    return [Part("driver", False, lambda: driver(asked=True)), Part("CUDA", True, lambda: asked_gpus(count))]


def _limits(asked: Asked) -> list[Part]:
    workers = asked.configuration.data.workers if asked.configuration else "auto"
    return [
        Part("processors", True, lambda: _processors(workers)),
        Part("open files", True, _open_files),
        Part("shared memory", True, lambda: _shared_memory(asked.gpus)),
    ]


def _places(asked: Asked) -> list[Part]:
    plan, folder = asked.configuration, asked.folder
    parts = [Part("environment", True, lambda: environment(asked.needs))] if asked.needs else []
    parts += [Part("temporary files", True, lambda: temporary(_cached(plan)))]
    if asked.named:
        parts += [Part("disk", True, lambda: disk(folder))]
    else:
        parts += [Part("disk", False, lambda: unasked(disk(folder)))]
    if plan is not None:
        parts += [Part("data", True, lambda: data(plan.data, plan.recipe.resolution, asked.quick))]
    return parts


def _cached(plan: Plan | None) -> str:
    """Which of the user's caches a run needs, apart from those that the check of the data looks at."""
    origin = plan.run.init_from if plan else None
    return f"run.init_from={origin}" if origin and origin.startswith("models:") else ""


def _rest(asked: Asked) -> list[Part]:
    devices = ["cpu"] if asked.gpus == 0 else ["cpu", "cuda"]
    # Nothing is compiled in a pod: what its image lacks is built with the next image.
    tools = [] if in_pod() else [Part("compiler", False, compiler), Part("CUDA toolkit", False, toolkit)]
    ops = [Part(f"ops, {DEVICES[device]}", False, partial(compiled, device)) for device in devices]
    return [
        *tools,
        *ops,
        Part("DALI", False, dali),
        Part("DeepSpeed", False, lambda: _optional("deepspeed", "deepspeed")),
        Part("accelerate", True, _accelerate),
        _store(asked),
    ]


def _store(asked: Asked) -> Part:
    settings = asked.configuration.tracking if asked.configuration else TrackingSettings()
    look = partial(store, settings, asked.folder)
    needed = asked.named or bool(os.environ.get("MLFLOW_TRACKING_URI"))
    return Part("MLflow store", needed, look if needed else lambda: unasked(look()))


def report(checks: Iterable[Check]) -> Text:
    """The checks as lines for a terminal: status, part, what was found, remedy."""
    text = Text()
    for check in checks:
        text.append(f"{check.status:<8}", style=_COLOURS[check.status])
        optional = " (optional)" if check.status == "missing" and not check.needed else ""
        text.append(f"{check.name:<16}{check.found}{optional}")
        text.append(f": {check.remedy}\n" if check.remedy else "\n")
    text.rstrip()
    return text


def exit_code(checks: Iterable[Check]) -> int:
    """1 if something is wrong, or missing although it is needed; else 0."""
    return int(any(check.bad for check in checks))


def complaints(checks: Iterable[Check]) -> list[str]:
    """A line for each part that is not as training needs it, for the end of a log, where people look first."""
    told = [(check.name, check.found, check.remedy) for check in checks if check.bad]
    return [": ".join(part for part in parts if part) for parts in told]


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
    folder = expanded(Path(os.environ.get("HF_HOME", cache))) / "accelerate"
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


def _shared_memory(gpus: int | None = None, folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - it is examined
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            "wrong", f"{folder} is not there or not writable", "mount a tmpfs there: worker processes lock by it"
        )
    total = shutil.disk_usage(folder).total
    found = f"{size(total)} at {folder}"
    if total < LEAST_SHARED_MEMORY and (gpu_count() if gpus is None else gpus) > 1:
        remedy = "start the container with `--shm-size=2g`, or mount a memory-backed emptyDir there"
        return Finding("wrong", f"{found}, too little for several GPUs", remedy)
    return Finding("ok", found)
