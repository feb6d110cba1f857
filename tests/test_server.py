"""A real TorchServe with both shipped versions, asked over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from carla_policy.card import GOLDEN_FILE, ModelCard, load_card
from carla_policy_tools.client import request_body
from carla_policy_tools.paths import ARTIFACTS, MODEL_NAME, archive_name
from carla_policy_tools.urls import prediction_url
from tests.conftest import SHIPPED
from tests.scraping import wait_until_counted
from tests.servers import ServeProcess

LATEST = SHIPPED[-1]
EXACT = "v0.2.0"
"""Has no limits in its card: what leaves is the policy's action, bit for bit."""
CLIENTS = 32
REQUESTS_EACH = 25


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(ARTIFACTS / EXACT / GOLDEN_FILE))


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card(ARTIFACTS / EXACT / "model_card.yaml")


@pytest.fixture(scope="module")
def throughput_server(store: Path) -> Iterator[ServeProcess]:
    """A second server beside the first, which puts up to 64 requests into a batch."""
    with ServeProcess(store, "--profile", "throughput") as process:
        yield process


def controls(actions: np.ndarray) -> list[dict[str, float]]:
    """What must be served for actions `[rows, 2]` of the layout `[acceleration, steer]`."""
    return [{"throttle": max(float(a), 0.0), "brake": max(-float(a), 0.0), "steer": float(s)} for a, s in actions]


def ask(server: ServeProcess, version: str | None, rows: np.ndarray, **options: Any) -> dict[str, Any]:
    response = server.post(version, request_body(rows, **options))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("version", SHIPPED)
def test_served_actions_are_bit_equal_to_the_training_side_s(server: ServeProcess, version: str) -> None:
    golden = np.load(ARTIFACTS / version / GOLDEN_FILE)
    answer = ask(server, version, golden["observations"])
    changed = {note["observation"] for note in answer.get("interventions", [])}
    assert len(changed) <= (5 if version == "v0.3.0" else 0)
    for row, expected in enumerate(controls(golden["deterministic_actions"])):
        assert (answer["actions"][row] == expected) == (row not in changed)
    assert (answer["version"], answer["deterministic"]) == (version, True)


def test_seeded_samples_are_bit_equal_to_the_training_side_s(
    server: ServeProcess, golden: dict[str, np.ndarray]
) -> None:
    for row in range(40):
        answer = ask(
            server, EXACT, golden["observations"][row : row + 1], deterministic=False, seed=int(golden["seeds"][row])
        )
        assert answer["actions"] == controls(golden["sampled_actions"][row : row + 1])
        assert answer["seed"] == int(golden["seeds"][row])


def test_promoted_version_answers_where_none_is_named(server: ServeProcess, golden: dict[str, np.ndarray]) -> None:
    assert ask(server, None, golden["observations"][:1])["version"] == LATEST


def test_example_of_the_wire_format(server: ServeProcess, golden: dict[str, np.ndarray]) -> None:
    response = server.post(EXACT, request_body(golden["observations"][:2]), traceparent="00-ab-cd-01")
    assert response.json().keys() == {"actions", "version", "timingMs", "deterministic"}
    assert [action.keys() for action in response.json()["actions"]] == [{"throttle", "brake", "steer"}] * 2
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-policy-version"] == EXACT
    assert response.headers["traceparent"] == "00-ab-cd-01"
    assert {part.partition(";")[0] for part in response.headers["server-timing"].split(", ")} >= {"parse", "infer"}


def test_same_observation_has_the_same_bits_alone_in_seven_in_a_thousand_and_under_load(
    throughput_server: ServeProcess, golden: dict[str, np.ndarray]
) -> None:
    rows = golden["observations"]
    thousand = np.concatenate([rows, rows])[:1000]
    expected = controls(golden["deterministic_actions"])
    assert ask(throughput_server, EXACT, thousand)["actions"] == (expected + expected)[:1000]
    assert ask(throughput_server, EXACT, rows[3:10])["actions"] == expected[3:10]
    assert ask(throughput_server, EXACT, rows[3:4])["actions"] == expected[3:4]
    wrong, failures = [], []

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        with requests.Session() as session:
            for _ in range(REQUESTS_EACH):
                start, size = int(rng.integers(len(rows) - 9)), int(rng.integers(1, 9))
                body = json.dumps(request_body(rows[start : start + size]))
                headers = {"Content-Type": "application/json"}
                response = session.post(
                    prediction_url(throughput_server.base, EXACT), body, headers=headers, timeout=30
                )
                if response.status_code != 200:
                    failures.append(response.text)
                elif response.json()["actions"] != expected[start : start + size]:
                    wrong.append((start, size))

    run_threads(client)
    assert (failures, wrong) == ([], [])


