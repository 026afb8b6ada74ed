"""The record beside a number: whole, plain JSON, a sentence for people, and clear about what may be compared."""

from __future__ import annotations

import hashlib
import json
import math
import re
from importlib.metadata import version
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hires_gan import __version__
from hires_gan.evaluation.alike import comparable, differences, protocol_of, protocols_of
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import METRICS
from hires_gan.evaluation.features import Extractor
from hires_gan.evaluation.protocol import (
    CheckpointRecord,
    DataRecord,
    Record,
    checkpoint_record,
    library_versions,
    make_record,
    standard_parameters,
)
from hires_gan.evaluation.results import LeftOut, Measured, Result, of_directions

DATA = DataRecord(
    digest="d" * 64,
    name="shards/faces",
    filter="lanczos",
    order_seed=0,
    decoder=f"torchvision {version('torchvision')}",
)


def network(checksum: str = "c" * 64, resize: str = "none") -> Extractor:
    return Extractor(
        lambda images: (images, None), "inception", "torch-fidelity 0.4.0", checksum, resize, torch.device("cpu")
    )


def record(**changes: Any) -> Record:
    settings: dict[str, Any] = {
        "name": "kid",
        "value": 0.0123456789,
        "deviation": 0.001,
        "resolution": 256,
        "checkpoint": CheckpointRecord(nimg=1_200_000, sha256="a" * 64),
        "reals": 50_000,
        "fakes": 50_000,
        "data": DATA,
        "extractor": network(),
        "seeds": {"latents": 0},
    }
    return make_record(**{**settings, **changes})


def test_everything_that_decides_a_number_is_there() -> None:
    found = json.loads(record().model_dump_json())
    assert found["metric"] == "kid" and found["better"] == "lower" and found["value"] == 0.0123456789
    assert found["reals"] == found["fakes"] == 50_000 and found["resolution"] == 256
    assert found["data"]["digest"] == "d" * 64 and found["data"]["filter"] == "lanczos"
    assert found["features"] == {
        "name": "inception",
        "version": "torch-fidelity 0.4.0",
        "checksum": "c" * 64,
        "resize": "none",
        "random": None,
    }
    assert found["parameters"] == {
        "subsets": 100,
        "subset_size": 1000,
        "seed": 2020,
        "degree": 3,
        "gamma": None,
        "coef0": 1,
    }
    assert "round" in found["quantisation"] and found["checkpoint"]["nimg"] == 1_200_000
    assert found["versions"]["hires_gan"] == __version__ and found["versions"]["torch"] == version("torch")
    assert set(found["versions"]) >= {"torchvision", "torch-fidelity"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date"])
    assert found["caution"] is None and found["seeds"] == {"latents": 0}
    one = record()
    assert Record.model_validate_json(one.model_dump_json()) == one


def test_the_sentence_is_for_people() -> None:
    assert record().sentence() == (
        "Kernel inception distance 0.0123457 ± 0.001 (lower is better); 50,000 fakes against 50,000 reals of "
        "shards/faces at 256x256, at 1200 kimg; features of inception cccccccc; shards resized with lanczos"
    )
    translated = DATA.model_copy(update={"domain": "prints", "source": "photos"})
    found = record(name="fid", value=70.0, deviation=None, fakes=500, reals=400, data=translated).sentence()
    assert "Fréchet inception distance 70 (lower" in found
    assert "500 fakes against 400 reals of shards/faces, prints from photos at 256x256" in found
    assert found.endswith("caution: fid from 400 images, fewer than 10,000: " + METRICS["fid"].bias)
    path = make_record("ppl_w_end", 130.0, resolution=64, checkpoint=CheckpointRecord(nimg=0), fakes=20_000)
    assert path.sentence() == (
        "Perceptual path length in W, ends of paths 130 (lower is better); 20,000 fakes at 64x64, at 0 kimg"
    )


def test_few_images_are_said() -> None:
    assert record(fakes=300, reals=5000).caution == "kid from 300 images, fewer than 1,000: " + METRICS["kid"].bias
    assert record(fakes=300, reals=5000).parameters["subset_size"] == 300
    assert record(name="fid", fakes=9_999).caution is not None
    assert record(name="fid", fakes=10_000).caution is None


def test_every_metric_has_a_record() -> None:
    for name in METRICS:
        assert record(name=name).metric == name
    assert standard_parameters("fid", 10, 10) == {"covariance": "divided by N - 1"}
    assert standard_parameters("swd", 10, 10) == {}
    assert record(name="swd", parameters={"directions": 512}).parameters == {"directions": 512}


@pytest.mark.parametrize(
    "changes",
    [
        {"value": 1.0, "deviation": None},
        {"checkpoint": CheckpointRecord(nimg=0)},
        {"seeds": {"latents": 7}},
        {"data": DATA.model_copy(update={"name": "/elsewhere/faces"})},
        {"data": DATA.model_copy(update={"decoder": "torchvision 9.9"})},
        {"checkpoint": CheckpointRecord(nimg=0, trained_on="d" * 64)},
        {"parameters": {"class_frequencies": "1 : 3"}},
    ],
)
def test_what_was_judged_and_where_the_data_lie_may_differ(changes: dict[str, Any]) -> None:
    assert comparable(record(), record(**changes))
    other = record(**changes).model_copy(update={"date": "2020-01-01T00:00:00Z", "versions": {"torch": "1.0"}})
    assert differences(record(), other) == {}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"fakes": 10_000}, {"fakes"}),
        ({"reals": 500}, {"reals", "parameters.subset_size"}),
        ({"resolution": 128}, {"resolution"}),
        ({"data": DATA.model_copy(update={"digest": "e" * 64})}, {"data.digest"}),
        ({"data": DATA.model_copy(update={"filter": "box"})}, {"data.filter"}),
        ({"data": DATA.model_copy(update={"domain": "prints", "source": "photos"})}, {"data.domain", "data.source"}),
        ({"data": DATA.model_copy(update={"order_seed": 1})}, {"data.order_seed"}),
        ({"data": DATA.model_copy(update={"decoder": "dali 2.4"})}, {"data.decoder"}),
        ({"data": DATA.model_copy(update={"replaced": 3})}, {"data.replaced"}),
        ({"extractor": network(checksum="0" * 64)}, {"features.checksum"}),
        ({"extractor": network(resize="to 299x299")}, {"features.resize"}),
        ({"quantisation": None}, {"quantisation"}),
        ({"parameters": {"truncation": 0.7}}, {"parameters.truncation"}),
    ],
)
def test_what_decides_the_number_must_not_differ(changes: dict[str, Any], keys: set[str]) -> None:
    found = differences(record(), record(**changes))
    assert set(found) == keys
    assert not comparable(record(**changes), record())
    assert {key: pair[::-1] for key, pair in found.items()} == differences(record(**changes), record())


