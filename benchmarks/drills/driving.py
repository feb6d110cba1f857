"""Drill `drive`: while a vehicle drives in real time, its server is killed, frozen, cut off, garbled and late.

The vehicle's client asks the server itself while that is killed or frozen, and through a link that may be bad for the
faults of a network. Each fault must be felt, be over by itself once it has ended, and stand in the drive's events.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import psutil

from benchmarks.archives import FIRST, Archives
from benchmarks.drills.drive_report import DriveReport, Felt
from benchmarks.drills.rig import Rig
from benchmarks.servers import ServeProcess
from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.driving.link import Conditions
from carla_policy_tools.driving.records import Drive
from carla_policy_tools.driving.session import Plan, Session
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.ports import reserved_port

GIVE_UP_S = 60.0
POLL_S = 0.02
EPISODES = 10_000
"""More than there is time for: the drill ends the drive."""
_OWN_PORTS = ("--management-port", "0", "--metrics-port", "0", "--health-port", "0")


class Road:
    """A drive under way, as whoever disturbs it sees it. A context manager; leaving it ends the drive."""

    def __init__(self, plan: Plan) -> None:
        self.session = Session(plan)
        self._is_over = threading.Event()
        self._answers = {"policy": 0, "fallback": 0, "override": 0}
        self._failure: Exception | None = None
        self.drive: Drive | None = None
        self._thread = threading.Thread(target=self._drive, name="drive", daemon=True)

    def __enter__(self) -> Road:
        self.drive = self.session.__enter__().drive
        self._thread.start()
        try:
            self.wait_for("policy")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.session.__exit__(None, None, None)
        if self._failure:
            raise self._failure

    def wait_for(self, source: str) -> None:
        """Until the next step that `source` answers; `TimeoutError` if there is none for long."""
        seen, until = self._answers[source], time.monotonic() + GIVE_UP_S
        while self._answers[source] == seen:
            if self._failure:
                raise self._failure
            if time.monotonic() > until:
                raise TimeoutError(f"no step was answered by the {source} within {GIVE_UP_S:g} s")
            time.sleep(POLL_S)

    def suffer(self, fault: str, begin: Callable[[], None], end: Callable[[], object], seconds: float) -> Felt:
        """Bring a fault about for so many seconds, or until it is felt, and wait until the policy drives again."""
        began_s = self.session.note(f"{fault} begins").time_s
        began = time.monotonic()
        try:
            begin()
            self.wait_for("fallback")
            time.sleep(max(0.0, began + seconds - time.monotonic()))
        finally:
            end()
        felt = Felt(fault, began_s, self.session.note(f"{fault} ends").time_s)
        self.wait_for("policy")
        return felt

    def _drive(self) -> None:
        try:
            self.session.run(lambda episode: self._count(episode.steps[-1].answer.source), self._is_over.is_set)
        except Exception as error:
            self._failure = error

    def _count(self, source: str) -> None:
        self._answers[source] += 1


def run(archives: Archives, plan: Plan, *, seconds: float = 2.0, version: str = FIRST) -> DriveReport:
    """Each fault for so many `seconds`; of `plan` all but the server, the version and the number of episodes counts."""
    report = DriveReport("drive")
    with Rig(archives, [version]) as rig:
        port = reserved_port()
        options = (version, "--port", str(port), *_OWN_PORTS)
        plan = replace(plan, url=f"http://{LOOPBACK}:{port}", version=version, episodes=EPISODES)
        with ExitStack() as servers:
            server = servers.enter_context(rig.serve(*options))

            def disturb(road: Road) -> Iterator[Felt]:
                yield from _freeze(road, server, version, seconds)
                yield _kill(road, server, lambda: servers.enter_context(rig.serve(*options)))

            _drive(report, plan, disturb)
            _drive(report, replace(plan, conditions=Conditions()), lambda road: _spoil(road, seconds, plan.deadline_s))
    return report


def _drive(report: DriveReport, plan: Plan, disturb: Callable[[Road], Iterator[Felt]]) -> None:
    road, felt = Road(plan), list[Felt]()
    with report.noting_failures(), road:
        for one in disturb(road):
            felt.append(one)
    if road.drive:
        report.judge(road.drive, felt)


def _freeze(road: Road, server: ServeProcess, version: str, seconds: float) -> Iterator[Felt]:
    with Management(server.ready["management"]) as management:
        served = management.version(version)
    assert served is not None
    frozen = {"worker stopped": served.workers[0].pid, "front end stopped": int(server.ready["server_pid"])}
    for fault, pid in frozen.items():
        yield road.suffer(fault, _signal(pid, signal.SIGSTOP), _signal(pid, signal.SIGCONT), seconds)


def _kill(road: Road, server: ServeProcess, start: Callable[[], object]) -> Felt:
    """`kill -9` of all the server's processes at once, and another one on the same port."""

    def kill() -> None:
        for process in [*server.descendants(), psutil.Process(server.process.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait()

    return road.suffer("killed, started again", kill, start, 0.0)


def _spoil(road: Road, seconds: float, deadline_s: float) -> Iterator[Felt]:
    link = road.session.link
    assert link is not None
    late = 2 * deadline_s
    for fault, conditions in {
        "connections cut": Conditions(cut=True),
        "junk for answers": Conditions(junk=True),
        "answers late": Conditions((late, late)),
        "answers lost": Conditions(loss=1.0),
    }.items():

        def set_to(wanted: Conditions) -> Callable[[], None]:
            return lambda: setattr(link, "conditions", wanted)

        yield road.suffer(fault, set_to(conditions), set_to(Conditions()), seconds)


def _signal(pid: int, number: int) -> Callable[[], None]:
    return lambda: os.kill(pid, number)
