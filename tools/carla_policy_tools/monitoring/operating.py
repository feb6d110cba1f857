"""The dashboard for operating a server: traffic, errors, time, queue, workers and versions."""

from __future__ import annotations

from carla_policy_tools.monitoring.panels import Dashboard, Panel, Query, Row

_V = 'model_version=~"$model_version"'
_REGISTRY = (
    "policy_version_declared",
    "policy_version_promoted",
    "policy_version_default",
)
_SLOW = ((0.025, "red"),)

_NOW = Row(
    "Now",
    [
        Panel(
            "Ready",
            "Whether each server serves all that is declared, and the promoted version answers.",
            "none",
            [Query("policy_server_ready", "{{instance}}")],
            kind="stat",
            width=4,
            height=4,
            names=[(0, "not ready", "red"), (1, "ready", "green")],
        ),
        Panel(
            "Alerts",
            "How many alerts of config/prometheus/rules/alerts.yml fire.",
            "none",
            [Query('count(ALERTS{alertname=~"Policy.*", alertstate="firing"}) or vector(0)', "firing")],
            kind="stat",
            width=4,
            height=4,
            thresholds=[(1, "red")],
        ),
        Panel(
            "Predictions",
            "Requests for a prediction to the chosen versions, a second, over five minutes.",
            "reqps",
            [Query(f"sum(model_version:policy_requests:rate5m{{{_V}}})", "all")],
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Failed",
            "Share of predictions that ended in an error of the service (5xx). PolicyErrors fires above 1 %.",
            "percentunit",
            [Query(f'max(model_version_outcome:policy_requests:ratio_rate5m{{{_V}, outcome="failed"}})', "worst")],
            kind="stat",
            width=4,
            height=4,
            thresholds=[(0.01, "red")],
        ),
        Panel(
            "P99 in the worker",
            "Of the slowest of the chosen versions, over five minutes.",
            "s",
            [Query(f"max(model_version:policy_request_seconds:p99_5m{{{_V}}})", "worst")],
            kind="stat",
            width=4,
            height=4,
            thresholds=_SLOW,
        ),
        Panel(
            "Safe action",
            "Share of observations that the card's safe action answered, of the worst of the chosen versions.",
            "percentunit",
            [Query(f'max(model_version_outcome:policy_rows:ratio_rate5m{{{_V}, outcome="fallback"}})', "worst")],
            kind="stat",
            width=4,
            height=4,
            thresholds=[(0.01, "red")],
        ),
        Panel(
            "Alerts over time",
            "Each alert while it is pending (for less than its `for`) or fires.",
            "none",
            [
                Query(
                    'max by (alertname, severity, model_version, control, instance) (ALERTS{alertname=~"Policy.*"}) '
                    "or vector(0)",
                    "{{severity}} {{alertname}} {{model_version}} {{control}} {{instance}}",
                )
            ],
            kind="state-timeline",
            width=24,
            height=7,
            names=[(0, "none", "green"), (1, "pending or firing", "red")],
        ),
    ],
)

_TRAFFIC = Row(
    "Traffic and errors",
    [
        Panel(
            "Predictions by version",
            "Requests for a prediction a second.",
            "reqps",
            [Query(f"model_version:policy_requests:rate5m{{{_V}}}")],
            low=0,
        ),
        Panel(
            "Predictions by outcome",
            "ok, fallback (the safe action answered at least one observation), refused (4xx), failed (5xx).",
            "reqps",
            [Query(f"sum by (outcome) (model_version_outcome:policy_requests:rate5m{{{_V}}})", "{{outcome}}")],
            low=0,
        ),
        Panel(
            "Observations by version",
            "A request has one or more of them.",
            "cps",
            [Query(f"model_version:policy_rows:rate5m{{{_V}}}")],
            low=0,
        ),
        Panel(
            "Errors by type",
            "Predictions that were refused or failed, a second; README.md lists the types.",
            "reqps",
            [
                Query(
                    f'sum by (type) (rate(policy_requests_total{{model_name="carla_policy", {_V}, '
                    'outcome=~"refused|failed"}[5m])) > 0',
                    "{{type}}",
                )
            ],
            low=0,
        ),
        Panel(
            "Share of errors",
            "Of all predictions. PolicyErrors fires above 1 % failed, PolicyRequestsRefused above 5 % refused.",
            "percentunit",
            [
                Query(
                    f'model_version_outcome:policy_requests:ratio_rate5m{{{_V}, outcome=~"refused|failed"}}',
                    "{{model_version}} {{outcome}}",
                )
            ],
            low=0,
            thresholds=[(0.01, "orange"), (0.05, "red")],
        ),
        Panel(
            "Answers of TorchServe",
            "All HTTP answers a second by class, health checks included; 5xx also where no worker saw the request.",
            "reqps",
            [
                Query("sum(rate(Requests2XX[5m]))", "2xx"),
                Query("sum(rate(Requests4XX[5m])) or vector(0)", "4xx"),
                Query("sum(rate(Requests5XX[5m])) or vector(0)", "5xx"),
            ],
            low=0,
        ),
    ],
)

