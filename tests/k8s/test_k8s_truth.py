"""No value of k8s/ stands in two places that could disagree: it is written once, and arrives everywhere."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
import truth
import yaml
from changes import GONE, pod_specs, put
from manifests import (
    IMAGE_FOLDER,
    K8S,
    Pods,
    environment,
    folders,
    is_ours,
    named,
    of_kind,
    pods,
    together,
)
from policy import selects

from hires_gan import __version__

BASE = yaml.safe_load((K8S / "base" / "environment.yaml").read_text(encoding="utf-8"))["data"]

VARIABLES = "spec.replicatedJobs.0.template.spec.template.spec.containers.0.env"
"""Of which the fifth and the sixth are NODES and GPUS."""


@pytest.mark.parametrize("folder", folders())
def test_values_that_mean_the_same_are_the_same(folder):
    assert truth.problems(together(folder)) == []


def test_a_batch_that_leaves_gpus_idle_is_seen():
    of = together("overlays/eight-gpu-nodes")
    files = next(d for d in of if d["metadata"]["name"] == "hires-gan-training")["data"]
    files["train.yaml"] = files["train.yaml"].replace("{size: 64}", "{size: 60}")
    [problem] = truth.everybody_has_work(of)
    assert "a batch of 60 in groups of 4 has no work for some of 16 processes" in problem


@pytest.mark.parametrize(
    ("rule", "folder", "kind", "path", "value"),
    [
        (truth.nodes_are_the_same, "base", "JobSet", f"{VARIABLES}.4.value", "3"),
        (truth.nodes_are_the_same, "base", "JobSet", "spec.replicatedJobs.0.template.spec.completions", 3),
        (truth.nodes_are_the_same, "base", "JobSet", "spec.replicatedJobs.0.template.spec.parallelism", 3),
        (truth.nodes_are_the_same, "overlays/trainjob", "TrainJob", "spec.trainer.numNodes", 3),
        (truth.nodes_are_the_same, "overlays/trainjob", "TrainingRuntime", "spec.mlPolicy.numNodes", 3),
        (truth.nodes_are_the_same, "overlays/indexed-job", "Job", "spec.completions", 3),
        (truth.gpus_are_the_same, "overlays/eight-gpu-nodes", "JobSet", f"{VARIABLES}.5.value", "4"),
        (truth.gpus_are_the_same, "overlays/dev", "JobSet", f"{VARIABLES}.5.value", "1"),
        (truth.ports_are_the_same, "base", "ConfigMap hires-gan", "data.MASTER_PORT", "29501"),
        (truth.ports_are_the_same, "base", "ConfigMap hires-gan", "data.METRICS_PORT", "9401"),
        (truth.the_first_pod_is_found, "base", "JobSet", "spec.network", {"subdomain": "others"}),
        (truth.the_first_pod_is_found, "overlays/indexed-job", "Service", "spec.clusterIP", GONE),
        (truth.the_first_pod_is_found, "overlays/indexed-job", "Service", "spec.publishNotReadyAddresses", GONE),
        (truth.the_first_pod_is_found, "overlays/indexed-job", "Service", "metadata.name", "others"),
        (truth.the_first_pod_is_found, "overlays/indexed-job", "Job", "spec.template.spec.subdomain", GONE),
    ],
)
def test_values_that_differ_are_seen(rule, folder, kind, path, value):
    of = together(folder)
    assert list(rule(of)) == []
    put(next(d for d in of if kind in (d["kind"], named(d))), path, value)
    assert list(rule(of))


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        (truth.gpus_are_the_same, 'containers.0.resources.limits."nvidia.com/gpu"', 2),
        (truth.gpus_are_the_same, 'containers.0.resources.limits."nvidia.com/gpu"', GONE),
        (truth.ports_are_the_same, "containers.0.ports.0.containerPort", 1),
        (truth.ports_are_the_same, "containers.0.ports.1.containerPort", 1),
        (truth.ports_are_the_same, "containers.0.args", ["tracking.metrics_port=1"]),
        (truth.ports_are_the_same, "containers.0.args", []),
        (truth.paths_are_mounted, "containers.0.args.+", "run.dir=/elsewhere"),
        (truth.paths_are_mounted, "containers.0.args.+", "run.dir=/tmp/runs"),
        (truth.paths_are_mounted, "containers.0.args.+", "run.dir=/mnt/data"),
        (truth.paths_are_mounted, "containers.0.args.+", "data.shards=/data"),
        (truth.paths_are_mounted, "containers.0.volumeMounts.2.readOnly", True),
        (truth.the_image_is_as_it_was_built, "securityContext.runAsUser", 1000),
        (truth.the_image_is_as_it_was_built, "securityContext.runAsGroup", 1000),
        (truth.the_image_is_as_it_was_built, "containers.0.workingDir", "/"),
        (truth.the_image_is_as_it_was_built, "initContainers", [{"name": "a", "image": "hires-gan:0.0.1"}]),
    ],
)
def test_values_of_the_pod_that_differ_are_seen(rule, path, value):
    of = together("base")
    assert list(rule(of)) == []
    put(next(pod_specs(of)), path, value)
    assert list(rule(of))


def test_a_base_that_the_image_lacks_is_seen():
    of = together("base")
    training = next(d for d in of if named(d) == "ConfigMap hires-gan-training")
    put(training, 'data."train.yaml"', f"base: {IMAGE_FOLDER}/configs/none.yaml")
    assert list(truth.the_image_is_as_it_was_built(of))


# --- between folders --------------------------------------------------------------------------------------------------


def test_all_folders_have_the_same_image_of_this_version():
    images = {
        c["image"] for folder in folders() for pod in pods(together(folder)) for c in pod.containers if is_ours(c)
    }
    assert images == {f"hires-gan:{__version__}"}


def test_training_reaches_mlflow_where_it_listens():
    """The URI of the base leads to the server's Service, through the policies of both."""
    uri, server = urlsplit(BASE["MLFLOW_TRACKING_URI"]), together("overlays/mlflow")
    service = next(d for d in of_kind(server, "Service") if d["metadata"]["name"] == uri.hostname)
    [port] = [p for p in service["spec"]["ports"] if p["port"] == uri.port]
    [listening] = [pod for pod in pods(server) if service["spec"]["selector"].items() <= pod.labels.items()]
    told = environment(listening, listening.spec["containers"][0], server)
    hosts = told["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert any(fnmatch(f"{uri.hostname}:{uri.port}", host) for host in hosts)
    assert told["MLFLOW_PORT"] == str(port["port"])
    for folder in ("base", "overlays/indexed-job", "overlays/trainjob", "overlays/eight-gpu-nodes"):
        of = together(folder)
        [pod] = pods(of)
        assert lets_out(of, pod, listening), folder
        assert lets_in(server, listening, pod, port["targetPort"]), folder


def lets_out(of: list[Any], pod: Pods, other: Pods) -> bool:
    rules = [rule for policy in of_kind(of, "NetworkPolicy") if selects(policy["spec"]["podSelector"], pod.labels)
             for rule in policy["spec"].get("egress", [])]  # fmt: skip
    return any(selects(peer.get("podSelector", {}), other.labels) for rule in rules for peer in rule.get("to", []))


def lets_in(of: list[Any], pod: Pods, other: Pods, port: str) -> bool:
    rules = [rule for policy in of_kind(of, "NetworkPolicy") if selects(policy["spec"]["podSelector"], pod.labels)
             for rule in policy["spec"].get("ingress", [])]  # fmt: skip
    return any(
        selects(peer.get("podSelector", {}), other.labels)
        for rule in rules
        if port in [p["port"] for p in rule.get("ports", [{"port": port}])]
        for peer in rule.get("from", [])
    )


def test_training_reads_what_preparing_writes():
    [(_, _, _, configuration)] = truth.training(together("base"))
    of = together("overlays/prepare")
    [pod] = pods(of)
    words = [*pod.spec["containers"][0]["command"], *pod.spec["containers"][0]["args"]]
    given = dict(pairwise(words))
    assert given["--out"] == str(configuration.data.shards)
    assert given["--resolution"] == str(configuration.recipe.resolution)
    told = environment(pod, pod.spec["containers"][0], of)
    assert pod.job is not None
    assert told["HIRES_GAN_WORLD_SIZE"] == str(pod.job.spec["completions"]) == str(pod.job.spec["parallelism"])
    claims = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in pod.spec["volumes"]}
    [training] = pods(together("base"))
    assert claims["data"] in [v.get("persistentVolumeClaim", {}).get("claimName") for v in training.spec["volumes"]]


