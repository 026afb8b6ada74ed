"""Collects the tests marked gpu as a machine does that has torch, what it needs, and all that `make wheels` may fetch.

So does one to which `make wheels` was taken, and which has the others, as WHEELS_MORE lists them.

python bare_collection.py MAKEFILE
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType

import pytest

THERE = (
    "torch",
    "torchvision",
    "accelerate",
    "pytest",
    "setuptools",
    "typer",
    "requests",
    "aiohttp",
    "pandas",
    "optree",
)
"""With all that these need. What torch takes where it is installed would miss its package here, not there."""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_needs(names: Sequence[str]) -> set[str]:
    """Distributions, and what they need without any extra."""
    found, left = set[str](), list(names)
    while left:
        name = plain(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        left += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line]
    return found


def wheels(makefile: Path) -> set[str]:
    """All that `make wheels` may fetch, without what that needs."""
    lists = re.findall(r"^WHEELS(?:_MORE)? = (.*?[^\\])$", makefile.read_text(), re.MULTILINE | re.DOTALL)
    assert len(lists) == 2
    return {plain(name) for text in lists for name in text.replace("\\\n", " ").split()}


class Finder(PathFinder):
    """Finds no module of any other distribution."""

    absent: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in cls.absent else PathFinder.find_spec(fullname, path, target)


def main(makefile: Path) -> int:
    there = with_needs(THERE) | wheels(makefile) | {"hires-gan"}
    modules = packages_distributions()
    Finder.absent = frozenset(name for name, owners in modules.items() if there.isdisjoint(map(plain, owners)))
    sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
    plugins = ["-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider"]
    return pytest.main(["--collect-only", "-q", "-m", "gpu", *plugins])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
