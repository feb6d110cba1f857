"""The dashboard for how versions drive: actions, drift, interventions, novelty, certainty, returns and self-tests."""

from __future__ import annotations

from carla_policy_tools.monitoring.panels import Dashboard, Panel, Query, Row

_V = 'model_version=~"$model_version"'
_OWN = f'model_name="carla_policy", {_V}'
_BIN = f'{_V}, control="$control"'

_SAFETY = Row(
    "Is it the policy that drives?",
    [
        Panel(
            "Observations by who answered",
            "The policy's own action, one that the envelope adjusted, or the card's safe action.",
            "percentunit",
            [Query(f"model_version_outcome:policy_rows:ratio_rate5m{{{_V}}}", "{{model_version}} {{outcome}}")],
            low=0,
        ),
        Panel(
            "Interventions by kind",
            "Share of observations whose action the safety envelope changed; fallback, ood, deadline and circuit_open "
            "put the safe action in its place.",
            "percentunit",
            [
                Query(
                    f"model_version_kind:policy_interventions:ratio_rate5m{{{_V}}} > 0",
                    "{{model_version}} {{kind}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Safe action",
            "Share of observations. PolicyFallback fires above 1 %.",
            "percentunit",
            [Query(f'model_version_outcome:policy_rows:ratio_rate5m{{{_V}, outcome="fallback"}}')],
            low=0,
            thresholds=[(0.01, "red")],
        ),
        Panel(
            "Out of distribution",
            "Share of observations unlike training's. PolicyOutOfDistribution fires above 5 %, critically above 30 %.",
            "percentunit",
            [Query(f"model_version:policy_ood_rows:ratio_rate5m{{{_V}}}")],
            low=0,
            thresholds=[(0.05, "orange"), (0.3, "red")],
        ),
        Panel(
            "Actions that could not be used",
            "Observations in five minutes whose action was not finite, or that the policy failed on.",
            "none",
            [
                Query(
                    f'sum by (model_version) (increase(policy_interventions_total{{{_OWN}, kind="fallback"}}[5m]))',
                )
            ],
            low=0,
        ),
        Panel(
            "Circuit breaker",
            "Of each worker; while it is open the network is not asked.",
            "none",
            [
                Query(
                    f"max by (model_version, worker) (policy_circuit_state{{{_OWN}}})",
                    "{{model_version}} worker {{worker}}",
                )
            ],
            kind="state-timeline",
            names=[(0, "closed", "green"), (1, "half open", "orange"), (2, "open", "red")],
        ),
    ],
)

_ACTIONS = Row(
    "How does it drive?",
    [
        *(
            Panel(
                f"Mean {control}",
                "Of the controls that left, over five minutes, deterministic and stochastic ones apart.",
                "none",
                [
                    Query(
                        f'model_version_selection_control:policy_action:mean5m{{{_V}, control="{control}"}}',
                        "{{model_version}} {{selection}}",
                    )
                ],
                low=-1.0 if control == "steer" else 0.0,
            )
            for control in ("throttle", "brake", "steer")
        ),
        Panel(
            "Drift of the actions",
            "Population stability index of deterministic controls over thirty minutes against training. "
            "PolicyActionDrift fires above 0.1, critically above 0.25, where it is also more than chance explains.",
            "none",
            [
                Query(
                    f"model_version_control:policy_action_psi:30m{{{_V}}}",
                    "{{model_version}} {{control}}",
                )
            ],
            low=0,
            thresholds=[(0.1, "orange"), (0.25, "red")],
        ),
        Panel(
            "What chance explains of it",
            "The index that chance alone exceeds once in a thousand times, for as many observations as there were.",
            "none",
            [
                Query(
                    f"model_version_control:policy_action_psi:critical30m{{{_V}}}",
                    "{{model_version}} {{control}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Choices from an action table",
            "By row of the table, a second; nothing for policies without one.",
            "cps",
            [
                Query(
                    f"sum by (model_version, index) (rate(policy_action_index_total{{{_OWN}}}[5m]))",
                    "{{model_version}} row {{index}}",
                )
            ],
            low=0,
        ),
        Panel(
            "$control: live",
            "Share of deterministic controls by the upper edge of their bin, over thirty minutes.",
            "percentunit",
            [
                Query(
                    f"avg by (bin) (model_version_control_bin:policy_actions:ratio30m{{{_BIN}}})",
                    "{{bin}}",
                )
            ],
            kind="bargauge",
            width=12,
            height=12,
            low=0,
        ),
        Panel(
            "$control: in training",
            "The same of the golden observations, which came from training.",
            "percentunit",
            [
                Query(
                    f"avg by (bin) (model_version_control_bin:policy_action_baseline:ratio{{{_BIN}}})",
                    "{{bin}}",
                )
            ],
            kind="bargauge",
            width=12,
            height=12,
            low=0,
        ),
    ],
)

_CERTAINTY = Row(
    "How sure is it?",
    [
        Panel(
            "Standard deviation of its actions",
            "Mean by dimension, before squashing; nothing for policies without a continuous distribution.",
            "none",
            [
                Query(
                    f"model_version_dimension:policy_action_stddev:mean5m{{{_V}}}",
                    "{{model_version}} {{dimension}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Entropy of its choices",
            "Mean, in nats; nothing for policies without an action table.",
            "none",
            [Query(f"model_version:policy_entropy_nats:mean5m{{{_V}}} > 0")],
            low=0,
        ),
        Panel(
            "Norm of the network's input",
            "Mean Euclidean norm after preprocessing: it grows when sensors leave what training saw.",
            "none",
            [Query(f"model_version:policy_observation_norm:mean5m{{{_V}}}")],
            low=0,
        ),
    ],
)

_RETURNS = Row(
    "What does it earn?",
    [
        Panel(
            "Mean return",
            "Of the episodes that clients reported in six hours, and of training as the card states it.",
            "none",
            [
                Query(f"model_version:policy_episode_return:mean6h{{{_V}}}", "{{model_version}} reported"),
                Query(f"model_version:policy_training_return:mean{{{_V}}}", "{{model_version}} training"),
            ],
        ),
        Panel(
            "Below training",
            "As a share of training's return. PolicyReturnDegraded fires above 10 %, critically above 20 %.",
            "percentunit",
            [Query(f"model_version:policy_episode_return:shortfall6h{{{_V}}}")],
            thresholds=[(0.1, "orange"), (0.2, "red")],
        ),
        Panel(
            "Below training, in standard errors",
            "Above 3.09 chance explains it once in a thousand times.",
            "none",
            [Query(f"model_version:policy_episode_return:shortfall_z6h{{{_V}}}")],
            thresholds=[(3.09, "orange")],
        ),
        Panel(
            "Reported episodes",
            "In six hours; below twenty no alert judges them.",
            "none",
            [Query(f"model_version:policy_episodes:increase6h{{{_V}}}")],
            low=0,
            width=12,
        ),
        Panel(
            "Steps in an episode",
            "Mean of the reported ones: those that end early have often crashed.",
            "none",
            [Query(f"model_version:policy_episode_steps:mean6h{{{_V}}}")],
            low=0,
            width=12,
        ),
    ],
)

_SELFTEST = Row(
    "Is it what was trained?",
    [
        Panel(
            "Largest difference in the self-test",
            "Between what a worker computed when it started and what training recorded, by stage.",
            "none",
            [
                Query(
                    f"max by (model_version, stage) (policy_selftest_max_difference{{{_OWN}}})",
                    "{{model_version}} {{stage}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Equal to the bit in the self-test",
            "Share of values.",
            "percentunit",
            [
                Query(
                    f"min by (model_version, stage) (policy_selftest_bit_equal_ratio{{{_OWN}}})",
                    "{{model_version}} {{stage}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Golden vectors",
            "How many were replayed.",
            "none",
            [Query(f"max by (model_version) (policy_selftest_vectors{{{_OWN}}})")],
            low=0,
        ),
    ],
)

DRIVING = Dashboard(
    "carla-policy-driving",
    "carla-policy: driving",
    "How versions drive: actions, drift, interventions, novelty, certainty, returns and self-tests.",
    [_SAFETY, _ACTIONS, _CERTAINTY, _RETURNS, _SELFTEST],
    controls=True,
)