@pytest.mark.parametrize("folder", ["overlays/indexed-job", "overlays/trainjob", "overlays/single-gpu"])
def test_the_pods_are_those_of_the_base(folder):
    """Whatever makes them: the same command, settings and volumes; only the number and the names may differ."""
    [ours], [those] = pods(together(folder)), pods(together("base"))
    kept = [without_names(pod.spec) for pod in (ours, those)]
    assert kept[0] == kept[1]


def without_names(spec: dict[str, Any]) -> dict[str, Any]:
    container = {**spec["containers"][0], "env": [entry["name"] for entry in spec["containers"][0]["env"]]}
    return {**spec, "containers": [container], "subdomain": None}


# --- in the sources ---------------------------------------------------------------------------------------------------

SOURCES = {path.relative_to(K8S).as_posix(): path.read_text(encoding="utf-8") for path in sorted(K8S.rglob("*.yaml"))}


def places(pattern: str) -> list[str]:
    """File and line of what is written in the sources, comments left out."""
    return [
        f"{name}: {line.strip()}"
        for name, text in SOURCES.items()
        for line in re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE).splitlines()
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        rf"\b{re.escape(__version__)}\b",  # the image's tag
        rf"(?<!\d){BASE['MASTER_PORT']}(?!\d)",
        rf"(?<!\d){BASE['METRICS_PORT']}(?!\d)",
        r"launch/pod\.sh",
        r"tracking\.metrics_port",
        r"\bMASTER_ADDR\b",
        r"\[hires-gan, prepare\]|hires-gan prepare",
        r"\[mlflow, server\]|mlflow server",
        r"mountPath: /dev/shm",
        r"mountPath: /mnt/runs",
        r"maxRestarts:",
    ],
)
def test_it_is_written_once(pattern):
    assert len(places(pattern)) == 1, places(pattern)


def test_comments_are_left_out():
    assert places("what that is") == []
    assert len(places("kind: JobSet")) > 1
