"""Loading from a store: the same samples whatever fetches and decodes, and what happens while the store is away."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from input_definition import Definition, noise_files, write_shards
from shard_server import serving

from hires_gan.data import fetcher as fetching
from hires_gan.data import retries
from hires_gan.data.fetcher import ShardFetcher
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.loader import Loader, Request
from hires_gan.data.manifest import sizes_of
from hires_gan.data.opening import open_shards
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_settings import StreamSettings
from hires_gan.errors import Failure, UsageError

SEED, SIDE, EACH, SHARDS, BATCH, LANES = 3, 16, 6, 24, 8, 8
COUNT = EACH * SHARDS
FILES = noise_files(COUNT, SIDE)
LABELS = [row % 3 for row in range(COUNT)]


class InLanes(Definition):
    """The input of a run whose samples are ordered in lanes; `test_lanes` holds the order itself."""

    def row(self, sample: int) -> int:
        return LaneOrder(SEED, [EACH] * SHARDS, LANES).row(sample)


DEFINITION = InLanes(FILES, LABELS, SEED, True)
pytestmark = pytest.mark.usefixtures("fresh_server")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("served") / "set", FILES, SIDE, LABELS, per_shard=EACH)


def settings_of(server, cache: Path, workers: int, timeout: float = 120.0, **stream: object) -> DataSettings:
    block = {"cache": cache, "lanes": LANES, "patience": 30, "downloads": 4} | stream
    return DataSettings(
        shards=server.url, workers=workers, mirror=True, timeout=timeout, stream=StreamSettings(**block)
    )


def loader_of(server, cache: Path, workers: int, **settings: object) -> Loader:
    data = settings_of(server, cache, workers, **settings)
    return Loader(open_shards(server.url, data.stream), data, SEED, BATCH * SIDE * SIDE * 3)


def requests(steps: int, rank: int = 0, ranks: int = 1, first: int = 0) -> Iterator[Request]:
    """A rank's samples of steps number `first` and so on: the same places of every batch."""
    low, high = rank * BATCH // ranks, (rank + 1) * BATCH // ranks
    for step in range(first, first + steps):
        yield Request(range(step * BATCH + low, step * BATCH + high), SIDE)


def check(loader: Loader, wanted: Iterator[Request]) -> int:
    """Whether all is as defined; how many samples there were."""
    shown = 0
    for batch in loader.batches(wanted):
        assert np.array_equal(batch.images.numpy(), DEFINITION.images(batch.samples, SIDE))
        assert batch.labels.tolist() == DEFINITION.classes(batch.samples)
        shown += len(batch.samples)
    return shown


def room_for(folder: Path, shards: float) -> float:
    manifest = ShardSet(folder).manifest
    return shards * sum(sizes_of(manifest, manifest.shards[0]).values()) / 1e9


