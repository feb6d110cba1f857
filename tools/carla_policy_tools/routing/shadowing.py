"""`carla-policy shadow`: let a version work beside the one that drives, for a while, and report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from carla_policy_tools.lifecycle.endpoint import require_server
from carla_policy_tools.lifecycle.promoting import check_answers, check_registered
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.routing.following import (
    IN_FORCE_TIMEOUT_S,
    find_proxy,
    lock,
    require_proxy,
    shadow_file,
    wait_until,
)
from carla_policy_tools.routing.haproxy import ProxyError
from carla_policy_tools.routing.mirror import Collector
from carla_policy_tools.routing.shadow import Comparison, Report

_TAKE_S = 0.2


def shadow(
    registry_file: RegistryFile,
    version: str,
    *,
    share: int,
    duration_s: float | None,
    requests: int | None,
    stopping: Callable[[], bool],
    on_progress: Callable[[Report], None],
) -> Report:
    """Mirror `share` percent of the requests until the time is up, so many have been looked at, or `stopping`.

    `RegistryError` if the version is not registered and ready, or if no server or proxy runs.
    """
    endpoint, proxy = require_server(registry_file), require_proxy(registry_file)
    check_registered(registry_file.read(), version)
    with endpoint.management() as management:
        check_answers(management, endpoint, version)
    with (
        Comparison(endpoint.ports.url("inference"), version, endpoint.auth("inference")) as comparison,
        _wish(registry_file, share),
        Collector(proxy.mirror_socket) as collector,
    ):
        if not wait_until(registry_file, lambda state: state.shadow_share == share):
            raise RegistryError(
                f"the proxy has not begun to mirror within {IN_FORCE_TIMEOUT_S:g} s; look at its output"
            )
        report = comparison.report
        deadline = None if duration_s is None else time.monotonic() + duration_s
        while not stopping() and not _is_done(report, deadline, requests):
            copy = collector.take(_TAKE_S)
            if copy is not None:
                comparison.add(copy)
            elif find_proxy(registry_file) is None:
                raise ProxyError("the proxy has ended; start it again with `carla-policy proxy`")
            report.dropped = collector.dropped
            on_progress(report)
    return report


def _is_done(report: Report, deadline: float | None, requests: int | None) -> bool:
    return (deadline is not None and time.monotonic() >= deadline) or (requests is not None and report.seen >= requests)


@contextmanager
def _wish(registry_file: RegistryFile, share: int) -> Iterator[None]:
    """Tell the proxy to mirror, for as long as this process lives; `RegistryError` if another shadow runs."""
    path = shadow_file(registry_file)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        if not lock(file.fileno()):
            raise RegistryError(f"{registry_file.path}: another shadow runs; wait for it, or stop it")
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), str(share).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)
