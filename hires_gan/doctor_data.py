"""What the doctor finds out about the shard sets that a configuration names."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from hires_gan.data.manifest import MANIFEST, Manifest, read_manifest
from hires_gan.data.settings import DataSettings
from hires_gan.doctor_devices import Finding
from hires_gan.doctor_folders import CACHE_REMEDY, cache_problem, nearest_folder, rights, unwritable
from hires_gan.doctor_pod import in_pod, is_empty, is_own, listing
from hires_gan.errors import Failure
from hires_gan.settings import expanded


def locations(settings: DataSettings) -> dict[str, str]:
    """Where the sets of a configuration are, by the key that says so."""
    if settings.domains is not None:
        return {f"data.domains.{name}": location for name, location in settings.domains.items()}
    return {"data.shards": settings.shards or ""}


def data(settings: DataSettings, resolution: int, quick: bool) -> Finding:
    """Whether all sets can be read, and hold images that are large enough.

    Args:
        settings: The `data` block.
        resolution: Of the recipe, in pixels.
        quick: Ask no network, and look at no more than the manifests.
    """
    found = [_one(key, place, settings, resolution, quick) for key, place in locations(settings).items()]
    bad = [finding for finding in found if finding.status != "ok"]
    if not bad:
        return Finding("ok", "; ".join(finding.found for finding in found))
    remedies = dict.fromkeys(finding.remedy for finding in bad if finding.remedy)
    passing = all(finding.passing for finding in bad)
    return Finding("wrong", "; ".join(finding.found for finding in bad), "; ".join(remedies), passing)


def _one(key: str, place: str, settings: DataSettings, resolution: int, quick: bool) -> Finding:
    from hires_gan.data.demo import PREFIX
    from hires_gan.data.store import is_streamed

    try:
        if place.startswith(PREFIX):
            return _demo(key, place)
        if is_streamed(place):
            return _streamed(key, place, settings, resolution, quick)
        return _folder(key, expanded(Path(place)), resolution, quick)
    except Failure as failure:
        return Finding("wrong", _by_key(key, str(failure)))


def _by_key(key: str, problem: str) -> str:
    """A problem that is told as that of data.shards, or of a path alone, as one of `key`."""
    renamed = problem.replace("data.shards", key)
    return renamed if key in renamed else f"{key}: {problem}"


# Folders


def _folder(key: str, folder: Path, resolution: int, quick: bool) -> Finding:
    why = _cannot_list(folder)
    if why is not None:
        return _absent(key, folder, why)
    manifest = folder / MANIFEST
    if manifest.is_file() and not os.access(manifest, os.R_OK):
        return _unreadable(key, manifest)
    found = _described(key, str(folder), read_manifest(folder), resolution)
    if found.status != "ok" or quick:
        return found
    from hires_gan.data.shards import ShardSet

    shards = ShardSet(folder)  # compares the files' sizes with the manifest
    hidden = [name for shard in shards.manifest.shards if not os.access(name := folder / shard.name, os.R_OK)]
    return _unreadable(key, hidden[0]) if hidden else found


def _cannot_list(folder: Path) -> str | None:
    """Why there is nothing to look at in a folder; None if there is something."""
    try:
        return "it is empty" if not any(folder.iterdir()) else None
    except FileNotFoundError:
        return "it is not there"
    except NotADirectoryError:
        return "it is a file" if folder.is_file() else "it is not there"
    except OSError as error:
        return error.strerror or str(error)


def _absent(key: str, folder: Path, why: str) -> Finding:
    if why not in ("it is empty", "it is not there"):
        remedy = f"name the folder that `hires-gan prepare` wrote{rights('read')}"
        return Finding("wrong", f"{key} is {folder}, but {why}", remedy)
    nearest = nearest_folder(folder)
    if in_pod() and is_own(nearest):
        return Finding(
            "wrong",
            f"{key} is {folder}, but {why}, and no volume is mounted there",
            "mount the claim that holds the shards: see which claims the pod mounts, and where, with `kubectl describe "
            "pod`, and whether they are bound with `kubectl get pvc`",
            passing=True,
        )
    upper = f"; {nearest} has {listing(nearest)}" if nearest != folder.absolute() else ""
    remedy = f"name the folder of a shard set, mount it there, or make it: `hires-gan prepare SRC --out {folder}`"
    # A volume that is mounted late is an empty folder until then; a wrong name beside right ones stays wrong.
    return Finding("wrong", f"{key} is {folder}, but {why}{upper}", remedy, passing=is_empty(nearest))


def _unreadable(key: str, file: Path) -> Finding:
    return Finding("wrong", f"{key}: {file} may not be read by user {os.getuid()}", f"let it be read{rights('read')}")


def _described(key: str, place: str, manifest: Manifest, resolution: int) -> Finding:
    there = manifest.resolution
    found = f"{manifest.count:,} images at {there}x{there} in {place}"
    if there < resolution:
        remedy = f"prepare them again at --resolution {resolution}, or lower recipe.resolution"
        return Finding("wrong", f"{key} has {found}, but recipe.resolution is {resolution}", remedy)
    return Finding("ok", found)


# Demo sets and stores


def _demo(key: str, place: str) -> Finding:
    """The set is there, or can be made; it is not made here."""
    from hires_gan.data.demo import PREFIX, demo_folder

    folder = demo_folder(place.removeprefix(PREFIX))
    if (folder / MANIFEST).is_file():
        return Finding("ok", f"{place}, in {folder}")
    if find_spec("skimage") is None:
        remedy = "pip install 'hires-gan[demo]'"
        return Finding(
            "wrong", f"{key} is {place}, which is made from scikit-image's photographs: not installed", remedy
        )
    if problem := cache_problem():
        return Finding("wrong", f"{key} is {place}, which is made on first use, but {problem}", CACHE_REMEDY)
    return Finding("ok", f"{place}, made on first use in {folder}")


def _streamed(key: str, place: str, settings: DataSettings, resolution: int, quick: bool) -> Finding:
    from hires_gan.data.store import fetch_manifest, open_store
    from hires_gan.data.store_errors import Passing

    stream = settings.stream
    store = open_store(place, stream.allow_pipe)
    if problem := _cache_of(stream.cache):
        remedy = "set data.stream.cache to a folder on a disk of this machine"
        return Finding("wrong", f"{key} is {store.address}, but {problem}", remedy)
    if quick:
        return Finding("ok", f"{store.address}, not asked by --quick")
    try:
        return _described(key, store.address, fetch_manifest(store, patience=0), resolution)
    except Failure as failure:
        last = failure.__context__  # what a patience of 0 has given up
        if not isinstance(last, Passing):
            raise
        remedy = "look at the store and the way to it" + (": its name, the network policy of the pod" * in_pod())
        return Finding("wrong", f"{key} is {store.address}, which cannot be read: {last}", remedy, passing=True)


def _cache_of(setting: Path | None) -> str:
    """Why the folder that keeps fetched shards cannot be written; empty if it can."""
    if setting is None:
        return cache_problem()
    why = unwritable(nearest_folder(expanded(setting)))
    return f"data.stream.cache, {setting}, is not writable ({why})" if why else ""
