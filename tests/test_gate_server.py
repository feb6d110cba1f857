"""The gate against a real server: who passes, who does not, and what is left of it afterwards."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.gating import running
from carla_policy_tools.gating.gate import Plan
from carla_policy_tools.gating.result import Gate
from carla_policy_tools.lifecycle.intents import under_way
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import PROJECT
from tests.commands import run_here
from tests.lane_keepers import ENV, make_keeper
from tests.scraping import scrape, total, wait_until_counted
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import observations

GOOD, BETTER, WORSE = "v1.0.0", "v1.1.0", "v1.2.0"
DRIVE = ("--env", ENV, "--episodes", 6, "--seed", 10)
PATIENCE_S = 90


class Gated:
    """A server of three keepers, the good one promoted, and their artifacts. The better one is recurrent."""

    def __init__(self, server: ServeProcess, root: Path) -> None:
        self.server, self.artifacts = server, root / "artifacts"
        self.where = ("--store", root / "store", "--registry", server.registry)
        self.file = RegistryFile.of(root / "store", server.registry)

    def models(self) -> set[str]:
        listed = requests.get(f"{self.server.ready['management']}/models", timeout=10).json()["models"]
        return {model["modelName"] for model in listed}

    def counted(self, version: str) -> float:
        """Predictions in the metrics of a version, once one more is."""
        before = total(scrape(self.server), "policy_requests_total", model_version=version)
        assert self.server.post(version, request_body(observations(1, 3))).ok
        page = wait_until_counted(self.server, "policy_requests_total", before + 1, model_version=version)
        return total(page, "policy_requests_total", model_version=version)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    root = tmp_path_factory.mktemp("gated")
    for version, gain in ((GOOD, 0.6), (BETTER, 1.0), (WORSE, 0.2)):
        build(make_keeper(root / "artifacts", version, gain, recurrent=version == BETTER), root / "store")
    with ServeProcess(root / "store", "--promote", GOOD, "--workers", "1") as server:
        yield Gated(server, root)


@pytest.fixture
def gated(serving: Gated) -> Gated:
    if serving.file.read().promoted != GOOD:
        run_here("promote", GOOD, *serving.where)
    return serving


def test_version_that_drives_worse_is_not_promoted_and_nothing_is_changed(gated: Gated) -> None:
    before, counted = gated.file.path.read_bytes(), gated.counted(WORSE)
    reason = run_here("promote", WORSE, "--gate", *DRIVE, *gated.where, status=1)
    assert f"{WORSE} is not promoted, since it has not passed: return of {WORSE} against {GOOD}: worse: " in reason
    assert gated.file.path.read_bytes() == before
    assert gated.server.post(None, request_body(observations(1, 3))).json()["version"] == GOOD
    assert gated.models() == {"carla_policy"}
    assert gated.counted(WORSE) <= counted + 2  # the gate asked 360 times, of a copy
    assert under_way(gated.file) == []


def test_version_that_passes_is_promoted_and_the_history_keeps_why(gated: Gated, tmp_path: Path) -> None:
    found = gated.artifacts / BETTER
    checkpoint = ("--checkpoint", found / "model.pt", "--from", "torchscript", "--out", tmp_path)
    words = ("--", "--preprocessor", found / "preprocessor.pkl")
    run_here("promote", BETTER, "--gate", *DRIVE, *checkpoint, "--reason", "keeps the lane", *gated.where, *words)
    registry = gated.file.read()
    event = registry.history[-1]
    assert (registry.promoted, event.verb, event.reason, event.previous) == (BETTER, "promote", "keeps the lane", GOOD)
    assert event.gate is not None
    assert event.gate.in_process == "the framework's own predict, network of model.pt"
    assert (event.gate.against, event.gate.episodes, event.gate.steps, event.gate.failures) == (GOOD, 6, 360, 0)
    assert event.gate.bound is not None
    assert 0 < event.gate.bound < (event.gate.difference or 0.0)
    written = json.loads((tmp_path / "gate.json").read_text())
    assert (written["passed"], written["reasons"], written["wire"]) == (True, [], "json")
    assert [episode["seed"] for episode in written["episodes"]] == list(range(10, 16))
    assert gated.models() == {"carla_policy"}


def test_promoted_version_is_compared_with_itself_alone(gated: Gated) -> None:
    alone = ("--env", ENV, "--episodes", 2, "--max-steps", 20, "--wire", "npy")
    printed = json.loads(run_here("gate", GOOD, *alone, "--json", *gated.where))
    assert printed["passed"] is True
    assert printed["parity"] == {"same": True, "repeatable": True, "episodes": 2, "steps": 40, "difference": None}
    assert (printed["against"], printed["returns"], printed["failures"]) == (None, None, None)
    assert (printed["in_process"], printed["wire"]) == ("the archive's own policy", "npy")


def test_version_that_the_shipped_environment_does_not_fit_is_told_to_name_its_own(gated: Gated) -> None:
    reason = run_here("gate", GOOD, *gated.where, status=1)
    assert f"{GOOD} wants 5 numbers" in reason
    assert f"name the --env of {GOOD}" in reason


def test_checkpoint_that_is_not_the_version_s_is_shown_where_it_differs(gated: Gated) -> None:
    before, found = gated.file.path.read_bytes(), gated.artifacts / WORSE
    checkpoint = ("--checkpoint", found / "model.pt", "--from", "torchscript", "--live")
    words = ("--", "--preprocessor", found / "preprocessor.pkl")
    reason = run_here("gate", GOOD, *DRIVE, *checkpoint, *gated.where, *words, status=1)
    told = f"not passed: {GOOD} does not drive through the server as in process: episode 0 (seed 10), step 0: steer "
    assert told in reason
    assert gated.file.path.read_bytes() == before


def test_promotion_is_refused_if_another_version_was_promoted_meanwhile(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drive(file: RegistryFile, version: str, _: str | None, plan: Plan, __: Any) -> Gate:
        registry = file.read()
        digests = {name: registry.versions[name].digest for name in (version, GOOD)}
        run_here("promote", WORSE, *gated.where)
        return Gate(
            version=version,
            other=GOOD,
            promoted=registry.promoted,
            digests=digests,
            environment=ENV,
            environment_arguments="{}",
            seed=plan.seed,
            wanted=0,
            max_steps=None,
            wire="json",
            in_process="itself",
            asked="nobody",
            episodes=[],
            repeatable=True,
            difference=None,
            columns=(),
        )

    monkeypatch.setattr(running, "drive_gate", drive)
    reason = run_here("promote", BETTER, "--gate", *DRIVE, *gated.where, status=1)
    assert f"{WORSE} was promoted while the gate compared with {GOOD}; nothing has changed" in reason
    assert gated.file.read().promoted == WORSE


def test_copies_of_a_killed_gate_are_removed_by_the_server(gated: Gated) -> None:
    long = [*COMMAND, "gate", BETTER, "--env", ENV, "--episodes", "100000", *map(str, gated.where)]
    with subprocess.Popen(long, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _until(lambda: len(gated.models()) == 2, process)
            run_here("rollback", "--to", BETTER, *gated.where)  # a gate stands in nobody's way
        finally:
            process.kill()
    _until(lambda: gated.models() == {"carla_policy"} and not under_way(gated.file))
    assert [event.verb for event in gated.file.read().history][-1] == "rollback"


def _until(holds: Any, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
