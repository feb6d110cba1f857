"""The gate's parts by themselves: its statistics, its comparison of trajectories, and who drives."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from carla_policy.answers import Outcome
from carla_policy.card import ModelCard
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import Pilot, PolicyPilot
from carla_policy_tools.driving.records import Answer, Episode
from carla_policy_tools.driving.simulation import Simulation, simulation_of
from carla_policy_tools.export import commands as export_commands
from carla_policy_tools.export.command import load_source
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.gating.asking import AskingPilot, check_wire
from carla_policy_tools.gating.errors import GateError
from carla_policy_tools.gating.gate import Course, Plan
from carla_policy_tools.gating.in_process import SourcePilot
from carla_policy_tools.gating.parity import Difference, first_difference, ulps
from carla_policy_tools.gating.statistics import Margin, compare_failures, compare_returns, unseen_share
from carla_policy_tools.lifecycle.events import GateResult
from carla_policy_tools.lifecycle.promoting import PassedGate
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from tests.commands import run_here
from tests.declared import registry_of
from tests.lane_env import LaneEnv
from tests.lane_keepers import ENV, answering, load_keeper

PLAN = Plan(episodes=3, seed=10, margin=Margin(0.0), environment=ENV)
assert export_commands  # its frameworks register themselves


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return load_keeper(tmp_path_factory.mktemp("keeper"))


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return load_keeper(tmp_path_factory.mktemp("remembering"), recurrent=True)


# --- returns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "margin", "verdict", "needed"),
    [
        ([0.0] * 5, 0.0, "not worse", None),
        ([0.0] * 4, 1.0, "undecided", 5),
        ([3.0], 0.0, "undecided", 5),
        ([-1.0] * 9, 2.0, "not worse", None),
        ([-3.0] * 9, 2.0, "worse", None),
        ([0.1] * 39 + [-0.2], 0.0, "not worse", None),
        ([5.0, -5.0] * 4, 1.0, "undecided", 177),
        ([5.0, -5.0] * 4, 1e6, "not worse", None),
        ([-1.0, -4.0, 0.0, -2.0, -1.5, 1.0], 1.0, "undecided", None),
        ([-50.0] + [0.0] * 19, 2.0, "undecided", None),
    ],
)
def test_returns_are_judged_by_their_paired_differences(
    differences: list[float], margin: float, verdict: str, needed: int | None
) -> None:
    others = np.linspace(-100, 300, len(differences))  # what all seeds differ by is no matter
    found = compare_returns(others + differences, others, margin)
    assert (found.verdict, found.needed) == (verdict, needed)
    assert found.difference == pytest.approx(np.mean(differences))


def test_without_skewness_the_bound_and_p_are_those_of_the_paired_t_test() -> None:
    others, differences = np.zeros(9), np.arange(-4.0, 5.0)
    found = compare_returns(differences, others, 2.5)
    expected = stats.ttest_rel(differences, others - 2.5, alternative="greater")
    assert found.p == pytest.approx(expected.pvalue)
    assert found.bound == pytest.approx(
        stats.ttest_1samp(differences, 0, alternative="greater").confidence_interval().low
    )


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_skewed_differences_never_have_a_higher_bound_than_the_t_test_gives(sign: float) -> None:
    differences = sign * np.random.default_rng(3).exponential(size=20)
    found = compare_returns(differences, np.zeros(20), 1.0)
    t_test = stats.ttest_1samp(differences, 0, alternative="greater").confidence_interval().low
    assert found.bound is not None
    assert found.bound < t_test - 0.02 if sign < 0 else found.bound == pytest.approx(t_test)


def test_version_that_loses_exactly_the_margin_passes_about_five_times_in_a_hundred() -> None:
    rng, zeros = np.random.default_rng(5), np.zeros(20)
    losses = -rng.exponential(size=(400, 20))
    passed = sum(compare_returns(row, zeros, 1.0).verdict == "not worse" for row in losses)
    by_t_test = sum(stats.ttest_1samp(losses, -1.0, axis=1, alternative="greater").pvalue <= 0.05)
    assert passed < 35 < by_t_test


@pytest.mark.parametrize(("returns", "others"), [([1.0, np.nan], [0.0, 0.0]), ([1.0], [1.0, 2.0]), ([], [])])
def test_returns_that_cannot_be_compared_are_refused(returns: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        compare_returns(returns, others, 0.0)


@pytest.mark.parametrize(("text", "expected"), [("2%", 3.0), ("0", 0.0), ("8.5", 8.5), (" 100 % ", 150.0)])
def test_margin_is_a_return_or_a_share_of_the_others_mean_size(text: str, expected: float) -> None:
    assert Margin.parse(text).of([-100.0, 200.0]) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "two", "-1", "nan", "inf%", "2%%", "1e999"])
def test_what_is_no_margin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a share such as 2%"):
        Margin.parse(text)


@pytest.mark.parametrize(
    ("failed", "others", "passed", "p"),
    [
        ("....", "....", True, 1.0),
        ("x...", ".x..", True, 0.75),
        ("x...", "....", False, 0.5),
        ("....", "xx..", True, 1.0),
        ("xxxxx.", "......", False, 1 / 32),
        ("xxxxxx.x", "xx.....x", False, 1 / 16),
    ],
)
def test_no_more_episodes_may_fail_than_of_the_other_version(failed: str, others: str, passed: bool, p: float) -> None:
    found = compare_failures([mark == "x" for mark in failed], [mark == "x" for mark in others])
    assert (found.passed, found.p) == (passed, pytest.approx(p))


def test_what_so_many_episodes_may_have_missed_follows_the_rule_of_three() -> None:
    assert unseen_share(60) == pytest.approx(3 / 60, rel=0.03)


# --- trajectories --------------------------------------------------------------------------------


class Tampered:
    """Drives as `pilot` does, but for one bit of the steer at one step of one episode."""

    def __init__(self, pilot: Pilot, episode: int, step: int) -> None:
        self._pilot, self._at = pilot, (episode, step)
        self._episode, self._step = -1, 0

    def begin(self) -> None:
        self._episode, self._step = self._episode + 1, 0
        self._pilot.begin()

    def act(self, row: Any) -> Answer:
        answer = self._pilot.act(row)
        if (self._episode, self._step) == self._at:
            controls = answer.controls.copy()
            controls[2:].view(np.int32)[0] ^= 1
            answer = replace(answer, controls=controls)
        self._step += 1
        return answer


def driven(loaded: LoadedPolicy, pilot: Pilot, make: Callable[[], Any] = LaneEnv, episodes: int = 3) -> list[Episode]:
    with Simulation(lambda: Environment(make(), "env"), loaded.policy.card) as simulation:
        return list(drive_episodes(simulation, pilot, range(10, 10 + episodes), Pace()))


def lane(card: ModelCard) -> Simulation:
    return simulation_of(card, ENV)


def course(loaded: LoadedPolicy, pilot: Pilot, asking: Pilot, plan: Plan = PLAN) -> tuple[Difference | None, list[Any]]:
    """What the gate finds between a pilot at home and one that is asked, and the episodes before."""
    found: list[Any] = []
    with ExitStack() as stack:
        run = Course(stack, lane, plan)
        version = loaded.policy.card.version
        difference = run.drive(version, pilot, {version: asking}, {version: loaded.policy}, found, lambda *_: None)
    return difference, found


def test_same_policy_leaves_the_same_trajectory(keeper: LoadedPolicy) -> None:
    difference, episodes = course(keeper, PolicyPilot(keeper.policy), PolicyPilot(keeper.policy))
    assert difference is None
    assert [(episode.seed, episode.steps, episode.ending) for episode in episodes] == [
        (10, 60, "completed"),
        (11, 60, "completed"),
        (12, 60, "completed"),
    ]
    assert len({episode.trajectory for episode in episodes}) == 3


def test_one_bit_in_one_step_is_found_where_it_is(keeper: LoadedPolicy) -> None:
    tampered = Tampered(PolicyPilot(keeper.policy), 1, 37)
    difference, episodes = course(keeper, PolicyPilot(keeper.policy), tampered)
    assert difference is not None
    assert (difference.kind, difference.episode, difference.seed, difference.step) == ("controls", 1, 11, 37)
    assert not difference.of_environment
    assert difference.ulps == {"throttle": 0, "brake": 0, "steer": 1}
    assert difference.row == difference.other_row
    assert str(difference).startswith("episode 1 (seed 11), step 37: steer ")
    assert [episode.seed for episode in episodes] == [10]


class Unseeded(LaneEnv):
    """Where the vehicle begins has nothing to do with the seed."""

    def reset(self, **keywords: Any) -> Any:
        super().reset(**keywords)
        self.offset += float(np.random.default_rng().uniform(0.01, 0.1))
        return self._observation(), {}


class Noisy(LaneEnv):
    """Rewards differ by what nobody seeded, from the twelfth step on."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, reward + (np.random.default_rng().random() if self.steps > 12 else 0.0), *rest)