def test_different_metrics_and_kinds_of_record_are_told_apart() -> None:
    assert differences(record(), record(name="fid"))["metric"] == ("kid", "fid")
    without = record(data=None, extractor=None)
    assert {"data.digest", "features.checksum"} <= set(differences(record(), without))


def test_classes_that_are_drawn_otherwise_are_told_apart_where_no_data_tell() -> None:
    one, other = (
        record(name="ms_ssim", reals=None, data=None, extractor=None, parameters={"class_frequencies": text})
        for text in ("1 : 1", "1 : 3")
    )
    assert differences(one, other) == {"parameters.class_frequencies": ("1 : 1", "1 : 3")}
    assert not comparable(one, one.model_copy(update={"parameters": {}})), "nobody knows how an older one was drawn"


def test_no_number_is_no_record() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(NotFinite, match=f"kid is {value}, and no such number is recorded"):
            record(value=value)
    with pytest.raises(ValidationError):
        Record.model_validate({**record().model_dump(), "unknown": 1})


def test_a_checkpoint_is_known_by_its_weights() -> None:
    files = {"generator.average.safetensors": "b" * 64, "generator.safetensors": "0" * 64}
    state = {"nimg": 64_000, "files": files, "configuration": {"precision": "fp32"}}
    assert checkpoint_record(state) == CheckpointRecord(nimg=64_000, sha256="b" * 64, precision="fp32")
    assert checkpoint_record({"nimg": 1, "files": {}, "configuration": {"precision": "bf16"}}).sha256 is None


def test_a_record_of_before_is_read_and_has_the_protocol_that_it_had() -> None:
    old = json.loads(record().model_dump_json())
    del old["data"]["replaced"], old["checkpoint"]["trained_on"]
    read = Record.model_validate(old)
    assert differences(read, record()) == {}
    assert protocol_of([read]) == protocol_of([record()])
    assert "data.replaced" not in protocol_of([read]), "numbers that were logged keep their series"


