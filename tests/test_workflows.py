"""The workflows call what users call, may do little, and run nothing that a pull request's author wrote.

GitHub itself cannot be asked here: schema and audit are part of `make check`, and what the steps call is held against
the Makefile and the command line.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from benchmarks.bench.summary import summarize
from carla_policy_tools.changelog import section
from carla_policy_tools.cli import app
from carla_policy_tools.paths import PROJECT

FILES = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[str, Any]] = {file.stem: yaml.load(file.read_text(), yaml.BaseLoader) for file in FILES}
JOBS = {f"{name}.{job}": content for name, flow in WORKFLOWS.items() for job, content in flow["jobs"].items()}
STEPS = [step for job in JOBS.values() for step in job.get("steps", [])]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]
FORGIVEN = {"release.publish": "contents", "release.image": "packages"}
"""Jobs that write, and what."""


def test_pipeline_is_check_archives_benchmark_and_release() -> None:
    assert set(WORKFLOWS) == {"archives", "benchmark", "check", "release"}
    pythons = {"3.10", "3.11", "3.12"}
    assert set(JOBS["check.test"]["strategy"]["matrix"]["python"]) == pythons
    assert set(JOBS["archives.build"]["strategy"]["matrix"]["python"]) == pythons
    for needed in ("check", "archives", "packages", "image"):
        assert needed in JOBS["release.publish"]["needs"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash_and_hold_nothing_that_github_would_put_in(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)
    assert "${{" not in script, "pass it through env: an expression in a script is text of whoever wrote it"


def test_make_targets_of_the_workflows_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    called = {
        word
        for script in SCRIPTS
        for line in re.findall(r"\bmake ([^|&>\n]*)", script)
        for word in shlex.split(line)
        if "=" not in word and not word.startswith("-")
    }
    assert {"check", "test", "build", "rebuild", "bench", "dist"} <= called <= set(targets)


def test_commands_of_the_workflows_have_the_options_that_they_are_given() -> None:
    root: Any = get_command(app)
    calls = [
        shlex.split(line, comments=True)
        for script in SCRIPTS
        for line in re.findall(r"carla-policy ((?:[^\n\\|>]|\\\n)*)", script.replace("\\\n", " "))
    ]
    calls += [
        ["bench", *shlex.split(options)]
        for script in SCRIPTS
        for options in re.findall(r'BENCH_OPTIONS="(.*?)"', script)
    ]
    assert {call[0] for call in calls} == {"sign", "bench"}
    for verb, *words in calls:
        command = root.commands[verb]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_modules_that_workflows_run_exist() -> None:
    modules = {module for script in SCRIPTS for module in re.findall(r"python -m ([\w.]+)", script)}
    assert modules
    assert all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize("uses", sorted({step["uses"] for step in STEPS if "uses" in step}))
def test_actions_are_pinned_by_commit_and_say_which_release_that_is(uses: str) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", uses)
    lines = [line for file in FILES for line in file.read_text().splitlines() if uses in line]
    assert all(re.search(r" # v\d+\.\d+\.\d+$", line) for line in lines)
    assert len({line.rpartition("#")[2] for line in lines}) == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_is_permitted_but_what_a_job_asks_for(name: str) -> None:
    flow = WORKFLOWS[name]
    assert flow["permissions"] == {}
    assert flow["concurrency"]["group"]
    assert "pull_request_target" not in flow["on"]
    for job, content in flow["jobs"].items():
        writes = {scope for scope, access in content["permissions"].items() if access == "write"}
        assert writes - {"id-token", "attestations"} == {FORGIVEN.get(f"{name}.{job}")} - {None}
        assert "uses" in content or int(content["timeout-minutes"]) <= 90
        for step in content.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_what_is_released_is_built_without_a_cache() -> None:
    for name in ("archives", "release"):
        assert "cache" not in yaml.dump(WORKFLOWS[name]["jobs"])


def test_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    text = "# Changelog\n\n## 0.2.0\n\n- new\n- newer\n\n## 0.1.0 (unreleased)\n\n- old\n"
    assert section(text, "0.2.0") == "- new\n- newer\n"
    assert section(text, "0.1.0") == "- old\n"
    assert section((PROJECT / "CHANGELOG.md").read_text(), "0.1.0")
    for missing in ("0.3.0", "0x2.0"):
        with pytest.raises(ValueError, match="has no section"):
            section(text, missing)


def _change(percent: float, *, certain: bool) -> dict[str, Any]:
    value = {"value": 1.0, "low": 0.9, "high": 1.1, "confidence": 0.95, "rounds": 5}
    known = {"figure": "p50_ms@closed-1", "of": "ours-realtime", "against": "fastapi-2", "before": value, "now": value}
    return {**known, "percent": percent, "certain": certain}


def test_summary_of_a_benchmark_fails_only_where_a_figure_is_certainly_worse() -> None:
    goal = "a goal that was set for another machine"
    text, status = summarize(
        {"changes": [_change(50.0, certain=False), _change(9.0, certain=True)], "problems": [goal]}
    )
    assert status == 0
    assert goal in text
    text, status = summarize({"changes": [_change(11.0, certain=True)], "problems": []})
    assert status == 1
    assert "| p50_ms@closed-1 | ours-realtime | fastapi-2 | 1 | 1 | 11.0 % | worse |" in text
    assert summarize({"changes": [], "problems": []})[1] == 1


def test_versions_of_python_are_the_same_everywhere() -> None:
    setup = (PROJECT / "setup.cfg").read_text()
    assert "python_requires = >=3.10, <3.13" in setup
    assert 'target-version = "py310"' in (PROJECT / "pyproject.toml").read_text()
    assert "Python 3.10 to 3.12" in Path(PROJECT / "README.md").read_text()
