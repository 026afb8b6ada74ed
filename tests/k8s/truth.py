"""Values that stand in several places of what is built, and mean the same: each function yields where they differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manifests import (
    DOCKERFILE,
    IMAGE_FOLDER,
    ROOT,
    Document,
    Pods,
    environment,
    is_ours,
    mounted,
    named,
    of_kind,
    pods,
)
from policy import configurations

from hires_gan.config import Configuration
from hires_gan.settings import at_resolution
from hires_gan.training.shares import share


def problems(of: list[Document]) -> list[str]:
    """Where values of a folder contradict each other."""
    return [problem for rule in RULES for problem in rule(of)]


def training(of: list[Document]) -> Iterator[tuple[Pods, dict[str, Any], dict[str, str], Configuration]]:
    """Pods, container, environment and configuration of each training."""
    for pod in pods(of):
        for container in filter(is_ours, pod.containers if pod.trains else []):
            for configuration in configurations(pod, container, of):
                yield pod, container, environment(pod, container, of), configuration


def _differing(where: str, places: dict[str, Any]) -> Iterator[str]:
    if len({str(value) for value in places.values()}) > 1:
        yield f"{where}: " + ", ".join(f"{place} is {value}" for place, value in places.items())


def nodes_are_the_same(of: list[Document]) -> Iterator[str]:
    """What the launcher is told, and how many pods there are."""
    for pod, _, told, _ in training(of):
        assert pod.job is not None, f"{pod.where} trains, but in no job"
        places: dict[str, Any] = {"NODES": told.get("NODES")}
        places |= {key: pod.job.spec.get(key) for key in ("completions", "parallelism")}
        runtimes = of_kind(of, "TrainingRuntime")
        places |= {f"numNodes of {named(r)}": r["spec"]["mlPolicy"]["numNodes"] for r in runtimes}
        yield from _differing(pod.where, places)


def gpus_are_the_same(of: list[Document]) -> Iterator[str]:
    """What the launcher is told, and what the scheduler gives; none is asked for where training is on CPUs."""
    for pod, container, told, _ in training(of):
        limits = container.get("resources", {}).get("limits", {})
        yield from _differing(pod.where, {"GPUS": told.get("GPUS"), "nvidia.com/gpu": limits.get("nvidia.com/gpu", 0)})
        if told.get("GPUS") == "0" and "nvidia.com/gpu" in limits:
            yield f"{pod.where}: nvidia.com/gpu is named, which clusters without GPUs do not know"


def everybody_has_work(of: list[Document]) -> Iterator[str]:
    """At the last resolution a batch has a group of images for each process."""
    for pod, _, told, plan in training(of):
        size = pod.count * (int(told["GPUS"]) or int(told["PROCESSES"]))
        batch = at_resolution(plan.batch.size, plan.recipe.resolution)
        group = getattr(plan.recipe.discriminator, "group_size", 1)
        if not share(batch, group, size - 1, size):
            yield f"{pod.where}: a batch of {batch} in groups of {group} has no work for some of {size} processes"


def ports_are_the_same(of: list[Document]) -> Iterator[str]:
    """Those of the launcher and of the metrics: variable, container, annotation, configuration."""
    for pod, container, told, configuration in training(of):
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        notes = pod.metadata.get("annotations", {})
        launcher = {"MASTER_PORT": told.get("MASTER_PORT"), "the port rendezvous": ports.get("rendezvous")}
        if "PET_MASTER_PORT" in told:
            launcher["the port that Trainer takes"] = told["PET_MASTER_PORT"]
        yield from _differing(pod.where, launcher)
        metrics = {
            "METRICS_PORT": told.get("METRICS_PORT"),
            "the port metrics": ports.get("metrics"),
            "tracking.metrics_port": configuration.tracking.metrics_port,
            "prometheus.io/port": notes.get("prometheus.io/port"),
        }
        yield from _differing(pod.where, metrics)


def the_first_pod_is_found(of: list[Document]) -> Iterator[str]:
    """By the name that its job and its service give it."""
    services = {s["metadata"]["name"]: s["spec"] for s in of_kind(of, "Service")}
    for pod, _, told, _ in training(of):
        assert pod.job is not None
        host = f"{pod.job.name}-0.{pod.job.subdomain}"
        yield from _differing(pod.where, {"MASTER_ADDR": told.get("MASTER_ADDR"), "the first pod's name": host})
        if pod.owner["kind"] != "Job":
            continue  # a JobSet makes its own
        service = services.get(pod.job.subdomain, {})
        if service.get("clusterIP") != "None":
            yield f"{pod.where}: no Service {pod.job.subdomain!r} with clusterIP: None gives pods their names"
        elif not service.get("publishNotReadyAddresses"):
            yield f"{pod.where}: the Service {pod.job.subdomain} needs publishNotReadyAddresses, since all wait for all"


def paths_are_mounted(of: list[Document]) -> Iterator[str]:
    """What the configuration names lies on volumes that stay: runs writable, data at least readable."""
    for pod, container, _, configuration in training(of):
        yield from (f"{pod.where}: run.dir, {p}" for p in _off_volumes(pod, container, configuration.run.dir, True))
        for shards in _shards(configuration):
            if "://" not in shards and not shards.startswith(("demo:", "pipe:")):
                yield from (f"{pod.where}: data, {p}" for p in _off_volumes(pod, container, Path(shards), False))


def _shards(configuration: Configuration) -> list[str]:
    data = configuration.data.model_dump()
    return [str(data["shards"])] if data.get("shards") else [str(path) for path in (data.get("domains") or {}).values()]


def _off_volumes(pod: Pods, container: dict[str, Any], path: Path, written: bool) -> Iterator[str]:
    """What is wrong with the place of a folder."""
    mounts = [m for m in container.get("volumeMounts", []) if path.is_relative_to(m["mountPath"])]
    if not mounts:
        yield f"{path}, lies on no volume"
        return
    mount = max(mounts, key=lambda mount: len(mount["mountPath"]))
    volume = next(volume for volume in pod.spec["volumes"] if volume["name"] == mount["name"])
    if "persistentVolumeClaim" not in volume:
        yield f"{path}, lies on the volume {volume['name']}, which ends with the pod"
    if written and (mount.get("readOnly") or volume.get("persistentVolumeClaim", {}).get("readOnly")):
        yield f"{path}, lies on the volume {volume['name']}, which is mounted read-only"


def the_image_is_as_it_was_built(of: list[Document]) -> Iterator[str]:
    """One image; its user, its folder, and the files in it."""
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    images = {c["image"] for pod in pods(of) for c in pod.containers if is_ours(c)}
    if len(images) > 1:
        yield f"images differ: {', '.join(sorted(images))}"
    for pod in pods(of):
        for container in filter(is_ours, pod.containers):
            context = {**pod.spec.get("securityContext", {}), **container.get("securityContext", {})}
            yield from _differing(pod.where, {"runAsUser": context.get("runAsUser"), "the image's user": user})
            yield from _differing(pod.where, {"runAsGroup": context.get("runAsGroup"), "the image's group": group})
            if "workingDir" in container:
                yield f"{pod.where}: workingDir is {container['workingDir']}; commands start in {IMAGE_FOLDER}"
            for path, text in mounted(pod, container, of).items():
                for name in re.findall(rf"{IMAGE_FOLDER}/([\w./-]+)", text):
                    if not (ROOT / name).is_file() or name.split("/")[0] not in ("configs", "launch"):
                        yield f"{pod.where}: {path} names {IMAGE_FOLDER}/{name}, which is not in the image"


RULES: list[Callable[[list[Document]], Iterator[str]]] = [
    nodes_are_the_same,
    gpus_are_the_same,
    everybody_has_work,
    ports_are_the_same,
    the_first_pod_is_found,
    paths_are_mounted,
    the_image_is_as_it_was_built,
]
