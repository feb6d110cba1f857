"""`/metrics` of the health port: what is declared, what runs, and whether the two agree.

How a version drives is counted by its workers and stands on TorchServe's metrics port; what only `serve` knows, such as
a worker that is missing or a version that should not be there, stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.health import Health
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.status import Observation, profiles_of

CONTENT_TYPE = CONTENT_TYPE_LATEST


def page(found: Health, registry_file: RegistryFile) -> bytes:
    """Prometheus' text format for what was found last, and for the registry as it is now.

    What a server that does not answer would have to say is left out: alerts on it are for `policy_server_ready`.
    """
    metrics = [*_of_health(found), *_of_server(found.seen)]
    with suppress(RegistryError, ArtifactError):  # then it is one of the findings
        metrics += _of_registry(registry_file.read())
    collected = CollectorRegistry(auto_describe=False)
    collected.register(_Once(metrics))
    return generate_latest(collected)


class _Once:
    """Metrics that are there already, in the form in which they are asked for."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _of_health(found: Health) -> Iterator[Metric]:
    yield GaugeMetricFamily("policy_server_alive", "Whether the server answers at all.", value=found.alive)
    yield GaugeMetricFamily("policy_server_ready", "Whether all that is declared is served.", value=found.ready)
    yield GaugeMetricFamily("policy_server_findings", "Reasons not to be ready.", value=len(found.findings))


def _of_registry(registry: Registry) -> Iterator[Metric]:
    declared = GaugeMetricFamily(
        "policy_version_declared", "Versions to be served.", labels=["model_version", "profile"]
    )
    promoted = GaugeMetricFamily(
        "policy_version_promoted", "Whether the registry has it promoted.", labels=["model_version"]
    )
    info = InfoMetricFamily("policy_version", "Archive of a version, and its training code.", labels=["model_version"])
    for version, record in registry.versions.items():
        declared.add_metric([version, record.profile], 1)
        promoted.add_metric([version], version == registry.promoted)
        info.add_metric([version], {"digest": record.digest, "git_sha": record.git_sha})
    yield from (declared, promoted, info)
    shares = GaugeMetricFamily("policy_version_split_ratio", "Share of a split in force.", labels=["model_version"])
    for version, percent in (registry.split or {}).items():
        shares.add_metric([version], percent / 100)
    yield shares
    changes = CounterMetricFamily("policy_registry_changes", "Changes in the registry's history.", labels=["verb"])
    for verb, count in Counter(event.verb for event in registry.history).items():
        changes.add_metric([verb], count)
    yield changes


def _of_server(seen: Observation | None) -> Iterator[Metric]:
    if seen is None:
        return
    workers = GaugeMetricFamily("policy_version_workers", "Workers of a version.", labels=["model_version", "state"])
    queued = GaugeMetricFamily(
        "policy_version_queued_requests", "Requests that wait for a worker.", labels=["model_version"]
    )
    default = GaugeMetricFamily(
        "policy_version_default", "Whether it answers where no version is named.", labels=["model_version"]
    )
    for version, served in seen.served.items():
        workers.add_metric([version, "ready"], served.ready_workers)
        queued.add_metric([version], served.queued)
        default.add_metric([version], version == seen.default)
    try:
        profiles, drift = profiles_of(seen.registry), len(seen.drift())
    except ValueError:  # a profile's file is gone, and with it how many workers a version should have
        profiles, drift = {}, 1
    for version, profile in profiles.items():
        workers.add_metric([version, "declared"], profile.workers)
        if version not in seen.served:
            workers.add_metric([version, "ready"], 0)
    yield from (workers, queued, default)
    yield GaugeMetricFamily("policy_registry_drift", "Differences between what is declared and what runs.", value=drift)
