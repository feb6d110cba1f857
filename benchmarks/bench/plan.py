"""What a run measures, how often and for how long."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

SECTIONS = ("starts", "rounds", "arrivals", "bulk", "sweeps", "runtimes")
"""In the order in which they run: what needs a machine without other servers comes first."""

ALL_CONTENDERS = 10


@dataclass(frozen=True)
class Plan:
    """Times are in seconds. wrk runs for whole seconds, at least one."""

    quick: bool = False
    sections: Collection[str] = SECTIONS
    contenders: Sequence[str] = ()
    """Names; all for none."""
    connections: Sequence[int] = (1, 16, 64)
    rounds: int = 6
    slice_s: float = 1.0
    client_s: float = 1.0
    """As `slice_s`, for our own single client."""
    warm_up_s: float = 4.0
    starts: int = 3
    start_s: float = 5.0
    start_requests: int = 2000
    arrival_rounds: int = 3
    arrival_s: float = 1.5
    arrival_share: float = 0.5
    """Of each contender's own capacity, and of the smallest capacity for the rate that all are asked at."""
    bulk_rows: Sequence[int] = (1, 64, 1024, 8192)
    bulk_rounds: int = 5
    bulk_repeats: int = 5
    sweep_versions: Sequence[int] = (1, 2, 4)
    sweep_workers: Sequence[int] = (1, 2)
    sweep_s: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.sections) - set(SECTIONS):
            raise ValueError(f"{', '.join(sorted(unknown))}: no section; choose of {', '.join(SECTIONS)}")

    def shuffled(self, names: Sequence[str], rounds: int) -> Iterator[tuple[int, list[str]]]:
        """The number of each round and the order in which it visits `names`: no contender always follows another."""
        chance = random.Random(self.seed)
        for number in range(rounds):
            order = list(names)
            chance.shuffle(order)
            yield number, order

    def steps(self) -> int:
        """About how many steps the progress bar has."""
        count = len(self.contenders) or ALL_CONTENDERS
        bulk = len(self.bulk_rows) * self.bulk_rounds * 7
        parts = {
            "starts": 4 * self.starts,
            "rounds": (2 + self.rounds) * count,
            "arrivals": self.arrival_rounds * count,
            "bulk": bulk,
            "sweeps": len(self.sweep_versions) * len(self.sweep_workers),
            "runtimes": 18,
        }
        return 1 + sum(parts[section] for section in self.sections)

    def describe(self) -> dict[str, float | int | str | bool]:
        """For the results."""
        return {
            "sections": " ".join(self.sections),
            "connections": " ".join(map(str, self.connections)),
            "rounds": self.rounds,
            "slice_s": self.slice_s,
            "client_s": self.client_s,
            "warm_up_s": self.warm_up_s,
            "starts": self.starts,
            "start_s": self.start_s,
            "start_requests": self.start_requests,
            "arrival_rounds": self.arrival_rounds,
            "arrival_s": self.arrival_s,
            "arrival_share": self.arrival_share,
            "bulk_rounds": self.bulk_rounds,
            "sweep_s": self.sweep_s,
            "seed": self.seed,
        }


QUICK_CONTENDERS = ("ours-realtime", "ours-throughput", "noop-realtime", "noop-throughput", "fastapi-2", "handwritten")


def quick_plan(sections: Collection[str] = ("rounds",), contenders: Sequence[str] = ()) -> Plan:
    """About a minute: the main ratios, from fewer rounds of fewer contenders."""
    return Plan(
        quick=True,
        sections=sections,
        contenders=contenders or QUICK_CONTENDERS,
        connections=(1, 64),
        rounds=3,
        client_s=0.3,
        warm_up_s=1.0,
        starts=1,
        arrival_rounds=1,
        bulk_rounds=2,
        bulk_repeats=3,
        sweep_versions=(1, 2),
        sweep_workers=(1,),
        sweep_s=1.0,
    )
