"""The cores that may be kept busy, by the affinity mask and by the quota of made-up control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hires_gan.cores import usable_cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 8),
        ("300000 100000\n", 3),
        ("250000 100000\n", 2),
        ("20000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("100000 50000\n", 2),
        ("", 8),
        ("300000\n", 8),
        ("300000 0\n", 8),
    ],
)
def test_version_2(eight: None, tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", 8), ("400000\n", 4), ("50000\n", 1), ("900000\n", 8)])
def test_version_1(eight: None, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def test_no_control_groups_leave_the_affinity_mask(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
