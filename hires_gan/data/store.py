"""Where a streamed set lies: a folder behind a URL, read through fsspec, or a pipe; files come in pieces, by name."""

from __future__ import annotations

import contextlib
import functools
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

import fsspec
from fsspec.config import conf

from hires_gan.data import waiting
from hires_gan.data.manifest import MANIFEST, Manifest, manifest_from
from hires_gan.data.pipe import PREFIX as PIPE
from hires_gan.data.pipe import PipeStore
from hires_gan.data.retries import persist
from hires_gan.data.store_errors import Missing, Passing, judge
from hires_gan.errors import UsageError

_MIB = 1 << 20
_SMALLEST, _LARGEST = _MIB, 8 * _MIB
"""Bytes per piece: they grow while pieces come fast, so that a slow line does not look like a stalled one."""
_FAST, _SLOW = 1.0, 5.0
_LARGEST_MANIFEST = 1 << 30
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_WEB = ("http", "https")
_WITH_USERS = ("sftp", "ssh", "ftp", "smb", "hdfs", "abfs", "abfss")
"""Protocols whose URLs name a user or a container before an @, which is no secret."""
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "fsspec[http]",
    "https": "fsspec[http]",
    "abfs": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
    "hdfs": "pyarrow",
}


@dataclass(frozen=True)
class Address:
    """Where a set is, for people: stands in messages where a folder's path would, and holds no secret."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.text}/{name}")


class Store(Protocol):
    """A place from which the files of one set can be read."""

    @property
    def address(self) -> str:
        """Where it is, for people."""

    def pieces(self, name: str, alive: Callable[[], None]) -> Iterator[bytes]:
        """Read a file from its beginning to its end.

        Args:
            name: Of the file in the set's folder.
            alive: Called often while this waits for bytes.

        Raises:
            Passing: It did not work, and may if it is tried again.
            Failure: It will not work.
        """

    def size(self, name: str, alive: Callable[[], None]) -> int | None:
        """How many bytes a file has as the store says without reading it; None if it does not say.

        Args:
            name: Of the file in the set's folder.
            alive: Called often while this waits.
        """


def is_streamed(location: str) -> bool:
    """Whether `data.shards` names a URL or a pipe; a folder and `demo:NAME` are read where they are."""
    return location.startswith(PIPE) or "://" in location


def remedy(folder: str) -> str:
    """What to do about damaged shards, for the set in a folder or at a store's address."""
    if is_streamed(folder):
        return (
            "check the folder that the set was uploaded from with `hires-gan shards check DIR`, mend it there "
            "(--repair drops what is damaged), and upload it again"
        )
    return f"copy it again, or drop what is damaged with `hires-gan shards check {folder} --repair`"


def open_store(location: str, allow_pipe: bool) -> Store:
    """Make sense of a URL or a pipe; nothing is read.

    Args:
        location: What `data.shards` says.
        allow_pipe: Whether it may be a pipe.

    Raises:
        UsageError: It may not, has a part that is not allowed in it, or needs a package that is not installed.
    """
    if location.startswith(PIPE):
        return PipeStore(location.removeprefix(PIPE), allow_pipe)
    return UrlStore(location)


def fetch_manifest(store: Store, patience: float) -> Manifest:
    """Read a set's manifest, which is asked for anew whenever a set is opened.

    Args:
        store: Where the set is.
        patience: Seconds of failed attempts after which it is given up.

    Raises:
        UsageError: There is none, or it may not be read.
        Failure: It cannot be read, is newer than this program, or contradicts itself.
    """
    address = str(Address(store.address) / MANIFEST)
    try:
        data = persist(lambda: _small_file(store, MANIFEST), address, patience, lambda: None)
    except Missing as error:
        raise UsageError(
            f"{store.address} is no finished shard set ({error}): data.shards names the folder that holds "
            f"{MANIFEST}; upload what `hires-gan prepare` wrote, {MANIFEST} last"
        ) from None
    return manifest_from(address, data)


def _small_file(store: Store, name: str) -> bytes:
    data = bytearray()
    for piece in store.pieces(name, lambda: None):
        data += piece
        if len(data) > _LARGEST_MANIFEST:
            raise UsageError(f"{Address(store.address) / name} does not end: it is no manifest of a shard set")
    return bytes(data)


