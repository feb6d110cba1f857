"""Every metric of a worker, by name: its type, its labels, and what it says.

Each has the labels `model_name` and `model_version` before its own, and TorchServe appends `Hostname`. The values of
all labels come from short fixed lists or from the card, never from a request. `config/metrics.yaml` tells TorchServe
the same, which a test holds against this list.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

COMMON_LABELS = ("model_name", "model_version")


class Metric(NamedTuple):
    """A counter or gauge; `labels` without the common ones."""

    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    says: str


def _histogram(name: str, labels: tuple[str, ...], says: str) -> dict[str, Metric]:
    return {
        f"{name}_bucket": Metric("counter", (*labels, "le"), f"{says}, cumulated up to `le`"),
        f"{name}_sum": Metric("counter", labels, f"{says}: their sum"),
        f"{name}_count": Metric("counter", labels, f"{says}: how many"),
    }


METRICS: dict[str, Metric] = {
    "policy_requests_total": Metric(
        "counter",
        ("outcome", "type"),
        "Predictions: ok, fallback, refused (4xx) or failed (5xx), with the type of error",
    ),
    "policy_rows_total": Metric(
        "counter", ("outcome",), "Observations answered: by the policy, adjusted by the envelope, or by the fallback"
    ),
    "policy_interventions_total": Metric("counter", ("kind",), "Actions that the safety envelope changed, by kind"),
    "policy_ood_observations_total": Metric("counter", (), "Observations unlike those of training"),
    **_histogram("policy_request_seconds", (), "Time of a prediction in the worker, from its bytes to its answer's"),
    **_histogram("policy_stage_seconds", ("stage",), "Time of each stage of a batch"),
    **_histogram("policy_queue_seconds", (), "Age of predictions on arrival, where a proxy sends x-request-start"),
    **_histogram("policy_batch_requests", (), "Requests in a batch"),
    "policy_actions_total": Metric(
        "counter", ("selection", "control", "bin"), "Controls sent, by the upper edge of their bin"
    ),
    "policy_action_magnitude_total": Metric(
        "counter", ("selection", "control", "sign"), "Sum of the controls sent, positive and negative ones apart"
    ),
    "policy_action_index_total": Metric("counter", ("index",), "Choices from an action table, by row"),
    "policy_evaluated_rows_total": Metric("counter", (), "Observations whose features and parameters were finite"),
    "policy_observation_norm_total": Metric("counter", (), "Sum of the Euclidean norms of the network's inputs"),
    "policy_action_stddev_total": Metric(
        "counter", ("dimension",), "Sum of the distributions' standard deviations, before squashing"
    ),
    "policy_entropy_nats_total": Metric("counter", (), "Sum of the entropies of choices from an action table"),
    "policy_circuit_state": Metric("gauge", ("worker",), "Circuit breaker: 0 closed or off, 1 half open, 2 open"),
    "policy_episodes_total": Metric("counter", (), "Episodes that clients have reported"),
    "policy_episode_steps_total": Metric("counter", (), "Sum of their lengths in steps"),
    "policy_episode_return_total": Metric("counter", ("sign",), "Sum of their returns, by sign"),
    "policy_training_return": Metric("gauge", ("statistic",), "Return in training, as the card states it"),
    "policy_action_baseline_ratio": Metric(
        "gauge", ("control", "bin"), "Share of the golden observations' controls, by the bins of policy_actions_total"
    ),
    "policy_selftest_vectors": Metric("gauge", (), "Golden vectors that were replayed when the version was loaded"),
    "policy_selftest_bit_equal_ratio": Metric("gauge", ("stage",), "Share of their values with the bits of training"),
    "policy_selftest_max_difference": Metric("gauge", ("stage",), "Largest difference from training"),
    "policy_load_seconds": Metric("gauge", (), "Time that loading and the self-test took"),
    "policy_build_info": Metric(
        "gauge", ("git_sha", "card_hash", "runtime", "preprocessor"), "What is served; always 1"
    ),
}
