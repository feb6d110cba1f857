"""What settings of Java, Netty and a profile do under load: `python -m benchmarks.tuning --profile realtime`.

Starts a server for each setting, as `carla-policy serve` starts it but for that one, warms all of them up, and visits
them in rounds of random order, a second by wrk with one connection and with 64. Printed are the medians of the ratios
within a round to the server whose settings are as they are. Before that come the latencies of one client from the first
request on, of servers of which only one runs at a time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from typing_extensions import Self

from benchmarks.bench.arena import Arena
from benchmarks.bench.loads import Generator, one_client
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Slice
from benchmarks.bench.rounds import run_rounds, warm_up
from benchmarks.bench.statistics import Estimate, ratio_of_rounds
from benchmarks.bench.wrk import find_wrk
from benchmarks.contenders.base import Contender
from benchmarks.contenders.workload import Workload, prepare_workload
from benchmarks.servers import loaded_torchserve
from carla_policy_tools.aot_cache import use_flags
from carla_policy_tools.archive import unpack, with_config
from carla_policy_tools.configuration import load_profile, properties
from carla_policy_tools.java import find_java
from carla_policy_tools.paths import ARTIFACTS, archive_name
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.torchserve import JAR
from carla_policy_tools.urls import prediction_url

FIRST_S = 4.0
"""How long a server is asked from its first request on, when it is the only one."""
CLIENT_S = 0.1
"""In a round; what is compared there are wrk's figures."""


@dataclass(frozen=True)
class Setting:
    """What differs from the settings as they are: JVM flags, TorchServe's properties, the profile's fields."""

    flags: Sequence[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, int] = field(default_factory=dict)
    cache: bool = True
    """Java's, of ahead-of-time work."""


AS_THEY_ARE = "as they are"
SETTINGS = {
    AS_THEY_ARE: Setting(),
    "serial collector": Setting(["-XX:+UseSerialGC"]),
    "parallel collector": Setting(["-XX:+UseParallelGC"]),
    "first compiler only": Setting(["-XX:TieredStopAtLevel=1"]),
    "no ahead-of-time cache": Setting(cache=False),
    "huge pages": Setting(["-XX:+UseTransparentHugePages"]),
    "1 Netty thread": Setting(properties={"number_of_netty_threads": "1"}),
    "2 Netty threads": Setting(properties={"number_of_netty_threads": "2"}),
    "1 thread to workers": Setting(properties={"netty_client_threads": "1"}),
    "no busy polling": Setting(profile={"busy_poll_us": 0}),
    "busy polling": Setting(profile={"busy_poll_us": 500}),
    "2 workers": Setting(profile={"workers": 2}),
    "no leak detection": Setting(["-Dio.netty.leakDetection.level=disabled"]),
}


class Tuned(Contender):
    """A server of this process, with one setting of its own."""

    name = AS_THEY_ARE
    title = "our server with a setting of its own"

    def __init__(self, workload: Workload, profile: str, name: str) -> None:
        super().__init__(workload)
        self.name = name  # type: ignore[misc]  # one class for all
        self._setting = SETTINGS[name]
        self._profile = load_profile(profile).model_copy(update=dict(self._setting.profile))
        self._ports = choose_ports(0, None, None, None)
        self._stack = ExitStack()
        self._pid = 0

    def __enter__(self) -> Self:
        version = self.workload.version
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuning-")))
            settings = properties(
                versions={version: self._profile}, promoted=version, ports=self._ports, store=self._store(directory)
            )
            server = stack.enter_context(
                loaded_torchserve(
                    {**settings, **self._setting.properties},
                    self._ports,
                    directory / "run",
                    version=version,
                    profile=self._profile,
                    java_flags=[*(use_flags(find_java(), JAR) if self._setting.cache else ()), *self._setting.flags],
                )
            )
            assert server.pid is not None
            self._pid = server.pid
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _store(self, directory: Path) -> Path:
        """A store with the workload's archive in it, which has the profile of this server."""
        name = archive_name(self.workload.version)
        unpack(self.workload.store / name, directory / "unpacked")
        store = directory / "store"
        store.mkdir()
        (store / name).write_bytes(with_config(directory / "unpacked", self._profile.model_config_yaml()))
        return store

    @property
    def url(self) -> str:
        return prediction_url(self._ports.url("inference"), self.workload.version)

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        """Java's; those of the workers are forks of a process that all servers here have in common."""
        return {"frontend": [psutil.Process(self._pid)]}


