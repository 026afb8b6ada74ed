"""The blocks of the configuration that the training loop obeys, and the whole as the loop sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AfterValidator, Field, model_validator

from hires_gan.data.settings import DataSettings
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.settings import Cadence, HomePath, IntByResolution, Positive, PositiveInt, Settings
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.training.levers import Levers

Precision = Literal["bf16", "fp16", "fp32", "fp64"]
Performance = Literal["fast", "reference"]


def _bounds(processes: int | str) -> tuple[int, int | None]:
    """The least and the most of `8`, `8..16` or `any`; None for no bound."""
    if processes == "any":
        return 1, None
    least, dots, most = str(processes).partition("..")
    numbers = [least, most if dots else least]
    if not all(number.isdecimal() and int(number) for number in numbers) or int(numbers[0]) > int(numbers[1]):
        raise ValueError(f"{processes!r} is no number of processes; a number, a range such as 8..16, or any is allowed")
    return int(numbers[0]), int(numbers[1])


def _check_processes(processes: int | str) -> int | str:
    _bounds(processes)
    return processes


class RunSettings(Settings):
    """What this run is called, where it lives and how long it goes on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """The run's folder is `<dir>/<name>`: letters, digits, dot, underscore and hyphen."""

    dir: HomePath = Path("runs")
    """The folder of all runs."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Everything random follows from it."""

    total_kimg: Positive
    """Thousands of images shown to the discriminator before the run is finished."""

    resume: Literal["auto", "never", "required"] = "auto"
    """auto: go on from the latest checkpoint, if there is one; never: refuse if there is one; required: if not."""

    init_from: str | None = None
    """A checkpoint, a run's folder or models:/NAME/VERSION whose weights a new run starts with; null: random ones."""

    deterministic: bool = False
    """Use only deterministic kernels, so that a run on a GPU repeats bit for bit too."""

    profile: bool = False
    """Trace two steps under torch's profiler, into `profile` in the run's folder."""

    check_memory: bool = True
    """Take a dry step before the first one, on a GPU, and refuse a run that does not fit its memory."""

    stop_after_nonfinite: PositiveInt = 20
    """Stop after this many steps in a row with a gradient that is not finite."""


class BatchSettings(Settings):
    """How many images one step sees."""

    size: IntByResolution = 32
    """The global batch: a number, or a map by resolution."""

    per_device: Literal["auto"] | PositiveInt = "auto"
    """How many of them go through the networks at once; it never changes a result, only memory and speed.

    A discriminator may see as many reals and as many fakes in one pass."""


class OpsSettings(Settings):
    """Which implementation computes the ops that are compiled ahead of time."""

    backend: Literal["auto", "native", "reference"] = "auto"
    """native: compiled; reference: plain torch; auto: the faster one on the device. The start of a run says which."""

    require_native: bool = False
    """Refuse to start where the compiled ops are missing for the device, also where auto would not take them."""

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.require_native and self.backend == "reference":
            raise ValueError("require_native is true, but backend is reference; set one of them otherwise")
        return self


class BackendSettings(Settings):
    """How many processes train together, how they sum their gradients, and what they do when something goes wrong."""

    name: Literal["auto", "single", "data_parallel", "deepspeed"] = "auto"
    """single: one process; data_parallel: each with all weights and a share of the batch; deepspeed: each with a share
    of the optimizers' state as well (ZeRO); auto: what the launcher asks for."""

    zero_stage: Literal[1, 2] | None = None
    """With deepspeed: 1 divides the optimizers' state among the processes, 2 the gradients too; null: what the launcher
    asks for, or 2."""

    processes: Annotated[Literal["any"] | int | str, AfterValidator(_check_processes)] = "any"
    """How many the launcher may start: a number, a range such as 8..16, or any; others are refused at the start."""

    timeout: Annotated[float, Field(ge=10)] = 1800.0
    """Seconds without an answer after which a process counts as lost. The others wait for the first one while it draws
    a grid; while it compares what all have measured, it gives signs of life."""

    hang_after: Annotated[float, Field(ge=1)] | None = 900.0
    """Seconds without progress of any process after which the run ends, with a report of where each of them stands;
    null: never. What takes long at one go (an evaluation) counts as progress while it goes on."""

    grace: Annotated[float, Field(ge=1)] = 25.0
    """Seconds between a signal and the checkpoint, at most; then the run ends without one. Launchers like torchrun kill
    after 30."""

    @property
    def allowed(self) -> tuple[int, int | None]:
        """The least and the most processes; None for no bound."""
        return (1, 1) if self.name == "single" else _bounds(self.processes)


class CheckpointSettings(Settings):
    """When the whole state is written."""

    every_kimg: Cadence = 200.0
    """Also at the end of the run, and at a signal."""

    keep: PositiveInt = 3
    """How many of the latest are kept, besides the best."""


class SamplesSettings(Settings):
    """The grid of images from fixed latents, or of fixed images that are translated."""

    every_kimg: Cadence = 40.0
    """Also at the end of the run."""

    count: PositiveInt = 64
    """How many images the grid has; for a translation, how many images of each domain are translated."""

    styles: PositiveInt | None = None
    """For a translation: in how many styles each image is shown; null: 4."""


class EmaSettings(Settings):
    """The running average of the generator: exactly one of the two half-lives."""

    half_life_kimg: Positive | None = None
    """In thousands of images."""

    half_life_batches: Positive | None = None
    """In steps; Progressive GAN's decay of 0.999 is 693."""

    rampup: Positive | None = None
    """The half-life is never longer than this share of the images shown so far; null: it is, from the start."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.half_life_kimg is None) == (self.half_life_batches is None):
            raise ValueError("exactly one of half_life_kimg and half_life_batches is needed; set the other to null")
        return self


class Plan(Protocol):
    """The configuration as the training loop sees it; `config.Configuration` is one."""

    @property
    def run(self) -> RunSettings: ...  # noqa: D102
    @property
    def data(self) -> DataSettings: ...  # noqa: D102
    @property
    def recipe(self) -> RecipeSettings: ...  # noqa: D102
    @property
    def batch(self) -> BatchSettings: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102
    @property
    def performance(self) -> Performance: ...  # noqa: D102
    @property
    def levers(self) -> Levers: ...  # noqa: D102
    @property
    def ops(self) -> OpsSettings: ...  # noqa: D102
    @property
    def backend(self) -> BackendSettings: ...  # noqa: D102
    @property
    def checkpoint(self) -> CheckpointSettings: ...  # noqa: D102
    @property
    def samples(self) -> SamplesSettings: ...  # noqa: D102
    @property
    def ema(self) -> EmaSettings: ...  # noqa: D102
    @property
    def evaluation(self) -> EvaluationSettings: ...  # noqa: D102
    @property
    def tracking(self) -> TrackingSettings: ...  # noqa: D102
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...  # noqa: D102
    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...  # noqa: D102
