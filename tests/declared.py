"""Registries made by events alone, and a pretended TorchServe, for tests of what changes versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.configuration import SizeLimits, load_profile
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.records import Registry, VersionRecord
from carla_policy_tools.paths import MODEL_NAME
from carla_policy_tools.ports import Ports
from tests.serving import serving

PROFILE = load_profile("realtime")


def digest_of(version: str) -> str:
    return f"sha256:{hashlib.sha256(version.encode()).hexdigest()}"


def registered(registry: Registry, version: str, *, profile: str = "realtime", reason: str = "") -> Registry:
    """`registry` with `version` registered, as the verb does it."""
    event = registry.event("register", version, digest=digest_of(version), profile=profile, reason=reason)
    record = VersionRecord(
        digest=digest_of(version),
        git_sha="0123abc",
        built=event.at,
        registered=event.at,
        registered_by=event.by,
        profile=profile,
    )
    first = [] if registry.promoted else [registry.event("promote", version, offset=2)]
    return registry.after(event, *first, records={version: record})


def registry_of(*versions: str) -> Registry:
    """All registered in the realtime profile, the first one promoted."""
    registry = Registry()
    for version in versions:
        registry = registered(registry, version)
    return registry


def changed(registry: Registry, verb: Any, version: str | None = None, **more: Any) -> Registry:
    return registry.after(registry.event(verb, version, **more))


def eventful() -> Registry:
    """Three versions, one retired, a split that has ended and one that has not."""
    registry = changed(registry_of("v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0"), "retire", "v1.3.0")
    registry = changed(registry, "split", shares={"v1.0.0": 50, "v1.2.0": 50})
    registry = changed(registry, "promote", "v1.1.0")
    registry = changed(registry, "configure", "v1.2.0", profile="throughput")
    registry = changed(registry, "split", shares={"v1.1.0": 90, "v1.2.0": 10})
    return changed(registry, "undo", "v1.4.0", reason="interrupted")


class PretendedServer:
    """Answers on one port as TorchServe's three do, as far as versions need it; what it holds can be changed."""

    def __init__(self, versions: Sequence[str], default: str | None) -> None:
        self.workers = {version: ["READY"] * PROFILE.workers for version in versions}
        self.candidates: set[str] = set()
        """Versions that are being tried out under another name."""
        self.default = default
        self.batch_size = PROFILE.batch_size
        self.golden_status = 200
        self.answering_worker: int | None = 100
        self.metrics = ""
        self.failures = 0
        """How many of the next requests fail as TorchServe does now and then while workers come and go."""
        self.writes: list[str] = []
        """What has been asked to change."""
        self._server = ThreadingHTTPServer((LOOPBACK, 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def endpoint(self, run_dir: Path, **more: Any) -> Endpoint:
        ports = Ports(self.port, self.port, self.port, 0, 0, 0)
        limits = SizeLimits.of([PROFILE])
        own = {"state": "ready", "pid": 1, "ports": ports, "profile": "realtime", "limits": limits, "run_dir": run_dir}
        return Endpoint(**{**own, **more})

    @contextmanager
    def running(self) -> Iterator[PretendedServer]:
        with serving(self._server):
            yield self

    def _answer_candidate(self, method: str, versions: Sequence[str]) -> tuple[int, object]:
        """The one whose name comes first is their default."""
        if versions == ["all"] and self.candidates:
            return 200, [self._described(version) for version in sorted(self.candidates)]
        version = versions[0] if versions else min(self.candidates, default="")
        if version not in self.candidates:
            return 404, {"message": "Model not found"}
        if method == "GET":
            return 200, [self._described(version)]
        if method == "DELETE":
            if version == min(self.candidates) and len(self.candidates) > 1:
                return 403, {"message": "Cannot remove default version"}
            self.writes.append(f"unload candidate {version}")
            self.candidates.remove(version)
        return 200, {}

    def answer(self, method: str, path: str, query: str) -> tuple[int, object]:
        parts = path.strip("/").split("/")
        if self.failures:
            self.failures -= 1
            return 500, {"code": 500, "type": "ConcurrentModificationException"}
        if parts[0] == "metrics":
            return 200, self.metrics
        if parts[0] == "predictions":
            return self.golden_status, {"golden": parts[2]}
        if parts[1] != MODEL_NAME:
            return self._answer_candidate(method, parts[2:])
        if method == "GET" and parts[2:] == ["all"]:
            return 200, [self._described(version) for version in self.workers]
        version = parts[2] if len(parts) > 2 else self.default
        if version not in self.workers:
            return 404, {"message": "Model not found"}
        if method == "PUT":
            if "min_worker" in query:
                self.writes.append(f"scale {version}")
                return 202, {"status": "Processing worker updates..."}
            self.writes.append(f"promote {version}")
            self.default = version
        elif method == "DELETE":
            if version == self.default and len(self.workers) > 1:
                return 403, {"message": "Cannot remove default version"}
            self.writes.append(f"unregister {version}")
            del self.workers[version]
        elif "customized" in query:
            return 200, [{"customizedMetadata": {"workerPid": self.answering_worker}}]
        else:
            return 200, [self._described(version)]
        return 200, {"status": "done"}

    def _described(self, version: str) -> dict[str, Any]:
        states = self.workers.get(version, ["READY"])
        return {
            "modelVersion": version,
            "workers": [{"pid": 100 + index, "status": state} for index, state in enumerate(states)],
            "minWorkers": PROFILE.workers,
            "jobQueueStatus": {"pendingRequests": 0},
            "batchSize": self.batch_size,
            "maxBatchDelay": PROFILE.max_batch_delay_ms,
        }


def _handler(pretended: PretendedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            status, content = pretended.answer(self.command, path, query)
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Requests are no news."""

    return Handler
