"""What the doctor says of shard sets and of servers, those that are there and those that are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hires_gan import doctor, doctor_data, doctor_store
from hires_gan.config import Configuration
from hires_gan.data.manifest import IMAGE, Manifest
from hires_gan.data.pictures import Encoded
from hires_gan.data.settings import DataSettings
from hires_gan.data.writer import ShardWriter, write_manifest
from hires_gan.doctor import Asked, examine
from hires_gan.doctor_devices import Finding
from hires_gan.tracking.settings import TrackingSettings


def make_set(folder: Path, samples: int = 3, resolution: int = 64) -> Path:
    """A shard set whose images are no images, which the doctor does not look at."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, 0, (IMAGE,), labelled=False, first_row=0) as writer:
        for _ in range(samples):
            writer.write({IMAGE: Encoded("png", b"not looked at")}, None)
        entry = writer.finish()
    write_manifest(
        folder, Manifest(resolution=resolution, count=samples, columns=(IMAGE,), filter="box", shards=(entry,))
    )
    return folder


def configured(run_dir: Path, **data: object) -> Configuration:
    return Configuration.model_validate(
        {
            "run": {"name": "first", "total_kimg": 1, "dir": str(run_dir)},
            "data": data,
            "recipe": {"name": "progressive", "resolution": 64},
        }
    )


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_a_volume_that_is_mounted_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, volume = make_set(tmp_path / "made"), tmp_path / "volume"
    volume.mkdir()
    asked = Asked(True, configured(tmp_path, shards=str(volume / "faces")), gpus=0)
    said: list[str] = []

    def mounted_then(line: str) -> None:
        said.append(line)
        made.rename(volume / "faces")

    monkeypatch.setattr(doctor, "say", mounted_then)
    checks = {check.name: check for check in examine(asked, wait=60, pause=0.1)}
    assert checks["data"].found == f"3 images at 64x64 in {volume}/faces"
    assert len(said) == 1


def look(resolution: int = 64, quick: bool = False, **settings: object) -> Finding:
    return doctor_data.data(DataSettings.model_validate(settings), resolution, quick)


@pytest.mark.parametrize("quick", [True, False])
def test_shard_sets(tmp_path: Path, quick: bool) -> None:
    a, b = make_set(tmp_path / "a"), make_set(tmp_path / "b", samples=1234)
    assert look(quick=quick, shards=str(a)) == Finding("ok", f"3 images at 64x64 in {a}")
    both = look(quick=quick, domains={"a": str(a), "b": str(b)})
    assert both == Finding("ok", f"3 images at 64x64 in {a}; 1,234 images at 64x64 in {b}")
    small = look(128, quick=quick, domains={"a": str(a), "b": str(b)})
    assert small.status == "wrong"
    assert small.found.startswith(f"data.domains.a has 3 images at 64x64 in {a}, but recipe.resolution is 128; data.")


def test_no_shard_set(tmp_path: Path) -> None:
    absent = look(shards=str(tmp_path / "faces"))
    assert absent.found == f"data.shards is {tmp_path}/faces, but it is not there; {tmp_path} has nothing in it"
    assert absent.passing
    assert "hires-gan prepare" in absent.remedy
    make_set(tmp_path / "face")
    misspelt = look(shards=str(tmp_path / "faces"))
    assert misspelt.found.endswith(f"; {tmp_path} has face")
    assert not misspelt.passing, "what is there shows that the volume is mounted"
    (tmp_path / "empty").mkdir()
    empty = look(shards=str(tmp_path / "empty"))
    assert (empty.found, empty.passing) == (f"data.shards is {tmp_path}/empty, but it is empty", True)
    (tmp_path / "file").touch()
    assert look(shards=str(tmp_path / "file")).found.endswith("but it is a file")
    (tmp_path / "empty" / "shard-000000.tar").touch()
    unfinished = look(domains={"a": str(tmp_path / "empty"), "b": str(tmp_path / "face")})
    assert unfinished.found.startswith(f"data.domains.a: {tmp_path}/empty is no finished shard set")
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    assert "lacks" in look(shards=str(tmp_path / "empty")).found


