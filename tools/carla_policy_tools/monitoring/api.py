"""The parts of Prometheus' HTTP API that tell what fires and what a query returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

TIMEOUT_S = 30


class QueryError(RuntimeError):
    """Prometheus does not answer, or refuses a query."""


@dataclass(frozen=True)
class Series:
    """One result of a query: its labels, times in seconds since 1970, and values."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Api:
    """Of the Prometheus at `url`. Everything raises `QueryError`."""

    url: str

    def query(self, expression: str) -> list[Series]:
        """What `expression` is now, one value for each series."""
        found = self._get("query", query=expression)["result"]
        return [_series(result["metric"], [result["value"]]) for result in found]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What `expression` was between two times, every `step` seconds."""
        found = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [_series(result["metric"], result["values"]) for result in found]

    def label_values(self, label: str, series: str) -> list[str]:
        """What `label` is of those that `series` selects."""
        return sorted({found[label] for found in self._get("series", **{"match[]": series}) if label in found})

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing ones: `state`, `labels`, `annotations`, `activeAt`, `value`."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All rules: `name`, `query`, `type`, `health`, `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped: `scrapePool`, `health`, `lastError`."""
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def _get(self, path: str, **parameters: object) -> Any:
        try:
            answer = requests.post if path.startswith("query") else requests.get
            arguments: dict[str, Any] = {"data" if path.startswith("query") else "params": parameters}
            content = answer(f"{self.url}/api/v1/{path}", timeout=TIMEOUT_S, **arguments).json()
        except (requests.RequestException, ValueError) as error:
            raise QueryError(f"{self.url} does not answer as Prometheus does: {error}") from None
        if content.get("status") != "success":
            raise QueryError(f"{parameters}: {content.get('error')}")
        return content["data"]


def _series(labels: dict[str, str], samples: list[list[Any]]) -> Series:
    times, values = zip(*samples, strict=True)
    return Series(labels, tuple(float(time) for time in times), tuple(float(value) for value in values))