class Forgetful(LaneEnv):
    """Starts where the last episode ended: the same seed is not the same episode."""

    def reset(self, **keywords: Any) -> Any:
        offset = getattr(self, "offset", 0.0)
        super().reset(**keywords)
        self.offset = offset
        return self._observation(), {}


class Fickle:
    """Steers by chance."""

    def begin(self) -> None: ...

    def act(self, _: Any) -> Answer:
        return Answer(np.array([0.0, 0.0, np.random.default_rng().uniform(-1, 1)], np.float32))


@pytest.mark.parametrize(
    ("make", "kind", "step"), [(Unseeded, "observation", 0), (Noisy, "reward", 12), (Forgetful, "observation", 0)]
)
def test_environment_that_does_not_follow_its_seed_is_found_in_process_alone(
    keeper: LoadedPolicy, make: Callable[[], Any], kind: str, step: int
) -> None:
    with ExitStack() as stack:
        run = Course(stack, lambda card: Simulation(lambda: Environment(make(), "env"), card), PLAN)
        found = run.repeat(PolicyPilot(keeper.policy), keeper.policy.card)
    assert found is not None
    assert (found.kind, found.step, found.of_environment) == (kind, step, True)


def test_policy_that_is_not_deterministic_is_not_blamed_on_the_environment(keeper: LoadedPolicy) -> None:
    with ExitStack() as stack:
        found = Course(stack, lane, PLAN).repeat(Fickle(), keeper.policy.card)
    assert found is not None
    assert (found.kind, found.step, found.of_environment) == ("controls", 0, False)


