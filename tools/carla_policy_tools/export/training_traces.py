"""Was a stable-baselines3 checkpoint trained on normalised observations? It does not say, but it shows.

A checkpoint saved without its `VecNormalize` statistics acts on observations of another scale than it was trained on,
and nothing fails. So an export looks for what normalisation leaves behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from carla_policy_tools.export.errors import ExportError

TOLERATED_DRIFT = 0.2
"""Between statistics saved with the model and a little later, in standard deviations."""
CLEARLY = 0.3
"""By how much, in mean absolute log, unit scale must explain the optimiser's traces better than the raw scale."""


def find_trace_of_normalization(path: Path, model: Any) -> str | None:
    """What shows that `model`, saved at `path`, was trained with `VecNormalize`; `None` where nothing does.

    Algorithms without a replay buffer keep an observation from before normalisation if, and only if, there was one.
    """
    if not hasattr(model, "replay_buffer"):
        kept = getattr(model, "_last_original_obs", None) is not None
        return "the checkpoint keeps an observation from before normalisation" if kept else None
    last, space = model._last_obs, model.observation_space
    if last is not None and bool(((last < space.low - 1e-3) | (last > space.high + 1e-3)).any()):
        return "the last observation it keeps lies outside of its observation space"
    neighbours = [file.name for file in sorted(path.parent.glob("*.pkl")) if _belongs(path.stem, file.stem)]
    return f"{neighbours[0]} lies beside it" if neighbours else None


def missing_statistics(subject: str, trace: str) -> ExportError:
    """What to do about a trace of normalisation without its statistics."""
    return ExportError(
        f"{subject} looks as if it was trained with VecNormalize ({trace}); without its statistics the policy would "
        "see other observations than in training. Pass the file that VecNormalize.save(...) wrote with "
        "--vecnormalize; or --no-vecnormalize if there was none, or if only rewards were normalised"
    )


def check_statistics(model: Any, statistics: Any) -> None:
    """`ExportError` where `statistics` cannot be those that `model` was trained with.

    With a replay buffer a checkpoint keeps its last observation before and after normalisation; without one it keeps
    none from before, if there was no normalisation.
    """
    raw, seen = getattr(model, "_last_original_obs", None), model._last_obs
    if seen is None:
        return
    if not hasattr(model, "replay_buffer"):
        if raw is None:
            raise ExportError("--vecnormalize: this model was trained without VecNormalize; leave its statistics out")
        return
    if raw is None:
        return
    difference = float(np.abs(statistics.normalize_obs(np.array(raw)) - seen).max())
    if not difference <= TOLERATED_DRIFT:
        raise ExportError(
            "--vecnormalize: not the statistics that this model was trained with: its last observation becomes another "
            f"by them, by {difference:.3g}; pass those saved together with the model"
        )


def _belongs(model: str, statistics: str) -> bool:
    """`rl_model_vecnormalize_500_steps` beside `rl_model_500_steps`, or a lone `vecnormalize`, `vec_normalize`."""
    plain = statistics.lower().replace("_", "").replace("-", "")
    if "vecnormalize" not in plain:
        return False
    rest = plain.replace("vecnormalize", "")
    return rest in ("", model.lower().replace("_", "").replace("-", ""))


def normalised_inputs(model: Any, observations: NDArray[np.float32]) -> bool:
    """Whether the optimiser's memory says that the inputs had unit scale, while raw `observations` do not.

    For algorithms with a replay buffer, whose checkpoints say nothing else of it; of the others one observation from
    before normalisation is kept.

    Adam keeps the mean square of each weight's gradient. In the first layer that gradient is the neuron's error
    times the input, and for the bias the error alone; so the square root of their ratio, in the middle over the
    neurons, estimates the root mean square of each input in training.
    """
    estimate = _input_scale(model, observations.shape[1]) if hasattr(model, "replay_buffer") else None
    if estimate is None:
        return False
    raw = np.sqrt(np.mean(np.square(observations, dtype=np.float64), axis=0))
    known = (estimate > 1e-6) & (raw > 1e-6)
    if not known.any():
        return False
    unit_error = np.abs(np.log(estimate[known])).mean()
    raw_error = np.abs(np.log(estimate[known] / raw[known])).mean()
    return bool(unit_error + CLEARLY < raw_error)


def _input_scale(model: Any, columns: int) -> NDArray[np.float64] | None:
    owner = getattr(model.policy, "actor", None) or getattr(model.policy, "q_net", None) or model.policy
    optimizer = getattr(owner, "optimizer", None) or getattr(model.policy, "optimizer", None)
    if optimizer is None:
        return None
    squares = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state:
                squares[id(parameter)] = state["exp_avg_sq"].double().numpy()
    modules = [module for module in owner.modules() if not list(module.children())]
    weighted = [module for module in modules if list(module.parameters(recurse=False))]
    if not weighted or not isinstance(weighted[0], torch.nn.Linear):
        return None  # something else, such as a layer norm, sees the inputs first
    named = dict(owner.named_parameters())
    for name, parameter in named.items():
        bias = named.get(f"{name.removesuffix('weight')}bias")
        if parameter.ndim == 2 and parameter.shape[1] == columns and id(parameter) in squares and id(bias) in squares:
            with np.errstate(all="ignore"):
                ratio = squares[id(parameter)] / squares[id(bias)][:, None]
            estimate: NDArray[np.float64] = np.sqrt(np.nanmedian(ratio, axis=0))
            return estimate
    return None