# --- the same samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_every_layout_is_the_definition(server, tmp_path, workers):
    """Two epochs and a bit, for 1 to 3 ranks; from a cache that holds the whole set, and from one that does not."""
    steps = 2 * COUNT // BATCH + 2
    for ranks in (1, 2, 3):
        room = {} if ranks == 1 else {"cache_gb": room_for(server.served, 2 * LANES)}
        for rank in range(ranks):
            with loader_of(server, tmp_path / f"cache-{ranks}", workers, **room) as loader:
                assert check(loader, requests(steps, rank, ranks)) > 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_that_go_on_later_show_the_same(server, tmp_path, ranks):
    """From a step within an epoch over its end, whatever the number of ranks was before; each with an empty cache."""
    for first in (7, COUNT // BATCH - 1):
        shown = []
        for rank in range(ranks):
            room = room_for(server.served, 2 * LANES)
            with loader_of(server, tmp_path / f"cache-{first}-{rank}", 0, cache_gb=room) as loader:
                wanted = list(requests(3, rank, ranks, first))
                assert check(loader, iter(wanted)) == sum(len(request.samples) for request in wanted)
            shown += [sample for request in wanted for sample in request.samples]
        assert sorted(shown) == list(range(first * BATCH, (first + 3) * BATCH))


def test_going_on_anywhere_is_the_continuation_and_fetches_no_more_than_the_lanes_need(server, tmp_path):
    for first in (0, 5, 11, 12, 40):
        before = server.fetched()
        with loader_of(server, tmp_path / f"cache-{first}", 1, downloads=1) as loader:
            assert check(loader, requests(1, first=first)) == BATCH
        tars = [name for name in (server.fetched() - before) if name.endswith(".tar")]
        assert len(tars) <= 2 * LANES


def test_dali_shows_the_same(server, tmp_path):
    pytest.importorskip("nvidia.dali")
    data = settings_of(server, tmp_path / "cache", 0).model_copy(update={"decoder": "dali-cpu", "threads": 1})
    with Loader(open_shards(server.url, data.stream), data, SEED, BATCH * SIDE * SIDE * 3) as loader:
        assert check(loader, requests(14)) == 14 * BATCH


def test_two_ranks_fetch_disjoint_shards_but_for_the_cuts(folder, tmp_path):
    """Each rank through a server and a cache of its own, over one whole epoch."""
    fetched = []
    for rank in range(2):
        with (
            serving(folder, tmp_path / f"server-{rank}") as server,
            loader_of(server, tmp_path / f"cache-{rank}", 1, downloads=1) as loader,
        ):
            wanted = list(requests(COUNT // BATCH, rank, 2))
            # The last batch of the epoch asks for the first shards of the next one as well.
            check(loader, iter(wanted[:-1]))
            fetched.append({name for name in server.fetched() if name.endswith(".tar")})
            assert max(server.fetched().values()) == 1
    needed = [
        {
            DEFINITION.row(sample) // EACH
            for request in requests(COUNT // BATCH - 1, rank, 2)
            for sample in request.samples
        }
        for rank in range(2)
    ]
    for rank in range(2):
        assert {f"shard-{number:06d}.tar" for number in needed[rank]} <= fetched[rank]
    assert fetched[0] | fetched[1] == {f"shard-{number:06d}.tar" for number in range(SHARDS)}
    assert len(needed[0] & needed[1]) <= 1  # one cut lies between the lanes of the two
    for rank, names in enumerate(fetched):
        places = range(COUNT + rank * BATCH // 2, COUNT + (rank + 1) * BATCH // 2)
        ahead = {f"shard-{DEFINITION.row(sample) // EACH:06d}.tar" for sample in places}  # of the next epoch
        assert names - ahead <= {f"shard-{number:06d}.tar" for number in needed[rank]}


# --- the fetcher ------------------------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def fetcher_of(server, tmp_path):
    made = []

    def make(downloads: int, **stream: object) -> tuple[ShardSet, ShardFetcher]:
        shards = open_shards(server.url, StreamSettings(cache=tmp_path / "cache", **{"patience": 20, **stream}))
        made.append(ShardFetcher(shards, downloads))
        return shards, made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


def test_it_fetches_what_is_wanted_most_urgent_first(server, fetcher_of):
    shards, fetcher = fetcher_of(1)
    fetcher.want([5, 3, 9, 0])
    wait_for(lambda: all(shards.cache.has(number) for number in (5, 3, 9, 0)))
    tars = [name for _, name, _, _ in server.requests() if name.endswith(".tar")]
    assert tars == [f"shard-{number:06d}.tar" for number in (5, 3, 9, 0)]
    fetcher.check()


def test_the_newest_list_wins(server, fetcher_of):
    shards, fetcher = fetcher_of(1)
    server.fail(hang={"shard-000001.tar": 5})
    fetcher.want([1, 2, 3, 4])
    wait_for(lambda: server.fetched()["shard-000001.tar"])
    fetcher.want([7, 1])
    wait_for(lambda: shards.cache.has(7) and shards.cache.has(1))
    tars = [name for _, name, _, _ in server.requests() if name.endswith(".tar")]
    assert tars == ["shard-000001.tar", "shard-000007.tar"]


def test_several_at_once(server, fetcher_of):
    shards, fetcher = fetcher_of(4)
    server.fail(hang={"*": 8})
    fetcher.want(range(8))
    wait_for(lambda: len([name for name in server.fetched() if name.endswith(".tar")]) == 4)
    server.fail()
    wait_for(lambda: all(shards.cache.has(number) for number in range(8)))


def test_what_is_wanted_is_not_dropped_for_what_comes_behind_it(server, fetcher_of, folder):
    shards, fetcher = fetcher_of(2, cache_gb=room_for(folder, 6))
    for number in (8, 9, 10, 11):
        shards.read(number * EACH)
    fetcher.want([0, 1, 2])
    wait_for(lambda: all(shards.cache.has(number) for number in (0, 1, 2)))
    for number in (9, 10, 11):  # read later than 0, 1 and 2 were fetched, and not wanted any more
        shards.read(number * EACH)
    time.sleep(0.02)  # times of files go in steps of up to 10 ms
    fetcher.want([0, 1, 2, 3, 4])
    wait_for(lambda: all(shards.cache.has(number) for number in range(5)))
    assert server.fetched()["shard-000000.tar"] == 1


def test_what_does_not_fit_beside_what_is_more_urgent_waits(server, fetcher_of, folder):
    shards, fetcher = fetcher_of(2, cache_gb=room_for(folder, 4))
    fetcher.want(range(6))
    wait_for(lambda: all(shards.cache.has(number) for number in range(4)))
    fetcher.want([1, 2, 3, 4, 5])
    wait_for(lambda: shards.cache.has(4))
    tars = [name for name in server.fetched() if name.endswith(".tar")]
    assert sorted(tars) == [f"shard-{number:06d}.tar" for number in range(5)]
    assert all(shards.cache.has(number) for number in (1, 2, 3))


def test_a_shard_that_is_missing_is_told(server, fetcher_of):
    _, fetcher = fetcher_of(2)
    server.fail(status={"shard-000002.tar": 404})
    fetcher.want([2])
    wait_for(lambda: _fails(fetcher))
    for _ in range(2):
        with pytest.raises(Failure, match=rf"there is no {server.url}/shard-000002\.tar"):
            fetcher.want([1])


def _fails(fetcher: ShardFetcher) -> bool:
    try:
        fetcher.check()
    except Failure:
        return True
    return False


def test_a_fetcher_that_is_killed_is_named(fetcher_of):
    _, fetcher = fetcher_of(1)
    os.kill(fetcher.pid, signal.SIGKILL)
    wait_for(lambda: _fails(fetcher))
    with pytest.raises(Failure, match=rf"fetches shards \(process {fetcher.pid}\) was killed by SIGKILL"):
        fetcher.want([0])


def test_it_takes_no_notice_of_stop_signals_and_ends_when_it_is_closed(server, fetcher_of, monkeypatch):
    monkeypatch.setattr(fetching, "_GRACE", 60.0)
    shards, fetcher = fetcher_of(1)
    fetcher.want([2])
    wait_for(lambda: shards.cache.has(2))  # whatever started the server of processes here: it goes its way now
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(fetcher.pid, number)
    fetcher.want([3])
    wait_for(lambda: shards.cache.has(3))
    server.fail(hang={"*": 60})
    fetcher.want([4])
    wait_for(lambda: server.fetched()["shard-000004.tar"])
    fetcher.close()  # in the middle of a download
    assert fetcher._process.exitcode == 0  # by itself
    server.fail()
    assert shards.read(4 * EACH) == FILES[4 * EACH]


# --- a store that is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_is_killed_in_the_middle_and_comes_back(server, tmp_path, workers):
    with loader_of(server, tmp_path / "cache", workers, cache_gb=room_for(server.served, 2 * LANES)) as loader:
        batches = loader.batches(requests(30))
        for step in range(30):
            if step == 5:
                server.kill()
                threading.Timer(1.5, server.start).start()
            batch = next(batches)
            assert np.array_equal(batch.images.numpy(), DEFINITION.images(batch.samples, SIDE))
        assert next(batches, None) is None


def test_a_slow_download_is_no_hang(server, tmp_path):
    """A shard takes about eight seconds, and five seconds without a sign of life are a hang."""
    with loader_of(server, tmp_path / "cache", 2, timeout=5.0) as loader:
        server.fail(pause={f"shard-{DEFINITION.row(0) // EACH:06d}.tar": 0.8})
        first = next(loader.batches(requests(1)))
        assert np.array_equal(first.images.numpy(), DEFINITION.images(first.samples, SIDE))


def test_waiting_for_a_store_that_is_away_is_no_hang_but_ends_with_the_patience(server, tmp_path):
    with loader_of(server, tmp_path / "cache", 1, timeout=4.0, patience=10) as loader:
        server.kill()
        start = time.monotonic()
        with pytest.raises(Failure, match=r"could not be read for \d+ s; the last error: .*data\.stream\.patience"):
            next(loader.batches(requests(1)))
        assert 4 < time.monotonic() - start < 60


def test_a_worker_that_is_stopped_still_hangs(server, tmp_path):
    with loader_of(server, tmp_path / "cache", 1) as loader:
        batches = loader.batches(requests(5))
        next(batches)
        loader.decoder.workers._timeout = 1.0
        server.fail(hang={"*": 60})
        os.kill(loader.decoder.pids[0], signal.SIGSTOP)
        try:
            with pytest.raises(Failure, match=r"data worker 0 .* has not answered for 1 s"):
                for _ in batches:
                    pass
        finally:
            os.kill(loader.decoder.pids[0], signal.SIGCONT)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_stops_the_loading(server, tmp_path, workers):
    server.fail(status={"shard-000004.tar": 404})
    with (
        loader_of(server, tmp_path / "cache", workers) as loader,
        pytest.raises(Failure, match=rf"there is no {server.url}/shard-000004\.tar"),
    ):
        for _ in loader.batches(requests(12)):
            pass


def test_a_cache_below_the_lanes_is_refused_before_anything_is_fetched(server, tmp_path):
    with pytest.raises(UsageError, match=r"data\.stream\.cache_gb is .* but 8 lanes"):
        loader_of(server, tmp_path / "cache", 0, cache_gb=room_for(server.served, 2 * LANES - 0.1))
    assert set(server.fetched()) == {"manifest.json"}


def test_a_reader_is_handed_to_workers_without_a_connection(server, tmp_path):
    loader = loader_of(server, tmp_path / "cache", 0)
    with loader:
        check(loader, requests(2))
        again = pickle.loads(pickle.dumps(loader.reader))
    rows = [order.row(5) for order in (again.streams[0].order, loader.reader.streams[0].order)]
    assert rows[0] == rows[1] == DEFINITION.row(5)


def test_many_threads_in_one_trouble_speak_with_one_voice(capfd):
    voice = retries._Voice()
    threads = [threading.Thread(target=voice.say, args=("away", 60)) for _ in range(8)]
    for thread in itertools.chain(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err.count("away") == 1
