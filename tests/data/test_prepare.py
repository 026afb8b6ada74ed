from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from hires_gan.data.pictures import decode, halve
from hires_gan.data.prepare import PrepareOptions, PrepareReport, prepare
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

DRIVER = """
import json, sys, time
from pathlib import Path
from hires_gan.data import prepare as module
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.errors import Failure
publish = module.publish_shard

def publish_unless_held(out, name, *rest):
    if name in sys.argv:
        time.sleep(600)
    publish(out, name, *rest)

if __name__ == "__main__":
    module.publish_shard = publish_unless_held
    try:
        report = prepare([sys.argv[1]], Path(sys.argv[2]), PrepareOptions(**json.loads(sys.argv[3])))
        print("\\n".join(report.lines()))
    except Failure as failure:
        sys.exit(str(failure))
"""


def image(seed: int, size: int = 24, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_images(folder: Path, count: int, size: int = 24, kind: str = "PNG") -> str:
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}/{number:04d}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, size, kind))
    return str(folder)


def shards_of(out: Path) -> dict[str, bytes]:
    """Everything in a folder but the record of the command, which names the sources' places."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "prepare.json"}


def options(**changes) -> PrepareOptions:
    return PrepareOptions(**{"resolution": 16, "processes": 1, "shard_images": 4} | changes)


def run(source: str, out: Path, **changes) -> PrepareReport:
    return prepare([source], out, options(**changes))


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_images_become_a_shard_set(tmp_path):
    source = make_images(tmp_path / "i", 10)
    report = run(source, tmp_path / "out", levels=(4, 8), labels="folders")
    shards = ShardSet(tmp_path / "out")
    assert (len(shards), shards.resolution, shards.manifest.columns) == (10, 16, ("image", "image.8", "image.4"))
    assert shards.manifest.filter == "lanczos"
    assert [shard.samples for shard in shards.manifest.shards] == [4, 4, 2]
    assert shards.manifest.label_names == ("a", "b")
    assert [shards.label(row) for row in range(10)] == [0] * 5 + [1] * 5
    for row, number in enumerate((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)):
        wanted = Image.open(io.BytesIO(image(number))).resize((16, 16), Image.Resampling.LANCZOS)
        array = decode(shards.read(row))
        assert (array == np.asarray(wanted)).all()
        assert (decode(shards.read(row, "image.8")) == halve(array)).all()
        assert (decode(shards.read(row, "image.4")) == halve(halve(array))).all()
    assert (report.images, report.samples, report.rejected, report.shards) == (10, 10, 0, 3)
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert "10 images -> 10 samples in 3 shards" in report.lines()[0]
    names = {path.name.split(".")[0] for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest", "prepare", "shard-000000", "shard-000001", "shard-000002"}


@pytest.mark.parametrize("encode", ["auto", "png", "jpeg"])
def test_processes_and_packaging_change_nothing(tmp_path, encode):
    source = make_images(tmp_path / "i", 11, kind="JPEG" if encode == "auto" else "PNG")
    run(source, tmp_path / "one", encode=encode, levels=(8,))
    run(source, tmp_path / "three", encode=encode, levels=(8,), processes=3)
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for path in Path(source).rglob("*.*"):
            archive.write(path, path.relative_to(source))
    run(str(tmp_path / "i.zip"), tmp_path / "zip", encode=encode, levels=(8,))
    subprocess.run(["tar", "-C", source, "-czf", tmp_path / "i.tgz", "."], check=True)
    run(str(tmp_path / "i.tgz"), tmp_path / "tar", encode=encode, levels=(8,))
    first = shards_of(tmp_path / "one")
    assert len(first) == 7
    for other in ("three", "zip", "tar"):
        assert shards_of(tmp_path / other) == first


def test_fitting_jpegs_keep_their_bytes_and_shards_can_be_prepared_again(tmp_path):
    source = make_images(tmp_path / "i", 4, size=16, kind="JPEG")
    report = run(source, tmp_path / "out", labels="folders")
    assert ShardSet(tmp_path / "out").read(1) == image(2, 16, "JPEG")
    assert report.counts == {"kept": 4}
    assert "  4 kept their very bytes" in report.lines()
    run(str(tmp_path / "out"), tmp_path / "again", labels="own", levels=(8,))
    again = ShardSet(tmp_path / "again")
    assert again.read(1) == image(2, 16, "JPEG")
    assert (again.manifest.label_names, again.label_counts.tolist()) == (("a", "b"), [2, 2])


def test_tiles_and_their_labels(tmp_path):
    source = make_images(tmp_path / "i", 3, size=40)
    report = run(source, tmp_path / "out", crop="tiles", labels="folders", shard_images=2)
    shards = ShardSet(tmp_path / "out")
    assert [shard.samples for shard in shards.manifest.shards] == [8, 4]
    assert [shards.label(row) for row in range(12)] == [0] * 8 + [1] * 4
    assert (report.images, report.samples) == (3, 12)


def test_several_sources_follow_each_other(tmp_path):
    one, two = make_images(tmp_path / "z", 2), make_images(tmp_path / "a", 3)
    prepare([one, two], tmp_path / "out", options())
    run(one, tmp_path / "one")
    shards = ShardSet(tmp_path / "out")
    assert len(shards) == 5
    assert [shards.read(row) for row in range(2)] == [ShardSet(tmp_path / "one").read(row) for row in range(2)]


def test_out_may_lie_in_the_source(tmp_path):
    source = make_images(tmp_path, 3)
    assert run(source, tmp_path / "out").samples == 3


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 1000}, r"--resolution 1000 is not a power of two from 4 on"),
        ({"resolution": 2}, r"--resolution 2 is not a power of two"),
        ({"resolution": 0}, r"--resolution 0 is not a power of two"),
        ({"levels": (16,)}, r"--levels 16 must be different powers of two from 4 to 8"),
        ({"levels": (8, 8)}, r"--levels 8,8 must be different"),
        ({"levels": (5,)}, r"--levels 5 must be"),
        ({"crop": "middle"}, r"--crop: Input should be 'center', 'none' or 'tiles', found 'middle'"),
        ({"max_rejected": 1.5}, r"--max-rejected: .*less than or equal to 1, found 1\.5"),
        ({"processes": 0}, r"--processes: .*greater than or equal to 1, found 0"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(UsageError, match=message):
        options(**changes)


def test_shards_have_a_handy_size_by_default():
    sizes = {resolution: PrepareOptions(resolution=resolution).images_per_shard for resolution in (64, 256, 1024, 8192)}
    assert sizes == {64: 10_000, 256: 4096, 1024: 256, 8192: 16}


# --- rejected images --------------------------------------------------------------------------------------------------


def spoil(source: str) -> None:
    (Path(source) / "a/0000.png").write_bytes(image(0)[:200])
    (Path(source) / "b/0001.png").write_bytes(b"")
    (Path(source) / "b/0003.png").write_text('a text, with "commas"')


def test_rejected_images_are_listed_with_their_reasons(tmp_path):
    source = make_images(tmp_path / "i", 10)
    spoil(source)
    report = run(source, tmp_path / "out", max_rejected=0.3)
    with (tmp_path / "out/rejected.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert [path for path, _ in rows[1:]] == [f"{source}/{name}.png" for name in ("a/0000", "b/0001", "b/0003")]
    assert "damaged" in rows[1][1]
    assert rows[2][1] == "the file is empty"
    assert rows[3][1] == "the file is no image of a known kind"
    assert (report.samples, report.rejected) == (7, 3)
    assert f"  3 rejected: the reasons stand in {tmp_path / 'out/rejected.csv'}" in report.lines()
    assert len(ShardSet(tmp_path / "out")) == 7


def test_too_many_rejected_is_a_failure_that_a_larger_share_finishes(tmp_path):
    source = make_images(tmp_path / "i", 10)
    spoil(source)
    with pytest.raises(Failure, match=r"3 of 10 images were rejected, more than the share of 0\.29") as failure:
        run(source, tmp_path / "out", max_rejected=0.29)
    assert not isinstance(failure.value, UsageError)
    assert (tmp_path / "out/rejected.csv").read_text().count("\n") == 4
    with pytest.raises(UsageError, match="no finished shard set"):
        ShardSet(tmp_path / "out")
    written = (tmp_path / "out/shard-000000.tar").stat().st_ino
    assert run(source, tmp_path / "out", max_rejected=0.3).samples == 7
    assert (tmp_path / "out/shard-000000.tar").stat().st_ino == written
    run(source, tmp_path / "straight", max_rejected=0.3)
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "straight")


def test_a_shard_without_a_single_good_image_is_left_out(tmp_path):
    source = make_images(tmp_path / "i", 6)
    spoil(source)
    report = run(source, tmp_path / "out", max_rejected=0.5, shard_images=1, labels="folders")
    shards = ShardSet(tmp_path / "out")
    assert [shard.name for shard in shards.manifest.shards] == [f"shard-{n:06d}.tar" for n in (1, 2, 5)]
    assert (report.shards, shards.label_counts.tolist()) == (3, [2, 1])


def test_no_good_image_at_all_leaves_only_the_reasons(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "i/x.png").write_bytes(b"")
    with pytest.raises(Failure, match="none of the 1 images could be used: the reasons stand in"):
        run(str(tmp_path / "i"), tmp_path / "out", max_rejected=1.0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.csv"]
    (tmp_path / "i/x.png").write_bytes(image(0))
    assert run(str(tmp_path / "i"), tmp_path / "out").samples == 1
    assert not (tmp_path / "out/rejected.csv").exists()


# --- output folders ---------------------------------------------------------------------------------------------------


def test_bad_sources_leave_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("nowhere", "empty"):
        with pytest.raises(UsageError):
            run(str(tmp_path / source), tmp_path / "out/deep")
    assert not (tmp_path / "out/deep").exists()


def test_a_finished_folder_is_complete_or_refused(tmp_path):
    source = make_images(tmp_path / "i", 5)
    run(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    report = run(source, tmp_path / "out", processes=2, max_rejected=0.5)
    assert report.was_complete
    assert "is complete already: 5 samples in 2 shards" in report.lines()[0]
    with pytest.raises(UsageError, match=r"of another command \(--crop was center, now tiles\): choose another --out"):
        run(source, tmp_path / "out", crop="tiles")
    with pytest.raises(UsageError, match=rf"the images were 5 of {source} .*, now {make_images(tmp_path / 'j', 1)}\)"):
        run(str(tmp_path / "j"), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_other_peoples_folders_are_refused(tmp_path):
    source = make_images(tmp_path / "i", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: --out must be a folder"):
        run(source, tmp_path / "file")
    with pytest.raises(UsageError, match=r"holds other files \(a, b\): choose a new or an empty folder"):
        run(source, tmp_path / "i")
    for place in (Path("/proc/out"), tmp_path / "file/out"):
        with pytest.raises(Failure, match=r"cannot be prepared: it cannot be written \("):
            run(source, place)
    (tmp_path / "empty").mkdir()
    assert run(source, tmp_path / "empty").samples == 2


def test_the_second_of_two_at_once_is_refused(tmp_path):
    source = make_images(tmp_path / "i", 2)
    lock = tmp_path / "out/.prepare/lock"
    lock.parent.mkdir(parents=True)
    code = "import fcntl,sys; f=open(sys.argv[1],'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(Failure, match="is being prepared by another process"):
            run(source, tmp_path / "out")
        holder.communicate(b"\n")
    assert run(source, tmp_path / "out").samples == 2
    with (tmp_path / "free").open("wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(Failure, match=r"lock cannot be locked \(No locks available\): choose an output folder"):
        run(make_images(tmp_path / "i", 1), tmp_path / "out")


# --- interruptions ----------------------------------------------------------------------------------------------------


def start(tmp_path: Path, source: str, out: Path, extra: str = "", held: str = "", **limits) -> subprocess.Popen[str]:
    """Prepare in a process of its own, which never gets beyond the shard that is held."""
    (tmp_path / "driver.py").write_text(DRIVER)
    given = f'{{"resolution": 64, "shard_images": 10, "processes": 2, "levels": [8]{extra}}}'
    command = [sys.executable, str(tmp_path / "driver.py"), source, str(out), given, held]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **limits)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def test_killed_and_continued_is_the_same_to_the_byte(tmp_path):
    source = make_images(tmp_path / "i", 110, size=300)
    spoiled = Path(source) / "a/0002.png"
    spoiled.write_bytes(b"no image")
    same = PrepareOptions(resolution=64, shard_images=10, levels=(8,), processes=1)
    prepare([source], tmp_path / "whole", same)
    for kill_at in (1, 4):
        process = start(tmp_path, source, tmp_path / "out", held=f"shard-{kill_at + 2:06d}.tar")
        while not (tmp_path / f"out/shard-{kill_at:06d}.tar").exists():
            assert process.poll() is None
            time.sleep(0.002)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert not (tmp_path / "out/manifest.json").exists()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert alive == []
    whole = [path.stat().st_ino for path in sorted((tmp_path / "out").glob("shard-*.tar"))]
    assert 5 <= len(whole) < 11
    with pytest.raises(
        UsageError, match=r"begun by another command \(--resolution was 64, now 32; .*--levels was 8, now none"
    ):
        prepare([source], tmp_path / "out", PrepareOptions(resolution=32, shard_images=10))
    more = make_images(tmp_path / "more", 3)
    with pytest.raises(UsageError, match=rf"the images were 110 of {source} .* now 3 of {more}"):
        prepare([more], tmp_path / "out", same)
    code, output, errors = finish(start(tmp_path, source, tmp_path / "out"))
    assert code == 0, errors
    assert "continuing in" in errors
    assert "110 images -> 109 samples in 11 shards" in output
    assert "1 rejected" in output
    assert [path.stat().st_ino for path in sorted((tmp_path / "out").glob("shard-*.tar"))][:4] == whole[:4]
    expected = shards_of(tmp_path / "whole")
    assert len(expected) == 24  # 11 shards with their indexes, the manifest, rejected.csv
    assert shards_of(tmp_path / "out") == expected


def test_a_damaged_finished_shard_is_made_again(tmp_path):
    source = make_images(tmp_path / "i", 10)
    spoil(source)
    with pytest.raises(Failure, match="were rejected"):
        run(source, tmp_path / "out")
    os.truncate(tmp_path / "out/shard-000001.tar", 100)
    assert run(source, tmp_path / "out", max_rejected=0.5).samples == 7
    ShardSet(tmp_path / "out").read(6)
    run(source, tmp_path / "straight", max_rejected=0.5)
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "straight")


def test_a_full_disk_is_one_sentence_and_can_be_continued(tmp_path):
    """A limit on the size of files stands for the full disk: the system refuses the write in the same way."""
    source = make_images(tmp_path / "i", 30, size=64)
    (tmp_path / "i/b/big.png").write_bytes(image(0, 64))
    limit = 150_000  # a shard of ten needs about 140 KB, one of eleven does not fit

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    extra = ', "encode": "png", "shard_images": 11'
    code, _, errors = finish(start(tmp_path, source, tmp_path / "out", extra, preexec_fn=limited))
    assert code == 1
    assert "Traceback" not in errors
    assert "cannot take more data" in errors
    assert "MiB are free; make room and run the same command again" in errors
    assert not list((tmp_path / "out").glob("shard-*"))
    report = run(source, tmp_path / "out", resolution=64, levels=(8,), encode="png", shard_images=11)
    assert (report.samples, report.shards) == (31, 3)


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_tiles_of_real_photographs(tmp_path, shared_data):
    photographs = sorted((shared_data / "photos_highres").rglob("*.jpg"), key=lambda path: path.stat().st_size)[:2]
    (tmp_path / "i").mkdir()
    expected = 0
    for path in photographs:
        os.symlink(path, tmp_path / "i" / path.name)
        with Image.open(path) as picture:
            expected += (picture.width // 1024) * (picture.height // 1024)
    report = run(str(tmp_path / "i"), tmp_path / "out", resolution=1024, crop="tiles", levels=(64,))
    shards = ShardSet(tmp_path / "out")
    assert report.samples == len(shards) == expected >= 8
    for row in range(0, len(shards), 5):
        array = decode(shards.read(row))
        assert array.shape == (1024, 1024, 3)
        while len(array) > 64:
            array = halve(array)
        assert (decode(shards.read(row, "image.64")) == array).all()
