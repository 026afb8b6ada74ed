"""What `auto` takes: a rule over what was measured, and a probe that measures real samples and disturbs nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from input_definition import noise_files, write_shards

from hires_gan.data import advice
from hires_gan.data.advice import Machine, Measured, Wish, advise, probe, suggest, threads_per_core
from hires_gan.data.domains import Source, in_one_set
from hires_gan.data.reader import SampleReader
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import CorruptSample, ShardSet
from hires_gan.errors import Failure

GIB = 2**30
GPU = Machine(cores=8, threads_per_core=1, memory=64 * GIB, share=1, on_gpu=True)
FAST = Measured(images=20, waiting=0.0, reading=0.03 / 262, decoding=0.97 / 262, slowest=1.2 / 262)
SLOW = Measured(images=20, waiting=0.006, reading=0.0, decoding=0.004, slowest=0.01)
WISH = Wish("torchvision", None, None, None, resolution=1024, batch=32)


# --- the rule ---


def test_a_gpu_machine_keeps_one_core_for_driving_the_gpu():
    found = suggest(FAST, GPU, WISH)
    assert (found.workers, found.threads, found.prefetch) == (7, 7, 3)
    assert found.sentence == (
        "data.workers: auto takes 7 of 8 cores: one decodes 262 images/s at 1024x1024, reading takes 3% of its time; "
        "prefetch 3"
    )


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ({"threads_per_core": 2}, 6),
        ({"cores": 32, "share": 4}, 7),
        ({"cores": 3, "share": 8}, 1),
        ({"cores": 1}, 1),
        ({"on_gpu": False}, 4),  # the training computes on the others
        ({"on_gpu": False, "cores": 1}, 1),
        ({"on_gpu": False, "cores": 9, "share": 3}, 1),
    ],
)
def test_cores_are_divided(changes, workers):
    assert suggest(FAST, replace(GPU, **changes), WISH).workers == workers


def test_several_training_processes_are_told_of_each_other():
    sentence = suggest(FAST, replace(GPU, cores=32, share=4), WISH).sentence
    assert sentence.startswith("data.workers: auto takes 7 of 32 cores for each of 4 training processes: ")


def test_workers_that_wait_for_the_file_system_are_more_than_the_cores():
    found = suggest(SLOW, GPU, WISH)
    assert found.workers == 18  # 7 cores busy for 40 % of their time each
    assert found.threads == 7  # DALI reads in threads of its own
    assert found.sentence.startswith(
        "data.workers: auto takes 18 on 8 cores: one decodes 100 images/s at 1024x1024, reading takes 60% of its time, "
        "most of it waiting for the file system (60%); "
    )


def test_there_is_an_end_to_it():
    stuck = replace(SLOW, waiting=100.0, slowest=100.0)
    assert suggest(stuck, GPU, WISH).workers == 28
    assert suggest(stuck, replace(GPU, cores=256), WISH).workers == 255  # already more than the bound
    assert suggest(stuck, replace(GPU, cores=40), WISH).workers == 64


def test_a_little_waiting_changes_nothing():
    assert suggest(replace(FAST, waiting=0.2 * FAST.whole), GPU, WISH).workers == 7


def test_prefetch_makes_good_for_the_slowest_image():
    batch = 32 * FAST.whole / 7
    assert suggest(replace(FAST, slowest=2.5 * batch), GPU, WISH).prefetch == 5
    assert suggest(replace(FAST, slowest=1e6), GPU, WISH).prefetch == 16


@pytest.mark.parametrize(("gib", "prefetch"), [(64, 3), (3, 3), (2, 1), (0, 1)])
def test_rings_take_an_eighth_of_the_memory_at_most(gib, prefetch):
    """A slot of 32 images of 1024x1024 is 96 MiB: four of them, prefetch 3, need 3 GiB."""
    assert suggest(FAST, replace(GPU, memory=gib * GIB), WISH).prefetch == prefetch
    assert suggest(FAST, replace(GPU, memory=2 * gib * GIB, share=2), WISH).prefetch == prefetch


def test_dali_is_given_threads():
    found = suggest(FAST, GPU, replace(WISH, decoder="dali"))
    assert found.threads == 7


@pytest.mark.parametrize("decoder", ["dali", "dali-cpu"])
def test_with_dali_it_is_said_that_torchvision_was_measured_and_how_many_threads_read(decoder):
    measured = (
        "measured with torchvision on the CPU, where one process decodes 262 images/s at 1024x1024, reading takes 3%"
    )
    wish = replace(WISH, decoder=decoder)
    assert suggest(FAST, GPU, wish).sentence == (
        f"data.threads: auto takes 7 of 8 cores: {measured} of its time; prefetch 3; 7 threads read"
    )
    known = suggest(FAST, GPU, replace(wish, threads=2, workers=1)).sentence
    assert known == f"data.prefetch: auto takes 3: {measured} of its time; 1 thread reads"
    unmeasured = suggest(None, GPU, wish).sentence
    assert unmeasured.endswith("nothing could be measured beforehand; prefetch 3; 7 threads read")


@pytest.mark.parametrize(
    ("changes", "workers", "readers"),
    [
        ({}, None, 8),  # 18 workers would wait, but there are 8 cores
        ({"cores": 64, "share": 8}, None, 8),
        ({"cores": 2}, None, 2),
        ({"cores": 1}, None, 1),
        ({}, 3, 3),
        ({}, 100, 8),
        ({}, 0, 1),
        ({"on_gpu": False}, None, 10),  # 4 cores busy for 40 % of their time each
        ({"on_gpu": False}, 100, 100),
        ({"on_gpu": False}, 0, 1),
    ],
)
def test_as_many_threads_read_for_dali_as_workers_would_but_for_the_cores_beside_a_gpu(changes, workers, readers):
    found = suggest(SLOW, replace(GPU, **changes), replace(WISH, decoder="dali", workers=workers))
    assert found.readers == readers


def test_without_a_measurement_the_cores_decide():
    found = suggest(None, GPU, WISH)
    assert (found.workers, found.threads, found.prefetch) == (7, 7, 3)
    assert found.sentence == "data.workers: auto takes 7 of 8 cores: nothing could be measured beforehand; prefetch 3"


def test_what_is_set_is_kept():
    found = suggest(SLOW, GPU, Wish("torchvision", 0, 5, 9, 1024, 32))
    assert (found.workers, found.threads, found.prefetch, found.sentence) == (0, 5, 9, "")
    found = suggest(FAST, GPU, replace(WISH, workers=2))
    assert (found.workers, found.prefetch) == (2, 3)
    assert found.sentence.startswith("data.prefetch: auto takes 3: one decodes 262 images/s")
    found = suggest(FAST, GPU, replace(WISH, prefetch=4))
    assert found.prefetch == 4
    assert found.sentence.endswith("reading takes 3% of its time")


times = st.floats(0, 100)
measurements = st.builds(Measured, st.integers(1, 64), times, times, times, times)
machines = st.builds(
    Machine, st.integers(1, 512), st.integers(1, 8), st.integers(0, 2**42), st.integers(1, 64), st.booleans()
)
wishes = st.builds(
    Wish,
    st.sampled_from(["torchvision", "dali", "dali-cpu"]),
    st.none() | st.integers(0, 256),
    st.none() | st.integers(1, 256),
    st.none() | st.integers(1, 64),
    st.sampled_from([4, 64, 1024]),
    st.integers(0, 512),
)


@given(st.none() | measurements, machines, wishes)
def test_every_suggestion_is_within_bounds(measured, machine, wish):
    found = suggest(measured, machine, wish)
    own = max(1, machine.cores // machine.share)
    assert found.workers == wish.workers or 1 <= found.workers <= min(256, max(own, min(4 * own, 64)))
    assert found.threads == wish.threads or 1 <= found.threads <= min(256, own)
    if wish.prefetch is None:
        assert 1 <= found.prefetch <= 16
        ring = (found.prefetch + 1) * wish.batch * wish.resolution**2 * 3
        assert found.prefetch == 1 or ring * machine.share <= machine.memory / 8
    else:
        assert found.prefetch == wish.prefetch
    left_open = (wish.workers if wish.decoder == "torchvision" else wish.threads) is None or wish.prefetch is None
    assert bool(found.sentence) == left_open
    assert "\n" not in found.sentence
    assert "nan" not in found.sentence


# --- the probe ---


class Clock:
    """Time that passes only when it is told to; computing is a part of it."""

    def __init__(self) -> None:
        self.now = self.computed = 0.0

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.computed

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.computed += seconds


class FakeShards:
    """Reads as slowly as it is told; some rows cannot be read."""

    def __init__(self, clock: Clock, waits, data: bytes, broken: dict[int, Exception] | None = None) -> None:
        self.clock, self.waits, self.data, self.broken = clock, waits, data, broken or {}
        self.rows: list[int] = []

    def __len__(self) -> int:
        return 1000

    def read(self, row: int, column: str) -> bytes:
        self.rows.append(row)
        self.clock.wait(next(self.waits))
        self.clock.compute(0.001)
        if row in self.broken or -1 in self.broken:
            raise self.broken.get(row) or self.broken[-1]
        return self.data


class FakeSource(Source):
    def stored(self, resolution: int) -> tuple[tuple[str, ...], int]:
        return self.columns, 8


def fake(clock: Clock, waits, broken=None, monkeypatch=None) -> FakeSource:
    return FakeSource(FakeShards(clock, iter(waits), noise_files(1, 8)[0], broken), ("image",), ("image",), "fake")


@pytest.fixture
def clock(monkeypatch):
    """Decoding takes 4 ms."""
    clock = Clock()
    real = advice.decode_square

    def decode(data, side):
        clock.compute(0.004)
        return real(data, side)

    monkeypatch.setattr(advice, "decode_square", decode)
    return clock


def test_waiting_and_computing_are_told_apart(clock):
    found = probe([fake(clock, itertools.repeat(0.015))], 8, clock.wall, clock.cpu)
    assert found.images == 8  # all alike: more would say no more
    assert (found.waiting, found.reading) == (pytest.approx(0.015), pytest.approx(0.001))
    assert (found.decoding, found.slowest) == (pytest.approx(0.004), pytest.approx(0.02))


def test_other_work_on_the_machine_does_not_slow_the_decoder_down(clock, monkeypatch):
    real = advice.decode_square

    def preempted(data, side):
        clock.wait(0.05)
        return real(data, side)

    monkeypatch.setattr(advice, "decode_square", preempted)
    found = probe([fake(clock, itertools.repeat(0.0))], 8, clock.wall, clock.cpu)
    assert found.whole == pytest.approx(0.005)


def test_the_first_image_is_not_counted(clock):
    found = probe([fake(clock, itertools.chain([0.5], itertools.repeat(0.0)))], 8, clock.wall, clock.cpu)
    assert found.slowest == pytest.approx(0.005)


def test_images_that_differ_are_measured_for_longer_but_not_for_ever(clock):
    source = fake(clock, itertools.cycle([0.0, 0.02]))
    found = probe([source], 8, clock.wall, clock.cpu)
    assert found.images == 64
    assert len(set(source.shards.rows)) == 65  # from all over the set
    assert max(np.diff(sorted(source.shards.rows))) < 60


def test_a_slow_file_system_is_not_asked_for_long(clock):
    source = fake(clock, itertools.repeat(0.7))
    found = probe([source], 8, clock.wall, clock.cpu)
    assert found.images == 2
    assert clock.now < 2.0 + 0.71
    hangs = probe([fake(clock, [60.0])], 8, clock.wall, clock.cpu)
    assert (hangs.images, hangs.waiting) == (1, pytest.approx(60.0))


def test_corrupt_samples_are_passed_over(clock):
    rows = [row for _, row in itertools.islice(advice._rows([fake(clock, [])]), 4)]
    broken = {row: CorruptSample("bad", "shard", row, "image", "key") for row in rows[1:3]}
    found = probe([fake(clock, itertools.repeat(0.0), broken)], 8, clock.wall, clock.cpu)
    assert found.images == 8


@pytest.mark.parametrize("error", [Failure("gone"), OSError(5, "input/output error")])
def test_what_cannot_be_read_is_for_the_run_to_say(clock, error):
    source = fake(clock, itertools.repeat(0.0), {-1: error})
    assert probe([source], 8, clock.wall, clock.cpu) is None
    assert len(source.shards.rows) == 1


def test_a_set_of_nothing_but_corrupt_samples_ends(clock):
    error = CorruptSample("bad", "shard", 0, "image", "key")
    assert probe([fake(clock, itertools.repeat(0.0), {-1: error})], 8, clock.wall, clock.cpu) is None


# --- on real shards ---


def test_domains_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "_SECONDS", 60.0)  # time enough, however slow the machine
    sources = [
        in_one_set(ShardSet(write_shards(tmp_path / name, noise_files(3, 8, seed), 8))).sources[0]
        for seed, name in enumerate(("a", "b"))
    ]
    chosen = list(itertools.islice(advice._rows(sources), 20))
    assert [source for source, _ in chosen] == sources * 10
    assert {row for _, row in chosen} == {0, 1, 2}
    assert probe(sources, 4).images >= 8


def test_it_disturbs_nothing(tmp_path):
    """Beside a reader that was probed, one that was not gives the same images, and reports the same corrupt row."""
    folder = write_shards(tmp_path / "set", noise_files(12, 16), 16)
    place = ShardSet(folder).locate(5)
    with (folder / "shard-000000.tar").open("r+b") as file:
        file.seek(place.offset + 40)
        file.write(b"\0\1\2\3")
    settings = DataSettings(shards=str(folder))
    found = []
    for probed in (False, True):
        reader = SampleReader(ShardSet(folder), 3, True, 0.5)
        state = torch.random.get_rng_state()
        if probed:
            assert advise(reader, settings, 1, 8, 4).sentence.startswith("data.workers: auto takes ")
        assert torch.equal(torch.random.get_rng_state(), state)
        images = torch.zeros(24, 8, 8, 3, dtype=torch.uint8)
        report = reader.fill(images, range(24), 0, 1)
        found.append((images, [corrupt.row for corrupt in report.corrupt], report.shown))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert set(found[0][1]) == {5}


def test_nothing_is_measured_where_nothing_is_open(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "set", noise_files(2, 8), 8)
    monkeypatch.setattr(advice, "probe", lambda *_: pytest.fail("it was measured"))
    settings = DataSettings(shards=str(folder), workers=3, prefetch=2)
    found = advise(SampleReader(ShardSet(folder), 0, False), settings, 1, 8, 4)
    assert (found.workers, found.prefetch, found.sentence) == (3, 2, "")


def test_a_streamed_set_is_left_alone(tmp_path, monkeypatch):
    """Its shards are fetched whole: a probe would fetch what the run does not need yet."""
    folder = write_shards(tmp_path / "set", noise_files(2, 8), 8)
    monkeypatch.setattr(advice, "probe", lambda *_: pytest.fail("it was measured"))
    reader = SampleReader(ShardSet(folder), 0, False)
    monkeypatch.setattr(ShardSet, "streamed", property(lambda self: True))
    found = advise(reader, DataSettings(shards=str(folder)), 1, 8, 4)
    assert "nothing could be measured beforehand" in found.sentence


@pytest.mark.parametrize(
    ("text", "threads"), [("0\n", 1), ("0,64\n", 2), ("0-1\n", 2), ("0-3\n", 4), ("x", 1), ("", 1), (None, 1)]
)
def test_threads_of_a_core(tmp_path, text, threads):
    if text is not None:
        (tmp_path / "cpu0" / "topology").mkdir(parents=True)
        (tmp_path / "cpu0" / "topology" / "thread_siblings_list").write_text(text)
    assert threads_per_core(tmp_path) == threads
