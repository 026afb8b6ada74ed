"""Every folder of k8s/ keeps the rules of `policy` and `pod_policy`, and each rule sees what breaks it."""

from __future__ import annotations

from typing import Any

import pod_policy as pod_rules
import policy as rules
import pytest
from changes import GONE, pod_specs, put
from manifests import folders, loose_files, named, of_kind, pods, together

TRAINING = ("base", "overlays/indexed-job", "overlays/trainjob")
EVERYWHERE = (*TRAINING, "overlays/prepare", "overlays/mlflow")


@pytest.mark.parametrize("folder", folders())
def test_it_keeps_the_rules(folder):
    assert rules.problems(together(folder)) == []


@pytest.mark.parametrize("file", loose_files())
def test_a_file_that_is_applied_by_itself_keeps_the_rules_for_pods(file):
    of = together(file)
    assert [problem for pod in pods(of) for rule in pod_rules.POD_RULES for problem in rule(pod)] == []
    assert [*rules.names_are_known(of), *rules.every_object_is_labelled(of)] == []


# --- what breaks a rule for pods --------------------------------------------------------------------------------------

NODE = "containers.0"
SECRET_REFERENCE = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "a"}}}
BREACHES: list[tuple[pod_rules.PodRule, str, Any]] = [
    (pod_rules.user_is_not_root, "securityContext.runAsNonRoot", GONE),
    (pod_rules.user_is_not_root, "securityContext.runAsNonRoot", False),
    (pod_rules.user_is_not_root, "securityContext.runAsUser", 0),
    (pod_rules.user_is_not_root, "securityContext.runAsUser", GONE),
    (pod_rules.user_is_not_root, "securityContext.runAsGroup", 0),
    (pod_rules.user_is_not_root, "securityContext.fsGroup", 0),
    (pod_rules.user_is_not_root, f"{NODE}.securityContext.runAsUser", 0),
    (pod_rules.user_is_not_root, f"{NODE}.securityContext.runAsNonRoot", False),
    (pod_rules.nothing_is_privileged, "hostNetwork", True),
    (pod_rules.nothing_is_privileged, "hostPID", True),
    (pod_rules.nothing_is_privileged, "hostIPC", True),
    (pod_rules.nothing_is_privileged, "volumes.+", {"name": "node", "hostPath": {"path": "/"}}),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.privileged", True),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.allowPrivilegeEscalation", GONE),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.allowPrivilegeEscalation", True),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.capabilities", GONE),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.capabilities.drop", ["NET_RAW"]),
    (pod_rules.nothing_is_privileged, f"{NODE}.securityContext.capabilities.add", ["IPC_LOCK"]),
    (pod_rules.nothing_is_privileged, f"{NODE}.ports", [{"containerPort": 80, "hostPort": 80}]),
    (pod_rules.root_is_read_only, f"{NODE}.securityContext.readOnlyRootFilesystem", GONE),
    (pod_rules.root_is_read_only, f"{NODE}.securityContext", GONE),
    (pod_rules.system_calls_are_filtered, "securityContext.seccompProfile", GONE),
    (pod_rules.system_calls_are_filtered, "securityContext.seccompProfile.type", "Unconfined"),
    (pod_rules.system_calls_are_filtered, f"{NODE}.securityContext.seccompProfile", {"type": "Unconfined"}),
    (pod_rules.no_token_is_mounted, "automountServiceAccountToken", GONE),
    (pod_rules.no_token_is_mounted, "serviceAccountName", "default"),
    (pod_rules.no_token_is_mounted, "serviceAccountName", GONE),
    (pod_rules.resources_are_bounded, f"{NODE}.resources", GONE),
    (pod_rules.resources_are_bounded, f"{NODE}.resources.requests.cpu", GONE),
    (pod_rules.resources_are_bounded, f"{NODE}.resources.limits.memory", GONE),
    (pod_rules.resources_are_bounded, f'{NODE}.resources.requests."rdma/ib"', 1),
    (pod_rules.resources_are_bounded, "initContainers", [{"name": "first", "image": "a:1"}]),
    (pod_rules.images_are_pinned, f"{NODE}.image", "hires-gan"),
    (pod_rules.images_are_pinned, f"{NODE}.image", "registry:5000/team/hires-gan"),
    (pod_rules.images_are_pinned, f"{NODE}.image", "hires-gan:latest"),
    (pod_rules.images_are_pinned, f"{NODE}.image", "hires-gan:latest-cuda13"),
    (pod_rules.images_are_pinned, f"{NODE}.image", "hires-gan:main"),
    (pod_rules.volumes_and_mounts_fit, f"{NODE}.volumeMounts.+", {"name": "gone", "mountPath": "/gone"}),
    (pod_rules.volumes_and_mounts_fit, "volumes.+", {"name": "unused", "emptyDir": {}}),
    (pod_rules.disks_are_bounded, "volumes.+", {"name": "large", "emptyDir": {}}),
]
TRAINING_BREACHES: list[tuple[pod_rules.PodRule, str, Any]] = [
    (pod_rules.root_is_read_only, f"{NODE}.volumeMounts.4.mountPath", "/temporary"),
    (pod_rules.memory_is_shared, f"{NODE}.volumeMounts.3.mountPath", "/shm"),
    (pod_rules.memory_is_shared, "volumes.3.emptyDir.medium", GONE),
    (pod_rules.memory_is_shared, "volumes.3.emptyDir.sizeLimit", GONE),
    (pod_rules.memory_is_shared, "volumes.3.emptyDir.sizeLimit", "64Gi"),
    (pod_rules.needs_no_object_to_start, f"{NODE}.envFrom.0.configMapRef.optional", GONE),
    (pod_rules.needs_no_object_to_start, f"{NODE}.envFrom.1.secretRef.optional", False),
    (pod_rules.needs_no_object_to_start, f"{NODE}.env.+", SECRET_REFERENCE),
    (pod_rules.needs_no_object_to_start, "volumes.0.configMap.optional", GONE),
]


