"""How metrics were taken, as tags of a run: a run-length coding, whatever is killed, away or repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from comparison_store import RecordedRuns, sqlite
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from test_tracking_server import steps, wait_for

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.tracking import sender
from hires_gan.tracking.parameters import TAG_LENGTH
from hires_gan.tracking.protocols import (
    Entry,
    History,
    entered,
    fingerprint,
    histories_of,
    in_force,
    read_history,
    record,
    write_history,
)
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker

FEW, MANY = {"fakes": "16"}, {"fakes": "32", "reals": "64"}

RUN = """
import json, os, signal, sys
from pathlib import Path
from hires_gan.tracking import protocols, sender
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker
folder, uri, killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def end(*_): os.kill(os.getpid(), signal.SIGKILL)
if killed == "before the tag": sender.record = end
if killed == "behind the tag":
    def record(client, run_id, taken, before=protocols.record):
        before(client, run_id, taken)
        end()
    sender.record = record
if killed == "behind the numbers":
    from hires_gan.tracking.journal import Journal
    Journal.mark_sent = end
folder.mkdir(exist_ok=True)
(folder / "config.yaml").write_text("a: 1")
tracker = Tracker.start(
    TrackingSettings(uri=uri), folder, folder.parent, folder.name, None, {"a": 1}, {}, folder / "config.yaml"
)
for nimg, fakes in json.loads(sys.argv[4]):
    tracker.log_metrics(nimg, {"evaluation/fid": float(nimg), "loss": 1.0}, {"evaluation/fid": {"fakes": fakes}})
