"""Put an artifact together from a source, load it again, and keep it only if it does what the source does."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carla_policy.card import GOLDEN_FILE, OOD_FILE, PREPROCESSOR_FILE
from carla_policy.errors import ArtifactError
from carla_policy.golden import MIN_ROWS
from carla_policy.loading import LoadedPolicy
from carla_policy.selftest import StageParity
from carla_policy_tools.artifact import load_artifact, write_card
from carla_policy_tools.export.actions import describe_action
from carla_policy_tools.export.choices import Choices
from carla_policy_tools.export.closed_loop import ClosedLoop, compare
from carla_policy_tools.export.columns import WireColumns
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.novelty import RANGE_MARGIN, FittedNovelty, fit, hold_out
from carla_policy_tools.export.recording import choose_rows, record
from carla_policy_tools.export.rollouts import Rollouts, roll_out
from carla_policy_tools.export.serialization import file_of, write_network
from carla_policy_tools.export.source import Source

SUSPICIOUS_RATE = 0.05
"""Of false positives, beyond which the episodes were too few to learn from."""
ATOL = {"torchscript": 1e-6, "onnx": 1e-5, "pt2": 1e-5}
"""TorchScript runs the framework's own kernels; the others may order their sums differently."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What was exported, and how closely it does what the source does."""

    directory: Path
    version: str
    head: str
    action: Mapping[str, Any]
    assumptions: Sequence[str]
    vectors: int
    gate: str
    parity: Sequence[StageParity]
    closed_loop: ClosedLoop | None
    ood: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory)}


def export(
    source: Source,
    choices: Choices,
    *,
    env: Callable[[], Environment] | None,
    recorded: Rollouts | None,
    progress: Progress,
) -> Export:
    """Leave a complete artifact in `choices.artifacts / choices.version`, or nothing at all.

    Observations come from episodes in `env`, or are `recorded` ones. Raises `ExportError` or `ArtifactError` where
    the source cannot be served, and where golden outputs or the closed loop of the result differ from the source's.
    """
    torch.set_num_threads(1)
    target = choices.artifacts / choices.version
    if target.exists():
        raise ExportError(f"{target} exists, and a version never changes; choose another --version")
    assumptions: list[str] = []
    columns = WireColumns.of(source.columns, choices.speed_column, choices.steering_column)
    action = describe_action(source, choices.layout, choices.table, choices.overlay.get("action"), assumptions)
    if not choices.columns_known:
        sent = f"columns {choices.speed_column} and {choices.steering_column} of the observation"
        assumptions.append(
            f"speed and steering are {sent}; if they are not, say so with --speed-column and --steering-column"
        )
    rollouts = _observe(source, choices, env, recorded, progress, assumptions)
    source.check_observations(rollouts.observations)
    chosen = choose_rows(len(rollouts.observations))
    golden = record(
        source,
        rollouts.observations[chosen],
        None if rollouts.states is None else rollouts.states[chosen],
        lambda row: progress("recording", row, len(chosen)),
    )
    novelty = _fit_novelty(source, rollouts, assumptions) if choices.ood else None
    content = _card(source, choices, columns, action, rollouts, novelty)
    golden["observations"] = columns.arrange(golden["observations"])

    choices.artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=choices.artifacts) as scratch:
        directory = Path(scratch, choices.version)
        directory.mkdir()
        _write(directory, source, choices, golden, novelty)
        write_card(directory, content)
        loaded = _load(directory, choices)
        loop = compare(source, loaded.policy, columns, env) if env is not None else None
        directory.rename(target)
    card = loaded.policy.card
    return Export(
        directory=target,
        version=choices.version,
        head=card.head.type,
        action=card.action.model_dump(mode="json", exclude_none=True),
        assumptions=assumptions,
        vectors=len(loaded.golden),
        gate=card.gate,
        parity=loaded.parity,
        closed_loop=loop,
        ood=card.ood.model_dump(mode="json") if card.ood else None,
    )


