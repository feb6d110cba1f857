"""The vehicle's client and a real server: the same actions, and a drive through what happens to a server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from carla_policy_client import Action, AsyncPolicyClient, Hold, Observation, PolicyClient
from carla_policy_tools.build import build
from carla_policy_tools.tokens import read_key
from tests.scraping import total, wait_until_counted
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import make_artifact, observations

PLAIN, RECURRENT = "v1.0.0", "v1.1.0"
ROWS = observations(6, 5, seed=3)
PATIENT_S = 20.0
DEADLINE_S, SLACK_S = 0.1, 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    root = tmp_path_factory.mktemp("vehicle")
    build(make_artifact(root, PLAIN), root)
    build(make_artifact(root, RECURRENT, recurrent=True), root)
    with ServeProcess(root, "--token-auth") as process:
        yield process


def key_of(server: ServeProcess) -> str:
    return read_key(Path(server.ready["key_file"]), "inference")


def client_of(server: ServeProcess, version: str | None, **options: Any) -> PolicyClient:
    return PolicyClient(server.base, version, token=key_of(server), **{"deadline_s": PATIENT_S, **options})


def flat(row: Any) -> dict[str, Any]:
    speed, steering, *sensors = row.tolist()
    return {"speed": speed, "steering": steering, "sensors": sensors}


def predicted(server: ServeProcess, version: str, row: Any, **options: Any) -> dict[str, float]:
    """The action that `carla-policy predict` prints for `row`."""
    where = ["--url", server.base, "--key-file", server.ready["key_file"]]
    run = subprocess.run(
        [*COMMAND, "predict", version, *where, "--file", "-", "--json"],
        input=json.dumps({"observations": [flat(row)], **options}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (action,) = json.loads(run.stdout)["actions"]
    return dict(action)


def drive_until(client: PolicyClient, wanted: str) -> None:
    """Steps at the loop's period until an action has that source; none takes longer than its deadline."""
    end = time.monotonic() + PATIENT_S
    while True:
        began = time.monotonic()
        taken = client.act(ROWS[0])
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        if taken.source == wanted:
            return
        assert time.monotonic() < end, taken.message
        time.sleep(DEADLINE_S / 5)


def test_action_is_the_one_that_predict_prints_in_all_of_its_bits(server: ServeProcess) -> None:
    mode, sample = predicted(server, PLAIN, ROWS[0]), predicted(server, PLAIN, ROWS[0], deterministic=False, seed=11)
    with client_of(server, PLAIN) as client:
        speed, steering, *sensors = ROWS[0].tolist()
        for observation in (ROWS[0], Observation(speed, steering, sensors), flat(ROWS[0]), ROWS[0].tolist()):
            taken = client.act(observation)
            assert (taken.controls(), taken.source, taken.version) == (mode, "policy", PLAIN)
        sampled = client.act(ROWS[0], deterministic=False, seed=11)
        assert (sampled.controls(), sampled.seed) == (sample, 11)
        assert [action.controls() for action in client.act_many(ROWS)] == [client.act(row).controls() for row in ROWS]
        assert client.statistics.connects == 1

    async def act() -> Action:
        async with AsyncPolicyClient(server.base, PLAIN, PATIENT_S, token=key_of(server)) as on_a_loop:
            return await on_a_loop.act(ROWS[0])

    assert asyncio.run(act()).controls() == mode


def test_refusals_are_told_and_the_circuit_stays_closed(server: ServeProcess) -> None:
    with client_of(server, PLAIN, failures_to_open=1) as client:
        taken = client.act(ROWS[0][:4])
        assert taken.message == "422 SHAPE: observations[0].sensors: expected 5 values, got 2"
        assert client.act(ROWS[0]).source == "policy"
        assert client.statistics.refusals == {"422 SHAPE": 1}
    with client_of(server, "v9.9.9") as client:
        assert client.act(ROWS[0]).message.startswith("404 ModelVersionNotFoundException")
    with PolicyClient(server.base, PLAIN, PATIENT_S, token="wrong") as client:
        taken = client.act(ROWS[0])
        assert (taken.reason, taken.message[:23]) == ("refused", "400 InvalidKeyException")


def test_recurrent_policy_remembers_within_an_episode_and_begins_anew_with_another_version(
    server: ServeProcess,
) -> None:
    expected, state = [], {}
    for row in ROWS[:3]:
        body = {"observations": [flat(row)], **(state or {"episode_start": True})}
        answer = server.post(RECURRENT, body, Authorization=f"Bearer {key_of(server)}").json()
        expected.append(answer["actions"][0])
        state = {"state": answer["state"]}
    promote(server, RECURRENT)
    with client_of(server, None) as client:
        for _ in range(2):
            client.start_episode()
            assert [client.act(row).controls() for row in ROWS[:3]] == expected
        promote(server, PLAIN)
        assert [client.act(row).version for row in ROWS[:3]] == [PLAIN] * 3
        promote(server, RECURRENT)
        assert client.act(ROWS[0]).version == RECURRENT
        found = client.statistics
        assert found.state_losses == 2
        assert found.by_source == {"policy": 10, "fallback": 0, "override": 0}
        assert not client.end_episode(1.0, 10)  # two versions drove: nobody knows whose return it is


def promote(server: ServeProcess, version: str) -> None:
    key = read_key(Path(server.ready["key_file"]), "management")
    url = f"{server.ready['management']}/models/carla_policy/{version}/set-default"
    requests.put(url, headers={"Authorization": f"Bearer {key}"}, timeout=30).raise_for_status()


def test_episodes_are_counted_by_the_server(server: ServeProcess) -> None:
    with client_of(server, PLAIN) as client:
        for _ in range(2):
            client.start_episode()
            client.act(ROWS[0])
            assert client.end_episode(412.5, 560)
        client.close(timeout_s=PATIENT_S)
        assert client.statistics.episodes_reported == 2
    page = wait_until_counted(server, "policy_episode_steps_total", 1120.0, model_version=PLAIN)
    assert total(page, "policy_episodes_total", model_version=PLAIN) == 2


@pytest.mark.parametrize("who", ["worker", "server"])
def test_drive_goes_on_while_the_server_is_frozen_and_the_policy_drives_again_by_itself(
    server: ServeProcess, who: str
) -> None:
    with client_of(server, PLAIN, deadline_s=DEADLINE_S, fallback=Hold(0.2), failures_to_open=2) as client:
        drive_until(client, "policy")
        pid = server.ready["server_pid"]
        if who == "worker":
            described = requests.get(
                f"{server.base}/predictions/carla_policy/{PLAIN}/metadata",
                headers={"Authorization": f"Bearer {key_of(server)}"},
                timeout=30,
            )
            pid = described.json()["workerPid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            drive_until(client, "fallback")
            drive_until_open(client)
        finally:
            os.kill(pid, signal.SIGCONT)
        drive_until(client, "policy")
        found = client.statistics
        assert (found.circuit, found.circuit_opened >= 1) == ("closed", True)
        assert found.by_reason["late"] >= 2


def drive_until_open(client: PolicyClient) -> None:
    while client.statistics.circuit != "open":
        drive_until(client, "fallback")
    assert client.act(ROWS[0]).reason == "circuit_open"