@pytest.mark.parametrize("folder", EVERYWHERE)
@pytest.mark.parametrize(("rule", "path", "value"), BREACHES)
def test_a_breach_in_a_pod_is_seen(folder, rule, path, value):
    assert breach(folder, rule, path, value)


@pytest.mark.parametrize("folder", TRAINING)
@pytest.mark.parametrize(("rule", "path", "value"), TRAINING_BREACHES)
def test_a_breach_in_a_pod_that_trains_is_seen(folder, rule, path, value):
    assert breach(folder, rule, path, value)


def breach(folder: str, rule: pod_rules.PodRule, path: str, value: Any) -> list[str]:
    """What a rule says of the first pods of a folder when they are changed, and did not say before."""
    of = together(folder)
    before = [problem for pod in pods(of) for problem in rule(pod)]
    put(next(pod_specs(of)), path, value)
    return [problem for pod in pods(of) for problem in rule(pod) if problem not in before]


@pytest.mark.parametrize("folder", [*TRAINING, "overlays/prepare"])
@pytest.mark.parametrize("part", ["onExitCodes", "onPodConditions"])
def test_failures_that_are_not_classified_are_seen(folder, part):
    of = together(folder)
    [pod] = pods(of)
    assert pod.job is not None
    policy = pod.job.spec["podFailurePolicy"]
    assert list(pod_rules.failures_are_classified(pod)) == []
    policy["rules"] = [rule for rule in policy["rules"] if part not in rule]
    assert list(pod_rules.failures_are_classified(pod))


@pytest.mark.parametrize("folder", EVERYWHERE)
def test_missing_labels_are_seen(folder):
    for pod in pods(together(folder)):
        assert list(pod_rules.is_labelled(pod)) == []
        pod.labels.clear()
        assert list(pod_rules.is_labelled(pod))


# --- what breaks a rule for objects together --------------------------------------------------------------------------

KEY_OF_AWS = "AKIA" + "ABCDEFGHIJKLMNOP"
PEER = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "hires-gan"}}}]
OFFENCES: list[tuple[rules.Rule, str, str, str, Any]] = [
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.MLFLOW_TRACKING_PASSWORD", "a"),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.AWS_SECRET_ACCESS_KEY", "a"),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.MLFLOW_TRACKING_URI", "https://me:secret@mlflow"),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.ANY", KEY_OF_AWS),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.ANY", "-----BEGIN RSA PRIVATE KEY-----\nabc"),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "data.file", "a: 1\napi_token: abc\n"),
    (rules.no_secret_is_written_down, "base", "ConfigMap", "metadata.annotations.note", KEY_OF_AWS),
    (rules.no_secret_is_written_down, "base", "JobSet", "metadata.annotations.note", "postgresql://a:b@c/d"),
    (rules.no_secret_is_written_down, "base", "NetworkPolicy", "kind", "Secret"),
    (rules.every_pod_is_behind_a_policy, "base", "NetworkPolicy", "spec.podSelector.matchLabels.tier", "none"),
    (rules.every_pod_is_behind_a_policy, "base", "NetworkPolicy", "spec.policyTypes", ["Egress"]),
    (rules.every_pod_is_behind_a_policy, "base", "NetworkPolicy", "spec.ingress.0.from", []),
    (rules.every_pod_is_behind_a_policy, "base", "NetworkPolicy", "spec.ingress.0.from", [{}]),
    (rules.every_pod_is_behind_a_policy, "overlays/mlflow", "NetworkPolicy", "kind", "NoPolicy"),
    (rules.services_reach_pods, "overlays/indexed-job", "Service", "spec.selector.tier", "none"),
    (rules.services_reach_pods, "overlays/mlflow", "Service", "spec.ports.0.targetPort", "https"),
    (rules.services_reach_pods, "overlays/mlflow", "Service", "spec.selector", GONE),
    (rules.policies_fit_ports, "base", "NetworkPolicy", "spec.ingress.1.ports.0.port", "metric"),
    (rules.policies_fit_ports, "overlays/mlflow", "NetworkPolicy", "spec.ingress.0.ports.0.port", 5001),
    (rules.training_pods_reach_each_other, "base", "NetworkPolicy", "spec.ingress.0", GONE),
    (rules.training_pods_reach_each_other, "base", "NetworkPolicy", "spec.egress.0", GONE),
    (rules.training_pods_reach_each_other, "base", "NetworkPolicy", "spec.egress.1", GONE),
    (rules.training_pods_reach_each_other, "base", "NetworkPolicy", "spec.ingress.0.ports", [{"port": 29500}]),
    (rules.names_are_known, "base", "ServiceAccount", "metadata.name", "gan"),
    (rules.names_are_known, "base", "ConfigMap hires-gan", "metadata.name", "gan"),
    (rules.names_are_known, "base", "ConfigMap hires-gan-training", "metadata.name", "gan"),
    (rules.names_are_known, "overlays/trainjob", "TrainJob", "spec.runtimeRef.name", "gan"),
    (rules.names_are_known, "base", "PersistentVolumeClaim hires-gan-data", "metadata.name", "gan"),
    (rules.claims_fit, "base", "PersistentVolumeClaim hires-gan-runs", "spec.accessModes", ["ReadWriteOnce"]),
    (rules.claims_fit, "base", "PersistentVolumeClaim hires-gan-runs", "spec.accessModes", ["ReadOnlyMany"]),
    (rules.claims_fit, "base", "PersistentVolumeClaim hires-gan-data", "spec.accessModes", ["ReadWriteOnce"]),
    (rules.every_object_is_labelled, "base", "ServiceAccount", "metadata.labels", GONE),
]


