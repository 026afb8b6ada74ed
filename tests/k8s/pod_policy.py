"""What every pod of k8s/ keeps to, one rule for each function: it yields what is wrong, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from admission import bytes_of
from manifests import Pods, is_ours

PodRule = Callable[[Pods], Iterator[str]]


def user_is_not_root(pod: Pods) -> Iterator[str]:
    """By number, which the kubelet can check before it starts anything."""
    whole = pod.spec.get("securityContext", {})
    for container in pod.containers:
        context = {**whole, **container.get("securityContext", {})}
        user = context.get("runAsUser")
        if context.get("runAsNonRoot") is not True or not isinstance(user, int) or user == 0:
            yield f"{container['name']} needs runAsNonRoot: true and a numeric runAsUser that is not 0"
        if context.get("runAsGroup") == 0 or whole.get("fsGroup") == 0 or 0 in whole.get("supplementalGroups", []):
            yield f"{container['name']} is in the group 0"


def nothing_is_privileged(pod: Pods) -> Iterator[str]:
    """No way up, and no way to the node."""
    yield from (f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(key))
    yield from (f"the volume {v['name']} is a hostPath" for v in pod.spec.get("volumes", []) if "hostPath" in v)
    for container in pod.containers:
        context = container.get("securityContext", {})
        if context.get("privileged"):
            yield f"{container['name']} is privileged"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} needs allowPrivilegeEscalation: false"
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{container['name']} needs capabilities: {{drop: [ALL]}}, and none added"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{container['name']} takes a hostPort"


def root_is_read_only(pod: Pods) -> Iterator[str]:
    """What is written goes to volumes."""
    for container in pod.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} needs readOnlyRootFilesystem: true"
        if is_ours(container) and "/tmp" not in {m["mountPath"] for m in container.get("volumeMounts", [])}:
            yield f"{container['name']} has no volume at /tmp, where HOME and temporary files are"


def system_calls_are_filtered(pod: Pods) -> Iterator[str]:
    """By the runtime's own profile."""
    whole = pod.spec.get("securityContext", {})
    for container in pod.containers:
        profile = container.get("securityContext", {}).get("seccompProfile", whole.get("seccompProfile", {}))
        if profile.get("type") != "RuntimeDefault":
            yield f"{container['name']} needs seccompProfile: {{type: RuntimeDefault}}"


def no_token_is_mounted(pod: Pods) -> Iterator[str]:
    """Nothing in these pods speaks to the API server; one that somebody starts by hand needs no account of its own."""
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: false is missing"
    if pod.spec.get("serviceAccountName", "default") == "default" and pod.owner["kind"] != "Pod":
        yield "a serviceAccountName of its own is missing"


def resources_are_bounded(pod: Pods) -> Iterator[str]:
    """Requests, so that the scheduler knows; limits, so that neighbours live."""
    for container in pod.containers:
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory"} - resources.get(kind, {}).keys()
            if missing:
                yield f"{container['name']} has no {kind} of {', '.join(sorted(missing))}"
        devices = {name for name in resources.get("requests", {}) if "/" in name}
        if devices - resources.get("limits", {}).keys():
            yield f"{container['name']} asks for {sorted(devices)} without a limit"


def images_are_pinned(pod: Pods) -> Iterator[str]:
    """By a version or a digest."""
    for container in pod.containers:
        image = container.get("image", "")
        tag = image.split("@")[0].split("/")[-1].partition(":")[2]
        if "@sha256:" not in image and not re.search(r"\d", tag):
            yield f"{container['name']} has the image {image!r}, without a version"
        if tag.split("-")[0] == "latest":
            yield f"{container['name']} has the image {image!r}; latest is another one tomorrow"


def volumes_and_mounts_fit(pod: Pods) -> Iterator[str]:
    """Each mount has its volume, and each volume somebody who mounts it."""
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    if pod.owner["kind"] == "StatefulSet":
        volumes |= {c["metadata"]["name"] for c in pod.owner["spec"].get("volumeClaimTemplates", [])}
    mounts = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
    yield from (f"the volume {name} is mounted by nobody" for name in sorted(volumes - mounts))
    yield from (f"the mount {name} has no volume" for name in sorted(mounts - volumes))


