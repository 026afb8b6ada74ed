"""Callables of installed packages, by name; nothing is run of what is not installed.

A module in the current folder or on PYTHONPATH changes without anybody noticing, has no version that could stand beside
a number, and may have come with the very folder in which the command was called. What `pip install -e` installed has a
version, but changes under it: there, a digest of its source stands beside the version.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

from hires_gan.errors import UsageError

MOST_FILES = 5000
"""Of the source of a package in the works: reading more would keep a command waiting for seconds."""

_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_DIGESTS: weakref.WeakKeyDictionary[ModuleType, str] = weakref.WeakKeyDictionary()
"""Of what is imported: a file that is changed later is not what runs."""


@dataclass(frozen=True)
class Installed:
    """A callable that was found.

    Attributes:
        call: It.
        package: The distribution that brings it, and its version: `torchvision 0.26.0`; of one that was installed in
            place also a digest of its source: `mynets 0.1 (in the works, source 1f3c9a2b)`.
        source: That digest, whole; None for what was installed as it is.
    """

    call: Callable[..., Any]
    package: str
    source: str | None = None


@dataclass(frozen=True)
class _Package:
    """What brings a module.

    Attributes:
        name: The distribution and its version.
        source: What was installed in place: the outermost package's folder, or the file of a module by itself; None for
            what was installed as it is.
    """

    name: str
    source: Path | None


def find_installed(reference: str, option: str) -> Installed:
    """The callable that `package.module:name` stands for.

    Args:
        reference: A module's name, a colon, a name in it.
        option: What the reference was given to, for errors.

    Raises:
        UsageError: If it has another form, is not there, or is not of an installed package; if it is of one that was
            installed in place and has more than `MOST_FILES` files.
    """
    if not _PATTERN.fullmatch(reference):
        raise UsageError(
            f"{option} is {reference!r}; inception and vgg16 are allowed, or package.module:factory of an installed "
            f"package"
        )
    module, _, name = reference.partition(":")
    package = _package(module, option)
    digest = _digest_before(module, package, option)
    try:
        imported = importlib.import_module(module)
        found: Any = getattr(imported, name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} is {reference!r}, but {error}; look at what {package.name} offers") from error
    if not callable(found):
        raise UsageError(f"{option} is {reference!r}, a {type(found).__name__}; something that can be called is needed")
    if digest is None:
        return Installed(found, package.name)
    kept = _DIGESTS.setdefault(imported, digest)
    return Installed(found, f"{package.name} (in the works, source {kept[:8]})", kept)


def _digest_before(module: str, package: _Package, option: str) -> str | None:
    """The digest of what a module is imported from, or was; None for what was installed as it is."""
    if package.source is None:
        return None
    imported = sys.modules.get(module)
    known = None if imported is None else _DIGESTS.get(imported)
    return known or source_digest(package.source, f"{option} is of {package.name}, which is installed in place and")


def source_digest(source: Path, what: str) -> str:
    """The sha256 of Python files: of their paths and contents, in the order of the paths.

    Args:
        source: A package's folder, or a single file.
        what: Begins the sentence of an error.

    Raises:
        UsageError: If there are more than `MOST_FILES`, or one cannot be read.
    """
    root = source if source.is_dir() else source.parent
    files = [one for one in source.rglob("*.py") if one.is_file()] if source.is_dir() else [source]
    if len(files) > MOST_FILES:
        raise UsageError(
            f"{what} has {len(files):,} Python files, more than the {MOST_FILES:,} that are read to tell one state of "
            f"it from another; install it without -e"
        )
    digest = hashlib.sha256()
    for path, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        content = _read(file, what)
        digest.update(f"{path}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what} has {file}, which cannot be read ({error.strerror}), though all of its source is read to tell one "
            f"state of it from another; make it readable, or install the package without -e"
        ) from error


def _package(module: str, option: str) -> _Package:
    """The distribution that a module belongs to; found before any of it runs."""
    spec = _outermost(module)
    top = module.split(".")[0]
    if spec is None:
        raise UsageError(f"{option} names the module {module}, which is not there; install its package")
    file = Path(spec.origin).resolve() if spec.has_location and spec.origin else None
    for name in importlib.metadata.packages_distributions().get(top, ()):
        distribution = importlib.metadata.distribution(name)
        if file is not None and _brings(distribution, file):
            source = None if _source(distribution) is None else _outermost_source(spec.name, file)
            return _Package(f"{distribution.name} {distribution.version}", source)
    place = f"it is {file}" if file else f"it comes as {spec.origin or 'a folder without __init__.py'}"
    raise UsageError(
        f"{option} names the module {module}, which no installed package brings ({place}): a version could not be "
        f"recorded; install its package with pip, pip install -e for one in the works"
    )


def _outermost_source(module: str, file: Path) -> Path:
    """The folder of a package, or of what lies in one without `__init__.py`; the file of a module by itself."""
    return file.parent if file.name == "__init__.py" or "." in module else file


def _outermost(module: str) -> ModuleSpec | None:
    """The outermost part of a module's name that is a file; none of it runs.

    Looking for what is inside a package imports that, but folders without `__init__.py` have nothing to run.
    """
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except ValueError:  # a module that was made by hand
            return None
        if spec is None or spec.origin is not None:
            return spec
    return spec


def _brings(distribution: importlib.metadata.Distribution, file: Path) -> bool:
    """Whether a distribution's list of files has this one, or it was installed in place from a folder above it."""
    candidates = [one for one in distribution.files or () if one.name == file.name]
    if any(Path(str(distribution.locate_file(one))).resolve() == file for one in candidates):
        return True
    source = _source(distribution)
    return source is not None and source in file.parents


def _source(distribution: importlib.metadata.Distribution) -> Path | None:
    """The folder that `pip install -e` installed."""
    text = distribution.read_text("direct_url.json")
    described = json.loads(text) if text else {}
    if not described.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(described["url"]).path)).resolve()
