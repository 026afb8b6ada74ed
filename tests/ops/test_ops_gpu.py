"""What only a GPU can show: streams, graphs, memory, and the same bits twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from ops_matrix import (
    ACTIVATIONS,
    Resampling,
    arranged,
    drawn,
)
from torch import Tensor, nn

from hires_gan.ops import backend, bias_act, epilogue, upfirdn2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with backend("native"):
        yield
    torch.cuda.synchronize()


@pytest.fixture
def f() -> Tensor:
    return torch.tensor([1.0, 3.0, 3.0, 1.0], device="cuda") / 8


class Chain(nn.Module):
    """Every op in its training cases, small enough to be run often."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Parameter(drawn((channels,), 1, torch.float32))
        self.second = nn.Parameter(drawn((channels,), 2, torch.float32))
        self.strength = nn.Parameter(torch.tensor(0.4))
        self.register_buffer("f", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)
        self.register_buffer("square", drawn((4, 4), 3, torch.float32) / 8)
        self.register_buffer("sym6", drawn((12,), 4, torch.float32) / 4)

    def forward(self, x: Tensor, demodulation: Tensor, noise: Tensor) -> Tensor:
        x = epilogue(x, demodulation, noise, self.strength, self.first, clamp=256.0)
        x = upfirdn2d(x, self.f, up=2, padding=[2, 1, 2, 1], gain=4)
        x = bias_act(x, self.second, act="swish")
        x = upfirdn2d(x, self.square, padding=[2, 1, 2, 1])
        x = upfirdn2d(x, self.sym6, down=2, padding=5)
        return bias_act(x, act="tanh")


def chain_inputs(seed: int, dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> list[Tensor]:
    return [
        arranged(drawn((2, 8, 24, 20), seed, dtype, "cuda"), layout),
        drawn((2, 8), seed + 1, dtype, "cuda"),
        drawn((2, 1, 24, 20), seed + 2, dtype, "cuda"),
    ]


def everything(chain: Chain, inputs: list[Tensor]) -> list[Tensor]:
    """The value, the gradients, and the gradients of a penalty on the gradient."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    y = chain(*leaves)
    wanted = [*leaves, *chain.parameters()]
    first = torch.autograd.grad(y.float().square().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(first[0].float().square().sum(), wanted, materialize_grads=True)
    return [y.detach(), *(grad.detach() for grad in first), *second]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        largest = other.double().abs().max() + 1e-30
        error = (one.double() - other.double()).abs().max() / largest
        assert error <= tolerance, f"value {number}: {float(error):.3g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_gpu_computes_what_the_twin_on_the_cpu_computes(dtype):
    for layout in ("contiguous", "channels_last", "sliced"):
        inputs = chain_inputs(0, dtype, layout)
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        there = everything(Chain().to("cuda", precision), inputs)
        here = everything(Chain().to(precision), [value.cpu() for value in inputs])
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 0.05, torch.bfloat16: 0.2}[dtype]
        near([value.cpu() for value in there], here, tolerance)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_same_bits_twice(dtype, layout):
    chain = Chain().cuda()
    inputs = chain_inputs(0, dtype, layout)
    expected = everything(chain, inputs)
    for _ in range(20):
        assert same_bits(everything(chain, inputs), expected)


def test_the_gradient_of_a_bias_over_many_blocks_has_the_same_bits_twice():
    for layout in ("contiguous", "channels_last"):
        x = arranged(drawn((4, 32, 128, 128), 0, torch.float32, "cuda"), layout)
        b = torch.zeros(32, device="cuda", requires_grad=True)
        strength = torch.ones((), device="cuda", requires_grad=True)
        noise = drawn((1, 1, 128, 128), 1, torch.float32, "cuda")
        runs = []
        for _ in range(10):
            y = bias_act(epilogue(x, noise=noise, noise_strength=strength, b=b), b, act="lrelu")
            runs.append(list(torch.autograd.grad(y.square().sum(), (b, strength))))
        assert all(same_bits(run, runs[0]) for run in runs)


# Streams


def busy(stream: torch.cuda.Stream) -> None:
    """Some milliseconds of work on a stream: who reads too early reads what was there before."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "upfirdn2d, separable": lambda x, f: upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]),
    "upfirdn2d, 2-D": lambda x, f: upfirdn2d(x, f.outer(f), down=2, padding=1),
    "upfirdn2d, general": lambda x, f: upfirdn2d(x, f.repeat(2)[:7], up=3, down=2, padding=4),
    "bias_act": lambda x, f: bias_act(x, f[:1].expand(x.shape[1]).contiguous(), act="lrelu"),
    "epilogue": lambda x, f: epilogue(x, b=f[:1].expand(x.shape[1]).contiguous()),
}


