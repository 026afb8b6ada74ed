"""What records of whole evaluations know: classes, sizes of sets, corrupt inputs, and the data of the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import COUNT, configured, requested, shards

from hires_gan.data.domains import open_data
from hires_gan.data.shards import ShardSet
from hires_gan.evaluation.alike import differences
from hires_gan.evaluation.catalogue import parse_metrics
from hires_gan.evaluation.command import Request, evaluate
from hires_gan.evaluation.crew import Alone
from hires_gan.evaluation.protocol import Record
from hires_gan.evaluation.subjects import frequencies
from hires_gan.inference.loading import find
from hires_gan.recipes.protocol import LabelDistribution


def records(run: Path, metrics: str, **changes: Any) -> tuple[Record, ...]:
    sources = requested("munit").sources
    request = Request(parse_metrics(metrics), **{"count": 20, "sources": sources, **changes})
    return evaluate(find(run), request, Alone(), torch.device("cpu")).result.records


def test_numbers_of_other_class_frequencies_do_not_compare(here: Path, tmp_path: Path) -> None:
    metrics = "inception_score,ms_ssim,ppl_z_full,ppl_w_end"
    run = here / "runs" / "stylegan2"
    own = records(run, metrics)
    even, odd = (shards(tmp_path / f"{count}", count) for count in (10, 11))
    assert [one.parameters["class_frequencies"] for one in own] == ["1 : 1"] * 4
    assert [one.parameters["class_frequencies"] for one in records(run, "swd,fid")] == ["1 : 1"] * 2
    for one, same in zip(own, records(run, metrics, data=(str(even),)), strict=True):
        assert differences(one, same) == {}, "other data, of which as many are of each class"
    for one, other in zip(own, records(run, metrics, data=(str(odd),)), strict=True):
        assert differences(one, other) == {"parameters.class_frequencies": ("1 : 1", "6 : 5")}
    (unconditional,) = records(here / "runs" / "progressive", "ms_ssim")
    assert "class_frequencies" not in unconditional.parameters


def test_many_classes_are_a_digest() -> None:
    assert frequencies(LabelDistribution((4, 0, 6))) == "2 : 0 : 3"
    many = frequencies(LabelDistribution((2,) * 1000))
    assert many.startswith("1000 classes, sha256 ") and len(many) < 40
    assert many == frequencies(LabelDistribution((3,) * 1000)) != frequencies(LabelDistribution((3,) * 999 + (2,)))


def test_pairs_are_of_so_many_images(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more images than pairs, too."""
    monkeypatch.setattr("hires_gan.evaluation.sampled.PAIRS", 15)
    run = here / "runs" / "progressive"
    (few,), (many,) = records(run, "ms_ssim"), records(run, "ms_ssim", count=COUNT)
    assert (few.fakes, few.parameters["pairs"], many.fakes, many.parameters["pairs"]) == (20, 15, COUNT, 15)
    assert set(differences(few, many)) == {"fakes"}


def test_of_paths_and_diversity_so_many_samples_were_taken(here: Path) -> None:
    (paths,) = records(here / "runs" / "progressive", "ppl_z_end")
    assert paths.fakes == 9, "as many as are at the most, here"
    (there, back) = records(here / "runs" / "munit", "lpips_diversity_stargan2", count=6)
    assert there.fakes == back.fakes == 6


def spoiled(folder: Path, number: int) -> None:
    """Damage one image of a set."""
    path, offset, size, _ = ShardSet(folder).locate(number)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)


def with_state(run: Path, folder: Path, block: dict[str, Any], **changes: Any) -> Path:
    """A copy of a run's checkpoint, with another `data` block and other keys."""
    shutil.copytree(find(run).folder, folder)
    state = json.loads((folder / "state.json").read_text())
    state["configuration"]["data"].update(block)
    (folder / "state.json").write_text(json.dumps(state | changes))
    return folder


def test_corrupt_inputs_and_reals_are_counted(here: Path, tmp_path: Path) -> None:
    """One on the left: it is an input to the right, and a real to the left."""
    shutil.copytree(here / "left", tmp_path / "left")
    spoiled(tmp_path / "left", 3)
    domains = {"left": str(tmp_path / "left"), "right": str(here / "right")}
    folder = with_state(here / "runs" / "munit", tmp_path / "of", {"domains": domains, "max_corrupt": 0.2})
    metrics = "swd,fid,content_preservation,lpips_diversity_stargan2"
    there, back = (records(folder, metrics, count=COUNT)[part] for part in (slice(4), slice(4, 8)))
    assert [one.parameters.get("inputs_replaced") for one in there + back] == [1] * 4 + [None] * 4
    assert [one.data.replaced for one in there + back if one.data] == [0, 0, 1, 1]
    assert "; 1 of the inputs are corrupt, and others stand in their places" in there[2].sentence()
    whole = records(here / "runs" / "munit", metrics, count=COUNT)
    changed = [set(differences(*pair)) for pair in zip(there + back, whole, strict=True)]
    assert changed == [{"parameters.inputs_replaced"}] * 4 + [{"data.replaced"}] * 2 + [set()] * 2


@pytest.mark.parametrize("family", ["progressive", "munit"])
def test_whether_the_data_are_those_of_the_training_is_said(family: str, here: Path, tmp_path: Path) -> None:
    data = configured(family, here).data
    trained = with_state(here / "runs" / family, tmp_path / "of", {}, data=open_data(data).digest())
    others = shards(tmp_path / "others", 30)
    other = (f"left={here / 'left'}", f"right={others}") if family == "munit" else (str(others),)
    for one in records(trained, "swd"):
        assert "; on the data it was trained on; " in one.sentence()
    for one in records(trained, "swd", data=other):
        assert "; on other data than it was trained on; " in one.sentence()
    for one in records(here / "runs" / family, "swd"):
        assert "trained on" not in one.sentence()
