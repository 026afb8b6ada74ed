"""`hires-gan bench levers`: which rows there are, what each is measured with, and that a failing one ends none."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lever_rows import CONFIGS, NAMES, measure, out_of, overrides_of, told, without
from small_plans import SMALL

from hires_gan import cli
from hires_gan.bench import identity, levers, levers_rows
from hires_gan.bench.children import Ended, call
from hires_gan.bench.levers_rows import LEVERS, Lever
from hires_gan.bench.levers_table import table
from hires_gan.code import code_digest
from hires_gan.config import load_configuration
from hires_gan.errors import UsageError

pytestmark = pytest.mark.usefixtures("a_commit")

LACKING = ["host-draws", "torch-derivatives", "read-back"]
ASIDE = [*LACKING, "fp16", "recompute", "micro", "again"]
NOT_COMPILED = "not compiled: the generator phase goes on op by op (it reads a value)"


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize("name", ["stylegan2_ffhq1024", "progressive_celebahq1024", "munit_faces1024"])
def test_each_row_is_a_configuration_with_one_lever_more(name, answering):
    """All of them are valid; the first has nothing, the last everything but what is measured aside."""
    calls = answering(lambda arguments: told(len(calls) * 10.0, out_of(arguments)))
    record = measure(name, "batch.size=4", micro=4)
    translates = name.startswith("munit")
    rows = {row["name"]: row for row in record["rows"] if row["status"] == "measured"}
    unknown = {"stylegan2": ["recompute"], "progressive": ["recompute", "epilogue", "compile-all"]}
    unknown["munit"] = ["fp16", "compile-all"]
    assert list(rows) == [one for one in NAMES if one not in unknown[name.split("_")[0]]]
    given = dict(zip(rows, calls, strict=True))
    plans = {one: load_configuration(CONFIGS / f"{name}.yaml", overrides_of(given[one])) for one in rows}
    first, last = plans["reference"], list(plans.values())[-1]
    assert (first.precision, first.performance, first.ops.backend) == ("fp32", "reference", "reference")
    assert set(first.levers.model_dump().values()) == {None}
    assert (last.precision, last.ops.backend, last.batch.size) == ("bf16", "native", 4)
    compiled = "all" if name.startswith("stylegan2") else "main"
    assert last.levers.model_dump() == {"graphs": True, "fused": True, "tf32": True, "compile": compiled}
    if translates:
        assert [plans[one].recipe.generator.recompute for one in ("reference", "recompute", "compile-main")] == [
            0,
            1,
            0,
        ]
    else:
        assert plans["fp16"].precision == "fp16"
    assert [plans[one].batch.size for one in rows] == [8 if one == "micro" else 4 for one in rows]
    carried = [given[one] for one in rows if one not in ASIDE]
    for before, after in itertools.pairwise(carried):
        assert overrides_of(after)[: len(overrides_of(before))] == overrides_of(before)
    for one in set(ASIDE) & set(rows) - set(LACKING):
        assert overrides_of(given[one])[: len(overrides_of(given["graphs"]))] == overrides_of(given["graphs"])
    for one in LACKING:
        assert overrides_of(given[one]) == overrides_of(given["native" if one == "host-draws" else "graphs"])
    micros = {one: arguments[arguments.index("--micro") + 1] for one, arguments in given.items()}
    assert micros == {one: "8" if one == "micro" else "4" for one in rows}
    assert record["complete"] is True


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("stylegan2_ffhq1024", ["one-pass", "average", "channels-last", "sample-draws", "epilogue"]),
        ("progressive_celebahq1024", ["one-pass", "average", "channels-last", "sample-draws"]),
        ("stylegan_ffhq1024", ["average", "channels-last", "sample-draws"]),
        ("munit_faces1024", ["one-pass", "average", "channels-last", "sample-draws", "epilogue"]),
    ],
)
def test_the_first_row_lacks_what_later_ones_add_and_a_row_aside_lacks_its_own_part_alone(name, added, answering):
    calls = answering(lambda arguments: told(10.0, out_of(arguments)))
    record = measure(name, "batch.size=4", micro=4)
    rows = [row for row in record["rows"] if row["status"] == "measured"]
    assert [row["without"] for row in rows] == [without(one) for one in calls]
    lacked = {row["name"]: row["without"] for row in rows}
    assert lacked["reference"] == added
    for place, part in enumerate(added):
        assert lacked[part] == added[place + 1 :]
    behind = added[added.index("sample-draws") :]
    assert lacked["tf32"] == lacked["half"] == lacked["average"], "which add settings alone"
    assert [lacked[one] for one in LACKING] == [[*behind, "device-draws"], ["derivatives"], ["unread"]]
    assert lacked["native"] == behind, "whose numbers torch draws on the device"
    assert {one for one in lacked if not lacked[one]} >= {"fused", "graphs", "again", "micro", "compile-main"}
    skipped = {row["name"]: row["reason"] for row in record["rows"] if row["status"] == "skipped"}
    assert {"one-pass", "epilogue"} - set(added) == {"one-pass", "epilogue"} & set(skipped)


@pytest.mark.usefixtures("with_a_gpu")
def test_a_part_whose_row_fails_stays_left_out(answering):
    def answer(arguments: list[str]) -> Ended:
        fails = arguments[-1] == "ops={backend: reference, require_native: false}" and without(arguments) == [
            "channels-last",
            "sample-draws",
            "epilogue",
        ]
        return Ended(1, "error: no") if fails else told(10.0, out_of(arguments))

    answering(answer)
    rows = {row["name"]: row for row in measure("stylegan2_ffhq1024", micro=4)["rows"]}
    assert rows["average"]["status"] == "failed"
    assert rows["tf32"]["without"] == ["average", "channels-last", "sample-draws", "epilogue"]
    assert rows["tf32"]["over"] == "one-pass"
    assert rows["graphs"]["without"] == ["average"] and rows["graphs"]["over"] == "fused"
    assert rows["host-draws"]["without"] == ["average", "sample-draws", "epilogue", "device-draws"]
    assert rows["host-draws"]["over"] == "native" and rows["host-draws"]["lost"] == ["average"]
    assert all(row["lost"] == ["average"] for row in list(rows.values())[3:]), "aside or not"


@pytest.mark.usefixtures("with_a_gpu")
def test_rows_are_compared_with_the_one_before_and_with_the_first(answering):
    """Those aside with `graphs`, and so are those behind them."""
    calls = answering(lambda arguments: told(len(calls) * 10.0, out_of(arguments)))
    record = measure("stylegan2_ffhq1024", micro=4)
    rows = {row["name"]: row for row in record["rows"] if row["status"] == "measured"}
    ladder = [
        "reference",
        "one-pass",
        "average",
        "tf32",
        "half",
        "channels-last",
        "native",
        "sample-draws",
        "epilogue",
        "fused",
    ]
    over = [*ladder[:7], "native", *ladder[7:], *["graphs"] * 6, "compile-main"]
    assert [row["over"] for row in rows.values()] == [None, *over]
    for row in list(rows.values())[1:]:
        assert row["gain"] == pytest.approx(row["images_per_s"] / rows[row["over"]]["images_per_s"])
    assert [row["over_reference"] for row in rows.values()] == [None, *(pytest.approx(n) for n in range(2, 20))]
    lines = {line.split(" ")[0]: line for line in table(record)}
    start = "micro                 140.00       7.1      1.00   1.17x  14.00x  graphs         aside: twice"
    assert lines["micro"].startswith(start)
    assert lines["reference"].endswith("; without one-pass, average, channels-last, sample-draws, epilogue")
    assert lines["read-back"].endswith("aside: all losses read back at every step; without unread")
    assert "graphs" in lines and "without" not in lines["graphs"] and "aside" not in lines["graphs"]
    assert "the last one above that is not aside and differs by nothing but what this row" in lines["Each"]


@pytest.mark.usefixtures("with_a_gpu")
def test_what_compiles_is_called_again_with_its_code_at_hand(monkeypatch, tmp_path):
    """Each row has a cache of its own, which is empty at first; the second call tells how long the code takes then."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    seen: list[tuple[str, list[str]]] = []
    first_calls: list[dict[str, Any]] = []
    out = tmp_path / "levers.json"

    def called(arguments: Sequence[object], seconds: float, environment: Mapping[str, str]) -> Ended:
        words = [str(argument) for argument in arguments]
        folder, compiles = environment["TORCHINDUCTOR_CACHE_DIR"], words[-1].startswith("levers.compile=")
        assert "TRITON_CACHE_DIR" not in environment and environment["PATH"]
        warm = Path(folder).exists()
        if warm:
            first_calls.append(json.loads(out.read_text())["rows"][-1])
        seen.append((folder, words))
        Path(folder).mkdir(exist_ok=True)
        if warm and words[-1] == "levers.compile=all":
            return Ended(1, "error: no room")
        return told(10.0, out_of(words), seconds=(5.0 if warm else 72.0) if compiles else None)

    monkeypatch.setattr(levers, "call", called)
    record = measure("stylegan2_ffhq1024", micro=4, steps=3, levers=("graphs", "compile-main", "compile-all"), out=out)
    folders, words = zip(*seen, strict=True)
    assert [row["not_cached"] for row in first_calls] == ["the second call was cut off"] * 2, "in case that it is"
    assert [folders.index(one) for one in folders] == [0, 1, 1, 3, 3] and str(tmp_path) not in folders
    assert [arguments[arguments.index("--steps") + 1] for arguments in words] == ["3", "3", "1", "3", "1"]
    keys = ("status", "compile_seconds", "compile_seconds_cached", "not_cached")
    assert [[row.get(key) for key in keys] for row in record["rows"]] == [
        ["measured", 0, None, None],
        ["measured", 72.0, 5.0, None],
        ["measured", 72.0, None, "no room"],
    ]
    lines = list(table(record))
    assert lines[2].endswith("each phase as a CUDA graph")
    assert lines[3].endswith("(72 s to compile, again from its cache: 5 s)")
    assert lines[4].endswith("(72 s to compile, again from its cache: failed: no room)")


