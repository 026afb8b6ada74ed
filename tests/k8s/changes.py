"""Small changes to built manifests, by which a check shows that it sees something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from manifests import Document, documents, named, together

GONE = object()
"""The value of a key that is taken out."""


def put(node: Any, path: str, value: Any) -> None:
    """Set, add or take out what lies at a path such as `containers.0.image`; `+` at its end adds to a list.

    A key with dots in it stands between quotation marks.

    Raises:
        AssertionError: If what is to be taken out is not there, so that nothing would change.
    """
    first, rest = re.fullmatch(r'("[^"]+"|[^."]+)(?:\.(.+))?', path).groups()  # type: ignore[union-attr]
    key: Any = int(first) if first.isdecimal() else first.strip('"')
    if rest:
        if isinstance(node, dict):
            node.setdefault(key, {})
        put(node[key], rest, value)
    elif first == "+":
        node.append(value)
    elif value is GONE:
        assert isinstance(key, int) or key in node, f"there is no {key}, which was to be taken out"
        del node[key]
    else:
        node[key] = value


def changed(folder: str, kind: str, path: str, value: Any) -> list[Document]:
    """The objects of a folder, one of which is changed: the first of a kind, or the one of `KIND NAME`."""
    of = documents(folder) if kind != "PersistentVolumeClaim hires-gan-data" else together(folder)
    chosen = [document for document in of if kind in (document["kind"], named(document))]
    assert chosen, f"{folder} has no {kind}"
    put(chosen[0], path, value)
    return of


def pod_specs(node: Any) -> Iterator[dict[str, Any]]:
    """What each template of pods says of them, as it stands in the document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for item in node:
            yield from pod_specs(item)
