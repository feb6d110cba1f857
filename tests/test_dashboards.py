"""Grafana's dashboards as far as they can be judged without Grafana; `test_alerts_live.py` asks their queries."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from carla_policy_tools.monitoring.dashboards import DIRECTORY, panel_queries, rendered, substituted
from carla_policy_tools.monitoring.picture import VARIABLES, legend
from carla_policy_tools.paths import CONFIG
from tests.test_alert_rules import known_names, names_in, run

FILES = sorted(DIRECTORY.glob("*.json"))
NOT_IN_THE_MODELS = {"definition", "titleFormat", "textFormat"}
"""Fields that Grafana writes itself and that its SDK's models leave out."""

dashboards = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_files_are_what_the_panels_say() -> None:
    assert {path: path.read_text() for path in FILES} == rendered(), (
        "run python -m carla_policy_tools.monitoring.dashboards"
    )


def test_dashboards_and_their_panels_are_told_apart() -> None:
    boards = [read(file) for file in FILES]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards) == 2
    for board in boards:
        for key in ("id", "title"):
            values = [panel[key] for panel in board["panels"]]
            assert len(set(values)) == len(values)


@dashboards
def test_every_panel_says_what_it_shows_and_in_which_unit(file: Path) -> None:
    board = read(file)
    assert [variable["name"] for variable in board["templating"]["list"]][:2] == ["datasource", "model_version"]
    for panel, _ in panel_queries(board, {}):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]


@dashboards
def test_panels_do_not_overlap(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(file)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@dashboards
def test_queries_use_metrics_that_exist_and_variables_that_are_declared(file: Path) -> None:
    board = read(file)
    declared = {variable["name"] for variable in board["templating"]["list"]}
    assert declared == VARIABLES.keys() - ({"control"} - declared)
    for panel, expressions in panel_queries(board, VARIABLES):
        for expression in expressions:
            assert "$" not in expression
            assert names_in(expression) <= known_names(), panel["title"]


@dashboards
def test_prometheus_can_read_every_query(file: Path, tmp_path: Path) -> None:
    expressions = [text for _, texts in panel_queries(read(file), VARIABLES) for text in texts]
    rules = [{"record": f"panel:query:{number}", "expr": text} for number, text in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run("promtool", "check", "rules", tmp_path / "rules.yml")


@dashboards
def test_models_of_grafanas_own_sdk_keep_all_of_it(file: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    board = read(file)
    kept = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert list(lost(board, kept)) == []


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Where `kept` lacks something of `given`, or has something else there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = [f"{path}/{key}" for key in given.keys() - kept.keys() - NOT_IN_THE_MODELS]
        return missing + [
            found for key in given.keys() & kept.keys() for found in lost(given[key], kept[key], f"{path}/{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [found for number, (one, other) in pairs for found in lost(one, other, f"{path}/{number}")]
    return [] if given == kept else [path]


def test_provisioning_finds_the_dashboards_and_the_data_source() -> None:
    directory = CONFIG / "grafana" / "provisioning"
    (source,) = yaml.safe_load((directory / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((directory / "dashboards" / "carla-policy.yaml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")


def test_legend_and_variables_are_filled_in() -> None:
    assert legend("{{model_version}} {{ kind }}", {"model_version": "v1"}) == "v1"
    assert substituted('x{v=~"$model_version", c="$control"}', VARIABLES) == 'x{v=~".*", c="steer"}'


def test_thresholds_of_panels_are_those_of_alerts() -> None:
    """Where a description names an alert, its threshold is in that alert's expression."""
    alerts = (CONFIG / "prometheus" / "rules" / "alerts.yml").read_text()
    seen = 0
    for file in FILES:
        for panel, _ in panel_queries(read(file), {}):
            named = re.findall(r"Policy[A-Z]\w+", panel["description"])
            bounds = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]]
            if not named:
                continue
            texts = [part for part in alerts.split("- alert: ") if part.partition("\n")[0] in named]
            assert texts, named
            for bound in bounds:
                assert any(f"> {bound:g}" in text for text in texts) or (named, bound) == (["PolicyRegistryDrift"], 1)
                seen += 1
            assert all(low < high for low, high in pairwise(bounds))
    assert seen >= 10
