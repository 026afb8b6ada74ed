"""The port for Prometheus by itself: what it answers, and what becomes of it."""

from __future__ import annotations

import errno
import math
import re
import socket
import struct
import threading
import urllib.error
from pathlib import Path

import pytest
from free_ports import free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from pydantic import ValidationError
from scraping import Scraped, answer, is_free, scrape

from hires_gan.errors import Failure
from hires_gan.tracking import exporter as module
from hires_gan.tracking.exporter import FAMILIES, Exporter
from hires_gan.tracking.settings import TrackingSettings

METRICS = {
    "loss/generator": 1.25,
    "loss/discriminator": -0.5,
    "statistics/augment_probability": 0.125,
    "evaluation/swd": 40.5,
    "evaluation/swd/16": 31.0,
    "schedule/learning_rate_generator": 0.001,
    "schedule/resolution": 64,
    "schedule/batch": 32,
    "speed/images_per_second": 78.5,
    "speed/data_wait": 0.25,
    "gradients/nonfinite": 3,
    "data/skipped": 2,
    "data/retries": 1,
    "ranks/slowest": 1,
    "ranks/slowest_seconds": 0.5,
    "ranks/median_seconds": 0.375,
    "memory/gpu/0": 2.0**33,
    "memory/gpu/1": 2.0**34,
    "something/else": 7.0,
}


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def exporter(port):
    with Exporter("127.0.0.1", port, "faces") as opened:
        yield opened


def test_an_answer_is_what_was_handed_over(exporter, port):
    exporter.log_metrics(METRICS)
    exporter.follow(lambda: {"progress/kimg": 1.5, "checkpoint/age": 12.5}, {"recipe": "stylegan2"})
    found = scrape(port, "faces")
    run = ("run", "faces")
    assert found.samples == {
        (f"hires_gan_{name}", frozenset({run, *labels.items()})): value
        for name, labels, value in (
            ("run_info", {"recipe": "stylegan2"}, 1),
            ("kimg", {}, 1.5),
            ("checkpoint_age_seconds", {}, 12.5),
            ("loss", {"name": "generator"}, 1.25),
            ("loss", {"name": "discriminator"}, -0.5),
            ("statistic", {"name": "augment_probability"}, 0.125),
            ("evaluation", {"name": "swd"}, 40.5),
            ("evaluation", {"name": "swd/16"}, 31.0),
            ("learning_rate", {"player": "generator"}, 0.001),
            ("resolution", {}, 64),
            ("batch_size", {}, 32),
            ("images_per_second", {}, 78.5),
            ("data_wait_ratio", {}, 0.25),
            ("nonfinite_gradient_entries", {}, 3),
            ("skipped_samples", {}, 2),
            ("read_retries", {}, 1),
            ("slowest_rank", {}, 1),
            ("slowest_rank_step_seconds", {}, 0.5),
            ("median_rank_step_seconds", {}, 0.375),
            ("gpu_memory_bytes", {"rank": "0"}, 2.0**33),
            ("gpu_memory_bytes", {"rank": "1"}, 2.0**34),
        )
    }
    assert set(found.types.values()) == {"gauge"}


def test_before_anything_is_known_there_is_the_name_of_the_run(port, exporter):
    assert list(scrape(port, "faces").samples) == [("hires_gan_run_info", frozenset({("run", "faces")}))]


def test_names_are_those_of_prometheus():
    names = [family.name for family in FAMILIES.values()]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z_]*[a-z]", name)] == []
    assert [name for name in names if name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))] == []
    assert all(family.help.endswith(".") for family in FAMILIES.values())


def test_the_guide_explains_every_metric():
    page = (Path(__file__).resolve().parent.parent.parent / "docs" / "using.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `hires_gan_")]
    explained = [name for row in rows for name in re.findall(r"`(hires_gan_\w+)", row)]
    assert sorted(explained) == sorted(["hires_gan_run_info", *(f"hires_gan_{one.name}" for one in FAMILIES.values())])
    labelled = dict(re.findall(r"`hires_gan_(\w+)\{(\w+)\}`", "".join(rows)))
    assert labelled == {one.name: one.label for one in FAMILIES.values() if one.label}
    assert set(re.findall(r"hires_gan_\w+", page)) == set(explained), "examples name what there is"


def test_values_that_are_no_numbers_arrive_as_they_are(exporter, port):
    exporter.log_metrics({"loss/generator": math.nan, "loss/discriminator": math.inf})
    losses = scrape(port, "faces").all("loss", "name")
    assert math.isnan(losses["generator"])
    assert losses["discriminator"] == math.inf


def test_what_was_logged_stays_until_it_is_logged_anew(exporter, port):
    exporter.log_metrics({"evaluation/swd": 50.0, "loss/generator": 1.0})
    exporter.log_metrics({"loss/generator": 2.0})
    found = scrape(port, "faces")
    assert (found.get("evaluation", name="swd"), found.get("loss", name="generator")) == (50.0, 2.0)