@pytest.mark.usefixtures("with_a_gpu")
def test_a_row_that_fails_is_told_and_the_others_go_on_without_its_lever(answering, tmp_path):
    out, seen = tmp_path / "levers.json", []

    def answer(arguments: list[str]) -> Ended:
        given = overrides_of(arguments)
        seen.append(json.loads(out.read_text()) if out.exists() else {"rows": [], "complete": False})
        if given[-1] == "levers.graphs=true":
            return Ended(1, "something\nerror: out of memory at 1024x1024\n")
        if given[-1] == "precision=fp16":
            return Ended(None, "")
        if given[-1].startswith("levers.compile="):
            return told(50.0, out_of(arguments), remarks=[NOT_COMPILED])
        return told(10.0, out_of(arguments))

    calls = answering(answer)
    record = measure("stylegan2_ffhq1024", micro=4, out=out, seconds=7.0)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["graphs"]["status"] == "failed" and rows["graphs"]["reason"] == "out of memory at 1024x1024"
    assert rows["fp16"]["reason"] == "it took longer than 7 seconds"
    assert rows["compile-main"]["reason"] == NOT_COMPILED
    assert rows["compile-all"]["status"] == "failed"
    assert rows["micro"]["status"] == "measured" and rows["micro"]["over"] == "fused"
    assert rows["compile-main"]["overrides"][-2:] == ["levers.fused=true", "levers.compile=main"]
    assert (rows["compile-main"]["lost"], rows["compile-all"]["lost"]) == (["graphs"], ["graphs"])
    assert not {"levers.graphs=true", "levers.compile=main"} & set(rows["micro"]["overrides"])
    assert len(calls) == 19, "what failed is not called again"
    assert [len(one["rows"]) for one in seen] == [*range(15), *range(16, 20)], "written behind every row"
    assert not any(one["complete"] for one in seen)
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    lines = list(table(record))
    assert lines[0] == "stylegan2_ffhq1024.yaml: micro-batch 4, synthetic images, on a GPU"
    assert any(line.startswith("graphs            failed: out of memory at 1024x1024") for line in lines)
    assert any(line.startswith("recompute         skipped: the family computes nothing again") for line in lines)
    start = "fused                  10.00     100.0      1.00   1.00x   1.00x  epilogue       an"
    assert any(line.startswith(start) for line in lines)
    assert any(line.startswith("micro") and line.endswith("at once; without graphs") for line in lines)


