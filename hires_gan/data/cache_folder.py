"""What lies in a cache of shards, and dropping some of it. Nothing else in its folder is ever touched."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hires_gan.data.cache_locks import locked_if_free

_SET = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(\.?)([A-Za-z0-9_-][A-Za-z0-9._-]*)\.(tar|index|labels)(\.partial)?")


@dataclass
class Kept:
    """A shard in the cache, or what there is of it.

    Attributes:
        folder: The set's.
        stem: The shard's name without its ending.
        used: When it was last used.
        whole: The bytes of its files.
        arriving: The bytes of those that are on their way.
    """

    folder: Path
    stem: str
    used: float = 0.0
    whole: dict[str, int] = field(default_factory=dict)
    arriving: dict[str, int] = field(default_factory=dict)


def lock_of(folder: Path, shard: str) -> Path:
    """The file whose lock the one holds who fetches or drops a shard."""
    return folder / f".{shard.removesuffix('.tar')}.lock"


def partial_of(folder: Path, name: str) -> Path:
    """Where a file lies while it arrives."""
    return folder / f".{name}.partial"


def sums_of(folder: Path, shard: str) -> Path:
    """Where it stands what a shard's files were when they arrived."""
    return folder / f".{shard.removesuffix('.tar')}.sums"


def read_sums(path: Path) -> dict[str, str]:
    """The sha256 of each of a shard's files when it arrived; nothing where that is not known."""
    try:
        sums = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


def write_sums(path: Path, sums: dict[str, str]) -> None:
    """Note what a shard's files were when they arrived; only under the shard's lock."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(json.dumps(sums), "utf-8")
    partial.rename(path)


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept_shards(root: Path) -> list[Kept]:
    """All shards in a cache, of whatever set, those first that were not used for longest."""
    shards: defaultdict[tuple[str, str], list[tuple[os.DirEntry[str], bool]]] = defaultdict(list)
    for folder in _folders(root):
        with os.scandir(folder) as entries:
            for entry in entries:
                match = _FILE.fullmatch(entry.name)
                if match and bool(match[1]) == bool(match[4]):
                    shards[folder, match[2]].append((entry, bool(match[4])))
    return sorted((_kept(Path(folder), stem, files) for (folder, stem), files in shards.items()), key=lambda s: s.used)


def total_of(kept: Sequence[Kept]) -> int:
    """The bytes of all their files."""
    return sum(sum(shard.whole.values()) + sum(shard.arriving.values()) for shard in kept)


def drop(shard: Kept) -> int:
    """Delete a shard's files unless somebody is fetching it, and return how many bytes that were.

    What a process that was killed has left of a download goes as well. Whoever reads the files goes on reading.
    """
    # The tar first: without it a shard counts as absent.
    whole = dict(sorted(shard.whole.items(), key=lambda file: not file[0].endswith(".tar")))
    return _delete(shard, whole | shard.arriving)


def drop_leftovers(shard: Kept) -> int:
    """Delete what a process that was killed has left of a download, and return how many bytes that were."""
    freed = _delete(shard, shard.arriving) if shard.arriving else 0
    if freed:
        shard.arriving = {}
    return freed


def _delete(shard: Kept, files: dict[str, int]) -> int:
    with locked_if_free(lock_of(shard.folder, f"{shard.stem}.tar")) as mine:
        return sum(_unlink(shard.folder / name, size) for name, size in files.items()) if mine else 0


def _folders(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        yield from (entry.path for entry in entries if _SET.fullmatch(entry.name) and entry.is_dir())


def _kept(folder: Path, stem: str, files: Sequence[tuple[os.DirEntry[str], bool]]) -> Kept:
    shard = Kept(folder, stem)
    for entry, is_partial in files:
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        (shard.arriving if is_partial else shard.whole)[entry.name] = status.st_size
        shard.used = max(shard.used, status.st_mtime)
    return shard


def _unlink(path: Path, size: int) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
