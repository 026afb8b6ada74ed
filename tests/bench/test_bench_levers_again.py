"""`hires-gan bench levers --out`: a later call goes on with the rows of an earlier one, where they are comparable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lever_rows import CONFIGS, NAMES, measure, out_of, overrides_of, rates_by_name, rows_of, without

from hires_gan.bench import levers
from hires_gan.bench.children import Ended
from hires_gan.bench.levers import Request, bench_levers
from hires_gan.bench.levers_table import table
from hires_gan.config import load_configuration
from hires_gan.errors import Failure, UsageError
from hires_gan.tracking import machine

pytestmark = pytest.mark.usefixtures("a_commit")
HOLD = """
import pathlib, sys
from hires_gan.bench.record_file import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Another process goes on with a file."""
    with subprocess.Popen([sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
        process.communicate()


@pytest.fixture
def dated(monkeypatch) -> Callable[[str], None]:
    """Set the clock of the rows and of the head."""

    def install(date: str) -> None:
        monkeypatch.setattr(levers, "now", lambda: date)
        monkeypatch.setattr("hires_gan.bench.identity.now", lambda: date)

    return install


@pytest.mark.usefixtures("with_a_gpu")
def test_the_same_command_goes_on_with_the_rows_that_are_there(answering, dated, tmp_path):
    """In whatever order they are measured, what is left is what one call leaves; each says when it was measured."""
    out = tmp_path / "levers.json"
    calls = answering(rates_by_name)
    whole = measure("stylegan2_ffhq1024", micro=4)
    calls.clear()
    dated("2026-11-26T10:00:00+00:00")
    measure("stylegan2_ffhq1024", micro=4, levers=("graphs", "micro"), out=out)
    assert len(calls) == 2
    dated("2026-11-26T10:59:00+00:00")
    second = measure("stylegan2_ffhq1024", micro=4, levers=("reference", "graphs"), out=out, seconds=7.0)
    assert len(calls) == 3, "graphs is there"
    assert [row["name"] for row in second["rows"]] == ["reference", "graphs", "micro"]
    assert not any("one hour" in line for line in table(second))
    dated("2026-11-26T11:00:01+00:00")
    third = measure("stylegan2_ffhq1024", micro=4, out=out)
    assert len(calls) == 19 and rows_of(third) == rows_of(whole)
    assert third["date"] == "2026-11-26T10:00:00+00:00", "that of the first call"
    assert {
        row["name"]: row["date"][11:16] for row in third["rows"] if row["name"] in ("reference", "half", "micro")
    } == {
        "reference": "10:59",
        "half": "11:00",
        "micro": "10:00",
    }
    assert [line for line in table(third) if line.startswith("Not of one hour")] == [
        "Not of one hour, and clocks and neighbours change: graphs 2026-11-26T10:00:00+00:00; more than an hour later "
        + ", ".join(
            f"{name} 2026-11-26T11:00:01+00:00"
            for name in NAMES
            if name not in ("reference", "graphs", "recompute", "micro")
        )
    ]
    assert json.loads(out.read_text()) == json.loads(json.dumps(third)) and third["complete"] is True


@pytest.mark.usefixtures("with_a_gpu")
def test_what_failed_is_measured_anew_and_so_is_what_went_on_without_it(answering, tmp_path):
    out, broken = tmp_path / "levers.json", True

    def answer(arguments: list[str]) -> Ended:
        if broken and overrides_of(arguments)[-1] == "levers.tf32=true":
            return Ended(None, "")
        return rates_by_name(arguments)

    calls = answering(answer)
    wanted = ("reference", "tf32", "fused", "graphs")
    measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    calls.clear()
    again = measure("stylegan2_ffhq1024", micro=4, levers=("compile-main",), out=out)
    assert "levers.tf32=true" not in overrides_of(calls[0]), "it is known to fail"
    assert [row.get("over") for row in again["rows"]] == [None, None, "reference", "fused", "graphs"]
    assert [line.endswith("; without tf32") for line in table(again)][4:7] == [True] * 3
    calls.clear()
    broken = False
    once = measure("stylegan2_ffhq1024", micro=4, levers=("tf32",), out=out)
    assert len(calls) == 1
    over = [row["over"] for row in once["rows"]]
    assert over == [None, "reference", "reference", "fused", "graphs"], "as they were measured"
    lines = list(table(once))
    assert lines[4].startswith("fused") and lines[4].endswith("; without tf32"), "though its row is there now"
    calls.clear()
    mended = measure("stylegan2_ffhq1024", micro=4, levers=(*wanted, "compile-main"), out=out)
    last = ["levers.fused=true", "levers.graphs=true", "levers.compile=main"]
    assert [overrides_of(one)[-1] for one in calls] == last
    assert [row["over"] for row in mended["rows"]] == [None, "reference", "tf32", "fused", "graphs"]
    assert not any("without tf32" in line for line in table(mended))


@pytest.mark.usefixtures("with_a_gpu")
def test_what_is_known_to_fail_stays_left_out_whatever_else_is_measured_meanwhile(answering, tmp_path):
    """`native` failed without `one-pass`; with it, it is as unlikely to work, and `graphs` is to be measured."""
    out, broken = tmp_path / "levers.json", ["one-pass", "native"]

    def answer(arguments: list[str]) -> Ended:
        given = overrides_of(arguments)
        fails = "native" in broken and "ops.backend=native" in given
        fails |= "one-pass" in broken and "one-pass" not in without(arguments)
        return Ended(1, "error: no") if fails else rates_by_name(arguments)

    calls = answering(answer)
    wanted = ("one-pass", "native", "graphs")
    first = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert [row["status"] for row in first["rows"]] == ["failed", "failed", "measured"]
    calls.clear()
    broken.remove("one-pass")
    again = {
        row["name"]: row
        for row in measure("stylegan2_ffhq1024", micro=4, levers=("one-pass", "graphs"), out=out)["rows"]
    }
    assert len(calls) == 2 and [row["status"] for row in again.values()] == ["measured", "failed", "measured"]
    assert again["graphs"]["lost"] == ["native", "sample-draws", "epilogue"]


@pytest.mark.usefixtures("with_a_gpu")
def test_a_row_that_fails_later_keeps_what_was_measured_before(answering, tmp_path):
    """With `half`, once that is measured, `graphs` fails: what it did without it is not lost."""
    out, broken = tmp_path / "levers.json", "precision=bf16"
    answering(lambda arguments: Ended(1, "error: no") if broken in arguments else rates_by_name(arguments))
    wanted = ("reference", "half", "graphs")
    first = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    broken = "levers.graphs=true"
    for _ in range(2):
        again = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
        row = again["rows"][-1]
        assert (row["status"], row["reason"], row["lost"]) == ("failed", "no", [])
        assert row["earlier"]["images_per_s"] == first["rows"][-1]["images_per_s"]
        assert row["earlier"]["lost"] == ["half"] and "gain" not in row["earlier"]
        line = f"graphs            failed: no; before, {row['earlier']['images_per_s']:.2f} images/s; without half"
        assert line in list(table(again))
    broken = ""
    mended = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert mended["rows"][-1]["status"] == "measured" and "earlier" not in mended["rows"][-1]


@pytest.mark.usefixtures("with_a_gpu")
def test_what_had_a_lever_by_another_setting_is_not_measured_again(answering, tmp_path):
    """`graphs` steps fused though `fused` failed: once that is measured, nothing about `graphs` is another."""
    out, broken = tmp_path / "levers.json", "levers.fused=true"
    calls = answering(lambda arguments: Ended(1, "") if arguments[-1] == broken else rates_by_name(arguments))
    wanted = ("fused", "graphs", "micro", "compile-main")
    first = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert [row["status"] for row in first["rows"]] == ["failed", *["measured"] * 3]
    calls.clear()
    broken = ""
    again = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert [overrides_of(one)[-1] for one in calls] == ["levers.fused=true"]
    assert [row["over"] for row in again["rows"]] == [None, "fused", "graphs", "graphs"]


@pytest.mark.usefixtures("with_a_gpu")
def test_a_part_whose_row_failed_is_added_to_those_below_once_it_is_measured(answering, tmp_path):
    """Their settings are the same: what they were measured without is not."""
    out, broken, later = tmp_path / "levers.json", True, ["channels-last", "sample-draws", "epilogue"]

    def answer(arguments: list[str]) -> Ended:
        fails = broken and without(arguments) == later and not overrides_of(arguments)[-1].startswith("levers.")
        return Ended(None, "") if fails else rates_by_name(arguments)

    calls = answering(answer)
    wanted = ("one-pass", "average", "tf32")
    before = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert [row["status"] for row in before["rows"]] == ["measured", "failed", "measured"]
    calls.clear()
    broken = False
    mended = measure("stylegan2_ffhq1024", micro=4, levers=wanted, out=out)
    assert [without(one) for one in calls] == [later, later]
    assert before["rows"][2]["overrides"] == mended["rows"][2]["overrides"]
    assert [row["without"] for row in (before["rows"][2], mended["rows"][2])] == [["average", *later], later]
    assert [row["over"] for row in mended["rows"]] == [None, "one-pass", "average"]


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpu.name": "another"}, 'with gpu.name "another", and here it is "'),
        ({"git.commit": "0" * 40}, f'with git.commit "{"0" * 40}", and here it is "'),
        ({"git.commit": None}, 'with git.commit null, and here it is "'),
        ({"code.digest": "0"}, 'with code.digest "0", and here it is "'),
        ({"version.torch": "1.0"}, 'with version.torch "1.0", and here it is "'),
        ({"settings": {"config": "demo.yaml a=1"}}, 'with settings.config "demo.yaml a=1", and here it is "demo.yaml"'),
        ({"settings": {"micro": 8}}, "with settings.micro 8, and here it is 4"),
        ({"settings": {"data": "real"}}, 'with settings.data "real", and here it is "synthetic"'),
        ({"settings": {"configuration_digest": "0"}}, 'with settings.configuration_digest "0", and here it is "'),
        ({"settings": {"steps": 7}}, "with settings.steps 7, and here it is null"),
        ({"bench": "train"}, "which is no record of `bench levers`"),
        ({"rows": None}, "which is no record of `bench levers`"),
    ],
)
def test_rows_of_something_else_are_refused_and_stay(change, sentence, answering, monkeypatch, tmp_path):
    out = tmp_path / "levers.json"
    answering(rates_by_name)
    before = measure("demo", micro=4, levers=("reference",), out=out)
    settings = before["settings"] | change.get("settings", {})
    out.write_text(json.dumps(before | change | {"settings": settings}))
    kept = out.read_bytes()
    monkeypatch.setattr(levers, "call", None)
    with pytest.raises(UsageError, match=re.escape(f"--out is {out}, ")) as refused:
        measure("demo", micro=4, out=out)
    assert sentence in str(refused.value) and str(refused.value).endswith("name another file, or remove it")
    assert out.read_bytes() == kept


def test_a_configuration_that_was_edited_is_refused(answering, tmp_path):
    """In a later call, and in the same one: each row's process reads the file, which is called as before."""
    config, out = tmp_path / "mine.yaml", tmp_path / "levers.json"
    text = (CONFIGS / "demo.yaml").read_text()

    def answer(arguments: list[str]) -> Ended:
        if overrides_of(arguments)[-1] == "precision=bf16":
            config.write_text(text.replace("every_kimg: 25,", "every_kimg: 24,"))
        return rates_by_name(arguments)

    def called(*names: str) -> list[str]:
        request = Request(micro=4, levers=names, out=out)
        record = bench_levers(lambda: load_configuration(config, ()), config, (), request)
        return [row["name"] for row in record["rows"]]

    assert "every_kimg: 25," in text
    config.write_text(text)
    answering(answer)
    assert called("reference") == ["reference"]
    with pytest.raises(UsageError, match=r"mine\.yaml was edited while its rows are measured: start anew"):
        called("half", "native")
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["reference"], "not what it was edited for"
    with pytest.raises(UsageError, match=r"settings\.configuration_digest .* name another file, or remove it"):
        called("native")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"code.digest": "0" * 16}, f"with code.digest {'0' * 16}, and the others with "),
        ({"version.torch": "1.0"}, "with version.torch 1.0, and the others with "),
        ({"settings": {"device": "another"}}, "with settings.device another, and the others with cpu: start anew"),
    ],
)
def test_other_code_and_another_device_than_that_of_the_rows_before_are_refused(changed, sentence, answering, tmp_path):
    """As where a file is edited while a row runs; and what there is is said."""
    out = tmp_path / "levers.json"

    def answer(arguments: list[str]) -> Ended:
        ended = rates_by_name(arguments)
        if overrides_of(arguments)[-1] == "precision=bf16":
            place = out_of(arguments)
            place.write_text(json.dumps(json.loads(place.read_text()) | changed))
        return ended

    answering(answer)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        measure("demo", micro=4, out=out, levers=("reference", "half", "native"))
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["reference"]


