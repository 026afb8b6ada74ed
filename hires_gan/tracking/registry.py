"""Versions of a registered model: what they say of themselves, and which of them is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hires_gan.progress import say
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.store import if_known

BEST = "best"
"""The alias of the best version: `models:/NAME@best`. The newest one is `models:/NAME/latest`, by MLflow's own rule."""
_COMPARED = "compared"
_LISTED = 5


def register(client: Any, run_id: str, model: Any, card: ModelCard, values: Mapping[str, float]) -> None:
    """Register a logged model under the name on its card; may be repeated after a failure in the middle.

    Args:
        client: an MlflowClient.
        run_id: the run that trained it.
        model: the logged model, with its artifacts.
        card: what it is.
        values: its evaluation, as metrics of the run are called.
    """
    assert card.register_as is not None, "the card names no model to register"
    if card.value is not None:  # a store that went past it keeps what was measured there first, maybe otherwise
        values = {**values, card.watched: card.value}
    version = _find(client, card.register_as, model) or _create(client, run_id, model, card, values)
    if card.is_best:
        _mark_best(client, card, version)


def find_version(client: Any, name: str, version: str | None, alias: str | None) -> Any:
    """A version of a registered model; None if there is no such one.

    Args:
        client: an MlflowClient.
        name: the model's.
        version: its number, or `latest` for the newest one.
        alias: in place of that.
    """
    if alias is not None:
        return if_known(lambda: client.get_model_version_by_alias(name, alias))
    if version == "latest":
        version = next(iter(_newest(client, name, 1)), None)
    return None if version is None else if_known(lambda: client.get_model_version(name, version))


def what_is_there(client: Any, name: str) -> str:
    """What the registry has in place of a version that it has not got, as the end of a sentence."""
    model = if_known(lambda: client.get_registered_model(name))
    if model is None:
        names = [one.name for one in client.search_registered_models(max_results=_LISTED)]
        return f"has no registered model {name}, but {', '.join(names) or 'none at all'}"
    versions = _newest(client, name, _LISTED)
    aliases = sorted(f"@{alias}" for alias in model.aliases)
    return f"has the versions {', '.join([*versions, *aliases])} of {name}" if versions else f"has no version of {name}"


def _newest(client: Any, name: str, count: int) -> list[str]:
    """The numbers of the newest versions of a registered model."""
    quote = '"' if "'" in name else "'"
    found = client.search_model_versions(
        f"name = {quote}{name}{quote}", max_results=count, order_by=["version_number DESC"]
    )
    return [str(one.version) for one in found]


def _find(client: Any, name: str, model: Any) -> Any:
    _ensure_name(client, name)
    known = client.search_model_versions(f"name = '{name}'")
    return next((version for version in known if version.source == model.artifact_location), None)


def _ensure_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create(client: Any, run_id: str, model: Any, card: ModelCard, values: Mapping[str, float]) -> Any:
    name = str(card.register_as)
    tags = {"recipe": card.recipe, "resolution": str(card.resolution), "nimg": str(card.nimg), _COMPARED: card.compared}
    version = client.create_model_version(
        name,
        model.artifact_location,
        run_id=run_id,
        model_id=model.model_id,
        tags=tags | {key: repr(value) for key, value in values.items()},
    )
    client.update_model_version(name, version.version, _description(card, values, f"models:/{name}/{version.version}"))
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})  # what the model's own page links to
    return client.get_model_version(name, version.version)


def _description(card: ModelCard, values: Mapping[str, float], uri: str) -> str:
    measured = "".join(f"\n- {name}: {value:g}" for name, value in values.items())
    command = "translate" if card.translates else "generate"
    return (
        f"{card.recipe} at {card.resolution}x{card.resolution}, after {card.nimg / 1000:g} kimg.\n{measured}\n\n"
        f"`hires-gan {command} {uri} --help`"
    )


def _mark_best(client: Any, card: ModelCard, version: Any) -> None:
    """Let the alias point to this version, unless the one that has it is at least as good by the same measure."""
    name = str(card.register_as)
    holder = _holder(client, name)
    if holder is not None and holder.version == version.version:
        return
    if holder is not None and _is_alike(card, holder) and not _beats(card, version, holder):
        say(f"models:/{name}@{BEST} stays version {holder.version}: {_contest(card, holder, version)}")
        return
    client.set_registered_model_alias(name, BEST, version.version)
    if holder is not None:
        why = _contest(card, version, holder) if _is_alike(card, holder) else "the two were not measured alike"
        say(f"models:/{name}@{BEST} is now version {version.version}, and was {holder.version}: {why}")


def _is_alike(card: ModelCard, holder: Any) -> bool:
    """Whether the values of two versions may be compared: where nothing says so, they may not."""
    return bool(card.compared) and holder.tags.get(_COMPARED) == card.compared


def _holder(client: Any, name: str) -> Any:
    return if_known(lambda: client.get_model_version_by_alias(name, BEST))


def _beats(card: ModelCard, version: Any, holder: Any) -> bool:
    sign = -1.0 if card.higher_is_better else 1.0
    # Without a value nothing can be said for a version.
    return sign * _value(card, version, sign * math.inf) < sign * _value(card, holder, sign * math.inf)


def _value(card: ModelCard, version: Any, absent: float) -> float:
    return float(version.tags.get(card.watched, absent))


def _contest(card: ModelCard, winner: Any, loser: Any) -> str:
    values = [version.tags.get(card.watched, "unknown") for version in (winner, loser)]
    return f"its {card.watched} is {values[0]}, against {values[1]}"
