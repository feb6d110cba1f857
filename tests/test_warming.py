"""A server is asked until Java's compiler has nothing left to do, and only then called ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, count, repeat
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.lifecycle.warming import CLIENTS, QUIET_ROUNDS, ROUND, SHORT_ROUND, compiler_seconds, warm_up
from tests.servers import ServeProcess
from tests.serving import serving

LONG_S = 600.0
VERSIONS = ["v1.0.0", "v2.0.0"]


class Asked(ThreadingHTTPServer):
    """Answers everything with `status`, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.paths: list[str] = []
        self.keys: set[str | None] = set()
        self.status = 200

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Asked

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.keys.add(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> Iterator[Asked]:
    server = Asked()
    with serving(server):
        yield server


def _busy_for(rounds: int) -> Callable[[], float]:
    """A compiler that works all the time for so many rounds, and then no more; it is looked at twice a round."""
    readings = chain(chain.from_iterable((k * LONG_S, (k + 1) * LONG_S) for k in range(rounds)), repeat(0.0))
    return lambda: next(readings)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_it_asks_until_the_compiler_is_quiet(asked: Asked, rounds: int) -> None:
    requests_sent = warm_up(asked.base, VERSIONS, LONG_S, _busy_for(rounds))

    assert requests_sent == len(asked.paths) == (rounds + QUIET_ROUNDS) * ROUND * CLIENTS


def test_it_asks_every_version_equally_often_for_what_counts_as_no_prediction(asked: Asked) -> None:
    warm_up(asked.base, VERSIONS, LONG_S, _busy_for(0))

    half = QUIET_ROUNDS * ROUND * CLIENTS // 2
    assert Counter(asked.paths) == {f"/predictions/carla_policy/{version}/healthz": half for version in VERSIONS}


def test_a_version_that_joins_a_warm_server_is_asked_a_few_times(asked: Asked) -> None:
    assert warm_up(asked.base, ["v1.0.0"], LONG_S, None) == len(asked.paths) == SHORT_ROUND * CLIENTS


def test_a_server_that_asks_for_keys_is_given_one(asked: Asked) -> None:
    warm_up(asked.base, VERSIONS, LONG_S, None, "Bearer key")

    assert asked.keys == {"Bearer key"}


def test_a_compiler_that_never_rests_is_not_waited_for_beyond_the_limit(asked: Asked) -> None:
    readings = count(0.0, LONG_S)

    assert warm_up(asked.base, VERSIONS, 0.0, lambda: next(readings)) == 0
    assert warm_up(asked.base, VERSIONS, 0.1, lambda: next(readings)) > 0


def test_a_version_that_fails_does_not_keep_the_server_from_becoming_ready(asked: Asked) -> None:
    asked.status = 500

    assert warm_up(asked.base, VERSIONS, LONG_S, _busy_for(100)) == 0


def test_a_server_that_is_gone_is_not_waited_for() -> None:
    assert warm_up("http://127.0.0.1:1", VERSIONS, LONG_S, _busy_for(100)) == 0


def test_ready_is_said_after_the_warm_up_which_counts_as_no_prediction(small_store: Path) -> None:
    with ServeProcess(small_store) as server:
        text = requests.get(f"{server.ready['metrics']}/metrics", timeout=30).text
        counted = [line for line in text.splitlines() if line.startswith("ts_inference_requests_total{")]
        per_version = {v: sum(float(x.split()[-1]) for x in counted if f'"{v}"' in x) for v in server.ready["versions"]}

        assert server.ready["warmup_requests"] >= ROUND * CLIENTS
        assert sum(per_version.values()) >= server.ready["warmup_requests"]
        assert min(per_version.values()) >= ROUND * CLIENTS / len(per_version)
        driven = [
            line for line in text.splitlines() if line.startswith(("policy_requests_total{", "policy_rows_total{"))
        ]
        assert driven
        assert {line.split()[-1] for line in driven} == {"0.0"}
        times = server.ready["startup_s"]
        assert list(times) == ["started", "verified", "loaded", "warm"]
        assert sorted(times.values()) == list(times.values())
        assert compiler_seconds(server.ready["server_pid"]) > 0.0


def test_what_is_no_java_has_no_compiler() -> None:
    assert compiler_seconds(psutil.Process().pid) == 0.0
