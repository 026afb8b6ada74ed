"""`hires-gan evaluate`: every metric of every family, by one process and by two, and what cannot be had."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from test_crew import both
from tiny_models import METRICS, requested, shards, untrained

from hires_gan import cli_evaluate
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import (
    command,
    comparing,
    coverage,
    describing,
    evaluator,
    features,
    fidelity,
    path_length,
    sampled,
    subjects,
)
from hires_gan.evaluation.alike import differences
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import METRICS as CATALOGUE
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.command import Report, Request, evaluate, require_all, table
from hires_gan.evaluation.crew import Alone
from hires_gan.evaluation.instruments import Sources
from hires_gan.evaluation.protocol import Record
from hires_gan.inference.loading import find
from hires_gan.tracking.names import AFTERWARDS

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FAMILIES = list(METRICS)
TINY_SOURCES = Sources("tiny_network:Tiny")


def measured(root: Path, family: str, request: Request | None = None) -> Report:
    return evaluate(find(root / "runs" / family), request or requested(family), Alone(), CPU)


def wanted(*names: MetricName, **changes: Any) -> Request:
    return Request(names, **{"count": 20, **changes})


def hires_gan(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return launched("-m", "hires_gan", *arguments, **environment)


def launched(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet | environment, capture_output=True, text=True, timeout=600
    )


# --- every metric -----------------------------------------------------------------------------------------------------


def test_every_metric_there_is_fits_a_family() -> None:
    assert {name for text in METRICS.values() for name in text.split(",")} == set(CATALOGUE)


def seeds_of(metric: str, family: str) -> dict[str, int]:
    """The run's own, 3, for images; fixed ones for what is drawn besides."""
    if metric.startswith("ppl"):
        return {"paths": 0}
    if metric.startswith("lpips"):
        return {"styles": 0}
    images = {"styles": 3} if family == "munit" else {"latents": 3}
    return images | ({"pairs": 0} if metric == "ms_ssim" else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_there_with_a_whole_record(family: str, here: Path) -> None:
    report = measured(here, family, requested(family, 12))
    names = METRICS[family].split(",")
    assert not report.missing
    for name in names:
        assert name in report.result.values
    directions = 2 if family == "munit" else 1
    assert [record.metric for record in report.result.records] == names * directions
    for record in report.result.records:
        assert record.fakes
        assert record.checkpoint.nimg == 4000
        assert record.checkpoint.sha256
        assert record.seeds == seeds_of(record.metric, family)
        compares = record.metric not in ("inception_score", "ms_ssim") and not record.metric.startswith(
            ("ppl", "lpips", "content")
        )
        if record.metric.startswith("ppl"):
            crop = "rows 3/8 to 7/8, columns 2/8 to 6/8" if record.metric.endswith("_cropped") else "none"
            assert record.parameters["crop"] == crop
        assert (record.data is not None) == (record.reals is not None) == compares
        assert (record.features is not None) == ((compares and record.metric != "swd") or "inception" in record.metric)
        if family == "munit":
            assert "direction" in record.parameters
    values = report.result.values
    for name in names:
        if name.endswith("_cropped"):
            assert values[name] != values[name.removesuffix("_cropped")]
    again = measured(here, family, requested(family, 12))
    assert again.result.values == report.result.values, "with the features of reals from the cache"
    assert not any(differences(a, b) for a, b in zip(report.result.records, again.result.records, strict=True))
    assert len(table(report.result)) == len(names) * (3 if family == "munit" else 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_find_what_one_finds(here: Path, tmp_path: Path) -> None:
    """In no metric does it matter; swd and FID are the same to the last bit."""
    script = Path(__file__).with_name("crew_of_two.py")
    runs = [here / "runs" / family for family in FAMILIES]
    done = launched(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path, *runs),
        XDG_CACHE_HOME=str(tmp_path / "other"),
        PYTHONPATH=os.pathsep.join([str(here / "site"), str(script.parent)]),
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as those have
    try:
        for family in FAMILIES:
            alone = measured(here, family).result
            together = json.loads((tmp_path / f"{family}.json").read_text())
            assert together["values"].keys() == alone.values.keys()
            for name, value in alone.values.items():
                assert together["values"][name] == pytest.approx(value, rel=1e-6, abs=1e-9), (family, name)
                if name.startswith(("swd", "fid")):
                    assert together["values"][name] == value, (family, name)
            records = [Record.model_validate(one) for one in together["records"]]
            assert not any(differences(a, b) for a, b in zip(records, alone.records, strict=True))
    finally:
        torch.set_num_threads(threads)


SENTENCE = (
    r"the processes do not have the same {what} \(process 0 on \S+: .*{first}.*; process 1 on \S+: .*{second}.*\): "
    "start all"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_with_other_files_measure_nothing_and_keep_nothing(here: Path, tmp_path: Path) -> None:
    """Other shards or other weights on one of two: a sentence, on both the end, and no features in the user's cache."""
    script = Path(__file__).with_name("crew_apart.py")
    data, other = here / "plain", shards(tmp_path / "elsewhere", 70, seed=9)
    files = [tmp_path / f"{seed}.pth" for seed in (0, 1)]
    for seed, file in enumerate(files):
        from tiny_network import Tiny  # type: ignore[import-not-found]

        torch.manual_seed(seed)
        torch.save(Tiny().state_dict(), file)

    def told(*paths: Path) -> str:
        done = launched(
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script),
            *(here / "runs" / "progressive", *paths),
            XDG_CACHE_HOME=str(tmp_path / "kept"),
            PYTHONPATH=os.pathsep.join([str(here / "site"), str(script.parent)]),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for paths, what, first, second in (
        ((data, files[0], other, files[0]), "data", "plain", "elsewhere"),
        ((data, files[0], data, files[1]), "feature network", "tiny_network:Tiny", "tiny_network:Tiny"),
    ):
        said = told(*paths)
        assert re.search("first True: " + SENTENCE.format(what=what, first=first, second=second), said), said
        assert "elsewhere, usage True" in said
        assert not list((tmp_path / "kept").rglob("*.safetensors"))
    assert not told(data, files[0], data, files[0])
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 1


def test_processes_with_other_shards_or_arguments_measure_nothing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each domain is looked at; another place of the same shards is no difference."""
    left, right = here / "left", here / "right"
    other, copied = shards(tmp_path / "elsewhere", 68, seed=9), tmp_path / "copied"
    shutil.copytree(left, copied)

    def opened(*_: Any) -> Any:
        raise Failure("they agree")

    monkeypatch.setattr(command, "open_instruments", opened)

    def told(one: Request, two: Request) -> set[str]:
        saved = find(here / "runs" / "munit")
        return set(map(str, both(lambda crew: evaluate(saved, (one, two)[crew.rank], crew, CPU))))

    usual = wanted("swd", data=(f"left={left}", f"right={right}"))
    (said,) = told(usual, wanted("swd", data=(f"left={left}", f"right={other}")))
    assert re.match(SENTENCE.format(what="data of right", first="right with digest", second="elsewhere with"), said)
    (said,) = told(usual, wanted("swd", data=usual.data, count=21))
    assert re.match(SENTENCE.format(what="arguments", first="swd; count 20,", second="swd; count 21,"), said)
    assert told(usual, wanted("swd", data=(f"left={copied}", f"right={right}"))) == {"they agree"}


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("progressive", "ppl_w_end", "which Progressive GAN does not have; take ppl_z_end"),
        ("progressive", "lpips_diversity_munit", "is of translations, and progressive makes images from latents"),
        ("stylegan2", "content_preservation", "is of translations, and stylegan2 makes images from latents"),
        ("munit", "ppl_z_full", "is of images from latents, and munit translates images"),
        ("munit", "ms_ssim", "is of images from latents, and munit translates images"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(family: str, name: MetricName, words: str, here: Path) -> None:
    with pytest.raises(UsageError, match=f"--metrics has {name}.*{words}"):
        measured(here, family, wanted(name))


def test_data_that_do_not_fit_are_refused(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, large = shards(tmp_path / "small", 4, side=8), shards(tmp_path / "large", 20, side=32)
    with pytest.raises(UsageError, match=r"small have 8x8 pixels, and the model's have 16x16; prepare them again at"):
        measured(here, "progressive", wanted("swd", data=(str(small),)))
    found = measured(here, "progressive", wanted("swd", data=(str(large),), count=5)).result.records[0]
    assert "of 32 pixels, are reduced to 16 by 2x2 box averages" in capfd.readouterr().err
    assert (found.resolution, found.reals, found.data and found.data.name) == (16, 5, str(large))
    with pytest.raises(UsageError, match=r"large has plain images, but .* translates between left, right; name a set"):
        measured(here, "munit", wanted("swd", data=(str(large),)))
    with pytest.raises(UsageError, match=r"--data is given 2 times, as a, b; name one shard set, or one for each"):
        measured(here, "munit", wanted("swd", data=("a", "b")))
    with pytest.raises(UsageError, match=r"has the domains left, right, but .* makes plain images"):
        two = tuple(f"{name}={here / name}" for name in ("left", "right"))
        measured(here, "progressive", wanted("swd", data=two))
    swapped = measured(here, "munit", wanted("swd", data=(f"left={here / 'right'}", f"right={here / 'left'}")))
    assert {record.data.domain for record in swapped.result.records if record.data} == {"left", "right"}
    with pytest.raises(UsageError, match=r"fid cannot be computed from 1 fakes: it takes 2 at least"):
        measured(here, "progressive", Request(("fid",), count=1, sources=TINY_SOURCES))
    others = shards(tmp_path / "three", 3, classes=3)
    with pytest.raises(UsageError, match=r"labels of 3 classes, but the generator of .* has 2 classes"):
        measured(here, "stylegan2", wanted("swd", data=(str(others),)))


# --- weights that are not there ---------------------------------------------------------------------------------------


def test_what_needs_weights_that_are_absent_is_left_out_and_the_rest_is_there(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = measured(here, "progressive", wanted("fid", "swd", "kid"))
    assert set(report.result.values) == {"swd", "swd/16"}
    said = capfd.readouterr().err
    assert said.count("warning: fid, kid cannot be computed: FID's Inception needs weights-inception") == 1
    assert list(report.missing) == ["fid", "kid"]
    assert list(json.loads(report.as_json())["missing"]) == ["fid", "kid"]
    with pytest.raises(Failure, match=r"^fid, kid could not be computed, for what is said above"):
        require_all(report)


def test_weights_that_are_named_have_to_be_there(here: Path, tmp_path: Path) -> None:
    sources = Sources(weights=tmp_path / "none.pth")
    with pytest.raises(UsageError, match=r"--weights is .*none\.pth, but there is no such file"):
        measured(here, "progressive", wanted("fid", "swd", sources=sources))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_shows_keeps_and_tracks(root: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    run_id = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))).info.run_id
    folder = untrained("progressive", tmp_path, run_id=run_id)
    found = tmp_path / "found" / "numbers.json"
    outside = {
        "MLFLOW_TRACKING_URI": store,
        "PYTHONPATH": str(root / "site"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TORCH_HOME": str(tmp_path / "hub"),
    }
    asked = ("--metrics", "swd,fid,inception_score,ppl_z_end", "--features", "tiny_network:Tiny", "--count", "20")
    done = hires_gan("evaluate", folder, *asked, "--out", found, "--track", **outside)
    assert done.returncode == 1, done.stderr
    assert "error: ppl_z_end could not be computed, for what is said above" in done.stderr
    assert "warning: ppl_z_end cannot be computed: there are no VGG16 weights in" in done.stderr
    assert "Sliced Wasserstein distance" in done.stdout
    assert "20 fakes against 70 reals" in done.stdout
    values = json.loads(found.read_text())["values"]
    assert {"swd", "swd/16", "fid", "inception_score", "inception_score/deviation"} == set(values)
    for name, value in values.items():
        points = client.get_metric_history(run_id, AFTERWARDS + name)
        assert [(point.step, point.value) for point in points] == [(4000, value)]
    again = hires_gan("evaluate", folder, "--track", "--from", found, **outside)
    assert again.returncode == 0, again.stderr
    assert "0 values are in the MLflow run" in again.stderr
    assert "20 fakes against 70 reals" in again.stdout
    without = hires_gan("evaluate", folder, "--from", found, **outside)
    assert without.returncode == 2 and "--from stands without --track; it logs numbers that are" in without.stderr
    again = hires_gan("evaluate", folder, "--metrics", "swd", "--count", "20", "--track", **outside)
    assert again.returncode == 0, again.stderr
    assert "0 values are in the MLflow run" in again.stderr
    assert "there already at this step, and left as before: swd" in again.stderr
    assert len(client.get_metric_history(run_id, f"{AFTERWARDS}swd")) == 1
    assert len(client.list_artifacts(run_id, "evaluations")) == 3


@pytest.mark.slow
def test_it_runs_under_accelerate_launch(here: Path, tmp_path: Path) -> None:
    """Two processes, of which one has no images: there is a single chunk."""
    found = tmp_path / "numbers.json"
    done = launched(
        *("-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml", "-m", "hires_gan"),
        *("evaluate", here / "runs" / "progressive", "--count", 20, "--reals", 30, "--out", found),
        *("--metrics", "swd,fid,inception_score", "--features", "tiny_network:Tiny"),
        PYTHONPATH=str(here / "site"),
    )
    assert done.returncode == 0, done.stderr
    alone = measured(
        here, "progressive", wanted("swd", "fid", "inception_score", reals=30, sources=TINY_SOURCES)
    ).result
    assert json.loads(found.read_text())["values"] == alone.values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "fidd"), "there is no metric 'fidd'; did you mean fid?"),
        (("--count", "0"), "--count is 0; it has to be greater than or equal to 1"),
        (("--count", "1000001"), "--count is 1000001; it has to be less than or equal to 1000000"),
        (("--out", "."), "--out is ., which is a folder; name a file"),
        (("--track",), "names no MLflow run; leave it out, and keep the numbers with --out"),
        (
            ("--from", "a.json"),
            "--from stands beside --data; it logs numbers that are there: give --track, and nothing",
        ),
        (
            ("--out", "README.md/numbers.json"),
            "--out is README.md/numbers.json: cannot write README.md: File exists",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    root: Path, options: tuple[str, ...], words: str
) -> None:
    """Before the data are looked at, which are nowhere."""
    done = hires_gan("evaluate", root / "runs" / "progressive", *options, "--data", "nowhere")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, out = find(root / "runs" / "progressive"), tmp_path / "new" / "numbers.json"
    assert cli_evaluate._places(saved, out, track=False) is None
    assert out.parent.is_dir() and not out.exists()
    monkeypatch.setattr(os, "access", lambda *_: False)  # for a superuser nothing is
    with pytest.raises(UsageError, match=r"numbers\.json, but its folder cannot be written to; name a file in another"):
        cli_evaluate._places(saved, out, track=False)


def test_what_is_not_there_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        measured(root, "progressive", wanted("swd", data=(str(tmp_path / "nowhere"),)))


def test_a_checkpoint_that_was_imported_belongs_to_no_run(here: Path, tmp_path: Path) -> None:
    """It holds neither a seed nor data: latents are those of seed 0."""
    origin = find(here / "runs" / "stylegan2").folder
    folder = tmp_path / "imported"
    shutil.copytree(origin, folder)
    state = json.loads((folder / "state.json").read_text())
    kept = {key: state["configuration"][key] for key in ("recipe", "precision", "batch")}
    (folder / "state.json").write_text(json.dumps(state | {"configuration": kept}))
    data = (str(state["configuration"]["data"]["shards"]),)
    found = evaluate(find(folder), wanted("swd", data=data), Alone(), CPU)
    same = evaluate(find(origin), wanted("swd", data=data, seed=0), Alone(), CPU)
    assert found.result.values == same.result.values


def test_what_is_not_finite_is_missing_and_the_rest_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*_: Any) -> float:
        raise NotFinite("the features are too large for float32")

    monkeypatch.setattr(comparing, "fid", spoiled)
    for family in ("progressive", "munit"):
        report = measured(here, family, wanted("fid", "swd", sources=TINY_SOURCES))
        assert "swd" in report.result.values and "fid" not in report.result.values
        assert report.missing == {"fid": "the features are too large for float32"}
        assert json.loads(report.as_json())["missing"] == report.missing
        with pytest.raises(Failure, match=r"^fid could not be computed, for what is said above"):
            require_all(report)


# --- a GPU that is full -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "metric", "module", "name"),
    [
        ("progressive", "swd", subjects, "enlarge"),
        ("progressive", "swd", evaluator, "compared"),
        ("progressive", "fid", features, "exact_float32"),
        ("progressive", "precision", fidelity, "centred"),
        ("progressive", "coverage", coverage, "distance_blocks"),
        ("progressive", "ms_ssim", sampled, "pair_similarities"),
        ("progressive", "ppl_z_end", path_length, "_in_one_dtype"),
        ("munit", "lpips_diversity_munit", subjects, "lpips_diversity"),
        ("munit", "content_preservation", describing, "content_preservation"),
    ],
)
def test_wherever_the_gpu_is_full_a_sentence_ends_it(
    family: str, metric: MetricName, module: ModuleType, name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(Failure, match=r"^the GPU has no room for the evaluation \(CUDA out of memory. Tried"):
        measured(here, family, wanted(metric, sources=TINY_SOURCES))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), r"^this machine has no room for the evaluation \(out of memory\): let nothing else"),
        (MemoryError("Unable to allocate 4.00 EiB"), r"^this machine has no room for the evaluation \(Unable"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "^this machine has no room for the"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "^the GPU has no room for the evalua"),
    ],
)
def test_whose_memory_it_is(error: Exception, sentence: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(subjects, "enlarge", full)
    with pytest.raises(Failure, match=sentence):
        measured(here, "progressive", wanted("swd", sources=TINY_SOURCES))
