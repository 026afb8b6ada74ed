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
from hires_gan.bench.levers_rows import LEVERS

LADDER = [lever for lever in LEVERS if not lever.aside]
NAMES = [lever.name for lever in LADDER]
ALL = [lever.name for lever in LEVERS]
PRIMES = dict(zip(NAMES, (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43), strict=True))
"""How much faster each lever of the ladder makes steps: a ratio tells which ones are in it."""


IMPLIED = {"graphs": "fused", "compile-all": "compile-main"}
"""What a setting pulls besides."""


def pulled(arguments: list[str]) -> set[str]:
    """The levers of the ladder that a row is told to be measured with."""
    given, left_out = {text.replace("bf16", "HALF") for text in overrides_of(arguments)}, without(arguments)
    found = {lever.name for lever in LADDER if lever.part and lever.part not in left_out}
    return found | {lever.name for lever in LADDER if lever.overrides and set(lever.overrides) <= given}


class Machine:
    """On which some levers cannot be pulled at first."""

    def __init__(self) -> None:
        self.broken: Collection[str] = ()

    def answer(self, arguments: list[str]) -> Ended:
        levers = pulled(arguments)
        if levers & set(self.broken):
            return Ended(1, "error: no")
        levers |= {other for name, other in IMPLIED.items() if name in levers}
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
    """`channels-last` adds no setting: what it was measured with begins that of `native`, which has `half` besides."""
    out, machine.broken = tmp_path / "levers.json", ["half"]
    call(out, "average", "half", "channels-last")
    machine.broken = []
    rows = call(out, "half", "native")
    settings = rows["channels-last"]["overrides"]
    assert rows["native"]["overrides"][: len(settings)] == settings
    assert (rows["channels-last"]["over"], rows["native"]["over"]) == ("average", "half")


def test_a_row_aside_is_compared_with_its_like_alone(machine, tmp_path):
    """`again` would show for chance what the rows in between are worth."""
    rows = call(tmp_path / "levers.json", "reference", "fused", "again", "micro")
    assert [rows[one]["over"] for one in ("fused", "again", "micro")] == ["reference", None, None]
    rows = call(tmp_path / "levers.json", "graphs")
    assert [(rows[one]["over"], rows[one]["gain"]) for one in ("again", "micro")] == [("graphs", 1.0)] * 2


def last_fitting(name: str, rates: dict[str, int]) -> str | None:
    """The last row above beside which a row is faster by levers alone that stand below that one, by their primes.

    Beside which it is as fast, where it stands aside.
    """
    for above in reversed([one for one in ALL[: ALL.index(name)] if one in NAMES]):
        if above in rates and rates[name] % rates[above] == 0:
            ratio = rates[name] // rates[above]
            for between in NAMES[NAMES.index(above) + 1 :] if name in NAMES else ():
                ratio //= PRIMES[between] if ratio % PRIMES[between] == 0 else 1
            if ratio == 1:
                return above
    return None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES[1:])), st.sets(st.sampled_from(ALL))), max_size=4))
def test_a_gain_is_that_of_the_rows_between(history):
    """Whatever failed in which call: no row is credited with a lever whose row stands above the one it is over."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        machine, out = Machine(), Path(folder) / "levers.json"
        patch.setenv("HIRES_GAN_COMMIT", "3f2a")
        for place in ("identity", "levers"):
            patch.setattr(f"hires_gan.bench.{place}.code_digest", lambda: "c0de")
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
        patch.setattr(
            "hires_gan.bench.levers.call", lambda arguments, *_: machine.answer([str(one) for one in arguments])
        )
        known: set[str] = set()
        for broken, wanted in [*history, ((), ())]:
            machine.broken = broken
            rows = call(out, *wanted)
            known |= {name for name, row in rows.items() if row["status"] == "measured"}
            kept = {name for name, row in rows.items() if row["status"] == "measured" or "earlier" in row}
            assert known <= kept, "what was measured once"
            measured = {name: row for name, row in rows.items() if row["status"] == "measured"}
            rates = {name: int(row["images_per_s"]) for name, row in measured.items()}
            for name, row in measured.items():
                over = last_fitting(name, rates)
                assert row["over"] == over, (name, rates)
                assert row["gain"] == (None if over is None else pytest.approx(rates[name] / rates[over]))
        assert [row["over"] for row in rows.values() if row["name"] in NAMES] == [None, *NAMES[:-1]]
        assert json.loads(out.read_text())["complete"] is True
