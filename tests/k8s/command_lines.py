"""What the manifests' commands come to: which programs they start, and whether these take their options."""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
from manifests import ROOT, Document, Pods, command_of, environment, is_ours, resolved

from hires_gan.cli import app

SEPARATOR = "\x1f"
RECORDER = f"""#!/bin/bash
IFS=$'\\x1f'
echo "${{0##*/}}{SEPARATOR}$*" >> "$RECORD"
"""
"""Stands for a program, and writes down how it was called."""
PROGRAMS = ("hires-gan", "mlflow", "python", "accelerate", "torchrun")
MEETING = ["python", "-m", "hires_gan.training.meeting"]
SHELLS = ("bash", "sh")


def commands(pod: Pods, of: list[Document]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Container, command and environment of whatever our image runs in these pods, probes too."""
    for container in filter(is_ours, pod.containers):
        told = environment(pod, container, of)
        yield container["name"], [resolved(word, told) for word in command_of(container)], told
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "exec" in container.get(probe, {}):
                yield f"{container['name']}, {probe}", container[probe]["exec"]["command"], told


def started(command: Sequence[str], told: Mapping[str, str], folder: Path) -> list[list[str]]:
    """The programs that a command starts, one behind the other, with their arguments: a script really runs.

    Args:
        command: What the container runs, from the image's folder.
        told: Its environment.
        folder: An empty one, for programs that only write down how they are called.

    Raises:
        AssertionError: If a script fails.
    """
    assert command, "no command, and the image's own shows the help"
    if command[0] not in SHELLS:
        return [list(command)]
    record, endings = folder / "record", folder / "endings"
    for name in PROGRAMS:
        (folder / name).write_text(RECORDER, encoding="utf-8")
        (folder / name).chmod(0o755)
    endings.touch()
    variables = {
        **told,
        "PATH": f"{folder}:/usr/bin:/bin",
        "RECORD": str(record),
        "TMPDIR": str(folder),
        "HIRES_GAN_ENDINGS": str(endings),
    }
    done = subprocess.run(
        list(command), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command} ends with {done.returncode}: {done.stderr}"
    assert record.is_file(), f"{command} starts none of {', '.join(PROGRAMS)}"
    return [line.split(SEPARATOR) for line in record.read_text(encoding="utf-8").splitlines()]


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A program's options, as it understands them itself.

    Attributes:
        name: The program and its subcommands, or `accelerate` for the launcher.
        options: By the names that the program gives them.
    """

    name: str
    options: dict[str, Any]


def calls(words: Sequence[str], told: Mapping[str, str]) -> list[Call]:
    """What a program is asked for, and what it hands on.

    Raises:
        ValueError: If it does not take these words, or is none of those that are known here.
    """
    program, rest = words[0], list(words[1:])
    if program == "hires-gan":
        return [_click("hires-gan", _hires_gan(), rest, told)]
    # Imported here: each takes seconds, and tests are collected in every process that runs some.
    if program == "mlflow":
        from mlflow.cli import cli

        return [_click("mlflow", cli, rest, told)]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        return _launched("accelerate", launch_command_parser(), rest[1:], told)
    if list(words[: len(MEETING)]) == MEETING:
        address, *numbers = words[len(MEETING) :]
        places = dict(zip(("port", "nodes", "index"), map(int, numbers), strict=True))
        return [Call("meeting", {"address": address, **places})]
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        return _launched("torchrun", get_args_parser(), rest, told)
    raise ValueError(f"{' '.join(words)}: none of {', '.join(PROGRAMS)}")


_hires_gan = functools.cache(functools.partial(typer.main.get_command, app))


def _click(name: str, command: Any, words: list[str], told: Mapping[str, str]) -> Call:
    """Parsed as the program does, up to the point where it would begin."""
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            raise ValueError(f"{name} has no command {' '.join(words[:1])!r}")
        command, name, words = command.commands[words[0]], f"{name} {words[0]}", words[1:]
    with mock.patch.dict(os.environ, told):
        try:
            return Call(name, command.make_context(name, list(words)).params)
        except Exception as error:
            message = error.format_message() if hasattr(error, "format_message") else error
            raise ValueError(f"{name}: {message}") from error


def _launched(name: str, parser: argparse.ArgumentParser, words: list[str], told: Mapping[str, str]) -> list[Call]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", _refuse)
        options = vars(parser.parse_args(words))
    if not options["module"] or options["training_script"] != "hires_gan":
        raise ValueError(f"{name} starts {options['training_script']}, and not -m hires_gan")
    return [Call(name, options), *calls(["hires-gan", *options["training_script_args"]], told)]


def _refuse(parser: argparse.ArgumentParser, message: str) -> None:
    raise ValueError(f"{parser.prog}: {message}")
