"""`hires-gan bench ops`: the bytes are counted by hand, wrong answers are refused, what cannot run is told."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from hires_gan import cli
from hires_gan.bench import ops as bench
from hires_gan.bench import timing
from hires_gan.bench.ops import CONTESTANTS, Request, Row, bench_ops, table
from hires_gan.bench.ops_cases import PASSES, BiasAct, Epilogue, Fir, training_cases
from hires_gan.bench.ops_passes import Compiled, Eager, another, calls_in_a_window, copies, difference, pose
from hires_gan.errors import Failure, UsageError
from hires_gan.ops import native

CPU = torch.device("cpu")
TINY = [
    Epilogue("epilogue", (2, 3, 4, 5)),
    BiasAct("bias-act", (2, 3, 4, 5)),
    BiasAct("mapping", (2, 6), clamp=None),
    Fir("fir", (2, 3, 8, 9), up=2, padding=(2, 1), gain=4.0),
    Fir("fir-separable", (2, 3, 9, 8), taps=12, separable=True, down=2, padding=(5, 5)),
]
needs_native = pytest.mark.skipif(not native.available("cpu"), reason="the native ops are not built")


@dataclass(frozen=True)
class Fake(BiasAct):
    """A case whose "ours" is the reference, times a factor."""

    factor: float = 1.0

    def ours(self, *inputs):
        return self.plain(*inputs) * self.factor


@pytest.fixture
def fakes(monkeypatch):
    """Cases that need no native ops, and few rounds."""
    monkeypatch.setattr(bench, "ROUNDS", {"cpu": 2, "cuda": 2})
    monkeypatch.setattr(bench.native, "available", lambda device_type: True)
    monkeypatch.setattr(bench, "training_cases", lambda size: [Fake("fake", (2, 3, 4, 5)), Fake("other", (2, 6))])
    monkeypatch.setattr(bench.ops, "backend", Backend)


class Backend:
    """Stands in for the choice of the native ops."""

    def __init__(self, name):
        assert name == "native"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_the_bytes_of_bias_act():
    moved = BiasAct("", (2, 3, 4, 5)).moved(2)  # images of 240 bytes, a bias of 12
    assert moved == {"forward": 240 * 2 + 12, "backward": 240 * 3 + 12, "double backward": 240 * 3}


def test_the_bytes_of_the_epilogue():
    moved = Epilogue("", (2, 3, 4, 5)).moved(2)  # images of 240 bytes, noise 80, demodulation 24, bias 12, strength 4
    assert moved == {
        "forward": 2 * 240 + 80 + 24 + 4 + 12,
        "backward": 4 * 240 + 80 + 2 * 24 + 4 + 12,
        "double backward": 6 * 240 + 3 * 24,
    }


def test_the_bytes_of_upfirdn2d():
    case = Fir("", (1, 2, 9, 9), padding=(1, 1))
    assert case.output == (1, 2, 8, 8)
    assert case.moved(4) == dict.fromkeys(PASSES, (162 + 128) * 4 + 16 * 4)
    assert Fir("", (1, 2, 9, 9), padding=(1, 1), separable=True).moved(4)["forward"] == (162 + 128) * 4 + 4 * 4


@pytest.mark.parametrize(("size", "factor"), [("full", 1), ("small", 8)])
def test_the_sides_of_the_cases(size, factor):
    cases = {case.name: case for case in training_cases(size)}
    assert len(cases) == len(training_cases(size)) == 24
    sides = {
        "after-up-1024": (1024 // factor + 1, 1024 // factor),
        "after-up-256": (256 // factor + 1, 256 // factor),
        "before-down-1024": (1024 // factor, 1024 // factor + 1),
        "skip-up-1024": (512 // factor, 1024 // factor),
        "skip-down-1024": (1024 // factor, 512 // factor),
        "ada-up-1024": (1024 // factor, 2048 // factor),
        "ada-down-1024": (2048 // factor, 1024 // factor),
    }
    for name, (before, after) in sides.items():
        for form in ("2d", "separable"):
            case = cases.pop(f"fir-{name}-{form}")
            assert (case.shape[2:], case.output[2:]) == ((before, before), (after, after))
    assert cases["bias-act-mapping"].layouts == ("contiguous",)
    assert all(case.output == case.shape for case in cases.values())


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_tensors_of_a_case(case, dtype, layout):
    problem = pose(case, dtype, layout if len(case.shape) == 4 else "contiguous", CPU)
    copy = another(case, problem)
    for one in (problem, copy):
        x = one.inputs[0]
        assert (x.shape, x.dtype, one.dy.shape, one.dy.dtype) == (case.shape, dtype, case.output, dtype)
        assert all(tensor.requires_grad for tensor in (*one.learned, one.dy))
        assert len(one.penalised) == len(one.cotangents) == len(case.penalised)
        if layout == "channels_last" and x.ndim == 4:
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert one.dy.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(problem.inputs, copy.inputs, strict=True))
    assert problem.inputs[0].data_ptr() != copy.inputs[0].data_ptr()
    assert case.plain(*problem.inputs).shape == case.output


@needs_native
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
@pytest.mark.parametrize("what", PASSES)
def test_ours_is_the_reference(case, what):
    problem = pose(case, torch.float32, "contiguous", CPU)
    with bench.ops.backend("native"):
        found = Eager(case.ours).prepare(what, problem)()
    assert difference(found, Eager(case.plain).prepare(what, problem)()) == ""


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_the_compiled_passes_are_those_of_autograd(case, monkeypatch):
    """The double backward above all, which is written in another way."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    problem = pose(case, torch.float32, "contiguous", CPU)
    compiled = Compiled(case)
    for what in PASSES:
        found = compiled.prepare(what, problem)()
        assert difference(found, Eager(case.plain).prepare(what, problem)()) == ""


