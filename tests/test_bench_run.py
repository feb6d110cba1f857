"""A real run of the benchmark, as short as can be: its structure and its checks. No time that it measures is asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.bench import runtimes, wrk
from benchmarks.bench.client import Client, closed_loop
from benchmarks.bench.loads import Generator, arrivals
from benchmarks.bench.plan import Plan
from benchmarks.bench.report import render
from benchmarks.bench.results import Results, RuntimeSpeed, Sweep
from benchmarks.bench.running import run
from benchmarks.bench.slo import judge, load_objectives
from benchmarks.contenders.base import ServiceProcess, StartError, started
from benchmarks.contenders.catalog import CONTENDERS, chosen
from benchmarks.contenders.workload import Workload, prepare_workload
from carla_policy_tools.artifact import seal
from carla_policy_tools.paths import ARTIFACTS

HONEST = ("ours-realtime", "noop-realtime", "fastapi-1")
SERVICE = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, status, throttle = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        action = {"throttle": throttle, "brake": 0.0, "steer": 0.0}
        body = json.dumps({"actions": [action], "version": "v0.2.0", "deterministic": True}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Liar(ServiceProcess):
    """Answers every observation with the same action."""

    name = "liar"
    title = "A service that is wrong"
    status: ClassVar[int] = 200

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", SERVICE, str(self.port), str(self.status), "0.123"]


class Failing(Liar):
    name = "failing"
    status = 500


class Broken(ServiceProcess):
    name = "broken"
    title = "A service that does not start"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", "raise SystemExit('out of order')"]


class Absent(Liar):
    name = "absent"
    packages = ("no_such_package",)


@pytest.fixture(scope="module")
def results() -> Results:
    """All sections but the bare network's, with contenders that are wrong in four ways among the honest ones."""
    wrong = {kind.name: kind for kind in (Liar, Failing, Broken, Absent)}
    plan = Plan(
        sections=("starts", "rounds", "arrivals", "bulk", "sweeps"),
        contenders=(*HONEST, *wrong),
        connections=(1, 4),
        rounds=2,
        slice_s=0.3,
        client_s=0.3,
        warm_up_s=0.2,
        starts=1,
        start_s=0.3,
        start_requests=50,
        arrival_rounds=1,
        arrival_s=0.3,
        bulk_rows=(1, 32),
        bulk_rounds=1,
        bulk_repeats=1,
        sweep_versions=(1,),
        sweep_workers=(2,),
        sweep_s=0.3,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in wrong.items():
            patch.setitem(CONTENDERS, name, kind)
        patch.setattr("benchmarks.bench.running.find_wrk", lambda: None)  # wrk runs for no less than a second
        return run(plan, ARTIFACTS / "v0.2.0")


def test_contenders_that_answer_rightly_are_measured(results: Results) -> None:
    measured = {one.name: one for one in results.participants if one.refused is None}
    assert tuple(measured) == HONEST
    assert measured["ours-realtime"].largest_difference == 0
    assert measured["noop-realtime"].largest_difference is None
    assert 0 <= (measured["fastapi-1"].largest_difference or 0) < 1e-5
    assert {part.contender for part in results.slices} == set(HONEST)


def test_contenders_that_answer_wrongly_or_not_at_all_are_refused(results: Results) -> None:
    reasons = {one.name: one.refused for one in results.participants if one.refused}
    assert reasons.keys() == {"liar", "failing", "broken", "absent"}
    assert "liar, observation 0: expected [" in str(reasons["liar"])
    assert "failing, observation 0: status 500" in str(reasons["failing"])
    assert "out of order" in str(reasons["broken"])
    assert reasons["absent"] == "not installed: no_such_package"


LOADS = (("client", 1), ("closed", 1), ("closed", 4))


def test_every_contender_is_seen_under_every_load_in_every_round(results: Results) -> None:
    closed = {(one, number, load, n) for one in HONEST for number in (0, 1) for load, n in LOADS}
    arriving = {(one, 0, load, 64) for one in HONEST for load in ("constant", "share")}
    assert {(part.contender, part.round, part.load, part.connections) for part in results.slices} == closed | arriving


def test_every_answer_is_counted_and_was_right(results: Results) -> None:
    assert results.invalid == []
    for part in (*results.slices, *(sweep.load for sweep in results.sweeps)):
        assert part.requests == len(part.latencies) > 0
        assert part.failed == 0


def test_processor_time_and_memory_are_told_by_role(results: Results) -> None:
    roles = {part.contender: set(part.cpu_seconds) for part in results.slices}
    assert roles == {
        "ours-realtime": {"supervisor", "frontend", "worker"},
        "noop-realtime": {"supervisor", "frontend", "worker"},
        "fastapi-1": {"server"},
    }
    for own in results.memory.values():
        assert all(0 < role.pss_mib <= role.rss_mib and role.processes > 0 for role in own.values())


def test_section_that_fails_does_not_cost_the_others_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[Sweep]:
        raise StartError("no port is free")

    speed = RuntimeSpeed(runtime="TorchScript", tile=1, rows=1, seconds=1.0)
    monkeypatch.setattr("benchmarks.bench.running.run_sweeps", fail)
    monkeypatch.setattr("benchmarks.bench.running.run_runtimes", lambda *_: [speed])
    found = run(Plan(sections=("sweeps", "runtimes"), sweep_versions=(1,)), ARTIFACTS / "v0.2.0")
    assert found.incomplete == {"sweeps": "StartError: no port is free"}
    assert found.runtimes == (speed,)
    assert "The section sweeps ended early: StartError: no port is free" in render(found, judge(found, []))


def test_fresh_starts_are_of_one_and_of_two_versions(results: Results) -> None:
    assert {(start.contender, start.versions) for start in results.starts} == {
        ("ours-realtime", 1),
        ("ours-realtime", 2),
    }
    for start in results.starts:
        assert 0 < start.first_answer_s < start.ready_s, "ready comes after the warm-up"
        assert 1 < len(start.latencies) <= 50


def test_bulk_requests_are_compared_with_the_bare_model(results: Results) -> None:
    subjects = {"ours-json", "ours-npy", "bare", "bare-network", "bare-one-pass"}
    assert {(part.subject, part.rows) for part in results.bulk} == {(one, rows) for one in subjects for rows in (1, 32)}
    assert all((part.peak_mib is None) == part.subject.startswith("bare") for part in results.bulk)


def test_sweeps_serve_as_many_workers_as_they_say(results: Results) -> None:
    assert [(sweep.versions, sweep.workers) for sweep in results.sweeps] == [(1, 2)]


def test_results_survive_json_and_make_a_report(results: Results) -> None:
    read = Results.model_validate_json(results.model_dump_json())
    assert read == results
    page = render(read, judge(read, load_objectives()))
    assert "out of order" in page
    assert results.source.commit[:12] in page


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return prepare_workload(ARTIFACTS / "v0.2.0", tmp_path_factory.mktemp("bench"))


def test_a_service_that_goes_wrong_makes_its_slices_invalid(workload: Workload) -> None:
    """Statuses are counted by every load; actions by those that read answers."""
    with started(lambda: Failing(workload)) as failing:
        slices = [
            Generator(None).closed(failing, connections=2, seconds=0.3),
            arrivals(failing, load="constant", rate=20, seconds=0.5),
        ]
        with Client(failing.url) as client:
            latencies, others = closed_loop(client, [client.request(b"{}")], seconds=5, limit=10)
    assert (latencies, others) == ([], 10)
    with started(lambda: Liar(workload)) as liar:
        slices.append(arrivals(liar, load="constant", rate=20, seconds=0.5))
    for part in slices:
        assert not part.valid
        assert part.failed > 0 == part.requests


@pytest.mark.skipif(wrk.find_wrk() is None, reason="wrk is not on the PATH and not in build/wrk: make bench")
def test_wrk_counts_statuses_and_latencies(workload: Workload) -> None:
    generator = Generator(wrk.find_wrk())
    with started(lambda: Liar(workload)) as liar:
        answered = generator.closed(liar, connections=2, seconds=1)
    assert answered.valid
    assert len(answered.latencies) >= answered.requests > 0
    with started(lambda: Failing(workload)) as failing:
        refused = generator.closed(failing, connections=2, seconds=1)
    assert refused.failed > 0 == refused.requests


def test_nothing_is_left_of_a_contender_that_does_not_start(workload: Workload) -> None:
    with pytest.raises(StartError, match="broken ended with status 1: out of order"), started(lambda: Broken(workload)):
        pass


def test_an_artifact_that_others_could_not_serve_is_refused(tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(ARTIFACTS / "v0.2.0", tmp_path / "v0.2.0"))
    card = artifact / "model_card.yaml"
    card.write_text(card.read_text().replace("layout: [acceleration, steer]", "layout: [steer, acceleration]"))
    seal(artifact)
    with pytest.raises(ValueError, match="choose another --artifact"):
        prepare_workload(artifact, tmp_path / "store")


def test_the_network_runs_in_every_runtime_and_tile(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "ROWS", (1, 32))
    monkeypatch.setattr(runtimes, "MEASURING_S", 0.0)
    speeds = runtimes.run_runtimes(workload, lambda _: None)
    combinations = {
        (name, tile, rows) for name in runtimes.FILES for tile, rows in ((1, 1), (1, 32), (16, 32), (32, 32))
    }
    assert {(part.runtime, part.tile, part.rows) for part in speeds} == combinations
    assert all(part.seconds > 0 for part in speeds)


def test_an_unknown_contender_is_refused() -> None:
    with pytest.raises(ValueError, match="fastapi-9: no contender; choose of ours-realtime"):
        chosen(["fastapi-9"])