@pytest.mark.parametrize("name", OPS)
def test_work_is_queued_on_the_current_stream(f, name):
    """The input becomes right only behind a long wait on a side stream, and the op follows it there."""
    op = OPS[name]
    side = torch.cuda.Stream()
    value = drawn((2, 4, 64, 64), 5, torch.float32, "cuda")
    expected = op(value, f)
    x = torch.zeros_like(value)
    torch.cuda.synchronize()
    busy(side)
    with torch.cuda.stream(side):
        x.copy_(value)
        y = op(x, f)
        assert not side.query(), "the op must not wait for the device"
    side.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", OPS)
def test_backward_is_queued_on_the_stream_of_forward(f, name):
    op = OPS[name]
    side = torch.cuda.Stream()
    value = drawn((2, 4, 64, 64), 5, torch.float32, "cuda")
    leaf = value.clone().requires_grad_()
    (expected,) = torch.autograd.grad(op(leaf, f).square().sum(), leaf)
    x = torch.zeros_like(value).requires_grad_()
    torch.cuda.synchronize()
    busy(side)
    with torch.cuda.stream(side):
        x.data.copy_(value)
        (dx,) = torch.autograd.grad(op(x, f).square().sum(), x)
    side.synchronize()
    assert torch.equal(dx, expected)


def test_many_iterations_on_two_streams_never_race():
    """Memory goes back and forth between allocator and ops on two streams; a wrong stream shows as other bits."""
    chain = Chain().cuda()
    inputs = chain_inputs(3)
    expected = everything(chain, inputs)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = []
    for number in range(200):
        stream = streams[number % 2]
        with torch.cuda.stream(stream):
            if number % 7 == 0:
                torch.cuda._sleep(200_000)
            noise = torch.full((2_000_003,), float("nan"), device="cuda")  # what a late reader would find
            del noise
            results.append(everything(chain, inputs))
        if len(results) == 20:
            torch.cuda.synchronize()
            assert all(same_bits(result, expected) for result in results)
            results.clear()


