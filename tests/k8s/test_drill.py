"""Drills: pods of the manifests' own command and environment, in network namespaces, and what befalls them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from drill_pods import Container, Namespace, job_failure, jobset_action
from launch.launching import end_all, latest, status_of
from launch.machines import Machine, machines, missing
from manifests import K8S, KUBECTL, MISSING, Document, Pods, documents, of_kind, pods
from prometheus_client.parser import text_string_to_metric_families
from training.conftest import settings, shards

from hires_gan.tracking.store import load_mlflow

__all__ = ["settings", "shards"]
pytestmark = pytest.mark.multinode
JOB = "hires-gan-node-0"


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    """Behind a test nothing runs any more; skips where there can be no pods."""
    reason = missing() if KUBECTL else MISSING
    if reason is not None:
        pytest.skip(f"this machine allows no network namespaces: {reason}")
    yield
    end_all()


@pytest.fixture
def nodes() -> Iterator[list[Machine]]:
    """The machines of two pods, named as a JobSet names them, and one of MLflow."""
    with machines([f"{JOB}-0.hires-gan", f"{JOB}-1.hires-gan", "mlflow"]) as made:
        yield made


class Drill:
    """A namespace to which a kustomization was applied that says what docs/cluster.md lets a user say."""

    def __init__(self, folder: Path, shards: Path, settings: dict[str, Any]) -> None:
        self.folder, self.shards, self.train = folder, shards, settings
        settings["run"]["dir"], settings["data"]["shards"] = "/mnt/runs", "/mnt/data/shards"
        self.environment: dict[str, str | None] = {"GPUS": "0", "PROCESSES": "1", "PATIENCE": "60"}
        self.secrets: dict[str, dict[str, str]] = {}
        self.components: list[str] = []
        self.change: Callable[[list[Document]], None] = lambda of: None
        for name in ("claim-data", "claim-runs", "pods"):
            (folder / name).mkdir()
        subprocess.run(["cp", "-r", str(shards), str(folder / "claim-data" / "shards")], check=True)

    def applied(self) -> Namespace:
        """What a cluster has behind `kubectl apply -k`."""
        claims = {f"hires-gan-{name}": self.folder / f"claim-{name}" for name in ("data", "runs")}
        of = self._kustomized()
        self.change(of)
        return Namespace(of, claims, self.folder / "pods", self.secrets)

    def _kustomized(self) -> list[Document]:
        # What comes of a folder is built once: what is applied later needs another one.
        own = self.folder / f"own-{len(list(self.folder.glob('own-*')))}"
        own.mkdir()
        (own / "train.yaml").write_text(yaml.safe_dump(self.train))
        patch = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "hires-gan"},
            "data": self.environment,
        }
        kustomization = {
            "resources": [os.path.relpath(K8S / "base", own)],
            "components": [os.path.relpath(K8S / "components" / name, own) for name in self.components],
            "configMapGenerator": [{"name": "hires-gan-training", "behavior": "replace", "files": ["train.yaml"]}],
            "generatorOptions": {"disableNameSuffixHash": True},
            "patches": [{"patch": yaml.safe_dump(patch)}],
            "transformers": [os.path.relpath(K8S / "wiring", own)],
        }
        (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return documents(str(own))


@pytest.fixture
def drill(tmp_path: Path, shards: Path, settings: dict[str, Any]) -> Drill:
    """Everything as the base has it, but for GPUs; images and a training of seconds."""
    settings["run"]["total_kimg"] = 6.4
    settings["samples"]["every_kimg"] = settings["evaluation"]["every_kimg"] = None
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    return Drill(tmp_path, shards, settings)


def the_pods(namespace: Namespace) -> Pods:
    """Those of training."""
    (found,) = [group for group in pods(namespace.of) if group.trains]
    return found


def start_all(namespace: Namespace, nodes: list[Machine]) -> list[Container]:
    """What the JobSet starts, at once."""
    group = the_pods(namespace)
    started = [
        namespace.start(group, machine, JOB_COMPLETION_INDEX=str(index))
        for index, machine in enumerate(nodes[: group.count])
    ]
    assert len(started) == group.count
    return started


def start_mlflow(tmp_path: Path, machine: Machine) -> Container:
    """The server as the overlay starts it, but for its database."""
    of = documents("overlays/mlflow")
    folder, stuff = tmp_path / "claim-artifacts", tmp_path / "mlflow"
    for made in (folder, stuff):
        made.mkdir()
    namespace = Namespace(of, {"artifacts": folder}, stuff, {})
    (server,) = [group for group in pods(of) if group.owner["metadata"]["name"] == "mlflow"]
    return namespace.start(server, machine, MLFLOW_BACKEND_STORE_URI="sqlite:////mnt/artifacts/mlflow.db")


def verdict(namespace: Namespace, codes: list[int], disrupted: int | None = None) -> set[str]:
    """What the JobSet may do behind these exit codes: it depends on whose end the Job's controller sees first."""
    (jobset,) = of_kind(namespace.of, "JobSet")
    job = the_pods(namespace).job
    assert job is not None
    return {
        jobset_action(jobset["spec"], *job_failure(job.spec, code, index == disrupted))
        for index, code in enumerate(codes)
        if code
    }


