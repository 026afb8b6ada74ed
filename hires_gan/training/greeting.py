"""What processes tell each other before they form a group, so that one of them says what does not fit, and all end.

It goes through a store, which needs no NCCL and no gloo: those hang where a machine lacks its GPU, or its process.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from hires_gan.errors import Elsewhere, Failure, UsageError
from hires_gan.progress import console, say
from hires_gan.training.launcher import Place

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds for which a first process that cannot go on waits for the others, to tell them."""
_GOODBYE = 10.0
"""Seconds for which it waits until they know."""
_PAUSE = 0.05


@dataclass(frozen=True)
class Card:
    """What a process leaves for the first one.

    Attributes:
        host: The name of its machine.
        local_rank: Its number there.
        size: How many processes it was told there are.
        device: On what it would train, "cuda" or "cpu".
        gpus: How many GPUs torch sees.
        gpu: What tells its GPU from all others of the machine; None on a CPU, or if that is not known.
        summing: How it would sum gradients, in words.
        versions: Of the packages that have to be the same.
        refusal: Why it cannot train; None if it can.
        usage: Whether that is a matter of usage.
    """

    host: str
    local_rank: int
    size: int
    device: str
    gpus: int = 0
    gpu: str | None = None
    summing: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    usage: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the first process tells the others: that all is well, or why nothing comes of it."""

    problem: str | None = None
    usage: bool = True

    def raise_error(self) -> None:
        """Raise what it says, if anything: a UsageError or a Failure."""
        if self.problem is not None:
            raise (UsageError if self.usage else Failure)(self.problem)


def greet(place: Place, card: Card, timeout: float) -> Store:
    """Exchange cards with all other processes, and go on only if all of them fit together.

    Args:
        place: Of this process.
        card: What it has to tell.
        timeout: Seconds for which to wait for the others.

    Returns:
        A store for the process group, empty even where the launcher keeps one store over restarts: addresses of
        processes that have ended, left in it, would be taken for those of this launch.

    Raises:
        UsageError, Failure: On the first process: what does not fit, or who did not come.
        Elsewhere: On the others.
    """
    try:
        store = _connected(place, timeout)
        return _receive(store, card, timeout) if place.rank == 0 else _visit(store, place, card, timeout)
    except (RuntimeError, TimeoutError) as error:  # torch's errors of sockets and stores are RuntimeErrors
        failure = Failure(_unreachable(place, error, timeout))
        if place.rank == 0:
            raise failure from error
        console.quiet = False
        say(f"rank {place.rank} ends too: it found no first process at {place.address}:{place.port}")
        raise Elsewhere from error


def _connected(place: Place, timeout: float) -> Store:
    """The launch's store, made here by a first process without an agent; the process group then shares its port."""

    def connect() -> TCPStore:
        return TCPStore(
            place.address,
            place.port,
            is_master=place.rank == 0 and not place.agent,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )

    return PrefixStore("hires_gan/greeting", _bounded(connect, timeout + 5))


