"""The Dockerfile as its instructions, and what .dockerignore lets into the build."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Instruction(NamedTuple):
    """One instruction; its stage is the number of FROM instructions so far, 0 before the first."""

    name: str
    text: str
    stage: int

    def words(self) -> list[str]:
        """The words behind the instruction's name, its own --options left out."""
        words = shlex.split(self.text)
        return words[next(index for index, word in enumerate(words) if not word.startswith("--")) :]


def instructions(text: str) -> list[Instruction]:
    """All instructions in their order; continued lines are joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name:
            stage = (found[-1].stage if found else 0) + (name == "FROM")
            found.append(Instruction(name, rest.strip(), stage))
    return found


def arguments(found: list[Instruction]) -> dict[str, str]:
    """The defaults of the ARG instructions that have one."""
    pairs = [instruction.words()[0].partition("=") for instruction in found if instruction.name == "ARG"]
    return {name: value for name, equals, value in pairs if equals}


def expanded(text: str, values: dict[str, str]) -> str:
    """`text` with each ${NAME} replaced; one without a value is an error."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def environment(found: list[Instruction], values: dict[str, str]) -> dict[str, str]:
    """The variables that the last stage sets."""
    last = [instruction for instruction in found if instruction.name == "ENV" and instruction.stage == found[-1].stage]
    pairs = [word.partition("=") for instruction in last for word in shlex.split(expanded(instruction.text, values))]
    return {name: value for name, _, value in pairs}


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore keeps a file out: the last pattern that fits it, or a folder above it, decides."""
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    out = False
    for pattern in patterns:
        if any(_expression(pattern.removeprefix("!")).fullmatch(head) for head in heads):
            out = not pattern.startswith("!")
    return out


def _expression(pattern: str) -> re.Pattern[str]:
    named = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return re.compile("".join(named.get(part) or re.escape(part) for part in parts))


def ignore_patterns() -> list[str]:
    """The lines of .dockerignore that say something."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
