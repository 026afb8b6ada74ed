"""What API servers and controllers check beyond their schemas, as far as manifests of this kind meet it.

The values stand in the API reference of Kubernetes 1.37, of JobSet v1alpha2 (0.12) and of Kubeflow Trainer v1alpha1
(2.3), in the description of each field; a published schema has them as plain text, or, for JobSet, only in the
definition that a cluster holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from manifests import Document, Job, Pods, jobs, named, pods

POD_VALUES: dict[str, set[str]] = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "nodeTaintsPolicy": {"Honor", "Ignore"},
    "nodeAffinityPolicy": {"Honor", "Ignore"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "medium": {"", "Memory", "HugePages"},
    "protocol": {"TCP", "UDP", "SCTP"},
}
"""Allowed values of keys that mean the same wherever they stand in a pod or a service."""
JOB_VALUES: dict[str, set[str]] = {
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
}
JOBSET_VALUES: dict[str, set[str]] = {
    "restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
    "startupPolicyOrder": {"AnyOrder", "InOrder"},
}
OBJECT_VALUES: dict[str, set[str]] = {
    "volumeMode": {"Filesystem", "Block"},
    "internalTrafficPolicy": {"Cluster", "Local"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "strategy.type": {"Recreate", "RollingUpdate"},
    "updateStrategy.type": {"OnDelete", "RollingUpdate"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
}
VALUES = POD_VALUES | JOB_VALUES | JOBSET_VALUES | OBJECT_VALUES
LISTS: dict[str, set[str]] = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "policyTypes": {"Ingress", "Egress"},
    "onJobFailureReasons": {
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
}
"""Likewise of keys that hold a list."""
JOBSET_ACTIONS = {
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
}
POD_ACTIONS = {"FailJob", "FailIndex", "Ignore", "Count"}
RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""RFC 1035: what a host name's part may be, and with it the name of a job whose pods have host names."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
"""RFC 1123, which lets it start with a digit too."""
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")
}
TORCH_OWN = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
"""What Trainer's torch runtime sets itself; a TrainJob that sets one of them is refused."""


def problems(of: list[Document]) -> list[str]:
    """Whatever would be refused in these objects, beyond their schemas."""
    found = [problem for document in of for problem in _of_object(document)]
    for rule in JOB_RULES:
        found += [f"{job.where}: {problem}" for job in jobs(of) for problem in rule(job)]
    for rule in POD_RULES:
        found += [f"{pod.where}: {problem}" for pod in pods(of) for problem in rule(pod)]
    names = Counter((d.get("kind"), d["metadata"].get("namespace"), d["metadata"]["name"]) for d in of)
    return found + [f"{kind} {name} is there {n} times" for (kind, _, name), n in names.items() if n > 1]


def _of_object(document: Document) -> Iterator[str]:
    where = named(document)
    if not _fits(SUBDOMAIN, document["metadata"]["name"], 253):
        yield f"{where}: the name is no DNS subdomain in lower case"
    for path, key, value in _keys(document, ""):
        allowed = VALUES.get(key) or VALUES.get(".".join(path.split(".")[-2:])) if isinstance(value, str) else None
        if allowed and value not in allowed:
            yield f"{where}: {path} is {value}; allowed are {', '.join(sorted(allowed))}"
        if isinstance(value, list) and not set(map(str, value)) <= LISTS.get(key, set(map(str, value))):
            yield f"{where}: {path} is {value}; allowed are {', '.join(sorted(LISTS[key]))}"
    specific: dict[str, Callable[[Document], Iterator[str]]] = {
        "JobSet": of_job_set,
        "TrainingRuntime": of_runtime,
        "ClusterTrainingRuntime": of_runtime,
        "TrainJob": of_train_job,
        "Deployment": of_selector,
        "StatefulSet": of_selector,
    }
    yield from (f"{where}: {problem}" for problem in specific.get(document["kind"], lambda _: iter(()))(document))


