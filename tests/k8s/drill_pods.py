"""Pods for tests: what a kubelet and a container engine make of a pod's manifest, on machines that are namespaces.

A pod has its own network, mounts, processes and host name; the image's root is this machine's, read-only, with the
repository in place of what the image holds. It runs as the user that its manifest names, without privileges.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from launch.launching import ROOT, Launched, started
from launch.machines import Machine
from manifests import DOCKERFILE, IMAGE_FOLDER, Document, Pods, command_of, config_maps, environment, resolved

_SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/.kept /mnt/.dev
# What is needed may lie where something else will be mounted, or where another user may not go.
n=0
for mount in $MOUNTS; do
  mkdir /mnt/.kept/$n; mount --bind ${mount%%=*} /mnt/.kept/$n; n=$((n + 1))
done
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p $IMAGE_FOLDER
mount --bind $IMAGE_ROOT $IMAGE_FOLDER
mount -t tmpfs -o mode=755 tmpfs /mnt/.dev
for node in null zero full random urandom tty; do
  touch /mnt/.dev/$node; mount --bind /dev/$node /mnt/.dev/$node
done
mkdir /mnt/.dev/shm; mount -t tmpfs -o mode=1777,size=64m tmpfs /mnt/.dev/shm
ln -s /proc/self/fd /mnt/.dev/fd
touch /mnt/.dev/termination-log; mount --bind $TERMINATION_LOG /mnt/.dev/termination-log
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o mode=755 tmpfs /home
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount --move /mnt/.dev /dev
n=0
for mount in $MOUNTS; do
  [ -d ${mount#*=} ] || mkdir -p ${mount#*=}
  mount --bind /mnt/.kept/$n ${mount#*=}; umount /mnt/.kept/$n; n=$((n + 1))
done
rm -r /mnt/.kept /mnt/.dev
mount -t proc proc /proc
for path in /mnt /opt /root /home /; do mount -o remount,bind,ro $path; done
cd $IMAGE_FOLDER
unset MOUNTS IMAGE_ROOT IMAGE_FOLDER TERMINATION_LOG
exec setpriv --reuid $RUN_AS --regid $RUN_AS --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env -u RUN_AS "$@"
"""


@dataclass
class Container:
    """A pod's container that runs, or has run.

    Attributes:
        launched: The process in which its own process 1 runs, and its log.
        termination_log: What it leaves for `kubectl describe pod`.
    """

    launched: Launched
    termination_log: Path

    def terminate(self) -> None:
        """Do what a kubelet does first: send SIGTERM to the container's first process, and to no other."""
        (first,) = psutil.Process(self.launched.process.pid).children()
        first.terminate()

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.launched.said

    def ended(self, seconds: float = 240) -> int:
        """Its exit code."""
        return self.launched.ended(seconds)