def test_bad_requests_under_load_do_not_change_the_answers_beside_them(
    throughput_server: ServeProcess, golden: dict[str, np.ndarray]
) -> None:
    rows, expected = golden["observations"], controls(golden["deterministic_actions"])
    bad = {b"{": 400, b"": 400, b"null": 422, b'{"observations": [{"speed": 1, "steering": 0, "sensors": [1]}]}': 422}
    problems: list[Any] = []
    workers = worker_pids(throughput_server)

    def client(number: int) -> None:
        for turn in range(REQUESTS_EACH):
            row = (number * REQUESTS_EACH + turn) % len(rows)
            body, status = (json.dumps(request_body(rows[row : row + 1])).encode(), 200)
            if number % 4 == 0:
                body, status = list(bad.items())[turn % len(bad)]
            response = throughput_server.post(EXACT, body)
            if response.status_code != status or (
                status == 200 and response.json()["actions"] != expected[row : row + 1]
            ):
                problems.append((body, response.status_code, response.text))

    run_threads(client)
    assert problems == []
    assert worker_pids(throughput_server) == workers


def test_wrong_sensor_count_names_field_expected_and_actual(server: ServeProcess, card: ModelCard) -> None:
    response = server.post(EXACT, {"observations": [{"speed": 1, "steering": 0, "sensors": [0.5] * 5}]})
    error = response.json()
    assert response.status_code == error["code"] == 422
    assert error["type"] == "SHAPE"
    assert error["message"] == f"observations[0].sensors: expected {card.observation.sensors} values, got 5"
    assert error["details"][0]["loc"] == "observations[0].sensors"
    assert error["requestId"] == response.headers["x-request-id"]


def test_forgotten_content_type_is_explained(server: ServeProcess) -> None:
    response = server.post(EXACT, b'{"observations": []}', Content_Type="application/x-www-form-urlencoded")
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["message"]


@pytest.mark.parametrize("version", SHIPPED)
def test_sub_resources(server: ServeProcess, version: str) -> None:
    health = server.get(version, "healthz").json()
    circuit = "closed" if version == LATEST else "off"
    assert health == {"status": "ok", "version": version, "gitSha": health["gitSha"], "circuit": circuit}
    assert len(health["gitSha"]) == 40
    metadata = server.get(version, "metadata").json()
    assert (metadata["name"], metadata["version"], metadata["device"]) == ("carla_policy", version, "cpu")
    assert metadata["preprocessor"] == "compiled"
    assert all(stage["bitEqualShare"] == 1.0 for stage in metadata["selfTest"]["stages"])
    assert server.get(version, "warmup").json()["status"] == "warm"
    assert server.get(version, "nothing").status_code == 404


def test_describe_shows_the_metadata(server: ServeProcess) -> None:
    url = f"{server.ready['management']}/models/carla_policy/{EXACT}?customized=true"
    described = requests.get(url, timeout=30).json()[0]
    assert described["customizedMetadata"] == server.get(EXACT, "metadata").json()


def test_unknown_version_is_not_found(server: ServeProcess) -> None:
    assert server.post("v9.9.9", {}).status_code == 404


def test_any_worker_gives_the_same_bits(store: Path, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    profile = tmp_path / "two.yaml"
    lines = ("workers: 2", "batch_size: 4", "max_batch_delay_ms: 1", "response_timeout_s: 10", "startup_timeout_s: 60")
    profile.write_text("\n".join(lines))
    expected = controls(golden["deterministic_actions"])
    with ServeProcess(store, EXACT, "--profile", str(profile)) as server:
        assert len(worker_pids(server)) == 2
        for row in range(60):
            assert ask(server, None, golden["observations"][row : row + 1])["actions"] == expected[row : row + 1]


def run_threads(client: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def worker_pids(server: ServeProcess) -> list[int]:
    return sorted(p.pid for p in server.descendants() if "model_service_worker.py" in " ".join(p.cmdline()))


def test_what_the_envelope_changes_is_answered_and_counted(server: ServeProcess, golden: dict[str, np.ndarray]) -> None:
    """The shipped card's limits, in a situation that no training brought: full lock at 20 m/s."""
    row = golden["observations"][:1].copy()
    row[0, :2] = 20.0, 1.0
    answer = ask(server, LATEST, row)
    kinds = [note["kind"] for note in answer["interventions"]]
    assert "steer_rate" in kinds
    assert answer["actions"][0]["throttle"] == 0.0
    assert answer["actions"][0]["brake"] >= np.float32(0.3)
    assert answer["actions"][0]["steer"] >= np.float32(0.6)
    assert answer["ood"][0]["outside"] == ["speed"]
    for kind in kinds:
        wait_until_counted(server, "policy_interventions_total", model_version=LATEST, kind=kind)
    wait_until_counted(server, "policy_ood_observations_total", model_version=LATEST)


def listed(models: str) -> set[str]:
    """The versions that a server has, by its management API."""
    return {model["modelVersion"] for model in requests.get(f"{models}/{MODEL_NAME}/all", timeout=10).json()}


def test_archive_beyond_the_model_store_is_not_loaded(server: ServeProcess, small_store: Path) -> None:
    """TorchServe would fetch a good one from anywhere."""
    models = f"{server.ready['management']}/models"
    before = listed(models)
    archive = small_store / archive_name("v1.9.0")
    for url in (f"file://{archive}", f"file://localhost{archive}"):
        assert requests.post(models, params={"url": url}, timeout=30).status_code >= 400
    assert listed(models) == before