def test_what_was_measured_is_said_where_the_rest_cannot_be(answering, capsys):
    """Without a file all would be lost."""

    def answer(arguments: list[str]) -> Ended:
        if overrides_of(arguments)[-1] == "precision=bf16":
            raise KeyboardInterrupt
        return rates_by_name(arguments)

    answering(answer)
    with pytest.raises(KeyboardInterrupt):
        measure("demo", micro=4)
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in said if line.startswith("reference  ")] == [["reference", "40.00"]]


def test_a_file_that_another_process_goes_on_with_is_refused(answering, tmp_path):
    out = tmp_path / "levers.json"
    answering(rates_by_name)
    measure("demo", micro=4, levers=("reference",), out=out)
    with holding(out):
        with pytest.raises(UsageError, match=r"levers\.json, which another process goes on with: wait for it"):
            measure("demo", micro=4, levers=("half",), out=out)
        measure("demo", micro=4, levers=("half",), out=tmp_path / "other.json")
    measure("demo", micro=4, levers=("half",), out=out)
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["levers.json", "other.json"]


@pytest.mark.usefixtures("with_a_gpu")
def test_what_goes_with_another_row_follows_what_becomes_of_that_one(answering, tmp_path):
    """It is no longer skipped once the other is measured, and what was measured with it stays."""
    out, broken = tmp_path / "levers.json", "ops.backend=native"
    answering(lambda arguments: Ended(1, "") if overrides_of(arguments)[-1] == broken else rates_by_name(arguments))

    def statuses(*names: str) -> dict[str, str]:
        record = measure("stylegan2_ffhq1024", micro=4, levers=names, out=out)
        return {row["name"]: row["status"] for row in record["rows"]}

    assert statuses("native", "epilogue") == {"native": "failed", "epilogue": "skipped"}
    broken = ""
    assert statuses("native") == {"native": "measured"}
    assert statuses("epilogue") == {"native": "measured", "epilogue": "measured"}
    out.unlink()
    assert statuses("epilogue") == {"epilogue": "measured"}
    broken = "ops.backend=native"
    assert statuses("native", "epilogue") == {"native": "failed", "epilogue": "measured"}


