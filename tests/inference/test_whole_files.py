"""Files appear whole, or not at all, and nothing is left of what could not be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hires_gan.errors import Failure
from hires_gan.inference.files import write_whole


def full(partial: Path) -> None:
    """A disk that is full in the middle."""
    partial.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    out = tmp_path / "new" / "numbers.json"
    with pytest.raises(Failure, match=r"^cannot write .*numbers\.json: No space left on device; make room, or choose"):
        write_whole(out, full)
    assert list(out.parent.iterdir()) == []


def test_what_was_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    write_whole(out, lambda partial: partial.write_text("before"))
    with pytest.raises(Failure):
        write_whole(out, full)
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("before", 1)