def _bounded(call: Callable[[], T], seconds: float) -> T:
    """What it returns, if it does so in time: torch waits for ever for a stranger who accepts and is silent."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _unreachable(place: Place, error: BaseException, timeout: float) -> str:
    if "EADDRINUSE" in str(error):
        return (
            f"port {place.port} of this machine, where the first process has to listen ({place.address}), is taken by "
            "another program: set MASTER_PORT of all processes to a free one"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else f"nothing within {timeout:g} seconds"
    return (
        f"the processes of the launch do not find each other ({reason}): look at MASTER_ADDR and MASTER_PORT, here "
        f"{place.address} and {place.port}, and at the network between the machines"
    )


# --- the first process ------------------------------------------------------------------------------------------------


def _receive(store: Store, card: Card, timeout: float) -> Store:
    """Wait for the others, judge, and tell them."""
    token = secrets.token_hex(8)
    store.set("first", token)
    own = PrefixStore(token, store)
    cards, names = _collected(own, card, timeout if card.refusal is None else min(timeout, _PATIENCE))
    verdict = judge(cards, timeout)
    own.set("verdict", json.dumps({"verdict": asdict(verdict), "names": names}))
    if verdict.problem is not None:
        seen = [f"seen/{rank}" for rank, other in enumerate(cards) if rank and other is not None]
        _wait_for(own, seen, _GOODBYE)
        verdict.raise_error()
    return PrefixStore("group", own)


def _collected(own: Store, card: Card, timeout: float) -> tuple[list[Card | None], list[str | None]]:
    """The cards of all ranks, None of those who did not come; and the names under which they wait for an answer."""
    keys = [f"card/{rank}" for rank in range(1, card.size)]
    _wait_for(own, keys, timeout)
    found = [json.loads(own.get(key)) if own.check([key]) else None for key in keys]
    cards = [card, *(None if one is None else _card(one["card"]) for one in found)]
    return cards, [None, *(None if one is None else one["name"] for one in found)]


def _card(told: dict[str, Any]) -> Card:
    """What another version has left may have other fields: it is the versions that are compared."""
    return Card(**{field.name: told[field.name] for field in fields(Card) if field.name in told})


def _wait_for(store: Store, keys: list[str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while keys and not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


# --- the others -------------------------------------------------------------------------------------------------------


def _visit(store: Store, place: Place, card: Card, timeout: float) -> Store:
    """Leave the card with the first process, and wait for what it says.

    A store that outlives its workers still holds what an earlier first process said; one that does not know this
    process's name has not spoken to it.
    """
    name, deadline = secrets.token_hex(8), time.monotonic() + timeout
    left = ""
    while time.monotonic() < deadline:
        token = store.get("first").decode() if store.check(["first"]) else ""
        own = PrefixStore(token, store)
        if token != left:
            own.set(f"card/{place.rank}", json.dumps({"card": asdict(card), "name": name}))
            left, deadline = token, time.monotonic() + timeout + _PATIENCE
        if token and own.check(["verdict"]):
            told: dict[str, Any] = json.loads(own.get("verdict"))
            if name in told["names"]:
                return _obeyed(own, place, Verdict(**told["verdict"]))
        time.sleep(_PAUSE)
    raise TimeoutError


def _obeyed(own: Store, place: Place, verdict: Verdict) -> Store:
    if verdict.problem is None:
        return PrefixStore("group", own)
    own.set(f"seen/{place.rank}", "")
    raise Elsewhere(verdict.usage)


# --- the judgement ----------------------------------------------------------------------------------------------------


def judge(cards: Sequence[Card | None], timeout: float = 0) -> Verdict:
    """Say what does not fit, the first thing of those that there are.

    Args:
        cards: Of all ranks; None of those who did not come.
        timeout: Seconds for which they were waited for.
    """
    for rank, card in enumerate(cards):
        if card is not None and card.refusal is not None:
            return Verdict(f"{_who(rank, card)}: {card.refusal}" if rank else card.refusal, card.usage)
    missing = [rank for rank, card in enumerate(cards) if card is None]
    if missing:
        return Verdict(
            f"rank {_listed(missing)} of {len(cards)} did not come within {timeout:g} seconds: look at what "
            f"{'it says' if len(missing) == 1 else 'they say'} where started, or set backend.timeout higher",
            usage=False,
        )
    present = [card for card in cards if card is not None]
    checks = (_other_size, _other_summing, _other_versions, _without_gpu, _on_one_gpu)
    return Verdict(next((problem for check in checks if (problem := check(present))), None))


def _who(rank: int, card: Card) -> str:
    return f"rank {rank} on {card.host}"


def _listed(ranks: list[int]) -> str:
    text = ", ".join(map(str, ranks[:8]))
    return f"{text} and {len(ranks) - 8} more" if len(ranks) > 8 else text


def _other_size(cards: Sequence[Card]) -> str | None:
    for rank, card in enumerate(cards):
        if card.size != cards[0].size:
            return (
                f"{_who(rank, card)} was told of {card.size} processes, and rank 0 of {cards[0].size}: start all with "
                "the same WORLD_SIZE"
            )
    return None


def _other_versions(cards: Sequence[Card]) -> str | None:
    for rank, card in enumerate(cards):
        for package in cards[0].versions | card.versions:
            found, here = (one.versions.get(package, "none") for one in (card, cards[0]))
            if found != here:
                return (
                    f"{_who(rank, card)} has {package} {found}, and {_who(0, cards[0])} has {here}: install the same "
                    "on all machines"
                )
    return None


def _other_summing(cards: Sequence[Card]) -> str | None:
    for rank, card in enumerate(cards):
        if card.summing != cards[0].summing:
            return (
                f"{_who(rank, card)} would sum gradients by {card.summing}, and rank 0 by {cards[0].summing}: start "
                "all with the same launch configuration"
            )
    return None


def _without_gpu(cards: Sequence[Card]) -> str | None:
    kinds = {card.device: (rank, card) for rank, card in reversed(list(enumerate(cards)))}
    if len(kinds) == 1:
        return None
    return (
        f"{_who(*kinds['cpu'])} has no GPU to train on, and {_who(*kinds['cuda'])} has one: `hires-gan doctor` says "
        "why, there; to train on CPUs alone, set CUDA_VISIBLE_DEVICES to nothing everywhere"
    )


def _on_one_gpu(cards: Sequence[Card]) -> str | None:
    taken: dict[tuple[str, str], int] = {}
    for rank, card in enumerate(cards):
        if card.gpu is None:
            continue
        other = taken.setdefault((card.host, card.gpu), rank)
        if other != rank:
            return (
                f"rank {other} and rank {rank} on {card.host} have one GPU for both (their LOCAL_RANK is "
                f"{cards[other].local_rank} and {card.local_rank}, and torch sees {card.gpus} there): start no more "
                "processes on a machine than it has GPUs, each with a LOCAL_RANK of its own"
            )
    return None
