"""What a drive leaves: its episodes step by step, what it was made with, and what happened when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from carla_policy.golden import FloatArray

SOURCES = ("policy", "fallback", "override")
ENDINGS = ("completed", "collision", "off_road", "terminated", "max_steps")
"""`max_steps`: cut by the drive's own limit, before the environment ended it."""
SAFE_ACTIONS = frozenset({"fallback", "ood", "deadline", "circuit_open"})
"""Interventions by which the server answers the card's safe action in place of the policy's."""
FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """Controls `[3]` for one observation, and where they came from.

    `source` is one of `SOURCES`; `reason` is one word for why it was not the policy, `detail` a sentence. `latency_s`
    is what the control loop waited. `version` is who answered, `seed` what a sampled action was drawn with.
    """

    controls: FloatArray
    source: str = "policy"
    reason: str = ""
    latency_s: float = 0.0
    interventions: tuple[str, ...] = ()
    detail: str = ""
    version: str = ""
    seed: int | None = None

    @property
    def is_safe_action(self) -> bool:
        """Whether the server answered, and with the card's safe action."""
        return self.source == "policy" and not SAFE_ACTIONS.isdisjoint(self.interventions)


@dataclass(frozen=True)
class Step:
    """One period of the control loop; `row` is what was observed at its start.

    `time_s` is when it began, from the start of the drive. `late_s` is by how much it ended after its period, 0 if in
    time or if nobody keeps time; `simulated_s` is what the simulator took of it, which a real vehicle would not.
    `position` (m) and `speed` (m/s) are the vehicle's at its start, where the environment tells them.
    """

    time_s: float
    row: FloatArray
    answer: Answer
    reward: float
    late_s: float = 0.0
    position: tuple[float, float] | None = None
    simulated_s: float = 0.0
    speed: float | None = None


@dataclass
class Episode:
    """One episode; `ending` is one of `ENDINGS`, `""` if the drive was stopped in the middle of it."""

    number: int
    seed: int
    steps: list[Step] = field(default_factory=list)
    ending: str = ""

    @property
    def total_return(self) -> float:
        """The undiscounted sum of its rewards."""
        return float(sum(step.reward for step in self.steps))

    @property
    def controls(self) -> FloatArray:
        """Throttle, brake, steer of every step, `[steps, 3]`."""
        return np.array([step.answer.controls for step in self.steps], np.float32).reshape(-1, 3)

    def count(self, source: str) -> int:
        return sum(step.answer.source == source for step in self.steps)


