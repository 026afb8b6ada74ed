"""Processes tell each other what they are before they form a group; one says what does not fit, and all end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from hires_gan.training.greeting import Card, judge

PROGRAM = str(Path(__file__).resolve().parent / "claims.py")
CARD = Card("a", 0, 2, "cuda", 2, "gpu 0", "data parallel", {"torch": "2.11.0"})


# --- the judgement ----------------------------------------------------------------------------------------------------


def test_alike_processes_fit() -> None:
    assert judge([CARD, replace(CARD, local_rank=1, gpu="gpu 1")]).problem is None
    assert judge([CARD, replace(CARD, host="b")]).problem is None, "the same number on another machine"
    unknown = replace(CARD, gpu=None)
    assert judge([unknown, replace(unknown, local_rank=1)]).problem is None


def test_a_task_that_sees_its_own_gpu_alone_fits() -> None:
    """As a queue binds them: LOCAL_RANK goes on, and each task sees one GPU."""
    own = replace(CARD, gpus=1)
    assert judge([own, replace(own, local_rank=1, gpu="gpu 1")]).problem is None


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"host": "b", "device": "cpu", "gpus": 0, "gpu": None}, ["rank 1 on b has no GPU", "rank 0 on a has one"]),
        ({"host": "b", "versions": {"torch": "2.13.0"}}, ["rank 1 on b has torch 2.13.0", "rank 0 on a has 2.11.0"]),
        ({"host": "b", "versions": {}}, ["rank 1 on b has torch none"]),
        ({"local_rank": 2}, ["rank 0 and rank 1 on a", "LOCAL_RANK is 0 and 2", "torch sees 2"]),
        ({"host": "b", "summing": "DeepSpeed ZeRO-2"}, ["rank 1 on b", "DeepSpeed ZeRO-2", "rank 0 by data parallel"]),
        ({"host": "b", "size": 4}, ["rank 1 on b was told of 4 processes", "rank 0 of 2"]),
        ({"host": "b", "refusal": "no room"}, ["rank 1 on b: no room"]),
    ],
)
def test_what_does_not_fit_is_said_with_rank_and_host(claim: dict[str, Any], words: list[str]) -> None:
    verdict = judge([CARD, replace(CARD, **claim)])
    assert verdict.problem is not None
    assert verdict.usage
    for word in words:
        assert word in verdict.problem


def test_who_did_not_come_is_named() -> None:
    verdict = judge([CARD, None, CARD, None], 5)
    assert "rank 1, 3 of 4 did not come within 5 seconds" in (verdict.problem or "")
    assert not verdict.usage
    many = judge([CARD, *[None] * 20]).problem or ""
    assert "rank 1, 2, 3, 4, 5, 6, 7, 8 and 12 more of 21" in many


def test_the_first_one_says_its_own_reason_before_all_others() -> None:
    verdict = judge([replace(CARD, refusal="not here", usage=False), None])
    assert (verdict.problem, verdict.usage) == ("not here", False)


# --- processes --------------------------------------------------------------------------------------------------------


def pair(claims: dict[str, Any], port: int, timeout: float = 120) -> list[tuple[int, str]]:
    """Start two processes without a launcher; what each returned, and said on standard error."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, PROGRAM, json.dumps(claims), str(timeout)]
    processes = [
        subprocess.Popen(command, env=os.environ | place | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@contextmanager
def stranger() -> Iterator[int]:
    """A program that listens on a port, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_two_that_fit_form_a_group() -> None:
    for code, said in pair({}, free_port()):
        assert code == 0, said
        assert "sums to 3" in said


def test_two_that_do_not_fit_end_by_one_sentence() -> None:
    (code, said), (other, nothing) = pair({"1": {"host": "there", "versions": {"torch": "3"}}}, free_port())
    assert (code, other) == (2, 1)
    assert said.startswith("error: rank 1 on there has torch 3, and rank 0 on here has 2.11.0")
    assert nothing == ""


def test_a_port_in_use_is_named_and_nobody_waits_for_a_stranger() -> None:
    """The other one is taken in by the stranger, who accepts: torch would wait for ever."""
    with stranger() as port:
        (code, said), (other, short) = pair({}, port, timeout=5)
    assert (code, other) == (1, 1)
    assert f"error: port {port} of this machine, where the first process has to listen (127.0.0.1), is taken" in said
    assert "error:" not in short
    assert f"rank 1 ends too: it found no first process at 127.0.0.1:{port}" in short


@pytest.mark.slow
def test_one_that_does_not_come_is_named() -> None:
    (code, said), _ = pair({"1": "absent"}, free_port(), timeout=3)
    assert code == 1
    assert "error: rank 1 of 2 did not come within 3 seconds" in said


@pytest.mark.slow
def test_one_that_finds_no_first_one_ends_by_itself() -> None:
    _, (code, said) = pair({"0": "absent"}, free_port(), timeout=3)
    assert code == 1, said
    assert "rank 1 ends too: it found no first process" in said


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [["--standalone"], ["--master-port", "PORT"]])
def test_processes_that_are_started_again_meet_anew(rendezvous: list[str]) -> None:
    """The launcher keeps its store, with the addresses of those that have ended."""
    place = [str(free_port()) if word == "PORT" else word for word in rendezvous]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place, "--nproc-per-node", "2", "--max-restarts", "1"]
    ran = subprocess.run([*torchrun, PROGRAM, "{}"], capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("sums to 3") == 4
