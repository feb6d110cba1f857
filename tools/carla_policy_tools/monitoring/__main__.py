"""`python -m carla_policy_tools.monitoring` (`make monitor`): watch a running server until Ctrl-C.

Starts Prometheus and Alertmanager on this machine and prints each alert when it begins and when it ends.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.monitoring import running
from carla_policy_tools.monitoring.api import Api, QueryError
from carla_policy_tools.monitoring.programs import MonitoringError
from carla_policy_tools.paths import CONFIG, PROJECT
from carla_policy_tools.ports import reserved_port
from carla_policy_tools.processes import stop_signals

DATA = PROJECT / "build" / "monitoring"
POLL_S = 2.0


class _StopError(Exception):
    """Ctrl-C, or a signal to end."""


def _stop(*_: object) -> None:
    raise _StopError


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 after Ctrl-C, 1 with a reason on standard error."""
    options = _options(arguments)
    try:
        with ExitStack() as stack, stop_signals(_stop):
            try:
                _watch(_start(stack, options))
            except _StopError:
                return 0
    except (MonitoringError, QueryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m carla_policy_tools.monitoring",
        description="Watch a running server with Prometheus and Alertmanager until Ctrl-C.",
    )
    parser.add_argument("--metrics", default=f"{LOOPBACK}:8082", help="the server's metrics port")
    parser.add_argument("--health", default=f"{LOOPBACK}:8083", help="the server's health port")
    parser.add_argument("--port", type=int, default=running.PROMETHEUS_PORT, help="of Prometheus; 0: any free one")
    parser.add_argument(
        "--alertmanager-port", type=int, default=running.ALERTMANAGER_PORT, help="of Alertmanager; 0: any free one"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="directory of what they record")
    return parser.parse_args(arguments)


def _start(stack: ExitStack, options: argparse.Namespace) -> Api:
    for address in (options.metrics, options.health):
        if not running.answers(address):
            print(f"nothing listens at {address} yet: start the server with `make serve`", flush=True)
    port = reserved_port(options.port)
    alertmanager_port = reserved_port(options.alertmanager_port, "alertmanager-port")
    configuration = running.copy_configuration(
        Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="monitoring-"))),
        {
            "carla-policy": options.metrics,
            "carla-policy-server": options.health,
            "prometheus": f"{LOOPBACK}:{port}",
            "alertmanager": f"{LOOPBACK}:{alertmanager_port}",
        },
    )
    alertmanager = stack.enter_context(
        running.Alertmanager(
            CONFIG / "alertmanager" / "alertmanager.yml", options.data / "alertmanager", port=alertmanager_port
        )
    )
    prometheus = stack.enter_context(running.Prometheus(configuration, options.data / "prometheus", port=port))
    print(f"Prometheus {prometheus.url}, Alertmanager {alertmanager.url}; Ctrl-C ends both", flush=True)
    return Api(prometheus.url)


def _watch(api: Api) -> None:
    known: dict[tuple[tuple[str, str], ...], str] = {}
    while True:
        firing = {
            tuple(sorted(alert["labels"].items())): f"{alert['labels']['severity']}: {alert['annotations']['summary']}"
            for alert in api.alerts()
            if alert["state"] == "firing"
        }
        for labels in sorted(firing.keys() - known.keys()):
            print(f"{time.strftime('%H:%M:%S')} {firing[labels]} ({dict(labels)['alertname']})", flush=True)
        for labels in sorted(known.keys() - firing.keys()):
            print(f"{time.strftime('%H:%M:%S')} over: {known[labels]} ({dict(labels)['alertname']})", flush=True)
        known = firing
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
