"""torch.library's own checks of every op, and networks that use the ops under torch.compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch._dynamo.testing
from ops_matrix import ACTIVATIONS, PIECEWISE, arranged, drawn
from torch import Tensor, nn

from hires_gan.ops import bias_act, epilogue, upfirdn2d

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch.library.opcheck: schema, registration of autograd, fake tensors, and tracing with dynamic shapes


def opcheck(name: str, *arguments: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.hires_gan, name).default, arguments)


def leaf(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: Any, layout: str = "contiguous") -> Tensor:
    return arranged(drawn(shape, seed, dtype, device), layout).detach().requires_grad_()


UPFIRDN2D = [
    # dtype, layout, shape, taps, up, down, padding
    (torch.float32, "contiguous", (2, 3, 6, 7), (4,), [2, 2], [1, 1], [2, 1, 2, 1]),
    (torch.float32, "channels_last", (2, 3, 6, 7), (4,), [1, 1], [2, 2], [1, 1, 1, 1]),
    (torch.float16, "channels_last", (2, 8, 6, 7), (4, 4), [1, 1], [1, 1], [2, 1, 2, 1]),
    (torch.bfloat16, "sliced", (2, 3, 6, 7), (12,), [2, 2], [1, 1], [7, 6, 7, 6]),
    (torch.float64, "transposed", (1, 4, 5, 5), (3, 2), [3, 1], [2, 4], [-1, 4, 2, 3]),
    (torch.float32, "channels_last", (2, 1, 6, 7), (2,), [1, 1], [1, 1], [0, 1, 0, 1]),
    (torch.float32, "contiguous", (2, 5, 1, 1), (1,), [2, 2], [1, 1], [0, 0, 0, 0]),
    (torch.float32, "contiguous", (2, 3, 4, 4), (3, 3), [1, 1], [1, 1], [-1, 3, 1, -1]),
]


@pytest.mark.parametrize("case", UPFIRDN2D, ids=lambda case: f"{str(case[0])[6:]}-{case[1]}-{case[3]}")
def test_opcheck_of_upfirdn2d(device, case):
    dtype, layout, shape, taps, up, down, padding = case
    f = drawn(taps, 9, torch.float64 if dtype == torch.float64 else torch.float32, device)
    opcheck("upfirdn2d", leaf(shape, 1, dtype, device, layout), f, up, down, padding, False, 1.5)


BIAS_ACT = [
    # dtype, layout, shape, dim, dtype of b, clamp
    (torch.float32, "contiguous", (2, 3, 4, 5), 1, torch.float32, None),
    (torch.float16, "channels_last", (2, 8, 4, 5), 1, torch.float32, 0.5),
    (torch.bfloat16, "sliced", (5, 3), 1, torch.bfloat16, None),
    (torch.float64, "transposed", (3, 4, 2), 2, None, 0.5),
]


@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh", "swish"])
@pytest.mark.parametrize("case", BIAS_ACT, ids=lambda case: f"{str(case[0])[6:]}-{case[1]}")
def test_opcheck_of_bias_act(device, case, act):
    dtype, layout, shape, dim, bias, clamp = case
    b = None if bias is None else leaf((shape[dim],), 2, bias, device)
    _, alpha, gain = ACTIVATIONS[act]
    opcheck("bias_act", leaf(shape, 1, dtype, device, layout), b, dim, act, alpha, gain, clamp)


def epilogue_inputs(dtype: torch.dtype, layout: str, device: Any, present: tuple[bool, bool, bool]) -> list[Any]:
    demodulated, noisy, biased = present
    return [
        leaf((2, 4, 3, 5), 1, dtype, device, layout),
        leaf((2, 4), 2, torch.float32, device) if demodulated else None,
        leaf((1, 1, 3, 5), 3, dtype, device) if noisy else None,
        leaf((), 4, torch.float32, device) if noisy else None,
        leaf((4,), 5, dtype, device) if biased else None,
    ]


EPILOGUE = [
    (torch.float32, "contiguous", (True, True, True), "lrelu", None),
    (torch.float16, "channels_last", (True, True, True), "relu", 0.8),
    (torch.bfloat16, "sliced", (False, True, False), "lrelu", 0.8),
    (torch.float32, "channels_last", (True, False, False), "linear", None),
    (torch.float32, "contiguous", (False, False, True), "lrelu", None),
]


@pytest.mark.parametrize("case", EPILOGUE, ids=lambda case: f"{str(case[0])[6:]}-{case[1]}-{case[2]}")
def test_opcheck_of_the_epilogue(device, case):
    dtype, layout, present, act, clamp = case
    _, alpha, gain = ACTIVATIONS[act]
    opcheck("epilogue", *epilogue_inputs(dtype, layout, device, present), act, alpha, gain, clamp)


def operators_called(run: Callable[[], Any]) -> dict[str, list[tuple[Any, ...]]]:
    """The arguments with which each of our ops is called: derivatives are checked on what autograd gives them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: dict[str, list[tuple[Any, ...]]] = {}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "hires_gan":
                calls.setdefault(func._schema.name.split("::")[1], []).append(args)
            return func(*args, **(kwargs or {}))

    with Recorder():
        run()
    return calls


