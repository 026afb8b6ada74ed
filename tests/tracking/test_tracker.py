"""The tracker and the model flavour against a real SQLite store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hires_gan.errors import Failure, UsageError
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.flavour import fetch_model
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker

PARAMETERS = {"recipe": {"name": "progressive", "generator": {"latent_size": 512}}, "note": "", "batch": {4: 16}}
Start = Callable[..., Tracker]

CLIENT = """
import sys, json
from pathlib import Path
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker
from hires_gan.tracking import journal
import numpy as np
folder, uri, killed_while = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def killed(self, batch, before=journal.Journal.mark_sent):
    import os, signal
    if killed_while in batch.entries[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    before(self, batch)
journal.Journal.mark_sent = killed
config = folder / "config.yaml"; folder.mkdir(exist_ok=True); config.write_text("a: 1")
settings = TrackingSettings(uri=uri or None)
tracker = Tracker.start(settings, folder, folder.parent, folder.name, None, {"a": 1}, {}, config)
for nimg in range(1, 6):
    tracker.log_metrics(nimg * 1000, {"loss": nimg / 2})
tracker.log_image("samples/grid", 5000, np.zeros((8, 8, 3), np.uint8))
tracker.finish("FINISHED", 120)
"""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite store that the tests of this file share: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture()
def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store, store)


@pytest.fixture()
def start(store: str, tmp_path: Path) -> Start:
    """Starts a tracker for the run folder of this test."""

    def begin(
        run_id: str | None = None,
        parameters: Mapping[str, object] = PARAMETERS,
        experiment: str = "tests",
        name: str = "run",
    ) -> Tracker:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = folder / "config.yaml"
        config.write_text("tracking: {uri: 'http://ann:s3cret@host'}\n")
        settings = TrackingSettings(uri=store, experiment=experiment)
        return Tracker.start(settings, folder, tmp_path, name, run_id, parameters, {"family": "test"}, config)

    return begin


def steps(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def test_run_holds_all_that_was_logged(start: Start, client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = start()
    for nimg in (1000, 2000):
        tracker.log_metrics(nimg, {"loss/generator": nimg / 10})
    tracker.log_metrics(2000, {"swd": 3.0})
    tracker.finish("FINISHED", 120)
    run = client.get_run(tracker.run_id)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {
        "recipe.name": "progressive",
        "recipe.generator.latent_size": "512",
        "note": "",
        "batch.4": "16",
    }
    assert run.data.tags["family"] == "test" and "version.torch" in run.data.tags
    assert steps(client, tracker.run_id, "loss/generator") == [(1000, 100.0), (2000, 200.0)]
    assert steps(client, tracker.run_id, "kimg") == [(1000, 1.0), (2000, 2.0)]
    assert steps(client, tracker.run_id, "swd") == [(2000, 3.0)]
    config = Path(client.download_artifacts(tracker.run_id, "config.yaml")).read_text()
    assert "s3cret" not in config and "http://***@host" in config
    assert capfd.readouterr() == ("", "")


def test_resumed_run_goes_on_without_repeating(start: Start, client: Any) -> None:
    first = start()
    for nimg in (1000, 2000, 3000):
        first.log_metrics(nimg, {"loss": 1.0})
    first.log_image("grid", 2000, np.zeros((4, 4, 3), np.uint8))
    first.finish("KILLED", 120)
    assert client.get_run(first.run_id).info.status == "KILLED"
    second = start(parameters={**PARAMETERS, "note": "changed", "new": 1})
    assert client.get_run(first.run_id).info.status == "RUNNING"
    for nimg in (2000, 3000, 4000):
        second.log_metrics(nimg, {"loss": 2.0})
    second.log_image("grid", 2000, np.ones((4, 4, 3), np.uint8))
    second.finish("FINISHED", 120)
    assert second.run_id == first.run_id
    assert steps(client, first.run_id, "loss") == [(1000, 1.0), (2000, 1.0), (3000, 1.0), (4000, 2.0)]
    assert len(client.list_artifacts(first.run_id, "images")) == 2
    run = client.get_run(first.run_id)
    assert run.data.params["note"] == "" and run.data.params["new"] == "1"
    assert run.data.tags["changed.note"] == "changed"


def test_run_of_a_checkpoint_goes_on_without_the_journal(start: Start, client: Any) -> None:
    first = start(name="here")
    for nimg in (1000, 2000):
        first.log_metrics(nimg, {"loss": 1.0})
    first.finish("FINISHED", 120)
    second = start(run_id=first.run_id, name="there")
    for nimg in (2000, 3000):
        second.log_metrics(nimg, {"loss": 2.0})
    second.finish("FINISHED", 120)
    assert second.run_id == first.run_id
    assert steps(client, first.run_id, "loss") == [(1000, 1.0), (2000, 1.0), (3000, 2.0)]


def test_deleted_run_is_replaced_with_all_points(start: Start, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = start()
    first.log_metrics(1000, {"loss": 1.0})
    first.finish("FINISHED", 120)
    client.delete_run(first.run_id)
    second = start(run_id="0" * 32)
    second.log_metrics(2000, {"loss": 2.0})
    second.finish("FINISHED", 120)
    assert second.run_id != first.run_id
    assert steps(client, second.run_id, "loss") == [(1000, 1.0), (2000, 2.0)]
    said = capsys.readouterr().err
    assert f"{first.run_id} is not in the store" in said and "any more" in said and "1 point logged so far" in said


def test_not_finite_values_are_counted_and_said(start: Start, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = start()
    tracker.log_metrics(1000, {"loss": float("inf"), "grad": float("nan"), "good": 1.0})
    tracker.log_metrics(2000, {"loss": float("-inf")})
    tracker.finish("FINISHED", 120)
    assert [str(value) for _, value in steps(client, tracker.run_id, "loss")] == ["nan", "nan"]
    assert steps(client, tracker.run_id, "not_finite") == [(1000, 2.0), (2000, 1.0)]
    said = capsys.readouterr().err
    assert said.count("loss is") == 1 and "loss is inf at kimg 1" in said and "grad is nan" in said


def test_images_have_the_names_that_mlflow_gives(start: Start, client: Any) -> None:
    tracker = start()
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    tracker.log_image("samples/grid", 2000, image)
    tracker.log_image("wide", 2000, np.full((16, 4097, 3), 7, np.uint8))
    tracker.finish("FINISHED", 120)
    ours = {file.path for file in client.list_artifacts(tracker.run_id, "images")}
    client.log_image(tracker.run_id, image, key="samples/grid", step=2000)
    theirs = {file.path for file in client.list_artifacts(tracker.run_id, "images")} - ours

    def forms(paths: set[str]) -> set[str]:
        """Names without time and random part; a slider entry is a PNG and a small WebP."""
        parts = [path.split("+") for path in paths if "samples~grid" in path]
        return {"+".join([*part[:4], *(tail[36:] for tail in part[5:6]), *part[6:]]) for part in parts}

    assert forms(ours) == forms(theirs) and len(forms(ours)) == 2
    assert client.get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"
    png = next(path for path in ours if "samples~grid" in path and path.endswith(".png"))
    assert np.array_equal(np.asarray(Image.open(client.download_artifacts(tracker.run_id, png))), image)
    wide = next(path for path in ours if "wide" in path and path.endswith(".png"))
    assert Image.open(client.download_artifacts(tracker.run_id, wide)).size == (2049, 8)


def test_system_metrics_go_on_after_a_resume(start: Start, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    run_id, key = "", "system/cpu_utilization_percentage"
    for life in (1, 2):
        tracker = start()
        run_id = tracker.run_id
        tracker.log_metrics(life, {"loss": 1.0})
        deadline = time.monotonic() + 120
        while len(steps(client, run_id, key)) < life:
            assert time.monotonic() < deadline, "the monitor of the machine says nothing"
            time.sleep(0.1)
        tracker.finish("KILLED", 120)
    found = [step for step, _ in steps(client, run_id, key)]
    assert found == list(range(len(found))) and len(found) >= 2


@pytest.mark.parametrize("killed_while", ["metrics", pytest.param("image", marks=pytest.mark.slow)])
def test_kill_between_sending_and_recording(killed_while: str, store: str, tmp_path: Path, client: Any) -> None:
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "run"), store]
    assert subprocess.run([*command, killed_while], timeout=240).returncode == -signal.SIGKILL
    run_id = json.loads((tmp_path / "run/tracking/run.json").read_text())["run_id"]
    assert len(steps(client, run_id, "loss")) >= 1  # it did arrive
    # This store takes equal points at equal times for one; others do not, so the sender itself has to ask.
    journal = tmp_path / "run/tracking/journal.jsonl"
    journal.write_text(journal.read_text().replace('"time": 1', '"time": 2'))
    second = subprocess.run([*command, "nothing"], timeout=240, capture_output=True, text=True)
    assert (second.returncode, second.stderr) == (0, "")
    assert steps(client, run_id, "loss") == [(nimg * 1000, nimg / 2) for nimg in range(1, 6)]
    assert steps(client, run_id, "kimg") == [(nimg * 1000, float(nimg)) for nimg in range(1, 6)]
    assert len(client.list_artifacts(run_id, "images")) == 2


def test_two_runs_start_at_once_on_a_fresh_store(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    both = [
        subprocess.Popen([sys.executable, "-c", CLIENT, str(tmp_path / name), "", "nothing"], env=environment)
        for name in ("one", "two")
    ]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("hires-gan").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["one", "two"]
    assert all(len(steps(client, run.info.run_id, "loss")) == 5 for run in found)
    assert all(run.info.artifact_uri.startswith(str(tmp_path / "mlartifacts")) for run in found)


def test_missing_artifact_is_said_and_the_rest_goes_on(
    start: Start, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start()
    tracker.log_artifact(tmp_path / "gone.txt")
    (tmp_path / "here.txt").write_text("x")
    tracker.log_artifact(tmp_path / "here.txt", "notes")
    tracker.finish("FINISHED", 120)
    assert [file.path for file in client.list_artifacts(tracker.run_id, "notes")] == ["notes/here.txt"]
    assert "gone.txt: it is not on this disk any more" in capsys.readouterr().err


def test_deleted_experiment_is_named(start: Start, client: Any) -> None:
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(Failure, match=r"'deleted' is deleted .* restore it"):
        start(experiment="deleted")


def test_store_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(Failure, match="cannot be used"):
        Tracker.start(settings, tmp_path, tmp_path, "run", None, {}, {}, tmp_path / "file")


def checkpoint(folder: Path) -> Path:
    place = folder / "000000004000"
    place.mkdir()
    (place / "state.json").write_text("{}")
    (place / "ema.safetensors").write_bytes(b"weights")
    return place


def test_model_is_logged_registered_and_fetched(
    start: Start, client: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = ModelCard(recipe="progressive", resolution=64, format_version=1, nimg=4000, register_as="faces")
    tracker = start()
    place = checkpoint(tmp_path)
    tracker.log_model(place, card)
    tracker.log_model(place, card)  # as after a failure in the middle
    tracker.finish("FINISHED", 120)
    outputs = client.get_run(tracker.run_id).outputs.model_outputs
    assert len(outputs) == 1
    model = client.get_logged_model(outputs[0].model_id)
    assert (str(model.status), model.name, model.source_run_id) == ("READY", "generator-4000", tracker.run_id)
    versions = client.search_model_versions("name = 'faces'")
    assert [(version.version, version.run_id) for version in versions] == [(1, tracker.run_id)]
    client.set_registered_model_alias("faces", "best", "1")
    for uri in ("models:/faces/1", "models:/faces@best", f"models:/{model.model_id}"):
        fetched = fetch_model(uri, store)
        assert fetched.name == place.name
        assert {file.name: file.read_bytes() for file in fetched.iterdir()} == {
            file.name: file.read_bytes() for file in place.iterdir()
        }
    files = [file.name for file in (fetched.parent).rglob("*") if file.is_file()]
    assert sorted(files) == ["MLmodel", "ema.safetensors", "state.json"]
    assert fetch_model(f"runs:/{tracker.run_id}/generator-4000", store).name == place.name


def test_models_that_cannot_be_fetched(
    start: Start, client: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for uri, sentence in {
        "models:/nobody/1": "has no registered model nobody, but .*; give another one, or set MLFLOW_TRACKING_URI to",
        "models:/nobody@best": "has no registered model nobody",
        "models:/nobody": "has no logged model nobody; write models:/NAME/VERSION for a registered one",
        "models:/a/b/c": "is no model: write",
        "runs:/" + "0" * 32 + "/x": "has no run 0{32}; give another one, or set MLFLOW_TRACKING_URI to the store that",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            fetch_model(uri, store)
    tracker = start()
    tracker.finish("FINISHED", 120)
    for text, sentence in {
        "flavors: {sklearn: {}}": "names no 'hires_gan' flavour",
        "flavors: {hires_gan: {checkpoint: ..}}": "is damaged",
        "!!python/object/apply:os.getpid []": "names no 'hires_gan' flavour",
    }.items():
        client.log_text(tracker.run_id, text, "other/MLmodel")
        with pytest.raises(Failure, match=sentence):
            fetch_model(f"runs:/{tracker.run_id}/other", store)
    with pytest.raises(UsageError, match="no MLflow store at"):
        fetch_model("models:/faces/1", f"sqlite:///{tmp_path}/none.db")


def test_logging_costs_the_step_next_to_nothing(start: Start) -> None:
    tracker = start()
    metrics = {f"loss/{index}": 0.5 for index in range(20)}
    times = []
    for nimg in range(1, 501):
        begin = time.perf_counter()
        tracker.log_metrics(nimg * 1000, metrics)
        times.append(time.perf_counter() - begin)
    tracker.finish("FINISHED", 120)
    assert sorted(times)[250] < 0.01
