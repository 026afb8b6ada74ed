"""Every folder of k8s/ fits the schemas of what it is applied to, key by key; and the check sees what does not fit."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import admission
import pytest
import strict
import yaml
from changes import GONE, changed, put
from manifests import OVERLAYS, documents, folders, jobs, loose_files, named, pods

JOB = "spec.replicatedJobs.0.template.spec"
POD = f"{JOB}.template.spec"
REPLICATED = "spec.template.spec.replicatedJobs.0"
RUNTIME_JOB = f"{REPLICATED}.template.spec"


@functools.cache
def sound(check, folder: str) -> list[str]:
    """What a check says of a folder as it is."""
    return check(documents(folder))


def named_by(part: Any) -> str | None:
    """Cases are called by where they change something."""
    return part.replace("replicatedJobs.0.template.spec.", "") if isinstance(part, str) and "spec" in part else None


def test_every_overlay_is_there():
    assert {"base", "volumes", *(f"overlays/{name}" for name in OVERLAYS)} <= set(folders())


@pytest.mark.parametrize("folder", [*folders(), *loose_files()])
def test_it_fits_the_schemas(folder):
    assert sound(strict.problems, folder) == []


@pytest.mark.parametrize("folder", [*folders(), *loose_files()])
def test_it_would_be_admitted(folder):
    assert sound(admission.problems, folder) == []


def test_the_versions_are_there():
    import kubernetes_validate

    shipped = {version.rpartition(".")[0] for version in kubernetes_validate.utils.all_versions()}
    assert set(strict.KUBERNETES) <= shipped


# --- what does not fit ------------------------------------------------------------------------------------------------

MISFITS: list[tuple[str, str, str, Any, str]] = [
    # a misspelt key, at five depths
    ("base", "JobSet", "specs", {}, "'specs' was unexpected"),
    ("base", "JobSet", "spec.failurePolicys", {}, "spec: .*'failurePolicys' was unexpected"),
    ("base", "JobSet", f"{JOB}.completionModes", "Indexed", "'completionModes' was unexpected"),
    ("base", "JobSet", f"{POD}.containers.0.resource", {}, "containers.0: .*'resource' was unexpected"),
    ("base", "JobSet", f"{POD}.containers.0.securityContext.capabilities.drops", ["ALL"], "'drops' was unexpected"),
    ("overlays/trainjob", "TrainJob", "spec.trainer.numNode", 2, "spec.trainer: .*'numNode' was unexpected"),
    ("overlays/trainjob", "TrainingRuntime", "spec.mlPolicy.torch.numProc", 2, "'numProc' was unexpected"),
    ("overlays/trainjob", "TrainingRuntime", f"{RUNTIME_JOB}.template.spec.volumes.0.emptydir", {}, "'emptydir'"),
    ("overlays/indexed-job", "Job", "spec.completionModes", "Indexed", "'completionModes' was unexpected"),
    ("base", "NetworkPolicy", "spec.podselector", {}, "'podselector' was unexpected"),
    ("volumes", "PersistentVolumeClaim", "spec.accessMode", "ReadWriteMany", "'accessMode' was unexpected"),
    # a wrong type
    ("base", "JobSet", "spec.failurePolicy.maxRestarts", "10", "maxRestarts: '10' is not of type 'integer'"),
    ("base", "JobSet", f"{JOB}.parallelism", "2", "parallelism: '2' is not of type 'integer'"),
    ("base", "JobSet", f"{POD}.containers.0.command", "bash", "command: 'bash' is not of type 'array'"),
    ("base", "JobSet", f"{POD}.containers.0.env.0.value", 1, "value: 1 is not of type 'string'"),
    ("base", "JobSet", f"{POD}.containers.0.resources.limits.cpu", ["8"], "limits.cpu"),
    ("base", "JobSet", "spec.failurePolicy", None, "failurePolicy: None is not of type 'object'"),
    ("overlays/trainjob", "TrainJob", "spec.trainer.numNodes", "2", "numNodes: '2' is not of type 'integer'"),
    ("overlays/indexed-job", "Job", "spec.completions", "2", "spec.completions: '2' is not of type 'integer'"),
    ("base", "ConfigMap", "data.NODES", 2, "data.NODES: 2 is not of type 'string'"),
    # a key that is needed
    ("base", "JobSet", "spec.replicatedJobs.0.name", GONE, "'name' is a required property"),
    ("base", "JobSet", "spec.failurePolicy.rules.0.action", GONE, "'action' is a required property"),
    ("base", "JobSet", f"{POD}.containers.0.name", GONE, "'name' is a required property"),
    ("overlays/trainjob", "TrainJob", "spec.runtimeRef.name", GONE, "'name' is a required property"),
    ("overlays/indexed-job", "Job", "spec.template.spec.containers.0.ports.0.containerPort", GONE, "'containerPort'"),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "kind", "path", "value", "words"), MISFITS, ids=named_by)
def test_what_does_not_fit_is_seen(folder, kind, path, value, words):
    before = sound(strict.problems, folder)
    found = [problem for problem in strict.problems(changed(folder, kind, path, value)) if problem not in before]
    assert found, f"{path} of {kind} was changed to {value!r}, and nothing was said"
    assert matching(words, found)


def matching(words: str, found: list[str]) -> bool:
    return any(re.search(words, problem) for problem in found)


def test_a_kind_without_a_schema_is_a_problem():
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "a"}, "spec": {}}
    assert any("PodMonitor" in problem for problem in strict.problems([monitor]))


def test_messages_say_against_which_version():
    [of_model, *_] = strict.problems(changed("base", "JobSet", "spec.unknown", 1))
    assert of_model.startswith(f"JobSet hires-gan: {strict.MODELS_VERSION}: spec:")
    found = strict.problems(changed("base", "NetworkPolicy", "spec.unknown", 1))
    assert [problem.partition(": ")[2][:15] for problem in found] == ["Kubernetes 1.33", "Kubernetes 1.37"]


# --- what schemas do not say ------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, str, Any, str]] = [
    ("base", "JobSet", "metadata.name", "Hires_GAN", "no DNS subdomain"),
    ("base", "JobSet", "metadata.name", "a" * 60, "no host name of at most 63 characters"),
    ("base", "JobSet", "spec.replicatedJobs.0.name", "a-name-of-21-letters-", "at most 20 characters"),
    ("base", "JobSet", "spec.failurePolicy.restartStrategy", "Recreated", "restartStrategy is Recreated"),
    ("base", "JobSet", "spec.failurePolicy.rules.0.action", "Restart", "has the action Restart"),
    ("base", "JobSet", "spec.failurePolicy.rules.0.name", "to-be-mended", "letters, digits"),
    ("base", "JobSet", "spec.failurePolicy.rules.0.onJobFailureReasons", ["Preempted"], "onJobFailureReasons"),
    ("base", "JobSet", "spec.failurePolicy.rules.0.targetReplicatedJobs", ["workers"], "'workers'"),
    ("base", "JobSet", "spec.successPolicy", {"operator": "Most"}, "operator is Most"),
    ("base", "JobSet", f"{JOB}.completionMode", "Indexd", "completionMode is Indexd"),
    ("base", "JobSet", f"{JOB}.completions", GONE, "needs completions"),
    ("base", "JobSet", f"{JOB}.podReplacementPolicy", "TerminatingOrFailed", "podReplacementPolicy: Failed"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.action", "Fail", "the action Fail;"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.action", "FailIndex", "needs backoffLimitPerIndex"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.onExitCodes.operator", "Is", "operator is Is"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.onExitCodes.values", [3, 2], "in order"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.onExitCodes.values", [0, 2], "no failure"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.onExitCodes.containerName", "gan", "container gan"),
    ("base", "JobSet", f"{JOB}.podFailurePolicy.rules.0.onPodConditions", [{"type": "a"}], "exactly one"),
    ("base", "JobSet", f"{JOB}.template.spec.restartPolicy", "OnFailure", "needs restartPolicy: Never"),
    ("base", "JobSet", f"{JOB}.template.spec.restartPolicy", "Always", "pods of a job need"),
    ("base", "JobSet", f"{POD}.containers.0.name", "Node", "'Node' is no name"),
    ("base", "JobSet", f"{POD}.containers.0.ports.0.name", "a-name-of-16-let", "at most 15 characters"),
    ("base", "JobSet", f"{POD}.containers.0.ports.0.containerPort", 0, "below 65536"),
    ("base", "JobSet", f"{POD}.containers.0.env.+", {"name": "JOB_NAME", "value": ""}, "JOB_NAME 2 times"),
    ("base", "JobSet", f"{POD}.containers.0.env.+", {"name": "A B", "value": ""}, "'A B' is no name for a variable"),
    ("base", "JobSet", f"{POD}.containers.0.volumeMounts.+", {"name": "tmp", "mountPath": "/tmp"}, "/tmp is mounted 2"),
    ("base", "JobSet", f"{POD}.volumes.+", {"name": "tmp", "emptyDir": {}}, "volumes has tmp twice"),
    ("base", "JobSet", f"{POD}.containers.0.resources.limits.memory", "64 GB", "no quantity"),
    ("base", "JobSet", f"{POD}.containers.0.resources.limits.memory", "1Gi", "more than its limit"),
    ("base", "JobSet", f'{POD}.containers.0.resources.limits."nvidia.com/gpu"', GONE, "they have to be equal"),
    ("base", "JobSet", f"{POD}.volumes.3.emptyDir.medium", "memory", "medium is memory"),
    ("base", "JobSet", f"{POD}.securityContext.seccompProfile.type", "Default", "type is Default"),
    ("overlays/indexed-job", "Job", "spec.completionMode", GONE, "needs completionMode: Indexed"),
    ("overlays/indexed-job", "Job", "spec.backoffLimitPerIndex", GONE, "maxFailedIndexes needs"),
    ("overlays/trainjob", "TrainingRuntime", f"{RUNTIME_JOB}.template.spec.containers.0.name", "a", "no container"),
    ("overlays/trainjob", "TrainingRuntime", f"{REPLICATED}.replicas", 2, "1 is allowed"),
    ("overlays/trainjob", "TrainingRuntime", f"{REPLICATED}.template.metadata", {}, "1 is needed"),
    ("overlays/trainjob", "TrainJob", "spec.trainer.env", [{"name": "PET_NNODES", "value": "2"}], "PET_NNODES"),
    ("overlays/trainjob", "TrainJob", "metadata.name", "1st", "no host name"),
    ("overlays/mlflow", "StatefulSet", "spec.selector.matchLabels.tier", "a", "does not fit the template"),
    ("volumes", "PersistentVolumeClaim", "spec.accessModes", ["ReadWriteAll"], "ReadWriteAll"),
    ("base", "NetworkPolicy", "spec.policyTypes", ["Inwards"], "Inwards"),
    ("volumes", "PersistentVolumeClaim hires-gan-runs", "metadata.name", "hires-gan-data", "is there 2 times"),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "kind", "path", "value", "words"), REFUSED, ids=named_by)
def test_what_would_not_be_admitted_is_seen(folder, kind, path, value, words):
    before = sound(admission.problems, folder)
    found = [problem for problem in admission.problems(changed(folder, kind, path, value)) if problem not in before]
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(
    ("text", "number"), [("64Gi", 64 * 2**30), ("500m", 0.5), ("8", 8), (8, 8), ("1.5k", 1500), ("2M", 2e6)]
)
def test_quantities_are_understood(text, number):
    assert admission.bytes_of(text) == number


def test_jobs_and_pods_are_found():
    """What the checks look at, at the places where it is known to be."""
    known = {"base": "hires-gan-node-0", "overlays/trainjob": "hires-gan-node-0", "overlays/indexed-job": "hires-gan"}
    for folder, name in known.items():
        of = documents(folder)
        assert [(job.name, pod.count) for job, pod in zip(jobs(of), pods(of), strict=True)] == [(name, 2)]
    assert {named(pod.owner) for pod in pods(documents("overlays/mlflow"))} == {
        "StatefulSet mlflow",
        "StatefulSet mlflow-database",
    }


def test_a_template_that_is_not_known_is_not_passed_over():
    of = documents("base")
    of.append({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "a"}, "spec": {}})
    put(of[-1], "spec.template.spec.containers", [])
    with pytest.raises(AssertionError, match="2 pod templates, but only 1 of them"):
        pods(of)


# --- a cluster's own definitions --------------------------------------------------------------------------------------

DEFINITION = """
kind: CustomResourceDefinition
spec:
  group: jobset.x-k8s.io
  names: {kind: JobSet}
  versions:
    - name: v1alpha2
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [mode]
              properties:
                mode: {type: string, enum: [fast, slow]}
                port: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                labels: {type: object, additionalProperties: {type: string}}
                nothing: {type: integer, nullable: true}
                steps: {type: array, items: {type: object, properties: {name: {type: string}}}}
