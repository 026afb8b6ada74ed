"""The local copies of a streamed set's shards: a folder with a bound, which several processes and runs share.

<cache>/.lock                               held while room is made, and while files get their names
<cache>/<digest of the manifest>/
    shard-000007.tar, .index, .labels       whole: they get these names when all of them are there, the tar last
    .shard-000007.tar.partial               on its way
    .shard-000007.lock                      held by the one who fetches or drops the shard, and touched meanwhile
    .shard-000007.sums                      what the sha256 of its files was when they arrived
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hires_gan.data.cache_folder import (
    Kept,
    drop,
    drop_leftovers,
    kept_shards,
    lock_of,
    partial_of,
    read_sums,
    sums_of,
    sync_folder,
    total_of,
    write_sums,
)
from hires_gan.data.cache_locks import locked
from hires_gan.data.demo import cache_folder
from hires_gan.data.heartbeat import HEART
from hires_gan.data.manifest import Manifest, labels_name, sizes_of
from hires_gan.data.retries import persist
from hires_gan.data.store import Address, Store
from hires_gan.data.store_errors import Disagrees, Passing
from hires_gan.data.stream_settings import GB
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_ROOM_PAUSE = 0.2
_HASHED = 1 << 22
"""Bytes of a file that are hashed between two signs of life."""


def default_cache() -> Path:
    """The folder that is used where `data.stream.cache` names none."""
    return cache_folder() / "shards"


Copy = tuple[int, int]
"""Stands for one copy of a shard: the inode of its sums, and when they were written."""


class ShardCache:
    """Gives the local copy of any shard of one set, fetching it first if need be.

    May be used by several threads, and is cheap to hand to another process. A file is compared with the manifest while
    it arrives: its size, and the tar's sha256.

    Args:
        root: The cache's folder, on a local disk; made if it is not there.
        bound: The most bytes that it may hold, over all sets.
        store: Where the set is.
        manifest: Of the set.
        patience: Seconds of failed attempts after which a file is given up.
        downloads: How many shards are fetched ahead.

    Attributes:
        folder: Where this set's files lie.

    Raises:
        Failure: The folder cannot be written.
    """

    def __init__(
        self, root: Path, bound: int, store: Store, manifest: Manifest, patience: float, downloads: int
    ) -> None:
        self.root, self.bound, self.store, self.manifest = root.absolute(), bound, store, manifest
        self.patience, self.downloads = patience, downloads
        self.folder = self.root / manifest.digest()
        self._mentioned_full_disk = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def path(self, number: int) -> Path:
        """Where the copy of shard `number` lies, once it is there."""
        return self.folder / self.manifest.shards[number].name

    def has(self, number: int) -> bool:
        """Whether a shard is there, whole."""
        return not self._absent(self._sizes(number))

    def touch(self, number: int) -> None:
        """Note that a shard is being used: those that were not for longest are dropped first."""
        with contextlib.suppress(OSError):
            os.utime(self.path(number))

    def ensure(self, number: int) -> None:
        """Fetch a shard, unless it is there; wait for whoever is fetching it.

        Raises:
            Failure: It cannot be read, is not what the manifest says, or there is no room for it.
        """
        self._provide(number, self._sizes(number))

    def ensure_labels(self, number: int) -> None:
        """The same for a shard's labels alone.

        Raises:
            Failure: As `ensure`.
        """
        name = labels_name(self.manifest.shards[number].name)
        self._provide(number, {name: self._sizes(number)[name]})

    def copy(self, number: int) -> Copy | None:
        """Which copy of a shard there is; another one is another value."""
        try:
            status = sums_of(self.folder, self.manifest.shards[number].name).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def is_as_fetched(self, number: int, name: str, data: bytes) -> bool:
        """Whether a small file of a shard is what once arrived."""
        return read_sums(self._sums(number)).get(name) == hashlib.sha256(data).hexdigest()

    def renew(self, number: int, copy: Copy | None) -> Copy | None:
        """Mend a shard's copy in which something was found wrong, unless somebody has done so since.

        Only files that are not (any more) what once arrived are fetched again: what is wrong in the store stays so.

        Args:
            number: Of the shard.
            copy: What `copy` said before the shard was read.

        Returns:
            The copy, if all of it is what once arrived; None if anything had to be fetched, by whomever.

        Raises:
            Failure: As `ensure`.
        """
        with self._telling_of_the_disk(), self._holding(number) as since:
            if self.copy(number) != copy:
                return None
            self._discard_damaged(number)
            wanted = self._absent(self._sizes(number))
            if wanted:
                self._fetch(number, wanted, since)
            return None if wanted else copy

    def fitting(self, numbers: Sequence[int]) -> list[int]:
        """The first of these shards, as many as the cache can hold together."""
        total, found = 0, []
        for number in numbers:
            total += sum(self._sizes(number).values())
            if total > self.bound:
                break
            found.append(number)
        return found

    def room_for(self, lanes: int) -> int:
        """The most bytes that so many lanes need: each of them its present shard, and the one that follows."""
        sizes = sorted((sum(sizes_of(self.manifest, shard).values()) for shard in self.manifest.shards), reverse=True)
        return sum(sizes[: 2 * lanes])

    def _sizes(self, number: int) -> dict[str, int]:
        return sizes_of(self.manifest, self.manifest.shards[number])

    def _sums(self, number: int) -> Path:
        return sums_of(self.folder, self.manifest.shards[number].name)

    def _alive(self, number: int) -> Callable[[], None]:
        lock = lock_of(self.folder, self.manifest.shards[number].name)

        def alive() -> None:
            HEART.beat()
            os.utime(lock)

        return alive

    def _absent(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {name: size for name, size in sizes.items() if _size(self.folder / name) != size}

    def _provide(self, number: int, sizes: Mapping[str, int]) -> None:
        with self._telling_of_the_disk(), self._holding(number) as since:
            wanted = self._absent(sizes)
            if wanted:
                self._fetch(number, wanted, since)

    @contextlib.contextmanager
    def _holding(self, number: int) -> Iterator[float | None]:
        """Hold a shard's lock; yields since when it could not be had, None if it was free."""
        began, lock = time.monotonic(), lock_of(self.folder, self.manifest.shards[number].name)
        self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleared the cache
        with locked(lock, _Watch(lock).look) as waited:
            # What a killed one left has its full size, and nobody else can drop it while this lock is held.
            for name in self._sizes(number):
                partial_of(self.folder, name).unlink(missing_ok=True)
            # Whoever had it before has failed or died: its time counts as that of the first failed attempt.
            yield began if waited else None

    def _discard_damaged(self, number: int) -> None:
        """Delete those of a shard's files that are not what once arrived."""
        entry, alive = self.manifest.shards[number], self._alive(number)
        arrived = read_sums(self._sums(number)) | {entry.name: entry.sha256}
        for name in self._sizes(number):
            path = self.folder / name
            if path.exists() and _sha256_of(path, alive) != arrived.get(name):
                say(f"warning: {path} is not what once arrived from {self.store.address}: it is fetched again")
                path.unlink(missing_ok=True)

    def _fetch(self, number: int, sizes: Mapping[str, int], since: float | None) -> None:
        alive, sums = self._alive(number), read_sums(self._sums(number))
        partials = {name: partial_of(self.folder, name) for name in sizes}
        try:
            self._reserve({partials[name]: size for name, size in sizes.items()}, alive)
            for name, size in sizes.items():
                attempt = _Attempt(self, number, name, size, partials[name], alive)
                sums[name] = persist(attempt, str(Address(self.store.address) / name), self.patience, alive, since)
            with locked(self.root / ".lock", alive):  # whoever adds up meanwhile would miss a file or count it twice
                self._on_disk(lambda: write_sums(self._sums(number), sums))
                for name in reversed(list(sizes)):  # the tar last: it stands for the whole
                    partials[name].rename(self.folder / name)
            sync_folder(self.folder)
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)

    def _reserve(self, sizes: Mapping[Path, int], alive: Callable[[], None]) -> None:
        """Make room for files and take it.

        Raises:
            Failure: There is none to be made.
        """
        while True:
            with locked(self.root / ".lock", alive):
                kept = kept_shards(self.root)
                if self._shrink(kept, self.bound - sum(sizes.values())):
                    self._allocate(sizes)
                    return
                if not any(shard.arriving for shard in kept):
                    raise self._no_room(sizes)
            alive()
            time.sleep(_ROOM_PAUSE)

    def _shrink(self, kept: Sequence[Kept], most: int) -> bool:
        """Drop what was not used for longest until the cache holds at most so many bytes; whether it does."""
        total = total_of(kept) - sum(drop_leftovers(shard) for shard in kept)
        for shard in kept:
            if total <= most:
                break
            total -= drop(shard)
        return total <= most

    def _allocate(self, sizes: Mapping[Path, int]) -> None:
        """Take the room on the disk at once, so that a full disk shows before anything is fetched."""

        def allocate() -> None:
            try:
                for path, size in sizes.items():
                    _allocate(path, size)
            except OSError:
                for path in sizes:
                    path.unlink(missing_ok=True)
                raise

        self._on_disk(allocate)

    def _on_disk(self, write: Callable[[], None]) -> None:
        """Write something, dropping shards as long as the disk is full."""
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _NO_SPACE or not self.drop_one():
                    raise

    def drop_one(self) -> bool:
        """Make room on a disk that is full before the cache is; whether there was something to drop."""
        if not any(drop(shard) for shard in kept_shards(self.root)):
            return False
        if not self._mentioned_full_disk:
            self._mentioned_full_disk = True
            say(
                f"warning: the disk of {self.root} is full before the cache holds its {self.bound / GB:g} GB: shards "
                "are dropped, and fetched again if they are still needed; make room, or lower data.stream.cache_gb"
            )
        return True

    @contextlib.contextmanager
    def _telling_of_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Failure:
        if error.errno in _NO_SPACE:
            largest = max(sum(sizes_of(self.manifest, shard).values()) for shard in self.manifest.shards)
            status = os.statvfs(self.root)
            return Failure(
                f"the cache {self.root} cannot take another shard ({error.strerror}): {largest:,} bytes are needed, "
                f"{status.f_bavail * status.f_frsize:,} are free, and nothing is left in it to drop; make room on this "
                "disk, or point data.stream.cache at another one"
            )
        return Failure(
            f"the cache {self.root} cannot be used ({error.strerror or error}); point data.stream.cache at a folder on "
            "a local disk that can be written"
        )

    def _no_room(self, sizes: Mapping[Path, int]) -> Failure:
        return Failure(
            f"the cache {self.root} may hold {self.bound:,} bytes (data.stream.cache_gb), and a shard of "
            f"{sum(sizes.values()):,} bytes does not fit beside those that are in use; raise it"
        )