def memory_is_shared(pod: Pods) -> Iterator[str]:
    """Workers and NCCL need more than a container's 64 MB of /dev/shm; what they take counts as the pod's memory."""
    volumes = {volume["name"]: volume.get("emptyDir") for volume in pod.spec.get("volumes", [])}
    for container in pod.containers:
        if not (pod.trains and is_ours(container)):
            continue
        shared = [m["name"] for m in container.get("volumeMounts", []) if m["mountPath"] == "/dev/shm"]
        volume = volumes.get(shared[0]) if shared else None
        limit = container.get("resources", {}).get("limits", {}).get("memory", "0")
        if not volume or volume.get("medium") != "Memory" or "sizeLimit" not in volume:
            yield f"{container['name']} needs an emptyDir at /dev/shm with medium: Memory and a sizeLimit"
        elif bytes_of(volume["sizeLimit"]) >= bytes_of(limit):
            yield f"{container['name']} has {volume['sizeLimit']} at /dev/shm, which its memory, {limit}, does not hold"


def disks_are_bounded(pod: Pods) -> Iterator[str]:
    """A volume of the node's own disk has a size."""
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"the emptyDir {volume['name']} has no sizeLimit"


def is_labelled(pod: Pods) -> Iterator[str]:
    """With the labels that everybody knows, which dashboards and policies look for."""
    for what, labels in (("the pod", pod.labels), ("the object", pod.owner["metadata"].get("labels", {}))):
        missing = {"app.kubernetes.io/name"} - labels.keys()
        if missing:
            yield f"{what} has no label {', '.join(sorted(missing))}"


def needs_no_object_to_start(pod: Pods) -> Iterator[str]:
    """A pod that waits for a missing object says nothing; one that starts asks the doctor what is missing."""
    for container in filter(is_ours, pod.containers if pod.trains else []):
        for source in container.get("envFrom", []):
            for kind in ("configMapRef", "secretRef"):
                if kind in source and source[kind].get("optional") is not True:
                    yield f"{container['name']}: {kind} {source[kind]['name']} needs optional: true"
        for entry in container.get("env", []):
            for kind in ("configMapKeyRef", "secretKeyRef"):
                reference = entry.get("valueFrom", {}).get(kind)
                if reference and reference.get("optional") is not True:
                    yield f"{container['name']}: {kind} {reference['name']} of {entry['name']} needs optional: true"
    for volume in pod.spec.get("volumes", []) if pod.trains else []:
        for kind in ("configMap", "secret"):
            if kind in volume and volume[kind].get("optional") is not True:
                yield f"the volume {volume['name']} of a {kind} needs optional: true"


def failures_are_classified(pod: Pods) -> Iterator[str]:
    """A wrong set-up (exit code 2) ends the job; a node that goes away uses up no retries."""
    if not (pod.job and any(map(is_ours, pod.containers))):
        return
    rules = pod.job.spec.get("podFailurePolicy", {}).get("rules", [])
    fatal = [r for r in rules if 2 in (r.get("onExitCodes") or {}).get("values", []) and r["action"] == "FailJob"]
    lost = [r for r in rules if "DisruptionTarget" in {c["type"] for c in r.get("onPodConditions") or []}]
    if not fatal:
        yield "podFailurePolicy has no rule FailJob for the exit code 2: a wrong set-up is tried again and again"
    if not lost:
        yield "podFailurePolicy has no rule for the condition DisruptionTarget"


POD_RULES: list[PodRule] = [
    user_is_not_root,
    nothing_is_privileged,
    root_is_read_only,
    system_calls_are_filtered,
    no_token_is_mounted,
    resources_are_bounded,
    images_are_pinned,
    volumes_and_mounts_fit,
    memory_is_shared,
    disks_are_bounded,
    is_labelled,
    needs_no_object_to_start,
    failures_are_classified,
]
