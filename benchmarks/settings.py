"""What each setting of a start is worth: `python -m benchmarks.settings --runs 5`.

Starts servers with all settings as they are, and with one of them taken back, in turns, and prints the ratio of their
medians: time until all versions are loaded, processor time of the start, memory of all processes when it is ready
(pages that they share counted once). Then the processor time in which a worker reads a batch from its socket, with
TorchServe's own reading and with the buffered one. Ratios above 1 are what is lost without the setting.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from carla_policy_tools.paths import MODEL_STORE

VARIANTS = (
    "as they are",
    "without forks",
    "without the cache",
    "with the serial collector",
    "without the second compiler",
)
REQUESTS = (1, 2, 64)
_READS = 200
_TIMEOUT_S = 120


def start(variant: str, store: Path, versions: list[str]) -> None:
    """Serve, print what the start took as JSON, and end."""
    from carla_policy_tools.aot_cache import use_flags
    from carla_policy_tools.java import find_java
    from carla_policy_tools.lifecycle.declaring import Declaration
    from carla_policy_tools.lifecycle.endpoint import Endpoint
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.ports import choose_ports
    from carla_policy_tools.serving import Request, StopRequested, serve
    from carla_policy_tools.torchserve import JAR
    from carla_policy_tools.workers.preloading import ForkServer

    flags = [] if variant == "without the cache" else use_flags(find_java(), JAR)
    flags += ["-XX:+UseSerialGC"] if variant == "with the serial collector" else []
    flags += ["-XX:TieredStopAtLevel=1"] if variant == "without the second compiler" else []

    def on_ready(_: Declaration, endpoint: Endpoint) -> None:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        memory_mb = sum(process.memory_full_info().pss for process in processes) / 2**20
        processor_s = sum(sum(process.cpu_times()) for process in processes)
        print(json.dumps({"loaded": endpoint.startup_s["loaded"], "processor": processor_s, "memory": memory_mb}))
        raise StopRequested

    with tempfile.TemporaryDirectory() as scratch, ForkServer() as workers:
        registry_file = RegistryFile.of(store, Path(scratch, "registry.json"))
        own = None if variant == "without forks" else workers
        request = Request(
            registry_file, lambda: choose_ports(0), versions, profile=_profile(scratch), workers=own, java_flags=flags
        )
        if own is None:
            workers.__exit__(None, None, None)
        serve(request, on_start=lambda _: None, on_ready=on_ready, on_trouble=print)


def _profile(directory: str) -> str:
    """The realtime profile without a warm-up, which takes as long as it takes."""
    from carla_policy_tools.paths import CONFIG

    lines = (CONFIG / "profiles" / "realtime.yaml").read_text().splitlines()
    path = Path(directory, "profile.yaml")
    path.write_text("\n".join([*(line for line in lines if not line.startswith("warmup_s")), "warmup_s: 0.0"]))
    return str(path)


def read_seconds(protocol: ModuleType, requests: int) -> float:
    """Processor time of reading one batch of so many requests."""
    front_end, worker = socket.socketpair()
    with front_end, worker:
        front_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        message, began = _batch(requests), time.process_time()
        for _ in range(_READS):
            front_end.sendall(message)
            protocol.retrieve_msg(worker)
        return (time.process_time() - began) / _READS


def _batch(requests: int) -> bytes:
    end = struct.pack("!i", -1)
    names = [b"Host", b"Content-Type", b"content-length", b"url_path", b"explain"]
    headers = b"".join(_text(name) + _text(b"application/json") for name in names) + end
    body = _text(b"body") + _text(b"application/json") + _text(bytes(400)) + end
    return b"I" + requests * (_text(b"0" * 36) + headers + body) + end


def _text(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def compare_reading(runs: int) -> None:
    import logging

    from ts.protocol import otf_message_handler as protocol

    from carla_policy.worker_protocol import READERS, make_readers

    logging.getLogger().setLevel(logging.WARNING)
    os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
    originals = [getattr(protocol, name) for name in READERS]
    for requests in REQUESTS:
        times: dict[str, list[float]] = {"TorchServe's": [], "ours": []}
        for _ in range(runs):
            for name, readers in (("TorchServe's", originals), ("ours", make_readers())):
                vars(protocol).update(zip(READERS, readers, strict=True))
                times[name].append(read_seconds(protocol, requests))
        vars(protocol).update(zip(READERS, originals, strict=True))
        ratio = statistics.median(times["TorchServe's"]) / statistics.median(times["ours"])
        print(f"reading a batch of {requests:<3} by TorchServe's functions: {ratio:.2f} times the processor time")


def compare_starts(runs: int, store: Path, versions: list[str]) -> None:
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(runs):
        for variant, found in results.items():
            command = [sys.executable, "-m", "benchmarks.settings", "--start", variant, "--store", str(store)]
            done: Any = subprocess.run(
                [*command, "--versions", *versions], stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT_S
            )
            found.append(json.loads(done.stdout))
    base = {key: statistics.median(run[key] for run in results[VARIANTS[0]]) for key in results[VARIANTS[0]][0]}
    print(f"{VARIANTS[0]}: " + ", ".join(f"{key} {value:.2f}" for key, value in base.items()))
    for variant in VARIANTS[1:]:
        ratios = {key: statistics.median(run[key] for run in results[variant]) / base[key] for key in base}
        print(f"{variant:<28}" + "  ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--store", type=Path, default=MODEL_STORE)
    parser.add_argument("--versions", nargs="+", default=["v0.1.0", "v0.2.0"])
    parser.add_argument("--start", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        start(arguments.start, arguments.store, arguments.versions)
        return
    compare_reading(arguments.runs)
    compare_starts(arguments.runs, arguments.store, arguments.versions)


if __name__ == "__main__":
    main()
