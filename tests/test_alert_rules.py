"""What Prometheus' and Alertmanager's own tools say of the rules; and every alert is tested and explained."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from carla_policy.metrics.catalog import METRICS
from carla_policy_tools.lifecycle import exporter
from carla_policy_tools.paths import CONFIG
from tests.monitoring import program

PROMETHEUS = CONFIG / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTMANAGER = CONFIG / "alertmanager" / "alertmanager.yml"
TIMEOUT_S = 300

Severe = tuple[str, str]
"""An alert's name and severity."""


def run(name: str, *arguments: str | Path) -> str:
    found = program(name)
    process = subprocess.run(
        [found.executable, *arguments],
        env=found.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert not process.returncode, process.stdout + process.stderr
    return process.stdout


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


ALERTS = [rule for rule in rules() if "alert" in rule]


def unit_tested(fires: bool) -> set[Severe]:
    """Alerts that a unit test of promtool expects to fire, or not to."""
    found: set[Severe] = set()
    for file in UNIT_TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for case in test.get("promql_expr_test", []):
                texts = [sample["labels"] for sample in case["exp_samples"]] if fires else [case["expr"]]
                if fires == bool(case["exp_samples"]):
                    for text in texts:
                        name, severity = (re.search(f'{key}="([^"]*)"', text) for key in ("alertname", "severity"))
                        if name and severity:
                            found.add((name[1], severity[1]))
    return found


def test_prometheus_takes_the_configuration_and_its_linter_has_nothing_to_say() -> None:
    output = run("promtool", "check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    assert f"{len(list(rules())) - len(ALERTS)} rules found" in output


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_unit_tests_say(file: Path) -> None:
    run("promtool", "test", "rules", file)


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    declared = {(alert["alert"], alert["labels"]["severity"]) for alert in ALERTS}
    assert unit_tested(fires=True) == declared
    assert unit_tested(fires=False) >= declared


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^### (.+)$", (CONFIG.parent / file).read_text(), re.M)
    assert alert["alert"] in headings
    assert anchor == alert["alert"].lower()
    assert alert["labels"]["severity"] in ("warning", "critical")


def test_every_explained_alert_exists() -> None:
    headings = re.findall(r"^### (Policy.+)$", (PROMETHEUS / "README.md").read_text(), re.M)
    assert sorted(headings) == sorted({alert["alert"] for alert in ALERTS})


def known_names() -> set[str]:
    """Metrics of workers and of `serve`, and what the rules record."""
    server = set(re.findall(r'"(policy_(?:server|registry|version)\w*)"', Path(exporter.__file__).read_text()))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return recorded | server | {"policy_version_info", "policy_registry_changes_total"} | METRICS.keys()


def names_in(expression: str) -> set[str]:
    """What an expression asks for, as far as it is of this project."""
    return set(re.findall(r"(?<![\w:])((?:\w+:)?policy_\w+(?::\w+)?)", re.sub(r'"[^"]*"', '""', expression)))


def test_rules_ask_for_no_metric_that_does_not_exist() -> None:
    """A misspelt name is no error to Prometheus: it is a rule that never fires."""
    for rule in rules():
        assert names_in(rule["expr"]) <= known_names(), rule


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=PolicyFallback", "severity=critical", "model_version=v1"], "page"),
        (["alertname=PolicyReturnDegraded", "severity=warning", "model_version=v1"], "ticket"),
    ],
)
def test_alertmanager_takes_the_configuration_and_wakes_somebody_for_critical_alerts_only(
    labels: list[str], receiver: str
) -> None:
    run("amtool", "check-config", ALERTMANAGER)
    run(
        "amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}", *labels
    )


@pytest.mark.parametrize("rows", [2_000, 36_000])
@pytest.mark.parametrize("evenness", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("bins", [10, 20])
def test_drift_that_is_chance_alone_exceeds_the_critical_value_once_in_a_thousand_times(
    bins: int, evenness: float, rows: int
) -> None:
    """The rule's test in numpy, 20,000 times: 512 vectors of training against a stream of the same distribution.

    Every twentieth observation is drawn anew and the others repeat it, the most dependence that the rule allows for.
    """
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(bins, evenness))
    golden, trials = 512, 20_000
    baseline = (rng.multinomial(golden, shares, trials) + 0.5) / (golden + 0.5 * bins)
    live = (rng.multinomial(rows // 20, shares, trials) * 20 + 10) / (rows + 10 * bins)
    index = ((live - baseline) * np.log(live / baseline)).sum(axis=1)
    assert (index > critical_value(bins - 1, rows, golden)).mean() < 0.002


def test_drift_that_matters_is_above_it() -> None:
    """A tenth more of one bin in each of two, with an hour of one vehicle."""
    base, live = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.25, 0.3, 0.25, 0.2])
    index = ((live - base) * np.log(live / base)).sum()
    assert index > 0.1
    assert index > critical_value(3, 36_000, 512)


def critical_value(freedom: int, rows: float, golden: float) -> float:
    """As `model_version_control:policy_action_psi:critical30m` has it."""
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(quantile * (20 / rows + 1 / golden))