@pytest.mark.usefixtures("with_a_gpu")
def test_a_row_that_says_it_went_on_without_its_lever_has_failed(answering):
    """Neither its figure nor its lever is taken for what its name says."""
    remark = "no CUDA graphs: the generator phase cannot be recorded, and kernels are launched one by one (why)"

    def answer(arguments: list[str]) -> Ended:
        refused = overrides_of(arguments)[-1] == "levers.graphs=true"
        return told(10.0, out_of(arguments), remarks=[remark, "more"] if refused else [])

    calls = answering(answer)
    record = measure("stylegan2_ffhq1024", micro=4)
    rows = {row["name"]: row for row in record["rows"]}
    assert (rows["graphs"]["status"], rows["graphs"]["reason"]) == ("failed", remark)
    assert rows["graphs"]["train"]["results"][0]["images_per_s"] == 10.0
    assert [("levers.graphs=true" in overrides_of(one)) for one in calls].count(True) == 1
    assert rows["micro"]["over"] == rows["compile-main"]["over"] == "fused"


@pytest.mark.usefixtures("with_a_gpu")
def test_rows_that_are_left_out_count_as_pulled(answering):
    calls = answering(lambda arguments: told(10.0, out_of(arguments)))
    record = measure("stylegan2_ffhq1024", micro=4, levers=("graphs", "compile-main"), steps=3, data="real")
    assert [row["name"] for row in record["rows"]] == ["graphs", "compile-main"]
    assert [row["over"] for row in record["rows"]] == [None, "graphs"]
    assert {"precision=bf16", "ops.backend=native", "levers.fused=true"} <= set(overrides_of(calls[0]))
    assert without(calls[0]) == [], "what rows above add is there, though they are not measured"
    assert calls[0][calls[0].index("--steps") + 1] == "3" and calls[0][calls[0].index("--data") + 1] == "real"