def test_the_sentence_says_what_is_corrupt() -> None:
    assert "corrupt" not in record().sentence()
    found = record(data=DATA.model_copy(update={"replaced": 3}), parameters={"inputs_replaced": 2}).sentence()
    assert "; 3 of the reals are corrupt, and others stand in their places; 2 of the inputs are corrupt, and" in found


def trained_on(digest: str | None, **changes: Any) -> str:
    return record(checkpoint=CheckpointRecord(nimg=0, trained_on=digest), **changes).sentence()


def test_the_sentence_says_whether_the_data_are_those_of_the_training() -> None:
    state = {"nimg": 1, "files": {}, "configuration": {"precision": "fp32"}, "data": "d" * 64}
    assert checkpoint_record(state).trained_on == "d" * 64
    assert checkpoint_record(state | {"data": None}).trained_on is None
    assert "trained on" not in trained_on(None) + trained_on("d" * 64, data=None)
    assert "; on the data it was trained on; " in trained_on("d" * 64)
    assert "; on other data than it was trained on; " in trained_on("e" * 64)
    streamed = DATA.model_copy(update={"digest": f"{'d' * 64} in 8 lanes"})
    assert "; on the data it was trained on; " in trained_on("d" * 64, data=streamed)


def test_of_a_translation_both_domains_are_those_of_the_training() -> None:
    def sentence(digest: str, source: str) -> str:
        to = DATA.model_copy(update={"domain": "b", "source": "a"})
        return trained_on(digest, data=to, parameters={"inputs": f"image.64 of {source}"})

    two = [["a", "e" * 64], ["b", "d" * 64]]
    for order in (two, two[::-1]):
        digest = hashlib.sha256(json.dumps(order, separators=(",", ":")).encode()).hexdigest()
        assert "; on the data it was trained on; " in sentence(digest, "e" * 64)
        assert "; on other data than it was trained on; " in sentence(digest, "f" * 64)
    assert "; on the data it was trained on; " in sentence("d" * 64, "d" * 64), "a set of pairs"
    assert "; on other data than it was trained on; " in sentence("d" * 64, "e" * 64)


def test_versions_of_what_is_installed() -> None:
    assert all(library_versions().values())


def test_a_protocol_as_text_is_equal_where_records_may_be_compared() -> None:
    other = record(value=1.0, seeds={"latents": 7}, data=DATA.model_copy(update={"name": "elsewhere"}))
    assert protocol_of([record()]) == protocol_of([other])
    found = protocol_of([record()])
    assert found["fakes"] == "50000" and found["data.digest"] == "d" * 64 and "metric" not in found
    fewer = protocol_of([record(fakes=10_000)])
    assert {key for key in found if found[key] != fewer.get(key)} == {"fakes"}


def test_directions_of_a_translation_stand_beside_each_other() -> None:
    there = record(data=DATA.model_copy(update={"domain": "b", "source": "a"}))
    back = record(data=DATA.model_copy(update={"domain": "a", "source": "b"}))
    found = protocols_of([there, back, record(name="fid")])
    assert set(found) == {"kid", "fid"}
    assert found["kid"]["data.domain"] == "b | a" and found["kid"]["fakes"] == "50000"


def test_a_record_says_what_computed() -> None:
    assert record(device=torch.device("cpu")).device == "cpu"
    state = {"nimg": 7, "files": {}, "configuration": {"precision": "bf16"}}
    assert checkpoint_record(state).precision == "fp32"


def test_a_number_that_is_missing_is_named_and_no_direction_stands_for_both() -> None:
    there = Result.of([Measured(record(name="fid", value=2.0, deviation=None)), LeftOut("kid", "too large")])
    back = Result.of([Measured(record(name="fid", value=4.0, deviation=None)), Measured(record(value=0.5))])
    both = of_directions({"a_to_b": there, "b_to_a": back})
    assert both.values == {
        "fid": 3.0,
        "fid/a_to_b": 2.0,
        "fid/b_to_a": 4.0,
        "kid/b_to_a": 0.5,
        "kid/b_to_a/deviation": 0.001,
    }
    assert both.not_finite == {"kid": "too large", "kid/a_to_b": "too large"}
    assert json.loads(both.as_json())["not_finite"] == both.not_finite
    assert [one.metric for one in both.records] == ["fid", "fid", "kid"]
