"""Grafana's dashboards as data: what a panel shows, and the JSON that Grafana reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "table", "bargauge", "state-timeline"]

SCHEMA_VERSION = 41
COLUMNS, ROW_HEIGHT = 24, 1
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
VERSIONS = 'policy_selftest_vectors{model_name="carla_policy"}'
"""The series that tell which versions there are."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of each of its series, `{{label}}` standing for a label."""

    expression: str
    legend: str = "{{model_version}}"


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's; a value at or above a threshold takes its colour."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: Sequence[tuple[float, str]] = ()
    low: float | None = None
    names: Sequence[tuple[float, str, str]] = ()
    """Of values: the value, what it is called, and its colour."""


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    controls: bool = False
    """Whether one looks at one control of the vehicle at a time."""

    def to_json(self) -> Json:
        """As Grafana provisions it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["carla-policy"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": [
                {
                    "type": "dashboards",
                    "title": "carla-policy",
                    "tags": ["carla-policy"],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                    "icon": "external link",
                    "targetBlank": False,
                    "tooltip": "",
                    "url": "",
                }
            ],
            "templating": {"list": [_datasource(), _versions(), *([_controls()] if self.controls else [])]},
            "annotations": {"list": [_alerts()]},
            "panels": list(_placed(self.rows)),
        }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _versions() -> Json:
    definition = f"label_values({VERSIONS}, model_version)"
    return {
        "name": "model_version",
        "label": "Version",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"query": definition, "refId": "versions"},
        "refresh": 2,
        "sort": 7,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _controls() -> Json:
    names = ("steer", "throttle", "brake")
    return {
        "name": "control",
        "label": "Control",
        "type": "custom",
        "query": ",".join(names),
        "multi": False,
        "includeAll": False,
        "current": {"text": names[0], "value": names[0], "selected": True},
        "options": [{"text": name, "value": name, "selected": name == names[0]} for name in names],
    }


def _alerts() -> Json:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Policy.*", alertstate="firing", severity="critical"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model_version}} {{instance}}",
    }


def _placed(rows: Sequence[Row]) -> list[Json]:
    """Panels from left to right, each row under a title that folds it."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"h": ROW_HEIGHT, "w": COLUMNS, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += ROW_HEIGHT
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            position = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            placed.append({"id": len(placed) + 1, "gridPos": position, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def _panel(panel: Panel) -> Json:
    at_once = panel.kind in ("stat", "table", "bargauge")
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "format": "table" if panel.kind == "table" else "time_series",
                "instant": at_once,
                "range": not at_once,
            }
            for number, query in enumerate(panel.queries)
        ],
        "transformations": _TABLE if panel.kind == "table" else [],
    }


def _field(panel: Panel) -> Json:
    steps = [{"color": "green", "value": None}, *({"color": c, "value": v} for v, c in panel.thresholds)]
    field: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.low is not None:
        field["min"] = panel.low
    if panel.names:
        options = {f"{value:g}": {"text": text, "color": colour} for value, text, colour in panel.names}
        field["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        field["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
        if panel.thresholds:
            field["custom"]["thresholdsStyle"] = {"mode": "line"}
    return field


_OPTIONS: dict[Kind, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "state-timeline": {
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single", "sort": "none"},
    },
}
_TABLE = [
    {"id": "merge", "options": {}},
    {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "__name__": True, "job": True, "Hostname": True},
            "renameByName": {},
        },
    },
]