def test_on_a_cpu_what_moves_nothing_is_left_out(answering):
    calls = answering(lambda arguments: told(10.0, out_of(arguments)))
    record = measure("demo")
    skipped = [row["name"] for row in record["rows"] if row["status"] == "skipped"]
    assert skipped == [
        "average",
        "tf32",
        "host-draws",
        "epilogue",
        "fused",
        "graphs",
        "recompute",
        "read-back",
        "compile-all",
    ]
    assert len(calls) == len(NAMES) - 9
    assert [without(one) for one in calls][:4] == [
        ["one-pass", "channels-last", "sample-draws"],
        ["channels-last", "sample-draws"],
        ["channels-last", "sample-draws"],
        ["sample-draws"],
    ], "what no row adds is there from the start"
    assert not any(override.startswith(("levers.graphs", "batch.size")) for override in overrides_of(calls[-1]))


@pytest.mark.usefixtures("with_a_gpu")
def test_a_pass_for_reals_and_fakes_is_no_row_where_a_group_would_hold_both(answering):
    """With two images at once it is skipped; with twice as many it is left out, so that `micro` does not gain by it."""
    calls = answering(lambda arguments: told(10.0, out_of(arguments)))
    record = measure("stylegan2_ffhq1024", "batch.size=2", micro=2, levers=("reference", "one-pass", "micro"))
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["one-pass"]["status"] == "skipped"
    assert rows["one-pass"]["reason"].startswith("2 images at once are no whole groups of 4, of which one would hold")
    assert [without(one) for one in calls] == [
        ["average", "channels-last", "sample-draws", "epilogue"],
        ["one-pass"],
    ]
    stylegan = measure("stylegan_ffhq1024", "batch.size=2", micro=2, levers=("micro",))
    assert stylegan["rows"][0]["without"] == [], "no family has a part because there are more images"