def require_room(caches: Sequence[ShardCache], lanes: int) -> None:
    """Make sure that a cache can hold what all the sets of a run that share it need at the same time.

    Args:
        caches: Of each of the sets; one that is read in two orders counts twice.
        lanes: Into how many lanes the order of each is cut.

    Raises:
        UsageError: It cannot.
    """
    sharing: defaultdict[Path, list[ShardCache]] = defaultdict(list)
    for cache in caches:
        sharing[cache.root].append(cache)
    for group in sharing.values():
        readers, sets = Counter(cache.folder for cache in group), {cache.folder: cache for cache in group}
        needed = sum(cache.room_for(lanes * readers[folder]) for folder, cache in sets.items())
        bound = min(cache.bound for cache in group)
        if needed > bound:
            raise _too_small(list(sets.values()), bound, needed, lanes)


def _too_small(caches: Sequence[ShardCache], bound: int, needed: int, lanes: int) -> UsageError:
    return UsageError(
        f"data.stream.cache_gb is {bound / GB:g}, but {lanes} lanes (data.stream.lanes) of "
        f"{' and of '.join(cache.store.address for cache in caches)}, each with its present shard and the one that "
        f"follows, take up to {needed / GB:.3g} GB: set data.stream.cache_gb to {_rounded_up(needed / GB):g} or more "
        f"(the cache is {caches[0].root}, data.stream.cache), lower data.stream.lanes, or prepare smaller shards"
    )


