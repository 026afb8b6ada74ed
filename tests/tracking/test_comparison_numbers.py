"""Metrics, cost and curves of runs: known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from comparison_store import TRAINED, RecordedRuns, run_of, sqlite
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.tracking.comparison.differences import machines_that_differ, settings_that_differ
from hires_gan.tracking.comparison.grids import meeting_place
from hires_gan.tracking.comparison.histories import Curve, read_histories
from hires_gan.tracking.comparison.locate import Finder
from hires_gan.tracking.comparison.runs import is_drawn, read_runs
from hires_gan.tracking.comparison.summary import Point, cost, summarise
from hires_gan.tracking.comparison.table import columns_of
from hires_gan.tracking.comparison.thinning import thin, vertical_limits


def curve(points: dict[int, float]) -> Curve:
    return Curve(np.array(list(points), np.int64), np.array(list(points.values()), np.float64))


def curves(points: dict[str, dict[int, float]] | None = None) -> dict[str, Curve]:
    return {key: curve(dict(values)) for key, values in (points or TRAINED).items()}


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
    runs = [run_of(curves=curves(), nimg=3000), run_of(curves=curves(short), nimg=1500), run_of()]
    full, ended, empty = summarise(runs, set())
    assert full.metrics["swd"].common == Point(90.0, 1000)
    assert ended.metrics["swd"].common == Point(3.0, 1000)
    assert empty.metrics == {} and empty.cost.hours is None
    table = {(column.group, column.head): column for column in columns_of([full, ended, empty], set())}
    assert table["swd", "at 1.5 kimg"].cells == ("90 (1)", "3 (1)", "-")
    assert table["swd", "best (at kimg)"].cells == ("40 (2)", "3 (1)", "-")
    assert table["swd", "best (at kimg)"].best == {1}
    assert table["cost", "GPU hours"].cells[2] == "-"


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
    from hires_gan.tracking.comparison.table import notes_on

    sampled = Curve(np.array([1, 2]), np.array([1.0, 2.0]), sampled=True)
    (summary,) = summarise([run_of(curves={"loss/a": sampled}, nimg=2)], set())
    assert any("500 points at even distances, 2,500 of" in note for note in notes_on(summary))
