"""What holds from a worker's start on: the gauges of a version, and every counter that may grow, at 0.

A counter that appeared only with its first event would hide that event: what Prometheus has not seen at 0 has not
increased.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from carla_policy.actions import CONTROLS
from carla_policy.errors import error_types
from carla_policy.loading import LoadedPolicy
from carla_policy.metrics.buckets import (
    REQUESTS,
    SECONDS,
    STAGE_SECONDS,
    bin_counts,
    bin_labels,
    bucket_labels,
)
from carla_policy.metrics.recorder import SELECTIONS, TIMED_STAGES, Sample, choice_labels
from carla_policy.metrics.spread import spread_of
from carla_policy.safety import KINDS

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_TRAINING = {"mean": "mean_return", "std": "std_return"}


def constants(loaded: LoadedPolicy, load_s: float) -> Iterator[Sample]:
    """Gauges of `loaded`, which took `load_s` seconds."""
    policy, card = loaded.policy, loaded.policy.card
    yield Sample("policy_load_seconds", (), round(load_s, 3))
    yield Sample("policy_selftest_vectors", (), len(loaded.golden))
    for parity in loaded.parity:
        yield Sample("policy_selftest_bit_equal_ratio", (parity.stage,), parity.bit_equal_share)
        yield Sample("policy_selftest_max_difference", (parity.stage,), parity.max_abs_difference)
    card_hash = card.card_hash.removeprefix("sha256:")
    described = (card.git_sha, card_hash, card.model_file, policy.preprocessor.form)
    yield Sample("policy_build_info", tuple(_UNSAFE.sub("_", value) for value in described), 1)
    for statistic, key in _TRAINING.items():
        value = card.performance_metrics.get(key)
        if isinstance(value, int | float) and abs(value) < 1e15:
            yield Sample("policy_training_return", (statistic,), value)
    yield from _baseline(loaded)


def zeros(loaded: LoadedPolicy) -> Iterator[Sample]:
    """Every counter with a value that it may come to have, at 0."""
    outcomes = [("ok", "none"), ("fallback", "none")]
    outcomes += [
        ("failed" if status >= 500 else "refused", kind.type)
        for status, kinds in error_types().items()
        for kind in kinds
    ]
    series: dict[str, list[tuple[str, ...]]] = {
        "policy_requests_total": list(outcomes),
        "policy_rows_total": [("policy",), ("adjusted",), ("fallback",)],
        "policy_interventions_total": [(kind,) for kind in KINDS],
        "policy_ood_observations_total": [()],
        "policy_episodes_total": [()],
        "policy_episode_steps_total": [()],
        "policy_episode_return_total": [("positive",), ("negative",)],
        "policy_evaluated_rows_total": [()],
        "policy_observation_norm_total": [()],
    }
    for name, labels, bounds in (
        ("policy_request_seconds", [()], SECONDS),
        ("policy_queue_seconds", [()], SECONDS),
        ("policy_batch_requests", [()], REQUESTS),
        ("policy_stage_seconds", [(stage,) for stage in TIMED_STAGES], STAGE_SECONDS),
    ):
        series[f"{name}_bucket"] = [(*own, edge) for own in labels for edge in bucket_labels(bounds)]
        series[f"{name}_sum"] = series[f"{name}_count"] = list(labels)
    for control in CONTROLS:
        series.setdefault("policy_actions_total", []).extend(
            (selection, control, edge) for selection in SELECTIONS for edge in bin_labels(control)
        )
        series.setdefault("policy_action_magnitude_total", []).extend(
            (selection, control, sign) for selection in SELECTIONS for sign in ("positive", "negative")
        )
    series["policy_action_index_total"] = [(label,) for label in dict.fromkeys(choice_labels(loaded.policy))]
    spread = spread_of(loaded.policy)
    if spread:
        series[spread.metric] = list(spread.labels)
    return (Sample(name, labels, 0) for name, all_labels in series.items() for labels in all_labels)


def _baseline(loaded: LoadedPolicy) -> Iterator[Sample]:
    """Shares of the golden observations' deterministic controls by bin, each bin half an observation heavier.

    The weight keeps a bin that training never used from making every comparison infinite.
    """
    policy, golden = loaded.policy, loaded.golden
    controls = policy.act(golden.observations, state=golden.states).controls
    for column, control in enumerate(CONTROLS):
        counts = bin_counts(control, controls[:, column]) + 0.5
        for label, share in zip(bin_labels(control), counts / np.sum(counts), strict=True):
            yield Sample("policy_action_baseline_ratio", (control, label), round(float(share), 9))
