"""Registered generators: what a finished run leaves in a server's registry, and what can be made of it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from served_runs import NAME, ServedRuns, hires_gan

import hires_gan as package
from hires_gan import checkpoint
from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.errors import Failure
from hires_gan.tracking import flavour
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture
def client(served: ServedRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return MlflowClient(served.uri, served.uri)


def versions(client: Any, name: str = NAME) -> list[Any]:
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))


def points(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def logged_model(client: Any, version: Any) -> Any:
    """The model of its run that a version was made of."""
    models = client.search_logged_models([client.get_run(version.run_id).info.experiment_id])
    return next(model for model in models if model.artifact_location == version.source)


def test_a_finished_run_registers_its_last_and_its_best_generator(served: ServedRuns, client: Any) -> None:
    for name in ("slow-rate", "fast-rate"):
        run_id, folder = served.run_id(name), served.folder(name)
        swd = points(client, run_id, "evaluation/swd")
        assert [step for step, _ in swd] == [0, 320, 640, 960], "each once, though models have them, too"
        best = min(swd[1:], key=lambda point: point[1])
        registered = [version for version in versions(client) if version.run_id == run_id]
        expected = [best, swd[-1]] if best != swd[-1] else [best]
        assert [int(version.tags["nimg"]) for version in registered] == [step for step, _ in expected]
        assert [float(version.tags["evaluation/swd"]) for version in registered] == [value for _, value in expected]
        assert (folder / "checkpoints/best").read_text().strip() == f"{best[0]:012d}"
        for version, (step, value) in zip(registered, expected, strict=True):
            model = logged_model(client, version)
            measured = {metric.key: (metric.step, metric.value) for metric in model.metrics}
            assert measured["evaluation/swd"] == (step, value) and "evaluation/swd/16" in measured
            assert f"models:/{NAME}/{version.version}" in version.description


def test_best_is_the_best_of_all_runs_and_latest_the_last(served: ServedRuns, client: Any) -> None:
    found = versions(client)
    best = min(found, key=lambda version: float(version.tags["evaluation/swd"]))
    assert client.get_model_version_by_alias(NAME, "best").version == best.version
    fetched = flavour.fetch_model(f"models:/{NAME}@best")
    assert fetched.name == f"{int(best.tags['nimg']):012d}"
    newest = flavour.fetch_model(f"models:/{NAME}/latest")
    assert newest.parent == flavour.fetch_model(f"models:/{NAME}/{found[-1].version}").parent


def test_a_registered_generator_makes_the_images_of_its_checkpoint(
    served: ServedRuns, client: Any, tmp_path: Path
) -> None:
    (first, *_) = versions(client)
    made = hires_gan("generate", f"models:/{NAME}/{first.version}", "--seeds", "0-3", "--out", tmp_path / "registered")
    assert made.returncode == 0, made.stderr
    own = served.folder("slow-rate") / "checkpoints" / f"{int(first.tags['nimg']):012d}"
    assert hires_gan("generate", own, "--seeds", "0-3", "--out", tmp_path / "own").returncode == 0
    names = sorted(path.name for path in (tmp_path / "own").glob("*.png"))
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "registered" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()


def test_the_configuration_lies_beside_the_model(served: ServedRuns, client: Any) -> None:
    model = flavour.fetch_model(f"models:/{NAME}/1").parent
    assert sorted(path.name for path in model.iterdir() if path.is_file()) == ["MLmodel", "config.yaml"]
    configuration = yaml.safe_load((model / "config.yaml").read_text())
    assert configuration["recipe"]["generator_optimizer"]["learning_rate"] == 0.001
    assert configuration["tracking"]["register_as"] == NAME


def test_the_same_command_again_registers_nothing_new(served: ServedRuns, client: Any) -> None:
    before = [(version.version, version.source) for version in versions(client)]
    served.train("fast-rate", "recipe.generator_optimizer.learning_rate=0.01")
    assert [(version.version, version.source) for version in versions(client)] == before


def test_a_name_that_the_registry_cannot_have_is_refused(served: ServedRuns) -> None:
    done = hires_gan("train", served.config(), "run.name=refused", "tracking.register_as=a/b")
    assert done.returncode == 2 and "tracking.register_as" in done.stderr
    assert not served.folder("refused").exists()


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def poisoned(served: ServedRuns, server: LocalServer, client: Any) -> Any:
    """The model of a version, to be spoilt; it is as it was afterwards."""
    version = versions(client)[-1]
    folder = server.folder / "artifacts" / version.source.removeprefix("mlflow-artifacts:/")
    assert (folder / "MLmodel").is_file(), folder
    shutil.copytree(folder, folder.with_name("kept"))
    yield f"models:/{NAME}/{version.version}", folder
    shutil.rmtree(folder)
    folder.with_name("kept").rename(folder)


def test_a_pickle_beside_the_weights_is_never_opened(poisoned: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = poisoned
    mark = tmp_path / "executed"
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["python_function"] = {"loader_module": "mlflow.sklearn", "model_path": "model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    (inner,) = (path for path in folder.iterdir() if path.is_dir())
    for place in (folder / "model.pkl", inner / "model.pkl", inner / "generator.average.pt"):
        place.write_bytes(pickle.dumps(Bomb(mark)))
    assert sum(one.numel() for one in package.load(uri).parameters()) > 0
    assert not mark.exists()


@pytest.mark.parametrize("forged", [False, True], ids=["the checksum tells", "the checksum is forged"])
def test_a_pickle_in_place_of_the_weights_is_refused(poisoned: tuple[str, Path], forged: bool, tmp_path: Path) -> None:
    uri, folder = poisoned
    mark = tmp_path / "executed"
    (inner,) = (path for path in folder.iterdir() if path.is_dir())
    weights = inner / "generator.average.safetensors"
    weights.write_bytes(pickle.dumps(Bomb(mark)))
    if forged:
        state = json.loads((inner / checkpoint.STATE).read_text())
        state["files"][weights.name] = checkpoint._sha256(weights)
        (inner / checkpoint.STATE).write_text(json.dumps(state))
    with pytest.raises(Failure):
        package.load(uri)
    assert not mark.exists()
    pickle.loads(weights.read_bytes())
    assert mark.exists(), "the pickle would have done it"


@pytest.fixture
def contest(server: LocalServer, client: Any, tmp_path: Path) -> Any:
    """Registers one version after the other, each with a value of its own, and says which one `best` is."""

    def enter(
        value: float,
        compared: str = "fid on 10 images",
        higher: bool = False,
        anew: float | None = None,
        number: list[int] = [0],  # noqa: B006
    ) -> str:
        number[0] += 1
        folder = tmp_path / f"run-{number[0]}"
        folder.mkdir()
        (folder / "config.yaml").write_text("{}")
        place = folder / f"{number[0]:012d}"
        place.mkdir()
        (place / "state.json").write_text("{}")
        tracker = Tracker.start(
            TrackingSettings(uri=server.uri), folder, folder, folder.name, None, {}, {}, folder / "config.yaml"
        )
        tracker.log_metrics(number[0], {"evaluation/fid": value})
        card = ModelCard(
            "x", 4, 1, number[0], tmp_path.name, False, True, "evaluation/fid", higher, compared, value=anew
        )
        tracker.log_model(place, card)
        tracker.finish("FINISHED", 60)
        return str(client.get_model_version_by_alias(tmp_path.name, "best").version)

    return enter


def test_the_best_has_the_value_by_which_it_is_the_best(contest: Any, client: Any, tmp_path: Path) -> None:
    """The store went past it with another measure, before the run went on from an earlier checkpoint."""
    assert contest(5.0) == "1"
    assert contest(1.0, anew=6.0) == "1"
    assert client.get_model_version(tmp_path.name, "2").tags["evaluation/fid"] == "6.0"
    assert contest(9.0, anew=4.0) == "3"


def test_best_moves_only_to_what_is_better_by_the_same_measure(contest: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert contest(5.0) == "1"
    assert contest(7.5) == "1"
    assert "@best stays version 1: its evaluation/fid is 5.0, against 7.5" in capfd.readouterr().err
    assert contest(4.0) == "3"
    assert "@best is now version 3, and was 1: its evaluation/fid is 4.0, against 5.0" in capfd.readouterr().err
    assert contest(9.0, compared="fid on 20 images") == "4"
    assert "the two were not measured alike" in capfd.readouterr().err
    assert contest(9.5, compared="fid on 20 images", higher=True) == "5"
    for number in ("6", "7"):  # of which nothing says how they were measured
        assert contest(99.0, compared="", higher=True) == number
        assert "the two were not measured alike" in capfd.readouterr().err