def scraped(machine: Machine, address: str) -> dict[str, float]:
    """The metrics of the first pod, as Prometheus would see them from another one."""
    program = f"import urllib.request as r; print(r.urlopen('http://{address}/metrics', timeout=5).read().decode())"
    process = machine.start(["python3", "-c", program], stdout=subprocess.PIPE)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_a_preempted_pod_costs_nothing_but_a_restart(drill: Drill, nodes: list[Machine], tmp_path: Path) -> None:
    drill.train["run"]["total_kimg"] = 6400  # its first life ends by the signal alone, whatever is asked before
    namespace, run = drill.applied(), tmp_path / "claim-runs" / "small"
    server = start_mlflow(tmp_path, nodes[2])
    first, second = start_all(namespace, nodes)
    first.launched.wait_for(lambda: status_of(run).get("nimg", 0) > 320)
    metrics = scraped(nodes[1], f"{JOB}-0.hires-gan:9400")
    assert metrics["hires_gan_kimg"] > 0.32
    second.terminate()
    codes = [first.ended(), second.ended()]
    assert codes == [75, 75], first.said + second.said
    assert verdict(namespace, codes, disrupted=1) == {"RestartJobSetAndIgnoreMaxRestarts"}
    assert first.termination_log.read_text().startswith("exit code 75: stopped by a signal")
    stopped = status_of(run)
    assert stopped["state"] == "preempted"
    assert stopped["nimg"] > 320
    assert latest({"run": {"dir": str(tmp_path / "claim-runs")}}, "small").nimg == stopped["nimg"]

    drill.train["run"]["total_kimg"] = total = (stopped["nimg"] + 3200) / 1000
    again = start_all(drill.applied(), nodes)
    assert [pod.ended() for pod in again] == [0, 0], again[0].said + again[1].said
    assert f"going on from /mnt/runs/small/checkpoints/{stopped['nimg']:012d}" in again[0].said
    assert "as the first of 2 processes, 1 of them here" in again[0].said
    assert status_of(run)["state"] == "finished"
    server.terminate()
    server.ended()
    runs = recorded(tmp_path / "claim-artifacts" / "mlflow.db")
    assert [(found.info.status, found.data.metrics["kimg"]) for found in runs] == [("FINISHED", total)]


def recorded(store: Path) -> list[Any]:
    """The runs in a store, which its server has left."""
    client = load_mlflow().MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("hires-gan")
    return list(client.search_runs([experiment.experiment_id]))


# --- what is missing --------------------------------------------------------------------------------------------------


def without_key(of: list[Document]) -> None:
    for document in of_kind(of, "ConfigMap"):
        document["data"].pop("train.yaml", None)


def without_environment(of: list[Document]) -> None:
    of[:] = [
        document for document in of if document["metadata"]["name"] != "hires-gan" or document["kind"] != "ConfigMap"
    ]


def without_volume(of: list[Document]) -> None:
    (spec,) = [group.spec for group in pods(of) if group.trains]
    (container,) = spec["containers"]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "runs"]