def test_ops_do_not_synchronise(f):
    x = drawn((2, 4, 64, 64), 5, torch.float32, "cuda").requires_grad_()
    chain, inputs = Chain().cuda(), chain_inputs(0)
    everything(chain, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for op in OPS.values():
            torch.autograd.grad(op(x, f).sum(), x)
        everything(chain, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Graphs


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_capture_and_replay_with_changing_inputs(layout):
    """Forward, backward and double backward are captured; each replay computes on what then lies in the inputs."""
    chain = Chain().cuda()
    held = chain_inputs(0, layout=layout)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            everything(chain, held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything(chain, held)
    for seed in range(10, 15):
        fresh = chain_inputs(seed, layout=layout)
        for place, value in zip(held, fresh, strict=True):
            place.copy_(value)
        graph.replay()
        assert same_bits(found, everything(chain, fresh))


def test_a_graphed_callable():
    chain = Chain().cuda()
    sample = [value.requires_grad_() for value in chain_inputs(0)]
    graphed = torch.cuda.make_graphed_callables(Chain().cuda(), tuple(sample))
    inputs = [value.requires_grad_() for value in chain_inputs(6)]
    found = torch.autograd.grad(graphed(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(chain(*inputs).square().sum(), inputs)
    near(list(found), list(expected), 1e-6)


# Memory


def peak(call: Callable[[], object]) -> tuple[int, object]:
    """Bytes allocated at most during a call, beyond what was there before, and the result."""
    call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


SLACK = 2**20  # partial sums, copies of small arguments, the allocator's rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing_is_allocated_but_the_results(f, layout, dtype):
    x = arranged(torch.randn(4, 32, 256, 256, device="cuda").to(dtype), layout)
    b = torch.ones(32, device="cuda", dtype=dtype)
    noise, strength = torch.randn(4, 1, 256, 256, device="cuda").to(dtype), torch.ones((), device="cuda")
    demodulation = torch.ones(4, 32, device="cuda")
    size = x.numel() * x.element_size()
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "up 2": (lambda: upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1], gain=4), 4.0),
        "down 2": (lambda: upfirdn2d(x, f, down=2, padding=1), 0.25),
        "1-to-1": (lambda: upfirdn2d(x, f, padding=[2, 1, 2, 1]), 1.0),
        "2-D": (lambda: upfirdn2d(x, f.outer(f), padding=[2, 1, 2, 1]), 1.0),
        "bias_act": (lambda: bias_act(x, b, act="lrelu", clamp=256.0), 1.0),
        "swish": (lambda: bias_act(x, b, act="swish"), 1.0),
        "epilogue": (lambda: epilogue(x, demodulation, noise, strength, b, clamp=256.0), 1.0),
    }
    for name, (call, share) in calls.items():
        used, _ = peak(call)
        assert used <= share * size * 1.01 + SLACK, f"{name}: {used / size:.3f} times the image, not {share}"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_allocates_its_results_and_partial_sums(layout):
    x = arranged(torch.randn(4, 32, 256, 256, device="cuda"), layout).requires_grad_()
    b = torch.ones(32, device="cuda", requires_grad=True)
    dy = arranged(torch.randn(4, 32, 256, 256, device="cuda"), layout)
    size = x.numel() * x.element_size()
    for name, make in {
        "lrelu": lambda: bias_act(x, b, act="lrelu"),
        "swish": lambda: bias_act(x, b, act="swish"),
        "epilogue": lambda: epilogue(x, b=b),
    }.items():
        y = make()
        used, _ = peak(lambda y=y: torch.autograd.grad(y, (x, b), dy, retain_graph=True))
        assert used <= size * 1.01 + 2 * SLACK, f"{name}: {used / size:.3f} times the image"


def test_lrelu_keeps_its_result_alone_for_backward():
    x = torch.randn(4, 32, 256, 256, device="cuda").requires_grad_()
    size = x.numel() * x.element_size()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = bias_act(x * 1, torch.ones(32, device="cuda"), act="lrelu")
    kept = torch.cuda.memory_allocated() - before
    assert y.requires_grad
    assert kept <= 1.01 * size + SLACK, f"{kept / size:.3f} times the image is kept"


# Devices


def test_the_device_is_that_of_the_tensor_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    chain = Chain()
    expected = everything(chain.to("cuda:0"), chain_inputs(0))
    with torch.cuda.device(0):
        found = everything(chain.to("cuda:1"), [value.to("cuda:1") for value in chain_inputs(0)])
        assert all(value.device == torch.device("cuda:1") for value in found)
        assert torch.cuda.current_device() == 0
    assert same_bits([value.to("cuda:0") for value in found], expected)


def test_two_devices_at_once_are_refused():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    with pytest.raises(ValueError, match="cuda:1"):
        upfirdn2d(torch.ones(1, 1, 4, 4, device="cuda:0"), torch.ones(2, device="cuda:1"))


# Compilation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_inductor_on_the_gpu(dtype):
    chain = Chain().cuda()
    inputs = [value.requires_grad_() for value in chain_inputs(0, dtype)]
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True)
    wanted = [*inputs, *chain.parameters()]
    expected = torch.autograd.grad(chain(*inputs).float().square().sum(), wanted)
    found = torch.autograd.grad(compiled(*inputs).float().square().sum(), wanted)
    near(list(found), list(expected), 1e-5 if dtype == torch.float32 else 0.01)
    torch._dynamo.reset()


def test_a_compiled_op_follows_the_current_stream(f):
    """A raw launch on the default stream would read the input before it is there."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: upfirdn2d(x + 1, f, up=2, padding=[2, 1, 2, 1]) * 2, fullgraph=True)
    value = drawn((2, 4, 64, 64), 5, torch.float32, "cuda")
    expected = compiled(value)
    x = torch.zeros_like(value)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    busy(side)
    with torch.cuda.stream(side):
        x.copy_(value)
        y = compiled(x)
    side.synchronize()
    assert torch.equal(y, expected)
    torch._dynamo.reset()


# Small enough for compute-sanitizer: `compute-sanitizer --tool memcheck pytest -m gpu -k sanitizer`


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted", "shifted_channels_last", "sliced"])
def test_sanitizer_upfirdn2d(dtype, layout):
    """Every kernel at its edges: a tensor that ends where its memory ends, sides that no tile divides."""
    torch.cuda.empty_cache()
    for taps in ((4,), (12,), (4, 4), (12, 12), (5,), (3, 2), None):
        for up, down in ((2, 1), (1, 2), (1, 1), (3, 2)):
            for channels in (1, 3, 8):
                case = Resampling(
                    (1, channels, 19, 35), taps, (up, up), (down, down), (5, 6, -1, 9), layout=layout, seed=1
                )
                x, filters = case.inputs(dtype, "cuda")
                x = x.detach().requires_grad_()
                y = upfirdn2d(x, filters, **case.arguments())
                torch.autograd.grad(y, x, torch.ones_like(y))
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted", "shifted_channels_last", "sliced"])
def test_sanitizer_bias_act_and_epilogue(dtype, layout):
    torch.cuda.empty_cache()
    for shape in ((1, 3, 7, 9), (2, 8, 5, 5), (1, 33, 3, 3), (3, 64, 17, 19)):
        x = arranged(drawn(shape, 0, dtype, "cuda"), layout).detach().requires_grad_()
        b = drawn(shape[1:2], 1, dtype, "cuda").requires_grad_()
        for act in ACTIVATIONS:
            dx, db = torch.autograd.grad(bias_act(x, b, act=act, clamp=1.0).sum(), (x, b), create_graph=True)
            torch.autograd.grad(dx.sum() + db.sum(), (x, b), materialize_grads=True, allow_unused=True)
        demodulation = drawn(shape[:2], 2, dtype, "cuda").requires_grad_()
        noise = drawn((1, 1, *shape[2:]), 3, dtype, "cuda").requires_grad_()
        strength = drawn((), 4, dtype, "cuda").requires_grad_()
        wanted = (x, demodulation, noise, strength, b)
        grads = torch.autograd.grad(epilogue(*wanted, clamp=1.0).sum(), wanted, create_graph=True)
        torch.autograd.grad(sum(grad.sum() for grad in grads), wanted, materialize_grads=True, allow_unused=True)
    torch.cuda.synchronize()