def _keys(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Path, key and value of everything; what a ConfigMap holds is for others."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        if path == "" and key in ("data", "stringData"):
            continue
        yield f"{path}.{key}".lstrip("."), str(key), value
        yield from _keys(value, f"{path}.{key}")


def _fits(pattern: re.Pattern[str], text: str, longest: int) -> bool:
    return bool(pattern.fullmatch(text)) and len(text) <= longest


# --- JobSet and Trainer -----------------------------------------------------------------------------------------------


def of_job_set(document: Document) -> Iterator[str]:
    """Names, and the rules on failure."""
    yield from _of_set(document["spec"])
    for replicated in document["spec"].get("replicatedJobs", []):
        job, last = replicated["template"]["spec"], replicated.get("replicas", 1) - 1
        name = f"{document['metadata']['name']}-{replicated['name']}-{last}"
        pod = f"{name}-{(job.get('completions') or 1) - 1}-abcde"
        if not _fits(LABEL, pod, 63):
            yield f"pods would be called {pod}, which is no host name of at most 63 characters"


def _of_set(spec: Mapping[str, Any]) -> Iterator[str]:
    replicated = {job["name"] for job in spec.get("replicatedJobs", [])}
    for name in sorted(replicated):
        if not _fits(LABEL, name, 20):
            yield f"the replicatedJob {name} needs a host name's part of at most 20 characters"
    policy = spec.get("failurePolicy", {})
    for key in ("failurePolicy", "successPolicy"):
        targets = [spec.get(key, {}), *spec.get(key, {}).get("rules", [])]
        unknown = {name for part in targets for name in part.get("targetReplicatedJobs", [])} - replicated
        if unknown:
            yield f"{key} names the replicatedJobs {sorted(unknown)}, which are not there"
    if spec.get("successPolicy", {}).get("operator", "All") not in ("All", "Any"):
        yield f"successPolicy.operator is {spec['successPolicy']['operator']}; allowed are All, Any"
    yield from _of_rules(policy.get("rules", []))


def _of_rules(rules: list[dict[str, Any]]) -> Iterator[str]:
    for rule in rules:
        if not _fits(RULE_NAME, rule.get("name", ""), 128):
            yield f"the rule {rule.get('name')!r} needs a name of letters, digits and _,: that starts with a letter"
        if rule.get("action") not in JOBSET_ACTIONS:
            yield f"the rule {rule.get('name')} has the action {rule.get('action')}; allowed: {sorted(JOBSET_ACTIONS)}"
    twice = [name for name, times in Counter(rule.get("name") for rule in rules).items() if times > 1]
    if twice:
        yield f"the rules {twice} are there twice"


def of_runtime(document: Document) -> Iterator[str]:
    """A runtime's template is a JobSet's, and the trainer has to be found in it."""
    spec = document["spec"]["template"]["spec"]
    yield from _of_set(spec)
    steps = []
    for replicated in spec.get("replicatedJobs", []):
        labels = replicated["template"].get("metadata", {}).get("labels", {})
        steps.append(labels.get("trainer.kubeflow.org/trainjob-ancestor-step"))
        containers = replicated["template"]["spec"]["template"]["spec"]["containers"]
        if steps[-1] == "trainer" and "node" not in {container["name"] for container in containers}:
            yield "the job of the step trainer has no container node"
        if steps[-1] == "trainer" and replicated.get("replicas", 1) != 1:
            yield f"the job of the step trainer has {replicated['replicas']} replicas; 1 is allowed"
    if steps.count("trainer") != 1:
        yield f"{steps.count('trainer')} jobs have trainer.kubeflow.org/trainjob-ancestor-step: trainer; 1 is needed"


def of_train_job(document: Document) -> Iterator[str]:
    """The name is that of the JobSet; variables of the torch runtime are its own."""
    if not _fits(LABEL, document["metadata"]["name"], 63):
        yield "the name is no host name's part of at most 63 characters"
    taken = {entry["name"] for entry in document["spec"].get("trainer", {}).get("env", [])} & TORCH_OWN
    if taken:
        yield f"the trainer's env sets {sorted(taken)}, which the torch runtime sets itself"


def of_selector(document: Document) -> Iterator[str]:
    """The pods have to be those that are looked for."""
    wanted = document["spec"]["selector"].get("matchLabels", {})
    labels = document["spec"]["template"].get("metadata", {}).get("labels", {})
    if not wanted or not wanted.items() <= labels.items():
        yield f"the selector {wanted} does not fit the template's labels {labels}"


# --- jobs -------------------------------------------------------------------------------------------------------------


def of_indexes(job: Job) -> Iterator[str]:
    """What only an Indexed job may have."""
    indexed = job.spec.get("completionMode") == "Indexed"
    for key in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
        if key in job.spec and not indexed:
            yield f"{key} needs completionMode: Indexed"
    if "maxFailedIndexes" in job.spec and "backoffLimitPerIndex" not in job.spec:
        yield "maxFailedIndexes needs backoffLimitPerIndex"
    if indexed and "completions" not in job.spec:
        yield "completionMode: Indexed needs completions"


def of_failures(job: Job) -> Iterator[str]:
    """The policy on failures of pods."""
    policy = job.spec.get("podFailurePolicy")
    if policy is None:
        return
    if job.spec["template"]["spec"].get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy: Never"
    if job.spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podFailurePolicy needs podReplacementPolicy: Failed"
    names = {container["name"] for container in job.spec["template"]["spec"]["containers"]}
    for rule in policy.get("rules", []):
        yield from _of_pod_rule(rule, names, "backoffLimitPerIndex" in job.spec)


def _of_pod_rule(rule: Mapping[str, Any], names: set[str], per_index: bool) -> Iterator[str]:
    if rule.get("action") not in POD_ACTIONS:
        yield f"podFailurePolicy has the action {rule.get('action')}; allowed are {sorted(POD_ACTIONS)}"
    if rule.get("action") == "FailIndex" and not per_index:
        yield "the action FailIndex needs backoffLimitPerIndex"
    codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
    if (not codes) == (not conditions):
        yield f"the rule of the action {rule.get('action')} needs exactly one of onExitCodes and onPodConditions"
    if codes and codes.get("operator") not in ("In", "NotIn"):
        yield f"onExitCodes.operator is {codes.get('operator')}; allowed are In, NotIn"
    if codes and codes.get("operator") == "In" and 0 in codes.get("values", []):
        yield "onExitCodes has 0 among its values, which is no failure"
    if codes and sorted(set(codes.get("values", []))) != codes.get("values"):
        yield f"onExitCodes has {codes.get('values')}, which has to be in order and without doubles"
    if codes and codes.get("containerName", next(iter(names))) not in names:
        yield f"onExitCodes names the container {codes['containerName']}, which is not there"
    for condition in conditions or []:
        if condition.get("status", "True") not in ("True", "False", "Unknown"):
            yield f"onPodConditions has the status {condition['status']!r}; allowed are 'True', 'False', 'Unknown'"


def of_restarts(job: Job) -> Iterator[str]:
    """A job's pods end."""
    if job.spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the pods of a job need restartPolicy: Never or OnFailure"


JOB_RULES: list[Callable[[Job], Iterator[str]]] = [of_indexes, of_failures, of_restarts]


# --- pods -------------------------------------------------------------------------------------------------------------


def of_names(pod: Pods) -> Iterator[str]:
    """Of containers, volumes, ports and variables."""
    for what in ("containers", "volumes"):
        names = [part["name"] for part in pod.spec.get(what, [])]
        yield from (f"{name!r} is no name for {what}" for name in names if not _fits(NAME, name, 63))
        yield from (f"{what} has {name} twice" for name, times in Counter(names).items() if times > 1)
    for container in pod.containers:
        for port in container.get("ports", []):
            if not _fits(NAME, port.get("name", "a"), 15) or not 0 < port["containerPort"] < 65536:
                yield f"the port {port} needs a number below 65536, and a name of at most 15 characters"
        variables = Counter(entry["name"] for entry in container.get("env", []))
        yield from (f"env has {name} {n} times" for name, n in variables.items() if n > 1)
        yield from (f"{name!r} is no name for a variable" for name in variables if not _fits(VARIABLE, name, 255))
        paths = Counter(mount["mountPath"] for mount in container.get("volumeMounts", []))
        yield from (f"{path} is mounted {n} times" for path, n in paths.items() if n > 1)


def of_resources(pod: Pods) -> Iterator[str]:
    """Requests are quantities up to the limits; of devices they are the limits."""
    for container in pod.containers:
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            for name, amount in resources.get(kind, {}).items():
                if not QUANTITY.fullmatch(str(amount)):
                    yield f"{container['name']}: {kind}.{name} is {amount!r}, which is no quantity"
                    return
        for name, amount in resources.get("requests", {}).items():
            limit = resources.get("limits", {}).get(name)
            if limit is not None and bytes_of(amount) > bytes_of(limit):
                yield f"{container['name']} requests {amount} of {name}, which is more than its limit, {limit}"
            if "/" in name and (limit is None or bytes_of(amount) != bytes_of(limit)):
                yield f"{container['name']} requests {amount} of {name}, whose limit is {limit}: they have to be equal"


def bytes_of(quantity: Any) -> float:
    """The number that a quantity such as `64Gi` or `500m` is."""
    found = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    assert found, f"{quantity!r} is no quantity"
    return float(found[1]) * SUFFIXES[found[2]]


POD_RULES: list[Callable[[Pods], Iterator[str]]] = [of_names, of_resources]