def test_of_several_domains_all_are_told_that_lack(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    finding = look(domains={"a": str(tmp_path / "empty"), "b": str(tmp_path / "file")})
    assert f"data.domains.a is {tmp_path}/empty, but it is empty; data.domains.b is {tmp_path}/file" in finding.found
    assert not finding.passing, "one of them will not come"


def test_a_shard_that_is_cut_off_is_found_by_the_full_check(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "a")
    tar = folder / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert look(quick=True, shards=str(folder)).status == "ok"
    finding = look(shards=str(folder))
    assert finding.status == "wrong"
    assert str(tar) in finding.found


def test_no_volume_below_the_shards_of_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(doctor_data, "is_own", lambda folder: True)
    (tmp_path / "something").touch()
    finding = look(shards=str(tmp_path / "faces"))
    assert finding.found.endswith("but it is not there, and no volume is mounted there")
    assert "`kubectl get pvc`" in finding.remedy
    assert finding.passing


def test_demo_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    finding = look(shards="demo:photographs")
    folder = tmp_path / "cache/hires_gan/demo/photographs-v2"
    assert finding == Finding("ok", f"demo:photographs, made on first use in {folder}")
    assert list(tmp_path.iterdir()) == [], "the doctor makes nothing"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    finding = look(shards="demo:photographs")
    assert finding.status == "wrong"
    assert "the cache /proc/nowhere/hires_gan cannot be written" in finding.found
    assert "XDG_CACHE_HOME" in finding.remedy
    monkeypatch.setattr(doctor_data, "find_spec", lambda name: None)
    assert "pip install 'hires-gan[demo]'" in look(shards="demo:photographs").remedy
    finding = look(shards="demo:photos")
    assert finding.status == "wrong"
    assert "there is no demo set 'photos': the demo sets are demo:photographs" in finding.found


# Servers


@pytest.fixture
def server() -> Iterator[Callable[[int], str]]:
    """A web server that answers everything with a status; gives its address."""
    started: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_HEAD = do_GET  # noqa: N815 - the names are those of HTTP

            def log_message(self, *_: object) -> None:
                pass

        web = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        started.append(web)
        return f"127.0.0.1:{web.server_port}"

    yield start
    for web in started:
        web.shutdown()
        web.server_close()


def test_a_store_of_shards(server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"http://{server(503)}/set"
    cache = {"cache": str(tmp_path)}
    assert look(quick=True, shards=url, stream=cache) == Finding("ok", f"{url}, not asked by --quick")
    away = look(shards=url, stream=cache)
    assert (away.status, away.passing) == ("wrong", True)
    assert f"data.shards is {url}, which cannot be read" in away.found
    absent = look(shards=f"http://{server(404)}/set", stream=cache)
    assert (absent.status, absent.passing) == ("wrong", False)
    assert "is no finished shard set" in absent.found
    unwritable = look(quick=True, shards=url, stream={"cache": "/proc/nowhere"})
    assert unwritable.found.startswith(f"data.shards is {url}, but data.stream.cache, /proc/nowhere, is not writable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert "but the cache /proc/nowhere/hires_gan cannot be written" in look(quick=True, shards=url).found
    assert "user name or a password" in look(shards="http://me:hunter2@127.0.0.1/set", stream=cache).found


def test_a_tracking_server(server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(uri: str) -> Finding:
        finding = doctor_store.store(TrackingSettings(uri=uri), tmp_path)
        assert finding.status == "wrong"
        assert "hunter2" not in finding.found + finding.remedy
        return finding

    closed = found(f"http://me:hunter2@{server(401)}")
    assert not closed.passing
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in closed.found
    away = found("http://me:hunter2@127.0.0.1:1")
    assert away.passing
    assert "Connection refused" in away.found
    assert not found(f"http://{server(404)}").passing
    assert found("http://no-such-host.invalid:5000").passing
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "http://SERVICE.NAMESPACE:PORT" in found("http://127.0.0.1:1").remedy
    assert "ConfigMap and its Secret" in found(f"http://{server(403)}").remedy
