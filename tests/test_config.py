"""The configuration: layers, every error's exact sentence, and the way there and back through YAML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hires_gan import config
from hires_gan.config import Configuration, json_schema, load_configuration, to_yaml
from hires_gan.errors import UsageError
from hires_gan.evaluation import swd
from hires_gan.evaluation.catalogue import METRICS
from hires_gan.training.settings import Plan

EVERY_METRIC = " or ".join(", ".join(METRICS).rsplit(", ", 1))

ROOT = Path(__file__).resolve().parent.parent
SMALL = """
run: {name: first, total_kimg: 100}
data: {shards: "demo:photographs"}
recipe: {name: progressive, resolution: 64}
"""
NAME = "text of 0 to 200 characters like ^[A-Za-z0-9][A-Za-z0-9._-]*$ (The run's folder is `<dir>/<name>`: letters, "
NAME += "digits, dot, underscore and hyphen.)"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.yaml", SMALL)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def errors(path: Path, *overrides: str) -> list[str]:
    """What is wrong, a line each, the folder of the files cut off."""
    with pytest.raises(UsageError) as caught:
        load_configuration(path, overrides)
    text = str(caught.value).replace(f"{path.parent}/", "")
    assert not re.search(r"Input should|Extra inputs|Value error|validation error|pydantic|Traceback", text)
    return text.splitlines()


# Layers


def test_defaults_and_the_types_of_what_was_written(small: Path) -> None:
    configuration = load_configuration(small)
    assert configuration.run.total_kimg == 100.0
    assert configuration.recipe.loss.name == "wgan_gp"
    assert configuration.ema.half_life_kimg == 10
    assert configuration.precision == "bf16"
    plan: Plan = configuration
    assert plan.batch.size == 32


def test_numbers_and_words_are_what_the_schema_wants(tmp_path: Path) -> None:
    text = """
run: {name: on, total_kimg: 2e3, dir: 2024-01-31}
data: {shards: "1e3", mirror: yes}
recipe:
  name: progressive
  resolution: 64
  labels: off
  generator_optimizer: {learning_rate: 2e-3, eps: 1E-8, betas: [0, .99]}
  discriminator_optimizer: {learning_rate: 1.5e-3}
