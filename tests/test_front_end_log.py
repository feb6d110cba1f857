"""TorchServe's own log, with a worker in which anything may be printed: a JSON object a line, in files that end."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from carla_policy_tools.configuration import Profile, properties
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.torchserve import TorchServe
from carla_policy_tools.workers.preloading import ForkServer

VERSION = "v1.9.0"
PATIENCE_S = 60.0
LARGE = 3_000
"""Events of 12 kB each, more than a worker may have written at once; what it may is more than one file holds."""
PRINTING = r"""#!{python}
import json, os, sys
out = sys.stdout.buffer
event = {{"time": "2026-01-01T00:00:00.000Z", "level": "WARN", "event": "own_event", "message": "m"}}
lines = [
    b'"quoted" \\ back\\slashed\ttabbed', b"%m %t ${{env:HOME}} ${{jndi:ldap://x}}",
    "a\u0085b\u2028c\u2029d\u00e9".encode(),
    b"\xff\xfe not UTF-8", b"\x1b[2J\x00\x07", b"x" * 1_000_000,
    b'{{"time":"2026-01-01T00:00:00.000Z","level":"INFO","event":"cut_off",',
    b'{{"time":"now","level":"INFO","event":"no_time","message":"m"}}',
    '{{"time":"2026-01-01T00:00:00.000Z","level":"INFO","event":"not_ascii","message":"\u2028"}}'.encode(),
    json.dumps(event, separators=(",", ":")).encode(),
]
for line in lines:
    out.write(line + b"\n")
for number in range({large}):
    large = {{**event, "event": "large", "run": os.getpid(), "fill": "x" * 12_000}}
    out.write(json.dumps(large, separators=(",", ":")).encode() + b"\n")
out.write(b"after all\n")
out.flush()
sys.stderr.write("Traceback (most recent call last):\n  printed to stderr\n")
sys.exit(1)
"""


class PrintingWorkers:
    """In the place of the fork server: what TorchServe starts as a worker only prints."""

    def python(self, directory: Path) -> Path:
        path = directory / "python"
        path.write_text(PRINTING.format(python=sys.executable, large=LARGE))
        path.chmod(stat.S_IRWXU)
        return path


@pytest.fixture(scope="module")
def logs(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the logs, after the first worker has printed everything."""
    run = Path(tmp_path_factory.mktemp("printed", numbered=True))
    profile = Profile(
        workers=1, batch_size=1, max_batch_delay_ms=0, response_timeout_s=5, startup_timeout_s=20, retry_window_s=30
    )
    ports = choose_ports(0)
    settings = properties(versions={VERSION: profile}, promoted=VERSION, ports=ports, store=small_store)
    with TorchServe(
        settings, ports, run, heap_mb=256, workers=cast(ForkServer, PrintingWorkers()), stop_timeout_s=20
    ) as server:
        server.configure()
        deadline = time.monotonic() + PATIENCE_S
        while not any(event["event"] == "front_end" and "exception" in event for event in events_in(server)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield server.log_file.parent


def events_in(server: TorchServe) -> list[dict[str, Any]]:
    """Whole lines in the files that are there at this moment: they change their names while somebody writes."""
    events = []
    for path in server.log_file.parent.glob("torchserve*.log"):
        with suppress(FileNotFoundError):
            events += [json.loads(line) for line in path.read_text().split("\n") if line.endswith("}")]
    return events


def read(logs: Path) -> list[dict[str, Any]]:
    lines = [line for path in logs.glob("torchserve*.log") for line in path.read_bytes().decode().split("\n")[:-1]]
    return [json.loads(line) for line in lines]


def test_every_line_is_one_event_whatever_a_worker_prints(logs: Path) -> None:
    for path in logs.glob("torchserve*.log"):
        text = path.read_bytes().decode()
        assert text.count("\n") == len(text.splitlines())
    events = read(logs)
    assert all({"time", "level", "event", "message", "thread"} <= event.keys() for event in events)
    printed = [event["message"] for event in events if event["event"] == "worker_output"]
    assert '"quoted" \\ back\\slashed\ttabbed' in printed
    assert "%m %t ${env:HOME} ${jndi:ldap://x}" in printed
    assert max(map(len, printed)) <= 4_020


def test_event_of_a_worker_passes_as_it_is_with_the_thread_that_read_it(logs: Path) -> None:
    own = next(event for event in read(logs) if event["event"] == "own_event")
    assert own.pop("thread").endswith(f"carla_policy_{VERSION}-stdout")
    assert own == {"time": "2026-01-01T00:00:00.000Z", "level": "WARN", "event": "own_event", "message": "m"}


def test_what_only_looks_like_an_event_is_quoted(logs: Path) -> None:
    events = read(logs)
    assert {"cut_off", "no_time", "not_ascii"}.isdisjoint(event["event"] for event in events)
    assert any('"event":"cut_off"' in event["message"] for event in events if event["event"] == "worker_output")


def test_exception_of_the_front_end_is_one_event(logs: Path) -> None:
    thrown = [event for event in read(logs) if "exception" in event]
    assert thrown
    assert "\n\tat org.pytorch.serve." in thrown[0]["exception"].replace("\r", "")


def test_flood_of_lines_is_cut_off_and_files_end(logs: Path) -> None:
    sizes = [path.stat().st_size for path in logs.glob("torchserve*.log")]
    assert 2 <= len(sizes) <= 6
    assert max(sizes) < 10_500_000
    runs = Counter(event["run"] for event in read(logs) if event["event"] == "large")
    assert 800 < max(runs.values()) < 2_500