def checked(calls: dict[str, list[tuple[Any, ...]]], name: str, limit: int) -> None:
    """opcheck on the last calls of one op, with gradients wanted by every floating argument."""
    assert calls.get(name), f"no call of hires_gan::{name} was seen, but of {sorted(calls)}"
    for arguments in calls[name][-limit:]:
        fresh = [
            argument.detach().clone().requires_grad_() if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        opcheck(name, *fresh)


@pytest.mark.parametrize("biased", [False, True], ids=["without b", "with b"])
@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
def test_opcheck_of_the_derivative_of_bias_act(device, act, biased):
    x = leaf((2, 3, 4, 5), 1, torch.float32, device, "channels_last")
    b = leaf((3,), 2, torch.float32, device) if biased else None

    def run() -> None:
        inputs = [value for value in (x, b) if value is not None]
        dy = leaf(tuple(x.shape), 3, torch.float32, device)
        grads = torch.autograd.grad(bias_act(x, b, act=act, clamp=2.0), inputs, dy, create_graph=True)
        torch.autograd.grad(sum(grad.square().sum() for grad in grads), [*inputs, dy], materialize_grads=True)

    checked(operators_called(run), "bias_act_derivative", 2)


@pytest.mark.parametrize("present", [(True, True, True), (False, False, True), (True, False, False)], ids=str)
def test_opcheck_of_the_gradient_of_the_epilogue(device, present):
    x, *small = epilogue_inputs(torch.float32, "channels_last", device, present)

    def run() -> None:
        inputs = [x, *(value for value in small if value is not None)]
        torch.autograd.grad(epilogue(x, *small, clamp=2.0).sum(), inputs)

    checked(operators_called(run), "epilogue_gradient", 1)


def test_meta_tensors_give_shapes_without_computing(device):
    """What torch.export and the meta device do: no kernel runs, and the strides are those of a run."""
    for layout, dtype in itertools.product(("contiguous", "channels_last", "sliced"), (torch.float32, torch.float16)):
        x = arranged(drawn((2, 3, 6, 8), 0, dtype, device), layout)
        f, b = torch.ones(4, device=device), torch.ones(3, device=device)
        noise = torch.ones(1, 1, 6, 8, device=device)
        for op in (
            lambda x, f, b, noise: upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]),
            lambda x, f, b, noise: bias_act(x, b, act="swish"),
            lambda x, f, b, noise: epilogue(x, b=b, noise=noise, noise_strength=b.sum()),
        ):
            real = op(x, f, b, noise)
            meta = op(torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta"),
                      f.to("meta"), b.to("meta"), noise.to("meta"))  # fmt: skip
            assert meta.device.type == "meta"
            assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


# torch.compile


