"""A configuration as MLflow parameters: flat keys, short texts, no secrets; and what changed on resume."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hires_gan.tracking.store import redact

KEY_LENGTH, VALUE_LENGTH, TAG_LENGTH = 240, 6000, 8000
"""MLflow's limits (250, 6000, 8000), less room in the key for the tag's prefix `changed.`."""
_BATCH = 100


def flatten(parameters: Mapping[str, object]) -> dict[str, str]:
    """Nested settings as `recipe.generator.latent_size` -> text, written as in YAML (null, true, [0.0, 0.99]).

    Characters that MLflow refuses in a key become `_`; what exceeds its limits is shortened visibly.
    """
    return {_key(path): shorten(redact(_text(value)), VALUE_LENGTH) for path, value in _leaves("", parameters)}


def shorten(text: str, limit: int) -> str:
    """The text, or its beginning with a note of its full length, in at most `limit` characters."""
    if len(text) <= limit:
        return text
    note = f"... ({len(text)} characters)"
    return text[: limit - len(note)] + note


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), inner)
    else:
        yield path, value


def _key(path: str) -> str:
    """A key that MLflow accepts: its characters, no path that resolves to another, not too long."""
    key = re.sub(r"[^\w.\- :]", "_", path, flags=re.ASCII)
    if key in ("", ".") or key.startswith(".."):
        key = f"_{key}"
    if len(key) <= KEY_LENGTH:
        return key
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]  # two long keys may begin alike
    return f"{key[: KEY_LENGTH - 11]}...{digest}"


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def log_parameters(client: Any, run: Any, parameters: Mapping[str, object]) -> None:
    """Log the parameters that the run lacks; one that changed since (parameters are final) as a tag `changed.KEY`."""
    from mlflow.entities import Param, RunTag

    flat, stored = flatten(parameters), run.data.params
    new = [Param(key, value) for key, value in flat.items() if key not in stored]
    changed = {
        f"changed.{key}": value
        for key, value in flat.items()
        if key in stored and (stored[key] != value or f"changed.{key}" in run.data.tags)
    }
    tags = [RunTag(key, value) for key, value in changed.items()]
    for first in range(0, max(len(new), len(tags)), _BATCH):
        last = first + _BATCH
        client.log_batch(run.info.run_id, params=new[first:last], tags=tags[first:last])
