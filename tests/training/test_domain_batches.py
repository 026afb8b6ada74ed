"""Batches of several domains on their way to the networks, and runs whose data are of another kind than the recipe."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backends import CPU, Toy, record_gradients
from torch import Tensor, nn

from hires_gan.config import Configuration, load_configuration, to_yaml
from hires_gan.data.loader import Loaded
from hires_gan.data.manifest import Manifest
from hires_gan.data.shards import ShardSet
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest
from hires_gan.errors import UsageError
from hires_gan.recipes.protocol import Batch, Step
from hires_gan.training.backends import Backend
from hires_gan.training.feed import Feed
from hires_gan.training.run import train


def numbered(domains: tuple[str, ...], n: int) -> Tensor:
    """uint8 `[k * n, 3, 4, 4]`, channels_last: image number i is all i."""
    images = torch.arange(len(domains) * n, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    return images.contiguous(memory_format=torch.channels_last)


def values(images: Tensor) -> list[float]:
    return images[:, 0, 0, 0].tolist()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_counts_samples_and_gives_each_domain() -> None:
    batch = Batch(numbered(("a", "b", "c"), 4), None, ("a", "b", "c"))
    assert len(batch) == 4
    assert values(batch.domain("a")) == [0, 1, 2, 3]
    assert values(batch.domain("c")) == [8, 9, 10, 11]
    assert batch.domain("b").data_ptr() == batch.images[4:].data_ptr(), "a view"
    with pytest.raises(ValueError, match=r"domain is 'd'; this batch has a, b, c"):
        batch.domain("d")


def test_a_part_of_a_batch_has_its_samples_in_every_domain() -> None:
    batch = Batch(numbered(("a", "b"), 5), None, ("a", "b"))
    for part, a in ((slice(0, 2), [0, 1]), (slice(2, 4), [2, 3]), (slice(4, 6), [4]), (slice(0, 5), [0, 1, 2, 3, 4])):
        some = batch.part(part)
        assert (some.domains, len(some)) == (("a", "b"), len(a))
        assert values(some.images) == [*a, *(5 + number for number in a)]
        assert some.images.is_contiguous(memory_format=torch.channels_last)


def test_plain_images_are_one_domain_and_their_parts_copy_nothing() -> None:
    batch = Batch(numbered(("image",), 6), torch.arange(6))
    assert (len(batch), values(batch.domain("image"))) == (6, [0, 1, 2, 3, 4, 5])
    part = batch.part(slice(2, 5))
    assert part.labels is not None
    assert (values(part.images), part.labels.tolist()) == ([2, 3, 4], [2, 3, 4])
    assert part.images.data_ptr() == batch.images[2:].data_ptr()


def test_the_feed_hands_the_domains_on() -> None:
    def loaded() -> Iterator[Loaded]:
        yield Loaded(range(2), ("a", "b"), numbered(("a", "b"), 2), None)
        yield Loaded(range(2, 6), ("image",), numbered(("image",), 4), torch.tensor([0, 1, 2, 3]))

    feed = Feed(loaded(), CPU, torch.float64)
    pairs, plain = feed.take(), feed.take()
    assert (pairs.domains, len(pairs), pairs.labels) == (("a", "b"), 2, None)
    assert (pairs.domain("b")[:, 0, 0, 0] == torch.tensor([2, 3]).double() / 127.5 - 1).all()
    assert plain.labels is not None
    assert (plain.domains, len(plain), plain.labels.tolist()) == (("image",), 4, [0, 1, 2, 3])


# --- steps ------------------------------------------------------------------------------------------------------------


def between(module: nn.Module, step: Step) -> Tensor:
    """One loss per sample, of both of its images."""
    a, b = (step.batch.domain(name).mean((1, 2, 3)) for name in ("a", "b"))
    assert len(a) == len(step.random.samples)
    used: Tensor = module["used"]  # type: ignore[index]
    return used[0] * a * b + used[1].square() * (a - 2 * b)


@pytest.mark.parametrize("micro", [1, 2, 3, 5])
def test_micro_batches_of_several_domains_keep_the_images_of_a_sample_together(micro: int) -> None:
    toy = Toy({"left": between})
    backend = Backend(toy, CPU, seed=0)
    backend.enter(toy.stages[0])
    gradients = record_gradients(backend)
    batch = Batch(numbered(("a", "b"), 5).double(), None, ("a", "b"))
    means = backend.step(toy.phases(0), batch, 1000, micro)
    pairs = [(float(number), float(number + 5)) for number in range(5)]
    assert float(means["loss/left"]) == pytest.approx(sum(a * b + 4 * (a - 2 * b) for a, b in pairs) / 5, rel=1e-14)
    expected = [sum(a * b for a, b in pairs) / 5, sum(4 * (a - 2 * b) for a, b in pairs) / 5]
    assert gradients["left.used"].tolist() == pytest.approx(expected, rel=1e-14)
    assert [number for _, numbers in toy.samples for number in numbers] == [1000, 1001, 1002, 1003, 1004]


# --- runs and configurations ------------------------------------------------------------------------------------------


def run(settings: dict[str, Any], data: dict[str, Any]) -> bool:
    changed = copy.deepcopy(settings)
    changed["data"] = {"workers": 0} | data
    configuration = Configuration.model_validate(changed)
    return train(configuration, to_yaml(configuration))


def as_pairs(shards: Path, folder: Path) -> Path:
    """The images of a set, each twice, as pairs."""
    folder.mkdir()
    plain = ShardSet(shards)
    with ShardWriter(folder, 0, ("photo", "map"), labelled=False, first_row=0) as writer:
        for row in range(len(plain)):
            image = Encoded("png", plain.read(row))
            writer.write({"photo": image, "map": image}, None)
        entry = writer.finish()
    manifest = Manifest(
        resolution=plain.resolution, count=len(plain), columns=("photo", "map"), filter="box", shards=(entry,)
    )
    write_manifest(folder, manifest)
    return folder


def test_a_recipe_for_plain_images_refuses_domains(
    settings: dict[str, Any], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = {"domains": {"summer": str(shards), "winter": "demo:photographs"}}
    named = "recipe progressive trains on plain images, but the data have the domains {}: name one shard set of plain"
    with pytest.raises(UsageError, match=named.format("summer, winter")):
        run(settings, data)
    with pytest.raises(UsageError, match=named.format("photo, map")):
        run(settings, {"shards": str(as_pairs(shards, tmp_path / "pairs"))})
    assert not (tmp_path / "runs" / "small").exists()


CONFIGURATION = """
run: {name: first, total_kimg: 100}
data: {domains: {zebra: /data/z, horse: /data/h}}
recipe: {name: progressive, resolution: 64}
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(CONFIGURATION)
    return tmp_path / "a.yaml"


