"""The cache of a streamed set: its bound, what processes and threads share, and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from input_definition import write_shards
from shard_server import serving
from streamed_sets import EQUAL, opened, shard_bytes

from hires_gan.data.cache_locks import locked, locked_if_free
from hires_gan.data.heartbeat import HEART
from hires_gan.data.opening import open_shards, order_of
from hires_gan.data.shard_cache import require_room
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_settings import StreamSettings
from hires_gan.errors import Failure, UsageError

FILES, LABELS, COUNT, EACH, SIDE = EQUAL.files, EQUAL.labels, EQUAL.count, EQUAL.each, EQUAL.side
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return EQUAL.write(tmp_path_factory.mktemp("served") / "set")


def size_of(cache: Path) -> int:
    """What lies in the cache at one moment: files change their names meanwhile, and must not be counted twice."""
    total = 0
    if not cache.is_dir():
        return 0
    with locked(cache / ".lock", lambda: None):
        for path in cache.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() and path.suffix != ".sums" else 0
            except FileNotFoundError:
                continue
    return total


def kept(shards: ShardSet) -> list[int]:
    return [number for number in range(len(shards.manifest.shards)) if shards.cache.has(number)]


def first_of(shard: int) -> int:
    return shard * EACH


# --- the bound --------------------------------------------------------------------------------------------------------


def test_the_bound_holds_at_every_moment(server, cache):
    shards = opened(server, cache, 3.5)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], size_of(cache))
            time.sleep(0.005)  # holding the lock all the time would keep everybody else from it

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(shards.read, range(COUNT))) == FILES
    done.set()
    watcher.join()
    most[0] = max(most[0], size_of(cache))
    assert 2 * shard_bytes(server) < most[0] <= 3.5 * shard_bytes(server)


def test_what_was_not_read_for_longest_goes_first(server, cache):
    shards = opened(server, cache, 3)
    for shard in (0, 1, 2, 0, 3, 0, 4):
        assert shards.read(first_of(shard)) == FILES[first_of(shard)]
        time.sleep(0.02)  # times of files go in steps of up to 10 ms
    assert kept(shards) == [0, 3, 4]
    assert server.fetched()["shard-000000.tar"] == 1
    assert list(cache.rglob("shard-000001.*")) == []


def test_sets_share_the_bound_and_what_else_lies_there_is_left_alone(server, cache, tmp_path):
    other = write_shards(tmp_path / "other", FILES[::-1], SIDE, LABELS, per_shard=EACH)
    strangers = [cache / "notes.tar", cache / ("a" * 64) / "notes.txt", cache / "mine" / "shard-000000.tar"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10**6)
    first = opened(server, cache, 3)
    for shard in range(3):
        first.read(first_of(shard))
    with serving(other, tmp_path / "second") as second:
        shards = opened(second, cache, 3)
        for shard in range(3):
            assert shards.read(first_of(shard)) == FILES[::-1][first_of(shard)]
    assert kept(first) == []
    assert kept(shards) == [0, 1, 2]
    assert all(path.stat().st_size == 10**6 for path in strangers)


def test_an_open_file_does_not_keep_its_room(server, cache):
    """What is dropped is gone from the disk: nobody holds a descriptor or a mapping of it."""
    shards = opened(server, cache)
    assert [shards.read(row) for row in range(COUNT)] == FILES
    held = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_link(number)]
    assert [path for path in held if str(cache) in path] == []
    assert str(cache) not in Path("/proc/self/maps").read_text()


def _is_link(number: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{number}")


def test_a_bound_below_what_is_read_at_once_is_refused_with_numbers(server, cache):
    shards = opened(server, cache, 5.9)
    needed = 6 * shard_bytes(server) / 1e9
    says = rf"data\.stream\.cache_gb is .*, but 3 lanes .* of {server.url}, .* take up to {needed:.3g} GB"
    with pytest.raises(UsageError, match=says) as said:
        order_of(shards, 0, 3)
    advice = float(str(said.value).partition("set data.stream.cache_gb to ")[2].split()[0])
    assert needed <= advice < 1.1 * needed
    order_of(shards, 0, 2)
    order_of(opened(server, cache, 6), 0, 3)
    order_of(opened(server, cache, 8), 0, 1000)  # the whole set is enough for any number


def test_sets_that_share_a_cache_need_room_for_all_of_them(server, cache, tmp_path):
    other = write_shards(tmp_path / "other", FILES[::-1], SIDE, LABELS, per_shard=EACH)
    with serving(other, tmp_path / "second") as second:
        for room, fits in ((7.9, False), (8, True)):
            first, third = opened(server, cache, room), opened(second, cache, room)
            for one in (first, third):
                require_room([one.cache], 2)
            if fits:
                require_room([first.cache, third.cache], 2)
                require_room([first.cache, first.cache], 100)  # the whole set
            else:
                for caches in ([first.cache, third.cache], [first.cache, first.cache]):
                    with pytest.raises(UsageError, match=rf"2 lanes .* of {server.url}.* take up to"):
                        require_room(caches, 2)
                apart = opened(second, tmp_path / "apart", room)
                require_room([first.cache, apart.cache], 2)


def test_a_shard_larger_than_the_bound_is_refused_even_without_an_order(server, cache):
    with pytest.raises(Failure, match=r"may hold [\d,]+ bytes .* a shard of [\d,]+ bytes does not fit"):
        opened(server, cache, 0.9).read(0)


# --- sharing ----------------------------------------------------------------------------------------------------------

READ_ALL = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from input_definition import noise_files
from hires_gan.data.opening import open_shards
from hires_gan.data.stream_settings import StreamSettings
url, cache, gigabytes, step = sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
shards = open_shards(url, StreamSettings(cache=cache, cache_gb=gigabytes, patience=30))
files = noise_files(len(shards), 16)
rows = [row * step % len(shards) for row in range(len(shards))]
assert all(shards.read(row) == files[row] for _ in range(3) for row in rows)
print("whole")
"""


