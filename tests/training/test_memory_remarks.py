"""What dry steps leave out is told; what is no longer known is measured again; and whose memory it is tells."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_memory_before import SimulatedCard, asked, dry_run, folder_of

from hires_gan.errors import Failure
from hires_gan.ops import selection
from hires_gan.progress import console
from hires_gan.training import memory, memory_check
from hires_gan.training.backends import Backend
from hires_gan.training.levers import Levers, pulled
from hires_gan.training.memory import StageMemory
from hires_gan.training.memory_advice import table
from hires_gan.training.memory_check import (
    FILE,
    Asked,
    check_memory,
    out_of_memory,
    show_known,
    telling_too_little,
)

COMPILING = "measured op by op: compiling is left out"
DIVIDED = "each process is taken to hold all optimizers' state, which DeepSpeed divides among them"


def measured(settings: dict[str, Any]) -> StageMemory:
    dry, stages = dry_run(settings, SimulatedCard(1000))
    with dry:
        return dry.measure(stages[0], 16, [4, 8])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(memory_check, "QUICK", ("cpu",))


# What is left out


@pytest.mark.parametrize(
    ("blocks", "remark"),
    [
        ({}, ""),
        ({"levers": {"compile": "none"}}, ""),
        ({"levers": {"compile": "main"}}, COMPILING),
        ({"backend": {"name": "deepspeed"}}, DIVIDED),
        ({"backend": {"name": "deepspeed"}, "levers": {"compile": "all"}}, f"{COMPILING}; {DIVIDED}"),
    ],
)
def test_what_is_left_out_is_told_below_the_figures(blocks, remark, settings):
    found = measured(settings | blocks)
    assert found.remark == remark
    assert (table(found)[-1] == f"({remark})") == bool(remark)


def test_deepspeed_has_no_graphs_in_a_dry_step_either(settings, monkeypatch):
    seen = list[Levers]()

    def made(*arguments: Any, levers: Levers) -> Backend:
        seen.append(levers)
        return Backend(*arguments, levers=levers)

    monkeypatch.setattr(memory, "Backend", made)
    measured(settings | {"performance": "fast"})
    measured(settings | {"performance": "fast", "backend": {"name": "deepspeed"}, "levers": {"graphs": True}})
    assert [pulled(levers, "fast", "cuda").graphs for levers in seen] == [True, False]


def test_figures_with_deepspeed_are_not_those_without(settings):
    divided = settings | {"backend": {"name": "deepspeed"}}
    assert asked(settings).key() != asked(divided).key()
    assert asked(settings).key() == asked(settings | {"backend": {"name": "single"}}).key()


@pytest.mark.slow
def test_a_run_says_once_what_its_figures_lack(settings, as_on_a_gpu, capfd):
    check_memory(asked(settings | {"levers": {"compile": "all"}}), None, ("image",))
    said = capfd.readouterr().err
    assert said.count("memory at ") == 2 and said.count("of these figures: ") == said.count(COMPILING) == 1
    check_memory(asked(settings), None, ("image",))
    assert "of these figures" not in capfd.readouterr().err


def test_what_cannot_be_recorded_is_a_remark_and_not_said_in_every_dry_step(settings, monkeypatch, capfd):
    step = Backend.step

    def refusing(backend: Backend, *arguments: Any) -> Any:
        if not backend.remarks:
            backend._recorder.refuse("generator phase", "it reads a value")
        return step(backend, *arguments)

    monkeypatch.setattr(Backend, "step", refusing)
    found = measured(settings)
    assert found.remark.startswith("no CUDA graphs: the generator phase cannot be recorded")
    assert found.remark.count("it reads a value") == 1
    assert capfd.readouterr().err == "" and not console.quiet


def test_a_lack_of_memory_leaves_nobody_quiet(settings, monkeypatch):
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Backend, "step", full)
    found = measured(settings)
    assert [one.failed for one in found.measured] == ["discriminator"] * 2 and not console.quiet


# What is kept


def test_figures_are_of_one_code_and_of_what_computes_the_ops(settings, monkeypatch):
    key = asked(settings).key()
    with selection.backend("native"):
        assert asked(settings).key() != key
    monkeypatch.setattr(memory_check, "_code", lambda: "another")
    assert asked(settings).key() != key


@pytest.mark.slow
def test_a_stage_that_a_file_has_without_the_micro_batch_is_measured_again(settings, as_on_a_gpu, capfd):
    wanted = asked(settings)
    check_memory(wanted, None, ("image",))
    path = folder_of(settings) / FILE
    kept = json.loads(path.read_text())
    first, last = kept[wanted.key()]
    for one in first["measured"]:
        one["micro"] = 3
    path.write_text(json.dumps(kept))
    capfd.readouterr()
    check_memory(wanted, None, ("image",))
    said = capfd.readouterr().err
    assert said.count("memory at ") == 2
    assert re.search(rf"memory at {first['resolution']}x.* measured by dry steps", said)
    assert re.search(rf"memory at {last['resolution']}x.* as measured before", said)
    again = json.loads(path.read_text())[wanted.key()]
    assert [one["micro"] for one in again[0]["measured"]] == [8] and again[1]["measured"] == last["measured"]


# In the middle of a run


def running(own: Asked, nimg: int) -> Any:
    """As much of a trainer as is asked about its memory."""
    return SimpleNamespace(
        plan=own.plan,
        recipe=own.recipe,
        world=own.world,
        backend=SimpleNamespace(device=own.world.device),
        folder=SimpleNamespace(path=own.folder, config=own.folder / "config.yaml"),
        progress=SimpleNamespace(nimg=nimg),
    )


def test_where_nothing_was_measured_it_is_said_what_measures(settings, capfd):
    own = asked(settings)
    show_known(running(own, 480))
    said = capfd.readouterr().err
    assert said.startswith(
        f"`hires-gan bench memory --config {own.folder / 'config.yaml'} --stage-nimg 480` measures what each phase"
    )
    assert str(out_of_memory(running(own, 480), MemoryError())).startswith(
        "out of memory at 16x16 with 8 images at once: set"
    )


def test_a_share_below_the_micro_batch_is_what_was_too_much(settings):
    """Four processes have four images each, all at once, however many more `batch.per_device` allows."""
    own = asked(settings, world=SimpleNamespace(device=torch.device("cpu"), rank=0, size=4))  # type: ignore[arg-type]
    told = str(out_of_memory(running(own, 480), MemoryError()))
    assert "with 4 images at once" in told and "batch.per_device" not in told


# Whose memory


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"])
def test_what_is_another_error(words):
    with pytest.raises(RuntimeError, match=words), telling_too_little():
        raise RuntimeError(words)


def test_a_rank_that_has_too_little_speaks(monkeypatch):
    monkeypatch.setattr(console, "quiet", True)  # as on all processes but the first
    with pytest.raises(Failure, match="out of memory before the first step"), telling_too_little():
        raise RuntimeError("CUDA error: out of memory")
    assert not console.quiet
