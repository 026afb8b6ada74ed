"""What is wrong with a configuration, one sentence per key: what was found, what is allowed, the nearest right name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from hires_gan.yaml_text import Keys

Node = dict[str, Any]
"""A part of a JSON schema."""


class Schema:
    """The JSON schema of a settings model, which can be asked about any key.

    A block is a map with named keys, a nested settings model; every other map (by resolution) is a value.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Node = model.model_json_schema()
        self._definitions: Node = self.root.get("$defs", {})

    def branches(self, node: Node) -> list[Node]:
        """The alternatives of a union, references resolved; of anything else itself alone."""
        if "$ref" in node:
            return self.branches(self._definitions[node["$ref"].rsplit("/", 1)[1]])
        if union := node.get("oneOf") or node.get("anyOf"):
            return [leaf for branch in union for leaf in self.branches(branch)]
        return [node]

    def blocks(self, node: Node | None) -> list[Node]:
        """The branches that are blocks: one, several where a union is told apart by `name`, or none."""
        return [branch for branch in self.branches(node or {}) if "properties" in branch]

    def chosen(self, node: Node | None, value: Any) -> list[Node]:
        """The blocks that `value` can be by its `name`: all of them while that fits none."""
        blocks = self.blocks(node)
        name = value.get("name") if isinstance(value, Mapping) else None
        return [block for block in blocks if name in names(block)] or blocks

    def child(self, node: Node | None, key: str, value: Any = None) -> Node | None:
        """What is allowed below `node` at `key` (a list's index is a key too); None if nothing is."""
        for block in self.chosen(node, value):
            if key in block["properties"]:
                return dict(block["properties"][key])
        for branch in self.branches(node or {}):
            if isinstance(branch.get("additionalProperties"), dict):
                return dict(branch["additionalProperties"])
            if branch.get("type") == "array" and key.isdigit():
                items = [*branch.get("prefixItems", []), *([branch["items"]] if "items" in branch else [])]
                return dict(items[min(int(key), len(items) - 1)]) if items else None
        return None

    def at(self, keys: Keys, data: Any) -> Node | None:
        """What is allowed at `keys`, where the unions on the way are told apart by `data`."""
        node: Node | None = self.root
        for key in keys:
            node = self.child(node, key, data)
            data = data.get(key) if isinstance(data, Mapping) else None
        return node

    def every_key(self, node: Node | None = None, above: Keys = ()) -> Iterator[Keys]:
        """Every key that any configuration can have."""
        for block in self.blocks(node or self.root):
            for key, child in block["properties"].items():
                yield (*above, key)
                yield from self.every_key(child, (*above, key))


def names(block: Node) -> list[str]:
    """The values of `name` by which a union knows this block; none for a block whose `name` is free text or absent."""
    name = block["properties"].get("name", {})
    return [name["const"]] if "const" in name else list(name.get("enum", []))


def explain(error: ValidationError, data: Mapping[str, Any], schema: Schema) -> dict[Keys, str]:
    """The errors of a validation as sentences, by key: one each, however many branches of a union complained."""
    found: dict[Keys, str] = {}
    for item in error.errors(include_url=False):
        keys, sentence = _sentence(item, data, schema)
        found.setdefault(keys, sentence)
    return {
        keys: sentence
        for keys, sentence in found.items()
        if not any(other != keys and other[: len(keys)] == keys for other in found)
    }


def not_allowed(keys: Keys, value: Any, node: Node | None, schema: Schema) -> str:
    """The sentence for a value of the wrong kind or out of range."""
    sentence = f"{'.'.join(keys)} is {_shown(value)}; allowed: {_allowed(node or {}, schema)}"
    branches = schema.branches(node or {})
    if isinstance(value, str):
        options = [str(option) for branch in branches for option in [branch.get("const"), *branch.get("enum", [])]]
        near = difflib.get_close_matches(value, options, n=1)
        sentence += f"; did you mean {near[0]}?" if near else ""
    elif isinstance(value, int | float) and any(_is_text(branch) for branch in branches):
        sentence += f"; to make it text, quote it: '\"{value}\"'"
    return sentence