def reader(server, cache: Path, shards: float, step: int) -> subprocess.Popen[str]:
    arguments = [str(Path(__file__).parent), server.url, str(cache), str(shards * shard_bytes(server) / 1e9), str(step)]
    command = [sys.executable, "-c", READ_ALL, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_several_processes_fetch_every_file_once(server, cache):
    server.fail(pause={"*": 0.005})
    readers = [reader(server, cache, 8, step) for step in (1, 3, 7)]
    for process in readers:
        out, said = process.communicate(timeout=120)
        assert (out, process.returncode) == ("whole\n", 0), said
    fetched = server.fetched()
    assert fetched.pop("manifest.json") == 3
    assert len(fetched) == 24
    assert set(fetched.values()) == {1}


def test_several_processes_in_a_cache_that_is_too_small_for_all_still_read_what_is_there(server, cache):
    readers = [reader(server, cache, 3, step) for step in (1, 3, 7)]
    most = 0
    while any(process.poll() is None for process in readers):
        most = max(most, size_of(cache))
        time.sleep(0.02)  # holding the lock all the time would keep everybody else from it
    assert [process.communicate()[0] for process in readers] == ["whole\n"] * 3
    assert most <= 3 * shard_bytes(server)
    assert max(server.fetched().values()) > 1


def test_several_threads_fetch_every_file_once(server, cache):
    shards = opened(server, cache)
    server.fail(pause={"*": 0.002})
    with ThreadPoolExecutor(8) as threads:
        rows = [row for row in range(COUNT) for _ in range(4)]
        assert list(threads.map(shards.read, rows)) == [FILES[row] for row in rows]
    assert set(server.fetched().values()) == {1}


def test_one_who_waits_for_another_process_shows_signs_of_life(server, cache):
    server.fail(pause={"shard-000000.tar": 0.4})  # four seconds
    shards, other = opened(server, cache), reader(server, cache, 8, 1)
    while "shard-000000.tar" not in server.fetched():
        assert other.poll() is None
        time.sleep(0.02)
    before = HEART.beats
    assert shards.read(0) == FILES[0]
    assert HEART.beats > before + 2
    assert other.communicate(timeout=120)[0] == "whole\n"
    assert server.fetched()["shard-000000.tar"] == 1


def test_a_downloader_that_is_killed_is_followed_by_the_next_and_leaves_nothing(server, cache):
    server.fail(pause={"shard-000000.tar": 5})
    victim = reader(server, cache, 8, 1)
    while not list(cache.rglob(".shard-000000.tar.partial")):
        assert victim.poll() is None
        time.sleep(0.02)
    waiting = ThreadPoolExecutor(1).submit(opened(server, cache).read, 0)
    time.sleep(0.3)
    assert not waiting.done()
    server.fail()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert waiting.result(60) == FILES[0]
    assert list(cache.rglob("*.partial")) == []


def test_one_who_waited_for_a_downloader_that_gave_up_has_only_what_is_left_of_its_patience(server, cache):
    """Its patience began when it first wanted the shard: together they do not wait twice as long."""
    sets = [open_shards(server.url, StreamSettings(cache=cache, patience=2)) for _ in range(2)]
    server.fail(status={"*": 503})
    with ThreadPoolExecutor(2) as threads:
        reads = [threads.submit(shards.read, 0) for shards in sets]
        for read in reads:
            with pytest.raises(Failure, match=r"could not be read for \d+ s; the last error: .*503"):
                read.result()
    # After 0, about 0.5 and 1.5 s; what is left of the two seconds allows the other at most two. Alone it takes three.
    assert server.fetched()["shard-000000.tar"] <= 3 + 2


def test_what_a_killed_downloader_left_makes_room_for_others(server, cache):
    shards = opened(server, cache, 2)
    left = shards.cache.folder / ".shard-000005.tar.partial"
    left.write_bytes(bytes(shard_bytes(server)))
    shards.read(0)
    shards.read(first_of(1))
    assert not left.exists()
    assert kept(shards) == [0, 1]


def test_what_a_killed_downloader_left_of_the_very_shard_is_no_obstacle(server, cache):
    """It has its full size from the beginning on, and the one who wants the shard holds its lock."""
    shards = opened(server, cache, 1)
    (shards.cache.folder / ".shard-000000.tar.partial").write_bytes(
        bytes(ShardSet(server.served).manifest.shards[0].bytes)
    )
    reading = ThreadPoolExecutor(1).submit(shards.read, 0)
    try:
        assert reading.result(60) == FILES[0]
    finally:
        for path in cache.rglob("*.partial"):  # lets a thread go that waits for ever
            path.unlink(missing_ok=True)
    assert kept(shards) == [0]


def test_what_killed_downloaders_left_goes_before_what_is_whole(server, cache):
    shards = opened(server, cache, 2)
    shards.read(0)
    (shards.cache.folder / ".shard-000005.tar.partial").write_bytes(bytes(shard_bytes(server)))
    shards.read(first_of(1))
    assert kept(shards) == [0, 1]
    assert server.fetched()["shard-000000.tar"] == 1


def test_a_lock_is_held_by_one_thread_and_not_dropped_by_another(tmp_path):
    """`lockf` alone would give it to both, and closing the second descriptor would drop the first one's lock."""
    path = tmp_path / "lock"
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def others_may() -> bool:
        return subprocess.run([sys.executable, "-c", script, path], capture_output=True).returncode == 0

    waiting, had_to_wait = threading.Event(), []

    def wait() -> None:
        with locked(path, waiting.set) as waited:
            had_to_wait.append(waited)

    second = threading.Thread(target=wait)
    with locked(path, lambda: None) as waited:
        assert not waited
        with locked_if_free(path) as mine:
            assert not mine
        assert not others_may()
        second.start()
        assert waiting.wait(30)
        assert not others_may()
        assert had_to_wait == []
    second.join(30)
    assert had_to_wait == [True]
    assert others_may()


def test_the_next_one_gets_the_lock(tmp_path):
    with locked(tmp_path / "lock", lambda: None):
        pass
    with locked_if_free(tmp_path / "lock") as mine:
        assert mine


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_cache_that_is_a_file_or_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Failure, match=rf"the cache {place} cannot be used \(.*\); point data\.stream\.cache at"):
            opened(server, place)


