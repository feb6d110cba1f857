"""Gives samples to a server's own metrics, each with the labels that all of them share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from carla_policy.metrics.catalog import METRICS
from carla_policy.metrics.recorder import Sample

logger = logging.getLogger(__name__)


class ServerMetric(Protocol):
    """One metric as TorchServe's metrics API has it."""

    def add_or_update(self, value: float, dimension_values: list[str]) -> Any:
        """Adds to a counter, sets a gauge."""


class Emitter:
    """`find(name, kind)` gives the server's metric, or `None` where its configuration has none of that name."""

    def __init__(self, find: Callable[[str, str], ServerMetric | None], common: tuple[str, ...]) -> None:
        """`common` are the values of `catalog.COMMON_LABELS`."""
        self._common = common
        found = {name: find(name, metric.kind) for name, metric in METRICS.items()}
        self._metrics = {name: metric for name, metric in found.items() if metric is not None}
        missing = sorted(found.keys() - self._metrics.keys())
        if missing:
            logger.warning(
                "%d metrics are not reported, %s among them: config/metrics.yaml is not this server's metrics_config",
                len(missing),
                missing[0],
            )

    def __call__(self, samples: Iterable[Sample]) -> None:
        for name, labels, value in samples:
            if name in self._metrics:
                self._metrics[name].add_or_update(value, [*self._common, *labels])
