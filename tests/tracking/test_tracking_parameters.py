"""Settings, keys, secrets and tags: what needs no store."""

from __future__ import annotations

import http.client
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from pydantic import ValidationError

from hires_gan.bench.identity import identity
from hires_gan.errors import Failure
from hires_gan.tracking import machine
from hires_gan.tracking.machine import machine_tags
from hires_gan.tracking.parameters import KEY_LENGTH, VALUE_LENGTH, flatten
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import reason, redact, resolve_uri, translated


@pytest.mark.parametrize("wrong", [{"every_kimg": 0}, {"every_kimg": None}, {"experiment": ""}, {"enabled": True}])
def test_settings_refuse(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrackingSettings.model_validate(wrong)


def test_settings_are_cheap_to_import() -> None:
    code = "import sys; import hires_gan.tracking.settings; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_flatten_writes_values_as_in_yaml() -> None:
    settings = {"recipe": {"generator": {"latent_size": 512}, "betas": (0.0, 0.99)}, "batch": {"size": {4: 16}}}
    assert flatten(settings) == {
        "recipe.generator.latent_size": "512",
        "recipe.betas": "[0.0, 0.99]",
        "batch.size.4": "16",
    }
    awkward = {
        "none": None,
        "yes": True,
        "path": Path("/a b"),
        "empty": {},
        "text": "",
        "tiny": 1e-8,
        "nan": float("nan"),
    }
    assert flatten(awkward) == {
        "none": "null",
        "yes": "true",
        "path": "/a b",
        "empty": "{}",
        "text": "",
        "tiny": "1e-08",
        "nan": "NaN",
    }


def test_flatten_makes_keys_and_values_fit() -> None:
    long = "k" * 300
    flat = flatten({"a@b/ü": 1, "..": 2, f"{long}x": 3, f"{long}y": 4, "text": "t" * 9000})
    assert flat["a_b__"] == "1" and flat["_.."] == "2"
    keys = [key for key in flat if key.startswith("kkk")]
    assert len(keys) == 2 and all(len(key) <= KEY_LENGTH and "..." in key for key in keys)
    assert len(flat["text"]) == VALUE_LENGTH and flat["text"].endswith("... (9000 characters)")


def test_secrets_are_not_shown() -> None:
    assert redact("http://ann:s3cret@host:5000/x") == "http://***@host:5000/x"
    assert redact("to postgresql://ann:s@3@db/x?sslpassword=abc&a=1") == "to postgresql://***@db/x?sslpassword=***&a=1"
    assert flatten({"tracking": {"uri": "https://ann:s3cret@host"}}) == {"tracking.uri": "https://***@host"}


def test_uri_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(TrackingSettings(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert resolve_uri(TrackingSettings(), tmp_path) == "http://host:1"
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingSettings(uri="sqlite:///a.db"), tmp_path) == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///a%20b.db", "sqlite:///a.db?mode=ro"])
def test_uri_that_is_no_file(uri: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"sqlite:///.*, by tracking\.uri, cannot be a SQLite store"):
        resolve_uri(TrackingSettings(uri=uri), tmp_path)


def test_the_reason_stands_below_its_headings() -> None:
    failures = (
        "failed while downloading from s3://x:\n##### File a/b.bin #####\n\n404 Not Found\n##### File c #####\nsame"
    )
    assert reason(Exception(failures)) == "failed while downloading from s3://x: File a/b.bin: 404 Not Found"
    assert reason(Exception("one line\nand another")) == "one line"
    assert reason(Exception("nothing below:\n \n")) == "nothing below:"
    assert reason(Exception("\n")) == "Exception"
    cut = requests.ConnectionError("HTTPConnectionPool(...)")
    cut.__cause__ = Exception("Connection aborted.")
    cut.__context__ = http.client.RemoteDisconnected("Remote end closed connection without response")
    assert reason(cut) == "the connection was lost"
    assert reason(Exception("x" * 400 + ":\nthe cause")) == "x" * 300 + "... the cause"
    assert (
        reason(Exception("of http://me:secret@host:\nhttp://me:secret@host")) == "of http://***@host: http://***@host"
    )


@pytest.mark.parametrize(
    ("words", "remedy"), [("database or disk is full", "make room on its disk"), ("no", "check that its folder can be")]
)
def test_what_helps_a_sqlite_store(words: str, remedy: str) -> None:
    with pytest.raises(Failure, match=rf"cannot be used \({words}\): {remedy}"), translated("sqlite:////a/mlflow.db"):
        raise sqlite3.OperationalError(words)


def test_machine_tags() -> None:
    tags = machine_tags()
    assert int(tags["cpu.count"]) >= 1 and float(tags["memory.gib"]) > 0 and tags["host"]
    assert {"version.torch", "version.accelerate", "version.mlflow", "version.hires_gan", "version.cuda"} <= tags.keys()
    assert (tags["gpu.count"] == "0") == (tags["gpu.name"] == "none")
    assert all(isinstance(value, str) for value in tags.values())


def test_a_package_that_tells_no_version_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mlflow where nothing needs it, or copied without its metadata: no reason not to measure."""
    installed = machine.metadata.version

    def version(name: str) -> str:
        if name == "mlflow":
            raise machine.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(machine.metadata, "version", version)
    head = identity("train")
    assert head["version.mlflow"] == "none" and head["version.torch"] == installed("torch")


@pytest.mark.parametrize(
    ("told", "tags"),
    [
        ("", {}),
        ("3f2a", {"mlflow.source.git.commit": "3f2a", "git.commit": "3f2a", "git.dirty": "false"}),
        ("3f2a-dirty", {"mlflow.source.git.commit": "3f2a", "git.commit": "3f2a", "git.dirty": "true"}),
    ],
)
def test_the_image_names_its_commit(told: str, tags: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)  # no git there
    monkeypatch.setenv("HIRES_GAN_COMMIT", told)
    found = machine_tags()
    assert {key: value for key, value in found.items() if "git" in key} == tags


@pytest.mark.parametrize(
    ("started", "source"),
    [
        ("/somewhere/hires_gan/__main__.py", "hires-gan"),  # -m hires_gan, as launchers start it
        ("/somewhere/bin/hires-gan", "/somewhere/bin/hires-gan"),
        ("own/training.py", "own/training.py"),
    ],
)
def test_the_source_is_the_command(started: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "argv", [started])
    assert machine_tags()["mlflow.source.name"] == source