class _Attempt:
    """One download of one file into a place that is reserved for it.

    Args:
        cache: Whose file it is.
        number: Of the shard.
        name: Of the file.
        size: What the manifest says.
        partial: Where it goes.
        alive: Called often.
    """

    def __init__(
        self, cache: ShardCache, number: int, name: str, size: int, partial: Path, alive: Callable[[], None]
    ) -> None:
        self._cache, self._name, self._size, self._partial, self._alive = cache, name, size, partial, alive
        entry = cache.manifest.shards[number]
        self._sha256 = entry.sha256 if name == entry.name else None

    def __call__(self) -> str:
        """Fetch it, and return its sha256.

        Raises:
            Disagrees: It has another size or sha256.
            Passing: It did not arrive, or not as a whole.
            Failure: It will not.
            OSError: It cannot be written.
        """
        digest, count = hashlib.sha256(), 0
        with self._partial.open("r+b", buffering=0) as file:
            for piece in self._cache.store.pieces(self._name, self._alive):
                count += len(piece)
                if count > self._size:
                    raise Disagrees(f"it has more than the {self._size:,} bytes that belong to it")
                digest.update(piece)
                self._write(file.fileno(), piece)
            os.fsync(file.fileno())  # a power cut must not leave its name without its bytes
        if count < self._size:
            raise self._short(count)
        if self._sha256 is not None and digest.hexdigest() != self._sha256:
            raise Disagrees(f"its sha256 is {digest.hexdigest()} instead of {self._sha256}")
        return digest.hexdigest()

    def _short(self, count: int) -> Passing:
        """A connection may end early without an error: only what the store says itself is the file's size."""
        if self._cache.store.size(self._name, self._alive) == count:
            return Disagrees(f"it has {count:,} bytes instead of {self._size:,}")
        return Passing(f"{count:,} of its {self._size:,} bytes came")

    def _write(self, descriptor: int, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except OSError as error:  # some file systems promise room that they do not have
                if error.errno in _NO_SPACE and self._cache.drop_one():
                    raise Passing(f"the cache's disk was full: {error.strerror}") from None
                raise


class _Watch:
    """Beats while another that holds a lock shows signs of life.

    Args:
        lock: Touched by whoever holds it.
    """

    def __init__(self, lock: Path) -> None:
        self._lock, self._seen = lock, 0

    def look(self) -> None:
        """See whether it was touched since the last look."""
        with contextlib.suppress(OSError):
            touched = self._lock.stat().st_mtime_ns
            if touched != self._seen:
                self._seen = touched
                HEART.beat()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _sha256_of(path: Path, alive: Callable[[], None]) -> str | None:
    """Of a file's bytes; None if they cannot be read, as from a bad sector."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        while piece := file.read(_HASHED):
            digest.update(piece)
            alive()
        return digest.hexdigest()
    return None


def _allocate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)


def _rounded_up(gb: float) -> float:
    """A number of GB that is at least as large, and short."""
    digits: int = 10 ** max(0, 3 - math.ceil(math.log10(max(gb, 1e-9))))
    return math.ceil(gb * digits) / digits
