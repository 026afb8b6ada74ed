"""What was measured afterwards in one way has one name in all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from comparison_store import RecordedRuns, run_of, sqlite
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.tracking.comparison.content import read_comparison
from hires_gan.tracking.comparison.histories import Curve
from hires_gan.tracking.comparison.naming import under_one_name
from hires_gan.tracking.comparison.runs import Run
from hires_gan.tracking.names import metric_of, series_of
from hires_gan.tracking.protocols import Entry, Protocol, fingerprint

FEW, MANY, MORE = {"fakes": "16"}, {"fakes": "50000"}, {"fakes": "10000"}


def named(metric: str, protocol: Protocol) -> str:
    return f"evaluate/{metric}:{fingerprint(protocol)[:8]}"


def run_with(series: Mapping[str, Protocol | None], *more: str) -> Run:
    """A run whose series have curves of one point, all different, and those of `more` besides."""
    curves = {name: Curve(np.array([8]), np.array([float(place)])) for place, name in enumerate([*series, *more])}
    known = {name: (Entry(8, protocol),) for name, protocol in series.items() if protocol is not None}
    return run_of(curves=curves, protocols=known)


def protocols_of(run: Run) -> dict[str, Protocol]:
    return {name: history[-1].protocol for name, history in run.protocols.items()}


def test_what_most_have_is_plain_in_all() -> None:
    first = run_with({"evaluate/fid": FEW, named("fid", MANY): MANY}, "loss/generator")
    second = run_with({"evaluate/fid": MANY})
    renamed = under_one_name([first, second])
    assert renamed[1:] == [second]
    assert protocols_of(renamed[0]) == {"evaluate/fid": MANY, named("fid", FEW): FEW}
    assert renamed[0].curves["evaluate/fid"].values == first.curves[named("fid", MANY)].values
    assert renamed[0].curves[named("fid", FEW)].values == first.curves["evaluate/fid"].values
    assert renamed[0].curves["loss/generator"] is first.curves["loss/generator"]


def test_a_run_without_the_commonest_way_leaves_the_plain_name_to_it() -> None:
    """Else three runs that agree have no best, for the one that does not; and that one's way has two names."""
    runs = [
        run_with({"evaluate/fid": FEW}, "evaluate/fid/a_to_b"),
        run_with({"evaluate/fid": MANY, named("fid", FEW): FEW}),
        run_with({"evaluate/fid": MANY}),
        run_with({"evaluate/fid": MORE}),
    ]
    renamed = under_one_name(runs)
    assert [protocols_of(run) for run in renamed] == [
        {named("fid", FEW): FEW},
        {"evaluate/fid": MANY, named("fid", FEW): FEW},
        {"evaluate/fid": MANY},
        {named("fid", MORE): MORE},
    ]
    assert set(renamed[0].curves) == {named("fid", FEW), f"{named('fid', FEW)}/a_to_b"}
    assert renamed[1:3] == runs[1:3]


def test_where_no_two_agree_names_stay() -> None:
    runs = [run_with({"evaluate/fid": FEW, named("fid", MANY): MANY}), run_with({"evaluate/fid": MORE}), run_of()]
    assert under_one_name(runs) == runs
    assert under_one_name(runs[:1]) == runs[:1]


def test_a_name_that_is_taken_is_left_to_what_has_it() -> None:
    odd = run_with({"evaluate/fid": FEW, named("fid", FEW): FEW, named("fid", MANY): MANY})
    assert under_one_name([odd, run_with({"evaluate/fid": MANY})])[0] == odd


def test_directions_go_with_their_metric() -> None:
    first = run_with(
        {"evaluate/kid": FEW, named("kid", MANY): MANY}, "evaluate/kid/a_to_b", f"{named('kid', MANY)}/a_to_b"
    )
    (renamed, _) = under_one_name([first, run_with({"evaluate/kid": MANY})])
    assert renamed.curves["evaluate/kid/a_to_b"] is first.curves[f"{named('kid', MANY)}/a_to_b"]
    assert renamed.curves[f"{named('kid', FEW)}/a_to_b"] is first.curves["evaluate/kid/a_to_b"]


def test_each_metric_has_its_own_way() -> None:
    both = run_with({"evaluate/fid": FEW, named("fid", MANY): MANY, "evaluate/kid": FEW, named("kid", MANY): MANY})
    (renamed, _) = under_one_name([both, run_with({"evaluate/fid": MANY, "evaluate/kid": FEW})])
    assert protocols_of(renamed)["evaluate/fid"] == MANY
    assert protocols_of(renamed)["evaluate/kid"] == FEW


def test_what_does_not_say_how_it_was_measured_gives_way() -> None:
    old = run_with({"evaluate/fid": None, named("fid", MANY): MANY})
    (renamed, _) = under_one_name([old, run_with({"evaluate/fid": MANY})])
    assert set(renamed.curves) == {"evaluate/fid", "evaluate/fid:not said"}
    assert protocols_of(renamed) == {"evaluate/fid": MANY}


def test_what_a_run_measured_of_itself_keeps_its_name() -> None:
    runs = [run_with({"evaluation/fid": FEW}), run_with({"evaluation/fid": MANY}), run_of()]
    assert under_one_name(runs) == runs


@given(st.lists(st.permutations([FEW, MANY, MORE]).flatmap(lambda ways: st.integers(0, 3).map(lambda n: ways[:n]))))
def test_no_measurement_is_lost(ways: list[list[Protocol]]) -> None:
    """In whichever order the runs measured, and whichever of the ways."""
    runs = [
        run_with({named("fid", way) if place else "evaluate/fid": way for place, way in enumerate(measured)})
        for measured in ways
    ]
    renamed = under_one_name(runs)
    for before, after, measured in zip(runs, renamed, ways, strict=True):
        values = [float(curve.values[0]) for curve in after.curves.values()]
        assert sorted(values) == [float(curve.values[0]) for curve in before.curves.values()]
        assert {metric_of(series_of(name)) for name in after.curves} <= {"fid"}
        found = protocols_of(after)
        assert [found[name] for name in sorted(after.curves, key=lambda name: float(after.curves[name].values[0]))] == (
            measured
        )
    plain = [found["evaluate/fid"] for found in map(protocols_of, renamed) if "evaluate/fid" in found]
    most = max((sum(way in measured for measured in ways) for way in (FEW, MANY, MORE)), default=0)
    assert max(map(plain.count, plain), default=0) >= most, "all that have the commonest way have it as the plain one"
    named_as = {(name, fingerprint(way)) for run in renamed for name, way in protocols_of(run).items()}
    if most > 1:
        assert len({name for name, _ in named_as}) == len(named_as) == len({way for _, way in named_as})


def test_the_best_is_marked_of_what_two_runs_measured_alike(tmp_path: Path) -> None:
    store = RecordedRuns(sqlite(tmp_path))
    few, many = {"evaluate/fid": {8: FEW}}, {named("fid", MANY): {8: MANY}}
    points = {"evaluate/fid": {8: 90.0}, named("fid", MANY): {8: 10.0}}
    store.add("first", points, protocols=few | many)
    store.add("second", {"evaluate/fid": {8: 12.0}}, protocols={"evaluate/fid": {8: MANY}})
    comparison = read_comparison(["first", "second"], store.uri, None, set())
    columns = {column.group: column for column in comparison.columns if column.head.startswith("best")}
    assert columns["evaluate/fid"].cells == ("10 (0.008)", "12 (0.008)")
    assert columns["evaluate/fid"].best == {0}
    assert columns[named("fid", FEW)].cells == ("90 (0.008)", "-")
