"""How numbers were taken, beside them in MLflow: a tag for each metric, with an entry wherever that has changed.

The tag `protocol.evaluation/fid` is a JSON list, oldest first: `[{"nimg": 0, "fakes": "50000", ...}, ...]`. It comes
with the run: whoever compares runs needs no request for it. What a protocol consists of, nothing here knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hires_gan.tracking.parameters import TAG_LENGTH

Protocol = Mapping[str, str]
"""How a number is taken, flat: numbers of equal ones may be set against each other."""
_PREFIX = "protocol."
_NIMG = "nimg"


@dataclass(frozen=True)
class Entry:
    """From where on a metric was taken in which way.

    Attributes:
        nimg: Images shown at the first number that was.
        protocol: The way.
    """

    nimg: int
    protocol: Protocol


History = tuple[Entry, ...]
"""Oldest first; none is as the one before it."""


def fingerprint(protocol: Protocol) -> str:
    """sha256 of a protocol, in hexadecimal: equal where numbers may be compared."""
    return hashlib.sha256(json.dumps(dict(protocol), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tag_of(metric: str) -> str:
    """The key of the tag that says how a metric was taken, by the name under which that is logged."""
    return f"{_PREFIX}{metric}"


def in_force(history: History, nimg: int) -> Protocol | None:
    """How a number at `nimg` was taken; None where nothing says it."""
    return next((entry.protocol for entry in reversed(history) if entry.nimg <= nimg), None)


def entered(history: History, nimg: int, protocol: Protocol) -> History:
    """The history with a number that was taken at `nimg`; the same one if that says nothing new."""
    if in_force(history, nimg) == protocol:
        return history
    known = {entry.nimg: entry.protocol for entry in history} | {nimg: dict(protocol)}
    entries = [Entry(*one) for one in sorted(known.items(), key=lambda one: one[0])]
    return (entries[0], *(after for before, after in pairwise(entries) if before.protocol != after.protocol))


def histories_of(tags: Mapping[str, str]) -> dict[str, History]:
    """The histories among a run's tags, by metric; a tag that cannot be read is left out."""
    found = {key.removeprefix(_PREFIX): read_history(text) for key, text in tags.items() if key.startswith(_PREFIX)}
    return {metric: history for metric, history in found.items() if history}


def read_history(text: str | None) -> History:
    """What a tag says; nothing if it is absent, cut off or somebody else's."""
    try:
        history = tuple(map(_read, json.loads(text or "[]")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
    return history if all(before.nimg < after.nimg for before, after in pairwise(history)) else ()


def _read(content: Any) -> Entry:
    nimg, protocol = content[_NIMG], {key: value for key, value in content.items() if key != _NIMG}
    if type(nimg) is not int or not all(isinstance(value, str) for value in protocol.values()):
        raise ValueError
    return Entry(nimg, protocol)


def write_history(history: History) -> str:
    """The text of the tag: as many of the latest entries as it takes."""
    text = json.dumps([{_NIMG: entry.nimg, **entry.protocol} for entry in history])
    return text if len(text) <= TAG_LENGTH else write_history(history[1:])


def record(client: Any, run_id: str, taken: Iterable[tuple[str, int, Protocol]]) -> None:
    """Keep how numbers of a run were taken; what its tags say already changes nothing.

    Args:
        client: an MlflowClient.
        run_id: the run.
        taken: metric, nimg and protocol of each number.
    """
    from mlflow.entities import RunTag

    tags: Mapping[str, str] = client.get_run(run_id).data.tags
    new: dict[str, str] = {}
    for metric, nimg, protocol in taken:
        tag = tag_of(metric)
        history = read_history(new.get(tag, tags.get(tag)))
        new[tag] = write_history(entered(history, nimg, protocol))
    changed = [RunTag(tag, text) for tag, text in new.items() if tags.get(tag) != text]
    if changed:
        client.log_batch(run_id, tags=changed)
