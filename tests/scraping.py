"""Reading a server's metrics page."""

from __future__ import annotations

import re
import time

import requests

from benchmarks.servers import ServeProcess

_SERIES = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"]*)"')
TIMEOUT_S = 20.0

Labels = frozenset[tuple[str, str]]


def parse(page: str) -> dict[tuple[str, Labels], float]:
    """Values of a page in Prometheus' text format, by name and labels."""
    found = (_SERIES.fullmatch(line) for line in page.splitlines() if line and not line.startswith("#"))
    return {
        (match["name"], frozenset(_LABEL.findall(match["labels"] or ""))): float(match["value"])
        for match in found
        if match
    }


def total(page: str, name: str, **labels: str) -> float:
    """Sum of the series of `name` that have these labels."""
    wanted = labels.items()
    return sum(value for (found, own), value in parse(page).items() if found == name and wanted <= set(own))


def scrape(server: ServeProcess) -> str:
    return requests.get(f"{server.ready['metrics']}/metrics", timeout=10).text


def wait_until_counted(server: ServeProcess, name: str, at_least: float = 1.0, **labels: str) -> str:
    """The metrics page, as soon as the series of `name` with these labels have come to so much."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        page = scrape(server)
        if total(page, name, **labels) >= at_least:
            return page
        assert time.monotonic() < deadline, f"{name} {labels} stays below {at_least}:\n{page}"
        time.sleep(0.1)
