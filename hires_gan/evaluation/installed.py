"""Callables of installed packages, by name; nothing is run of what is not installed.

A module in the current folder or on PYTHONPATH changes without anybody noticing, has no version that could stand beside
a number, and may have come with the very folder in which the command was called.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from hires_gan.errors import UsageError

_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Installed:
    """A callable that was found.

    Attributes:
        call: It.
        package: The distribution that brings it, and its version: `torchvision 0.26.0`.
    """

    call: Callable[..., Any]
    package: str


def find_installed(reference: str, option: str) -> Installed:
    """The callable that `package.module:name` stands for.

    Args:
        reference: A module's name, a colon, a name in it.
        option: What the reference was given to, for errors.

    Raises:
        UsageError: If it has another form, is not there, or is not of an installed package.
    """
    if not _PATTERN.fullmatch(reference):
        raise UsageError(
            f"{option} is {reference!r}; inception is allowed, or package.module:factory of an installed package"
        )
    module, _, name = reference.partition(":")
    package = _package(module, option)
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} is {reference!r}, but {error}; look at what {package} offers") from error
    if not callable(found):
        raise UsageError(f"{option} is {reference!r}, a {type(found).__name__}; something that can be called is needed")
    return Installed(found, package)


def _package(module: str, option: str) -> str:
    """The distribution that a module belongs to, and its version; found before any of it runs."""
    spec = _outermost(module)
    top = module.split(".")[0]
    if spec is None:
        raise UsageError(f"{option} names the module {module}, which is not there; install its package")
    file = Path(spec.origin).resolve() if spec.has_location and spec.origin else None
    for name in importlib.metadata.packages_distributions().get(top, ()):
        distribution = importlib.metadata.distribution(name)
        if file is not None and _brings(distribution, file):
            return f"{distribution.name} {distribution.version}"
    place = f"it is {file}" if file else f"it comes as {spec.origin or 'a folder without __init__.py'}"
    raise UsageError(
        f"{option} names the module {module}, which no installed package brings ({place}): a version could not be "
        f"recorded; install its package with pip, pip install -e for one in the works"
    )


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
