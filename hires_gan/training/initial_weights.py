"""A new run from another's weights: fine-tuning, and going on with what `hires-gan import-nvlabs` read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hires_gan.checkpoint import Checkpoint, load_exactly
from hires_gan.errors import UsageError
from hires_gan.inference.loading import find
from hires_gan.networks.growth import Width, resolutions_to
from hires_gan.progress import say
from hires_gan.settings import at_resolution
from hires_gan.training.backends import Backend
from hires_gan.training.settings import Plan

_NO_ARCHITECTURE = {"group_size", "freeze", "recompute"}
"""Keys of the networks' blocks that leave the weights' names and shapes alone."""

_WIDTH = {"fmap_base", "fmap_max"}


def open_initial(plan: Plan, domains: Sequence[str]) -> Checkpoint | None:
    """The checkpoint that `run.init_from` names, if it names one and its networks are those of the configuration.

    Args:
        plan: The configuration.
        domains: Of the data.

    Raises:
        UsageError: If it is not there, or of another architecture: names what differs.
        Failure: If it is damaged.
    """
    if plan.run.init_from is None:
        return None
    saved = find(plan.run.init_from)
    there, here = saved.state["configuration"]["recipe"], plan.model_dump(mode="json")["recipe"]
    differences = [*_differences(there, here), *_domain_differences(saved, domains)]
    if differences:
        raise UsageError(
            f"run.init_from is {plan.run.init_from}, whose networks are not those of this configuration: "
            f"{'; '.join(differences)}. Set these keys to what the weights have"
        )
    return saved


def start_from(saved: Checkpoint, backend: Backend) -> None:
    """Take over the weights of all players and the average; nothing else.

    Raises:
        Failure: If the checkpoint is damaged, or lacks a player.
    """
    average = f"{backend.recipe.averaged}.average"
    parts = {name: saved.tensors(name) for name in (*backend.recipe.players, average)}
    for name, player in backend.recipe.players.items():
        load_exactly(player, parts[name], name)
    load_exactly(backend.average, parts[average], average)
    say(f"starting from the weights of {saved.folder}, {saved.nimg / 1000:.1f} kimg")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "resolution", "labels"):
        if there.get(key) != here.get(key):
            yield f"recipe.{key} is {there.get(key)} there and {here.get(key)} here"
    if there.get("name") != here.get("name"):
        return
    if here["name"] == "munit" and _start(there) != _start(here):
        key = "recipe.schedule.start_resolution"
        yield f"{key}, or recipe.resolution without one, is {_start(there)} there and {_start(here)} here"
    for player in ("generator", "discriminator"):
        alike = set(_NO_ARCHITECTURE)
        if here[player].keys() >= _WIDTH and _maps(there, player) == _maps(here, player):
            alike |= _WIDTH
        for key in (key for key in here[player] if key not in alike):
            if there[player].get(key) != here[player][key]:
                yield f"recipe.{player}.{key} is {there[player].get(key)} there and {here[player][key]} here"


def _domain_differences(saved: Checkpoint, domains: Sequence[str]) -> Iterator[str]:
    """The weights of a translation are those of its domains."""
    there = saved.state["inference"].get("domains", [])
    if there and there != list(domains):
        yield (
            f"the domains are {', '.join(there)} there and {', '.join(domains)} here: name them in data.domains alike, "
            "and in this order"
        )


def _start(recipe: Mapping[str, Any]) -> int:
    """The lowest resolution at which the networks of a translation work by themselves."""
    schedule = recipe.get("schedule")
    start: int = schedule["start_resolution"] if schedule else recipe["resolution"]
    return start


def _maps(recipe: Mapping[str, Any], player: str) -> list[int]:
    """How many feature maps there are at each resolution: two ways of writing the base may give the same."""
    base, most = (recipe[player].get(key) for key in ("fmap_base", "fmap_max"))
    if isinstance(base, Mapping):
        base = at_resolution({int(side): value for side, value in base.items()}, recipe["resolution"])
    width = Width(base // 2 if recipe["name"] == "stylegan2" else base, most)
    return [width.at(side) for side in resolutions_to(recipe["resolution"])]