@pytest.mark.usefixtures("with_a_gpu")
def test_a_batch_that_is_large_enough_is_not_made_larger(answering):
    calls = answering(lambda arguments: told(10.0, out_of(arguments)))
    (row,) = measure("stylegan2_ffhq1024", "batch.size=8", micro=4, levers=("micro",))["rows"]
    assert row["micro"] == 8 and overrides_of(calls[0]).count("batch.size=8") == 1


@pytest.mark.usefixtures("with_a_gpu")
def test_a_configuration_in_float16_has_its_own_precision_in_the_rows(answering):
    answering(lambda arguments: told(10.0, out_of(arguments)))
    rows = {row["name"]: row for row in measure("stylegan2_ffhq1024", "precision=fp16", micro=4)["rows"]}
    assert rows["half"]["overrides"][-1] == "precision=fp16"
    assert rows["fp16"]["reason"] == "the configuration's precision, which the row half has"


@pytest.mark.usefixtures("with_a_gpu")
def test_all_phases_are_no_row_where_all_belong_to_every_step(answering):
    """`compile-main` compiles them; R1 now and then is a phase of its own."""
    answering(lambda arguments: told(10.0, out_of(arguments)))
    rows = {row["name"]: row for row in measure("munit_faces1024", "batch.size=4", micro=4)["rows"]}
    assert rows["compile-all"]["reason"] == "all phases belong to every step"
    lazy = measure("munit_faces1024", "batch.size=4", "recipe.loss.r1=1", micro=4)
    assert lazy["rows"][-1]["name"] == "compile-all" and lazy["rows"][-1]["status"] == "measured"


@pytest.mark.usefixtures("with_a_gpu")
def test_where_the_first_row_fails_the_others_have_its_settings_and_nothing_to_compare_with(answering):
    """Rows that the dial decides would be `fast` ones."""

    def answer(arguments: list[str]) -> Ended:
        return Ended(1, "error: no") if "precision=bf16" not in arguments else told(10.0, out_of(arguments))

    answering(answer)
    rows = {row["name"]: row for row in measure("stylegan2_ffhq1024", micro=4)["rows"]}
    assert rows["reference"]["status"] == "failed" and "performance=reference" in rows["graphs"]["overrides"]
    assert (rows["half"]["over"], rows["half"]["over_reference"], rows["half"]["gain"]) == (None, None, None)
    assert (rows["graphs"]["over"], rows["graphs"]["over_reference"]) == ("fused", None)


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(
    ("fails", "goes"), [("ops.backend=native", ["sample-draws", "epilogue"]), ("precision=bf16", ["fp16"])]
)
def test_a_lever_that_there_is_not_without_one_that_failed_is_skipped(fails, goes, answering):
    """Plain torch has no kernel of its own, and nothing is in place of bfloat16 where there is none."""
    answering(lambda arguments: Ended(1, "error: no") if arguments[-1] == fails else told(10.0, out_of(arguments)))
    rows = {row["name"]: row for row in measure("stylegan2_ffhq1024", micro=4)["rows"]}
    (failed,) = (name for name, row in rows.items() if row["status"] == "failed")
    for name in goes:
        assert (rows[name]["status"], rows[name]["reason"]) == ("skipped", f"it goes with {failed}, which failed")
    assert rows["compile-all"]["lost"] == [name for name in (failed, *goes) if name not in ASIDE]
    assert not set(rows["compile-all"]["lost"]) & set(rows["compile-all"]["has"])


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(
    ("failed", "behind", "over"), [("fused", "graphs", "epilogue"), ("compile-main", "compile-all", "graphs")]
)
def test_a_lever_that_pulls_one_that_failed_has_it_as_well(failed, behind, over, answering):
    """`graphs` steps fused in any case, and what compiles R1 compiles all: they are not over what stands between."""
    fails = {"fused": "levers.fused=true", "compile-main": "levers.compile=main"}[failed]
    answering(lambda arguments: Ended(1, "error: no") if arguments[-1] == fails else told(10.0, out_of(arguments)))
    rows = {row["name"]: row for row in measure("stylegan2_ffhq1024", micro=4)["rows"]}
    assert rows[failed]["status"] == "failed" and rows[behind]["over"] == over
    assert {failed, behind} <= set(rows[behind]["has"]) and rows[behind]["lost"] == []
    assert rows["micro"]["over"] == "graphs" and rows["micro"]["lost"] == []


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"levers": ("graph",)}, "--lever is 'graph'; reference, one-pass, average, tf32, half, .* are allowed"),
        ({"micro": 0}, "--micro is 0; a number above 0 is allowed"),
        ({"micro": 20}, "--micro is 20; a multiple of 4 is allowed, up to the batch of 16"),
        ({"micro": 6}, "--micro is 6; a multiple of 4 is allowed, up to the batch of 16"),
        ({"steps": -1}, "--steps is -1; a number above 0 is allowed"),
        ({"seconds": 0.0}, "--seconds is 0; a number above 0 is allowed"),
    ],
)
def test_what_cannot_be_is_refused(request_, sentence, monkeypatch):
    """Before any row is measured."""
    monkeypatch.setattr(levers, "call", None)
    with pytest.raises(UsageError, match=sentence):
        measure("demo", **request_)


