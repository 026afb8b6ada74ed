"""The journal: whole lines, in order, each key once per nimg."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from hires_gan.errors import Failure
from hires_gan.tracking.journal import Entry, Journal


def point(nimg: int, **metrics: float) -> Entry:
    return {"time": 1, "nimg": nimg, "metrics": metrics or {"kimg": nimg / 1000}}


def open_journal(folder: Path, run_id: str = "r") -> Journal:
    journal = Journal(folder)
    journal.destine(run_id)
    return journal


def test_batches_keep_the_order_and_their_limit(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for nimg in range(5):
        journal.append(point(nimg))
    journal.append({"artifact": "a", "folder": ""})
    journal.append(point(5))
    sent = []
    while batch := journal.next_batch(limit=2):
        sent.append([entry.get("nimg") for entry in batch.entries])
        journal.mark_sent(batch)
    assert sent == [[0, 1], [2, 3], [4], [None], [5]]
    assert journal.waiting == 0


def test_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append(point(1))
    journal.append(point(2))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-9])
    again = open_journal(tmp_path)
    assert again.waiting == 1 and again.fresh(["kimg"], 2) == ["kimg"]
    again.append(point(2))
    assert again.path.read_bytes() == whole


def test_damaged_line_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"\0\0\0\n")
    journal = open_journal(tmp_path)
    journal.append(point(7))
    batch = journal.next_batch(10)
    assert batch is not None and [entry["nimg"] for entry in batch.entries] == [7] and batch.lines == 2
    assert "1 damaged lines" in capsys.readouterr().err


def test_repeated_steps_are_known_per_key(tmp_path: Path) -> None:
    open_journal(tmp_path).append(point(1000, loss=1.0, kimg=1.0))
    again = open_journal(tmp_path)
    assert again.fresh(["loss", "swd", "kimg"], 1000) == ["swd"]
    assert again.fresh(["loss"], 1001) == ["loss"]


def test_what_was_sent_is_remembered_for_this_run_only(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append(point(1))
    batch = journal.next_batch(10)
    assert batch is not None
    journal.mark_sent(batch)
    assert open_journal(tmp_path).waiting == 0
    assert open_journal(tmp_path, run_id="another").waiting == 1


def test_images_without_an_entry_are_removed(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for name in ("kept.png", "orphan.png"):
        (journal.images / name).write_bytes(b"x")
    journal.append({"time": 1, "nimg": 1, "image": "grid", "files": ["kept.png"]})
    again = open_journal(tmp_path)
    assert [file.name for file in again.images.iterdir()] == ["kept.png"]
    batch = again.next_batch(10)
    assert batch is not None
    again.mark_sent(batch)
    assert not list(again.images.iterdir())


def test_full_disk_leaves_a_whole_journal(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append(point(1))
    whole = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(Failure, match="free space"):
            journal.append(point(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.read_bytes() == whole and journal.waiting == 1
    journal.append(point(2))
    assert open_journal(tmp_path).waiting == 2
