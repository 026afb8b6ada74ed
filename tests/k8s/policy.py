"""What the objects of a folder keep to together, one rule for each function: it yields what is wrong, in words."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manifests import (
    IMAGE_FOLDER,
    ROOT,
    Document,
    Pods,
    claims,
    command_of,
    config_maps,
    environment,
    is_ours,
    mounted,
    named,
    of_kind,
    pairs,
    pods,
    resolved,
)
from pod_policy import POD_RULES

from hires_gan.config import Configuration, load_configuration
from hires_gan.training.launcher import seconds_before_kill

Rule = Callable[[list[Document]], Iterator[str]]


def problems(of: list[Document]) -> list[str]:
    """What all rules find wrong with the objects of a folder."""
    found = [f"{pod.where}: {problem}" for pod in pods(of) for rule in POD_RULES for problem in rule(pod)]
    return found + [problem for rule in RULES for problem in rule(of)]


SECRET_NAME = re.compile(r"passw|token|secret|credential|access_?key|api_?key|private", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/\s:@]*:(?!\$[({])[^/\s@]+@"  # a URI with a password that is no reference
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_[A-Za-z0-9]{36}|\bxox[abprs]-"
    r"|\beyJ[\w-]+\.[\w-]+\."
)
ASSIGNED = re.compile(r"^\s*([\w.-]+)\s*[:=]\s*(\S.*)$", re.MULTILINE)


def no_secret_is_written_down(of: list[Document]) -> Iterator[str]:
    """Not in an object Secret, a ConfigMap, a variable, a command or an annotation."""
    for document in of:
        where = named(document)
        if document["kind"] == "Secret" and (document.get("data") or document.get("stringData")):
            yield f"{where} has values; secrets are made beside the manifests"
        for key, value in pairs(document):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and SECRET_VALUE.search(text):
                    yield f"{where}: {key} holds something like a secret"
    for name, data in config_maps(of).items():
        for key, text in data.items():
            yield from (f"ConfigMap {name}: {found} is a secret's name" for found in _secret_names(key, str(text)))
    for pod in pods(of):
        for container in pod.containers:
            for entry in container.get("env", []):
                if SECRET_NAME.search(entry["name"]) and entry.get("value") and not _is_reference(entry):
                    yield f"{pod.where}: {entry['name']} is set to a value, and not from a Secret"


def _secret_names(key: str, text: str) -> Iterator[str]:
    names = [key] if text.strip() else []
    for name, value in ASSIGNED.findall(text):
        if value.strip("'\" ") not in ("", "null", "~") and not value.startswith("#"):
            names.append(name)
    yield from (name for name in names if SECRET_NAME.search(name))


def _is_reference(entry: Mapping[str, Any]) -> bool:
    """Whether a variable only says where the secret is: a file, or another variable."""
    return entry["name"].endswith("_FILE") or entry["value"].startswith(("/", "$("))


def every_pod_is_behind_a_policy(of: list[Document]) -> Iterator[str]:
    """Traffic in is closed but for what is named; what a policy opens is not everything."""
    policies = of_kind(of, "NetworkPolicy")
    for pod in pods(of):
        if not any(selects(policy["spec"].get("podSelector", {}), pod.labels) for policy in policies):
            yield f"{pod.where}: no NetworkPolicy selects these pods"
    for policy in policies:
        spec = policy["spec"]
        if "Ingress" not in spec.get("policyTypes", ["Ingress"]):
            yield f"{named(policy)} leaves traffic in open"
        for rule in spec.get("ingress", []):
            if not rule.get("from"):
                yield f"{named(policy)} lets everybody in"
            if any(not peer for peer in rule.get("from", [])):
                yield f"{named(policy)} has an empty peer, which is everybody"
        if not any(selects(spec.get("podSelector", {}), pod.labels) for pod in pods(of)):
            yield f"{named(policy)} selects no pod"


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector means a pod with these labels; an empty one means all."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(_expression(part, labels) for part in selector.get("matchExpressions", []))


def _expression(part: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    there, values = labels.get(part["key"]), part.get("values", [])
    return {
        "In": there in values,
        "NotIn": there not in values,
        "Exists": there is not None,
        "DoesNotExist": there is None,
    }[part["operator"]]


def services_reach_pods(of: list[Document]) -> Iterator[str]:
    """A service selects pods that are there, and names ports that they have."""
    for service in of_kind(of, "Service"):
        selector = service["spec"].get("selector", {})
        chosen = [pod for pod in pods(of) if selector and selector.items() <= pod.labels.items()]
        if not chosen:
            yield f"{named(service)} selects no pod with {selector}"
        ports = [port for pod in chosen for c in pod.containers for port in c.get("ports", [])]
        reached = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        for port in service["spec"].get("ports", []) if chosen else []:
            if port.get("targetPort", port["port"]) not in reached:
                yield f"{named(service)} leads to {port.get('targetPort', port['port'])}, a port that no pod has"


def policies_fit_ports(of: list[Document]) -> Iterator[str]:
    """A policy opens ports that the pods behind it have."""
    for policy in of_kind(of, "NetworkPolicy"):
        chosen = [pod for pod in pods(of) if selects(policy["spec"].get("podSelector", {}), pod.labels)]
        ports = [port for pod in chosen for container in pod.containers for port in container.get("ports", [])]
        known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        for rule in policy["spec"].get("ingress", []) if ports else []:
            for port in rule.get("ports", []):
                if port.get("port") not in known:
                    yield f"{named(policy)} opens {port.get('port')}, a port that no pod behind it has"


def training_pods_reach_each_other(of: list[Document]) -> Iterator[str]:
    """At any port, since gloo and NCCL choose theirs; and names are resolved."""
    for pod in pods(of):
        chosen = [p for p in of_kind(of, "NetworkPolicy") if selects(p["spec"].get("podSelector", {}), pod.labels)]
        for way, peers in (("ingress", "from"), ("egress", "to")):
            closed = [p for p in chosen if way.capitalize() in p["spec"].get("policyTypes", ["Ingress"])]
            rules = [rule for policy in closed for rule in policy["spec"].get(way, [])]
            if pod.trains and pod.count > 1 and closed and not any(_opens(rule, peers, pod.labels) for rule in rules):
                yield f"{pod.where}: no NetworkPolicy opens {way} at every port between these pods"
            if way == "egress" and closed and pod.trains and not any(_opens_port(rule, 53, "UDP") for rule in rules):
                yield f"{pod.where}: no NetworkPolicy opens egress to port 53, where names are resolved"


def _opens(rule: Mapping[str, Any], peers: str, labels: Mapping[str, str]) -> bool:
    here = [p for p in rule.get(peers, []) if "podSelector" in p and "namespaceSelector" not in p]
    return "ports" not in rule and any(selects(peer["podSelector"], labels) for peer in here)


def _opens_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    return any(p.get("port") == port and p.get("protocol", "TCP") == protocol for p in rule.get("ports", []))


def names_are_known(of: list[Document]) -> Iterator[str]:
    """Claims, ConfigMaps and service accounts that pods name are there; secrets alone are made beside them."""
    accounts = {document["metadata"]["name"] for document in of_kind(of, "ServiceAccount")}
    runtimes = {document["metadata"]["name"] for document in of_kind(of, "TrainingRuntime")}
    for train_job in of_kind(of, "TrainJob"):
        if train_job["spec"]["runtimeRef"]["name"] not in runtimes:
            yield f"{named(train_job)}: there is no TrainingRuntime {train_job['spec']['runtimeRef']['name']}"
    for pod in pods(of):
        account = pod.spec.get("serviceAccountName")
        if account and account not in accounts:
            yield f"{pod.where}: there is no ServiceAccount {account}"
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims(of):
                yield f"{pod.where}: there is no PersistentVolumeClaim {claim}"
            content = volume.get("configMap", {}).get("name")
            if content and content not in config_maps(of):
                yield f"{pod.where}: there is no ConfigMap {content}"
        for container in pod.containers:
            for name in (source.get("configMapRef", {}).get("name") for source in container.get("envFrom", [])):
                if name and name not in config_maps(of):
                    yield f"{pod.where}: there is no ConfigMap {name}"
            for name, key in _keys_named(container):
                if key not in config_maps(of).get(name, {}):
                    yield f"{pod.where}: there is no key {key} in a ConfigMap {name}"


def _keys_named(container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            yield reference["name"], reference["key"]


def claims_fit(of: list[Document]) -> Iterator[str]:
    """What several pods mount can be mounted by several nodes, and written where it is written."""
    users: dict[str, list[Pods]] = {}
    for pod in pods(of):
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {})
            name, modes = claim.get("claimName", ""), _modes(of, claim.get("claimName"))
            users.setdefault(name, []).append(pod)
            writes = not claim.get("readOnly") and not _mounted_read_only(pod, volume["name"])
            allowed = {"ReadWriteMany"} if writes else {"ReadWriteMany", "ReadOnlyMany"}
            count = sum(user.count for user in users[name])
            if modes and writes and modes == {"ReadOnlyMany"}:
                yield f"{pod.where}: {name} is written, but its access mode is ReadOnlyMany"
            if modes and count > 1 and not modes & allowed and not _on_one_node(users[name]):
                yield (
                    f"{pod.where}: {count} pods on any nodes mount {name}, whose access mode is {', '.join(modes)}; "
                    f"that needs {' or '.join(sorted(allowed))}, or a podAffinity that keeps them on one node"
                )


def _on_one_node(users: list[Pods]) -> bool:
    """Whether the scheduler has to put them all on the same node."""
    affinities = [pod.spec.get("affinity", {}).get("podAffinity", {}) for pod in users]
    return all(
        any(
            term["topologyKey"] == "kubernetes.io/hostname"
            and all(selects(term.get("labelSelector", {}), other.labels) for other in users)
            for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        for affinity in affinities
    )


def _modes(of: list[Document], name: str | None) -> set[str]:
    return set(claims(of).get(name or "", {}).get("spec", {}).get("accessModes", []))


def _mounted_read_only(pod: Pods, volume: str) -> bool:
    mounts = [m for container in pod.containers for m in container.get("volumeMounts", []) if m["name"] == volume]
    return all(mount.get("readOnly") for mount in mounts)


def every_object_is_labelled(of: list[Document]) -> Iterator[str]:
    """So that `kubectl get all -l app.kubernetes.io/name=hires-gan` shows all that belongs together."""
    for document in of:
        if "app.kubernetes.io/name" not in document["metadata"].get("labels", {}):
            yield f"{named(document)} has no label app.kubernetes.io/name"


def the_grace_is_long_enough(of: list[Document]) -> Iterator[str]:
    """The pod waits for longer than the launcher, and the launcher for longer than a checkpoint may take."""
    for pod in pods(of):
        for container in filter(is_ours, pod.containers):
            for configuration in configurations(pod, container, of):
                patience = seconds_before_kill(
                    {"TORCHELASTIC_RUN_ID": "x", **environment(pod, container, of)}, version("torch")
                )
                waits = pod.spec.get("terminationGracePeriodSeconds", 30)
                assert patience is not None
                if not waits > patience > configuration.backend.grace:
                    yield (
                        f"{pod.where}: terminationGracePeriodSeconds is {waits}, the launcher kills after "
                        f"{patience:g} s, and backend.grace is {configuration.backend.grace:g}: each has to be more "
                        "than the next"
                    )


def configurations(pod: Pods, container: Mapping[str, Any], of: list[Document]) -> Iterator[Configuration]:
    """What a container trains, with its overrides: one, or none where it does not train.

    Raises:
        UsageError: If our own loader refuses it.
    """
    words = [resolved(word, environment(pod, container, of)) for word in command_of(container)]
    for at, word in enumerate(words):
        if word.endswith((".yaml", ".yml")):
            overrides = [text for text in words[at + 1 :] if re.match(r"[a-z_]+\.[\w.]+=", text)]
            with tempfile.TemporaryDirectory() as folder:
                yield load_configuration(at_hand(word, mounted(pod, container, of), Path(folder)), overrides)


def at_hand(name: str, files: Mapping[str, str], folder: Path) -> Path:
    """A file that a container sees, as one that is here: from a ConfigMap, or of the image.

    Args:
        name: Its path in the container.
        files: What ConfigMaps give to the container, by path.
        folder: Where to write it.
    """
    if name not in files:
        return Path(name.replace(IMAGE_FOLDER, str(ROOT)))
    path = folder / Path(name).name
    path.write_text(files[name].replace(f"{IMAGE_FOLDER}/", f"{ROOT}/"), encoding="utf-8")
    return path


RULES: list[Rule] = [
    no_secret_is_written_down,
    every_pod_is_behind_a_policy,
    services_reach_pods,
    policies_fit_ports,
    training_pods_reach_each_other,
    names_are_known,
    claims_fit,
    every_object_is_labelled,
    the_grace_is_long_enough,
]
