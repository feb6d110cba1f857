"""Networks that come alone: CleanRL's agents, any module, and files that exist already."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carla_policy.strict_yaml import parse_yaml
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.export.choices import Choices
from carla_policy_tools.export.cleanrl import load_cleanrl
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.exporting import export
from carla_policy_tools.export.modules import load_file, load_module
from carla_policy_tools.export.rollouts import load_observations
from carla_policy_tools.export.serialization import write_network
from carla_policy_tools.export.template import HEADS, card_template
from tests.lane_env import GRID, LaneEnv
from tests.synthetic import HEADS as HEAD_OUTPUTS
from tests.synthetic import TABLE, Network, RecurrentNetwork, observations, signature_of
from tests.test_export_sb3 import fresh_observations, served

AGENTS = """
import numpy as np, torch
from torch import nn

class Ppo(nn.Module):
    def __init__(self, envs):
        super().__init__()
        inputs = int(np.prod(envs.single_observation_space.shape))
        self.critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))
        layers = nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        self.actor_mean = nn.Sequential(*layers)
        self.actor_logstd = nn.Parameter(torch.full((1, 2), -0.5))

class Discrete(nn.Module):
    def __init__(self, envs):
        super().__init__()
        inputs = int(np.prod(envs.single_observation_space.shape))
        self.critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))
        self.actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, envs.single_action_space.n))

class Sac(nn.Module):
    def __init__(self, env):
        super().__init__()
        box = env.single_action_space
        self.fc1, self.fc2 = nn.Linear(int(np.prod(env.single_observation_space.shape)), 256), nn.Linear(256, 256)
        self.fc_mean, self.fc_logstd = nn.Linear(256, 2), nn.Linear(256, 2)
        self.register_buffer("action_scale", torch.tensor((box.high - box.low) / 2.0, dtype=torch.float32))
        self.register_buffer("action_bias", torch.tensor((box.high + box.low) / 2.0, dtype=torch.float32))

    def forward(self, x):
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return self.fc_mean(x), -5 + 3.5 * (torch.tanh(self.fc_logstd(x)) + 1)

class Dqn(nn.Module):
    def __init__(self, env):
        super().__init__()
        inputs = int(np.prod(env.single_observation_space.shape))
        choices = env.single_action_space.n
        layers = nn.Linear(inputs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, choices)
        self.network = nn.Sequential(*layers)

    def forward(self, x):
        return self.network(x)
