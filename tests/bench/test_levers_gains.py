"""What rows of `bench levers` are compared with, where several calls have measured them, and some failed at first."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lever_rows import measure, out_of, overrides_of, told, without

from hires_gan.bench.children import Ended
from hires_gan.bench.levers import LEVERS

LADDER = [lever for lever in LEVERS if not lever.aside]
NAMES = [lever.name for lever in LADDER]
PRIMES = dict(zip(NAMES, (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43), strict=True))
"""How much faster each lever of the ladder makes steps: a ratio tells which ones are in it."""


def pulled(arguments: list[str]) -> list[str]:
    """The levers of the ladder that a row is measured with."""
    given, left_out = {text.replace("bf16", "HALF") for text in overrides_of(arguments)}, without(arguments)
    parts = [lever.name for lever in LADDER if lever.part and lever.part not in left_out]
    return [name for name in NAMES if name in parts] + [
        lever.name for lever in LADDER if lever.overrides and set(lever.overrides) <= given
    ]


class Machine:
    """On which some levers cannot be pulled at first."""

    def __init__(self) -> None:
        self.broken: Collection[str] = ()

    def answer(self, arguments: list[str]) -> Ended:
        levers = pulled(arguments)
        if set(levers) & set(self.broken):
            return Ended(1, "error: no")
        return told(float(math.prod(PRIMES[name] for name in levers)), out_of(arguments))


@pytest.fixture
def machine(answering, a_commit, with_a_gpu) -> Machine:
    made = Machine()
    answering(made.answer)
    return made


def call(out: Path, *levers: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in measure("stylegan2_demo", micro=4, levers=levers, out=out)["rows"]}


def test_a_row_that_went_on_without_a_part_is_not_what_one_with_it_adds_to(machine, tmp_path):
    """`fused` was measured while `average` failed: `graphs`, which has both, would be credited with both."""
    out, machine.broken = tmp_path / "levers.json", ["average"]
    call(out, "one-pass", "average", "fused")
    machine.broken = []
    rows = call(out, "average", "graphs")
    assert rows["fused"]["without"] == ["average"] and rows["graphs"]["without"] == []
    assert rows["graphs"]["over"] == "average", "the last row above whose own rows are all in it"
    assert rows["fused"]["over"] == "one-pass"
    again = call(out, "fused", "graphs")
    assert (again["graphs"]["over"], again["graphs"]["gain"]) == ("fused", PRIMES["graphs"])


def test_a_row_without_a_part_does_not_add_to_one_that_has_it(machine, tmp_path):
    """`one-pass` failed first, so that `average` lacks it, and has been measured since."""
    out, machine.broken = tmp_path / "levers.json", ["one-pass"]
    call(out, "reference", "one-pass", "average")
    machine.broken = []
    rows = call(out, "one-pass")
    assert rows["average"]["without"] == ["one-pass", "channels-last", "sample-draws", "epilogue"]
    assert (rows["one-pass"]["over"], rows["average"]["over"]) == ("reference", "reference")
    assert rows["average"]["gain"] == PRIMES["average"]


def test_a_row_that_went_on_without_a_setting_is_not_what_one_with_it_adds_to(machine, tmp_path):
    """`epilogue` adds no setting: what it was measured with begins that of `tf32`, which has `native` besides."""
    out, machine.broken = tmp_path / "levers.json", ["native"]
    call(out, "half", "native", "epilogue")
    machine.broken = []
    rows = call(out, "native", "tf32")
    settings = rows["epilogue"]["overrides"]
    assert rows["tf32"]["overrides"][: len(settings)] == settings
    assert rows["tf32"]["over"] == "native"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES[1:])), st.sets(st.sampled_from(NAMES))), max_size=4))
def test_a_gain_is_that_of_the_rows_between(history):
    """Whatever failed in which call: no row is credited with a lever whose row stands above the other one."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        machine, out = Machine(), Path(folder) / "levers.json"
        patch.setenv("HIRES_GAN_COMMIT", "3f2a")
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
        patch.setattr(
            "hires_gan.bench.levers.call", lambda arguments, *_: machine.answer([str(one) for one in arguments])
        )
        for broken, wanted in [*history, ((), ())]:
            machine.broken = broken
            rows = call(out, *wanted)
            for name, row in rows.items():
                if row["status"] == "measured" and row["over"] is not None:
                    above = rows[row["over"]]
                    between = set(row["has"]) - set(above["has"])
                    assert between <= set(NAMES[NAMES.index(row["over"]) + 1 :])
                    assert row["gain"] == pytest.approx(math.prod(PRIMES[one] for one in between))
                    assert name in between or name not in NAMES
        assert [row["over"] for row in rows.values() if row["name"] in NAMES] == [None, *NAMES[:-1]]
        assert json.loads(out.read_text())["complete"] is True
