"""YAML as the configuration reads and writes it: safe, free of YAML 1.1's surprises, with every key's line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hires_gan.errors import UsageError

Keys = tuple[str, ...]
"""The way to a value: ("recipe", "loss", "gp") stands for recipe.loss.gp."""

_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|nan)$"
)


@dataclass(frozen=True)
class Document:
    """What one YAML file says."""

    name: str
    """The file, as the user named it."""

    data: dict[str, Any]
    """Its map."""

    lines: dict[Keys, int]
    """The line, from 1, of every key and list item in it."""


class _Reader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars.

    `2e-3` is a number; `on`, `off`, `yes`, `no`, dates, `1:30` and `007` stay text, and the settings models make of
    them what they want.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML declares it as an instance's


class _Writer(yaml.SafeDumper):
    """Blocks one key per line, lists and maps by resolution on one line; quotes whatever any YAML would misread."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _number_map(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(key, int) for key in value)


_Reader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Reader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]*)$"), list("-0123456789"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])

# The writer keeps YAML 1.1's resolvers, which make it quote "on" or "1:30" for other readers, and learns 2e-3 for ours.
_Writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Writer.add_representer(
    list, lambda writer, value: writer.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
_Writer.add_representer(
    dict,
    lambda writer, value: writer.represent_mapping(
        "tag:yaml.org,2002:map", value.items(), flow_style=_number_map(value)
    ),
)


def read_document(path: Path) -> Document:
    """Read one YAML file, which must hold a map.

    Raises:
        UsageError: If the file cannot be read, is no YAML, names a key twice or does not hold a map.
    """
    data, lines = _parse(_text(path), str(path))
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {_kind(data)}"
        raise UsageError(f"{path} {found}; a map of keys is needed, such as `run: {{name: first, total_kimg: 100}}`")
    return Document(str(path), data, lines)


def read_value(text: str, source: str) -> Any:
    """Read the right side of an override.

    Raises:
        UsageError: If it is no YAML; the sentence begins with `source`.
    """
    return _parse(text, source)[0]


def write_yaml(data: Mapping[str, Any]) -> str:
    """Text that `read_document` reads back to an equal map; of maps, lists, text, numbers, truth values and None."""
    return str(yaml.dump(data, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; name a YAML file, such as configs/demo.yaml") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name a YAML file, such as configs/demo.yaml") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 (byte {error.start}); name a YAML file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _parse(text: str, source: str) -> tuple[Any, dict[Keys, int]]:
    try:
        reader = _Reader(text)
        node = reader.get_single_node()
        if node is None:
            return None, {}
        # Before the construction, which writes what `<<` merges into the nodes.
        lines = dict(_walk(node, (), source, [], set()))
        return reader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{source}{where}: this is no valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{source}: this is no valid YAML: {str(error).splitlines()[0]}") from None


def _walk(
    node: yaml.Node, keys: Keys, source: str, above: list[yaml.Node], seen: set[yaml.Node]
) -> Iterator[tuple[Keys, int]]:
    """Every key and item under `node` with its line; refuses a key that comes twice and an alias of itself."""
    if node in above:
        line = node.start_mark.line + 1
        raise UsageError(f"{source}, line {line}: what is anchored here repeats itself inside itself; write it out")
    if node in seen:  # an alias: what is under it was seen where it was written
        return
    seen.add(node)
    for key, value, line in _children(node, keys, source):
        yield (*keys, key), line
        yield from _walk(value, (*keys, key), source, [*above, node], seen)


def _children(node: yaml.Node, keys: Keys, source: str) -> Iterator[tuple[str, yaml.Node, int]]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield str(index), item, item.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                full = ".".join((*keys, name))
                raise UsageError(
                    f"{source}, line {line}: {full} stands already in line {first[name]}; keep one of the two"
                )
            first[name] = line
            yield name, value, line


def _kind(value: object) -> str:
    return {list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}.get(
        type(value), f"a {type(value).__name__}"
    )
