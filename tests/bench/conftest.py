"""A machine on which the rows of `bench levers` are answered for, and none is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from hires_gan.bench.children import Ended

Answer = Callable[[list[str]], Ended]


@pytest.fixture
def a_commit(monkeypatch):
    """Where the tests run in a copy without its checkout; and the code stays as it is, whoever edits it meanwhile."""
    monkeypatch.setenv("HIRES_GAN_COMMIT", "3f2a")
    for place in ("identity", "levers"):
        monkeypatch.setattr(f"hires_gan.bench.{place}.code_digest", lambda: "c0de")


@pytest.fixture
def answering(monkeypatch) -> Callable[[Answer], list[list[str]]]:
    """No process is started: a function answers, and the arguments are kept."""

    def install(answer: Answer) -> list[list[str]]:
        calls: list[list[str]] = []

        def called(arguments: Sequence[object], seconds: float, environment: Mapping[str, str]) -> Ended:
            calls.append([str(argument) for argument in arguments])
            return answer(calls[-1])

        monkeypatch.setattr("hires_gan.bench.levers.call", called)
        return calls

    return install


@pytest.fixture
def with_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
