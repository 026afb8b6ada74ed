"""What `kubectl kustomize` makes of each folder of k8s/, and the pods that a cluster would make of that."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
K8S = ROOT / "k8s"
OVERLAYS = ("indexed-job", "trainjob", "single-gpu", "eight-gpu-nodes", "prepare", "mlflow", "dev")
"""Those that have to be there; what else lies in k8s/overlays is checked likewise."""
KUBECTL = shutil.which("kubectl")
MISSING = "needs kubectl, which is not on the PATH"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE_FOLDER = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
"""Where commands start in the image; this repository's configs/ and launch/ are there."""
ONE_POD = {"Deployment", "StatefulSet", "Pod", "CronJob", "DaemonSet"}

Document = dict[str, Any]


def kustomizations() -> dict[str, Document]:
    """What each folder of k8s/ says in its kustomization.yaml, by the folder's path below k8s/."""
    return {
        path.parent.relative_to(K8S).as_posix(): yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(K8S.rglob("kustomization.yaml"))
    }


def folders() -> list[str]:
    """What can be applied: whatever is no part of others, and those overlays that have to be there."""
    found, parts = kustomizations(), set()
    for folder, content in found.items():
        for part in [*content.get("transformers", []), *content.get("components", [])]:
            parts.add((K8S / folder / part).resolve().relative_to(K8S).as_posix())
    whole = {folder for folder, content in found.items() if content["kind"] == "Kustomization"} - parts
    return sorted(whole | {"base", *(f"overlays/{name}" for name in OVERLAYS)})


def loose_files() -> list[str]:
    """Manifests that belong to no kustomization, for `kubectl apply -f`."""
    of_folders = {
        folder: (K8S / folder / "kustomization.yaml").read_text(encoding="utf-8") for folder in kustomizations()
    }
    return [
        f"{folder}/{path.name}"
        for folder, text in of_folders.items()
        for path in sorted((K8S / folder).glob("*.yaml"))
        if path.name != "kustomization.yaml" and path.name not in text
    ]