def test_what_is_wanted_fresh_is_asked_for_at_every_scrape(exporter, port):
    numbers = iter(range(10))
    exporter.follow(lambda: {"progress/kimg": next(numbers)}, {})
    assert [scrape(port, "faces").get("kimg") for _ in range(3)] == [0, 1, 2]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' "\\\n{},='), min_size=1, max_size=12),
        st.floats(allow_nan=False),
        max_size=5,
    )
)
def test_any_name_and_any_value_arrive(port, exporter, losses):
    exporter.follow(lambda: {f"loss/{name}": value for name, value in losses.items()}, {})
    assert scrape(port, "faces").all("loss", "name") == losses


def test_prometheus_own_format_is_spoken_too(exporter, port):
    exporter.log_metrics(METRICS)
    text = answer(port, "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in openmetrics(text)
        for sample in family.samples
    }
    assert samples == scrape(port, "faces").samples


def test_values_change_while_they_are_read(exporter, port):
    """An answer is of one log, never of two."""
    done = threading.Event()

    def log() -> None:
        number = 0
        while not done.is_set():
            number += 1
            exporter.log_metrics({"loss/generator": number, "loss/discriminator": -number})

    logging = threading.Thread(target=log)
    logging.start()
    try:
        for _ in range(20):
            losses = scrape(port, "faces").all("loss", "name")
            assert sum(losses.values()) == 0
    finally:
        done.set()
        logging.join()


# --- the port ---------------------------------------------------------------------------------------------------------


def test_it_says_where_it_is(exporter, port, capfd):
    with Exporter("127.0.0.1", free_port(), "other") as other:
        assert other is not exporter
    assert re.search(r"metrics for Prometheus at http://127\.0\.0\.1:\d+/metrics", capfd.readouterr().err)


def test_of_all_addresses_the_name_of_the_machine_is_said(port, monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "node-7")
    assert module._reached_at("0.0.0.0") == module._reached_at("::") == "node-7"
    assert module._reached_at("fd00::1") == "[fd00::1]"


def test_the_port_is_free_behind_it_and_at_once(port):
    for number in range(3):
        with Exporter("127.0.0.1", port, f"run{number}"):
            assert not is_free(port)
            assert scrape(port, f"run{number}").get("run_info") == 1
        assert is_free(port)


def test_two_know_nothing_of_each_other(exporter, port):
    exporter.log_metrics({"speed/images_per_second": 1})
    second = free_port()
    with Exporter("127.0.0.1", second, "other") as other:
        other.log_metrics({"speed/images_per_second": 2})
        assert scrape(port, "faces").get("images_per_second") == 1
        assert scrape(second, "other").get("images_per_second") == 2
    assert scrape(port, "faces").get("images_per_second") == 1


def test_a_port_in_use_is_named_with_the_remedy(exporter, port):
    with pytest.raises(Failure) as failed:
        Exporter("127.0.0.1", port, "second")
    assert str(failed.value) == (
        f"tracking.metrics_port is {port}, but another program, or another run, listens there already on 127.0.0.1: "
        "take another port, or null for no metrics"
    )
    assert scrape(port, "faces").get("run_info") == 1


@pytest.mark.parametrize("address", ["no such name.invalid", "203.0.113.7"])
def test_an_address_of_another_machine_is_named_with_the_remedy(address, port):
    with pytest.raises(Failure, match=rf"^tracking\.metrics_address is '{re.escape(address)}'.*take 0\.0\.0\.0"):
        Exporter(address, port, "run")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "tracking.metrics_port is 80, which this user may not listen on: take one from 1024 to 65535"),
        (errno.EMFILE, "(Too many open files): take others, or null as the port for no metrics"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(number, words, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(number, "Too many open files")

    monkeypatch.setattr(module, "_Server", refused)
    with pytest.raises(Failure) as failed:
        Exporter("127.0.0.1", 80, "run")
    assert words in str(failed.value)


def test_clients_that_break_off_leave_no_word_and_stop_nobody(exporter, port, capfd):
    for sent in (b"", b"GET /metr", b"\x16\x03\x01\x02\x00\xff\r\n\r\n"):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(sent)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, as by a time-out
        client.close()
    silent = socket.create_connection(("127.0.0.1", port))
    assert scrape(port, "faces").get("run_info") == 1
    exporter.close()
    assert is_free(port)
    silent.close()
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(20)
    assert "Traceback" not in capfd.readouterr().err


def test_a_fault_in_an_answer_is_the_askers(exporter, port, capfd):
    def broken() -> dict[str, float]:
        raise ZeroDivisionError

    exporter.follow(broken, {})
    with pytest.raises(urllib.error.HTTPError, match="500"):
        answer(port)
    assert "ZeroDivisionError" in capfd.readouterr().err
    exporter.follow(lambda: {"progress/kimg": 1}, {})
    assert scrape(port, "faces").get("kimg") == 1


@pytest.mark.parametrize("port", [0, -1, 65536, "http"])
def test_no_such_port(port):
    with pytest.raises(ValidationError):
        TrackingSettings(metrics_port=port)


def test_nothing_is_open_unless_asked_for():
    assert TrackingSettings().metrics_port is None
    with pytest.raises(ValidationError):
        TrackingSettings(metrics_address="")


def test_samples_that_stand_twice_are_seen():
    with pytest.raises(AssertionError, match="twice"):
        Scraped("# TYPE a gauge\na 1\na 2\n", "faces")
