"""A drive of a served version, put together: the environment, the vehicle's client, and a bad network between them."""

from __future__ import annotations

import gc
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from carla_policy_client import PolicyClient
from carla_policy_tools.driving.defaults import DEADLINE_S, ENVIRONMENT, FIRST_SEED
from carla_policy_tools.driving.link import Conditions, Link
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.records import Drive, Episode, Event, Settings
from carla_policy_tools.driving.roads import borders_of
from carla_policy_tools.driving.served import ServedPilot, served_card
from carla_policy_tools.driving.simulation import simulation_of
from carla_policy_tools.driving.strategies import client_fallback

if TYPE_CHECKING:
    from carla_policy_tools.tokens import Tokens

PACKAGES = ("carla-policy-serving", "carla-policy-client", "gymnasium", "highway-env", "numpy")


@dataclass(frozen=True)
class Plan:
    """What to drive, and how.

    `version` `None` is the promoted one. `period_s` is that of a loop that keeps time, 0 for the environment's own
    step, `None` for one that does not keep it. `conditions` are of a link that is put between client and server,
    `None` for none. `seed` is that of the first episode, and of all that the link draws.
    """

    url: str
    version: str | None = None
    auth: Tokens | None = None
    environment: str = ENVIRONMENT
    environment_arguments: str = "{}"
    episodes: int = 5
    seed: int = FIRST_SEED
    max_steps: int | None = None
    period_s: float | None = None
    deadline_s: float = DEADLINE_S
    fallback: str = "brake"
    conditions: Conditions | None = None
    deterministic: bool = True
    reports_returns: bool = True


class Session:
    """A context manager that is ready to drive; leaving it closes all that it opened.

    Entering it raises what `served_card` and `simulation_of` do, and `ValueError` for a plan that cannot be driven.
    `drive` has all that has been driven so far, also after an error.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        plan = self.plan
        with ExitStack() as opened:
            fallback = client_fallback(plan.fallback)
            self.card = card = served_card(plan.url, plan.version, plan.auth)
            self.simulation = opened.enter_context(simulation_of(card, plan.environment, plan.environment_arguments))
            self.link = opened.enter_context(Link(plan.url, plan.conditions, plan.seed)) if plan.conditions else None
            self.client = opened.enter_context(
                PolicyClient(
                    self.link.url if self.link else plan.url,
                    plan.version,
                    plan.deadline_s,
                    fallback,
                    token=plan.auth.key if plan.auth else None,
                )
            )
            period_s = self._period_s()
            conditions = plan.conditions or Conditions()
            settings = Settings(
                version=card.version,
                card_hash=card.card_hash,
                git_sha=card.git_sha,
                environment=plan.environment,
                environment_arguments=json.loads(plan.environment_arguments),
                episodes=plan.episodes,
                seed=plan.seed,
                url=plan.url,
                period_s=period_s,
                step_s=self.simulation.step_s,
                max_steps=plan.max_steps,
                deadline_s=plan.deadline_s,
                fallback=plan.fallback,
                latency_s=conditions.latency_s,
                loss=conditions.loss,
                link_seed=plan.seed,
                deterministic=plan.deterministic,
                columns=card.observation.names,
                units=tuple(observed.unit for observed in card.observation.fields),
                started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                packages=dict(_versions()),
                command=shlex.join(["carla-policy", *sys.argv[1:]]),
            )
            self.drive = Drive(settings, [])
            self._pace = Pace(period_s)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def note(self, text: str) -> Event:
        """Write down what is done to the drive at this moment; from any thread."""
        episodes = self.drive.episodes
        number, step = (episodes[-1].number, len(episodes[-1].steps)) if episodes else (0, 0)
        event = Event(number, step, self._pace.elapsed_s, "note", text)
        self.drive.notes.append(event)
        return event

    def run(
        self, on_step: Callable[[Episode], None] = lambda _: None, is_stopping: Callable[[], bool] = lambda: False
    ) -> Drive:
        """Drive all episodes, or as far as they have come once `is_stopping`."""
        plan, drive = self.plan, self.drive
        pilot = ServedPilot(self.client, None if plan.deterministic else plan.seed)

        def seen(episode: Episode) -> None:
            if not drive.episodes or drive.episodes[-1] is not episode:
                drive.episodes.append(episode)
            on_step(episode)

        seeds = range(plan.seed, plan.seed + plan.episodes)
        self._pace = Pace(drive.settings.period_s)
        try:
            with _no_long_collections():
                for episode in drive_episodes(
                    self.simulation, pilot, seeds, self._pace, plan.max_steps, on_step=seen, is_stopping=is_stopping
                ):
                    if plan.reports_returns:
                        pilot.report(episode)
        finally:
            drive.stopped = len(drive.episodes) < plan.episodes or not drive.episodes[-1].ending
            self.client.close()  # what episodes were worth has been told, or will not be
            drive.client = self.client.statistics.as_dict()
            drive.link = self.link.counts if self.link else {}
            drive.road = borders_of(self.simulation.env)
        return drive

    def _period_s(self) -> float | None:
        wanted, step_s = self.plan.period_s, self.simulation.step_s
        if wanted == 0 and step_s is None:
            raise ValueError(
                f"{self.simulation.name}: does not say how long its steps are (step_s, or render_fps in its metadata); "
                "name the loop's frequency with --hz"
            )
        return step_s if wanted == 0 else wanted


@contextmanager
def _no_long_collections() -> Iterator[None]:
    """What is there already is not looked through again by the garbage collector, which would take several periods."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
