"""Metrics, cost and curves of runs: known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from comparison_store import TRAINED, RecordedRuns, run_of, sqlite
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.tracking.comparison.curves import plots_of, single_points
from hires_gan.tracking.comparison.differences import machines_that_differ, settings_that_differ
from hires_gan.tracking.comparison.grids import meeting_place
from hires_gan.tracking.comparison.histories import Curve, read_histories
from hires_gan.tracking.comparison.locate import Finder
from hires_gan.tracking.comparison.measured import (
    Measurement,
    in_words,
    measured_differently,
    measurements_of,
    notes_on_measuring,
    sentence,
)
from hires_gan.tracking.comparison.runs import is_drawn, read_runs
from hires_gan.tracking.comparison.summary import Point, Summary, cost, summarise
from hires_gan.tracking.comparison.table import columns_of, notes_on
from hires_gan.tracking.comparison.thinning import thin, vertical_limits
from hires_gan.tracking.protocols import Entry, History


def curve(points: dict[int, float]) -> Curve:
    return Curve(np.array(list(points), np.int64), np.array(list(points.values()), np.float64))


def curves(points: dict[str, dict[int, float]] | None = None) -> dict[str, Curve]:
    return {key: curve(dict(values)) for key, values in (points or TRAINED).items()}


def history(entries: dict[int, dict[str, str]]) -> History:
    return tuple(Entry(nimg, protocol) for nimg, protocol in entries.items())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordedRuns:
    return RecordedRuns(sqlite(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("scheme", ["database", "one by one"])
def test_points_come_in_order_each_step_once(store, scheme):
    from mlflow.entities import Metric

    run_id = store.add("repeated", {})
    logged = [(2000, 1, 0.5), (1000, 2, 7.0), (2000, 3, 0.25), (3000, 4, math.nan), (4000, 5, math.inf)]
    store.client.log_batch(run_id, metrics=[Metric("loss/a", value, time, step) for step, time, value in logged])
    uri = store.uri if scheme == "database" else "file:///anything/else"
    found = read_histories(store.client, uri, {"loss/a": [run_id], "loss/none": [run_id]})
    assert list(found) == [(run_id, "loss/a")] or not len(found[run_id, "loss/none"].steps)
    assert found[run_id, "loss/a"].steps.tolist() == [1000, 2000, 3000, 4000]
    np.testing.assert_array_equal(found[run_id, "loss/a"].values, [7.0, 0.25, math.nan, math.nan])


def test_a_run_is_read_whole(store):
    points = {**TRAINED, "evaluation/swd/16": {1000: 1.0}, "system/cpu": {3: 1.0}, "schedule/batch": {1000: 4.0}}
    store.add("whole", points, {"batch.size": "4", "a": "1"}, {"changed.batch.size": "8", "gpu.count": "0"})
    (run,) = read_runs(Finder(store.uri, None).find_all(["whole"]))
    assert run.parameters == {"batch.size": "8", "a": "1"}
    assert (run.name, run.experiment, run.status, run.nimg) == ("whole", "hires-gan", "finished", 3000)
    assert set(run.drawn) == {"evaluation/swd", "loss/generator", "speed/images_per_second", "speed/data_wait"}
    (summary,) = summarise([run], set())
    assert summary.metrics["swd"].best == Point(40.0, 2000), "the untrained network, at 0, is no result"
    assert summary.metrics["swd"].last == Point(60.0, 3000)
    assert (summary.images_per_second, summary.data_wait) == (50.0, 0.2)
    assert summary.seconds_per_kimg == pytest.approx(20.0)
    assert summary.cost.hours == pytest.approx(60 / 3600)
    assert (summary.cost.gpu_hours, summary.cost.assumed) == (0.0, False)


def test_runs_of_one_name_are_told_apart(store):
    ids = [store.add("same", experiment=experiment) for experiment in ("a", "b")]
    first, second = read_runs(Finder(store.uri, None).find_all(ids))
    assert {first.name, second.name} == {f"same ({run_id[:8]})" for run_id in ids}


def test_what_is_drawn():
    drawn = ["evaluation/fid", "evaluation/swd/a_to_b", "loss/r1", "statistics/x", "speed/data_wait", "anything"]
    hidden = ["evaluation/swd/16", "evaluation/swd/a_to_b/16", "system/gpu", "kimg", "schedule/batch", "memory/gib"]
    assert [key for key in [*drawn, *hidden] if is_drawn(key)] == drawn


def test_more_is_better_where_it_is_said():
    points = {
        "evaluation/precision": {1000: 0.2, 2000: 0.5, 3000: 0.4},
        "evaluation/kid/a_to_b": {1000: 1.0, 2000: 0.5},
    }
    (summary,) = summarise([run_of(curves=curves(points), nimg=3000)], {"precision"})
    assert summary.metrics["precision"].best == Point(0.5, 2000)
    assert summary.metrics["kid/a_to_b"].best == Point(0.5, 2000)


def test_all_are_compared_where_the_shortest_ended():
    short = {"evaluation/swd": {0: 9.0, 1000: 3.0, 1500: math.nan}}
    known = {"evaluation/swd": history({0: {"fakes": "16"}})}
    runs = [
        run_of(curves=curves(), nimg=3000, protocols=known),
        run_of(curves=curves(short), nimg=1500, protocols=known),
        run_of(),
    ]
    full, ended, empty = summarise(runs, set())
    assert full.metrics["swd"].common == Point(90.0, 1000)
    assert ended.metrics["swd"].common == Point(3.0, 1000)
    assert empty.metrics == {} and empty.cost.hours is None
    table = {(column.group, column.head): column for column in columns_of([full, ended, empty], set())}
    assert table["swd", "at 1.5 kimg"].cells == ("90 (1)", "3 (1)", "-")
    assert table["swd", "best (at kimg)"].cells == ("40 (2)", "3 (1)", "-")
    assert table["swd", "best (at kimg)"].best == {1}
    assert table["cost", "GPU hours"].cells[2] == "-"


def last_and_best(points: dict[int, float], nimg: int) -> tuple[str, str]:
    """The cells of a run with these values of fid."""
    runs = [run_of(curves={"evaluation/fid": curve(points)}, nimg=nimg)]
    table = {column.head: column.cells[0] for column in columns_of(summarise(runs, set()), set())}
    return table["last"], table["best (at kimg)"]


@pytest.mark.parametrize(
    ("points", "last", "best"),
    [
        ({0: 90.0, 4000: 40.0, 20000: 50.0}, "50", "40 (4)"),
        ({0: 90.0, 4000: 40.0}, "40 (4)", "40 (4)"),
        ({0: 90.0, 4000: 40.0, 20000: math.nan}, "nan", "40 (4)"),
        ({0: 90.0, 4000: 40.0, 16000: math.nan}, "nan (16)", "40 (4)"),
        ({0: math.nan, 20000: math.nan}, "nan", "-"),
    ],
)
def test_the_last_value_is_no_earlier_one_without_its_place(points, last, best):
    assert last_and_best(points, 20000) == (last, best)


def test_a_run_without_a_number_leaves_the_best_of_the_others_marked():
    good, better, never = (
        run_of(
            curves={"evaluation/fid": curve({1000: value})},
            nimg=1000,
            protocols={} if math.isnan(value) else {"evaluation/fid": history({0: {"fakes": "16"}})},
        )
        for value in (9.0, 8.0, math.nan)
    )
    summaries = summarise([good, better, never], set())
    table = {column.head: column for column in columns_of(summaries, set())}
    assert table["last"].cells == ("9", "8", "nan")
    assert table["best (at kimg)"].cells[2] == "-" and table["best (at kimg)"].best == {1}
    assert notes_on_measuring(measurements_of(summaries), ["a", "b", "c"]) == []
    alone = summarise([never], set())
    assert [one.protocols for one in measurements_of(alone)] == [{}]


@pytest.mark.parametrize(
    ("gpus", "tags", "gpu_seconds", "assumed"),
    [
        ({1000: 2.0, 2000: 2.0, 3000: 4.0}, {}, 10 * 2 + 20 * 2 + 30 * 4, False),
        ({1000: 0.0, 3000: 0.0}, {"gpu.count": "8", "processes": "8"}, 0, False),
        (None, {"gpu.count": "8", "processes": "16"}, 60 * 16, False),
        (None, {"gpu.count": "0", "processes": "2"}, 0, False),
        (None, {"gpu.count": "8"}, 60, True),
        (None, {}, 60, True),
    ],
)
def test_gpu_hours(gpus, tags, gpu_seconds, assumed):
    found = curves() | ({"speed/gpus": curve(gpus)} if gpus else {})
    paid = cost(run_of(curves=found, tags=tags))
    assert paid.hours == pytest.approx(60 / 3600)
    assert paid.gpu_hours == pytest.approx(gpu_seconds / 3600)
    assert paid.assumed == assumed


def test_a_stretch_without_a_speed_counts_as_the_median():
    paid = cost(run_of(curves={"speed/seconds_per_kimg": curve({1000: 10.0, 2000: math.nan, 4000: 30.0})}))
    assert paid.hours == pytest.approx((10 + 20 + 2 * 30) / 3600)
    assert cost(run_of(curves={"speed/seconds_per_kimg": curve({1000: math.nan})})).hours is None


def test_only_what_differs_is_named():
    first = run_of(parameters={"run.name": "a", "same": "1", "rate": "0.1", "only": "x"}, tags={"git.commit": "1"})
    second = run_of(
        parameters={"run.name": "b", "same": "1", "rate": "0.2"}, tags={"git.commit": "1", "run_folder": "/b"}
    )
    assert [(one.key, one.values) for one in settings_that_differ([first, second])] == [
        ("only", ("x", None)),
        ("rate", ("0.1", "0.2")),
    ]
    assert machines_that_differ([first, second]) == []
    assert settings_that_differ([first]) == []


def test_data_differ_by_their_digests():
    same = [run_of(parameters={"data.shards": name}, data={"d1": name}) for name in ("x", "y")]
    assert [one.key for one in settings_that_differ(same)] == ["data.shards"]
    other = [run_of(data={"d1": "x"}), run_of(data={"d2": "x"}), run_of()]
    assert [(one.key, one.values) for one in settings_that_differ(other)] == [("data", ("x (d1)", "x (d2)", None))]


# --- how it was measured ----------------------------------------------------------------------------------------------

FEW, MANY = {"fakes": "16", "resolution": "64"}, {"fakes": "50000", "resolution": "64"}
"""Two protocols."""


def measured(*histories: dict[int, dict[str, str]], key: str = "evaluation/swd") -> list[Summary]:
    """Runs with a metric, each measured in its own way; without a history nothing says how."""
    points = {1000: 3.0, 2000: 1.0, 3000: 2.0}
    return summarise(
        [
            run_of(
                name=f"run-{number}",
                curves={key: curve({nimg: value + number for nimg, value in points.items()})},
                nimg=3000,
                protocols={key: history(entries)} if entries else {},
            )
            for number, entries in enumerate(histories)
        ],
        set(),
    )


@pytest.mark.parametrize(
    ("entries", "best", "others"),
    [
        ({0: FEW}, Point(1.0, 2000), ()),
        ({0: FEW, 2500: MANY}, Point(2.0, 3000), (FEW,)),
        ({0: FEW, 1500: MANY, 2500: FEW}, Point(2.0, 3000), (MANY,)),
        ({2500: FEW}, Point(2.0, 3000), (None,)),
        ({9000: FEW}, Point(1.0, 2000), ()),
        ({}, Point(1.0, 2000), ()),
    ],
)
def test_the_best_is_among_those_that_were_measured_as_the_last(entries, best, others):
    (summary,) = measured(entries)
    assert (summary.metrics["swd"].best, summary.metrics["swd"].others) == (best, others)
    assert summary.metrics["swd"].common == Point(2.0, 3000)
    assert any("swd was not always measured alike" in note for note in notes_on(summary)) == bool(others)


def test_a_value_on_the_way_is_shown_if_it_was_measured_as_the_last():
    runs = [
        run_of(curves=curves(), nimg=3000, protocols={"evaluation/swd": history({0: FEW, 2500: MANY})}),
        run_of(curves=curves(), nimg=2000, protocols={"evaluation/swd": history({0: FEW})}),
    ]
    assert [one.metrics["swd"].common for one in summarise(runs, set())] == [None, Point(40.0, 2000)]


@pytest.mark.parametrize(
    ("histories", "winners", "notes"),
    [
        (({0: FEW}, {0: FEW}), {0}, []),
        (({0: FEW}, {0: MANY}), set(), ["swd was not measured alike (fakes 16 and 50,000): no best is marked"]),
        (({0: FEW}, {}), set(), ["run-1 does not say how swd was measured: no best is marked"]),
        (({}, {}), set(), ["run-0, run-1 do not say how swd was measured: no best is marked"]),
        (
            ({0: FEW}, {0: MANY}, {}),
            set(),
            [
                "run-2 does not say how swd was measured: no best is marked",
                "swd was not measured alike (fakes 16 and 50,000): no best is marked",
            ],
        ),
        (({0: FEW, 2500: MANY}, {0: MANY}), {0, 1}, []),  # both have 2, the first one since it counts anew
    ],
)
def test_the_best_of_all_is_marked_where_all_were_measured_alike(histories, winners, notes):
    summaries = measured(*histories)
    (column,) = [column for column in columns_of(summaries, set()) if column.head == "best (at kimg)"]
    assert column.best == winners
    names = [summary.run.name for summary in summaries]
    assert notes_on_measuring(measurements_of(summaries), names) == notes


def test_a_metric_of_one_run_needs_no_note():
    first, second = measured({0: FEW}, {0: MANY})
    alone = Summary(second.run, {}, None, None, None, second.cost)
    assert notes_on_measuring(measurements_of([first, alone]), ["a", "b"]) == []


def test_metrics_that_differ_in_the_same_way_share_a_note():
    protocols = {0: FEW, 1: MANY}
    several = [Measurement(name, protocols) for name in ("fid", "kid")]
    assert notes_on_measuring(several, ["a", "b"]) == [
        "fid, kid were not measured alike (fakes 16 and 50,000): no best is marked"
    ]


def test_directions_are_measured_as_their_metric():
    points = {"evaluation/kid": {1000: 1.0}, "evaluation/kid/a_to_b": {1000: 2.0}}
    runs = [
        run_of(curves=curves(points), nimg=1000, protocols={"evaluation/kid": history({0: protocol})})
        for protocol in (FEW, MANY)
    ]
    summaries = summarise(runs, set())
    assert summaries[0].metrics["kid/a_to_b"].protocol == FEW
    assert [one.metric for one in measurements_of(summaries)] == ["kid"]
    assert not any(column.best for column in columns_of(summaries, set()))


def test_what_was_measured_afterwards_stands_by_itself_and_knows_its_metric():
    key = "evaluate/precision:3f2a91bc"
    points = {key: {1000: 0.2, 2000: 0.5}, f"{key}/deviation": {1000: 0.1}, "evaluation/swd": {1000: 1.0}}
    assert [one for one in points if is_drawn(one)] == [key, "evaluation/swd"]
    run = run_of(curves=curves({key: points[key], "evaluation/swd": {1000: 1.0}}), protocols={key: history({0: FEW})})
    (summary,) = summarise([run], {"precision"})
    assert summary.metrics[key].best == Point(0.5, 2000), "more is better"
    assert [column.group for column in columns_of([summary], set()) if column.head == "last"] == ["swd", key]


def test_one_point_is_no_curve():
    points = {"evaluate/fid": {1000: 1.0}, "evaluate/kid": {1000: 1.0, 2000: 2.0}, "evaluation/swd": {1000: 1.0}}
    runs = [run_of(curves=curves(points)), run_of(curves=curves({"evaluate/fid": {3000: 1.0}}))]
    assert [plot.key for plot in plots_of(runs)] == ["evaluation/swd", "evaluate/kid"]
    assert single_points(runs) == ["evaluate/fid"]


def test_a_plot_of_what_was_not_measured_alike_says_so():
    for histories, unlike in ((({0: FEW}, {0: FEW}), ""), (({0: FEW}, {0: FEW, 3000: MANY}), "fakes 16 and 50,000")):
        (plot,) = plots_of([summary.run for summary in measured(*histories)])
        assert plot.unlike == unlike


def test_what_differs_in_words():
    assert in_words([FEW, MANY, FEW]) == "fakes 16 and 50,000"
    assert in_words([FEW, FEW]) == ""
    assert in_words([{"a": "1"}, {"b": "2"}, {"a": "1", "b": "2", "c": "3"}]) == "a 1 and none, b none and 2, 1 more"
    assert in_words([{"n": str(n)} for n in range(5)]) == "n 0 and 1 and 2 and 2 more"


def test_how_it_was_measured_in_a_sentence_and_a_table():
    whole = {
        "resolution": "256",
        "reals": "70000",
        "data.digest": "d" * 64,
        "data.filter": "lanczos",
        "features.name": "inception",
        "features.checksum": "c" * 64,
    }
    one = Measurement("fid", {0: {**whole, "fakes": "16"}, 1: {**whole, "fakes": "50000"}, 2: None})
    agreed = "70,000 reals; data dddddddddddd; at 256x256; resized with lanczos; features of inception cccccccc"
    assert sentence(one, ["a", "b", "c", "d"]) == f"fid: {agreed}; c: not said"
    (row,) = measured_differently([one], 4)
    assert (row.key, row.values) == ("fid: fakes", ("16", "50,000", "not said", "not measured"))
    alone = Measurement("fid", {0: {**whole, "fakes": "16"}})
    assert sentence(alone, ["a"]) == f"fid: 16 fakes against {agreed}"
    both = Measurement("kid", {0: {"data.digest": f"{'a' * 64} | {'b' * 64}", "reals": "1000 | 2000"}})
    assert sentence(both, ["a"]) == "kid: 1,000 | 2,000 reals; data aaaaaaaaaaaa | bbbbbbbbbbbb"


def test_grids_meet_at_the_last_place_that_all_have():
    assert meeting_place([{0, 4, 8, 12}, {0, 4, 8}, set()]) == 8
    assert meeting_place([{1, 5, 9}, {2, 6}]) == 6
    assert meeting_place([set()]) == 0


numbers = st.floats(-1e6, 1e6)


@given(
    st.dictionaries(st.integers(0, 50_000), st.one_of(numbers, st.just(math.nan)), max_size=200),
    st.integers(1, 60),
)
def test_thinning_keeps_every_extreme(points, columns):
    whole = curve(dict(sorted(points.items())))
    thinned = thin(whole, 50_000, columns)
    known = whole.values[np.isfinite(whole.values)]
    assert len(thinned.kimg) == len(thinned.mean) <= min(columns, len(known))
    assert (np.diff(thinned.kimg) > 0).all()
    if len(known):
        assert thinned.low.min() == known.min() and thinned.high.max() == known.max()
        low, high, cut = vertical_limits([thinned])
        assert low < high and (cut or (low <= known.min() and known.max() <= high))


def test_thinning_averages_what_falls_into_a_column():
    thinned = thin(curve({0: 1.0, 10: 3.0, 60: 5.0}), 100, 2)
    assert thinned.mean.tolist() == [2.0, 5.0]
    assert (thinned.low.tolist(), thinned.high.tolist()) == ([1.0, 5.0], [3.0, 5.0])
    assert thinned.kimg.tolist() == [0.005, 0.06]


def test_a_peak_does_not_flatten_the_rest_and_is_said_to_be_cut():
    calm = {nimg: math.sin(nimg) for nimg in range(200)}
    low, high, cut = vertical_limits([thin(curve(calm | {100: 1e9}), 200, 200)])
    assert cut and -4 < low < -1 and 1 < high < 4
    assert not vertical_limits([thin(curve(calm), 200, 200)])[2]


def test_a_long_curve_of_a_server_is_said_to_be_sampled(tmp_path: Path):
    sampled = Curve(np.array([1, 2]), np.array([1.0, 2.0]), sampled=True)
    (summary,) = summarise([run_of(curves={"loss/a": sampled}, nimg=2)], set())
    assert any("500 points at even distances, 2,500 of" in note for note in notes_on(summary))
