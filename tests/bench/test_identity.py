"""The head of every result: which code measured, on what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hires_gan.bench.identity import identity, say_unknown_commit
from hires_gan.ops import build_record
from hires_gan.ops.build_record import BuildRecord, Library
from hires_gan.tracking import machine


@pytest.mark.parametrize(
    ("told", "commit", "dirty", "said"),
    [("", "unknown", "unknown", True), ("3f2a", "3f2a", "false", False), ("3f2a-dirty", "3f2a", "true", False)],
)
def test_a_commit_that_nothing_names_is_unknown(told, commit, dirty, said, monkeypatch, capsys):
    """As in a copy without its checkout; a key that is missing would be taken for one that does not count."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)  # no git there
    monkeypatch.setenv("HIRES_GAN_COMMIT", told)
    head = identity("train")
    assert (head["bench"], head["git.commit"], head["git.dirty"]) == ("train", commit, dirty)
    say_unknown_commit(head)
    assert ("HIRES_GAN_COMMIT" in capsys.readouterr().err) is said


def test_code_that_differs_has_another_digest(monkeypatch, tmp_path):
    """Whatever the commit says: files are edited."""

    def digest() -> str:
        return identity("train")["code.digest"]

    assert digest() == digest() != ""
    monkeypatch.setattr("hires_gan.__file__", str(tmp_path / "__init__.py"))
    seen = [digest()]
    built = BuildRecord(sources="1", nvcc="13.0", libraries={"cpu": Library(built=True)})
    (tmp_path / "ops").mkdir()
    for name, text in [("a.py", "1"), ("a.py", "2"), ("b/c.py", "2")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.append(digest())
    for other in (built, replace(built, sources="2"), replace(built, libraries={"cpu": Library(built=False)})):
        build_record.write(tmp_path / "ops", other)
        seen.append(digest())
    assert len(set(seen)) == len(seen)
    (tmp_path / "notes.txt").write_text("no code")
    (tmp_path / ".#a.py").symlink_to("an editor's lock")
    (tmp_path / "ops" / "native_cpu.abi3.so").write_text("another one of the same sources")
    build_record.write(tmp_path / "ops", replace(other, toolkit="elsewhere"))
    assert digest() == seen[-1]
