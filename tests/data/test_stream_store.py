"""Reading a set from a store or a pipe: what is tried again, what is not, and that no secret is ever shown."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import fsspec.config
import pytest
from input_definition import write_shards
from shard_server import serving
from streamed_sets import UNEVEN, later, when

from hires_gan.data import retries, store, waiting
from hires_gan.data.opening import open_shards
from hires_gan.data.replacement import CorruptRow, CorruptRows, Report
from hires_gan.data.shards import ShardSet
from hires_gan.data.store import UrlStore, open_store, watched
from hires_gan.data.store_errors import Passing, judge, told, without_secrets
from hires_gan.errors import Failure, UsageError

FILES, LABELS, COUNT, SIDE, is_whole = UNEVEN.files, UNEVEN.labels, UNEVEN.count, UNEVEN.side, UNEVEN.is_whole
SECRET = "hunter2-and-more"
pytestmark = pytest.mark.usefixtures("everything_is_said")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return UNEVEN.write(tmp_path_factory.mktemp("served") / "set")


# --- where a set can be -----------------------------------------------------------------------------------------------


def test_a_set_behind_http_is_the_set(server, settings, folder):
    shards = open_shards(server.url + "/", settings())
    assert shards.streamed
    assert str(shards.folder) == server.url
    assert is_whole(shards)
    local = ShardSet(folder)
    assert shards.label_counts.tolist() == local.label_counts.tolist() == [8, 8, 8]
    assert [shards.key_of(row) for row in (0, 23)] == ["000000000", "000000023"]
    assert shards.read_start(7, "image", 8) == FILES[7][:8]
    assert shards.manifest == local.manifest
    assert set(server.fetched().values()) == {1}  # every file once, in one request


def test_labels_alone_are_fetched_where_only_their_counts_are_asked_for(server, settings):
    shards = open_shards(server.url, settings())
    assert shards.label_counts.tolist() == [8, 8, 8]
    assert {name.rpartition(".")[2] for name in server.fetched()} == {"json", "labels"}


def test_a_set_behind_a_file_url_and_in_memory(folder, settings):
    assert is_whole(open_shards(folder.as_uri(), settings()))
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"/sets/one/{path.name}", path.read_bytes())
    shutil.rmtree(settings().cache)
    assert is_whole(open_shards("memory://sets/one", settings()))


def test_another_process_needs_no_second_manifest(server, settings):
    shards = pickle.loads(pickle.dumps(open_shards(server.url, settings())))
    assert is_whole(shards)
    assert server.fetched()["manifest.json"] == 1


def test_a_changed_set_is_noticed_at_every_opening(server, settings, tmp_path):
    first = open_shards(server.url, settings())
    assert is_whole(first)
    other = write_shards(tmp_path / "other", FILES[::-1], SIDE, LABELS, per_shard=5)
    with serving(other, tmp_path / "second") as second:
        shards = open_shards(second.url, settings())
        assert shards.manifest.digest() != first.manifest.digest()
        assert [shards.read(row) for row in range(COUNT)] == FILES[::-1]
    assert is_whole(first)


def test_s3_through_s3fs(server, settings, monkeypatch):
    """The same server as a bucket: reading needs no more of the protocol than HEAD and GET with a range."""
    pytest.importorskip("s3fs")
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{server.port}", "key": "name", "secret": SECRET}
    )
    assert is_whole(open_shards("s3://sets/set", settings()))
    server.fail(status={"shard-000001.tar": 403})
    shutil.rmtree(settings().cache)
    with pytest.raises(
        UsageError, match=r"s3://sets/set/shard-000001\.tar may not be read .*AWS_ACCESS_KEY_ID"
    ) as said:
        is_whole(open_shards("s3://sets/set", settings()))
    assert SECRET not in str(said.value)
    server.fail(status={"shard-000001.tar": 404})
    with pytest.raises(Failure, match=r"there is no s3://sets/set/shard-000001\.tar"):
        is_whole(open_shards("s3://sets/set", settings()))
    server.fail(status={"shard-000001.tar": 503})
    later(1.0, server.fail)
    assert is_whole(open_shards("s3://sets/set", settings()))


# --- locations that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (f"https://me:{SECRET}@host/set", r"a https:// URL with a user name or a password in it"),
        (f"s3://{SECRET}@bucket/set", r"a user name or a password"),
        (f"sftp://me:{SECRET}@host/set", r"a user name or a password"),
        (f"https://host/set?X-Amz-Signature={SECRET}", r"with a query or a fragment"),
        (f"https://host/set#{SECRET}", r"with a query or a fragment"),
        ("simplecache::s3://bucket/set", r"no chain of protocols"),
        ("S3://bucket/set", r"PROTOCOL in small letters"),
        ("https://", r"name the folder that holds the set"),
        ("nonsense://bucket/set", r"fsspec knows no protocol nonsense://"),
    ],
)
def test_locations_that_cannot_be(location, why, settings):
    with pytest.raises(UsageError, match=why) as said:
        open_shards(location, settings())
    assert SECRET not in str(said.value)


def test_a_user_without_a_password_is_no_secret():
    """Such as those of sftp://, and the containers of Azure's URLs."""
    assert store._checked("sftp://me@host/set/") == ("sftp", "sftp://me@host/set")
    assert store._checked("abfs://container@account.dfs.core.windows.net/set")[0] == "abfs"


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "fsspec[http]")])
def test_a_missing_package_is_named(protocol, package):
    code = f"""
import sys
for name in ("s3fs", "gcsfs", "aiohttp"):
    sys.modules[name] = None
from hires_gan.data.store import open_store
try:
    open_store("{protocol}://bucket/set", False)
except Exception as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"UsageError {protocol}:// needs a package that is missing: pip install '{package}'\n"


def test_a_url_without_a_set(server, settings):
    with pytest.raises(UsageError, match=r"is no finished shard set \(there is no http.*/nowhere/manifest\.json\)"):
        server.fail(status={"manifest.json": 404})
        open_shards(server.url.replace("/set", "/nowhere"), settings())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the manifest of a shard set"),
        ('{"format": "hires_gan shards", "version": 99}', "update hires-gan"),
        ('{"format": "hires_gan shards", "version": 1}', "is no valid manifest"),
    ],
)
def test_a_manifest_that_is_none(text, why, settings, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text(text)
    with pytest.raises(Failure, match=rf"^file://.*/bad/manifest\.json.* {why}|^file://.*/bad/manifest\.json {why}"):
        open_shards((tmp_path / "bad").as_uri(), settings())


def test_a_manifest_that_does_not_add_up(folder, settings, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"count": 25}
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Failure, match=r"there are 25 samples, but its shards add up to 24: .*upload the set anew"):
        open_shards((tmp_path / "bad").as_uri(), settings())


# --- what may pass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_overloaded_store_is_tried_again_and_it_is_said(server, settings, status, capfd):
    shards = open_shards(server.url, settings())
    server.fail(status={"*": status})
    when(lambda: server.fetched()["shard-000000.tar"] >= 2, server.fail)
    assert is_whole(shards)
    said = capfd.readouterr().err
    assert f"{server.url}/shard-000000.tar could not be read (ClientResponseError: {status}" in said
    first, second = (float(pause) for pause in re.findall(r"trying again in ([\d.]+) s", said)[:2])
    assert 0.375 <= first <= 0.63
    assert 0.75 <= second <= 1.3


def test_a_store_that_is_killed_and_comes_back(server, settings, capfd):
    shards = open_shards(server.url, settings())
    server.fail(hang={"shard-000002.tar": 60})

    def die_and_come_back() -> None:
        time.sleep(0.3)  # in the middle of the third shard
        server.kill()
        time.sleep(1)
        server.fail()
        server.start()

    read = [shards.read(row) for row in range(10)]
    restart = when(lambda: server.fetched()["shard-000002.tar"] == 1, die_and_come_back)
    read += [shards.read(row) for row in range(10, COUNT)]
    restart.join()
    assert read == FILES
    assert server.fetched()["shard-000002.tar"] == 2
    assert "shard-000002.tar could not be read (" in capfd.readouterr().err


def test_the_manifest_is_waited_for_as_well(server, settings):
    server.kill()
    later(1.0, server.start)
    assert is_whole(open_shards(server.url, settings()))


def test_a_store_that_stays_away_ends_the_patience(server, settings):
    shards = open_shards(server.url, settings(patience=4))
    server.kill()
    start = time.monotonic()
    gone = (
        r"/shard-000000\.tar could not be read for \d+ s; the last error: Client.*: .*; .* raise data\.stream\.patience"
    )
    with pytest.raises(Failure, match=gone):
        shards.read(0)
    assert 1 < time.monotonic() - start < 60


def test_a_connection_that_breaks_off_is_tried_again(server, settings):
    shards = open_shards(server.url, settings())
    server.fail(cut={"shard-000000.tar": 3000})
    later(1.0, server.fail)
    assert is_whole(shards)


def test_a_connection_that_stalls_counts_as_failed(server, settings, monkeypatch, capfd):
    monkeypatch.setattr(waiting, "STALL", 2.0)
    shards = open_shards(server.url, settings())
    server.fail(hang={"shard-000000.tar": 60})
    when(lambda: server.fetched()["shard-000000.tar"] >= 1, server.fail)  # of the next request on
    assert is_whole(shards)
    assert "shard-000000.tar could not be read (" in capfd.readouterr().err


def test_a_thread_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(waiting, "STALL", 2.0)
    beats, released = [], threading.Event()

    def read():
        yield b"one"
        released.wait(60)

    pieces = watched(read, lambda: beats.append(1))
    assert next(pieces) == b"one"
    with pytest.raises(Passing, match=r"not a byte came for 2 s"):
        next(pieces)
    released.set()
    assert len(beats) > 2


def test_a_slow_store_is_no_stalled_one(server, settings, monkeypatch):
    monkeypatch.setattr(waiting, "STALL", 4.0)
    shards = open_shards(server.url, settings())
    server.fail(pause={"shard-000000.tar": 0.6})  # 6 s for the shard
    assert is_whole(shards)
    assert server.fetched()["shard-000000.tar"] == 1


# --- what does not pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_missing_credentials_are_said_at_once(server, settings, status):
    server.fail(status={"*": status})
    with pytest.raises(UsageError, match=r"manifest\.json may not be read \(.*credentials come from ~/\.netrc"):
        open_shards(server.url, settings())
    assert server.fetched()["manifest.json"] == 1


def test_credentials_from_netrc_and_from_fsspecs_configuration(server, settings, tmp_path, monkeypatch, capfd):
    server.fail(auth=f"me:{SECRET}")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    netrc.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setenv("NETRC", str(netrc))
        assert is_whole(open_shards(server.url, settings()))
    header = {"Authorization": "Basic bWU6aHVudGVyMi1hbmQtbW9yZQ=="}
    shutil.rmtree(settings().cache)
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": header}})
    assert is_whole(open_shards(server.url, settings()))
    assert SECRET not in capfd.readouterr().err


def test_a_missing_shard_is_named_at_once(server, settings):
    shards = open_shards(server.url, settings())
    server.fail(status={"shard-000003.tar": 404})
    with pytest.raises(Failure, match=rf"there is no {server.url}/shard-000003\.tar"):
        is_whole(shards)
    assert server.fetched()["shard-000003.tar"] == 1


@pytest.mark.parametrize(
    ("fault", "name", "found"),
    [
        ({"short": {"shard-000001.tar": 4000}}, "shard-000001.tar", r"it has 4,000 bytes instead of [\d,]+"),
        ({"swap": {"shard-000001.tar": "shard-000002.tar"}}, "shard-000001.tar", r"its sha256 is \w+ instead of \w+"),
        ({"swap": {"shard-000001.tar": "manifest.json"}}, "shard-000001.tar", r"it has [\d,]+ bytes instead of"),
        ({"swap": {"shard-000001.index": "shard-000001.tar"}}, "shard-000001.index", r"it has more than the 80 bytes"),
        ({"short": {"shard-000001.labels": 3}}, "shard-000001.labels", r"it has 3 bytes instead of 20"),
    ],
)
def test_a_manifest_that_disagrees_with_its_shards(server, settings, fault, name, found):
    shards = open_shards(server.url, settings())
    server.fail(**fault)
    with pytest.raises(
        Failure, match=rf"/{name} was fetched 3 times, and {found}.*: the manifest disagrees with its s"
    ):
        is_whole(shards)
    assert [file for method, file, _, _ in server.requests() if method == "GET"].count(name) == 3
    assert [path.name for path in settings().cache.rglob("*000001*") if not path.name.endswith(".lock")] == []


def test_labels_outside_the_range(folder, settings, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    path = tmp_path / "bad" / "shard-000002.labels"
    path.write_bytes(b"\x07" + path.read_bytes()[1:])
    shards = open_shards((tmp_path / "bad").as_uri(), settings())
    with pytest.raises(
        Failure, match=r"bad/shard-000002\.labels holds labels from \d to 7, the manifest names 3 classes"
    ):
        assert shards.label_counts is not None


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_texts_of_others_lose_their_secrets(monkeypatch):
    monkeypatch.setenv("MY_STORE_TOKEN", SECRET)
    text = f"403 at https://me:pass@host/a?X-Sig=abc, Authorization: Bearer xyz, authorization=qrs {SECRET} "
    clean = "403 at https://***@host/a?*** Authorization: Bearer *** authorization=*** *** "
    assert without_secrets(text) == clean
    assert len(without_secrets("x" * 1000)) < 400
    assert told(ValueError()) == "ValueError"
    assert told(OSError(f"first {SECRET}\nsecond")) == "OSError: first ***"


def test_a_redirect_to_a_signed_url_is_not_repeated():
    class AnswerError(Exception):
        status = 500

    judged = judge(AnswerError(f"500, url='https://host/x?sig={SECRET}'"), "https://host/x", "https")
    assert isinstance(judged, Passing)
    assert SECRET not in str(judged)


def test_what_the_errors_of_the_libraries_mean():
    def kind(error: Exception, **attributes: object) -> type:
        vars(error).update(attributes)
        return type(judge(error, "gs://b/x", "gs"))

    class DefaultCredentialsError(Exception):
        pass

    class NoCredentialsError(Exception):
        """botocore's."""

    class HttpError(Exception):
        pass

    assert kind(NoCredentialsError("Unable to locate credentials")) is UsageError
    assert kind(DefaultCredentialsError("none")) is UsageError
    assert kind(HttpError("no"), code="403") is UsageError
    assert kind(HttpError("busy"), code=503) is Passing
    assert kind(HttpError("odd"), code=400) is Failure
    assert kind(Exception("s3"), response={"ResponseMetadata": {"HTTPStatusCode": 429}}) is Passing
    assert kind(TimeoutError()) is kind(ConnectionResetError()) is kind(OSError(5, "I/O")) is Passing
    assert kind(PermissionError("no")) is UsageError
    assert kind(TypeError("odd option")) is Failure


