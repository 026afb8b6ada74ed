"""A port for Prometheus, as Prometheus sees it."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


def is_free(port: int) -> bool:
    """Whether somebody else may listen there, as the next run would."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answer(port: int, accept: str = "text/plain") -> str:
    """The answer to one scrape."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return str(reply.read().decode())


class Scraped:
    """The samples of one answer; those of a run carry its name."""

    def __init__(self, text: str, run: str) -> None:
        self.run = run
        families = list(text_string_to_metric_families(text))
        self.types = {family.name: family.type for family in families}
        samples = [sample for family in families for sample in family.samples]
        self.samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(self.samples) == len(samples), "a sample stands there twice"

    def get(self, name: str, /, **labels: str) -> float | None:
        """The value of `hires_gan_NAME`; None if it is not there."""
        return self.samples.get((f"hires_gan_{name}", frozenset({"run": self.run, **labels}.items())))

    def all(self, name: str, label: str) -> dict[str, float]:
        """The values of `hires_gan_NAME` by one of its labels."""
        found: Mapping[Labels, float] = {at: v for (n, at), v in self.samples.items() if n == f"hires_gan_{name}"}
        return {dict(labels)[label]: value for labels, value in found.items()}


def scrape(port: int, run: str) -> Scraped:
    """Ask once."""
    return Scraped(answer(port), run)
