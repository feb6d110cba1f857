"""Prometheus' rules as the Prometheus Operator takes them: `python -m carla_policy_tools.prometheus_rule`.

The rules stand once, in config/prometheus/rules; this prints them as one PrometheusRule, for `kubectl apply -f -`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from carla_policy.files import read_file
from carla_policy.strict_yaml import parse_yaml
from carla_policy_tools.paths import CONFIG

RULES = CONFIG / "prometheus" / "rules"
NAME = "carla-policy"
MAX_BYTES = 1 << 20


def prometheus_rule(directory: Path = RULES) -> dict[str, Any]:
    """The resource, with the groups of all files in `directory`; `ValueError` where there is none."""
    groups: list[Any] = []
    for path in sorted(directory.glob("*.yml")):
        content = parse_yaml(read_file(path, MAX_BYTES), str(path))
        if not isinstance(content, dict) or not isinstance(content.get("groups"), list):
            raise ValueError(f"{path}: expected a list of `groups`")
        groups += content["groups"]
    if not groups:
        raise ValueError(f"{directory}: there are no rules in it")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": NAME}},
        "spec": {"groups": groups},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=Path, default=RULES)
    print(yaml.safe_dump(prometheus_rule(parser.parse_args().rules), sort_keys=False), end="")


if __name__ == "__main__":
    main()
