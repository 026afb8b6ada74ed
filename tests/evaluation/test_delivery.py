"""Where numbers go once they are measured: whatever fails, they are kept, and all that failed is said together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny_models import untrained

from hires_gan.checkpoint import Checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import delivery
from hires_gan.evaluation.command import Report, require_all
from hires_gan.evaluation.delivery import deliver, read_report
from hires_gan.evaluation.protocol import checkpoint_record, make_record
from hires_gan.evaluation.results import Measured, Result
from hires_gan.evaluation.tracked import TrackedRun
from hires_gan.inference.loading import find
from hires_gan.tracking.names import AFTERWARDS

AWAY = "the MLflow store at http://mlflow:5000 cannot be used (Connection refused): start the server"
LOGGED = "1 values are in the MLflow run r1"


class Run:
    """Stands for the MLflow run: logs, or fails as it is told to."""

    run_id = "r1"

    def __init__(self, problem: BaseException | None = None) -> None:
        self.problem = problem
        self.logged: list[Result] = []

    def log(self, result: Result, report: str) -> str:
        if self.problem is not None:
            raise self.problem
        assert json.loads(report)["values"] == result.values
        self.logged.append(result)
        return LOGGED


@pytest.fixture
def report(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """What hours have measured, in an empty current folder."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    saved = find(root / "runs" / "progressive")
    record = make_record("fid", 7.25, resolution=16, checkpoint=checkpoint_record(saved.state), reals=70, fakes=20)
    return Report(saved, Result.of([Measured(record)]), {"kid": "no weights"})


def delivered(report: Report, out: Path | None, run: Run | None) -> list[str]:
    where: Any = run
    return deliver(report, out, where)


def files() -> list[str]:
    return sorted(path.name for path in Path().rglob("*") if path.is_file())


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A place where no file can be."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "numbers.json"


