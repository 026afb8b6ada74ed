"""Checkpoints: a directory of safetensors and JSON that appears only when it is whole.

`checkpoints/<nimg, 12 digits>/` holds one safetensors file per part (`generator`, `generator.average`,
`generator.optimizer`, ...) and `state.json`, which names the parts' sha256. It is written beside its place, flushed to
the disk, read back, renamed; the text file `checkpoints/latest` is replaced last. Nothing in it executes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from hires_gan.errors import Failure
from hires_gan.progress import say

FORMAT_VERSION = 1
STATE = "state.json"
LATEST = "latest"
BEST = "best"

_GO_BACK = "to go on from an older one, write its name into the file `latest` beside it"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        folder: Its directory.
        state: What `state.json` holds.
    """

    folder: Path
    state: dict[str, Any]

    @property
    def nimg(self) -> int:
        """Images shown when it was written."""
        return int(self.state["nimg"])

    def tensors(self, part: str) -> Tensors:
        """The tensors of one part, on the CPU.

        Raises:
            Failure: If the part is missing, or its bytes are not those that were written.
        """
        path = self.folder / f"{part}.safetensors"
        expected = self.state["files"].get(path.name)
        if expected is None or not path.is_file():
            raise Failure(f"{self.folder} has no {path.name}; it holds {', '.join(sorted(self.state['files']))}")
        if _sha256(path) != expected:
            raise Failure(f"{path} is not what was written (its sha256 differs); {_GO_BACK}")
        try:
            loaded: Tensors = load_file(path)
        except SafetensorError as error:
            raise Failure(f"{path} is no safetensors file ({error}); {_GO_BACK}") from error
        return loaded


def directory_name(nimg: int) -> str:
    """What the checkpoint behind `nimg` images is called; names sort as the numbers do."""
    return f"{nimg:012d}"


def write(root: Path, nimg: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint, whole or not at all, and make it the latest.

    Args:
        root: The run's `checkpoints` directory.
        nimg: Images shown.
        parts: Named groups of tensors; each becomes one file.
        state: Plain JSON values to keep beside them.

    Raises:
        Failure: If the disk is full (saying what is needed) or what was read back is not what was written.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / directory_name(nimg)
    partial = root / f".{final.name}.partial"
    needed = sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values())
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        files = {f"{name}.safetensors": _write_part(partial, name, tensors) for name, tensors in parts.items()}
        whole = {"format": FORMAT_VERSION, "nimg": nimg, "files": files, **state}
        _write_text(partial / STATE, json.dumps(whole, indent=1, sort_keys=True))
        _sync(partial)
        _verify(partial, files)
        _set_aside(final)
        partial.rename(final)
        _sync(root)
        point(root, LATEST, final.name)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _cannot_write(root, needed, error) from error
    return Checkpoint(final, whole)


def load_exactly(module: nn.Module, tensors: Tensors, what: str) -> None:
    """Load weights, in place, if names and shapes agree.

    Raises:
        Failure: Naming the first differences.
    """
    own = module.state_dict()
    problems = [f"{key} is missing" for key in own.keys() - tensors.keys()]
    problems += [f"{key} is unknown" for key in tensors.keys() - own.keys()]
    problems += [
        f"{key} is {list(tensors[key].shape)}, not {list(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Failure(
            f"the checkpoint's {what} is of another architecture: {', '.join(sorted(problems)[:3])}{more}; "
            f"use the configuration that it was trained with"
        )
    module.load_state_dict(tensors)


def point(root: Path, pointer: str, name: str) -> None:
    """Let the text file `pointer` name the checkpoint `name`, by one rename."""
    partial = root / f".{pointer}.partial"
    _write_text(partial, name + "\n")
    partial.rename(root / pointer)
    _sync(root)


def pointed(root: Path, pointer: str) -> str | None:
    """The name that the text file `pointer` holds, or None if there is none."""
    try:
        return (root / pointer).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def read(folder: Path) -> Checkpoint:
    """Open a checkpoint directory.

    Raises:
        Failure: If it is no checkpoint, or of a newer format.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failure(f"{folder} is no checkpoint: it has no {STATE}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{folder / STATE} is damaged ({error}); {_GO_BACK}") from error
    if state.get("format") != FORMAT_VERSION:
        raise Failure(f"{folder} has format {state.get('format')}; this version reads format {FORMAT_VERSION}")
    return Checkpoint(folder, state)


def latest(root: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None if there is none.

    The pointer says which one it is. Where it is missing or names none, the newest directory is taken: it was
    renamed when it was whole, just before the pointer would have been replaced.
    """
    name = pointed(root, LATEST)
    if name is not None and (root / name / STATE).is_file():
        return read(root / name)
    names = _names(root)
    if names and name is not None:
        say(f"{root / LATEST} names {name}, which is not there: taking {names[-1]}, the newest that is")
    return read(root / names[-1]) if names else None


def prune(root: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints and the one that `best` points to.

    The last ones are those up to the one that `latest` names: what lies behind it was abandoned by going back, and is
    left alone until the run reaches it again.
    """
    for leftover in root.glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    best, newest = pointed(root, BEST), pointed(root, LATEST)
    reached = [name for name in _names(root) if newest is None or name <= newest]
    for name in reached[:-keep]:
        if name != best:
            _set_aside(root / name)


def _set_aside(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill in the middle leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if p.name.isdigit() and (p / STATE).is_file())


def _write_part(folder: Path, name: str, tensors: Tensors) -> str:
    """Write one file and return the sha256 of what was meant to be in it."""
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    with (folder / f"{name}.safetensors").open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    """Read back what was written."""
    for name, expected in files.items():
        if _sha256(folder / name) != expected:
            raise OSError(errno.EIO, f"{folder / name} does not read back as it was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(root: Path, needed: int, error: OSError) -> Failure:
    free = shutil.disk_usage(root).free if root.is_dir() else 0
    return Failure(
        f"cannot write a checkpoint to {root}: {error.strerror or error}. It needs {needed / 1e6:.0f} MB and "
        f"{free / 1e6:.0f} MB are free; the checkpoints before it are untouched: make room and run the same command "
        f"again, which goes on from the latest one"
    )