def test_what_counts_as_another_answer():
    torch.manual_seed(0)
    one = torch.randn(200, 1000)
    assert difference([one, None], [one * (1 + 1e-7), None]) == ""
    assert difference([None], [torch.zeros(3)]) == ""
    flipped = one.clone()
    flipped[0, 0] += 1
    assert difference([flipped], [one]) == ""
    column = one.clone()
    column[:, -1] *= 1.01
    assert "its result 0, [200, 1000] float32, differs in" in difference([column], [one])
    assert difference([one.half(), one * 1.001], [one.half(), one]) == ""
    assert "result 1" in difference([one.half(), one * 1.01], [one.half(), one])
    nan = one.clone()
    nan[:, 0] = float("nan")
    assert "differs in 200 of 200,000" in difference([nan], [one])
    assert (
        difference([one[1:]], [one]) == "its result 0 is [199, 1000] float32; the reference gives [200, 1000] float32"
    )
    assert "float64" in difference([one.double()], [one])
    assert "result 1" in difference([one, None], [one, one])


def test_a_wrong_op_is_no_result(fakes, monkeypatch):
    monkeypatch.setattr(bench, "training_cases", lambda size: [Fake("slipped", (2, 3, 4, 5), factor=1.01)])
    with pytest.raises(Failure, match=r"^slipped in float32, contiguous: our forward pass is wrong: its result 0"):
        bench_ops(Request(device="cpu", compiled=False))


def test_the_rows_and_the_file(fakes, tmp_path, capfd):
    out = tmp_path / "ops.json"
    rows = bench_ops(Request(device="cpu", dtypes=("float32", "float16"), compiled=False, out=out))
    assert len(rows) == 3 * 2 * (2 + 1)
    assert [row.what for row in rows[:3]] == list(PASSES)
    for row in rows:
        assert set(row.seconds) == {"copy", "ours", "reference"}
        assert set(row.share) == {"ours", "reference"}
        assert min(*row.seconds.values(), *row.share.values()) > 0
        assert row.notes == {"compiled": "not asked for"}
    record = json.loads(out.read_text())
    assert record["rows"][3]["seconds"] == rows[3].seconds
    assert record["rows"][0]["bytes"] == 2 * 480 + 12
    assert (record["bench"], record["size"], record["complete"], record["rounds"]) == ("ops", "small", True, 2)
    assert {"date", "version.torch", "cpu.model", "device", "threads", "build"} <= set(record)
    assert {"load_average_before", "load_average_after"} <= set(record)
    assert "host" not in record
    said = capfd.readouterr().err
    assert "to be correct, not to be fast" in said
    assert "18/18 passes" in said


