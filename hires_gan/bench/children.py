"""Commands of this package in processes of their own, one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; None if its time was up.
        said: What it wrote to standard error, to the end.
    """

    code: int | None
    said: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line: the last one that says something, without `error:`."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")


def command(arguments: Sequence[object]) -> list[str]:
    """`hires-gan ARGUMENTS`, with the Python that runs this."""
    return [sys.executable, "-m", "hires_gan", *map(str, arguments)]


def call(arguments: Sequence[object], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end, or to that of its time: then it is killed.

    Args:
        arguments: Of `hires-gan`.
        seconds: How long it may take.
        environment: Its whole environment; None: this one.
    """
    try:
        ran = subprocess.run(  # noqa: S603 - our own command
            command(arguments), capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        return Ended(None, said.decode(errors="replace") if isinstance(said, bytes) else said)
    return Ended(ran.returncode, ran.stderr)


def start(arguments: Sequence[object], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that writes all it says to a file."""
    with log.open("wb") as file:
        whole = command(arguments)
        return subprocess.Popen(whole, stdout=file, stderr=file, env=dict(environment))  # noqa: S603 - our own command
