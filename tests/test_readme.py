"""The README is run: its commands, its request, its tables."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import requests

from carla_policy import errors
from carla_policy_tools.cli import VERBS
from carla_policy_tools.paths import ARTIFACTS, CONFIG, PROJECT, archive_name
from tests.commands import run_here
from tests.servers import COMMAND, ServeProcess

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_request_of_the_readme_gets_the_answer_of_the_readme(server: ServeProcess) -> None:
    (command,) = [text for text in blocks("sh") if text.startswith("curl")]
    words = shlex.split(command.replace("localhost:8080", server.base.removeprefix("http://")))
    answer = json.loads(subprocess.run([*words, "-s"], capture_output=True, text=True, timeout=60, check=True).stdout)
    (shown,) = [json.loads(text) for text in blocks("json")]
    assert answer.keys() == shown.keys()
    assert answer["version"] == shown["version"]
    assert [action.keys() for action in answer["actions"]] == [action.keys() for action in shown["actions"]]
    for name, value in shown["actions"][0].items():
        assert answer["actions"][0][name] == pytest.approx(value, abs=1e-5)


def test_predict_of_the_readme_runs(server: ServeProcess, store: Path) -> None:
    assert ".venv/bin/carla-policy predict\n" in blocks("sh")
    command = [*COMMAND, "predict", "--url", server.base, "--store", str(store)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.startswith("throttle")


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z-]+)", README))
    assert {"serve", "test", "check"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=PROJECT, capture_output=True, timeout=60, check=True)


def test_ci_calls_the_readme_s_commands() -> None:
    lines = (PROJECT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test"]


def test_commands_of_the_readme_exist() -> None:
    verbs = set(re.findall(r"`carla-policy (\w+)", README))
    assert verbs == {verb.__name__ for verb in VERBS} | {"export", "config", "mlflow", "env"}
    assert all(run_here(group, "--help") for group in verbs - {verb.__name__ for verb in VERBS})


def test_error_table_is_the_code_s() -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]*) \|", README, flags=re.MULTILINE)
    documented = {(int(status), kind) for status, kinds in rows for kind in re.findall(r"`(\w+)`", kinds)}
    leaves = [
        error
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.RequestError) and hasattr(error, "type")
    ]
    assert documented == {(error.status, error.type) for error in leaves}


def test_resources_of_the_readme_answer(server: ServeProcess) -> None:
    resources = re.findall(r"^\| `…/carla_policy/<version>/(\w+)` \|", README, flags=re.MULTILINE)
    assert len(resources) == 3
    for resource in resources:
        assert server.get("v0.3.0", resource).status_code == 200


def test_links_and_paths_of_the_documents_exist() -> None:
    documents = [PROJECT / "README.md", PROJECT / "examples" / "README.md", CONFIG / "logs-and-traces.md"]
    for part in ("client", "environment", "tools"):
        documents += (PROJECT / part).rglob("*.md")
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert target.startswith("https://") or (document.parent / target).exists(), target
    assert all((CONFIG / "profiles" / f"{name}.yaml").exists() for name in ("realtime", "throughput"))


def test_evaluation_of_the_examples_is_the_cards_own() -> None:
    """The figures that the examples' README shows stand in the cards too, which the policies are built with."""
    from carla_policy.card import load_card

    text = (PROJECT / "examples" / "README.md").read_text()
    for version in ("v0.1.0", "v0.2.0"):
        metrics = load_card(ARTIFACTS / version / "model_card.yaml").performance_metrics
        (row,) = re.findall(rf"^\| {version} \|(.*)\|$", text, flags=re.MULTILINE)
        shown = [cell.strip() for cell in row.split("|")]
        assert shown == [str(value) for key, value in metrics.items() if key != "training_steps"]


def test_management_lists_what_the_store_holds(server: ServeProcess, store: Path) -> None:
    listed = requests.get(f"{server.ready['management']}/models/carla_policy/all", timeout=10).json()
    assert {version["modelUrl"] for version in listed} == {archive_name(path.name) for path in ARTIFACTS.glob("v*")}
    assert {path.name for path in store.glob("*.mar")} == {version["modelUrl"] for version in listed}