FULL_DISK = """
import sys
from pathlib import Path
from hires_gan.data.opening import open_shards
from hires_gan.data.stream_settings import StreamSettings
url, disk, hogged = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
(disk / "hog").write_bytes(bytes(hogged))
shards = open_shards(url, StreamSettings(cache=disk / "cache", patience=20))
for _ in range(2):
    for row in range(len(shards)):
        shards.read(row)
print("whole")
"""


def on_a_small_disk(server, tmp_path: Path, pages: int, hogged: int) -> subprocess.CompletedProcess[str]:
    """Read the set through a cache on a disk of so many pages, some of which something else has."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(disk)]
    probe = subprocess.run(["unshare", "-m", *mount], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    run = f'{" ".join(mount)} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", run, "sh", sys.executable, script, server.url, disk, str(hogged * 4096)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_a_disk_that_is_full_before_the_bound_drops_shards_and_says_so(server, tmp_path):
    pages_of_a_shard = shard_bytes(server) // 4096 + 3  # each of its files fills whole pages
    done = on_a_small_disk(server, tmp_path, 4 * pages_of_a_shard + 17, hogged=8)  # sums fill pages as well
    assert done.stdout == "whole\n", done.stderr
    assert done.stderr.count("/disk/cache is full before the cache holds its 50 GB: shards are dropped") == 1
    assert server.fetched()["shard-000000.tar"] == 2


def test_a_disk_without_room_for_one_shard_is_a_failure_with_numbers(server, tmp_path):
    done = on_a_small_disk(server, tmp_path, 40, hogged=37)
    says = (
        f"/disk/cache cannot take another shard (No space left on device): {shard_bytes(server):,} bytes are needed, "
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert (
        "are free, and nothing is left in it to drop; make room on this disk, or point data.stream.cache" in done.stderr
    )