@dataclass(frozen=True)
class Event:
    """Something that happened to the loop, in `steps` periods in a row from `time_s` on, `duration_s` long.

    `kind` is `fallback` or `override` (the answers' source), `safe_action` (the server answered with the card's),
    `late` (periods ended after their time), or `note` (what the driver did to the drive, such as a fault in a drill).
    """

    episode: int
    step: int
    time_s: float
    kind: str
    detail: str
    steps: int = 1
    duration_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What a drive was made with: enough to repeat it.

    `url` is `""` where nobody was asked over a network. `period_s` is `None` where the loop did not keep time, `step_s`
    where nobody knows how many seconds a step simulates. `latency_s` (from, to) and `loss` (share) are what the link
    added, drawn from `link_seed`.
    """

    version: str
    card_hash: str
    git_sha: str
    environment: str
    environment_arguments: Mapping[str, Any]
    episodes: int
    seed: int
    url: str = ""
    period_s: float | None = None
    step_s: float | None = None
    max_steps: int | None = None
    deadline_s: float | None = None
    fallback: str = ""
    latency_s: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    link_seed: int = 0
    deterministic: bool = True
    columns: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    started: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass
class Drive:
    """All of a drive. `client` and `link` are what the client and the injected link counted, `notes` what was done.

    `road` are the lines that bound the road, each of points in metres (`roads.borders_of`).
    """

    settings: Settings
    episodes: list[Episode]
    notes: list[Event] = field(default_factory=list)
    client: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=dict)
    stopped: bool = False
    road: Sequence[Sequence[tuple[float, float]]] = ()

    @property
    def events(self) -> list[Event]:
        """What happened, in the order of time."""
        return sorted([*self.notes, *events_of(self.episodes)], key=lambda event: event.time_s)

    @property
    def summary(self) -> dict[str, Any]:
        """The figures of `summary.summarize`."""
        from carla_policy_tools.driving.summary import summarize

        return summarize(self.episodes, self.settings)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; `from_json` reads it back with the same bits."""
        return {
            "format": FORMAT,
            "settings": _plain(asdict(self.settings)),
            "summary": self.summary,
            "events": [asdict(event) for event in self.events],
            "client": dict(self.client),
            "link": dict(self.link),
            "stopped": self.stopped,
            "notes": [asdict(note) for note in self.notes],
            "road": [[list(point) for point in line] for line in self.road],
            "episodes": [_episode_to_json(episode) for episode in self.episodes],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Drive:
        """The drive of such an object; `ValueError` if it has another format."""
        if content.get("format") != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {content.get('format')!r}: not what `drive` wrote")
        settings = dict(content["settings"])
        for name in ("latency_s", "columns", "units"):
            settings[name] = tuple(settings[name])
        return cls(
            Settings(**settings),
            [_episode_of_json(episode) for episode in content["episodes"]],
            [Event(**note) for note in content["notes"]],
            content["client"],
            content["link"],
            content["stopped"],
            tuple(tuple((point[0], point[1]) for point in line) for line in content.get("road", ())),
        )


def events_of(episodes: Sequence[Episode]) -> list[Event]:
    """Each run of periods that had another answer than the policy's own, or that ended late, as one event.

    A run ends with its episode, and where the reason changes. A period that had a fallback and ended late is in one
    run of each.
    """
    found: list[Event] = []
    for episode in episodes:
        runs: dict[str, tuple[str, Event]] = {}
        for number, step in enumerate(episode.steps):
            ended = step.time_s + step.answer.latency_s
            going = dict(_kinds(step))
            for kind, (reason, detail) in going.items():
                if kind in runs and runs[kind][0] == reason:
                    first = runs[kind][1]
                    event = replace(first, steps=first.steps + 1, duration_s=round(ended - first.time_s, 6))
                else:
                    found += [runs.pop(kind)[1]] if kind in runs else []
                    span = round(ended - step.time_s, 6)
                    event = Event(episode.number, number, step.time_s, kind, detail, duration_s=span)
                runs[kind] = (reason, event)
            for kind in runs.keys() - going.keys():
                found.append(runs.pop(kind)[1])
        found += [event for _, event in runs.values()]
    return sorted(found, key=lambda event: (event.episode, event.step))


def _kinds(step: Step) -> Iterator[tuple[str, tuple[str, str]]]:
    """Kind, and the reason and detail, of what was not as usual in a step."""
    answer = step.answer
    if answer.source != "policy":
        yield answer.source, (answer.reason, ": ".join(filter(None, (answer.reason, answer.detail))))
    elif answer.is_safe_action:
        reason = ", ".join(sorted(SAFE_ACTIONS.intersection(answer.interventions)))
        yield "safe_action", (reason, reason)
    if step.late_s > 0:
        yield "late", ("", "")


def spread_by_return(episodes: Sequence[Episode], most: int) -> list[Episode]:
    """At most so many of them, evenly from the worst to the best return, in the order in which they were driven."""
    ordered = sorted((one for one in episodes if one.steps), key=lambda episode: (episode.total_return, episode.number))
    if len(ordered) > most:
        ordered = [ordered[index] for index in np.linspace(0, len(ordered) - 1, most).round().astype(int)]
    return sorted(ordered, key=lambda episode: episode.number)


def reasons_of(episodes: Sequence[Episode]) -> dict[str, int]:
    """How many steps had which reason for not being the policy's, the most frequent first."""
    steps = (step for episode in episodes for step in episode.steps if step.answer.source != "policy")
    return dict(Counter(f"{step.answer.source}: {step.answer.reason}".rstrip(": ") for step in steps).most_common())


def _episode_to_json(episode: Episode) -> dict[str, Any]:
    """Its steps as lists by name, as long as it; a float32 as the shortest number that reads back as it."""
    steps, answers = episode.steps, [step.answer for step in episode.steps]
    return {
        "number": episode.number,
        "seed": episode.seed,
        "ending": episode.ending,
        "return": episode.total_return,
        "length": len(steps),
        "steps": {
            "time_s": [round(step.time_s, 6) for step in steps],
            "late_s": [round(step.late_s, 6) for step in steps],
            "simulated_s": [round(step.simulated_s, 6) for step in steps],
            "latency_s": [round(answer.latency_s, 6) for answer in answers],
            "source": [answer.source for answer in answers],
            "reason": [answer.reason for answer in answers],
            "detail": [answer.detail for answer in answers],
            "interventions": [list(answer.interventions) for answer in answers],
            "version": [answer.version for answer in answers],
            "seed": [answer.seed for answer in answers],
            "reward": [step.reward for step in steps],
            "position": [step.position for step in steps],
            "speed": [step.speed for step in steps],
            "controls": [_shortest(answer.controls) for answer in answers],
            "row": [_shortest(step.row) for step in steps],
        },
    }


def _episode_of_json(content: Mapping[str, Any]) -> Episode:
    steps = content["steps"]
    episode = Episode(content["number"], content["seed"], ending=content["ending"])
    for index in range(content["length"]):
        at = {name: values[index] for name, values in steps.items()}
        answer = Answer(
            np.array(at["controls"], np.float32),
            at["source"],
            at["reason"],
            at["latency_s"],
            tuple(at["interventions"]),
            at["detail"],
            at["version"],
            at["seed"],
        )
        place = None if at["position"] is None else (at["position"][0], at["position"][1])
        row = np.array(at["row"], np.float32)
        episode.steps.append(
            Step(at["time_s"], row, answer, at["reward"], at["late_s"], place, at["simulated_s"], at["speed"])
        )
    return episode


def _shortest(values: FloatArray) -> list[float]:
    return [float(str(value)) for value in values]


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
