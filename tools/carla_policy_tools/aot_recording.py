"""Record Java's ahead-of-time cache in a run under load: `python -m carla_policy_tools.aot_recording` (`make cache`).

Serves the archives of a store on free ports, asks them everything that a server is asked, and stops it; Java writes
the cache while it ends. Takes about half a minute, once; there is nothing to do where the cache is there already.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from carla_policy_tools.aot_cache import DIRECTORY, cache_file, record_flags, seal, use_flags
from carla_policy_tools.client import golden_observations, request_body
from carla_policy_tools.java import find_java
from carla_policy_tools.lifecycle.declaring import Declaration
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import MODEL_NAME, MODEL_STORE, archive_name
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.serving import Request, StopRequested, serve
from carla_policy_tools.torchserve import JAR
from carla_policy_tools.workers.preloading import ForkServer

CLIENTS = 2
REQUESTS = 10_000
"""Of each client: after so many the just-in-time compiler has met all that a request passes through."""
ASSEMBLY_S = 120.0
"""For Java to write the cache."""


def record(store: Path = MODEL_STORE, directory: Path = DIRECTORY, requests: int = REQUESTS) -> Path | None:
    """The cache of this machine's Java, recorded with the archives in `store` unless it is there.

    `None` for a Java without such caches. Raises what `serving.serve` raises, and `OSError` if there is no cache
    afterwards; `directory` then is as it was.
    """
    java = find_java()
    path = cache_file(java, JAR, directory)
    if path is None or use_flags(java, JAR, directory):
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".recording-", dir=directory) as scratch, ForkServer() as workers:
        recorded = Path(scratch, path.name)

        def on_ready(declaration: Declaration, endpoint: Endpoint) -> None:
            _exercise(declaration, endpoint, requests)
            raise StopRequested

        serve(
            Request(
                registry_file=RegistryFile.of(store, Path(scratch, "registry.json")),
                ports=lambda: choose_ports(0),
                workers=workers,
                java_flags=record_flags(recorded),
                stop_timeout_s=ASSEMBLY_S,
            ),
            on_start=lambda _: None,
            on_ready=on_ready,
            on_trouble=print,
        )
        if not recorded.is_file():
            raise OSError(f"{path}: Java has not written it; serving works without it")
        for stale in directory.glob("torchserve-*"):
            stale.unlink()
        recorded.replace(path)
        seal(path)
    return path


def _exercise(declaration: Declaration, endpoint: Endpoint, requests: int) -> None:
    """Predictions of every kind, errors, sub-resources, and what commands and dashboards ask."""
    versions = list(declaration.profiles)
    ports = endpoint.ports
    for _ in range(50):
        _ask(ports.management, "GET", f"/models/{MODEL_NAME}/all")
        _ask(ports.management, "PUT", f"/models/{MODEL_NAME}/{declaration.promoted}/set-default")
        _ask(ports.management, "GET", f"/models/{MODEL_NAME}/{declaration.promoted}?customized=true")
        _ask(ports.metrics, "GET", "/metrics")
        _ask(ports.inference, "GET", "/ping")
        _ask(ports.inference, "POST", f"/predictions/{MODEL_NAME}", b"{}")
        _ask(ports.inference, "GET", "/predictions/nothing")
        for version in versions:
            for resource in ("healthz", "metadata", "warmup", "openapi.json"):
                _ask(ports.inference, "GET", f"/predictions/{MODEL_NAME}/{version}/{resource}")
    bodies = {}
    for version in versions:
        observations, recurrent = golden_observations(endpoint.store / archive_name(version))
        body = request_body(observations[:1], episode_start=recurrent)
        bodies[f"/predictions/{MODEL_NAME}/{version}"] = json.dumps(body).encode()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", ports.inference)
        routes = list(bodies.items())
        for count in range(requests):
            path, body = routes[(count + number) % len(routes)]
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body)
    connection.getresponse().read()
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=MODEL_STORE)
    try:
        path = record(parser.parse_args().store)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"no ahead-of-time cache, the server starts without it: {error}")
    print(path or "this Java has no ahead-of-time caches; the server starts without one")


if __name__ == "__main__":
    main()
