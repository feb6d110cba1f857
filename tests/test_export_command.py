"""From a trainer's files to a served version, by the commands that a user types, over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import SAC

from carla_policy_tools.client import request_body
from carla_policy_tools.paths import PROJECT
from tests.commands import run_here
from tests.scraping import wait_until_counted
from tests.servers import COMMAND, ServeProcess
from tests.test_export_sb3 import OFF_POLICY, ON_POLICY, expected_controls, fresh_observations, train

ENV = "tests.lane_env:LaneEnv"
SAC_VERSION, LSTM_VERSION = "v1.0.0", "v1.1.0"


def run(*arguments: object, status: int = 0) -> str:
    """What a command printed; it runs in the checkout, where `tests.lane_env` can be imported."""
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=PROJECT)
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr if status else process.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """SAC with VecNormalize and RecurrentPPO, exported and built on the command line; the directory is under `root`."""
    root = tmp_path_factory.mktemp("trained")
    lstm = {**ON_POLICY, "policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 8}}
    models: dict[str, Any] = {"root": root}
    for version, algorithm, options, env in (
        (SAC_VERSION, SAC, OFF_POLICY, {"bounds": 2.0}),
        (LSTM_VERSION, RecurrentPPO, lstm, {}),
    ):
        (root / version).mkdir()
        models[version] = train(root / version, algorithm, options, env, normalize=True)
        found = ["--vecnormalize", root / version / "statistics.pkl", "--env", ENV, "--env-arguments", json.dumps(env)]
        options_of_export = ["--version", version, "--artifacts", root / "artifacts", "--json"]
        printed = json.loads(run("export", "sb3", root / version / "model.zip", *found, *options_of_export))
        assert printed["closed_loop"]["same_trajectories"] is True
        assert printed["assumptions"][0].startswith("the action is [acceleration, steer]")
    run("build", root / "artifacts" / SAC_VERSION, root / "artifacts" / LSTM_VERSION, "--store", root / "store")
    return models


@pytest.fixture(scope="module")
def server(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    profile = tmp_path_factory.mktemp("profile") / "two.yaml"
    lines = ("workers: 2", "batch_size: 8", "max_batch_delay_ms: 1", "response_timeout_s: 10", "startup_timeout_s: 60")
    profile.write_text("\n".join(lines))
    with ServeProcess(trained["root"] / "store", "--promote", SAC_VERSION, "--profile", str(profile)) as process:
        yield process


def ask(server: ServeProcess, version: str | None, rows: Any, **options: Any) -> Any:
    response = server.post(version, {**request_body(rows), **options})
    assert response.status_code == 200, response.text
    return response.json()


def test_served_actions_are_those_of_predict(trained: dict[str, Any], server: ServeProcess) -> None:
    model, rows = trained[SAC_VERSION], fresh_observations()
    got = np.array([list(action.values()) for action in ask(server, None, rows)["actions"]])
    assert np.abs(got - expected_controls(model, model.get_vec_normalize_env(), rows, 2.0)).max() <= 1e-6


def test_seeded_answers_are_the_same_in_any_batch_worker_and_after_a_restart(
    trained: dict[str, Any], server: ServeProcess
) -> None:
    rows, options = fresh_observations(64), {"deterministic": False, "seed": 2**63 + 1, "log_prob": True}
    whole = ask(server, SAC_VERSION, rows, **options)
    assert all(np.isfinite(whole["log_probs"]))
    for count in (1, 2, 7, 33):
        for _ in range(4):
            part = ask(server, SAC_VERSION, rows[:count], **options)
            assert part["actions"] == whole["actions"][:count]
            assert part["log_probs"] == whole["log_probs"][:count]
    with ServeProcess(trained["root"] / "store", SAC_VERSION) as restarted:
        assert ask(restarted, SAC_VERSION, rows, **options)["actions"] == whole["actions"]


def test_recurrent_clients_keep_their_own_state_over_any_worker(trained: dict[str, Any], server: ServeProcess) -> None:
    model, episodes = trained[LSTM_VERSION], fresh_observations(60).reshape(3, 20, -1)
    expected = []
    for episode in model.get_vec_normalize_env().normalize_obs(episodes):
        state = None
        for step, row in enumerate(episode):
            action, state = model.predict(row, state=state, episode_start=np.array([step == 0]), deterministic=True)
            expected.append(float(action[1]))
    got: list[list[float]] = [[], [], []]
    options: list[dict[str, Any]] = [{"episode_start": True}] * 3
    for step in range(20):
        for client in range(3):
            answer = ask(server, LSTM_VERSION, episodes[client, step : step + 1], **options[client])
            got[client].append(answer["actions"][0]["steer"])
            options[client] = {"state": answer["state"]}
    assert np.abs(np.concatenate(got) - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("version", "options", "kind"),
    [
        (LSTM_VERSION, {}, "missing"),
        (LSTM_VERSION, {"state": "AAAA"}, "length"),
        (LSTM_VERSION, {"state": 7}, "string_type"),
        (LSTM_VERSION, {"episode_start": [True, False]}, "length"),
        (SAC_VERSION, {"state": "AAAA"}, "unexpected"),
    ],
)
def test_state_that_cannot_be_is_a_clear_error(
    server: ServeProcess, version: str, options: dict[str, Any], kind: str
) -> None:
    response = server.post(version, {**request_body(fresh_observations(1)), **options})
    assert (response.status_code, response.json()["type"]) == (422, "INVALID_STATE")
    assert response.json()["details"][0]["type"] == kind


def test_predict_and_the_printed_request_know_that_a_policy_is_recurrent(
    trained: dict[str, Any], server: ServeProcess
) -> None:
    url, store = ("--url", server.base), ("--store", trained["root"] / "store")
    assert run("predict", LSTM_VERSION, *url, *store).startswith("throttle")
    assert run("predict", SAC_VERSION, *url, *store).startswith("throttle")


def test_interventions_and_strange_observations_are_counted_by_version(server: ServeProcess) -> None:
    rows = fresh_observations(3)
    rows[1, 2] = 20.0
    assert [note["observation"] for note in ask(server, SAC_VERSION, rows)["ood"]] == [1]
    wait_until_counted(server, "policy_ood_observations_total", model_version=SAC_VERSION)


def test_mistyped_commands_say_what_to_do(trained: dict[str, Any], tmp_path: Path) -> None:
    root, model = trained["root"], trained["root"] / SAC_VERSION / "model.zip"
    artifacts = ("--artifacts", tmp_path / "artifacts")
    assert "trained with VecNormalize" in run_here("export", "sb3", model, "--env", ENV, *artifacts, status=1)
    given = ("export", "sb3", model, "--vecnormalize", root / SAC_VERSION / "statistics.pkl", *artifacts)
    assert "name an --env to drive in, or --observations" in run_here(*given, status=1)
    assert "no_such_module: cannot be imported" in run_here(*given, "--env", "no_such_module:Env", status=1)
    assert "NoSuchEnv" in run_here(*given, "--env", "NoSuchEnv-v0", status=1)
    assert "expected a JSON object" in run_here(*given, "--env", ENV, "--env-arguments", "bounds=2", status=1)
    assert "one of torchscript, onnx, pt2" in run_here(*given, "--env", ENV, "--runtime", "tensorrt", status=2)
    assert "expected a JSON object" in run_here(*given, "--env", ENV, "--env-arguments", "[1]", status=1)
    assert "TypeError" in run_here(*given, "--env", ENV, "--env-arguments", '{"wheels": 4}', status=1)
    (tmp_path / "table.yaml").write_text("- {throttle: 2.0, brake: 0.0, steer: 0.0}\n")
    assert "row 0.throttle: Input should be" in run_here(
        *given, "--env", ENV, "--table", tmp_path / "table.yaml", status=1
    )
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    assert "plain arrays" in run_here(*given, "--observations", tmp_path / "bad.npz", status=1)
    (tmp_path / "card.yaml").write_text("safty: {}\n")
    assert "card.yaml: safty: not a key of a model card" in run_here(
        *given, "--env", ENV, "--card", tmp_path / "card.yaml", status=1
    )
    assert not (tmp_path / "artifacts").exists() or not list((tmp_path / "artifacts").iterdir())