@pytest.mark.usefixtures("with_a_gpu")
def test_what_is_skipped_later_hides_nothing_that_was_known(answering, tmp_path):
    """`epilogue` was measured, then failed, then cannot be: once it can be again, both are still known."""
    out, broken = tmp_path / "levers.json", set[str]()

    def answer(arguments: list[str]) -> Ended:
        given = overrides_of(arguments)
        epilogue = "ops.backend=native" in given and not {"epilogue", "sample-draws"} & set(without(arguments))
        fails = broken & set(given) or ("epilogue" in broken and epilogue)
        return Ended(1, "error: no") if fails else rates_by_name(arguments)

    def called(*names: str, fails: set[str]) -> dict[str, dict[str, Any]]:
        broken.clear()
        broken.update(fails)
        return {row["name"]: row for row in measure("stylegan2_ffhq1024", micro=4, levers=names, out=out)["rows"]}

    answering(answer)
    first = called("half", "epilogue", fails={"precision=bf16"})
    assert [first[one]["status"] for one in ("half", "epilogue")] == ["failed", "measured"]
    rate = first["epilogue"]["images_per_s"]
    assert called("half", "epilogue", fails={"epilogue"})["epilogue"]["earlier"]["images_per_s"] == rate
    called("native", fails={"ops.backend=native"})
    for names in (["epilogue"], ["native"]):
        row = called(*names, fails=set())["epilogue"]
        assert (row["status"], row["earlier"]["images_per_s"]) == ("failed", rate)
    assert called("graphs", fails=set())["graphs"]["lost"] == ["epilogue"]
    assert called("epilogue", fails=set())["epilogue"]["status"] == "measured"