def test_processes_that_fail_together_do_not_try_again_together(monkeypatch):
    pauses = set()
    for pid in range(1000, 1064):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        pauses.add(round(retries._jitter("s3://b/set/shard-000000.tar 0.5"), 3))
        assert retries._jitter("a") == retries._jitter("a")
    assert len(pauses) > 32
    assert 0.75 <= min(pauses) < 0.85
    assert 1.15 < max(pauses) <= 1.25


def test_the_advice_for_damaged_shards_can_be_followed():
    corrupt = {
        folder: CorruptRow(0, "shard-000000.tar, sample 000000000", "damaged", folder, 10)
        for folder in ("/data/set", "s3://bucket/set")
    }
    told = {}
    for folder, row in corrupt.items():
        with pytest.raises(Failure) as said:
            CorruptRows(0).add(Report(corrupt=[row]))
        told[folder] = str(said.value)
    assert "`hires-gan shards check /data/set --repair`" in told["/data/set"]
    assert "check s3://" not in told["s3://bucket/set"]
    assert "the folder that the set was uploaded from" in told["s3://bucket/set"]


def test_what_is_read_in_large_pieces_arrives_whole(tmp_path):
    data = os.urandom(20 << 20)
    (tmp_path / "large").write_bytes(data)
    for opened in (UrlStore(tmp_path.as_uri()), open_store(f"pipe:cat {tmp_path}/{{}}", True)):
        pieces = list(opened.pieces("large", lambda: None))
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= 8 << 20
