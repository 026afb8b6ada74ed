"""Which implementation runs: the choice, its reasons in words, and what happens where the libraries are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ops_matrix import drawn

from hires_gan.errors import Failure
from hires_gan.ops import backend, bias_act, epilogue, native, selection, upfirdn2d

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def choice_restored() -> Iterator[None]:
    """The choice for the whole process goes back to what it is when nobody chooses."""
    yield
    selection.choose("auto", require_native=False, device=CPU)


@pytest.fixture
def no_libraries(monkeypatch) -> None:
    monkeypatch.setattr(native, "available", lambda device_type: False)
    monkeypatch.setattr(native, "why_not", lambda device_type: "it was not built: HIRES_GAN_BUILD was none")


def test_auto_on_the_cpu_is_the_reference():
    assert selection.resolve(CPU) == "reference"
    with backend("auto"):
        assert selection.resolve(CPU) == "reference"


def test_auto_on_cuda_is_native_where_the_library_is_loaded(monkeypatch):
    """Resolving touches no device: this runs where there is none."""
    for loaded, expected in ((True, "native"), (False, "reference")):
        monkeypatch.setattr(native, "available", lambda device_type, loaded=loaded: loaded)
        assert selection.resolve(torch.device("cuda")) == expected
        assert selection.resolve(torch.device("cuda", 0)) == expected


def test_blocks_nest(native_cpu):
    assert selection.resolve(CPU) == "native"
    with backend("reference"):
        assert selection.resolve(CPU) == "reference"
        with backend("native"):
            assert selection.resolve(CPU) == "native"
            with backend("auto"):
                assert selection.resolve(CPU) == "reference"
            assert selection.resolve(CPU) == "native"
        assert selection.resolve(CPU) == "reference"
    assert selection.resolve(CPU) == "native"


def test_an_exception_restores_the_choice(native_cpu):
    with pytest.raises(KeyError, match="inside"), backend("reference"):
        raise KeyError("inside")
    assert selection.resolve(CPU) == "native"


def test_the_choice_of_the_process_holds(native_cpu):
    done = fresh(
        "from hires_gan.ops import selection, backend; import torch; cpu = torch.device('cpu')\n"
        "selection.choose('native', require_native=False, device=cpu)\n"
        "assert selection.resolve(cpu) == 'native'\n"
        "with backend('reference'): assert selection.resolve(cpu) == 'reference'\n"
        "assert selection.resolve(cpu) == 'native'\n"
        "selection.choose('reference', require_native=False, device=cpu)\n"
        "assert selection.resolve(cpu) == 'reference'\n"
    )
    assert done.returncode == 0, done.stderr


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("name", ["Native", "cuda", "", "fastest"])
def test_an_unknown_name_is_refused(name):
    for use in (lambda: backend(name).__enter__(), lambda: selection.choose(name, require_native=False, device=CPU)):
        with pytest.raises(ValueError, match="auto.*native.*reference|native.*reference.*auto") as caught:
            use()
        assert repr(name) in str(caught.value) or f"{name}," in str(caught.value)
    assert selection.resolve(CPU) == "reference"


def refused_in_words(error: Failure) -> None:
    message = str(error)
    assert "it was not built: HIRES_GAN_BUILD was none" in message
    assert "make ops" in message or "hires-gan doctor" in message
    assert "reference" in message, "the other way out is to ask for the reference"


def test_native_without_a_library_is_a_failure_with_a_remedy(no_libraries):
    for device in (CPU, torch.device("cuda")):
        with pytest.raises(Failure, match=f"library for {device.type} is missing") as caught:
            selection.choose("native", require_native=False, device=device)
        refused_in_words(caught.value)
    assert selection.resolve(CPU) == "reference", "a choice that was refused was not made"


def test_a_block_of_native_without_a_library_fails_and_falls_back_on_nothing(no_libraries):
    x, f = drawn((1, 2, 4, 4), 0, torch.float32), torch.ones(4)
    for call in (lambda: upfirdn2d(x, f, padding=2), lambda: bias_act(x, act="relu"), lambda: epilogue(x)):
        with pytest.raises(Failure) as caught, backend("native"):
            call()
        refused_in_words(caught.value)
    assert bias_act(x, act="relu").shape == x.shape


def test_require_native_makes_a_missing_build_a_failure(no_libraries):
    for device in (CPU, torch.device("cuda")):
        with pytest.raises(Failure) as caught:
            selection.choose("auto", require_native=True, device=device)
        refused_in_words(caught.value)


def test_the_reasons_in_words(native_cpu):
    native_words = selection.explain(CPU)
    assert "native" in native_words
    assert "cpu" in native_words.lower()
    with backend("reference"):
        chosen = selection.explain(CPU)
        assert "reference" in chosen
    with backend("auto"):
        automatic = selection.explain(CPU)
        assert "reference" in automatic
    assert len({native_words, chosen, automatic}) == 3, "each choice has its own reason"
    assert "\n" not in native_words + chosen + automatic


def test_the_reason_for_a_missing_library_is_the_loaders(no_libraries):
    words = selection.explain(torch.device("cuda"))
    assert "reference" in words
    assert "it was not built: HIRES_GAN_BUILD was none" in words


def test_backward_in_another_thread_needs_no_choice(native_cpu):
    """Autograd computes backward in threads of its own; and a worker thread starts with a choice that works."""
    x, f = drawn((1, 2, 6, 6), 0, torch.float32).requires_grad_(), torch.ones(4)
    b = torch.zeros(2, requires_grad=True)
    hidden = epilogue(upfirdn2d(x, f, padding=2), b=b)
    y = bias_act(hidden, act="swish")
    expected = torch.autograd.grad(y.sum(), (x, b), retain_graph=True)
    found: list[object] = []

    def work() -> None:
        try:
            found.append(torch.autograd.grad(y.sum(), (x, b), retain_graph=True))
            found.append(bias_act(upfirdn2d(x, f, padding=2), act="relu"))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 2, found
    assert all(torch.equal(one, other) for one, other in zip(found[0], expected, strict=True))
    assert torch.allclose(found[1], bias_act(upfirdn2d(x, f, padding=2), act="relu"), atol=1e-6)


def test_backward_outside_of_the_block_is_right(native_cpu):
    x = drawn((1, 2, 6, 6), 0, torch.float64).requires_grad_()
    f = torch.ones(4, dtype=torch.float64)
    y = bias_act(upfirdn2d(x, f, padding=2), act="swish")
    with backend("reference"):
        (outside,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (inside,) = torch.autograd.grad(y.sum(), x)
    assert (inside - outside).abs().max() < 1e-12


def test_a_thread_computes_with_what_is_chosen_where_it_runs(native_cpu):
    """The choice holds in every thread: autograd's own threads, and a user's workers."""
    seen: list[str] = []
    with backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(selection.resolve(CPU)))
        thread.start()
        thread.join()
    assert seen == ["reference"]
    thread = threading.Thread(target=lambda: seen.append(selection.resolve(CPU)))
    thread.start()
    thread.join()
    assert seen == ["reference", "native"]


def test_native_and_reference_agree_in_what_they_are(native_cpu):
    """The two are two: the dispatcher sees our op in one and not in the other."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.namespace)
            return func(*args, **(kwargs or {}))

    x, f = drawn((1, 2, 6, 6), 0, torch.float32), torch.ones(4)
    for call in (lambda: upfirdn2d(x, f, padding=2), lambda: bias_act(x, act="relu"), lambda: epilogue(x)):
        for name in ("native", "reference"):
            seen.clear()
            with backend(name), Recorder():
                call()
            assert ("hires_gan" in seen) == (name == "native"), (name, seen)


def test_importing_the_ops_compiles_nothing_and_leaves_no_lock(native_cpu, tmp_path):
    """Nothing is compiled at run time: no compiler is called, and no folder of extensions appears."""
    code = (
        "import subprocess, torch\n"
        "def refuse(*a, **k): raise AssertionError(f'a process was started: {a}')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "import hires_gan.ops as ops\n"
        "with ops.backend('native'):\n"
        "    y = ops.bias_act(ops.upfirdn2d(torch.ones(1, 1, 4, 4), torch.ones(4), padding=2), act='lrelu')\n"
        "assert y.shape == (1, 1, 5, 5)\n"
    )
    done = fresh(code, TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"), PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
