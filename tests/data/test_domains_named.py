"""What the block `data` names: which sets, pairs and domains there can be, and what identifies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from domain_sets import FILES, LEFT, PAIRS, RIGHT, SIDE, loader_of
from input_definition import noise_files, write_columns, write_shards

from hires_gan.data.domains import Domains, in_one_set, open_data
from hires_gan.data.loader import Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

pytestmark = pytest.mark.usefixtures("fresh_server")


def test_the_digest_is_the_manifests_and_of_several_their_names_order_and_digests(kinds, tmp_path):
    plain, unpaired = (open_data(DataSettings(**kinds[kind])) for kind in ("plain", "unpaired"))
    assert plain.digest() == plain.sources[0].shards.manifest.digest()
    where = kinds["unpaired"]["domains"]
    copy = write_shards(tmp_path / "elsewhere", FILES["rain"], SIDE, per_shard=5)
    digests = {
        "moved": where | {"rain": str(copy)},
        "renamed": {"sol": where["sun"], "rain": where["rain"], "snow": where["snow"]},
        "turned": {name: where[name] for name in ("rain", "sun", "snow")},
        "fewer": {name: where[name] for name in ("sun", "rain")},
        "swapped": {"sun": where["rain"], "rain": where["sun"], "snow": where["snow"]},
    }
    found = {name: open_data(DataSettings(domains=domains)).digest() for name, domains in digests.items()}
    assert found.pop("moved") == unpaired.digest()
    assert len({*found.values(), unpaired.digest(), plain.digest()}) == 6


def test_the_smallest_domain_must_do(tmp_path):
    write_shards(tmp_path / "a", noise_files(2, 32), 32)
    write_shards(tmp_path / "b", noise_files(3, 16), 16)
    data = open_data(DataSettings(domains={"cats": str(tmp_path / "a"), "dogs": str(tmp_path / "b")}))
    data.check_resolution(16)
    named = rf"recipe\.resolution is 32, but the images of domain dogs in {tmp_path}/b have 16; prepare them again at -"
    with pytest.raises(UsageError, match=named):
        data.check_resolution(32)
    pairs = in_one_set(ShardSet(write_columns(tmp_path / "p", {"x": LEFT, "y": RIGHT}, SIDE)))
    assert pairs.names == ("x", "y")
    with pytest.raises(UsageError, match=rf"the images of domains x and y in {tmp_path}/p have 16"):
        pairs.check_resolution(32)
    with pytest.raises(UsageError, match=rf"the images in {tmp_path}/b have 16"):
        in_one_set(ShardSet(tmp_path / "b")).check_resolution(32)


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        open_data(DataSettings(**data))
    return str(caught.value)


def test_domains_that_cannot_be_opened_are_named(kinds, tmp_path):
    where = kinds["unpaired"]["domains"]
    missing = refused({"domains": {"a": where["sun"], "b": str(tmp_path / "nowhere")}})
    assert missing.startswith(f"data.domains.b: there is no shard folder {tmp_path}/nowhere: make it with")
    (tmp_path / "empty").mkdir()
    empty = refused({"domains": {"a": str(tmp_path / "empty"), "b": where["sun"]}})
    assert empty.startswith(f"data.domains.a: {tmp_path}/empty is no finished shard set")
    broken = write_shards(tmp_path / "broken", LEFT, SIDE)
    (broken / "manifest.json").write_text("{}")
    with pytest.raises(Failure, match=r"^data\.domains\.b: .*is not the manifest of a shard set") as caught:
        open_data(DataSettings(domains={"a": where["sun"], "b": str(broken)}))
    assert not isinstance(caught.value, UsageError)


def test_one_set_for_two_domains_is_refused_also_as_a_copy(kinds, tmp_path):
    where = kinds["unpaired"]["domains"]
    copy = write_shards(tmp_path / "copy", FILES["sun"], SIDE, per_shard=5)
    for other in (where["sun"], str(copy)):
        said = refused({"domains": {"a": where["sun"], "b": where["rain"], "c": other}})
        assert said.startswith(f"data.domains.a and data.domains.c hold the same images ({where['sun']} and {other}): ")
        assert "--pair" in said


def test_a_set_of_pairs_is_no_single_domain(kinds):
    where, pairs = kinds["unpaired"]["domains"], kinds["pairs"]["shards"]
    said = refused({"domains": {"a": where["sun"], "b": pairs}})
    assert said.startswith(
        f"data.domains.b is {pairs}, which has the domains left, right itself: such a set is given wh"
    )


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "neither shards nor domains is given; exactly one of them is needed"),
        ({"shards": "x", "domains": {"a": "x", "b": "y"}}, "both shards and domains are given; exactly one of them"),
        ({"domains": {"a": "x"}}, "1 given, and two or more are needed, such as"),
        ({"domains": {}}, "0 given, and two or more are needed"),
        (
            {"domains": {"a": "x", "1b": "y"}},
            "'1b' is no name of a domain; letters, digits and underscores are allowed",
        ),
        ({"domains": {"a": "x", "b-c": "y"}}, "'b-c' is no name of a domain"),
        ({"domains": {"a": "x", "": "y"}}, "'' is no name of a domain"),
        ({"domains": {"a": "x", "ä": "y"}}, "'ä' is no name of a domain"),
        ({"domains": {"a": "x", "b": ""}}, "at least 1 character"),
        ({"domains": "x"}, "valid dictionary"),
    ],
)
def test_data_blocks_that_cannot_be(data, named):
    with pytest.raises(ValueError, match=named):
        DataSettings(**data)


def test_labels_are_for_plain_images_alone(tmp_path):
    labelled = write_shards(tmp_path / "a", LEFT, SIDE, labels=[row % 3 for row in range(PAIRS)])
    other = write_shards(tmp_path / "b", RIGHT, SIDE, labels=[0] * PAIRS)
    pairs = write_columns(tmp_path / "p", {"x": LEFT, "y": RIGHT}, SIDE, labels=[1] * PAIRS)
    for data, has in (
        ({"shards": str(labelled)}, True),
        ({"shards": str(pairs)}, False),
        ({"domains": {"a": str(labelled), "b": str(other)}}, False),
    ):
        with loader_of(data, workers=0) as loader:
            batch = next(loader.batches(iter([Request(range(5), SIDE)])))
            assert (batch.labels is not None) == has
    np.full(10, 3, "<i4").tofile(labelled / "shard-000000.labels")
    with (
        loader_of({"shards": str(labelled)}, workers=0) as loader,
        pytest.raises(Failure, match=r"shard-000000\.labels holds labels from 3 to 3, the manifest names 3 classes"),
    ):
        next(loader.batches(iter([Request(range(PAIRS), SIDE)])))


def test_plain_images_are_the_domain_image(kinds):
    data = open_data(DataSettings(**kinds["plain"]))
    assert isinstance(data, Domains)
    assert (data.names, data.is_plain, data.location) == (("image",), True, kinds["plain"]["shards"])