def _is_text(branch: Node) -> bool:
    return branch.get("type") == "string" and "const" not in branch and "enum" not in branch


def _sentence(item: Mapping[str, Any], data: Mapping[str, Any], schema: Schema) -> tuple[Keys, str]:
    keys, value = _real_keys(item["loc"], data)
    kind, key = item["type"], ".".join(keys)
    if kind == "value_error":
        return keys, f"{key}: {item['ctx']['error']}" if keys else str(item["ctx"]["error"])
    if kind == "extra_forbidden":
        return keys, _unknown(keys, data, schema)
    if kind == "missing" and isinstance(value, Mapping):
        keys = (*keys, str(item["loc"][-1]))
        return keys, _missing(keys, data, schema)
    if kind == "union_tag_not_found":
        return (*keys, "name"), _missing((*keys, "name"), data, schema)
    if kind == "union_tag_invalid":
        return (*keys, "name"), _wrong_name((*keys, "name"), value["name"], schema.at(keys, data), schema)
    if item["loc"][-1] == "[key]":
        return keys, f"{key} is no resolution; a map by resolution has keys such as 4, 8 or 1024"
    return keys, not_allowed(keys, value, schema.at(keys, data), schema)


def _real_keys(loc: Sequence[int | str], data: Any) -> tuple[Keys, Any]:
    """The part of pydantic's path that is in `data`, without its labels for the branches of unions."""
    keys: list[str] = []
    for part in loc:
        is_item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if is_item or (isinstance(data, Mapping) and part in data):
            data = data[part]
            keys.append(str(part))
    return tuple(keys), data


def _missing(keys: Keys, data: Mapping[str, Any], schema: Schema) -> str:
    parent = schema.at(keys[:-1], data)
    if keys[-1] == "name" and (options := [name for block in schema.blocks(parent) for name in names(block)]):
        return f"{'.'.join(keys)} is missing; needed: {_one_of(options)}"
    return f"{'.'.join(keys)} is missing; needed: {_allowed(schema.at(keys, data) or {}, schema)}"


def _wrong_name(keys: Keys, value: Any, parent: Node | None, schema: Schema) -> str:
    options = [name for block in schema.blocks(parent) for name in names(block)]
    return not_allowed(keys, value, {"enum": options}, schema)


def _unknown(keys: Keys, data: Mapping[str, Any], schema: Schema) -> str:
    """An unknown key: in another branch of its union, with a near name here, with a right name elsewhere."""
    key, above = ".".join(keys), keys[:-1]
    if key == "base":
        return "base is a key of a file, not of an override"
    parent = schema.at(above, data)
    value: Any = data
    for part in above:
        value = value[part]
    homes = [name for block in schema.blocks(parent) if keys[-1] in block["properties"] for name in names(block)]
    if homes:
        name = ".".join((*above, "name"))
        return f"{key} does not go with {name} {value.get('name')}; it goes with {_one_of(homes)}"
    siblings = [name for block in schema.chosen(parent, value) for name in block["properties"]]
    near = _nearest(keys, siblings, list(dict.fromkeys(schema.every_key())))
    if near:
        return f"{key} is unknown; did you mean {_one_of(near)}?"
    return f"{key} is unknown; allowed {'here' if above else 'at the top'}: {', '.join(siblings)}"