class UrlStore:
    """A folder behind a URL that fsspec understands.

    Args:
        url: Of the folder that holds the set.

    Raises:
        UsageError: The URL has a part that is not allowed in it, or needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        self.protocol, self._url = _checked(url)
        try:
            fsspec.get_filesystem_class(self.protocol)
        except ImportError:
            package = _PACKAGES.get(self.protocol, f"fsspec[{self.protocol}]")
            raise UsageError(f"{self.protocol}:// needs a package that is missing: pip install '{package}'") from None
        except ValueError:
            raise UsageError(
                f"data.shards is {self._url}, but fsspec knows no protocol {self.protocol}://; those it knows include "
                "s3://, gs://, https://, abfs://, sftp:// and file:///"
            ) from None

    def __reduce__(self) -> tuple[type[UrlStore], tuple[str]]:
        return type(self), (self._url,)

    @property
    def address(self) -> str:
        """The URL."""
        return self._url

    def pieces(self, name: str, alive: Callable[[], None]) -> Iterator[bytes]:
        """As `Store.pieces`."""
        address = str(Address(self._url) / name)
        try:
            yield from watched(functools.partial(self._read, name), alive)
        except Passing:
            raise
        except Exception as error:
            raise judge(error, address, self.protocol) from error

    def size(self, name: str, alive: Callable[[], None]) -> int | None:
        """As `Store.size`."""
        with contextlib.suppress(Exception):  # it is asked only where something else has gone wrong already
            return int(b"".join(watched(functools.partial(self._stated, name), alive)))
        return None

    def _stated(self, name: str) -> Iterator[bytes]:
        files, folder = self._place
        yield str(files.info(f"{folder}/{name}")["size"]).encode()

    def _read(self, name: str) -> Iterator[bytes]:
        size = _SMALLEST
        with self._open(name) as file:
            while True:
                start = time.monotonic()
                data = file.read(size)
                if not data:
                    return
                yield data
                took = time.monotonic() - start
                size = min(2 * size, _LARGEST) if took < _FAST else max(size // 2, _SMALLEST) if took > _SLOW else size

    def _open(self, name: str) -> IO[bytes]:
        if self.protocol in _WEB:  # one GET for the whole file: a size that is given is not asked for
            options: dict[str, Any] = {"block_size": 0, "size": 1}
        else:  # one request for each piece, nothing kept
            options = {"cache_type": "none"}
        files, folder = self._place
        file: IO[bytes] = files.open(f"{folder}/{name}", "rb", **options)
        return file

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the folder in its own words."""
        files, folder = fsspec.url_to_fs(self._url, **(_web_options() if self.protocol in _WEB else {}))
        return files, folder.rstrip("/")


def _web_options() -> dict[str, Any]:
    """No limit to how long a file takes, only to how long nothing comes; ~/.netrc and the proxy's variables hold."""
    import aiohttp

    own: dict[str, Any] = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=waiting.STALL, sock_read=waiting.STALL),
        "trust_env": True,
    }
    configured = [conf.get(protocol, {}).get("client_kwargs", {}) for protocol in _WEB]
    return {"client_kwargs": functools.reduce(lambda all_, some: all_ | some, configured, own)}


def _checked(url: str) -> tuple[str, str]:
    """Split a URL into its protocol and itself, without a slash at its end.

    Raises:
        UsageError: It holds credentials, a query, or another part that is not allowed; what they are is not repeated.
    """
    match = _URL.fullmatch(url)
    if match is None or "::" in url:
        raise UsageError(
            "data.shards looks like a URL, but is none that can be streamed: PROTOCOL://PLACE is allowed, with "
            "PROTOCOL in small letters, such as s3://bucket/set, and no chain of protocols (::)"
        )
    protocol, place = match.groups()
    user, at, _ = place.partition("/")[0].rpartition("@")
    if at and (protocol not in _WITH_USERS or ":" in user):
        raise UsageError(
            f"data.shards is a {protocol}:// URL with a user name or a password in it, which would end up in "
            "configurations and logs: leave it out, and give credentials through the environment (docs/streaming.md)"
        )
    if "?" in place or "#" in place:
        raise UsageError(
            f"data.shards is a {protocol}:// URL with a query or a fragment (? or #): name the folder alone, and give "
            "credentials through the environment (docs/streaming.md)"
        )
    if not place.strip("/"):
        raise UsageError(f"data.shards is {protocol}:// and nothing more: name the folder that holds the set")
    return protocol, url.rstrip("/")


class _Pump:
    """Reads in a thread of its own, since no library can be trusted to give up a connection from which nothing comes.

    Args:
        read: What gives the pieces.
    """

    def __init__(self, read: Callable[[], Iterator[bytes]]) -> None:
        self._read = read
        self._pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(2)
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="read-store", daemon=True).start()

    def take(self) -> bytes | None:
        """The next piece, or None behind the last one.

        Raises:
            queue.Empty: There is none yet.
            BaseException: What reading raised.
        """
        piece = self._pieces.get(timeout=waiting.SLICE)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def end(self) -> None:
        """Let the thread go as soon as it notices; nobody waits for it."""
        self._ended.set()

    def _run(self) -> None:
        try:
            for piece in self._read():
                if not self._put(piece):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, piece: bytes | BaseException | None) -> bool:
        while not self._ended.is_set():
            try:
                self._pieces.put(piece, timeout=waiting.SLICE)
                return True
            except queue.Full:
                continue
        return False


def watched(read: Callable[[], Iterator[bytes]], alive: Callable[[], None]) -> Iterator[bytes]:
    """Give the pieces of a file as they come.

    Args:
        read: Gives them; runs in a thread of its own.
        alive: Called often while this waits.

    Raises:
        Passing: Nothing has come for `waiting.STALL` seconds.
        Exception: What reading raised.
    """
    pump, last = _Pump(read), time.monotonic()
    try:
        while True:
            alive()
            try:
                piece = pump.take()
            except queue.Empty:
                if time.monotonic() - last > waiting.STALL:
                    raise Passing(f"not a byte came for {waiting.STALL:g} s") from None
                continue
            if piece is None:
                return
            yield piece
            last = time.monotonic()
    finally:
        pump.end()
