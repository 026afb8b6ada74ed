"""What the doctor finds out about the folders in which training writes: the runs, temporary files, caches."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from hires_gan.doctor_devices import GIB, Finding
from hires_gan.doctor_pod import in_pod, is_own, mount_of
from hires_gan.errors import Failure

LEAST_DISK = 1 * GIB
"""A whole state at 1024x1024 is just under this."""
LEAST_TEMPORARY = GIB // 4
"""Temporary files are grids and models on their way to MLflow, and small ones of torch's."""


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def nearest_folder(path: Path) -> Path:
    """The path, or the first of the folders above it that is there."""
    path = path.absolute()
    # That of pathlib raises an error where a folder above may not be entered.
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110


def unwritable(folder: Path) -> str | None:
    """Why no file can be made in `folder`; None if one can. Tried out: permissions do not tell the whole."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def without_locks(folder: Path) -> str | None:
    """Why no file in `folder` can be locked as a run locks its own; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return None


def rights(verb: str) -> str:
    """How a pod's user is allowed to read or write on a volume, as the end of a remedy; empty elsewhere."""
    if not in_pod():
        return ""
    return (
        f", or let user {os.getuid()} {verb} there: on volumes that know no fsGroup (NFS) the server has to own it so"
    )


def disk(folder: Path) -> Finding:
    """The folder of all runs: on a volume that outlives the pod, writable, with room, and with locks.

    Args:
        folder: run.dir, which need not be there: the first run makes it.
    """
    nearest = nearest_folder(folder)
    if not nearest.is_dir():
        return Finding("wrong", f"{nearest} is a file", "choose a folder in run.dir")
    why = unwritable(nearest)
    if in_pod() and (is_own(nearest) or (why and nearest != folder.absolute())):
        return _not_mounted(folder)
    free = shutil.disk_usage(nearest).free
    if free < LEAST_DISK:
        return Finding("wrong", f"{size(free)} free at {nearest}", "free at least 1 GiB, or choose another run.dir")
    if why:
        return Finding(
            "wrong", f"{nearest} is not writable ({why})", f"choose a run.dir where you may write{rights('write')}"
        )
    if why := without_locks(nearest):
        remedy = "put run.dir on a file system with POSIX locks (NFS 4, Lustre, CephFS, a local disk)"
        return Finding("wrong", f"{nearest} has no locks ({why})", remedy)
    mount = mount_of(nearest) if in_pod() else None
    lost = f", in {mount.lost}" if mount is not None and mount.lost else ""
    return Finding("ok", f"{size(free)} free at {nearest}{lost}")


def _not_mounted(folder: Path) -> Finding:
    return Finding(
        "wrong",
        f"run.dir is {folder}, where no volume is mounted: what the container's own file system takes is lost with it",
        "mount the claim for runs there, or choose a run.dir on it: see which claims the pod mounts, and where, with "
        "`kubectl describe pod`, and whether they are bound with `kubectl get pvc`",
        passing=True,
    )


def unasked(finding: Finding) -> Finding:
    """What is wrong with a folder that nobody has named is no more than worth knowing."""
    return finding._replace(status="missing") if finding.status == "wrong" else finding


def temporary(cache_needed: str = "") -> Finding:
    """A folder for temporary files, which torch and MLflow need, and the user's caches, as far as they are needed.

    Args:
        cache_needed: What in the configuration needs the user's cache; empty if nothing does.
    """
    wanted = os.environ.get("TMPDIR")
    if wanted and (why := unwritable(Path(wanted))):
        return Finding("wrong", f"TMPDIR is {wanted}, which is not writable ({why})", _TEMPORARY_REMEDY)
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Finding(
            "wrong", "no folder for them: /tmp, /var/tmp and this folder are not writable", _TEMPORARY_REMEDY
        )
    free = shutil.disk_usage(folder).free
    if free < LEAST_TEMPORARY:
        return Finding("wrong", f"{size(free)} free at {folder}", f"free at least {size(LEAST_TEMPORARY)}")
    found = f"{size(free)} free at {folder}"
    problem = cache_problem()
    if problem and cache_needed:
        return Finding("wrong", f"{found}, but {cache_needed} needs a cache, and {problem}", CACHE_REMEDY)
    return Finding("ok", f"{found}; {problem}, and nothing here needs it" if problem else found)


_TEMPORARY_REMEDY = (
    "set TMPDIR to a folder that can be written; in a container with a read-only root file system, mount one there, "
    "such as an emptyDir at /tmp"
)
CACHE_REMEDY = "set XDG_CACHE_HOME to a folder that can be written"


def user_cache() -> Path | None:
    """Where demo sets, fetched shards and models are kept; None for a user without a home folder."""
    from hires_gan.data.demo import cache_folder

    try:
        return cache_folder()
    except Failure:
        return None


def cache_problem() -> str:
    """Why the user's cache cannot be written; empty if it can."""
    folder = user_cache()
    if folder is None:
        return f"user {os.getuid()} has no home folder to keep it in"
    nearest = nearest_folder(folder)
    why = unwritable(nearest) if nearest.is_dir() else "a file"
    return f"the cache {folder} cannot be written ({why})" if why else ""