"""
    configuration = load_configuration(write(tmp_path / "a.yaml", text), ["ema.half_life_kimg=2e1"])
    assert configuration.run.name == "on"
    assert configuration.run.dir == Path("2024-01-31")
    assert configuration.run.total_kimg == 2000
    assert configuration.data.shards == "1e3"
    assert configuration.data.mirror is True
    assert configuration.recipe.labels is False
    assert configuration.recipe.generator_optimizer.learning_rate == 0.002
    assert configuration.recipe.generator_optimizer.betas == (0.0, 0.99)
    assert configuration.ema.half_life_kimg == 20


@pytest.mark.parametrize("name", ["42", "007", "off", "1_000", "12-31", "null-hypothesis"])
def test_a_name_on_the_command_line_needs_no_quotes(small: Path, name: str) -> None:
    assert load_configuration(small, [f"run.name={name}"]).run.name == name


def test_bases_merge_blocks_and_replace_maps_by_resolution_and_lists(tmp_path: Path) -> None:
    write(
        tmp_path / "deep" / "root.yaml",
        SMALL
        + "batch: {size: {4: 16, 16: 8}, per_device: 8}\n"
        + "checkpoint: {every_kimg: 5, keep: 7}\n"
        + "evaluation: {metrics: [swd, swd]}\n",
    )
    write(tmp_path / "middle.yaml", "base: deep/root.yaml\nrun: {seed: 3}\nbatch: {size: {4: 8, 8: 4}}\n")
    top = write(tmp_path / "top.yaml", "base: middle.yaml\nrun: {name: top}\nevaluation: {metrics: [swd]}\n")
    configuration = load_configuration(top, ["checkpoint.keep=9"])
    assert (configuration.run.name, configuration.run.seed, configuration.run.total_kimg) == ("top", 3, 100)
    assert configuration.batch.size == {4: 8, 8: 4}
    assert configuration.batch.per_device == 8
    assert (configuration.checkpoint.every_kimg, configuration.checkpoint.keep) == (5, 9)
    assert configuration.evaluation.metrics == ("swd",)


def test_another_name_resets_the_block_and_the_same_name_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", SMALL.replace("64}", "64, loss: {name: wgan_gp, gp: 5, drift: 0.5}}"))
    assert load_configuration(path, ["recipe.loss.name=wgan_gp"]).recipe.loss.gp == 5
    assert load_configuration(path, ["recipe.loss.r1=1"]).recipe.loss.model_dump(include={"gp", "r1"}) == {
        "gp": 5,
        "r1": 1,
    }
    hinge = load_configuration(path, ["recipe.loss.r1=10", "recipe.loss.name=hinge"]).recipe.loss
    assert (hinge.name, hinge.r1, hinge.gp, hinge.drift) == ("hinge", 10, 0, 0)
    assert load_configuration(path, ["recipe.loss={name: wgan, clip: 0.1}"]).recipe.loss.drift == 0
    assert load_configuration(path, ["run.name=other"]).run.total_kimg == 100, "run.name is no union's name"


def test_a_block_without_its_name_takes_the_default_one(small: Path) -> None:
    assert load_configuration(small, ["recipe.loss.gp=5"]).recipe.loss.model_dump(include={"name", "gp"}) == {
        "name": "wgan_gp",
        "gp": 5,
    }


def test_overrides_split_at_the_first_equals_sign_and_the_last_wins(small: Path) -> None:
    configuration = load_configuration(
        small, ["data.shards=pipe:cat a=b", "run={seed: 5, resume: never}", "run.seed=6", "samples.every_kimg=null"]
    )
    assert configuration.data.shards == "pipe:cat a=b"
    assert (configuration.run.seed, configuration.run.resume, configuration.run.name) == (6, "never", "first")
    assert configuration.samples.every_kimg is None


def test_an_override_reaches_one_entry_of_a_map_by_resolution(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", SMALL + "batch: {size: {4: 16, 16: 8}}\n")
    assert load_configuration(path, ["batch.size.16=4", "batch.size.32=20"]).batch.size == {4: 16, 16: 4, 32: 20}
    assert load_configuration(path, ["batch.size={4: 8}", "batch.size.16=4"]).batch.size == {4: 8, 16: 4}
    assert load_configuration(path, ["batch.size.16=4", "batch.size={4: 8}"]).batch.size == {4: 8}


def test_aliases_and_merge_keys_of_yaml(tmp_path: Path) -> None:
    text = SMALL.replace(
        "64}", "64, generator_optimizer: &adam {learning_rate: 0.5}, discriminator_optimizer: {<<: *adam, eps: 1e-3}}"
    )
    recipe = load_configuration(write(tmp_path / "a.yaml", text)).recipe
    assert recipe.discriminator_optimizer.learning_rate == recipe.generator_optimizer.learning_rate == 0.5
    assert recipe.discriminator_optimizer.eps == 1e-3


# Errors in files


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a.yaml is empty; a map of keys is needed, such as `run: {name: first, total_kimg: 100}`"),
        ("- 1\n", "a.yaml holds a list; a map of keys is needed, such as `run: {name: first, total_kimg: 100}`"),
        ("run: {name: [\n", "a.yaml, line 2, column 1: this is no valid YAML: expected the node content, but found "
         "'<stream end>'"),
        ("a: b: c\n", "a.yaml, line 1, column 5: this is no valid YAML: mapping values are not allowed here"),
        ("run:\n  seed: 1\n  name: a\n  seed: 2\n", "a.yaml, line 4: run.seed stands already in line 2; keep one of "
         "the two"),
        ("batch: {size: {4: 1, 4: 2}}\n", "a.yaml, line 1: batch.size.4 stands already in line 1; keep one of the two"),
        ("a: &a {b: *a}\n", "a.yaml, line 1: what is anchored here repeats itself inside itself; write it out"),
        ("run: !!python/object:os.system x\n", "a.yaml, line 1, column 6: this is no valid YAML: could not determine a "
         "constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: 1\n---\nb: 1\n", "a.yaml, line 2, column 1: this is no valid YAML: but found another document"),
        ("base: [b.yaml]\n", "a.yaml, line 1: base names one YAML file, relative to this one, such as `base: "
         "progressive.yaml`"),
        ("base:\n", "a.yaml, line 1: base names one YAML file, relative to this one, such as `base: progressive.yaml`"),
        ("\nbase: b.yaml\n", "a.yaml, line 2: base is b.yaml, but there is no file b.yaml"),
        ("base: a.yaml\n", "a.yaml, line 1: the bases form a circle, a.yaml -> a.yaml; take one `base` out"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_file(tmp_path: Path, text: str, sentence: str) -> None:
    assert errors(write(tmp_path / "a.yaml", text)) == [sentence]


def test_a_circle_of_three_is_named(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        write(tmp_path / f"{name}.yaml", f"base: {base}.yaml\n")
    assert errors(tmp_path / "a.yaml") == [
        "c.yaml, line 1: the bases form a circle, a.yaml -> b.yaml -> c.yaml -> a.yaml; take one `base` out"
    ]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "image.yaml").write_bytes(b"ab\xff\xd8")
    (tmp_path / "bell.yaml").write_bytes(b"a: \x07\n")
    assert errors(tmp_path / "no.yaml") == ["no.yaml does not exist; name a YAML file, such as configs/demo.yaml"]
    assert errors(folder) == ["folder is a folder; name a YAML file, such as configs/demo.yaml"]
    assert errors(tmp_path / "image.yaml") == ["image.yaml is no text in UTF-8 (byte 2); name a YAML file"]
    assert errors(tmp_path / "bell.yaml") == [
        "bell.yaml: this is no valid YAML: unacceptable character #x0007: special characters are not allowed"
    ]


# Errors in keys and values


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("run.total_kimg=abc", 'run.total_kimg is "abc"; allowed: a number above 0'),
        ("run.total_kimg=.inf", "run.total_kimg is Infinity; allowed: a number above 0"),
        ("run.seed=-1", "run.seed is -1; allowed: a whole number from 0 to below 4294967296"),
        ("run.seed=1.5", "run.seed is 1.5; allowed: a whole number from 0 to below 4294967296"),
        ("run.seed=true", "run.seed is true; allowed: a whole number from 0 to below 4294967296"),
        ("run.name=a/b", f'run.name is "a/b"; allowed: {NAME}'),
        ("run.name=1.50", f"run.name is 1.5; allowed: {NAME}; to make it text, quote it: '\"1.5\"'"),
        ("run.dir=", "run.dir is null; allowed: a path"),
        ("run.resume=atuo", 'run.resume is "atuo"; allowed: auto, never or required; did you mean auto?'),
        (
            "data.shards=",
            "data: neither shards nor domains is given; exactly one of them is needed: shards names a shard set, "
            "domains one for each domain that is translated; set the other to null",
        ),
        ("data.workers=-1", "data.workers is -1; allowed: auto or a whole number from 0 to 256"),
        ("data.workers=outo", 'data.workers is "outo"; allowed: auto or a whole number from 0 to 256; did you mean '
         "auto?"),
        ("data.mirror=3", "data.mirror is 3; allowed: true or false"),
        ("data.decoder=cuda", 'data.decoder is "cuda"; allowed: torchvision, dali or dali-cpu'),
        ("precision=bf61", 'precision is "bf61"; allowed: bf16, fp16, fp32 or fp64; did you mean bf16?'),
        ("checkpoint=null", "checkpoint is null; allowed: a block of every_kimg, keep"),
        ("checkpoint.every_kimg=0", "checkpoint.every_kimg is 0; allowed: a number above 0 or null"),
        ("checkpoint.every_kimg=off", 'checkpoint.every_kimg is "off"; allowed: a number above 0 or null'),
        ("evaluation.metrics=swd", f'evaluation.metrics is "swd"; allowed: a list, each {EVERY_METRIC}'),
        ("evaluation.metrics=[fidd]", f'evaluation.metrics.0 is "fidd"; allowed: {EVERY_METRIC}; did you mean fid?'),
        ("evaluation.metrics=[]", "evaluation: best is swd, which is not among metrics; add it there, or set best to "
         "null"),
        ("batch.size=big", 'batch.size is "big"; allowed: a whole number above 0 or a map by resolution, to a whole '
         "number above 0 each"),
        ("batch.size={4: -1}", "batch.size.4 is -1; allowed: a whole number above 0"),
        ("batch.size={4: true}", "batch.size.4 is true; allowed: a whole number above 0"),
        ("batch.size={four: 1}", "batch.size.four is no resolution; a map by resolution has keys such as 4, 8 or 1024"),
        ("batch.size={}", "batch.size: the map is empty; it needs an entry for the lowest resolution"),
        ("recipe.resolution=1000", "recipe.resolution: 1000 is no resolution; a power of two from 4 up is allowed, "
         "such as 256, 512 or 1024"),
        (
            "recipe.name=progresive",
            'recipe.name is "progresive"; allowed: progressive, stylegan, stylegan2 or munit; '
            "did you mean progressive?",
        ),
        ("recipe.loss.name=hing", 'recipe.loss.name is "hing"; allowed: wgan_gp, wgan, minimax, non_saturating, '
         "least_squares or hinge; did you mean hinge?"),
        ("recipe.loss.gp=-1", "recipe.loss.gp is -1; allowed: a number above 0"),
        ("recipe.loss=3", "recipe.loss is 3; allowed: a block whose name is wgan_gp, wgan, minimax, non_saturating, "
         "least_squares or hinge"),
        ("recipe.loss.clip=1", "recipe.loss.clip does not go with recipe.loss.name wgan_gp; it goes with wgan"),
        ("recipe.generator_optimizer.betas=[0]", "recipe.generator_optimizer.betas is [0]; allowed: a list of 2, each "
         "a number from 0 to below 1"),
        ("recipe.generator_optimizer.betas=[0, 1]", "recipe.generator_optimizer.betas.1 is 1; allowed: a number from 0 "
         "to below 1"),
        ("ema.half_life_batches=3", None),
        ("ema={}", "ema: exactly one of half_life_kimg and half_life_batches is needed; set the other to null"),
        ("recipe.generator_optimizer.learning_rate={8: 1}", "recipe: generator_optimizer.learning_rate has no entry "
         "for resolution 4; the lowest of the map is 8; add an entry for 4"),
        ("recipe.schedule.start_resolution=128", "recipe: schedule.start_resolution is 128; it must be at most "
         "resolution, 64"),
        # Unknown keys: a sibling, elsewhere, joined, initials, nowhere.
        ("recipe.genrator.latent_size=3", "recipe.genrator is unknown; did you mean recipe.generator?"),
        ("data.worker=3", "data.worker is unknown; did you mean data.workers?"),
        ("lr=1e-3", "lr is unknown; did you mean recipe.generator_optimizer.learning_rate or "
         "recipe.discriminator_optimizer.learning_rate?"),
        ("recipe.discriminator_optimizer.lr=1", "recipe.discriminator_optimizer.lr is unknown; did you mean "
         "recipe.discriminator_optimizer.learning_rate?"),
        ("seed=1", "seed is unknown; did you mean run.seed?"),
        ("batch_size=1", "batch_size is unknown; did you mean batch.size?"),
        ("bs=1", "bs is unknown; did you mean batch.size?"),
        ("learning-rate=1", "learning-rate is unknown; did you mean recipe.generator_optimizer.learning_rate or "
         "recipe.discriminator_optimizer.learning_rate?"),
        ("samples.foo=1", "samples.foo is unknown; allowed here: every_kimg, count, styles"),
        ("foo=1", "foo is unknown; allowed at the top: run, data, recipe, batch, precision, performance, levers, ops, "
         "backend, checkpoint, samples, ema, evaluation, tracking"),
        ("base=a.yaml", "base is a key of a file, not of an override"),
    ],
)  # fmt: skip
def test_every_wrong_value_has_its_sentence(small: Path, override: str, sentence: str | None) -> None:
    if sentence is None:
        load_configuration(small, [override])
    else:
        assert errors(small, override) == [f"{sentence} (override {override})"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("run.seed", "'run.seed' is no override; write key=value, such as run.seed=1"),
        ("=3", "'=3' names no key; write key.path=value, such as run.seed=1"),
        ("run..seed=3", "'run..seed=3' names no key; write key.path=value, such as run.seed=1"),
        ("run.dir=[", "override 'run.dir=[', line 1, column 2: this is no valid YAML: expected the node content, but "
         "found '<stream end>'; quote the value if it is text"),
    ],
)  # fmt: skip
def test_what_is_no_override(small: Path, override: str, sentence: str) -> None:
    assert errors(small, override) == [sentence]


def test_missing_keys_are_named_even_where_their_block_is_missing(tmp_path: Path) -> None:
    assert errors(write(tmp_path / "a.yaml", "precision: fp32\nrecipe: {resolution: 8}\n")) == [
        f"run.name is missing; needed: {NAME} (a.yaml)",
        "run.total_kimg is missing; needed: a number above 0 (a.yaml)",
        "data: neither shards nor domains is given; exactly one of them is needed: shards names a shard set, "
        "domains one for each domain that is translated; set the other to null (a.yaml)",
        "recipe.name is missing; needed: progressive, stylegan, stylegan2 or munit (a.yaml)",
    ]


def test_all_errors_come_at_once_each_with_its_file_and_line_or_override(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", SMALL + "samples:\n  count: 0\n  every_kimg: 3\n")
    path = write(tmp_path / "a.yaml", "base: base.yaml\nrun:\n  total_kimg: never\n  sed: 1\n4: 5\n")
    assert errors(path, "nothing", "recipe.resolution=3", "ema.x=1") == [
        "'nothing' is no override; write key=value, such as run.seed=1",
        'run.total_kimg is "never"; allowed: a number above 0 (a.yaml, line 3)',
        "run.sed is unknown; did you mean run.seed? (a.yaml, line 4)",
        "recipe.resolution: 3 is no resolution; a power of two from 4 up is allowed, such as 256, 512 or 1024 "
        "(override recipe.resolution=3)",
        "samples.count is 0; allowed: a whole number above 0 (base.yaml, line 6)",
        "ema.x is unknown; allowed here: half_life_kimg, half_life_batches, rampup (override ema.x=1)",
        "4 is unknown; allowed at the top: run, data, recipe, batch, precision, performance, levers, ops, backend, "
        "checkpoint, samples, ema, evaluation, tracking (a.yaml, line 5)",
    ]


# Several blocks at once


def test_a_batch_must_be_whole_groups_at_every_resolution(small: Path) -> None:
    assert errors(small, "batch.size={4: 16, 8: 6, 32: 10, 64: 10}") == [
        "batch.size is 6 at resolution 8, not a multiple of recipe.discriminator.group_size, 4; take 4 or 8, or a "
        "group_size that divides 6",
        "batch.size is 10 at resolution 32, not a multiple of recipe.discriminator.group_size, 4; take 8 or 12, or a "
        "group_size that divides 10",
    ]
    assert load_configuration(small, ["batch.size=3"]).batch.size == 3, "one group of three"
    assert load_configuration(small, ["batch.size={4: 16, 128: 6}"]).batch.size, "128 is never trained"


def test_per_device_must_hold_whole_groups(small: Path) -> None:
    assert errors(small, "batch.per_device=6") == [
        "batch.per_device is 6, not whole groups of 4 samples at resolution 4 (batch.size 32, "
        "recipe.discriminator.group_size 4); take a multiple of 4, or auto"
    ]
    assert errors(small, "batch.size=3", "batch.per_device=2") == [
        "batch.per_device is 2, not whole groups of 3 samples at resolution 4 (batch.size 3, "
        "recipe.discriminator.group_size 4); take a multiple of 3, or auto"
    ]
    for allowed in ("8", "12", "33", "auto"):
        load_configuration(small, [f"batch.per_device={allowed}"])


def test_the_map_of_batch_sizes_covers_the_first_resolution(small: Path) -> None:
    assert errors(small, "batch.size={8: 16}") == [
        "batch.size has no entry for resolution 4, at which training starts; the lowest of the map is 8: add "
        "an entry for 4"
    ]
    load_configuration(small, ["batch.size={8: 16}", "recipe.schedule.start_resolution=8"])


def test_swd_needs_a_pyramid(small: Path) -> None:
    assert errors(small, "recipe.resolution=8") == [
        "evaluation.metrics has swd, which needs recipe.resolution to be 16 or more, but it is 8; set "
        "evaluation.metrics=[] and evaluation.best=null, or take a higher resolution"
    ]
    load_configuration(small, ["recipe.resolution=16"])
    off = load_configuration(small, ["recipe.resolution=8", "evaluation.metrics=[]", "evaluation.best=null"])
    assert (off.evaluation.metrics, off.evaluation.best) == ((), None)
    assert config._LOWEST_FOR_SWD == swd.LOWEST_RESOLUTION


# There and back


def by_resolution(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    above = st.dictionaries(st.sampled_from([8, 64, 1024]), value)
    return value | st.builds(lambda first, rest: {4: first, **rest}, value, above)


positive = st.floats(1e-12, 1e12) | st.integers(1, 10**6)
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff"), min_size=1)
awkward = text | st.sampled_from(
    ["2e-3", "on", "null", "~", "1:30", "007", "1_0", "=", "<<", "- a", "a: b", "#", "2024-1-1"]
)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")
weights = st.fixed_dictionaries({}, optional=dict.fromkeys(("r1", "r2", "gp", "drift", "label_weight"), positive))
losses = st.builds(
    lambda name, rest: {"name": name, **rest}, st.sampled_from(["wgan_gp", "wgan", "hinge", "minimax"]), weights
)
adam = st.fixed_dictionaries({"learning_rate": by_resolution(positive), "eps": positive})
configurations = st.fixed_dictionaries(
    {
        "run": st.fixed_dictionaries(
            {"name": names, "total_kimg": positive, "dir": awkward, "seed": st.integers(0, 2**32 - 1)}
        ),
        "data": st.fixed_dictionaries(
            {"shards": awkward, "mirror": st.booleans(), "workers": st.just("auto") | st.integers(0, 256)}
        ),
        "recipe": st.fixed_dictionaries(
            {
                "name": st.just("progressive"),
                "resolution": st.sampled_from([4, 64, 1024]),
                "loss": losses,
                "generator_optimizer": adam,
            }
        ),
        "batch": st.fixed_dictionaries({"size": by_resolution(st.integers(1, 50).map(lambda groups: 4 * groups))}),
        "ema": st.just({"half_life_batches": 693}) | st.builds(lambda value: {"half_life_kimg": value}, positive),
        "checkpoint": st.fixed_dictionaries({"every_kimg": st.none() | positive}),
        "evaluation": st.just({"metrics": [], "best": None}),  # any metric would ask for a resolution
        "tracking": st.fixed_dictionaries({"uri": st.none() | awkward, "experiment": awkward}),
    }
).map(Configuration.model_validate)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(configuration=configurations)
def test_a_resolved_configuration_loads_to_an_equal_one(tmp_path: Path, configuration: Configuration) -> None:
    text = to_yaml(configuration)
    assert load_configuration(write(tmp_path / "resolved.yaml", text)) == configuration
    for key in ("run", "data", "tracking"):  # PyYAML itself reads the same text, so that other programs do
        assert all(not isinstance(value, str) or value == yaml.safe_load(text)[key][name]
                   for name, value in getattr(configuration, key).model_dump(mode="json").items())  # fmt: skip
    assert Configuration.model_validate(json.loads(json.dumps(configuration.model_dump(mode="json")))) == configuration


def test_a_resolved_configuration_is_readable(small: Path) -> None:
    text = to_yaml(load_configuration(small, ["batch.size={4: 16, 16: 8}", "recipe.loss.name=hinge"]))
    assert "batch:\n  size: {4: 16, 16: 8}\n  per_device: auto\n" in text
    assert "    betas: [0.0, 0.99]\n    eps: 1.0e-08\n" in text
    assert "  loss:\n    name: hinge\n    r1: 0.0\n" in text


def shipped() -> list[Path]:
    return sorted((ROOT / "configs").glob("*.yaml"))


def test_configurations_are_shipped() -> None:
    assert shipped(), "configs/ holds no YAML"


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    configuration = load_configuration(path)
    assert load_configuration(write(tmp_path / "resolved.yaml", to_yaml(configuration))) == configuration


# The schema, and what loading touches


def test_the_schema_describes_every_key_and_knows_base() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["properties"]["base"]["type"] == "string"
    assert set(Configuration.model_fields) < set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["GrowingScheduleSettings"]["properties"]["fade_kimg"]["description"]


def test_loading_imports_no_torch_and_opens_nothing_but_the_yaml(small: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from hires_gan.config import load_configuration
opened = []
touching = ("open", "os.mkdir", "os.listdir", "os.scandir")
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in touching else None)
load_configuration(Path({str(small)!r}), ["data.shards=/nowhere/at/all", "run.dir=/nowhere/either"])
assert opened == [{str(small)!r}], opened
assert "torch" not in sys.modules and "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
