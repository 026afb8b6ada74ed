"""What the doctor knows of Kubernetes: whether this is a pod, where its files come from, and what is lost with it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hires_gan.errors import UsageError

_MOUNTS = Path("/proc/self/mountinfo")
_TRAINING = "hires-gan-training"
"""What k8s/ calls the ConfigMap with the configuration."""


def in_pod() -> bool:
    """Whether this runs in Kubernetes, which tells every container where its API is."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def require_mounted(config: Path) -> None:
    """Make sure that a configuration is there that a pod has from a ConfigMap; elsewhere, reading it tells enough.

    Raises:
        UsageError: In a pod, if it is not; what lies in its place, and how to look.
    """
    folder = config.parent
    if not in_pod() or config.exists() or (folder.is_dir() and is_own(folder)):
        return
    there = f"{folder} has {listing(folder)}" if folder.is_dir() else f"nothing is mounted at {folder}"
    raise UsageError(
        f"{config} does not exist, {there}: it is the key {config.name} of the ConfigMap that is mounted there, "
        f"{_TRAINING} in k8s/; see what the pod mounts with `kubectl describe pod`, what is in it with `kubectl get "
        f"configmap {_TRAINING} -o yaml`, and make it with `kubectl create configmap {_TRAINING} "
        f"--from-file={config.name}`"
    )


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder; False for one that cannot be listed."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return False


def listing(folder: Path) -> str:
    """What is in a folder, for whoever has written a path wrong."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return f"contents that cannot be listed ({error.strerror})"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "nothing in it"


@dataclass(frozen=True)
class Mount:
    """Where a file system is joined on.

    Attributes:
        point: The folder at which it begins.
        root: The folder of that file system that is seen there.
        kind: Of the file system: ext4, nfs4, overlay, tmpfs.
    """

    point: Path
    root: str
    kind: str

    @property
    def lost(self) -> str:
        """What is lost with the pod, or with the machine's next start, in words; empty for what stays."""
        if "kubernetes.io~empty-dir" in self.root:
            return "an emptyDir, which is lost with the pod"
        return "memory, which is lost with the pod" if self.kind in ("tmpfs", "ramfs") else ""


def is_own(folder: Path) -> bool:
    """Whether a folder that is there lies where a container writes without any volume."""
    mount = mount_of(folder)
    return mount is not None and mount.point == Path("/")


def mount_of(folder: Path) -> Mount | None:
    """The file system on which a folder lies; None where the system does not say.

    Args:
        folder: One that is there.
    """
    place = folder.resolve()
    found: Mount | None = None
    for mount in _mounts(_MOUNTS):
        if place.is_relative_to(mount.point) and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount  # of several at one point the last one is seen
    return found


def _mounts(table: Path) -> list[Mount]:
    """See proc_pid_mountinfo(5): the fourth and fifth field, and the first one behind a lonely hyphen."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        before, _, behind = line.partition(" - ")
        fields, kind = before.split(" "), behind.split(" ")[0]
        if len(fields) > 4 and kind:
            mounts.append(Mount(Path(_unescaped(fields[4])), _unescaped(fields[3]), kind))
    return mounts


def _unescaped(text: str) -> str:
    """A blank in a name stands there as its octal number behind a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
