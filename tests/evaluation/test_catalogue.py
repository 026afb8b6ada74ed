"""The list of metrics: whole, readable by people, and clear about what is not in it."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.errors import UsageError
from hires_gan.evaluation.catalogue import (
    METRICS,
    MetricName,
    Need,
    caution,
    check_count,
    is_better,
    parse_metrics,
)


def test_every_name_has_its_entry_and_every_entry_its_name() -> None:
    assert list(METRICS) == list(get_args(MetricName))
    assert all(name == metric.name for name, metric in METRICS.items())
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)


def test_which_way_is_better_and_what_is_needed() -> None:
    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}
    assert higher == {
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score",
        "lpips_diversity_munit",
        "lpips_diversity_stargan2",
    }
    of_features = {name for name, metric in METRICS.items() if metric.need is Need.FEATURES}
    assert of_features == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert is_better("fid", 3.0, than=4.0) and not is_better("fid", 4.0, than=4.0)
    assert is_better("recall", 0.5, than=0.4) and not is_better("recall", 0.3, than=0.4)
    assert not is_better("fid", math.nan, than=4.0) and not is_better("recall", math.nan, than=0.4)


def test_a_list_is_read_in_its_order() -> None:
    assert parse_metrics("kid, fid ,swd") == ("kid", "fid", "swd")


@given(st.lists(st.sampled_from(list(METRICS)), min_size=1, unique=True))
def test_any_list_of_known_names_reads_back(names: list[str]) -> None:
    assert parse_metrics(",".join(names)) == tuple(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fdi", "--metrics: there is no metric 'fdi'; did you mean fid?; there are swd, fid, kid"),
        ("FID", "did you mean fid?"),
        ("ppl-w-full", "did you mean ppl_w_full?"),
        ("fid,,kid", "--metrics: a name is missing; there are swd"),
        ("", "--metrics: a name is missing"),
        ("lpips_diversity", "did you mean lpips_diversity_munit?"),
        ("zzz", "--metrics: there is no metric 'zzz'; there are swd"),
        ("fid,kid,fid", "--metrics names fid 2 times; name it once"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_metrics(text)
    assert message in str(error.value)


def test_few_images_are_named_with_what_they_do() -> None:
    assert caution("fid", 10_000) is None
    assert caution("fid", 2000) == (
        "fid from 2,000 images, fewer than 10,000: the fewer the images, the larger it is: below some 10,000 it is "
        "biased upwards; KID is not"
    )
    assert "no bias" in str(caution("kid", 10))
    with pytest.raises(
        UsageError, match="fid cannot be computed from 1 fakes: it takes 2 at least, and 10,000 to mean"
    ):
        check_count("fid", 1, "fakes")
    check_count("fid", 2, "fakes")
