"""An environment service over HTTP and WebSocket, whatever its simulator and its clients do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event
from typing import Any

import numpy as np
import pytest
import requests
from gymnasium import spaces
from PIL import Image
from websockets.sync.client import connect

from carla_policy_environment.arrays import array_to_json
from carla_policy_environment.service.episodes import EnvironmentService
from carla_policy_environment.service.errors import ServiceError
from carla_policy_environment.service.sessions import Sessions
from carla_policy_environment.service.settings import ServiceSettings
from carla_policy_environment.service.telemetry import QUEUED, Reader
from carla_policy_environment.simulators.base import SimulatorError, SnapshotsNotSupported
from carla_policy_environment.spaces import UnsupportedSpace
from tests.environment_services import Scripted, Served, until

LIMIT_S = 1.5


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with Served(Scripted, time_limit_s=LIMIT_S, snapshot_limit=2, max_body_bytes=4096) as served:
        yield served


@pytest.fixture
def simulator(running: Served) -> Iterator[Scripted]:
    scripted = running.service.simulator
    assert isinstance(scripted, Scripted)
    scripted.forget_script()
    yield scripted
    scripted.gate.set()


@pytest.fixture
def served(running: Served, simulator: Scripted) -> Iterator[Served]:
    """The service with a new episode; afterwards without sessions and snapshots."""
    assert running.post("/reset", {"seed": 7}).status_code == 200
    yield running
    simulator.forget_script()
    for session in running.get("/session").json()["sessions"]:
        running.delete(f"/session/{session['session_id']}")
    for snapshot in running.get("/snapshot/list").json()["snapshots"]:
        running.delete(f"/snapshot/{snapshot['snapshot_id']}")


def refused(answer: requests.Response, code: int, kind: str) -> str:
    """The message of a refusal, which is one object of the same form always."""
    content = answer.json()
    assert (answer.status_code, content["code"], content["type"]) == (code, code, kind), content
    assert content.keys() == {"code", "type", "message", "details"}
    assert all(detail.keys() == {"loc", "msg", "type"} for detail in content["details"])
    return str(content["message"])


def test_an_episode_from_reset_to_its_end(served: Served, simulator: Scripted) -> None:
    simulator.ends_at = 2
    begun = served.post("/reset", {"seed": 3, "options": {"town": 1}}).json()
    assert begun["step"] == 0
    assert begun["info"] == {"options": {"town": 1}}
    assert np.array(begun["observation"], np.float32).tobytes() == np.array([0, 0.1], np.float32).tobytes()
    first, last = served.step().json(), served.step().json()
    assert [(one["step"], one["reward"], one["terminated"], one["truncated"]) for one in (first, last)] == [
        (1, 1.5, False, False),
        (2, 1.5, True, False),
    ]
    assert {one["episode_id"] for one in (first, last)} == {begun["episode_id"]}
    assert served.get("/observation").json() == {key: last[key] for key in begun}
    assert "ended with step 2; POST /reset" in refused(served.step(), 409, "ResetRequired")
    assert served.post("/reset").json()["episode_id"] != begun["episode_id"]
    assert simulator.seeds[-2:] == [3, None]


def test_nothing_is_answered_before_the_first_reset() -> None:
    with Served(Scripted) as fresh:
        for answer in (fresh.step(), fresh.get("/observation"), fresh.get("/render"), fresh.post("/snapshot/create")):
            assert "no episode has begun; POST /reset" in refused(answer, 409, "ResetRequired")
        assert fresh.get("/health").json() | {"uptime_s": 0, "version": ""} == {
            "status": "ok",
            "simulator": "scripted",
            "reason": None,
            "episode_id": None,
            "step": None,
            "session_id": None,
            "uptime_s": 0,
            "version": "",
        }


def test_info_tells_spaces_and_limits(served: Served) -> None:
    info = served.get("/info").json()
    assert info["action_space"] == {
        "type": "Box",
        "dtype": "float32",
        "shape": [2],
        "low": [-1.0, 0.0],
        "high": 1.0,
    }
    assert info["snapshots"] == {
        "supported": True,
        "reason": None,
        "restores": ["the count"],
        "loses": ["the script"],
        "limit": 2,
    }
    assert (info["step_s"], info["frame_skip"], info["max_steps"], info["details"]) == (0.1, 1, None, {"release": 0.5})


def test_frames_are_skipped_and_long_episodes_truncated() -> None:
    with Served(Scripted, frame_skip=3, max_steps=2) as skipping:
        scripted = skipping.service.simulator
        assert isinstance(scripted, Scripted)
        skipping.post("/reset")
        first, last = skipping.step().json(), skipping.step().json()
        assert (first["observation"][0], first["reward"], first["truncated"]) == (3, 4.5, False)
        assert (last["observation"][0], last["truncated"], last["terminated"]) == (6, True, False)
        scripted.ends_at = 2
        skipping.post("/reset")
        ended = skipping.step().json()
        assert (ended["observation"][0], ended["reward"], ended["terminated"]) == (2, 3.0, True)
        assert skipping.get("/info").json()["step_s"] == pytest.approx(0.3)


def test_the_same_step_again_gets_the_same_answer_and_is_not_done_twice(served: Served, simulator: Scripted) -> None:
    episode_id = served.get("/observation").json()["episode_id"]
    first = served.step(step=1, episode_id=episode_id)
    simulator.reward = 99.0
    assert served.step(step=1, episode_id=episode_id).content == first.content
    assert simulator.steps == 1
    assert "done with another action; the next is 2" in refused(served.step([0, 0], step=1), 409, "StepDone")
    for number in (3, 2**70):
        assert "is 2, got" in refused(served.step(step=number), 409, "WrongStep")
    assert "episode nope is over" in refused(served.step(step=2, episode_id="nope"), 409, "EpisodeOver")
    assert served.step(step=2).json()["step"] == 2
    assert "next step" in refused(served.step(step=1), 409, "WrongStep")


def test_a_client_that_left_in_a_step_gets_its_answer_when_it_comes_back(served: Served, simulator: Scripted) -> None:
    simulator.gate = Event()
    content = {"action": [0.5, 0.25], "step": 1}
    served.leave_in_a_step(content)
    simulator.gate.set()
    answer = served.post("/step", content)
    assert (answer.json()["step"], simulator.steps) == (1, 1)
    assert simulator.actions[0].tobytes() == np.array([0.5, 0.25], np.float32).tobytes()


def test_a_blocked_step_keeps_neither_health_nor_telemetry_waiting(served: Served, simulator: Scripted) -> None:
    simulator.gate = Event()
    with ThreadPoolExecutor() as pool:
        step = pool.submit(served.step)
        assert simulator.entered.wait(30)
        assert served.get("/health").json()["status"] == "ok"
        assert served.get("/observation").json()["step"] == 0
        with connect(f"{served.url}/telemetry".replace("http", "ws")) as socket_:
            simulator.gate.set()
            assert step.result().status_code == 200
            assert json.loads(socket_.recv(timeout=30))["step"] == 1


def test_concurrent_steps_are_done_one_after_another(served: Served, simulator: Scripted) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: served.step().json(), range(24)))
        assert sorted(answer["step"] for answer in answers) == list(range(1, 25))
        racing = list(pool.map(lambda _: served.step(step=25).content, range(8)))
    assert len(set(racing)) == 1
    assert (simulator.steps, simulator.most_at_once) == (25, 1)


def test_a_step_that_hangs_is_given_up_and_never_overtaken(served: Served, simulator: Scripted) -> None:
    simulator.gate = Event()
    content = {"action": [0, 0], "step": 1}
    assert "/health tells" in refused(served.post("/step", content), 504, "TimeLimit")
    health = served.get("/health")
    assert health.status_code == 503
    assert "step has been running for" in health.json()["reason"]
    for path, body in (("/step", content), ("/reset", {}), ("/snapshot/create", {})):
        assert "nothing was done: step has been running" in refused(served.post(path, body), 503, "Busy")
    assert (simulator.steps, simulator.most_at_once) == (0, 1)
    simulator.gate.set()
    assert until(lambda: served.get("/health").status_code == 200)
    assert served.post("/step", content).json()["step"] == 1
    assert simulator.steps == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("by zero"), 500),
        (StopIteration(), 500),
        (SystemExit(3), 500),
        (SimulatorError("CARLA does not answer"), 503),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_simulator_that_raises_is_unhealthy_until_a_reset_succeeds(
    served: Served, simulator: Scripted, error: BaseException, code: int
) -> None:
    kind = type(error).__name__
    simulator.step_error = error
    assert f"step 1 failed in the simulator: {kind}" in refused(served.step(step=1), code, kind)
    simulator.step_error, simulator.reset_error = None, error
    assert f"step 1 failed: {kind}" in refused(served.step(step=1), 409, "ResetRequired")
    assert f"reset failed in the simulator: {kind}" in refused(served.post("/reset"), code, kind)
    health = served.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    assert health.json()["reason"].startswith(f"reset failed: {kind}")
    refused(served.get("/observation"), 409, "ResetRequired")
    simulator.reset_error = None
    assert served.post("/reset").status_code == 200
    assert served.get("/health").json()["status"] == "ok"
    assert served.step(step=1).status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reward", float("nan"), "InvalidValue: reward: expected a finite number, got nan"),
        ("reward", "much", "ValueError"),
        ("observation", np.array([0, np.inf], np.float32), "observation[1]: expected a finite number, got inf"),
        ("observation", np.zeros(3, np.float32), "observation: expected shape [2], got [3]"),
        ("info", ["a list"], "AttributeError"),
    ],
)
def test_what_no_policy_can_use_is_a_failure_of_the_simulator(
    served: Served, simulator: Scripted, name: str, value: Any, said: str
) -> None:
    setattr(simulator, name, value)
    answer = served.step()
    assert answer.status_code == 500
    assert said in answer.json()["message"]
    assert served.get("/health").status_code == 503
    simulator.forget_script()
    assert served.post("/reset").status_code == 200


def test_info_is_sent_as_far_as_it_can_be(served: Served, simulator: Scripted) -> None:
    forces = np.array([np.nan, 1], np.float32)
    simulator.info = {"speed": np.float64(0.1), "forces": forces, "actor": object()}
    answer = served.step().json()
    assert answer["info"] == {"speed": 0.1, "forces": array_to_json(forces)}
    assert answer["info_left_out"] == ["actor"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "said"),
    [
        ("/step", b'{"action": [2, -1]}', "InvalidAction", "action[0]: expected -1.0 to 1.0, got 2.0 (and 1 more)"),
        ("/step", b'{"action": [0, NaN]}', "InvalidAction", "action[1]: expected a finite number"),
        ("/step", b'{"action": [0, 1e999]}', "InvalidAction", "action[1]: expected a finite number"),
        ("/step", b'{"action": [0]}', "InvalidAction", "action: expected shape [2], got [1]"),
        ("/step", b"{}", "InvalidRequest", "body.action: Field required"),
        ("/step", b'{"action": [0, 0], "steps": 1}', "InvalidRequest", "body.steps: Extra inputs"),
        ("/step", b'{"action": [0, 0], "step": "1"}', "InvalidRequest", "body.step: Input should be a valid integer"),
        ("/step", b'{"action": [0, 0], "step": 0}', "InvalidRequest", "body.step"),
        ("/step", b"[1", "InvalidRequest", "JSON"),
        ("/step", b'"\\ud800"', "InvalidRequest", "body"),
        ("/reset", b'{"seed": -1}', "InvalidRequest", "body.seed"),
        ("/reset", b'{"seed": 1.5}', "InvalidRequest", "body.seed"),
        ("/reset", b'{"\\ud800": 1}', "InvalidRequest", "body"),
        ("/snapshot/restore", b"{}", "InvalidRequest", "body.snapshot_id: Field required"),
        ("/session", b'{"idle_timeout_s": 0}', "InvalidRequest", "body.idle_timeout_s"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_and_changes_nothing(
    served: Served, simulator: Scripted, path: str, body: bytes, kind: str, said: str
) -> None:
    assert said in refused(served.post(path, body), 422, kind)
    assert simulator.steps == 0
    assert len(simulator.seeds) == 1
    assert served.get("/health").status_code == 200


@pytest.mark.parametrize("body", [b'{"action": ' + b"[" * 2000, b'{"seed": ' + b"9" * 4000 + b"}"])
def test_a_body_that_is_hard_to_parse_is_refused(served: Served, body: bytes) -> None:
    answer = served.post("/reset", body)
    assert answer.status_code in (400, 422)
    assert answer.json().keys() == {"code", "type", "message", "details"}


def test_a_large_body_is_refused_before_it_has_come(served: Served) -> None:
    assert "at most 4096 bytes" in refused(served.post("/step", b"x" * 5000), 413, "TooLarge")
    with socket.create_connection(served.address[:2], timeout=30) as connection:
        connection.sendall(b"POST /step HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n1\r\nx\r\n")
        assert b" 413 " in connection.recv(100)


def test_unknown_paths_and_methods_are_refused_in_the_same_form(served: Served) -> None:
    refused(served.get("/nope"), 404, "NotFound")
    refused(served.get("/step"), 405, "MethodNotAllowed")
    assert "/session/{session_id}/step" in served.get("/openapi.json").json()["paths"]


def test_images_are_png_and_a_simulator_without_them_says_so(
    served: Served, simulator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.step()
    answer = served.get("/render")
    assert answer.headers["content-type"] == "image/png"
    assert np.asarray(Image.open(BytesIO(answer.content))).tolist() == [[[1, 1, 1]] * 3] * 2
    monkeypatch.setattr(simulator, "render", lambda: None)
    assert "a script does not render" in refused(served.get("/render"), 404, "NotRendering")


def test_a_snapshot_brings_its_episode_back_any_number_of_times(served: Served) -> None:
    before = served.step().json()
    taken = served.post("/snapshot/create", {"name": "junction"}).json()
    assert (taken["name"], taken["step"], taken["episode_id"]) == ("junction", 1, before["episode_id"])
    for _ in range(2):
        served.step()
        served.post("/reset")
        restored = served.post("/snapshot/restore", {"snapshot_id": taken["snapshot_id"]}).json()
        assert {key: restored[key] for key in ("observation", "episode_id", "step")} == {
            key: before[key] for key in ("observation", "episode_id", "step")
        }
        assert "next step of" in refused(served.step(step=1), 409, "WrongStep")
        assert served.step(step=2, episode_id=before["episode_id"]).json()["observation"][0] == 2
    (listed,) = served.get("/snapshot/list").json()["snapshots"]
    assert listed == {key: taken[key] for key in listed}
    assert served.delete(f"/snapshot/{taken['snapshot_id']}").status_code == 204
    refused(served.post("/snapshot/restore", {"snapshot_id": taken["snapshot_id"]}), 404, "NotFound")
    refused(served.delete("/snapshot/nope"), 404, "NotFound")


def test_a_restored_episode_that_had_ended_has_ended_and_a_failed_one_goes_on(
    served: Served, simulator: Scripted
) -> None:
    going = served.post("/snapshot/create").json()["snapshot_id"]
    simulator.ends_at = 1
    served.step()
    ended = served.post("/snapshot/create").json()["snapshot_id"]
    served.post("/reset")
    simulator.step_error = ZeroDivisionError()
    served.step()
    refused(served.post("/snapshot/create"), 409, "ResetRequired")
    simulator.step_error = None
    assert served.post("/snapshot/restore", {"snapshot_id": ended}).status_code == 200
    assert "ended with step 1" in refused(served.step(), 409, "ResetRequired")
    assert served.post("/snapshot/restore", {"snapshot_id": going}).status_code == 200
    assert served.get("/health").status_code == 200
    assert served.step(step=1).status_code == 200


def test_no_snapshot_is_dropped_silently(served: Served) -> None:
    oldest = served.post("/snapshot/create").json()["snapshot_id"]
    served.post("/snapshot/create")
    assert f"DELETE /snapshot/{oldest}" in refused(served.post("/snapshot/create"), 409, "SnapshotLimit")
    served.delete(f"/snapshot/{oldest}")
    assert served.post("/snapshot/create").status_code == 200


def test_a_simulator_without_snapshots_says_why_and_stays_healthy(
    served: Served, simulator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot() -> object:
        raise SnapshotsNotSupported("its world lives in C++")

    monkeypatch.setattr(simulator, "snapshot", snapshot)
    assert "its world lives in C++" in refused(served.post("/snapshot/create"), 501, "SnapshotsNotSupported")
    assert served.step().status_code == 200


def test_a_session_has_the_service_for_itself(served: Served, simulator: Scripted) -> None:
    session_id = served.post("/session", {"name": "training"}).json()["session_id"]
    mine, path = {"x_session_id": session_id}, f"/session/{session_id}"
    step = {"action": [0, 0]}
    changes = [("/step", step), ("/reset", {}), ("/snapshot/create", {}), ("/snapshot/restore", {"snapshot_id": "x"})]
    for where, content in [*changes, ("/session", {})]:
        assert "training (since" in refused(served.post(where, content), 409, "SessionHeld")
        if where != "/session":
            refused(served.post(where, content, x_session_id="other"), 409, "SessionOver")
    assert simulator.steps == 0
    assert served.get("/observation").status_code == 200
    assert served.get("/health").json()["session_id"] == session_id
    assert served.get(path).json()["name"] == "training"
    assert served.post(f"{path}/reset", {"seed": 4}).json()["step"] == 0
    assert served.post(f"{path}/step", step).json()["step"] == 1
    assert served.post("/step", step, **mine).json()["step"] == 2
    refused(served.post("/session/other/step", step), 409, "SessionOver")
    snapshot_id = served.post("/snapshot/create", **mine).json()["snapshot_id"]
    refused(served.delete(f"/snapshot/{snapshot_id}"), 409, "SessionHeld")
    assert served.delete(f"/snapshot/{snapshot_id}", **mine).status_code == 204
    assert served.delete(path).status_code == 204
    refused(served.get(path), 404, "NotFound")
    assert "open one again" in refused(served.post("/step", step, **mine), 409, "SessionOver")
    assert served.step().json()["step"] == 3


def test_an_idle_session_ends() -> None:
    time_s = 0.0
    sessions = Sessions(lambda: time_s)
    held = sessions.begin("training", 10)
    time_s = 9
    sessions.check(held.session_id)
    time_s = 18
    with pytest.raises(ServiceError, match=r"training .* holds this service; .* after 10 s without"):
        sessions.check(None)
    time_s = 19
    assert sessions.open is None
    sessions.check(None)
    with pytest.raises(ServiceError, match="not open"):
        sessions.check(held.session_id)


def test_telemetry_tells_all_readers_what_happens(served: Served) -> None:
    address = f"{served.url}/telemetry".replace("http", "ws")
    with connect(address) as one, connect(address) as other:
        assert until(lambda: len(served.service.telemetry._readers) == 2)
        episode = served.post("/reset").json()
        step = served.step([0.5, 0]).json()
        served.step([0, 5])
        snapshot_id = served.post("/snapshot/create").json()["snapshot_id"]
        served.post("/snapshot/restore", {"snapshot_id": snapshot_id})
        for reader in (one, other):
            told = [json.loads(reader.recv(timeout=30)) for _ in range(3)]
            assert [(each["event"], each["step"], each["missed"]) for each in told] == [
                ("reset", 0, 0),
                ("step", 1, 0),
                ("restore", 1, 0),
            ]
            assert told[1] | step == told[1]
            assert told[1]["action"] == [0.5, 0]
            assert told[1].keys() == told[0].keys()
            assert told[0]["episode_id"] == episode["episode_id"]
        one.send("ignored")
        other.send(b"ignored")
        served.step()
        assert [json.loads(reader.recv(timeout=30))["step"] for reader in (one, other)] == [2, 2]
    assert until(lambda: not served.service.telemetry.is_read)


def test_a_slow_reader_loses_the_oldest_messages_and_learns_how_many() -> None:
    import asyncio

    async def read() -> list[dict[str, Any]]:
        reader = Reader()
        for number in range(QUEUED + 3):
            reader.put(json.dumps({"step": number}))
        return [json.loads(await reader.next()) for _ in range(2)]

    assert asyncio.run(read()) == [{"step": 3, "missed": 3}, {"step": 4, "missed": 3}]


def test_settings_that_make_no_sense_are_named() -> None:
    for name in ("max_steps", "frame_skip", "time_limit_s", "snapshot_limit"):
        with pytest.raises(ValueError, match=f"{name}: expected a number above 0, got 0"):
            ServiceSettings(**{name: 0})


def test_a_simulator_that_cannot_be_made_ends_the_start() -> None:
    def make() -> Scripted:
        raise SimulatorError("no CARLA at 127.0.0.1:2000")

    with pytest.raises(SimulatorError, match="no CARLA at"):
        EnvironmentService(make)


def test_a_simulator_whose_spaces_cannot_be_sent_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Event()
    monkeypatch.setattr(Scripted, "close", lambda _: closed.set())

    def make() -> Scripted:
        scripted = Scripted()
        scripted.action_space = spaces.Dict(gear=spaces.Sequence(spaces.Discrete(2)))
        return scripted

    with pytest.raises(UnsupportedSpace, match=r"^action_space\.gear: Sequence cannot be sent"):
        EnvironmentService(make)
    assert closed.is_set()
