"""What may differ from the checkpoint on resume, and how a difference that may not is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hires_gan.config import Configuration
from hires_gan.errors import UsageError
from hires_gan.training.resume_rules import ABSENT, MAY_CHANGE_ON_RESUME, changed_keys, may_change, refuse_changes


def resolved(**changes: Any) -> dict[str, Any]:
    blocks: dict[str, Any] = {
        "run": {"name": "first", "total_kimg": 100},
        "data": {"shards": "demo:photographs"},
        "recipe": {"name": "progressive", "resolution": 64},
        "batch": {"size": {4: 16, 16: 8}},
    }
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, dict) else value
    return Configuration.model_validate(blocks).model_dump(mode="json")


def stored(configuration: dict[str, Any]) -> dict[str, Any]:
    """The way through the checkpoint's state.json."""
    return json.loads(json.dumps(configuration))  # type: ignore[no-any-return]


def test_nothing_has_changed_after_the_way_through_json() -> None:
    assert changed_keys(stored(resolved()), resolved()) == []
    assert changed_keys(stored(resolved()), Configuration.model_validate(resolved()).model_dump()) == [
        ("run.dir", "runs", Configuration.model_validate(resolved()).run.dir)
    ], "a Path is no text: the caller dumps with mode='json'"
    refuse_changes(stored(resolved()), resolved())


def test_the_deepest_key_is_named_with_both_values() -> None:
    old = resolved(ema={"half_life_kimg": 10})
    new = resolved(run={"seed": 1}, batch={"size": {4: 16, 16: 4, 32: 4}}, recipe={"loss": {"name": "hinge", "r1": 1}})
    assert changed_keys(stored(old), new) == [
        ("run.seed", 0, 1),
        ("recipe.loss.r1", 0.0, 1.0),
        ("recipe.loss.gp", 10.0, 0.0),
        ("recipe.loss.drift", 0.001, 0.0),
        ("recipe.loss.name", "wgan_gp", "hinge"),
        ("batch.size.16", 8, 4),
        ("batch.size.32", ABSENT, 4),
    ]
    assert changed_keys({"a": 1}, {"a": {4: 1}}) == [("a", 1, {4: 1})]
    assert changed_keys({"a": {"b": 1}}, {}) == [("a", {"b": 1}, ABSENT)]
    assert changed_keys({"betas": [0, 1]}, {"betas": (0, 1)}) == []


def test_what_may_change_is_not_refused() -> None:
    refuse_changes(
        stored(resolved()),
        resolved(
            run={"dir": "elsewhere", "resume": "required", "total_kimg": 200, "stop_after_nonfinite": 1},
            data={"shards": "/moved", "workers": 3, "prefetch": 1},
            batch={"size": {4: 16, 16: 8}, "per_device": 4},
            checkpoint={"every_kimg": 1, "keep": 1},
            samples={"every_kimg": None, "count": 4},
            evaluation={"metrics": [], "best": None, "count": 7},
            tracking={"uri": "http://localhost:1", "experiment": "other"},
        ),
    )


def test_where_the_data_lie_may_change_since_their_digest_decides() -> None:
    before = resolved(data={"shards": None, "domains": {"a": "/a", "b": "/b"}})
    moved = {"shards": None, "domains": {"a": "s3://bucket/a", "b": "/c"}}
    refuse_changes(stored(before), resolved(data={**moved, "stream": {"downloads": 2, "cache": "/cache"}}))
    refuse_changes(stored(before), resolved(data={"shards": "/pairs"}))
    assert [key for key, *_ in changed_keys(before, resolved(data=moved))] == ["data.domains.a", "data.domains.b"]


def test_what_may_not_change_is_named_with_both_values_and_the_remedy() -> None:
    old, new = (
        stored(resolved()),
        resolved(run={"name": "other", "total_kimg": 5}, data={"mirror": True}, precision="fp32"),
    )
    with pytest.raises(UsageError) as caught:
        refuse_changes(old, new)
    remedy = "it may not change on resume: set it back, or start a new run under another run.name"
    assert str(caught.value).splitlines() == [
        f'run.name was "first" in the checkpoint and is "other" now; {remedy}',
        f"data.mirror was false in the checkpoint and is true now; {remedy}",
        f'precision was "bf16" in the checkpoint and is "fp32" now; {remedy}',
    ]
    with pytest.raises(UsageError, match=r"^batch\.size\.32 was absent in the checkpoint and is 4 now"):
        refuse_changes(old, resolved(batch={"size": {4: 16, 16: 8, 32: 4}}))


def keys(configuration: dict[str, Any], above: str = "") -> list[str]:
    return [
        key
        for name, value in configuration.items()
        for key in (keys(value, f"{above}{name}.") if isinstance(value, dict) else [f"{above}{name}"])
    ]


def test_every_pattern_names_a_key_that_exists() -> None:
    translation = {"recipe": {"name": "munit", "resolution": 64}, "batch": {"size": 32}}
    plain = keys(resolved(batch={"size": 32}))
    existing = plain + [key for key in keys(resolved(**translation)) if key not in plain]
    for pattern in MAY_CHANGE_ON_RESUME:
        stem = pattern.removesuffix("*")
        assert any(key == pattern or (pattern != stem and key.startswith(stem)) for key in existing), pattern
    for key in (
        "run.name",
        "run.seed",
        "run.deterministic",
        "data.mirror",
        "batch.size",
        "precision",
        "ema.half_life_kimg",
    ):
        assert key in existing
        assert not may_change(key)
    of_recipes = [key for key in existing if key.startswith("recipe.")]
    assert [key for key in of_recipes if may_change(key)] == [
        "recipe.generator.recompute",
        "recipe.vgg.weights",
        "recipe.vgg.download",
    ]


def test_the_dial_may_change_since_it_changes_no_result_but_its_rounding() -> None:
    assert may_change("performance")
    refuse_changes(stored(resolved(performance="fast")), resolved(performance="reference"))