def test_drive_that_ends_earlier_or_otherwise_is_no_parity(keeper: LoadedPolicy) -> None:
    (episode,) = driven(keeper, PolicyPilot(keeper.policy), episodes=1)
    shorter = Episode(episode.number, episode.seed, episode.steps[:40], "")
    otherwise = Episode(episode.number, episode.seed, episode.steps, "collision")
    for other, step, detail in ((shorter, 39, "stopped after 40"), (otherwise, 59, "collision after 60")):
        found = first_difference(episode, other)
        assert found is not None
        assert (found.kind, found.step) == ("ending", step)
        assert detail in found.detail
    assert first_difference(episode, episode) is None


@pytest.mark.parametrize(
    ("one", "two", "apart"), [(1.0, 1.0, 0), (0.0, -0.0, 0), (1.0, 1.0000001, 1), (-1e-45, 1e-45, 2)]
)
def test_ulps_count_the_float32_between(one: float, two: float, apart: int) -> None:
    assert ulps(one, two) == ulps(two, one) == apart


# --- who drives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "wire"), [("keeper", "json"), ("keeper", "npy"), ("remembering", "json")])
def test_over_http_the_trajectory_has_the_same_bits(which: str, wire: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedPolicy = request.getfixturevalue(which)
    version = loaded.policy.card.version
    with answering(loaded) as url, AskingPilot(url, version, recurrent=which == "remembering", wire=wire) as asking:
        difference, episodes = course(loaded, PolicyPilot(loaded.policy), asking)
    assert (difference, len(episodes), asking.asked_again) == (None, 3, 0)


def test_answer_that_is_late_for_the_card_is_asked_for_again(
    keeper: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, late = PolicyService.infer, iter([False, True, True])

    def infer(self: PolicyService, batch: Any) -> Any:
        if not next(late, False):
            return predict(self, batch)
        fallback = keeper.policy.fall_back(batch.items[0].observations, "deadline")
        return replace(batch, items=[Outcome(fallback)])

    monkeypatch.setattr(PolicyService, "infer", infer)
    with answering(keeper) as url, AskingPilot(url, "v1.0.0") as asking:
        difference, _ = course(keeper, PolicyPilot(keeper.policy), asking)
    assert (difference, asking.asked_again) == (None, 2)


def test_observation_that_the_server_refuses_ends_the_gate_and_names_the_step(tmp_path: Path) -> None:
    fields = [{"name": name, "unit": "1", "low": -50.0, "high": 50.0} for name in ("speed", "steering", "a", "b", "c")]
    loaded = load_keeper(tmp_path, observation={"fields": fields})
    with answering(loaded) as url, AskingPilot(url, "v1.0.0") as asking, pytest.raises(GateError) as raised:
        course(loaded, PolicyPilot(loaded.policy), asking, replace(PLAN, seed=13))  # seed 14 begins at a gap of 71.6 m
    assert str(raised.value).startswith("episode 1 (seed 14), step 0: v1.0.0: the server refuses with 422: ")
    assert "OUT_OF_RANGE" in str(raised.value)


def test_answer_of_another_version_is_not_compared(keeper: LoadedPolicy) -> None:
    with (
        answering(keeper) as url,
        AskingPilot(url, "v1.0.1") as asking,
        pytest.raises(GateError, match="not an answer"),
    ):
        asking.act(np.zeros(5, np.float32))


def test_recurrent_version_travels_as_json_only(remembering: LoadedPolicy) -> None:
    check_wire("json", remembering.policy.card)
    with pytest.raises(ValueError, match="its state travels in JSON only"):
        check_wire("npy", remembering.policy.card)


@pytest.mark.parametrize("recurrent", [False, True])
def test_checkpoint_drives_by_its_framework_inside_the_card_s_envelope(tmp_path: Path, recurrent: bool) -> None:
    envelope = {"fallback": {"throttle": 0, "brake": 1, "steer": 0}, "steer_rate": {"max_change": 0.02}}
    loaded = load_keeper(tmp_path, recurrent=recurrent, safety=envelope)
    found = tmp_path / "v1.0.0"
    words = [str(found / "model.pt"), "--preprocessor", str(found / "preprocessor.pkl")]
    card = loaded.policy.card
    source = load_source("torchscript", words, overlay=card.model_dump(mode="json", exclude_none=True), env=None)
    difference, episodes = course(loaded, SourcePilot(source, loaded.policy), PolicyPilot(loaded.policy))
    assert (difference, len(episodes)) == (None, 3)
    answers = [step.answer for step in driven(loaded, SourcePilot(source, loaded.policy), episodes=1)[0].steps]
    assert "steer_rate" in {kind for answer in answers for kind in answer.interventions}


def test_checkpoint_of_another_shape_is_refused(tmp_path: Path, keeper: LoadedPolicy) -> None:
    load_keeper(tmp_path)
    card = keeper.policy.card.model_dump(mode="json", exclude_none=True)
    source = load_source("torchscript", [str(tmp_path / "v1.0.0" / "model.pt")], overlay=card, env=None)
    with pytest.raises(ValueError, match=r"v1\.0\.0 was not exported from it"):
        SourcePilot(replace(source, low=source.low[:4], high=source.high[:4]), keeper.policy)


# --- promotion -----------------------------------------------------------------------------------

RESULT = GateResult(environment=ENV, in_process="itself", seed=1, episodes=5, steps=300, against="v1.0.0")


def gated(registry: Registry, **other: str) -> PassedGate:
    digests = {version: record.digest for version, record in registry.versions.items()}
    return PassedGate(RESULT, {**digests, **other}, registry.promoted)


def test_passed_gate_holds_only_for_the_registry_that_it_was_driven_for() -> None:
    registry = registry_of("v1.0.0", "v1.1.0")
    gated(registry).check(registry)
    with pytest.raises(RegistryError, match=r"v1\.1\.0: is sha256:.* drive the gate again"):
        gated(registry, **{"v1.1.0": "sha256:" + "f" * 64}).check(registry)
    with pytest.raises(RegistryError, match=r"v1\.2\.0: is not registered, the gate drove"):
        gated(registry, **{"v1.2.0": "sha256:" + "f" * 64}).check(registry)
    after = registry.after(registry.event("promote", "v1.1.0"))
    with pytest.raises(RegistryError, match=r"v1\.1\.0 was promoted while the gate compared with v1\.0\.0"):
        gated(registry).check(after)


def test_registry_keeps_the_gate_and_reads_without_one(tmp_path: Path) -> None:
    file, before = RegistryFile.of(tmp_path), registry_of("v1.0.0", "v1.1.0")
    file.write(before)
    assert '"gate"' not in file.path.read_text()
    file.write(before.after(before.event("promote", "v1.1.0", gate=RESULT)))
    assert RegistryFile.of(tmp_path).read().history[-1].gate == RESULT
    assert json.loads(file.path.read_text())["history"][-1]["gate"]["steps"] == 300
    shown = "".join(run_here("history", "--store", tmp_path).split())
    assert "300stepswiththesame" in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("promote", "v1.0.0", "--episodes", 3), "options of a gate do nothing without it"),
        (("gate", "v1.0.0", "--from", "sb3"), "name its --checkpoint"),
        (("gate", "v1.0.0", "--checkpoint", "model.zip", "--from", "keras"), "expected one of sb3, cleanrl, rllib"),
        (("gate", "v1.0.0", "--checkpoint", "model.zip"), "expected one of sb3"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, arguments: tuple[Any, ...], reason: str) -> None:
    assert reason in " ".join(run_here(*arguments, "--store", tmp_path, status=2).replace("│", " ").split())
