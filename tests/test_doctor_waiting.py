"""The doctor waits for what may come by itself, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hires_gan import doctor
from hires_gan.doctor import Asked, Check, Part, complaints, examine
from hires_gan.doctor_devices import Finding

AWAY = Finding("wrong", "it is away", "look at it", passing=True)
REFUSED = Finding("wrong", "it refuses")
WELL = Finding("ok", "it answers")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(doctor, "say", lines.append)
    return lines


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Has the doctor look at parts that are what a list says, the last of it for ever; counts the looks."""

    def script(**parts: list[Finding]) -> dict[str, int]:
        looks = dict.fromkeys(parts, 0)

        def look(name: str) -> Finding:
            looks[name] += 1
            return parts[name][min(looks[name], len(parts[name])) - 1]

        made = [Part(name, True, lambda name=name: look(name)) for name in parts]  # type: ignore[misc]
        monkeypatch.setattr(doctor, "_parts", lambda asked: made)
        return looks

    return script


def test_what_comes_is_waited_for(scripted: Callable[..., dict[str, int]], said: list[str]) -> None:
    looks = scripted(server=[AWAY, AWAY, WELL], volume=[AWAY, WELL], torch=[WELL])
    checks = examine(Asked(), wait=60, pause=0.01)
    assert [check.status for check in checks] == ["ok", "ok", "ok"]
    assert looks == {"server": 3, "volume": 2, "torch": 1}
    assert said == ["waiting up to 60 s: server: it is away; volume: it is away"]


def test_nothing_is_waited_for_beside_what_stays_wrong(
    scripted: Callable[..., dict[str, int]], said: list[str]
) -> None:
    looks = scripted(server=[AWAY], environment=[REFUSED])
    assert complaints(examine(Asked(), wait=60, pause=60)) == [
        "server: it is away: look at it",
        "environment: it refuses",
    ]
    assert looks == {"server": 1, "environment": 1}
    assert said == []


def test_waiting_ends(scripted: Callable[..., dict[str, int]], said: list[str]) -> None:
    looks = scripted(server=[AWAY])
    assert examine(Asked(), wait=1, pause=0.01) == [Check("server", "wrong", "it is away", "look at it", True, True)]
    assert looks["server"] > 1
    assert len(said) == 1
    looks = scripted(server=[AWAY, REFUSED])
    assert examine(Asked(), wait=60, pause=0.01)[0].found == "it refuses"
    assert looks["server"] == 2
    looks = scripted(server=[AWAY])
    assert examine(Asked(), wait=0)[0].status != "ok"
    assert looks["server"] == 1
    assert len(said) == 2, "without --wait nothing is said of waiting"