def test_all_is_well_and_nothing_is_said_to_fail(report: Report, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run()
    assert delivered(report, Path("numbers.json"), run) == []
    assert (Path("numbers.json").read_text(), run.logged) == (report.as_json(), [report.result])
    assert capfd.readouterr().err == f"written to numbers.json\n{LOGGED}\n"
    assert files() == ["numbers.json"]
    assert delivered(report, None, None) == [] and files() == ["numbers.json"], "nobody asked for a place"


def test_a_file_that_fails_does_not_stop_the_store(report: Report, blocked: Path) -> None:
    run = Run()
    failures = delivered(report, blocked, run)
    assert run.logged == [report.result]
    assert failures == [
        f"cannot write {blocked}: File exists; make room, or choose a folder that can be written",
        "all numbers are in the MLflow run r1",
    ]
    assert files() == []


def test_a_store_that_fails_does_not_take_the_file_away(report: Report) -> None:
    failures = delivered(report, Path("numbers.json"), Run(Failure(AWAY)))
    assert failures == [AWAY, "all numbers are in numbers.json, from where `--track --from` logs them"]
    assert files() == ["numbers.json"]


@pytest.mark.parametrize("with_file", [False, True])
def test_what_no_place_takes_is_kept_in_the_current_folder(report: Report, blocked: Path, with_file: bool) -> None:
    failures = delivered(report, blocked if with_file else None, Run(UsageError(AWAY)))
    name = "evaluate-progressive-000000004000.json"
    last = f"all numbers are in {Path.cwd() / name}, from where `--track --from` logs them"
    assert (len(failures), failures[-2:]) == (2 + with_file, [AWAY, last])
    assert Path(name).read_text() == report.as_json()
    with pytest.raises(Failure) as told:
        require_all(report, failures)
    assert str(told.value).endswith(
        f"{AWAY}; besides, {last}; besides, kid could not be computed, for what is said above"
    )
    assert not isinstance(told.value, UsageError), "what was asked for was right"
    assert with_file == ("cannot write" in str(told.value))
    delivered(report, None, Run(Failure(AWAY)))
    assert files() == ["evaluate-progressive-000000004000-2.json", name], "none is overwritten"


def test_a_file_alone_that_fails_is_made_up_for(report: Report, blocked: Path) -> None:
    failures = delivered(report, blocked, None)
    assert failures[1] == f"all numbers are in {Path.cwd() / 'evaluate-progressive-000000004000.json'}"
    assert len(files()) == 1


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_who_does_not_wait_keeps_the_numbers(
    problem: BaseException, report: Report, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(problem)):
        delivered(report, None, Run(problem))
    assert files() == ["evaluate-progressive-000000004000.json"]
    assert f"all numbers are in {Path.cwd()}/evaluate-progressive" in capfd.readouterr().err


def test_where_there_is_no_place_at_all_the_numbers_that_were_shown_are_pointed_at(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise Failure(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(delivery, "write_whole", full)
    failures = delivered(report, None, Run(Failure(AWAY)))
    assert failures[-1].startswith("nor are they kept here: cannot write ") and failures[-1].endswith("above alone")


def test_the_name_is_that_of_the_run_or_its_number_in_mlflow(report: Report) -> None:
    state = report.saved.state | {"configuration": {"recipe": {}}, "mlflow_run_id": "5f"}
    imported = Report(Checkpoint(report.saved.folder, state), report.result, {})
    delivered(imported, None, Run(Failure(AWAY)))
    assert files() == ["evaluate-5f-000000004000.json"]


# --- numbers that are there already -----------------------------------------------------------------------------------


def test_the_name_in_a_checkpoint_leads_to_no_other_folder(report: Report, tmp_path: Path) -> None:
    (tmp_path / "evaluate-..").mkdir()
    report.saved.state["configuration"].setdefault("run", {})["name"] = "../../elsewhere"
    delivered(report, None, Run(Failure("it is away")))
    assert [name for name in files() if name.endswith(".json")] == ["evaluate-elsewhere-000000004000.json"]


def test_a_file_is_read_as_it_was_written(report: Report) -> None:
    delivered(report, Path("numbers.json"), None)
    assert read_report(Path("numbers.json"), report.saved) == Report(report.saved, report.result, {})


def test_a_file_that_is_logged_and_fails_again_is_not_written_again(report: Report) -> None:
    run: Any = Run(Failure(AWAY))
    failures = deliver(report, None, run, Path("numbers.json"))
    assert failures == [AWAY, "all numbers are in numbers.json, from where `--track --from` logs them"]
    assert files() == []


def test_a_store_that_breaks_meanwhile_has_the_numbers_once_it_is_mended(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    client = MlflowClient(f"sqlite:///{store}")
    run_id = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))).info.run_id
    saved = find(untrained("progressive", tmp_path, run_id=run_id))
    record = make_record("fid", 7.25, resolution=16, checkpoint=checkpoint_record(saved.state), reals=70, fakes=20)
    measured = Report(saved, Result.of([Measured(record)]), {})
    run, whole = TrackedRun(saved), store.read_bytes()
    store.write_bytes(b"no database" * 1000)
    failures = deliver(measured, None, run)
    (name,) = files()
    assert len(failures) == 2 and str(store) in failures[0], failures
    store.write_bytes(whole)
    assert deliver(read_report(Path(name), saved), None, TrackedRun(saved), Path(name)) == []
    points = client.get_metric_history(run_id, f"{AFTERWARDS}fid")
    assert [(point.step, point.value) for point in points] == [(4000, 7.25)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"which cannot be read \(No such file or directory\); name another file"),
        ("[", "which is no file of numbers that this version can read; name one that --out wrote"),
        ("[1, 2]", "which is no file of numbers"),
        ('{"values": {}}', "which is no file of numbers"),
        ({"records": [{"metric": "of a later version"}]}, "which is no file of numbers"),
        ({"values": {"fid": "seven"}}, "which is no file of numbers"),
        ({"values": {}, "records": []}, "which holds no numbers; name another file"),
    ],
)
def test_what_is_no_file_of_numbers_is_refused(text: Any, words: str, report: Report) -> None:
    source = Path("numbers.json")
    if isinstance(text, dict):
        text = json.dumps(json.loads(report.as_json()) | text)
    if text is not None:
        source.write_text(text)
    with pytest.raises(UsageError, match=f"^--from is numbers.json, {words}"):
        read_report(source, report.saved)


def test_numbers_of_another_checkpoint_are_refused(report: Report, root: Path) -> None:
    delivered(report, Path("numbers.json"), None)
    other = find(root / "runs" / "stylegan2")
    origin = re.escape(f"{report.saved.folder}, at nimg 4000, and not of {other.folder}; name that checkpoint")
    with pytest.raises(UsageError, match=f"^--from is numbers.json, whose numbers are of {origin}"):
        read_report(Path("numbers.json"), other)