@dataclass(frozen=True)
class Namespace:
    """What a namespace of a cluster has beside machines.

    Attributes:
        of: The manifests that were applied.
        claims: The folder of each volume.
        folder: For what pods leave behind.
        secrets: By name; what others would be is not there.
    """

    of: list[Document]
    claims: Mapping[str, Path]
    folder: Path
    secrets: Mapping[str, Mapping[str, str]]

    def start(self, pods: Pods, machine: Machine, **more: str) -> Container:
        """Start the only container of one of equal pods.

        Args:
            pods: Which.
            machine: Its network, and its host name.
            **more: Variables of this pod in particular.
        """
        own = self.folder / f"{machine.name}-{len(list(self.folder.iterdir()))}"
        own.mkdir(parents=True)
        log = own / "termination-log"
        log.touch()
        log.chmod(0o666)
        (container,) = pods.containers
        told = (
            {"KUBERNETES_SERVICE_HOST": "10.96.0.1"} | self._secret(container) | environment(pods, container, self.of)
        )
        told |= more
        command = [resolved(word, told) for word in command_of(container)]
        script = _exports(self._setup(pods.spec, container, own) | {"TERMINATION_LOG": str(log)}) + _SETUP
        with (own / "log").open("a") as file:
            said: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            inside = ["sh", "-c", script, "pod", *command]
            options = ("--pid", "--fork", "--kill-child")
            process = machine.start(inside, *options, env=image_environment() | told, **said)
        return Container(started(process, own / "log"), log)

    def _secret(self, container: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.secrets.get(source.get("secretRef", {}).get("name", ""), {})
        return found

    def _setup(self, spec: Mapping[str, Any], container: Mapping[str, Any], own: Path) -> dict[str, str]:
        user = spec["securityContext"]["runAsUser"]
        # The last ones lie above: /tmp may be one of the pod's own volumes, and hold the repository here.
        mounts = [*self._mounts(spec, container, own, user), *((path, path) for path in _kept())]
        return {
            "MOUNTS": " ".join(f"{source}={target}" for source, target in mounts),
            "IMAGE_ROOT": str(ROOT),
            "IMAGE_FOLDER": IMAGE_FOLDER,
            "RUN_AS": str(user),
        }

    def _mounts(
        self, spec: Mapping[str, Any], container: Mapping[str, Any], own: Path, user: int
    ) -> Iterator[tuple[Path, str]]:
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for mount in container["volumeMounts"]:
            volume = volumes.get(mount["name"])  # else by a claim that the StatefulSet makes
            source = self.claims[mount["name"]] if volume is None else self._volume(volume, own)
            os.chown(source, user, user)  # fsGroup
            yield source, mount["mountPath"]

    def _volume(self, volume: Mapping[str, Any], own: Path) -> Path:
        if "persistentVolumeClaim" in volume:
            return self.claims[volume["persistentVolumeClaim"]["claimName"]]
        folder = own / str(volume["name"])
        folder.mkdir()
        files = config_maps(self.of).get(volume.get("configMap", {}).get("name", ""), {})
        files |= self.secrets.get(volume.get("secret", {}).get("secretName", ""), {})
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder


def image_environment() -> dict[str, str]:
    """What the image sets, but for the place of its programs, which here is this environment's."""
    lines = DOCKERFILE.rpartition("\nFROM ")[2].replace("\\\n", " ")
    found = dict(re.findall(r"([A-Z][A-Z_0-9]*)=(\S*)", " ".join(re.findall(r"^ENV (.*)$", lines, re.MULTILINE))))
    found["PATH"] = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return found


def _kept() -> list[Path]:
    """The repository and its Python, wherever they lie."""
    return [path.resolve() for path in dict.fromkeys((ROOT, Path(sys.prefix), Path(sys.base_prefix)))]


def _exports(variables: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


# --- what controllers do when a pod has ended -------------------------------------------------------------------------


def job_failure(job: Mapping[str, Any], code: int, disrupted: bool) -> tuple[str, str]:
    """The reason and the message of a Job with backoffLimit 0 that fails by a pod, as its controller gives them.

    Args:
        job: The Job's spec.
        code: The container's exit code.
        disrupted: Whether the pod has the condition DisruptionTarget.
    """
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {}).get("values", [])
        matching = f"matching {rule['action']} rule at index {index}"
        if code in codes:
            return "PodFailurePolicy", f"Container node for pod x/y failed with exit code {code} {matching}"
        if disrupted and rule.get("onPodConditions"):
            return "PodFailurePolicy", f"Pod x/y has condition DisruptionTarget {matching}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def jobset_action(jobset: Mapping[str, Any], reason: str, message: str) -> str:
    """What a JobSet does when its Job has failed: the action of the first rule that matches."""
    for rule in jobset["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [])
        if reason in rule["onJobFailureReasons"] and (not patterns or any(re.search(p, message) for p in patterns)):
            action: str = rule["action"]
            return action
    return "RestartJobSet"