SOLVED = {"MLFLOW_TRACKING_URI": None, "NEEDS": "", "PATIENCE": "0"}
CASES: dict[str, tuple[dict[str, str | None], Callable[[list[Document]], None], list[str]]] = {
    "a Secret": (
        SOLVED | {"NEEDS": "MLFLOW_TRACKING_PASSWORD"},
        lambda of: None,
        ["MLFLOW_TRACKING_PASSWORD", "secret"],
    ),
    "the ConfigMap of the environment": (SOLVED, without_environment, ["MASTER_PORT", "ConfigMap hires-gan"]),
    "the key of the training": (SOLVED, without_key, ["/mnt/config/train.yaml", "ConfigMap"]),
    "the volume of runs": (SOLVED, without_volume, ["/mnt/runs", "volume"]),
    "GPUs": (SOLVED | {"GPUS": "1"}, lambda of: None, ["GPU", "nvidia.com/gpu"]),
    "MLflow's answer": (
        SOLVED | {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        lambda of: None,
        ["http://mlflow:5000", "does not answer"],
    ),
}
"""What is missing -> the environment, what else is changed, and what the log has to name."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_said_first_and_ends_the_job(drill: Drill, nodes: list[Machine], case: str) -> None:
    environment, drill.change, words = CASES[case]
    drill.environment |= environment
    namespace = drill.applied()
    pod = namespace.start(the_pods(namespace), nodes[0], JOB_COMPLETION_INDEX="0")
    code = pod.ended()
    assert code == 2, pod.said
    assert verdict(namespace, [code]) == {"FailJobSet"}
    (sentence, *_) = [line for line in pod.said.splitlines() if line.startswith("error:")]
    assert [word for word in words if word not in sentence] == []
    assert "training on" not in pod.said


def test_a_configuration_that_the_trainer_refuses_ends_the_job(drill: Drill, nodes: list[Machine]) -> None:
    drill.environment |= SOLVED
    drill.train["run"]["resume"] = "required"
    namespace = drill.applied()
    pair = start_all(namespace, nodes)
    codes = [pod.ended() for pod in pair]
    assert verdict(namespace, codes) == {"FailJobSet"}, pair[0].said
    assert "run.resume is 'required'" in pair[0].said
    assert pair[0].termination_log.read_text().startswith("exit code 2: run.resume is 'required'")


def test_a_pod_that_dies_takes_the_others_along(drill: Drill, nodes: list[Machine], tmp_path: Path) -> None:
    drill.environment |= SOLVED
    namespace, run = drill.applied(), tmp_path / "claim-runs" / "small"
    first, second = start_all(namespace, nodes)
    first.launched.wait_for(lambda: status_of(run).get("nimg", 0) > 320)
    nodes[1].kill_all()
    codes = [first.ended(), second.ended()]
    assert verdict(namespace, codes) == {"RestartJobSet"}, first.said
    again = start_all(namespace, nodes)
    assert [pod.ended() for pod in again] == [0, 0], again[0].said + again[1].said
    assert "going on from" in again[0].said


def test_pods_of_a_plain_job_are_started_again_one_by_one(drill: Drill, tmp_path: Path) -> None:
    drill.environment |= SOLVED
    drill.components = ["indexed-job"]
    namespace, run = drill.applied(), tmp_path / "claim-runs" / "small"
    (job,) = of_kind(namespace.of, "Job")
    with machines(["hires-gan-0.hires-gan", "hires-gan-1.hires-gan"]) as nodes:
        running = dict(enumerate(start_all(namespace, nodes)))
        running[0].launched.wait_for(lambda: status_of(run).get("nimg", 0) > 320)
        nodes[1].kill_all()
        failures = attended(namespace, nodes, running)
    assert all(count <= job["spec"]["backoffLimitPerIndex"] for count in failures)
    assert status_of(run)["state"] == "finished"


def attended(namespace: Namespace, nodes: list[Machine], running: dict[int, Container]) -> list[int]:
    """Start each pod again that has failed, until none runs; how often each of them failed."""
    failures, deadline = [0] * len(running), time.monotonic() + 400
    while running:
        for index, pod in list(running.items()):
            assert time.monotonic() < deadline, pod.said
            if pod.launched.process.poll() is None:
                continue
            del running[index]
            if pod.ended() != 0:
                failures[index] += 1
                assert pod.ended() != 2, pod.said
                running[index] = namespace.start(the_pods(namespace), nodes[index], JOB_COMPLETION_INDEX=str(index))
        time.sleep(0.1)
    return failures


def test_the_demo_of_the_dev_overlay_trains_also_where_a_pod_is_late(tmp_path: Path) -> None:
    of = documents("overlays/dev")
    for made in (tmp_path / "claim-runs", tmp_path / "pods"):
        made.mkdir()
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    namespace = Namespace(of, {"hires-gan-runs-dev": tmp_path / "claim-runs"}, tmp_path / "pods", {})
    with machines([f"hires-gan-dev-node-0-{index}.hires-gan-dev" for index in range(2)]) as nodes:
        first = namespace.start(the_pods(namespace), nodes[0], JOB_COMPLETION_INDEX="0")
        first.launched.wait_for(lambda: "waiting for pods 1 of 2" in first.said)  # its node is still looked for
        pair = [first, namespace.start(the_pods(namespace), nodes[1], JOB_COMPLETION_INDEX="1")]
        assert [pod.ended(500) for pod in pair] == [0, 0], pair[0].said + pair[1].said
    assert status_of(tmp_path / "claim-runs" / "demo")["state"] == "finished"