def _nearest(keys: Keys, siblings: list[str], everywhere: list[Keys]) -> list[str]:
    """At most three right names for a wrong one: a sibling, the same key elsewhere, its initials, a likeness."""
    wrong, above = keys[-1].lower().replace("-", "_"), keys[:-1]
    beside = [[(*above, name) for name in _close(wrong, siblings, cutoff)] for cutoff in (0.8, 0.6)]
    forms = ((_last,), (_joined,), (_initials, _short))
    renamed = [[other for other in everywhere if wrong in [form(other) for form in group]] for group in forms]
    alike = _close(wrong, [other[-1] for other in everywhere], 0.75)
    elsewhere = [other for other in everywhere if other[-1] in alike]
    for found in (beside[0], *renamed, beside[1], elsewhere):
        if found:
            below = [other for other in found if other[: len(above)] == above] or found
            shallow = min(len(other) for other in below)
            return [".".join(other) for other in below if len(other) == shallow][:3]
    return []


def _close(wrong: str, options: Sequence[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(wrong, sorted(set(options)), n=1, cutoff=cutoff)


def _last(keys: Keys) -> str:
    return keys[-1]


def _joined(keys: Keys) -> str:
    """`batch_size` for batch.size."""
    return "_".join(keys[-2:])


def _initials(keys: Keys) -> str:
    """`lr` for learning_rate."""
    return "".join(word[:1] for word in keys[-1].split("_")) if "_" in keys[-1] else ""


def _short(keys: Keys) -> str:
    """`bs` for batch.size; of the keys of a block alone, since further down too much is alike."""
    return "".join(word[:1] for word in _joined(keys).split("_")) if len(keys) == 2 else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_of(options: Sequence[Any]) -> str:
    texts = [str(option) for option in options]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _allowed(node: Node, schema: Schema) -> str:
    """In words what a schema allows: "a whole number from 0 to 256 or auto"."""
    if pattern := node.get("pattern"):
        return f"text{_length(node)} like {pattern} ({node.get('description', 'a regular expression')})"
    named = [name for block in schema.blocks(node) for name in names(block)]
    if named:
        return f"a block whose name is {_one_of(named)}"
    return " or ".join(dict.fromkeys(_words(branch, schema) for branch in schema.branches(node)))


def _words(branch: Node, schema: Schema) -> str:
    if "const" in branch or "enum" in branch:
        return _one_of(branch.get("enum", [branch.get("const")]))
    if "properties" in branch:
        return f"a block of {', '.join(branch['properties'])}"
    match branch.get("type"):
        case "integer":
            return f"a whole number{_range(branch)}"
        case "number":
            return f"a number{_range(branch)}"
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "array":
            return _list(branch, schema)
        case "object":
            by = "name" if _texts_alone(branch) else "resolution"
            return f"a map by {by}, to {_allowed(branch.get('additionalProperties', {}), schema)} each"
    return "a path" if branch.get("format") == "path" else f"text{_length(branch)}"


def _texts_alone(branch: Node) -> bool:
    """Whether a map leads to texts, as one from domains to places does; those by resolution lead to numbers."""
    values = branch.get("additionalProperties", {})
    return bool(values.get("type") == "string")


def _range(branch: Node) -> str:
    low, high = branch.get("minimum"), branch.get("maximum")
    above, below = branch.get("exclusiveMinimum"), branch.get("exclusiveMaximum")
    bounds = [
        f"above {above}" if above is not None else "",
        f"from {low}" if low is not None else "",
        f"to {high}" if high is not None else "",
        f"to below {below}" if below is not None else "",
    ]
    text = " ".join(bound for bound in bounds if bound)
    return f" {text}{' up' if low is not None and high is None and below is None else ''}" if text else ""


def _length(branch: Node) -> str:
    if high := branch.get("maxLength"):
        return f" of {branch.get('minLength', 0)} to {high} characters"
    return " that is not empty" if branch.get("minLength") else ""


def _list(branch: Node, schema: Schema) -> str:
    if items := branch.get("prefixItems"):
        kinds = list(dict.fromkeys(_allowed(item, schema) for item in items))
        return f"a list of {len(items)}, each {kinds[0]}" if len(kinds) == 1 else f"a list of {', '.join(kinds)}"
    return f"a list, each {_allowed(branch.get('items', {}), schema)}"