"""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"mode": "fast", "port": "http", "free": {"b": 1}, "labels": {"c": "d"}, "nothing": None, "steps": []}, None),
        ({"mode": "fast", "port": 80}, None),
        ({"mode": "faster"}, "spec.mode: 'faster' is not one of"),
        ({}, "'mode' is a required property"),
        ({"mode": "slow", "modes": 1}, "'modes' was unexpected"),
        ({"mode": "slow", "port": 1.5}, "spec.port"),
        ({"mode": "slow", "labels": {"c": 1}}, "spec.labels.c: 1 is not of type 'string'"),
        ({"mode": "slow", "free": {"a": 1}}, "spec.free.a: 1 is not of type 'string'"),
        ({"mode": "slow", "steps": [{"names": "a"}]}, "spec.steps.0: .*'names' was unexpected"),
    ],
)
def test_a_clusters_definitions_count_too(tmp_path: Path, spec, words):
    (tmp_path / "jobsets.yaml").write_text(DEFINITION)
    document = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "a"}, "spec": spec}
    found = list(strict.of_definition(document, tmp_path))
    assert (found == []) if words is None else matching(words, found)


def test_a_cluster_without_the_definition_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CRDS", str(tmp_path))
    assert any("has no definition of JobSet" in problem for problem in strict.problems(documents("base")))
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"items": [yaml.safe_load(DEFINITION)]}))
    strict.definitions.cache_clear()
    assert any("replicatedJobs" in problem for problem in strict.problems(documents("base")))
