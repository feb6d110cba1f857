"""Actions that come late or never, in simulated time."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from carla_policy_tools.cli import app
from carla_policy_tools.driving.delayed import Clock, Delay, drive_delayed
from carla_policy_tools.driving.latency import Condition, Evaluation, Mean, Plan
from carla_policy_tools.driving.latency_grid import evaluate
from carla_policy_tools.driving.latency_plot import plot_latency
from carla_policy_tools.driving.latency_table import remarks_of, sections_of
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.packaged import load_packaged
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.records import Answer
from carla_policy_tools.driving.simulation import Transition, simulation_of
from carla_policy_tools.driving.strategies import strategy_of
from tests.synthetic import make_artifact

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
LANE = "tests.lane_env:LaneEnv"
FINE = Clock(0.1, 2)


@pytest.fixture(scope="module")
def lane_artifact(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("latency"), "v1.0.0", sensors=3)


@dataclass
class Tape:
    """Records what the vehicle executes, tick by tick, and answers step n, from 1 on, with throttle n / 1000."""

    steps: int = 8

    def __post_init__(self):
        self.name, self.position, self.speed, self.executed, self.asked = "tape", None, None, [], 0

    def reset(self, seed):  # noqa: ARG002
        self.executed, self.asked = [], 0
        return np.zeros(1, np.float32)

    def step_in_parts(self, controls):
        self.executed += [round(1000 * float(part[0])) if part[1] == 0 else "brake" for part in controls]
        over = len(self.executed) >= 2 * self.steps
        return Transition(np.zeros(1, np.float32), 1.0, False, over, {})

    def begin(self):
        pass

    def act(self, row):  # noqa: ARG002
        self.asked += 1
        return Answer(np.array([self.asked / 1000, 0, 0], np.float32))


@pytest.mark.parametrize(
    ("latency_s", "executed"),
    [
        (0.0, [1, 1, 2, 2, 3, 3, 4, 4]),
        (0.05, [0, 1, 1, 2, 2, 3, 3, 4]),
        (0.1, [0, 0, 1, 1, 2, 2, 3, 3]),
        (0.25, [0, 0, 0, 0, 0, 1, 1, 2]),
        (0.01, [0, 1, 1, 2, 2, 3, 3, 4]),
    ],
)
def test_an_action_takes_effect_its_latency_after_the_observation_and_what_was_there_stays_until_then(
    latency_s, executed
):
    tape = Tape(4)

    drive_delayed(tape, tape, 0, Delay(latency_s, 0.0, 1.0), strategy_of("brake"), FINE)

    assert tape.executed == executed


def lost_steps(monkeypatch, *numbers):
    """Exactly the answers to these observations are lost."""

    class Chance:
        def __init__(self):
            self.number = -1

        def random(self):
            self.number += 1
            return 0.0 if self.number in numbers else 0.99

    monkeypatch.setattr("carla_policy_tools.driving.delayed.np.random.default_rng", lambda _: Chance())


@pytest.mark.parametrize(
    ("latency_s", "deadline_s", "lost", "executed"),
    [
        # Noticed half a step later: until then the last action stays, from the next answer on that one counts.
        (0.0, 0.05, [1], [1, 1, 1, "brake", 3, 3]),
        # Noticed when the answer to the next observation arrives: the newer observation counts.
        (0.0, 0.1, [1], [1, 1, 1, 1, 3, 3]),
        (0.0, 0.1, [1, 2], [1, 1, 1, 1, "brake", "brake"]),
        # Noticed after a newer answer has arrived: never.
        (0.0, 0.15, [0], [0, 0, 2, 2, 3, 3]),
        (0.1, 0.1, [0], [0, 0, "brake", "brake", 2, 2]),
    ],
)
def test_a_lost_answer_is_noticed_at_its_deadline_unless_a_newer_one_has_come(
    monkeypatch, latency_s, deadline_s, lost, executed
):
    lost_steps(monkeypatch, *lost)
    tape = Tape(3)

    drive_delayed(tape, tape, 0, Delay(latency_s, 0.5, deadline_s), strategy_of("brake"), FINE)

    assert tape.executed == executed


def test_an_answer_later_than_the_deadline_is_never_delivered():
    tape = Tape(3)

    episode = drive_delayed(tape, tape, 0, Delay(0.1, 0.0, 0.05), strategy_of("brake"), FINE)

    assert tape.executed == [0, *["brake"] * 5]
    assert episode.count("fallback") == 3


def test_the_fallback_knows_the_last_good_action_and_its_age(monkeypatch):
    lost_steps(monkeypatch, 1, 2)
    seen = []

    def fallback(last, age_s):
        seen.append((None if last is None else round(1000 * float(last[0])), round(age_s, 6)))
        return np.array([0, 1, 0], np.float32)

    tape = Tape(4)
    drive_delayed(tape, tape, 0, Delay(0.05, 0.5, 0.05), fallback, FINE)

    assert seen == [(1, 0.1), (1, 0.2)]


def test_what_is_lost_follows_from_the_seed_and_a_larger_loss_has_the_smaller_one_in_it():
    tape = Tape(200)

    def fallback_steps(loss, seed=3):
        episode = drive_delayed(tape, tape, seed, Delay(0.0, loss, 0.05), strategy_of("brake"), FINE)
        return {number for number, step in enumerate(episode.steps) if step.answer.source == "fallback"}

    assert fallback_steps(0.05) < fallback_steps(0.2)
    assert 20 < len(fallback_steps(0.2)) < 60
    assert fallback_steps(0.2) == fallback_steps(0.2) != fallback_steps(0.2, seed=4)


@pytest.mark.parametrize("environment", ["racetrack", "lane"])
def test_without_latency_and_loss_it_is_the_plain_loop_bit_by_bit(environment, lane_artifact):
    pytest.importorskip("highway_env")
    source, name, steps = {
        "racetrack": (ARTIFACTS / "v0.2.0", "examples.racetrack.driving_env:DrivingEnv", 40),
        "lane": (lane_artifact, LANE, None),
    }[environment]
    policy = load_packaged(source)
    with simulation_of(policy.card, name) as simulation:
        plain = list(drive_episodes(simulation, PolicyPilot(policy), (1, 2), Pace(), steps))
        clock = Clock.of(simulation, None if simulation.step_s else 0.1)
        delayed = [
            drive_delayed(simulation, PolicyPilot(policy), seed, Delay(), strategy_of("brake"), clock, steps)
            for seed in (1, 2)
        ]

    assert [episode.total_return for episode in delayed] == [episode.total_return for episode in plain]
    assert [episode.ending for episode in delayed] == [episode.ending for episode in plain]
    for one, other in zip(delayed, plain, strict=True):
        assert np.array_equal(one.controls, other.controls)
        assert np.array_equal([step.row for step in one.steps], [step.row for step in other.steps])


def test_a_step_of_the_racetrack_in_two_equal_parts_is_a_step_bit_by_bit():
    pytest.importorskip("highway_env")
    from examples.racetrack.driving_env import DrivingEnv

    whole, parts, chance = DrivingEnv(), DrivingEnv(), np.random.default_rng(0)
    observation, _ = whole.reset(seed=1)
    parts.reset(seed=1)
    for _ in range(40):
        action = np.array([chance.uniform(-0.3, 0.4), np.clip(0.8 * observation[26], -1, 1)])
        one, other = whole.step(action), parts.step_in_parts(np.stack([action, action]))
        observation = one[0]
        assert np.array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_braking_in_the_second_half_of_a_step_of_the_racetrack_loses_half_of_the_speed():
    pytest.importorskip("highway_env")
    from examples.racetrack.driving_env import MAX_ACCELERATION_MPS2, SUBSTEP_S, DrivingEnv

    env = DrivingEnv()
    env.reset(seed=1)
    before = env.vehicle.speed
    env.step_in_parts(np.array([[0.0, 0.0], [-1.0, 0.0]]))

    assert before - env.vehicle.speed == pytest.approx(MAX_ACCELERATION_MPS2 * SUBSTEP_S)
    for _ in range(40):
        env.step_in_parts(np.array([[0.0, 0.0], [-1.0, 0.0]]))
    assert env.vehicle.speed == pytest.approx(0.0, abs=1e-9)


def lane_plan(artifact, **changed):
    plan = Plan(
        artifact,
        LANE,
        latencies_s=(0.0, 0.15),
        losses=(0.0, 0.3),
        strategies=("brake", "hold:0.3"),
        episodes=4,
        step_s=0.1,
    )
    return replace(plan, **changed)


@pytest.fixture(scope="module")
def evaluation(lane_artifact) -> Evaluation:
    return evaluate(lane_plan(lane_artifact), processes=1)


def test_a_grid_drives_every_delay_with_every_strategy_and_once_where_none_ever_acts(evaluation):
    conditions = [(cell.latency_s, cell.loss, cell.strategy) for cell in evaluation.cells]

    assert conditions == [
        *[(0.0, 0.0, ""), (0.15, 0.0, "")],
        *[(0.0, 0.3, "brake"), (0.0, 0.3, "hold:0.3"), (0.15, 0.3, "brake"), (0.15, 0.3, "hold:0.3")],
    ]
    assert evaluation.cells[0].difference == Mean(0.0, 0.0)
    assert evaluation.cells[0].fallback_share == 0.0
    assert evaluation.cells[4].deadline_s == 0.15


def test_a_grid_without_the_plain_loop_is_compared_with_it_all_the_same(lane_artifact):
    plan = lane_plan(lane_artifact, latencies_s=(0.2,), losses=(0.1,), strategies=("decay",))

    assert plan.conditions == [Condition(plan.delay(0.0, 0.0), ""), Condition(plan.delay(0.2, 0.1), "decay")]


def test_differences_are_paired_and_their_interval_is_student_s(evaluation):
    plain, cell = evaluation.cells[0], evaluation.cells[-1]
    differences = np.array(
        [own.total_return - other.total_return for own, other in zip(cell.outcomes, plain.outcomes, strict=True)]
    )

    low, high = stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))

    assert [outcome.seed for outcome in cell.outcomes] == [outcome.seed for outcome in plain.outcomes]
    assert cell.difference.value - cell.difference.half_width == pytest.approx(low)
    assert cell.difference.value + cell.difference.half_width == pytest.approx(high)
    assert cell.worse == (high < 0)
    assert Mean.of([3.0]) == Mean(3.0, None)


def test_where_an_environment_is_coarser_than_the_latency_the_words_say_so(evaluation):
    assert evaluation.rounded == {0.05: 0.1, 0.15: 0.2}
    remarks = " ".join(remarks_of(evaluation))
    assert "150 ms were rounded up to 200 ms: the environment resolves 100 ms" in remarks


def test_the_same_grid_in_two_processes_has_the_same_bits(evaluation, lane_artifact):
    done = []

    again = evaluate(
        lane_plan(lane_artifact), processes=2, on_episode=lambda number, total: done.append((number, total))
    )

    assert again == evaluation
    assert done == [(number, 24) for number in range(1, 25)]


def test_json_reads_back_and_tables_and_plot_show_every_cell(evaluation):
    again = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json())))

    assert again.cells == evaluation.cells
    for section in sections_of(again):
        assert section.header == ("lost", "fallback", "0 ms", "150 ms")
        assert [row[:2] for row in section.rows] == [("0 %", "any"), ("30 %", "brake"), ("30 %", "hold:0.3")]
    svg = plot_latency(again)
    assert svg.startswith("<svg ")
    assert "hold:0.3" in svg
    with pytest.raises(ValueError, match="format: expected carla-policy latency 1, got None"):
        Evaluation.from_json({})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"losses": (1.2,)}, "expected a share of lost answers from 0 to 1, got 1.2"),
        ({"latencies_s": (-0.1,)}, "expected seconds from 0 on, got latency -0.1"),
        ({"strategies": ("swerve",)}, "expected brake, hold, hold:SECONDS, decay or decay:SECONDS, got 'swerve'"),
        ({"strategies": ("hold:0",)}, "got 'hold:0'"),
        ({"losses": (0.1, 0.1)}, "losses: expected values that differ, got 0.1, 0.1"),
        ({"episodes": 0}, "expected one episode and step at least, got 0"),
    ],
)
def test_a_plan_that_cannot_be_driven_is_refused_with_what_was_expected(lane_artifact, changed, reason):
    with pytest.raises(ValueError, match=reason):
        lane_plan(lane_artifact, **changed)


def test_an_environment_that_does_not_say_how_long_its_steps_are_needs_to_be_told(lane_artifact):
    with pytest.raises(ValueError, match="says neither step_s nor render_fps: name the length of a step"):
        evaluate(lane_plan(lane_artifact, step_s=None), processes=1)


def test_the_verb_prints_one_json_object_writes_its_files_and_refuses_what_is_no_number(lane_artifact, tmp_path):
    drive = [*("latency", str(lane_artifact), "--env", LANE, "--step-ms", "100", "--processes", "1", "--json")]
    grid = ["--latencies", "0,100", "--losses", "0", "--episodes", "2", "--out", str(tmp_path)]

    done = CliRunner().invoke(app, [*drive, *grid])
    refused = CliRunner().invoke(app, [*drive, "--losses", "0,many"])

    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert [cell["latency_s"] for cell in content["cells"]] == [0.0, 0.1]
    assert {path.name for path in tmp_path.iterdir()} == {"latency.json", "latency.svg", "report.html"}
    assert refused.exit_code == 2
    assert "expected numbers with commas between" in refused.stderr