def test_a_process_whose_time_is_up_is_killed():
    ended = call(["bench", "tracking"], 0.01)
    assert ended.code is None


def test_the_last_error_is_the_reason():
    assert Ended(1, "a\nerror: what\n  detail\n").reason == "what"
    assert Ended(1, "Traceback\nValueError: what\n\n").reason == "ValueError: what"
    assert Ended(1, "").reason == "it said nothing"


@pytest.mark.slow
def test_the_command_measures_rows_in_processes_of_their_own(monkeypatch, tmp_path, capfd):
    """Three rows, and one in between that cannot be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for place in (identity, levers):  # the rows' processes say which code it is
        monkeypatch.setattr(place, "code_digest", code_digest)
    bad = Lever("native", "what is not allowed", ("precision=fp7",))
    by_name = {lever.name: lever for lever in LEVERS}
    for place in (levers, levers_rows):
        monkeypatch.setattr(place, "LEVERS", (by_name["reference"], bad, by_name["one-pass"], by_name["half"]))
    out, config = tmp_path / "levers.json", CONFIGS / "demo.yaml"
    arguments = ["bench", "levers", "--config", config, "--micro", 4, "--steps", 1, "--out", out, *SMALL]
    monkeypatch.setattr(sys, "argv", ["hires-gan", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    record = json.loads(out.read_text())
    assert [(row["name"], row["status"]) for row in record["rows"]] == [
        ("reference", "measured"),
        ("native", "failed"),
        ("one-pass", "measured"),
        ("half", "measured"),
    ]
    assert record["rows"][1]["reason"].startswith('precision is "fp7"')
    reference, _, together, half = record["rows"]
    for row, over in ((together, reference), (half, together)):
        assert row["over"] == over["name"]
        assert row["gain"] == pytest.approx(row["images_per_s"] / over["images_per_s"])
    assert together["over_reference"] == together["gain"]
    measured = [row["train"]["settings"]["without"] for row in (reference, together, half)]
    assert measured == [["one-pass"], [], []]
    assert (reference["train"]["settings"]["precision"], half["train"]["settings"]["precision"]) == ("fp32", "bf16")
    assert reference["train"]["settings"]["ops"] == "reference" and reference["peak_of"] == "resident"
    assert capfd.readouterr().out.startswith("demo.yaml recipe.resolution=8")