@functools.cache
def built(folder: str) -> str:
    """The text of one of them, as `kubectl apply -k` would send it; of a file, as it is."""
    if (K8S / folder).is_file():
        return (K8S / folder).read_text(encoding="utf-8")
    if KUBECTL is None:
        pytest.skip(MISSING)
    done = subprocess.run(
        [KUBECTL, "kustomize", str(K8S / folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"k8s/{folder} cannot be built: {done.stderr}"
    assert "deprecated" not in done.stderr.lower(), f"k8s/{folder}: {done.stderr}"
    return done.stdout


@functools.cache
def _parsed(folder: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(built(folder)) if document]


def documents(folder: str) -> list[Document]:
    """What `built` holds, for the caller alone, who may change it."""
    return copy.deepcopy(_parsed(folder))


def together(folder: str) -> list[Document]:
    """The same with the volume claims, which are applied once, beside whatever uses them."""
    of = documents(folder)
    there = {named(document) for document in of}
    beside = documents("volumes") if folder != "volumes" else []
    return of + [document for document in beside if named(document) not in there]


def named(document: Document) -> str:
    """How a message calls an object."""
    return f"{document.get('kind')} {document.get('metadata', {}).get('name')}"


def of_kind(of: list[Document], *kinds: str) -> list[Document]:
    """Those objects, in their order."""
    return [document for document in of if document.get("kind") in kinds]


def pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every mapping in a document, however deep, and its value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from pairs(value)
    elif isinstance(node, list):
        for item in node:
            yield from pairs(item)


# --- the jobs and the pods --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job that the API server or a controller would make.

    Attributes:
        where: How a message calls it.
        owner: The object of the manifests that it comes from.
        name: Its own name.
        subdomain: Of its pods, where a controller sets it.
        spec: As batch/v1 has it.
        labels: What a controller adds to its pods.
    """

    where: str
    owner: Document
    name: str
    subdomain: str
    spec: dict[str, Any]
    labels: dict[str, str]

    @property
    def document(self) -> Document:
        """The same as an object of its own."""
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": self.name}, "spec": self.spec}


@dataclass(frozen=True)
class Pods:
    """Equal pods.

    Attributes:
        where: How a message calls them.
        owner: The object of the manifests that they come from.
        metadata: Of the template.
        spec: Of each pod.
        count: How many there are at once.
        labels: Of each pod, those that controllers add included.
        job: The job that they belong to, if there is one.
    """

    where: str
    owner: Document
    metadata: dict[str, Any]
    spec: dict[str, Any]
    count: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    job: Job | None = None

    @property
    def name(self) -> str:
        """Of the job, or of the object."""
        return self.job.name if self.job else str(self.owner["metadata"]["name"])

    @property
    def added(self) -> dict[str, str]:
        """The variables that a controller adds in the first pod."""
        if self.job is None or self.job.spec.get("completionMode") != "Indexed":
            return {}
        index = {"JOB_COMPLETION_INDEX": "0"}
        if self.owner["kind"] != "TrainJob":
            return index
        trainer = self.owner["spec"].get("trainer", {})
        return index | {
            "PET_NNODES": str(self.count),
            "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", "auto")),
            "PET_NODE_RANK": "0",
            "PET_MASTER_ADDR": f"{self.job.name}-0.{self.job.subdomain}",
            "PET_MASTER_PORT": "29500",
        }

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Those that run first, and those that stay."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    @property
    def trains(self) -> bool:
        """Whether launch/pod.sh runs in them."""
        return any("launch/pod.sh" in word for container in self.containers for word in command_of(container))


def command_of(container: Mapping[str, Any]) -> list[str]:
    """Command and arguments as they stand there."""
    return [*container.get("command", []), *container.get("args", [])]


def is_ours(container: Mapping[str, Any]) -> bool:
    """Whether the image is the one that this repository builds."""
    return container.get("image", "").split("/")[-1].startswith("hires-gan")


def jobs(of: list[Document]) -> list[Job]:
    """All jobs of a folder; those of a runtime as the TrainJob that names it has them."""
    found = []
    for document in of:
        name = document.get("metadata", {}).get("name", "")
        if document.get("kind") == "Job":
            labels = {"batch.kubernetes.io/job-name": name, "job-name": name}
            subdomain = document["spec"]["template"]["spec"].get("subdomain", "")
            found.append(Job(named(document), document, name, subdomain, document["spec"], labels))
        elif document.get("kind") == "JobSet":
            found += _jobs_of_set(document, name, document["spec"])
        elif document.get("kind") in ("TrainingRuntime", "ClusterTrainingRuntime"):
            users = [d for d in of_kind(of, "TrainJob") if d["spec"]["runtimeRef"]["name"] == name]
            for user in users or [document]:
                found += _jobs_of_runtime(document, user)
    return found


def _jobs_of_set(owner: Document, name: str, spec: dict[str, Any]) -> Iterator[Job]:
    subdomain = spec.get("network", {}).get("subdomain", name)
    every = [
        (replicated, n) for replicated in spec.get("replicatedJobs", []) for n in range(replicated.get("replicas", 1))
    ]
    for replicated, number in every:
        job_name = f"{name}-{replicated['name']}-{number}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": replicated["name"],
            "batch.kubernetes.io/job-name": job_name,
        }
        where = f"{named(owner)}, replicatedJob {replicated['name']}"
        yield Job(where, owner, job_name, subdomain, replicated["template"]["spec"], labels)


def _jobs_of_runtime(runtime: Document, user: Document) -> Iterator[Job]:
    """With what the TrainJob says in place of the runtime; the JobSet has the TrainJob's name."""
    spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
    trainer = user["spec"].get("trainer", {})
    nodes = trainer.get("numNodes", runtime["spec"].get("mlPolicy", {}).get("numNodes", 1))
    for replicated in spec.get("replicatedJobs", []):
        metadata = replicated["template"].get("metadata", {})
        if metadata.get("labels", {}).get("trainer.kubeflow.org/trainjob-ancestor-step") == "trainer":
            job = replicated["template"]["spec"]
            job |= {"completions": nodes, "parallelism": nodes, "completionMode": "Indexed"}
            _give_trainer(job["template"]["spec"]["containers"], trainer)
    yield from _jobs_of_set(user, user["metadata"]["name"], spec)


def _give_trainer(containers: list[dict[str, Any]], trainer: Mapping[str, Any]) -> None:
    for container in containers:
        if container["name"] == "node":
            container |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
            given = trainer.get("env", [])
            kept = [e for e in container.get("env", []) if e["name"] not in {g["name"] for g in given}]
            container["env"] = [*kept, *given]
            if "resourcesPerNode" in trainer:
                container["resources"] = trainer["resourcesPerNode"]


def pods(of: list[Document]) -> list[Pods]:
    """All pods of a folder.

    Raises:
        AssertionError: If there is a pod template that this does not know, which would go unchecked.
    """
    found = [_pods_of_job(job) for job in jobs(of)]
    for document in of_kind(of, *ONE_POD):
        found.append(_pods_of_other(document))
    patched = [named(d) for d in of_kind(of, "TrainJob") if "runtimePatches" in d["spec"]]
    assert not patched, f"{patched}: runtimePatches are not known here, and what they change would go unchecked"
    templates = sum(key == "containers" for document in of for key, _ in pairs(document))
    assert len(found) >= templates, f"{templates} pod templates, but only {len(found)} of them are known here"
    return found


def _pods_of_job(job: Job) -> Pods:
    template = job.spec["template"]
    metadata = template.get("metadata", {})
    count = min(job.spec.get("parallelism", 1), job.spec.get("completions", job.spec.get("parallelism", 1)))
    labels = {**metadata.get("labels", {}), **job.labels}
    return Pods(job.where, job.owner, metadata, template["spec"], count, labels, job)


def _pods_of_other(document: Document) -> Pods:
    spec = document["spec"]
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template = document if document["kind"] == "Pod" else spec["template"]
    metadata = template.get("metadata", {})
    count = spec.get("replicas", 1)
    return Pods(named(document), document, metadata, template["spec"], count, dict(metadata.get("labels", {})))


def claims(of: list[Document]) -> dict[str, Document]:
    """The volume claims of a folder, those of its StatefulSets' templates included."""
    found = {document["metadata"]["name"]: document for document in of_kind(of, "PersistentVolumeClaim")}
    for document in of_kind(of, "StatefulSet"):
        found |= {claim["metadata"]["name"]: claim for claim in document["spec"].get("volumeClaimTemplates", [])}
    return found


# --- what a container is told -----------------------------------------------------------------------------------------


def config_maps(of: list[Document]) -> dict[str, dict[str, str]]:
    """The content of every ConfigMap, by its name."""
    return {document["metadata"]["name"]: document.get("data", {}) for document in of_kind(of, "ConfigMap")}


def environment(pod: Pods, container: Mapping[str, Any], of: list[Document]) -> dict[str, str]:
    """What a container's environment says in the first pod, secrets left out, and what a controller adds.

    References to variables in front are resolved, as the kubelet does.
    """
    maps, told = config_maps(of), dict(pod.added)
    for source in container.get("envFrom", []):
        for key, value in maps.get(source.get("configMapRef", {}).get("name", ""), {}).items():
            told[source.get("prefix", "") + key] = value
    for entry in container.get("env", []):
        value = entry.get("value", "") if "valueFrom" not in entry else _from_elsewhere(pod, entry["valueFrom"], maps)
        if value is not None:
            told[entry["name"]] = resolved(value, told)
    return told


def _from_elsewhere(pod: Pods, source: Mapping[str, Any], maps: Mapping[str, Mapping[str, str]]) -> str | None:
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        return maps.get(reference["name"], {}).get(reference["key"])
    if "secretKeyRef" in source:
        return None
    assert "fieldRef" in source, f"{pod.where}: {source} is not known here"
    path = source["fieldRef"]["fieldPath"]
    kept = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if kept:
        return (pod.labels if kept[1] == "labels" else pod.metadata.get("annotations", {})).get(kept[2], "")
    return {"metadata.name": f"{pod.name}-0", "metadata.namespace": "default", "status.podIP": "10.0.0.1"}[path]


def names_told(container: Mapping[str, Any], of: list[Document]) -> set[str]:
    """The names of all variables that the manifests set, those whose values are secret too."""
    names = {entry["name"] for entry in container.get("env", [])}
    for source in container.get("envFrom", []):
        content = config_maps(of).get(source.get("configMapRef", {}).get("name", ""), {})
        names |= {source.get("prefix", "") + key for key in content}
    return names


def resolved(text: str, variables: Mapping[str, str]) -> str:
    """With `$(NAME)` replaced where NAME is set, and `$$` by `$`, as the kubelet does."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][\w.-]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


def mounted(pod: Pods, container: Mapping[str, Any], of: list[Document]) -> dict[str, str]:
    """Path and text of every file that a ConfigMap gives to a container."""
    maps, files = config_maps(of), {}
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        source = volumes.get(mount["name"], {}).get("configMap", {})
        data = maps.get(source.get("name", ""), {})
        chosen = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in chosen:
            if mount.get("subPath") in (None, item["path"]):
                path = mount["mountPath"] if "subPath" in mount else f"{mount['mountPath'].rstrip('/')}/{item['path']}"
                files[path] = data.get(item["key"], "")
    return files
