"""`hires-gan compare` as a user runs it: processes, stores of all kinds, many runs."""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from comparison_store import TRAINED, RecordedRuns, plain, sqlite

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.errors import Failure, UsageError
from hires_gan.tracking.comparison import command, histories
from hires_gan.tracking.comparison.command import compare


def hires_gan(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hires_gan", *map(str, arguments)]
    own = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, env=own)


def test_folders_of_different_stores_and_a_run_of_a_third(tmp_path):
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        store = RecordedRuns(sqlite(tmp_path / name))
        run_id = store.add(f"run-{name}", TRAINED, {"key": name})
        folder = tmp_path / name / "run"
        (folder / "tracking").mkdir(parents=True)
        (folder / "tracking" / "run.json").write_text(json.dumps({"run_id": run_id, "uri": store.uri}))
        folders.append(folder)
    (tmp_path / "runs").mkdir()
    RecordedRuns(sqlite(tmp_path / "runs")).add("named", {})
    done = hires_gan("compare", *folders, "named", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "run-a", "run-b", "named"]
    assert lines[-2:] == ["comparison.html", "comparison.png"]
    assert (tmp_path / "comparison.html").is_file() and (tmp_path / "comparison.png").is_file()
    assert "named: no metrics were logged" in lines


def test_exit_codes_and_sentences(tmp_path):
    store = RecordedRuns(sqlite(tmp_path))
    run_id = store.add("gone")
    store.client.delete_run(run_id)
    done = hires_gan("compare", run_id, "--uri", store.uri, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: RUN {run_id} is deleted in MLflow") and "Traceback" not in done.stderr
    done = hires_gan("compare", "nothing", cwd=tmp_path, MLFLOW_TRACKING_URI=store.uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: RUN is nothing, which is neither a folder nor a run of MLflow")
    assert not list(tmp_path.glob("comparison.*")), "nothing is written"
    assert hires_gan("compare", cwd=tmp_path).returncode == 2
    (tmp_path / "file").write_text("")
    done = hires_gan("compare", "nothing", "--out", "file/x", cwd=tmp_path, MLFLOW_TRACKING_URI=store.uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --out is file/x, where nothing can be written (Not a directory); make room, or give another folder\n"
    ), "before anything is looked up"


def test_a_place_where_nothing_can_be_written_is_found_before_the_stores_are_read(tmp_path, monkeypatch):
    """Such as a folder that is there, on a disk that is mounted read-only."""

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageError, match=r"--out is .*, where nothing can be written \(Read-only file system\); make"):
        list(compare(["nothing"], tmp_path, "http://127.0.0.1:9", None, set()))


def test_the_table_is_shown_where_the_files_cannot_be_written(tmp_path, monkeypatch):
    store = RecordedRuns(sqlite(tmp_path))
    store.add("run")

    def full(path, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(command, "write_atomically", full)
    lines = []
    with pytest.raises(
        Failure, match=r"cannot write .*/comparison\.html \(No space left on device\); make room, or give"
    ):
        for line in compare(["run"], tmp_path / "out", store.uri, None, set()):
            lines.append(line)
    assert [line.split()[0] for line in lines[:2]] == ["run", "run"]


def fill(path: Path, ids: list[str], keys: list[str], points: int) -> None:
    """Log many points at once, as MLflow's own client would have in minutes."""
    rows = [
        (key, math.exp(-point / 300) + place, 1_700_000_000_000 + point, run_id, point * 1000, 0)
        for place, run_id in enumerate(ids)
        for key in keys
        for point in range(1, points + 1)
    ]
    with sqlite3.connect(path) as database:
        columns = "(key, value, timestamp, run_uuid, step, is_nan)"
        for table, chosen in (("metrics", rows), ("latest_metrics", [row for row in rows if row[4] == points * 1000])):
            database.executemany(f"insert into {table} {columns} values (?, ?, ?, ?, ?, ?)", chosen)


@pytest.mark.slow
def test_twenty_runs_of_a_thousand_points(tmp_path):
    """Thirty metrics each, of which those that are drawn are read: 600,000 points lie in the store."""
    store = RecordedRuns(sqlite(tmp_path))
    ids = [store.add(f"run-{number:02}", {}, {"key": str(number)}, {"gpu.count": "0"}) for number in range(20)]
    drawn = ["evaluation/swd", "loss/generator", "loss/discriminator", "loss/r1", "statistics/score"]
    speeds = ["speed/images_per_second", "speed/data_wait", "speed/seconds_per_kimg"]
    fill(tmp_path / "mlflow.db", ids, drawn + speeds + [f"system/{number}" for number in range(22)], 1000)
    for run_id in ids:
        store.add_grid(run_id, 1_000_000, plain("red", 512))
    done = hires_gan("compare", *ids, "--uri", store.uri, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for number, line in enumerate(lines[1:21]):
        value = f"{math.exp(-1000 / 300) + number:.4g}"
        assert line.split() == [f"run-{number:02}", "finished", "1000", value, value, "(1000)", *line.split()[6:]]
    assert (tmp_path / "comparison.html").read_text().count("<img") == len(drawn) + 2 + 20


@pytest.mark.slow
def test_a_server_gives_what_its_store_gives(tmp_path, monkeypatch):
    with LocalServer(tmp_path) as server:
        remote = RecordedRuns(server.uri)
        run_id = remote.add("remote", {**TRAINED, "loss/bad": {1000: 1.0, 2000: math.nan}}, grids={2000: plain("red")})
        wanted = {key: [run_id] for key in (*TRAINED, "loss/bad")}
        through = histories.read_histories(remote.client, server.uri, wanted)
        direct = histories.read_histories(None, f"sqlite:///{tmp_path}/mlflow.db", wanted)
        assert through.keys() == direct.keys() and len(through) == len(wanted)
        for name, curve in direct.items():
            assert through[name].steps.tolist() == curve.steps.tolist()
            assert str(through[name].values.tolist()) == str(curve.values.tolist()), "NaN included"
        monkeypatch.setattr(histories, "SERVER_POINTS", 2)
        sampled = histories.read_histories(remote.client, server.uri, {"loss/generator": [run_id]})
        assert sampled[run_id, "loss/generator"].steps.tolist() == [1000, 3000]
        assert sampled[run_id, "loss/generator"].sampled
        monkeypatch.setattr(histories, "_BULK", "/api/2.0/mlflow/no-such-request")
        one_by_one = histories.read_histories(remote.client, server.uri, {"loss/generator": [run_id]})
        assert one_by_one[run_id, "loss/generator"].values.tolist() == [1.0, 2.0, 3.0]
        done = hires_gan("compare", "remote", run_id, cwd=tmp_path, MLFLOW_TRACKING_URI=server.uri)
    assert done.returncode == 0, done.stderr
    assert f"{run_id} is the run that remote names: it is shown once" in done.stderr
    assert "Samples of remote at 2 kimg" in (tmp_path / "comparison.html").read_text()
    done = hires_gan("compare", run_id, "--uri", server.uri, cwd=tmp_path)
    assert done.returncode == 1 and "does not answer" in done.stderr and "Traceback" not in done.stderr