class Block(nn.Module):
    """Convolution, epilogue, blur and halving, bias and activation: what a discriminator does."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(channels))
        self.strength = nn.Parameter(torch.tensor(0.3))
        self.first = nn.Parameter(torch.zeros(channels))
        self.second = nn.Parameter(torch.full((channels,), 0.1))
        self.last = nn.Linear(channels, 1)
        self.register_buffer("f", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)
        self.register_buffer("noise", drawn((1, 1, 8, 8), 3, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.convolution(x)
        hidden = epilogue(hidden, self.scale.expand(x.shape[0], -1), self.noise, self.strength, self.first, clamp=256.0)
        hidden = upfirdn2d(hidden, self.f, down=2, padding=1)
        hidden = bias_act(hidden, self.second, act="swish")
        hidden = upfirdn2d(hidden, self.f, up=2, padding=[2, 1, 2, 1], gain=4)
        return self.last(hidden.mean((2, 3)))


def block(device: Any) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block().to(device), drawn((2, 3, 8, 8), 1, torch.float32, device)


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max()
        assert (one - other).abs().max() <= 1e-6 * largest + 1e-9, float((one - other).abs().max() / largest)


def trained(step: Callable[[Tensor], Tensor], network: Block, x: Tensor) -> list[Tensor]:
    y = step(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(network.parameters()))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_network_is_the_network(device, backend):
    network, x = block(device)
    expected = trained(network, network, x)
    close(trained(torch.compile(network, fullgraph=True, backend=backend), network, x), expected)


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_a_compiled_network_takes_other_layouts(device, layout):
    network, x = block(device)
    x = arranged(x, layout)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    close(trained(compiled, network, x), trained(network, network, x))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_compiles(device, act):
    x, b = leaf((2, 3, 4, 4), 1, torch.float32, device), leaf((3,), 2, torch.float32, device)

    def step(x: Tensor, b: Tensor) -> Tensor:
        y = bias_act(x, b, act=act, clamp=2.0)
        return y if act not in PIECEWISE else epilogue(y, b=b, act=act)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    grads = torch.autograd.grad(compiled(x, b).square().sum(), (x, b))
    close(list(grads), list(torch.autograd.grad(step(x, b).square().sum(), (x, b))))


def r1_step(network: Block, real: Tensor) -> list[Tensor]:
    """Loss, penalty and the gradients of their sum: a double backward inside."""
    logits = network(real)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    penalty = slope.square().sum((1, 2, 3)).mean()
    loss = torch.nn.functional.softplus(-logits).mean() + 5 * penalty
    grads = torch.autograd.grad(loss, list(network.parameters()))
    return [loss.detach(), penalty.detach(), *grads]


def r1_by_formulas(network: Block, real: Tensor) -> list[Tensor]:
    """The same step in float64 on the definitions."""
    from ops_matrix import Resampling, bias_act_definition, epilogue_definition, upfirdn2d_definition

    double = Block().double()
    double.load_state_dict({name: value.double().cpu() for name, value in network.state_dict().items()})

    class Plain(nn.Module):
        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            return double.parameters(recurse)

        def forward(self, x: Tensor) -> Tensor:
            extra = {"demodulation": double.scale.expand(x.shape[0], -1), "noise": double.noise}
            extra |= {"noise_strength": double.strength, "b": double.first}
            hidden = epilogue_definition(double.convolution(x), extra, "lrelu", clamp=256.0)
            down = Resampling(tuple(hidden.shape), (4,), down=(2, 2), padding=(1, 1, 1, 1))
            hidden = upfirdn2d_definition(hidden, double.f, down)
            hidden = bias_act_definition(hidden, double.second, 1, "swish")
            up = Resampling(tuple(hidden.shape), (4,), (2, 2), padding=(2, 1, 2, 1), gain=4)
            return double.last(upfirdn2d_definition(hidden, double.f, up).mean((2, 3)))

    return [v.detach() for v in r1_step(Plain(), real.detach().double().cpu().requires_grad_())]


def test_r1_in_eager_is_right(device):
    network, real = block(device)
    found = [value.detach().double().cpu() for value in r1_step(network, real.requires_grad_())]
    for one, right in zip(found, r1_by_formulas(network, real), strict=True):
        assert (one - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_r1_compiled_whole_is_r1(device, backend):
    """With the flag that lets a compiled step hold autograd.grad; where torch has none, the eager path must do."""
    network, real = block(device)
    real = real.requires_grad_()
    expected = [value.detach() for value in r1_step(network, real)]
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            compiled = torch.compile(r1_step, fullgraph=True, backend=backend)
            found = [value.detach() for value in compiled(network, real)]
            again = [value.detach() for value in compiled(network, real)]
    else:
        found = again = [value.detach() for value in r1_step(network, real)]
        close([value.double().cpu() for value in found], r1_by_formulas(network, real))
    close(found, expected)
    close(again, expected)


def test_batches_of_other_sizes_are_right_and_compile_once_more(device):
    network, _ = block(device)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for n in (2, 3, 4, 7, 3, 13):
        x = drawn((n, 3, 8, 8), n, torch.float32, device)
        close(trained(compiled, network, x), trained(network, network, x))
    assert counter.frame_count <= 2, f"{counter.frame_count} compilations: the second must be for any batch"


def test_images_of_other_sizes_compile_once_more(device):
    f = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device)

    def step(x: Tensor) -> Tensor:
        return bias_act(upfirdn2d(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]), f, down=2, padding=-1), act="tanh")

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for side in (8, 9, 12, 31):
        x = leaf((2, 3, side, side + 3), side, torch.float32, device)
        close([compiled(x).detach()], [step(x).detach()])
        close(list(torch.autograd.grad(compiled(x).sum(), x)), list(torch.autograd.grad(step(x).sum(), x)))
    assert counter.frame_count <= 2


def test_a_wrong_value_is_the_same_error_under_the_compiler(device):
    x = torch.zeros(2, 3, 4, 4, device=device)
    with pytest.raises(Exception, match="padding|side|output"):
        torch.compile(lambda v: upfirdn2d(v, torch.ones(9, device=device)), backend="aot_eager")(x)


def test_functional_call(device):
    network, x = block(device)
    values = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    y = torch.func.functional_call(network, values, (x,))
    found = torch.autograd.grad(y.square().sum(), list(values.values()))
    close([y.detach(), *found], trained(network, network, x))


def test_activation_checkpointing(device):
    from torch.utils.checkpoint import checkpoint

    network, x = block(device)
    kept = trained(network, network, x)
    again = trained(lambda value: checkpoint(network, value, use_reentrant=False), network, x)
    close(again, kept)


def test_autocast_leaves_the_dtypes_alone(device):
    x, b, f = (drawn(shape, 1, torch.float32, device) for shape in ((2, 3, 4, 4), (3,), (4,)))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert bias_act(x, b, act="lrelu").dtype == torch.float32
        assert upfirdn2d(x, f, padding=2).dtype == torch.float32
        assert epilogue(x, b=b).dtype == torch.float32