def _observe(
    source: Source,
    choices: Choices,
    env: Callable[[], Environment] | None,
    recorded: Rollouts | None,
    progress: Progress,
    assumptions: list[str],
) -> Rollouts:
    """Enough real observations, driven or recorded."""
    if env is not None:
        rollouts = roll_out(
            source,
            env,
            rows=choices.steps,
            episodes=choices.episodes,
            progress=lambda rows: progress("driving", rows, choices.steps),
        )
    elif recorded is not None:
        rollouts = recorded
    else:
        raise ExportError(
            "golden vectors need real observations: name an --env to drive in, or --observations of yours"
        )
    if len(rollouts.observations) < MIN_ROWS:
        raise ExportError(f"expected at least {MIN_ROWS} observations, got {len(rollouts.observations)}")
    if rollouts.rounding > 0.0:
        assumptions.append(
            f"a request carries float32, this environment observes float64: actions differ by up to "
            f"{rollouts.rounding:.3g} for that"
        )
    return rollouts


def _load(directory: Path, choices: Choices) -> LoadedPolicy:
    """The new artifact, once it has reproduced its golden vectors."""
    try:
        return load_artifact(directory)
    except ArtifactError as error:
        if choices.runtime in (None, "torchscript"):
            raise
        raise ArtifactError(
            f"{error}. {choices.runtime} rounds differently from the framework itself: --runtime torchscript does not, "
            "or accept the difference with parity.atol in a --card"
        ) from None


def _fit_novelty(source: Source, rollouts: Rollouts, assumptions: list[str]) -> FittedNovelty | None:
    held_out = hold_out(rollouts.episode)
    features = source.features(rollouts.observations)
    few = (~held_out).sum() < 4 * features.shape[1]
    if few or not features[~held_out].std(axis=0).any():
        reason = f"too few for {features.shape[1]} features" if few else "all the same"
        assumptions.append(f"no out-of-distribution check: the {len(features)} observations are {reason}")
        return None
    novelty = fit(rollouts.observations, features, held_out)
    if novelty.false_positive_rate > SUSPICIOUS_RATE:
        assumptions.append(
            f"the observations cover what there is to see, though {novelty.false_positive_rate:.0%} of those held out "
            "were unlike the rest; more --episodes tell"
        )
    return novelty


def _card(
    source: Source,
    choices: Choices,
    columns: WireColumns,
    action: Mapping[str, Any],
    rollouts: Rollouts,
    novelty: FittedNovelty | None,
) -> dict[str, Any]:
    overlay = dict(choices.overlay)
    lowest, highest = rollouts.observations.min(axis=0), rollouts.observations.max(axis=0)
    seen = novelty.seen if novelty else np.stack([lowest, highest], axis=1)
    low, high = np.minimum(source.low, lowest), np.maximum(source.high, highest)
    given = overlay.pop("observation", {}).get("fields", ())
    content: dict[str, Any] = {
        "model_name": "carla_policy",
        "version": choices.version,
        "description": source.description,
        "created": datetime.now(timezone.utc).replace(microsecond=0),
        "git_sha": _git_sha(),
        "framework_versions": dict(source.versions),
        "observation": {"fields": columns.fields(low, high, seen, given)},
        "preprocessor": {"input_dtype": source.input_dtype},
        "head": dict(source.head),
        "action": dict(action),
        "safety": {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}, "exclusive_pedals": True},
    }
    if columns.selection:
        content["preprocessor"]["columns"] = columns.selection
    if novelty:
        content["ood"] = {
            "action": "flag",
            "threshold": novelty.detector.threshold,
            "range_margin": RANGE_MARGIN,
            "false_positive_rate": round(novelty.false_positive_rate, 6),
            "held_out_rows": novelty.held_out_rows,
        }
    if source.state_size:
        content["recurrent"] = {"state_size": source.state_size}
    content |= {
        "parity": {"atol": ATOL[choices.runtime or "torchscript"]},
        "inference": {"tile": 1, "max_observations": 8192},
        "performance_metrics": {**source.metrics, **rollouts.metrics},
    }
    return _merged(content, {key: value for key, value in overlay.items() if key not in ("action", "version")})


def _merged(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with the keys of `overlay` in their place, section by section."""
    merged = dict(content)
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _git_sha() -> str:
    """The commit that the command runs in, zeros outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "0" * 40


def _write(
    directory: Path,
    source: Source,
    choices: Choices,
    golden: Mapping[str, Any],
    novelty: FittedNovelty | None,
) -> None:
    write_network(source.network, directory / file_of(source.network, choices.runtime), source.signature(golden))
    (directory / PREPROCESSOR_FILE).write_bytes(pickle.dumps(source.transformer))
    np.savez(directory / GOLDEN_FILE, **golden)
    if novelty:
        np.savez(directory / OOD_FILE, mean=novelty.detector.mean, whitening=novelty.detector.whitening)
