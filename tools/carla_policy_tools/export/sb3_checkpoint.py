"""stable-baselines3's files: which algorithm saved a model, the model itself, and a `VecNormalize`."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carla_policy_tools.export.errors import ExportError

ALGORITHMS = {
    "ppo": "stable_baselines3",
    "a2c": "stable_baselines3",
    "sac": "stable_baselines3",
    "td3": "stable_baselines3",
    "ddpg": "stable_baselines3",
    "dqn": "stable_baselines3",
    "recurrentppo": "sb3_contrib",
    "trpo": "sb3_contrib",
    "tqc": "sb3_contrib",
    "qrdqn": "sb3_contrib",
}
CLASS_NAMES = {"recurrentppo": "RecurrentPPO"}
OF_POLICY_CLASS = {
    "RecurrentActorCriticPolicy": "recurrentppo",
    "SACPolicy": "sac",
    "TD3Policy": "td3",
    "DQNPolicy": "dqn",
    "TQCPolicy": "tqc",
    "QRDQNPolicy": "qrdqn",
}


def read_data(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(json.loads(archive.read("data")))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise ExportError(f"{path}: no model of stable-baselines3; expected what model.save(...) writes") from None


def algorithm_of(path: Path, data: Mapping[str, Any], wanted: str | None) -> str:
    """What the checkpoint is, from the policy class and the settings that it names; nothing is unpickled."""
    if wanted is not None:
        name = wanted.lower().replace("-", "").replace("_", "")
        if name not in ALGORITHMS:
            raise ExportError(f"algorithm {wanted!r}: expected one of {', '.join(ALGORITHMS)}")
        return name
    pickled = base64.b64decode(data.get("policy_class", {}).get(":serialized:", ""))
    names = {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    words = {word for name in names for word in name.split()}
    for policy, name in OF_POLICY_CLASS.items():
        if policy in words:
            return name
    if {"ActorCriticPolicy", "ActorCriticCnnPolicy"} & words:
        return "trpo" if "cg_max_steps" in data else "ppo" if "n_epochs" in data else "a2c"
    raise ExportError(
        f"{path}: its policy class {sorted(words)} tells no algorithm; name it with --algorithm "
        f"({', '.join(ALGORITHMS)})"
    )


def load_model(path: Path, name: str) -> Any:
    try:
        module = __import__(ALGORITHMS[name])
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'carla-policy-serving[sb3]'") from None
    algorithm = getattr(module, CLASS_NAMES.get(name, name.upper()))
    # What only training needs and other versions cannot always unpickle; and no replay buffer of a million rows.
    replaced = {"learning_rate": 0.0, "lr_schedule": _zero, "clip_range": _zero, "buffer_size": 1}
    try:
        model = algorithm.load(path, device="cpu", custom_objects=replaced)
    except Exception as error:  # whatever a foreign or incompatible checkpoint makes the framework run into
        raise ExportError(f"{path}: does not load as {name.upper()}: {type(error).__name__}: {error}") from None
    model.policy.set_training_mode(False)
    return model


def _zero(_: float) -> float:
    return 0.0


def load_statistics(path: Path, shape: tuple[int, ...]) -> Any:
    from stable_baselines3.common.vec_env import VecNormalize

    try:
        statistics = pickle.loads(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever a broken pickle runs into
        raise ExportError(f"{path}: not what VecNormalize.save(...) writes: {type(error).__name__}: {error}") from None
    if not isinstance(statistics, VecNormalize):
        raise ExportError(f"{path}: expected a saved VecNormalize, got {type(statistics).__name__}")
    if statistics.norm_obs and getattr(statistics.obs_rms, "mean", np.zeros(0)).shape != shape:
        raise ExportError(f"{path}: statistics of other observations than the model's, which have the shape {shape}")
    statistics.training = False
    return statistics