def first_requests(workload: Workload, profile: str, names: Sequence[str], repeats: int) -> dict[str, list[Slice]]:
    """One client, from the first request of a server on."""
    plan, found = Plan(), {name: list[Slice]() for name in names}
    for number, order in plan.shuffled(names, repeats):
        for name in order:
            with Tuned(workload, profile, name) as server:
                found[name].append(one_client(server, seconds=FIRST_S, number=number))
    return found


def under_load(plan: Plan, workload: Workload, profile: str, names: Sequence[str]) -> dict[str, dict[int, list[Slice]]]:
    """Rounds of wrk, by name and number of connections."""
    generator = Generator(find_wrk())
    with ExitStack() as stack:
        servers = Arena({name: stack.enter_context(Tuned(workload, profile, name)) for name in names})
        warm_up(plan, servers, generator, _ignore)
        slices = run_rounds(plan, servers, generator, _ignore)
    return {
        name: {
            connections: [
                part
                for part in slices
                if (part.contender, part.load, part.connections) == (name, "closed", connections)
            ]
            for connections in plan.connections
        }
        for name in names
    }


def _ignore(_: str) -> None:
    """No progress is shown."""


def ratio(ours: Sequence[Slice], base: Sequence[Slice], figure: str) -> Estimate:
    """Of `figure` within each round."""

    def value(part: Slice) -> float:
        if figure == "per_second":
            return part.per_second
        return part.cpu_us() if figure == "cpu" else part.latencies.percentile_ms(float(figure))

    return ratio_of_rounds({part.round: value(part) for part in ours}, {part.round: value(part) for part in base})


def show(estimate: Estimate) -> str:
    return f"{estimate.value:5.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="realtime")
    parser.add_argument("--artifact", type=Path, default=ARTIFACTS / "v0.2.0")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--starts", type=int, default=3, help="of each server alone, 0 for none")
    parser.add_argument("--warm-up-s", type=float, default=16.0)
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="this one, and others named so")
    arguments = parser.parse_args()
    names = [AS_THEY_ARE, *(name for name in arguments.setting or SETTINGS if name != AS_THEY_ARE)]
    with tempfile.TemporaryDirectory(prefix="tuning-store-") as store:
        workload = prepare_workload(arguments.artifact, Path(store))
        first = first_requests(workload, arguments.profile, names, arguments.starts)
        plan = Plan(connections=(1, 64), rounds=arguments.rounds, warm_up_s=arguments.warm_up_s, client_s=CLIENT_S)
        load = under_load(plan, workload, arguments.profile, names)
    print(f"profile {arguments.profile}, {workload.version}; ratios to the settings as they are")
    for name in names[1:]:
        print(name)
        if arguments.starts:
            parts = [f"P{percent} {show(ratio(first[name], first[AS_THEY_ARE], percent))}" for percent in ("50", "99")]
            print(f"    one client, first {FIRST_S:g} s: " + ", ".join(parts))
        for connections, base in load[AS_THEY_ARE].items():
            figures = {"P50": "50", "P99": "99", "requests/s": "per_second", "Java's processor time a request": "cpu"}
            parts = [f"{label} {show(ratio(load[name][connections], base, key))}" for label, key in figures.items()]
            print(f"    {connections} connections: " + ", ".join(parts))


if __name__ == "__main__":
    main()
