"""RLlib's checkpoints: where the module is, and which connectors stand between it and the environment."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import FunctionTransformer

from carla_policy.normalization import ObservationNormalizer
from carla_policy_tools.export.errors import ExportError

MODULES = Path("learner_group", "learner", "rl_module")
CONNECTORS = (Path("env_runner", "env_to_module_connector"), Path("env_runner", "module_to_env_connector"))
LEAVE_AS_IS = {
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "FlattenObservations",
    "GetActions",
    "ListifyDataForVectorEnv",
    "NumpyToTensor",
    "RemoveSingleTsTimeRankFromBatch",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
}
"""Connectors that change how numbers are packed, and not the numbers."""


def find_module(path: Path, *, default_connectors: bool) -> tuple[Path, Path | None]:
    """The directory of the one `RLModule` in `path`, and that of the `Algorithm` whose connectors go with it."""
    if not path.is_dir():
        raise ExportError(f"{path}: no directory; expected what Algorithm.save_to_path(...) wrote, or one of RLModule")
    root = next(
        (place for place in (path, *path.resolve().parents) if (place / "rllib_checkpoint.json").exists()), None
    )
    if root == path and not (path / MODULES).is_dir():
        old = " of RLlib's old API stack" if (path / "policies").is_dir() else ""
        raise ExportError(f"{path}: a checkpoint{old} without {MODULES}; expected one of the new API stack")
    modules = path / MODULES if root == path else path
    policies = sorted(found.parent for found in modules.glob("*/class_and_ctor_args.pkl"))
    if len(policies) > 1:
        raise ExportError(
            f"{path}: {len(policies)} policies ({', '.join(policy.name for policy in policies)}); an artifact holds one"
        )
    directory = policies[0] if policies else modules
    if not any(directory.glob("module_state.*")):
        raise ExportError(f"{path}: no RLModule; expected what Algorithm.save_to_path(...) or RLModule's wrote")
    if default_connectors:
        if root == path:
            raise ExportError(f"{path}: records its own connectors, and default ones would contradict them")
        return directory, None
    if root is None:
        raise ExportError(
            f"{path}: an RLModule does not record whether observations were filtered and actions unsquashed; name the "
            "checkpoint of its Algorithm instead, or --default-connectors if RLlib's own connectors were all there was"
        )
    missing = [str(part) for part in CONNECTORS if not (root / part).is_dir()]
    if missing:
        raise ExportError(f"{root}: does not contain {', '.join(missing)}; expected a checkpoint of the new API stack")
    return directory, root


def load(kind: Any, directory: Path) -> Any:
    try:
        return kind.from_checkpoint(directory.resolve())
    except Exception as error:  # whatever a foreign or incompatible checkpoint makes the framework run into
        raise ExportError(f"{directory}: does not load: {type(error).__name__}: {error}") from None


def recorded_pipelines(root: Path) -> tuple[Any, Any]:
    from ray.rllib.connectors.env_to_module import EnvToModulePipeline
    from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline

    env_to_module, module_to_env = (
        load(kind, root / part)
        for kind, part in zip((EnvToModulePipeline, ModuleToEnvPipeline), CONNECTORS, strict=True)
    )
    for connector in (*env_to_module.connectors, *module_to_env.connectors):
        name, own = type(connector).__name__, type(connector).__module__.startswith("ray.rllib.connectors.")
        if not own or name not in LEAVE_AS_IS | {"MeanStdFilter", "NormalizeAndClipActions"}:
            raise ExportError(
                f"{root}: was trained with the connector {name}, whose part in an action cannot be exported; expected "
                "RLlib's own for one agent, and MeanStdFilter"
            )
        if name == "MeanStdFilter":
            connector._update_stats = False
        if name == "NumpyToTensor":
            connector._device = None
    return env_to_module, module_to_env


def default_pipelines(module: Any) -> tuple[Any, Any]:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    spaces = {"__env_single__": (module.observation_space, module.action_space)}
    config = AlgorithmConfig()
    return config.build_env_to_module_connector(spaces=spaces), config.build_module_to_env_connector(spaces=spaces)


def action_treatment(path: Path, module_to_env: Any) -> tuple[bool, bool]:
    """Whether continuous actions are unsquashed (and clipped), and whether they are only clipped."""
    treatments = [c for c in module_to_env.connectors if type(c).__name__ == "NormalizeAndClipActions"]
    if len(treatments) > 1:
        raise ExportError(f"{path}: was trained with {len(treatments)} times NormalizeAndClipActions; expected one")
    if not treatments:
        return False, False
    return bool(treatments[0].normalize_actions), bool(treatments[0].clip_actions)


def steps_of(root: Path | None) -> int | None:
    """Environment steps of the training, where the checkpoint tells."""
    state = None if root is None else root / "env_runner" / "state.pkl"
    if state is None or not state.exists():
        return None
    return int(pickle.loads(state.read_bytes()).get("num_env_steps_sampled_lifetime", 0)) or None


def transformer_of(path: Path, env_to_module: Any) -> Any:
    """`MeanStdFilter` as RLlib computes it: `(observation - mean) / (deviation + 1e-6)`, clipped."""
    from ray.rllib.utils.numpy import SMALL_NUMBER

    filters = [c for c in env_to_module.connectors if type(c).__name__ == "MeanStdFilter"]
    if not filters:
        return FunctionTransformer()
    state = filters[0].get_state()
    if len(filters) > 1 or list(state) != [None]:
        raise ExportError(
            f"{path}: was trained with several observation filters; expected one MeanStdFilter of one agent"
        )
    found = filters[0]._filters[None]
    if found.running_stats.n < 2:
        raise ExportError(f"{path}: its MeanStdFilter has seen {found.running_stats.n} observations; it was not saved")
    mean, std = (np.asarray(part).reshape(-1) for part in (found.running_stats.mean, found.running_stats.std))
    return ObservationNormalizer(
        mean=mean.astype(np.float64) if found.demean else np.zeros(len(mean)),
        scale=(std + SMALL_NUMBER).astype(np.float64) if found.destd else np.ones(len(std)),
        clip=float(found.clip) if found.clip else None,
    )