def test_domains_keep_their_order_and_can_be_overridden_one_by_one(written: Path, tmp_path: Path) -> None:
    """Their order is that of the batch, and part of what a checkpoint insists on."""
    loaded = load_configuration(written, ["data.domains.zebra=/other", "data.domains.horse=123"])
    assert list((loaded.data.domains or {}).items()) == [("zebra", "/other"), ("horse", "123")]
    (tmp_path / "resolved.yaml").write_text(to_yaml(loaded))
    again = load_configuration(tmp_path / "resolved.yaml")
    assert again == loaded
    assert list(again.data.domains or {}) == ["zebra", "horse"]
    plain = load_configuration(written, ["data.domains=null", "data.shards=/plain"])
    assert (plain.data.shards, plain.data.domains) == ("/plain", None)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.shards=/plain", "data: both shards and domains are given; exactly one of them is needed"),
        ("data.domains={a: x}", "data.domains: 1 given, and two or more are needed"),
        ("data.domains.a-b=x", "data.domains: 'a-b' is no name of a domain; letters, digits and underscores are allow"),
        ("data.domains.cow=", "data.domains.cow is null; allowed: text that is not empty"),
    ],
)
def test_wrong_domains_have_their_sentence(written: Path, override: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_configuration(written, [override])
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(f"(override {override})")
