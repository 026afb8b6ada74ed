"""`hires-gan bench input`: small and short here; what it measures is told, and how."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
from dataclasses import replace
from multiprocessing.process import BaseProcess

import odd_contestants
import pytest
from bench_shards import pngs, write_shards
from typer.testing import CliRunner

from hires_gan.bench.input import MOST_ROUNDS, Request, bench_input, figures, table
from hires_gan.bench.input_contestants import Batches, Contestant, Family, Measurement, Task, measured, take
from hires_gan.bench.input_images import describe, make_shards
from hires_gan.bench.input_loaders import DECODERS, contestants
from hires_gan.bench.input_peers import PIL_TO_UINT8
from hires_gan.bench.input_result import Result, rows_of
from hires_gan.cli import app
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

TASK = Task(16, 2, 8, 0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("made"), 64)


def short(made, **changes) -> Request:
    return Request(made, **{"resolutions": (64,), "workers": 1, "batch": 4, "seconds": 0.2, "peers": False} | changes)


def started_since(before: list[BaseProcess]) -> list[BaseProcess]:
    """Processes that were started behind that, and run on."""
    return [process for process in multiprocessing.active_children() if process not in before]


def test_without_shards_it_makes_its_own_and_writes_what_was_measured(tmp_path, capfd):
    out, before = tmp_path / "input.json", multiprocessing.active_children()
    request = Request(None, (32,), 2, 8, 0.2, ("torchvision",), False, out)
    (result,) = bench_input(request)
    limit, loader, cached = result.rows[:3]
    assert [row.kind for row in result.rows[:3]] == ["limit", "loader", "disk"]
    assert (limit.of_limit, limit.first_batch_seconds) == (1.0, None)
    assert (loader.of_loader, cached.of_limit) == (1.0, None)
    assert loader.of_limit == pytest.approx(loader.images_per_second / limit.images_per_second)
    assert loader.first_batch_seconds > 0
    assert all(row.images_per_second > 1 and 0 < row.cpu_seconds_per_image < 1 for row in result.rows)
    assert all(row.memory_mib > 10 and len(row.rates) == 1 for row in result.rows)
    record = json.loads(out.read_text())
    written = record["results"][0]
    assert written["rows"][1]["images_per_second"] == loader.images_per_second
    assert written["figures"] == figures(result) == {"loader, torchvision": {"of_best_decoder": loader.of_limit}}
    assert (written["resolution"], record["workers"], record["batch"], record["rounds"]) == (32, 2, 8, 1)
    assert {"date", "version.torch", "version.torchvision", "version.python", "cpu.model", "cpu.count"} <= set(record)
    assert not {"host", "mlflow.user"} & set(record)
    assert "enlarged, JPEG of quality 95 with 4:4:4 chroma, 32x32" in capfd.readouterr().err
    assert started_since(before) == []


@pytest.mark.slow
def test_the_command_measures_everything_at_several_resolutions(made, tmp_path):
    out = tmp_path / "input.json"
    arguments = ["bench", "input", "--shards", str(made), "--resolution", "64", "--resolution", "32,16"]
    arguments += ["--seconds", "0.2", "--workers", "2", "--batch", "8", "--out", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    results = json.loads(out.read_text())["results"]
    assert [result["resolution"] for result in results] == [64, 32, 16]
    names = {row["name"] for row in results[0]["rows"]}
    assert {"torchvision alone", "loader, torchvision", "reading alone, cached", PIL_TO_UINT8} <= names
    assert {"DataLoader: folder, PIL, ToTensor", "DataLoader: zip, torchvision"} <= names
    assert {"webdataset, PIL", "webdataset, torchvision"} <= names
    assert all(row["kind"] != "peer" for result in results[1:] for row in result["rows"])  # which halve no image
    for row in results[0]["rows"]:
        assert re.search(f"^{re.escape(row['name'])} +[0-9.]+ +", done.stdout, re.MULTILINE)
    assert re.search(r"loader, torchvision: .*% of the best decoder .*; [0-9.]+ times the DataLoader", done.stdout)


def test_the_option_names_several_resolutions(made, monkeypatch):
    from hires_gan.bench import input as bench

    asked = []

    def look(contestant, task):
        asked.append((contestant.name, task.resolution))
        return odd_contestants.works(task)

    monkeypatch.setattr(bench, "measured", look)
    arguments = ["bench", "input", "--shards", str(made), "--resolution", "64", "--resolution", "32,16", "--no-peers"]
    arguments += ["--decoder", "torchvision", "--seconds", "0.1", "--workers", "1"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    names = ("torchvision alone", "loader, torchvision", "reading alone, cached", "reading alone, from disk")
    assert asked == [(name, side) for side in (64, 32, 16) for name in names]
    for name in names[:2]:
        assert len(re.findall(f"^{re.escape(name)} ", done.stdout, re.MULTILINE)) == 4  # one for each, one over all
    assert re.search(r"^images/s at +64x64 +32x32 +16x16$", done.stdout, re.MULTILINE)


def test_peers_and_the_loader_read_a_copy_of_a_level(tmp_path, monkeypatch, capfd):
    from hires_gan.bench import input as bench

    full, small = pngs(6, 32), pngs(6, 16, seed=1)
    source = write_shards(tmp_path / "set", full, 32, per_shard=4, levels={16: small})
    seen = {}

    def look(contestant, task):
        folder = contestant.measure.args[0]
        if contestant.kind == "limit":
            seen[task.resolution] = (folder, [ShardSet(folder).read(row) for row in range(6)])
        if contestant.kind == "peer":
            seen.setdefault("peers", set()).add(task.resolution)
        return odd_contestants.works(task)

    monkeypatch.setattr(bench, "measured", look)
    bench_input(Request(source, (32, 16, 8), 1, 4, 0.1, ("torchvision",), True))
    assert (seen[32][1], seen[16][1]) == (full, small)
    assert seen[32][0] != source
    assert seen[8] == (source, full)  # where no copy would do, the set itself
    assert seen["peers"] == {32, 16}
    told = capfd.readouterr().err
    assert f"6 images, 16x16, 1 KiB each, from {source}, copied for this; 1 processes each, batches of 4" in told
    assert "at 8 the loader halves images of 16, for want of a level of 8: peers, which do not, are left out" in told


def test_what_fails_is_left_out_if_it_is_a_peer_and_ends_the_command_if_it_is_ours(made, monkeypatch, capfd):
    from hires_gan.bench import input as bench

    def some_fail(kinds, contestant, task):
        return odd_contestants.fails(task) if contestant.kind in kinds else odd_contestants.works(task)

    monkeypatch.setattr(bench, "measured", lambda one, task: some_fail({"peer", "disk"}, one, task))
    request = short(made, seconds=9.0, peers=True, decoders=("torchvision",))
    (result,) = bench_input(request)
    assert request.rounds == 2
    assert [row.kind for row in result.rows] == ["limit", "loader"]
    assert capfd.readouterr().err.count("not measured: the sentence of the contestant") == 7  # each of them once
    monkeypatch.setattr(bench, "measured", lambda one, task: some_fail({"loader"}, one, task))
    with pytest.raises(Failure, match="the sentence of the contestant"):
        bench_input(request)


def test_rounds_of_at_least_four_seconds_where_there_is_time():
    rounds = [Request(None, (64,), 1, seconds=seconds).rounds for seconds in (0.1, 4, 8, 20, 28, 300)]
    assert rounds == [1, 1, 2, 5, MOST_ROUNDS, MOST_ROUNDS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolutions": (48,)}, "--resolution is 48; a power of two from 4 up"),
        ({"resolutions": (16, 2)}, "--resolution is 2; a power of two from 4 up"),
        ({"resolutions": ()}, "--resolution is empty; name a power of two"),
        ({"workers": 0}, "--workers is 0; 1 to 256 are allowed"),
        ({"workers": 257}, "--workers is 257; 1 to 256 are allowed"),
        ({"batch": 0}, "--batch is 0; 1 to 4096 are allowed"),
        ({"seconds": 0.0}, "--seconds is 0; a positive number"),
        ({"seconds": float("nan")}, "--seconds is nan; a positive number"),
        ({"resolutions": (64, 128)}, "--resolution is 128, but the images in .* have 64"),
        ({"decoders": ("pil",)}, "--decoder is 'pil'; torchvision, dali-cpu, dali are allowed"),
    ],
)
def test_wrong_arguments(made, changes, message):
    with pytest.raises(UsageError, match=message):
        bench_input(short(made, **changes))


def test_a_gpu_that_is_asked_for_and_not_there(made, monkeypatch, capfd):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="this machine has no GPU on which DALI could decode"):
        bench_input(short(made, decoders=("dali",)))


def test_a_place_for_the_result_that_is_not_there(made, tmp_path):
    with pytest.raises(Failure, match=r"nowhere/input\.json cannot be written: No such file"):
        bench_input(short(made, out=tmp_path / "nowhere" / "input.json"))


def test_pairs_are_refused(tmp_path):
    folder = write_shards(tmp_path / "set", pngs(2, 8), 8, column="a")
    with pytest.raises(UsageError, match=r"holds a in each sample; plain images are measured"):
        bench_input(short(folder, resolutions=(8,)))


# --- one contestant, one round ---


def test_a_contestant_answers_from_its_own_process():
    found = measured(Contestant("works", "peer", odd_contestants.works), TASK)
    assert found == Measurement(200.0, 0.25, None, 8.0)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (odd_contestants.fails, "it: the sentence of the contestant"),
        (odd_contestants.breaks, "it: ZeroDivisionError: of a library"),
        (odd_contestants.dies, "it: its process ended with exit code 7"),
    ],
)
def test_a_contestant_that_fails_says_why(measure, message):
    before = multiprocessing.active_children()
    with pytest.raises(Failure, match=message):
        measured(Contestant("it", "peer", measure), TASK)
    assert started_since(before) == []


@pytest.mark.parametrize("cycle", [1, 3])
def test_whole_cycles_are_counted_after_what_was_decoded_ahead(cycle, monkeypatch):
    import contextlib

    from hires_gan.bench import input_contestants

    asked, settled = itertools.count(), []
    clock = itertools.count()
    monkeypatch.setattr(input_contestants.time, "perf_counter", lambda: float(next(clock)))

    @contextlib.contextmanager
    def opened(task):
        counts = (next(asked) * 0 + 5 for _ in itertools.count())
        yield Batches(counts, ahead=4, cycle=cycle, settle=lambda: settled.append(True))

    found = take(opened, Task(16, 2, 8, 4.5))
    taken = next(asked) - 5  # one first batch, four ahead
    assert taken % cycle == 0
    assert taken >= 1
    assert len(settled) == 2
    # Every look at the clock is a second: one at the start, one per look at whether the time is up, one at the end.
    assert found.first_batch_seconds == 1.0
    assert found.images_per_second == pytest.approx(5 * taken / (looks(taken, cycle) + 1))


def looks(taken: int, cycle: int) -> int:
    """How often the clock was looked at within the round: after every whole cycle."""
    return taken // cycle


def test_a_family_counts_its_children():
    process = multiprocessing.get_context("fork").Process(target=sum, args=(range(20_000_000),))
    process.start()
    family = Family()
    before = family.cpu()
    assert family.memory() > 10
    while process.is_alive() and family.cpu() - before < 0.05:
        process.join(0.05)
    if process.is_alive():
        assert family.cpu() - before >= 0.05
    latest = family.cpu()
    process.join()
    assert family.cpu() >= latest, "of one that has ended"


# --- what the rounds come to ---


def round_of(**rates: float) -> dict[str, Measurement]:
    return {name: Measurement(rate, 1 / rate, rate / 100, 2 * rate) for name, rate in rates.items()}


CONTESTANTS = [
    Contestant(name, kind, odd_contestants.works)
    for name, kind in {"slow": "limit", "fast": "limit", "ours": "loader", "other": "loader", "disk": "disk"}.items()
] + [Contestant(PIL_TO_UINT8, "peer", odd_contestants.works)]


def known_result() -> Result:
    rounds = [
        round_of(slow=100, fast=200, ours=190, other=50, disk=1000) | {PIL_TO_UINT8: round_of(x=100)["x"]},
        round_of(slow=100, fast=100, ours=98, other=50, disk=1000) | {PIL_TO_UINT8: round_of(x=70)["x"]},
        round_of(slow=100, fast=400, ours=300, other=50, disk=1000) | {PIL_TO_UINT8: round_of(x=150)["x"]},
    ]
    return Result(64, "what was decoded", rows_of(CONTESTANTS, rounds))


def test_medians_shares_and_ratios():
    rows = {row.name: row for row in known_result().rows}
    assert list(rows) == [one.name for one in CONTESTANTS]
    assert rows["fast"].images_per_second == 200
    assert rows["fast"].of_limit == 1.0
    assert rows["ours"].images_per_second == 190
    assert rows["ours"].of_limit == pytest.approx(0.95)  # of 0.95, 0.98 and 0.75, not 190 by 200
    assert rows["ours"].rates == (190, 98, 300)
    assert rows["slow"].of_loader == pytest.approx(100 / 190)
    assert rows["disk"].of_limit is None
    assert rows["ours"].first_batch_seconds == pytest.approx(1.9)
    assert rows["ours"].memory_mib == 380
    assert rows["ours"].cpu_seconds_per_image == pytest.approx(1 / 190)


def test_the_promised_figures_are_those_that_were_found():
    found = figures(known_result())
    assert found["ours"] == {"of_best_decoder": pytest.approx(0.95), "of_pil_to_uint8": pytest.approx(1.9)}
    assert found["other"] == {"of_best_decoder": pytest.approx(0.25), "of_pil_to_uint8": pytest.approx(0.5)}
    lines = table([known_result()])
    assert lines[-2] == (
        "ours: 95.0% of the best decoder (fast, 200.0 images/s); 1.90 times the DataLoader over a folder with PIL to "
        "uint8"
    )
    assert len(lines) == 1 + 6 + 2
    assert lines[0].startswith("64x64 ")


def test_a_loader_is_measured_by_the_decoders_of_its_own_device():
    """A GPU that decodes twenty times as fast makes no loader on the CPU a bad one, and the other way round."""
    devices = {"one": ("limit", "cpu"), "two": ("limit", "cpu"), "gpu": ("limit", "cuda")}
    devices |= {"loader, cpu": ("loader", "cpu"), "loader, gpu": ("loader", "cuda"), PIL_TO_UINT8: ("peer", "cpu")}
    field = [Contestant(name, kind, odd_contestants.works, device) for name, (kind, device) in devices.items()]
    rates = {"one": 80, "two": 100, "gpu": 2000, "loader, cpu": 96, "loader, gpu": 1800, PIL_TO_UINT8: 40}
    rows = rows_of(field, [round_of(**rates)] * 3)
    assert {row.name: row.of_limit for row in rows} == {
        "one": 0.8, "two": 1.0, "gpu": 1.0, "loader, cpu": 0.96, "loader, gpu": 0.9, PIL_TO_UINT8: 0.4
    }  # fmt: skip
    assert {row.name: row.device for row in rows} == {name: device for name, (_, device) in devices.items()}
    lines = table([Result(64, "", rows)])
    assert lines[-2].startswith("loader, cpu: 96.0% of the best decoder (two, 100.0 images/s); 2.40 times")
    assert lines[-1].startswith("loader, gpu: 90.0% of the best decoder (gpu, 2000.0 images/s); 45.00 times")
    rows = rows_of([one for one in field if one.name != "gpu"], [round_of(**rates)])
    assert {row.name: row.of_limit for row in rows}["loader, gpu"] is None
    assert "best decoder" not in table([Result(64, "", rows)])[-1]


def test_dali_on_a_gpu_is_of_another_device(tmp_path):
    devices = {name: {one.device for one in contestants(name, tmp_path)} for name in DECODERS}
    assert devices == {"torchvision": {"cpu"}, "dali-cpu": {"cpu"}, "dali": {"cuda"}}


def test_several_resolutions_end_in_a_table_over_all_of_them():
    known = known_result()
    smaller = replace(known, resolution=32, rows=[row for row in known.rows if row.name != "other"])
    lines = table([known, smaller])
    assert lines[:9] == table([known])
    assert lines[9:-5] == table([smaller])
    assert [line.split() for line in lines[-5:]] == [
        ["images/s", "at", "64x64", "32x32"],
        ["slow", "100.0", "100.0"],
        ["fast", "200.0", "200.0"],
        ["ours", "190.0", "190.0"],
        ["other", "50.0"],
    ]


def test_who_is_missing_in_a_round_is_left_out():
    rows = rows_of(CONTESTANTS, [round_of(fast=2, ours=1), round_of(fast=2, ours=1, disk=7)])
    assert [row.name for row in rows] == ["fast", "ours"]
    assert figures(Result(64, "", rows)) == {"ours": {"of_best_decoder": 0.5}}
    assert rows_of(CONTESTANTS, [round_of(disk=7)])[0].of_loader is None


def test_the_images_are_described(made):
    assert str(made) in describe(ShardSet(made), made=False)
    assert "48 crops" in describe(ShardSet(made), made=True)