tracker.finish("FINISHED", 60)
"""


def entries(*content: tuple[int, Mapping[str, str]]) -> History:
    return tuple(Entry(nimg, protocol) for nimg, protocol in content)


def start(uri: str, folder: Path) -> Tracker:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("a: 1")
    return Tracker.start(
        TrackingSettings(uri=uri), folder, folder.parent, folder.name, None, {}, {}, folder / "config.yaml"
    )


def kept(client: Any, run_id: str) -> dict[str, History]:
    return histories_of(client.get_run(run_id).data.tags)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordedRuns:
    return RecordedRuns(sqlite(tmp_path_factory.mktemp("store")))


# --- the history by itself --------------------------------------------------------------------------------------------

ways = st.sampled_from([FEW, MANY, {"fakes": "16", "reals": "64"}, {}])
logged = st.dictionaries(st.integers(0, 10_000), ways, max_size=30).map(lambda found: sorted(found.items()))


def coded(points: list[tuple[int, Mapping[str, str]]]) -> History:
    """Run-length coding, as itertools has it."""
    return tuple(Entry(next(run)[0], way) for way, run in groupby(points, key=lambda point: point[1]))


@given(logged, st.data())
def test_the_history_is_the_run_length_coding_of_what_was_logged(points: Any, data: st.DataObject) -> None:
    history: History = ()
    for place, (nimg, protocol) in enumerate(points):
        history = entered(history, nimg, protocol)
        again = data.draw(st.integers(0, place))  # a sender that begins anew from there
        for repeated in points[again : place + 1]:
            history = entered(history, *repeated)
    assert history == coded(points)
    assert all(in_force(history, nimg) == protocol for nimg, protocol in points)
    assert read_history(write_history(history)) == history


@given(logged, st.integers(0, 10_000), ways)
def test_the_later_of_two_at_one_place_replaces_the_other(points: Any, nimg: int, protocol: Any) -> None:
    before = coded([point for point in points if point[0] <= nimg])
    history = entered(before, nimg, protocol)
    assert in_force(history, nimg) == protocol
    assert len({entry.nimg for entry in history}) == len(history)
    assert all(one.protocol != other.protocol for one, other in pairwise(history))


def test_a_number_of_an_earlier_place_moves_the_beginning() -> None:
    assert entered(entries((5000, FEW)), 1000, FEW) == entries((1000, FEW))
    assert entered((), 0, FEW) == entries((0, FEW))


def test_a_tag_has_room_for_the_latest_entries() -> None:
    long = [{"fakes": str(number), "filler": "x" * 1000} for number in range(20)]
    history = entries(*((number * 1000, protocol) for number, protocol in enumerate(long)))
    text = write_history(history)
    assert len(text) <= TAG_LENGTH
    found = read_history(text)
    assert found == history[-len(found) :] and len(found) == 7
    assert in_force(found, 1000) is None, "nothing says it any more"


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "[", "7", "null", '"x"', "[7]", "[[]]", "{}x", '[{"fakes": "3"}]', "[" * 7000),
        *('[{"nimg": true}]', '[{"nimg": 0, "fakes": 3}]', '[{"nimg": 5}, {"nimg": 5}]', '[{"nimg": 5}, {"nimg": 4}]'),
    ],
)
def test_what_is_no_history_says_nothing(text: str | None) -> None:
    assert read_history(text) == ()
    assert histories_of({"protocol.evaluation/fid": text or "", "host": "x"}) == {}


def test_equal_protocols_have_equal_fingerprints() -> None:
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})
    assert len({fingerprint(one) for one in (FEW, MANY, {}, {"fakes": "16 "})}) == 4
    # Names in the store and in the registry are made of it: it may not change.
    assert fingerprint(FEW) == sha256(b'{"fakes":"16"}').hexdigest()


# --- in a store -------------------------------------------------------------------------------------------------------


def test_a_broken_tag_is_begun_anew_and_the_others_stay(store: RecordedRuns) -> None:
    run_id = store.add(
        "broken", {}, tags={"protocol.evaluation/fid": "[", "protocol.evaluation/swd": "[]", "other": "x"}
    )
    record(store.client, run_id, [("evaluation/fid", 2000, FEW)])
    assert kept(store.client, run_id) == {"evaluation/fid": entries((2000, FEW))}
    assert store.client.get_run(run_id).data.tags["other"] == "x"


def test_only_what_is_fresh_has_its_protocol_logged(store: RecordedRuns, tmp_path: Path) -> None:
    tracker = start(store.uri, tmp_path / "run")
    for protocol in (FEW, MANY):  # the second is a repeated step, and another metric at that step
        values = {"evaluation/fid": 1.0} | ({"evaluation/swd": 2.0} if protocol == MANY else {})
        tracker.log_metrics(1000, values, dict.fromkeys((*values, "evaluation/none"), protocol))
    tracker.log_metrics(2000, {"loss": 1.0})
    tracker.finish("FINISHED", 60)
    lines = [json.loads(line) for line in (tmp_path / "run/tracking/journal.jsonl").read_text().splitlines()]
    assert [line.get("protocols") for line in lines] == [{"evaluation/fid": FEW}, {"evaluation/swd": MANY}, None]
    assert kept(store.client, tracker.run_id) == {
        "evaluation/fid": entries((1000, FEW)),
        "evaluation/swd": entries((1000, MANY)),
    }


def test_another_store_that_takes_the_place_gets_it_all(store: RecordedRuns, tmp_path: Path) -> None:
    first = start(store.uri, tmp_path / "run")
    for nimg, protocol in ((1000, FEW), (2000, MANY), (3000, MANY), (4000, FEW)):
        first.log_metrics(nimg, {"evaluation/fid": 1.0}, {"evaluation/fid": protocol})
    first.finish("FINISHED", 60)
    wanted = {"evaluation/fid": entries((1000, FEW), (2000, MANY), (4000, FEW))}
    assert kept(store.client, first.run_id) == wanted
    store.client.delete_run(first.run_id)
    second = start(store.uri, tmp_path / "run")
    second.finish("FINISHED", 60)
    assert second.run_id != first.run_id and kept(store.client, second.run_id) == wanted


def test_a_store_that_refuses_the_tag_has_the_numbers(
    store: RecordedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    def refuse(*_: object) -> None:
        raise MlflowException("no such tags here", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(sender, "record", refuse)
    tracker = start(store.uri, tmp_path / "run")
    for nimg in (1000, 2000):
        tracker.log_metrics(nimg, {"evaluation/fid": 1.0}, {"evaluation/fid": FEW})
        wait_for(lambda: tracker.waiting == 0)
    tracker.finish("FINISHED", 60)
    assert steps(store.client, tracker.run_id, "evaluation/fid") == [(1000, 1.0), (2000, 1.0)]
    assert capfd.readouterr().err.count("refuses to keep how metrics are measured: no such tags here") == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["before the tag", "behind the tag", "behind the numbers"])
def test_a_kill_anywhere_changes_nothing(killed: str, store: RecordedRuns, tmp_path: Path) -> None:
    points = [[1000, "16"], [2000, "16"], [3000, "32"], [4000, "16"]]
    command = [sys.executable, "-c", RUN, str(tmp_path / "run"), store.uri]
    done = subprocess.run([*command, killed, json.dumps(points[:3])], timeout=180)
    assert done.returncode == -signal.SIGKILL
    run_id = json.loads((tmp_path / "run/tracking/run.json").read_text())["run_id"]
    assert ("evaluation/fid" in kept(store.client, run_id)) == (killed != "before the tag")
    again = subprocess.run([*command, "nowhere", json.dumps(points)], timeout=180, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
    assert kept(store.client, run_id) == {
        "evaluation/fid": entries((1000, {"fakes": "16"}), (3000, {"fakes": "32"}), (4000, {"fakes": "16"}))
    }
    assert steps(store.client, run_id, "evaluation/fid") == [(nimg, float(nimg)) for nimg in range(1000, 5000, 1000)]


@pytest.mark.slow
def test_a_server_that_was_away_knows_it_all_afterwards(server: LocalServer, tmp_path: Path) -> None:
    client = MlflowClient(server.uri, server.uri)
    tracker = start(server.uri, tmp_path / "run")
    points = [(1000, FEW), (2000, MANY), (3000, FEW), (4000, FEW)]
    tracker.log_metrics(1000, {"evaluation/fid": 1.0}, {"evaluation/fid": FEW})
    wait_for(lambda: bool(kept(client, tracker.run_id)))
    server.kill()
    for nimg, protocol in points[1:]:
        tracker.log_metrics(nimg, {"evaluation/fid": 1.0}, {"evaluation/fid": protocol})
    server.start()
    tracker.finish("FINISHED", 60)
    assert kept(client, tracker.run_id) == {"evaluation/fid": entries((1000, FEW), (2000, MANY), (3000, FEW))}
    assert [step for step, _ in steps(client, tracker.run_id, "evaluation/fid")] == [1000, 2000, 3000, 4000]