_TIME = Row(
    "Time",
    [
        Panel(
            "Prediction in the worker",
            "From a request's bytes to its answer's, without TorchServe's part. PolicyLatencyHigh fires above 25 ms.",
            "s",
            [
                Query(
                    f"model_version:policy_request_seconds:{quantile}_5m{{{_V}}}", f"{{{{model_version}}}} {quantile}"
                )
                for quantile in ("p50", "p95", "p99")
            ],
            low=0,
            thresholds=_SLOW,
        ),
        Panel(
            "Slower than 25 ms",
            "Share of predictions over five minutes and an hour. PolicyLatencyBudgetBurns: both above 14.4 %.",
            "percentunit",
            [
                Query(f"model_version:policy_slow_requests:ratio_rate5m{{{_V}}}", "{{model_version}} 5 min"),
                Query(f"model_version:policy_slow_requests:ratio_rate1h{{{_V}}}", "{{model_version}} 1 h"),
            ],
            low=0,
            thresholds=[(0.144, "red")],
        ),
        Panel(
            "End to end, by TorchServe",
            "Mean from the arrival of a request to its answer, and in the queue. It counts health checks as well.",
            "s",
            [
                Query("instance:torchserve_latency_seconds:mean5m", "{{instance}} end to end"),
                Query("instance:torchserve_queue_seconds:mean5m", "{{instance}} queue"),
            ],
            low=0,
        ),
        Panel(
            "Stages, mean",
            "What the time of a batch goes into.",
            "s",
            [Query(f"avg by (stage) (model_version_stage:policy_stage_seconds:mean5m{{{_V}}})", "{{stage}}")],
            low=0,
        ),
        Panel(
            "Stages, P99",
            "Of the slowest of the chosen versions.",
            "s",
            [Query(f"max by (stage) (model_version_stage:policy_stage_seconds:p99_5m{{{_V}}})", "{{stage}}")],
            low=0,
        ),
        Panel(
            "Age on arrival, P99",
            "Time since the proxy in front took the request (`x-request-start`); nothing without such a proxy.",
            "s",
            [Query(f"model_version:policy_queue_seconds:p99_5m{{{_V}}}")],
            low=0,
        ),
    ],
)

_LOAD = Row(
    "Queue and workers",
    [
        Panel(
            "Requests in a batch",
            "Mean. 1 where each request is answered alone.",
            "none",
            [Query(f"model_version:policy_batch_requests:mean5m{{{_V}}}")],
            low=0,
        ),
        Panel(
            "Queue",
            "Requests that wait for a worker. PolicyQueueFilling fires above 64 over a minute; at 256 they get 503.",
            "none",
            [Query(f"policy_version_queued_requests{{{_V}}}", "{{model_version}} {{instance}}")],
            low=0,
            thresholds=[(64, "red")],
        ),
        Panel(
            "Workers",
            "Declared by the registry's profile, and ready.",
            "none",
            [Query(f"policy_version_workers{{{_V}}}", "{{model_version}} {{state}} {{instance}}")],
            low=0,
        ),
    ],
)

_VERSIONS = Row(
    "Versions",
    [
        Panel(
            "What the registry says",
            "Declared, promoted by the registry, and what the server answers with where no version is named.",
            "none",
            [Query(f"max by (instance, model_version) ({name}{{{_V}}})", name) for name in _REGISTRY],
            kind="table",
            width=8,
            height=7,
        ),
        Panel(
            "What the workers have loaded",
            "Commit of the training code, digest of the card, runtime and preprocessor of each version.",
            "none",
            [
                Query(
                    "group by (model_version, git_sha, card_hash, runtime, preprocessor) "
                    f'(policy_build_info{{model_name="carla_policy", {_V}}})',
                    "{{model_version}} {{git_sha}}",
                )
            ],
            kind="table",
            width=16,
            height=7,
        ),
        Panel(
            "Differences to the registry",
            "Between what is declared and what runs. PolicyRegistryDrift fires above 0 for two minutes.",
            "none",
            [Query("policy_registry_drift", "{{instance}}")],
            low=0,
            thresholds=[(1, "red")],
        ),
        Panel(
            "Changes of the registry",
            "Registered, promoted, rolled back, retired: since the registry was founded.",
            "none",
            [Query("sum by (verb) (policy_registry_changes_total)", "{{verb}}")],
            low=0,
        ),
        Panel(
            "Loading",
            "Time that loading and the self-test took, when a worker last started.",
            "s",
            [Query(f'max by (model_version) (policy_load_seconds{{model_name="carla_policy", {_V}}})')],
            low=0,
        ),
    ],
)

OPERATING = Dashboard(
    "carla-policy-operating",
    "carla-policy: operating",
    "Traffic, errors, time, queue, workers and versions of the server.",
    [_NOW, _TRAFFIC, _TIME, _LOAD, _VERSIONS],
)