@pytest.mark.parametrize(("rule", "folder", "kind", "path", "value"), OFFENCES)
def test_an_offence_is_seen(rule, folder, kind, path, value):
    of = together(folder)
    before = list(rule(of))
    chosen = next(d for d in of if kind in (d["kind"], named(d)))
    put(chosen, path, value)
    if value == "Secret":
        put(chosen, "stringData", {"a": "b"})
    assert [problem for problem in rule(of) if problem not in before]


def test_a_claim_of_one_node_is_enough_for_pods_that_stay_together():
    of = together("base")
    for claim in of_kind(of, "PersistentVolumeClaim"):
        claim["spec"]["accessModes"] = ["ReadWriteOnce"]
    assert list(rules.claims_fit(of))
    together_on = {"topologyKey": "kubernetes.io/hostname", "labelSelector": PEER[0]["podSelector"]}
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [together_on]}}
    put(next(pod_specs(of)), "affinity", affinity)
    assert list(rules.claims_fit(of)) == []


def test_references_to_secrets_are_no_secrets():
    of = together("base")
    put(of_kind(of, "ConfigMap")[0], "data.URI", "postgresql://mlflow:$(DATABASE_PASSWORD)@database/mlflow")
    put(of_kind(of, "ConfigMap")[0], "data.file", "password: null\n# token: none here\n")
    put(next(pod_specs(of)), "containers.0.env.+", {"name": "TOKEN_FILE", "value": "/run/token"})
    assert list(rules.no_secret_is_written_down(of)) == []
    put(next(pod_specs(of)), "containers.0.env.+", {"name": "TOKEN", "value": "abc"})
    assert len(list(rules.no_secret_is_written_down(of))) == 1


@pytest.mark.parametrize("folder", TRAINING)
@pytest.mark.parametrize(("waits", "grace"), [(30, 25), (29, 25), (60, 30), (60, 31), (None, 25)])
def test_a_grace_that_is_too_short_is_seen(folder, waits, grace):
    """torchrun kills after 30 seconds: the pod has to wait longer, and a checkpoint may not take as long."""
    of = together(folder)
    put(next(pod_specs(of)), "terminationGracePeriodSeconds", waits)
    if waits is None:
        put(next(pod_specs(of)), "terminationGracePeriodSeconds", GONE)
    put(next(pod_specs(of)), "containers.0.args.+", f"backend.grace={grace}")
    assert list(rules.the_grace_is_long_enough(of))


def test_a_grace_that_is_long_enough_is_not():
    of = together("base")
    put(next(pod_specs(of)), "terminationGracePeriodSeconds", 31)
    put(next(pod_specs(of)), "containers.0.args.+", "backend.grace=29")
    assert list(rules.the_grace_is_long_enough(of)) == []


def test_each_rule_has_something_that_breaks_it():
    broken = {case[0] for case in [*BREACHES, *TRAINING_BREACHES, *OFFENCES]}
    alone = {pod_rules.failures_are_classified, pod_rules.is_labelled, rules.the_grace_is_long_enough}
    assert broken | alone == {*pod_rules.POD_RULES, *rules.RULES}