"""
STEERS = [{"throttle": max(a, 0.0), "brake": max(-a, 0.0), "steer": s} for a, s in GRID]


def quiet(*_: object) -> None:
    return None


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my_agents.py"
    path.write_text(AGENTS)
    return path


def agent_of(script: Path, name: str, *, discrete: bool, bounds: float) -> Any:
    namespace: dict[str, Any] = {}
    exec(script.read_text(), namespace)
    env = LaneEnv(discrete=discrete, bounds=bounds)
    torch.manual_seed(4)
    return namespace[name](
        SimpleNamespace(single_observation_space=env.observation_space, single_action_space=env.action_space)
    )


@pytest.mark.parametrize("own_script", [True, False])
@pytest.mark.parametrize("name", ["Ppo", "Discrete", "Sac", "Dqn"])
def test_cleanrl_agent_acts_as_its_own_script(script: Path, tmp_path: Path, name: str, own_script: bool) -> None:
    discrete, bounds = name in ("Discrete", "Dqn"), 2.0
    agent = agent_of(script, name, discrete=discrete, bounds=bounds)
    weights, normalizer = tmp_path / "agent.cleanrl_model", tmp_path / "normalizer.npz"
    torch.save(agent.state_dict(), weights)
    mean, var = np.array([10.0, 0.0, 0.1, 0.0, 50.0]), np.array([9.0, 0.3, 1.0, 0.01, 400.0])
    np.savez(normalizer, mean=mean, var=var)

    def make() -> Environment:
        return Environment(LaneEnv(discrete=discrete, bounds=bounds), "--env LaneEnv")

    source = load_cleanrl(
        weights,
        agent=f"{script}:{name}" if own_script else None,
        normalizer=normalizer if name == "Ppo" else None,
        without_normalizer=False,
        env=make,
        card={},
    )
    choices = Choices("v1.0.0", tmp_path / "artifacts", table=STEERS if discrete else (), layout=())
    result = export(source, choices, env=make, recorded=None, progress=quiet)
    rows = fresh_observations()
    seen = torch.from_numpy(rows)
    with torch.no_grad():
        if name == "Ppo":
            clipped = np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10).astype(np.float32)
            actions = np.clip(agent.actor_mean(torch.from_numpy(clipped)).numpy(), -bounds, bounds) / bounds
        elif name == "Sac":
            mean_of_rows = torch.cat([agent(row[None])[0] for row in seen])
            actions = (torch.tanh(mean_of_rows) * agent.action_scale + agent.action_bias).numpy() / bounds
        else:
            scores = agent.actor(seen) if name == "Discrete" else agent(seen)
            actions = np.array([GRID[int(choice)] for choice in scores.argmax(1)])
    expected = np.stack([np.maximum(actions[:, 0], 0), np.maximum(-actions[:, 0], 0), actions[:, 1]], axis=1)
    got = np.array([list(a.values()) for a in served(load_artifact(result.directory), rows)["actions"]])
    assert np.abs(got - expected).max() <= 1e-6


def test_cleanrl_refusals_say_what_to_do(script: Path, tmp_path: Path) -> None:
    agent, weights = agent_of(script, "Ppo", discrete=False, bounds=1.0), tmp_path / "agent.pt"
    torch.save(agent.state_dict(), weights)
    given: dict[str, Any] = {"agent": None, "normalizer": None, "without_normalizer": False, "card": {}}
    given["env"] = lambda: Environment(LaneEnv(), "--env LaneEnv")
    with pytest.raises(
        ExportError, match=r"does not save the statistics; save them .*--normalizer, or --no-normalizer"
    ):
        load_cleanrl(weights, **given)
    given["without_normalizer"] = True
    with pytest.raises(ExportError, match=r"name the --env, or pass a --card with action\.low and action\.high"):
        load_cleanrl(weights, **{**given, "env": None})
    with pytest.raises(ExportError, match=r"my_agents\.py has no function or class Missing"):
        load_cleanrl(weights, **{**given, "agent": f"{script}:Missing"})
    with pytest.raises(ExportError, match=r"does not fit the network: .*fc1\.weight"):
        load_cleanrl(weights, **{**given, "agent": f"{script}:Sac"})
    torch.save({"something.else": torch.zeros(2)}, weights)
    with pytest.raises(ExportError, match=r"not the state_dict of one of CleanRL's agents .* it has something\.else"):
        load_cleanrl(weights, **given)
    torch.save(torch.nn.Linear(2, 2), weights)
    with pytest.raises(ExportError, match=r"not a state_dict as torch\.save"):
        load_cleanrl(weights, **given)


def filled_card(head: str, state_size: int = 0) -> dict[str, Any]:
    """The card that `init` writes, parsed as it is: values to replace are valid ones."""
    text = card_template(sensors=5, head=head, layout=("acceleration", "steer"), state_size=state_size)
    card: dict[str, Any] = parse_yaml(text.encode(), "card.yaml")
    return card


def recorded_observations(path: Path, rows: int = 600) -> Path:
    values = np.abs(observations(rows, 5))
    values[:, 1] /= 2
    np.savez(path, observations=values.astype(np.float64))
    return path


def width_of(head: str) -> int:
    return len(TABLE) if head in ("categorical", "epsilon_greedy") else 2


def network_of(head: str, recurrent: bool = False) -> torch.nn.Module:
    torch.manual_seed(2)
    return (RecurrentNetwork if recurrent else Network)(7, width_of(head), HEAD_OUTPUTS[head]).eval()


@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".pt2"])
def test_file_with_the_card_that_init_writes_becomes_an_artifact(
    tmp_path: Path, suffix: str, head: str, recurrent: bool
) -> None:
    size = 32 if recurrent else 0
    file = tmp_path / f"mine{suffix}"
    write_network(network_of(head, recurrent), file, signature_of(7, width_of(head), head, recurrent))
    source = load_file(file, card=filled_card(head, size), preprocessor=None)
    recorded = load_observations(recorded_observations(tmp_path / "rows.npz"), source)
    choices = Choices("v1.0.0", tmp_path / "artifacts", overlay=filled_card(head, size))
    result = export(source, choices, env=None, recorded=recorded, progress=quiet)
    loaded = load_artifact(result.directory)
    assert loaded.policy.card.model_file == f"model{suffix}"
    assert loaded.policy.card.head.type == head
    options = {"episode_start": True} if recurrent else {}
    assert len(served(loaded, loaded.golden.observations[:5], **options)["actions"]) == 5


def test_module_of_ones_own_with_weights_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "team_nets.py").write_text(
        "from torch import nn\n\n\ndef make(hidden):\n    return nn.Sequential(nn.Linear(7, hidden), nn.ReLU(), "
        "nn.Linear(hidden, 2), nn.Tanh())\n"
    )
    network = torch.nn.Sequential(torch.nn.Linear(7, 12), torch.nn.ReLU(), torch.nn.Linear(12, 2), torch.nn.Tanh())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    target, card = f"{tmp_path}/team_nets.py:make", filled_card("deterministic")
    source = load_module(
        target, weights=tmp_path / "weights.pth", arguments=json.dumps({"hidden": 12}), card=card, preprocessor=None
    )
    recorded = load_observations(recorded_observations(tmp_path / "rows.npz"), source)
    choices = Choices("v1.0.0", tmp_path / "artifacts", overlay=card)
    loaded = load_artifact(export(source, choices, env=None, recorded=recorded, progress=quiet).directory)
    rows = recorded.observations[:50]
    with torch.no_grad():
        expected = network(torch.from_numpy(rows)).numpy()
    got = np.array([list(action.values()) for action in served(loaded, rows)["actions"]])
    assert np.abs(got[:, 0] - got[:, 1] - expected[:, 0]).max() <= 1e-6
    assert np.abs(got[:, 2] - expected[:, 1]).max() <= 1e-6
    with pytest.raises(ExportError, match=r"weights\.pth: does not fit the network: .*size mismatch"):
        load_module(target, weights=tmp_path / "weights.pth", arguments='{"hidden": 5}', card=card, preprocessor=None)
    with pytest.raises(ExportError, match=r"cannot be made with \{\}: TypeError"):
        load_module(target, weights=None, arguments="{}", card=card, preprocessor=None)


def test_network_alone_needs_a_card(tmp_path: Path) -> None:
    torch.jit.trace(network_of("gaussian"), torch.zeros(2, 7)).save(str(tmp_path / "mine.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(ExportError, match=r"does not say its head: pass a --card .*`carla-policy init`"):
        load_file(tmp_path / "mine.pt", card={}, preprocessor=None)
    card = filled_card("gaussian")
    with pytest.raises(ExportError, match=r"--card: action.*low must be below high"):
        load_file(
            tmp_path / "mine.pt", card={**card, "action": {**card["action"], "low": [1.0, 1.0]}}, preprocessor=None
        )
    source = load_file(tmp_path / "mine.pt", card={**card, "head": {"type": "deterministic"}}, preprocessor=None)
    recorded = load_observations(recorded_observations(tmp_path / "rows.npz"), source)
    with pytest.raises(ExportError, match=r"yields 2 outputs; a deterministic head needs \(action\)"):
        export(source, Choices("v1.0.0", tmp_path), env=None, recorded=recorded, progress=quiet)
    whole = load_file(tmp_path / "mine.pt", card=card, preprocessor=None)
    converted = Choices("v1.0.0", tmp_path / "a", runtime="onnx", overlay=card)
    with pytest.raises(ExportError, match=r"--runtime onnx: .* is torchscript already"):
        export(whole, converted, env=None, recorded=recorded, progress=quiet)
    torch.save(network_of("gaussian").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ExportError, match=r"a state_dict\) go in by `carla-policy export torch`"):
        load_file(tmp_path / "weights.pt", card=card, preprocessor=None)
