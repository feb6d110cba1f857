"""The report of a drive: one page, whole, safe to open, and bounded."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.driving.film import film, found_films, rendering_simulation, write_films
from carla_policy_tools.driving.latency import Cell, Evaluation, Mean, Outcome, Plan
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.records import Answer, Drive, Episode, Event, Settings, Step, spread_by_return
from carla_policy_tools.driving.report import pictures_in, write_latency_section, write_report
from carla_policy_tools.driving.roads import borders_of
from carla_policy_tools.export.errors import ExportError
from tests.lane_env import LaneEnv
from tests.synthetic import make_artifact

NASTY = '<script>alert("x")</script> & $\\frac{1}{0}$'
VOID = {"meta", "img", "link", "br"}
SETTINGS = Settings(
    *("v1.0.0", "sha256:0", "0" * 40, f"module:{NASTY}", {"town": NASTY}),
    episodes=3,
    seed=10,
    url="http://127.0.0.1:8080",
    period_s=0.1,
    step_s=0.1,
    deadline_s=0.05,
    fallback="brake",
    units=("m/s",),
    command=f"carla-policy drive --env {NASTY}",
)


class Page(HTMLParser):
    """What is in a page; `AssertionError` where an element is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], Counter(), [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def episode_of(number, sources, ending="completed", late_s=0.0, reward=1.0):
    """An episode whose steps had these sources, driven on a circle."""
    episode = Episode(number, 10 + number, ending=ending)
    for index, source in enumerate(sources):
        reason, detail = ("", "") if source == "policy" else ("late", NASTY)
        controls = np.array([0.5, 0.0, np.sin(index / 9)], np.float32)
        answer = Answer(controls, source, reason, 0.004 if source == "policy" else 0.05, (), detail)
        place = (20 * np.cos(index / 30), 20 * np.sin(index / 30))
        time_s = 100 * number + index / 10
        episode.steps.append(Step(time_s, np.ones(5, np.float32), answer, reward, late_s, place, 0.001, 9.0))
    return episode


@pytest.fixture(scope="module")
def drive():
    return Drive(
        SETTINGS,
        [
            episode_of(0, ["policy"] * 40 + ["fallback"] * 5 + ["policy"] * 10),
            episode_of(1, ["policy"] * 20 + ["override"] * 9, ending="collision", late_s=0.001),
            episode_of(2, ["policy"] * 12, ending=""),
        ],
        notes=[Event(0, 40, 4.0, "note", NASTY)],
        stopped=True,
        road=(((0.0, 0.0), (30.0, 0.0)),),
    )


def written(drive, directory, *arguments) -> Page:
    return Page(write_report(drive, directory, *arguments).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(drive, tmp_path_factory):
    return written(drive, tmp_path_factory.mktemp("page"))


def test_a_page_needs_nothing_else_and_has_a_text_for_every_picture(page):
    sources = [value for _, names in page.attributes for name, value in names.items() if name in ("src", "href")]
    assert not [source for source in sources if not source.startswith(("#", "data:"))]
    assert page.tags["svg"] == 6  # trajectories, three episodes, time line, latencies
    assert all(names.get("aria-label") for tag, names in page.attributes if tag == "svg")
    assert all(count == 1 for count in Counter(page.ids).values())
    for title in ("Figures", "Where it drove", "How it drove", "What happened when", "Episodes", "How to repeat it"):
        assert title in page.text


def test_what_users_named_stands_there_as_text(page):
    assert page.tags["script"] == 0
    assert page.text.count(NASTY) >= 4  # the environment, its command, events, a note


def test_a_page_says_what_happened_when_and_how_each_episode_ended(page):
    text = re.sub(r"\s+", " ", page.text)

    assert "The drive was stopped before its end." in text
    assert "4.00 0 40 fallback late: " in text
    assert "1 11 29.00 29 collision 0 9 29" in text
    assert "2 12 12.00 12 stopped 0 0 0" in text
    assert "deadline, 50 ms" in text


def test_a_drive_of_nothing_has_a_page_too(tmp_path):
    text = written(Drive(SETTINGS, []), tmp_path).text

    assert "No step was driven." in text
    assert "The environment does not say where the vehicle is." in text


def test_a_drive_that_is_read_back_has_the_same_page(drive, page, tmp_path):
    again = written(Drive.from_json(json.loads(json.dumps(drive.to_json()))), tmp_path)

    assert again.text == page.text
    assert again.attributes == page.attributes


def test_a_thousand_episodes_are_thinned_out_and_the_page_says_so(tmp_path):
    sources = ["policy", "fallback"]
    many = [episode_of(number, sources, reward=float(number)) for number in range(2100)]
    many[7] = episode_of(7, ["policy", "policy", "fallback", "override"] * 1000)
    page = written(Drive(SETTINGS, many), tmp_path)

    text = re.sub(r"\s+", " ", page.text)
    assert "12 of 2100 episodes, evenly from the worst to the best return" in text
    assert re.search(r"These are the first 200 of \d+ events", text)
    assert "These are the first 2000 of 2100 episodes" in text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_episodes_are_chosen_evenly_from_the_worst_to_the_best_return():
    episodes = [episode_of(number, ["policy"], reward=reward) for number, reward in enumerate([5, 1, 9, 3, 7])]

    assert [episode.number for episode in spread_by_return(episodes, 3)] == [0, 1, 2]
    assert [episode.number for episode in spread_by_return(episodes, 9)] == [0, 1, 2, 3, 4]


@pytest.fixture
def evaluation(tmp_path):
    plan = Plan(tmp_path / "v1.0.0.mar", latencies_s=(0.0,), losses=(0.0,), episodes=1)
    mean = Mean(7.0, None)
    cell = Cell(
        0.0, 0.0, 0.05, "", mean, Mean(0.0, None), {"completed": 1}, 0.0, (Outcome(10, 7.0, 1, "completed", 0.0),)
    )
    return Evaluation("v1.0.0", "sha256:0", plan, 0.05, (cell,))


def test_the_latency_aware_evaluation_stands_in_the_page_of_the_drive_whichever_came_first(evaluation, tmp_path):
    drive = Drive(SETTINGS, [])
    (tmp_path / "drive.json").write_text(json.dumps(drive.to_json()))
    after = Page(write_latency_section(evaluation, tmp_path).read_text())
    (tmp_path / "latency.json").write_text(json.dumps(evaluation.to_json()))
    first = written(drive, tmp_path)

    assert after.text == first.text
    assert "What late and lost actions cost" in first.text
    assert "not of the policy that drove" not in first.text

    other = written(drive, tmp_path, replace(evaluation, card_hash="sha256:1", version="v2.0.0"))
    assert "This evaluation is of v2.0.0, and not of the policy that drove above." in other.text


class PaintedLane(LaneEnv):
    """A lane that renders; with `drifting` it does not follow its seed."""

    def __init__(self, *, render_mode=None, drifting=False):
        super().__init__()
        self.render_mode, self.drifting, self.resets = render_mode, drifting, 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, *rest = super().step(action)
        if self.drifting and self.render_mode and self.steps > 10:
            observation = observation + np.float32(1)
        return observation, *rest

    def render(self):
        picture = np.zeros((60, 90, 3), np.uint8)
        picture[:, : 1 + self.steps] = (255, 0, 0)
        return picture


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_artifact(make_artifact(tmp_path_factory.mktemp("report"), "v1.0.0", sensors=3)).policy


def filmed(policy, **arguments):
    name, made = "tests.test_drive_report:PaintedLane", json.dumps(arguments)
    with rendering_simulation(policy.card, name, made) as simulation:
        plain = PaintedLane(**arguments)
        simulation.env, rendering, simulation._environment.env = plain, simulation.env, plain
        [episode] = drive_episodes(simulation, PolicyPilot(policy), [3], Pace())
        simulation.env = simulation._environment.env = rendering
        return episode, film(simulation, episode, most=20)


def test_an_episode_is_filmed_by_driving_it_again_and_its_pictures_stand_in_the_page(policy, tmp_path):
    episode, shot = filmed(policy)

    assert shot.complete
    assert shot.steps[0] == 0
    assert shot.steps[-1] == len(episode.steps) - 1
    assert len(shot.pictures) == min(20, len(episode.steps))
    names = [path.name for path in write_films([shot], tmp_path) if path.suffix != ".mp4"]
    assert names == ["filmstrip-0.png", "video-0.gif"]
    with Image.open(tmp_path / "video-0.gif") as video:
        assert video.n_frames == len(shot.pictures)
        assert np.asarray(video.convert("RGB")).any()

    page = written(Drive(SETTINGS, [episode]), tmp_path)
    pictures = [names for tag, names in page.attributes if tag == "img"]
    assert len(pictures) == 2
    assert all(names["alt"] and names["src"].startswith("data:image/") for names in pictures)


def test_pictures_of_another_drive_are_not_taken_for_its_own(policy, drive, tmp_path):
    episode, shot = filmed(policy)
    write_films([shot], tmp_path)

    assert [picture.kind for picture in pictures_in(tmp_path, Drive(SETTINGS, [episode]))] == ["filmstrip", "video"]
    assert pictures_in(tmp_path, drive) == []
    write_films([], tmp_path)
    assert found_films(tmp_path) == []


def test_an_environment_that_does_not_follow_its_seed_is_filmed_as_far_as_it_does(policy):
    _, shot = filmed(policy, drifting=True)

    assert not shot.complete
    assert max(shot.steps) <= 11


def test_an_environment_that_does_not_render_is_refused(policy):
    with pytest.raises(ExportError, match="render_mode"), rendering_simulation(policy.card, "tests.lane_env:LaneEnv"):
        pass


class Bounded(gym.Env):
    """Tells its own borders."""

    road_borders = ([(0, 0), (1, 1)], np.array([[2.0, 2.0], [3.0, 3.0]]), [(0.0, np.nan)])


def test_borders_are_those_that_an_environment_tells_or_its_lanes_have():
    assert borders_of(Bounded()) == (((0.0, 0.0), (1.0, 1.0)), ((2.0, 2.0), (3.0, 3.0)))
    assert borders_of(LaneEnv()) == ()


def test_the_borders_of_the_racetrack_are_the_continuous_lines_of_its_lanes():
    pytest.importorskip("highway_env")
    from examples.racetrack.driving_env import DrivingEnv

    env = DrivingEnv()
    env.reset(seed=1)
    borders = borders_of(env)

    assert len(borders) == 18
    assert borders[0][0] == (42.0, -2.5)
    assert borders[1][-1] == (100.0, 7.5)
