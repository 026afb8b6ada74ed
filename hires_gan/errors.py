"""The two ways in which a command ends early by a sentence instead of a traceback."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818 - the field says "failure"; it is an outcome, not a bug
    """Something outside the program went wrong: the message names what, where, and the remedy (exit code 1)."""


class UsageError(Failure):
    """The command line or the configuration asks for something that cannot be (exit code 2)."""


class Elsewhere(Exception):  # noqa: N818 - the error itself is told by the process that has it
    """Another process of the run cannot go on, and has said why: this one ends without a word.

    Args:
        usage: Whether that is a `UsageError`, so that both end with the same exit code.
    """

    def __init__(self, usage: bool = False) -> None:
        super().__init__()
        self.usage = usage