def test_the_file_has_what_was_measured_before_an_end_and_the_build_of_the_start(fakes, monkeypatch, tmp_path):
    @dataclass(frozen=True)
    class Build:
        sources: str

    builds = iter([Build("loaded"), Build("built meanwhile")])
    monkeypatch.setattr(bench.native, "record", lambda: next(builds))
    cases = [Fake("fake", (2, 6)), Fake("slipped", (2, 6), factor=1.01)]
    monkeypatch.setattr(bench, "training_cases", lambda size: cases)
    with pytest.raises(Failure, match="slipped"):
        bench_ops(Request(device="cpu", compiled=False, out=tmp_path / "ops.json"))
    record = json.loads((tmp_path / "ops.json").read_text())
    assert not record["complete"]
    assert [row["case"] for row in record["rows"]] == ["fake"] * 3
    assert record["build"] == {"sources": "loaded"}


def test_what_is_asked_for_is_what_runs(fakes):
    rows = bench_ops(Request(device="cpu", layout="channels_last", only=("fak*",), compiled=False))
    assert {(row.case, row.layout, row.dtype) for row in rows} == {("fake", "channels_last", "float32")}


def test_a_compiler_that_fails_is_told(fakes, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\n No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    rows = bench_ops(Request(device="cpu", only=("other",)))
    assert rows[0].notes == {"compiled": "the compiler failed: RuntimeError: No working C++ compiler found"}
    assert set(rows[2].seconds) == {"copy", "ours", "reference"}
    lines = table(rows)
    assert lines[-1] == "[1] the compiler failed: RuntimeError: No working C++ compiler found"
    assert all(line.endswith("-      [1]") for line in lines[2:5])


def test_a_compiler_that_errs_is_told(fakes, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *inputs: function(*inputs) * 2)
    rows = bench_ops(Request(device="cpu", only=("other",)))
    assert "the compiled reference is wrong: its result 0, [2, 6] float32, differs in" in rows[0].notes["compiled"]


def test_too_little_memory(fakes, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "pose", full)
    with pytest.raises(Failure, match="fake in float32 does not fit the memory of cpu: --size small"):
        bench_ops(Request(device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtypes": ("float8",)}, "--dtype is 'float8'; float16, bfloat16, float32 are allowed"),
        (
            {"only": ("epilogue-1024", "nothing")},
            "--only is 'nothing', which no case is called; there are epi",
        ),
        (
            {"only": ("bias-act-mapping",), "layout": "channels_last"},
            "--layout is channels_last, which no case of --only",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError, match=message):
        bench_ops(Request(**{"device": "cpu", **changes}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(UsageError, match="--device is cuda, but torch finds no GPU here; cpu is allowed"):
        bench_ops(Request(device="cuda"))


def test_a_place_for_the_result_that_is_not_there(fakes, tmp_path):
    with pytest.raises(Failure, match=r"nowhere/ops\.json cannot be written: No such file"):
        bench_ops(Request(device="cpu", out=tmp_path / "nowhere" / "ops.json"))


def test_without_the_native_ops_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(bench.native, "available", lambda device_type: False)
    monkeypatch.setattr(bench.native, "why_not", lambda device_type: "it was not built")
    with pytest.raises(Failure, match="there is nothing of ours to measure on cpu: it was not built"):
        bench_ops(Request(device="cpu"))


def test_the_table():
    def row(what, moved, seconds, notes):
        share = {name: seconds["copy"] / time for name, time in seconds.items() if name != "copy"}
        return Row("fir", (1, 2, 9, 9), "float16", "contiguous", what, moved, seconds, share, notes)

    rows = [
        row("forward", 805_306_368, {"copy": 2e-4, "ours": 2.5e-4, "reference": 1e-3, "compiled": 4e-4}, {}),
        row("backward", 512, {"copy": 1.234e-6, "ours": 12.34e-6, "reference": 1.5}, {"compiled": "it is on holiday"}),
    ]
    assert table(rows) == [
        "fir: x [1, 2, 9, 9], float16, contiguous",
        "  pass                   MB       copy       ours  of copy  reference  of copy   compiled  of copy",
        "  forward               805     200 µs     250 µs    80.0%    1.00 ms    20.0%     400 µs    50.0%",
        "  backward             0.00    1.23 µs    12.3 µs    10.0%     1.50 s     0.0%          -      [1]",
        "",
        "[1] it is on holiday",
    ]
    assert CONTESTANTS == ("ours", "reference", "compiled")


def test_contestants_take_turns():
    order = []

    class Clock:
        def seconds(self, ready):
            return ready()

    def contestant(name, seconds):
        def ready():
            order.append(name)
            return seconds

        return ready

    ready = {name: contestant(name, number) for number, name in enumerate("abc")}
    assert timing.take_turns(ready, Clock(), 3) == {"a": [0, 0, 0], "b": [1, 1, 1], "c": [2, 2, 2]}
    assert "".join(order) == "abc" + "bca" + "cab"


def test_a_window_prepares_anew_and_launches_once():
    called = []

    def ready():
        called.append("ready")
        return [lambda: called.append("launch")] * 3

    assert timing.CpuClock().seconds(ready) >= 0
    timing.warm_up(ready, times=1)
    assert called == ["ready", "launch", "launch", "launch"] * 2


def test_a_gpu_that_overtakes_python_is_given_more_to_do_before(monkeypatch):
    """The device has passed the first event when Python has launched the window: twice, then no more."""
    overtaken = iter([True, True, False])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def synchronize(self):
            pass

        def query(self):
            return next(overtaken)

        def elapsed_time(self, end):
            return 6.0

    monkeypatch.setattr(timing, "_GPU_SCRATCH", 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=8))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = timing.CudaClock(CPU)
    windows = []
    assert clock.seconds(lambda: windows.append(1) or [lambda: None] * 2) == 0.003
    assert len(windows) == 3
    assert int(clock._scratch[0]) == 4 + 8 + 16
    assert len(clock._scratch) == 32


def test_the_copy_moves_as_many_bytes_as_the_pass():
    launches = copies(1001, 3, CPU)()
    assert len(launches) == 3
    assert {launch().numel() for launch in launches} == {501}
    assert len({launch().data_ptr() for launch in launches}) == 3
    gpu = torch.device("cuda")
    assert [calls_in_a_window(moved, gpu) for moved in (1, 2**25, 2**26, 2**30)] == [16, 8, 4, 3]
    assert [calls_in_a_window(moved, CPU) for moved in (1, 2**30)] == [4, 3]


def command(monkeypatch, *arguments):
    """The exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["hires-gan", "bench", "ops", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_command(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(bench, "ROUNDS", {"cpu": 2})
    assert command(monkeypatch, "--only", "nothing") == 2
    assert "--only is 'nothing'" in capfd.readouterr().err
    out = tmp_path / "ops.json"
    code = command(monkeypatch, "--only", "bias-act-mapping", "--no-compile", "--out", str(out))
    printed = capfd.readouterr()
    if not native.available("cpu"):
        assert code == 1
        assert "there is nothing of ours to measure on cpu" in printed.err
        return
    assert not code
    assert printed.out.startswith("bias-act-mapping: x [2, 512], float32, contiguous\n")
    assert "[1] not asked for" in printed.out
    assert json.loads(out.read_text())["complete"]


@needs_native
@pytest.mark.slow
def test_the_whole_command_with_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", {"cpu": 2})
    rows = bench_ops(Request(device="cpu", only=("bias-act-mapping", "epilogue-64", "fir-skip-up-1024-2d")))
    assert len(rows) == 3 + 6 + 6
    assert all(set(row.seconds) == {"copy", *CONTESTANTS} for row in rows), [row.notes for row in rows]


@pytest.mark.gpu
def test_every_case_on_a_gpu(monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", {"cuda": 2})
    rows = bench_ops(Request(device="cuda", dtypes=("float16",), size="small", compiled=False))
    assert len(rows) == 3 * (2 * 23 + 1)
    some = ("bias-act-mapping", "epilogue-64", "fir-skip-up-1024-2d")
    wider = Request(device="cuda", dtypes=("bfloat16", "float32"), size="small", compiled=False, only=some)
    rows += bench_ops(wider)
    assert len(rows) == 3 * (2 * 23 + 1) + 2 * (3 + 6 + 6)
    assert all(min(row.share.values()) > 0 for row in rows)