def test_code_that_is_edited_meanwhile_fails_no_row(answering, monkeypatch, tmp_path):
    """What breaks then says nothing of a lever."""
    out = tmp_path / "levers.json"

    def answer(arguments: list[str]) -> Ended:
        if overrides_of(arguments)[-1] == "precision=bf16":
            monkeypatch.setattr(levers, "code_digest", lambda: "another")
            return Ended(1, "SyntaxError: invalid syntax")
        return rates_by_name(arguments)

    answering(answer)
    with pytest.raises(UsageError, match="the code was edited while rows are measured: start anew"):
        measure("demo", micro=4, out=out, levers=("reference", "half", "native"))
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]] == ["reference"] and record["complete"] is False


def test_a_file_that_is_no_json_is_refused_and_stays(monkeypatch, tmp_path):
    out = tmp_path / "levers.json"
    out.write_text('{"bench": "lev')
    monkeypatch.setattr(levers, "call", None)
    with pytest.raises(UsageError, match=r"which cannot be read as JSON: .*; name another file, or remove it"):
        measure("demo", out=out)
    assert out.read_text() == '{"bench": "lev'


def test_a_commit_that_is_not_known_is_not_gone_on_with(answering, monkeypatch, tmp_path, capsys):
    """Two copies without a checkout may differ; that is said before anything is measured."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)  # no git there
    monkeypatch.delenv("HIRES_GAN_COMMIT", raising=False)
    out = tmp_path / "levers.json"
    answering(rates_by_name)
    assert measure("demo", levers=("reference",), out=out)["git.commit"] == "unknown"
    assert "a later call cannot go on with this one: set HIRES_GAN_COMMIT to what" in " ".join(
        capsys.readouterr().err.split()
    )
    monkeypatch.setattr(levers, "call", None)
    with pytest.raises(
        UsageError, match=r"with a commit that is not known, as it is not known here: .*HIRES_GAN_COMMIT"
    ):
        measure("demo", out=out)
    monkeypatch.setenv("HIRES_GAN_COMMIT", "3f2a")
    with pytest.raises(UsageError, match='with git.commit "unknown", and here it is "3f2a"'):
        measure("demo", out=out)
    out.unlink()
    calls = answering(rates_by_name)
    measure("demo", levers=("reference",), out=out)
    measure("demo", levers=("reference", "half"), out=out)
    assert len(calls) == 2 and "HIRES_GAN_COMMIT" not in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(levers, "call", None)
    with pytest.raises(Failure, match=r"nowhere/levers\.json cannot be written"):
        measure("demo", out=tmp_path / "nowhere" / "levers.json")
