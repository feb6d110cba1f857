"""The main part: rounds that visit every contender in another order, each for a moment under each load.

What the machine does meanwhile happens to neighbours in time alike, so ratios within a round say more than figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.bench.arena import Arena
from benchmarks.bench.loads import Generator, arrivals, one_client
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Slice

SENDER_LIMIT = 3000.0
"""Requests a second that our sender keeps up with on the cores that it shares with a server."""

Step = Callable[[str], None]


def warm_up(plan: Plan, arena: Arena, generator: Generator, on_step: Step) -> None:
    """Load every contender for a while, at the fewest and at the most connections."""
    for contender in arena.contenders.values():
        on_step(f"warming up {contender.name}")
        one_client(contender, seconds=plan.warm_up_s / 2)
        generator.closed(contender, connections=max(plan.connections), seconds=plan.warm_up_s / 2)


def run_rounds(plan: Plan, arena: Arena, generator: Generator, on_step: Step) -> list[Slice]:
    """Closed loops: a single client, and each number of connections."""
    slices = []
    for number, order in plan.shuffled(list(arena.contenders), plan.rounds):
        for name in order:
            on_step(f"round {number + 1} of {plan.rounds}: {name}")
            contender = arena.contenders[name]
            slices.append(one_client(contender, seconds=plan.client_s, number=number))
            slices += [
                generator.closed(contender, connections=connections, seconds=plan.slice_s, number=number)
                for connections in plan.connections
            ]
    return slices


def run_arrivals(plan: Plan, arena: Arena, generator: Generator, closed: Sequence[Slice], on_step: Step) -> list[Slice]:
    """Open loops: at one rate that all can carry, and at a share of what each can carry by itself.

    Capacities are those of the closed loop with the most connections; where there was none, it is asked for now. Who
    answers nothing then is left out.
    """
    capacities: dict[str, float] = {}
    for name, contender in arena.contenders.items():
        seen = [
            part.per_second for part in closed if part.contender == name and part.connections == max(plan.connections)
        ]
        if not seen:
            seen = [generator.closed(contender, connections=max(plan.connections), seconds=plan.slice_s).per_second]
        if statistics.median(seen):
            capacities[name] = statistics.median(seen)
    if not capacities:
        return []
    common = min(SENDER_LIMIT, plan.arrival_share * min(capacities.values()))
    slices = []
    for number, order in plan.shuffled(list(capacities), plan.arrival_rounds):
        for name in order:
            on_step(f"arrivals {number + 1} of {plan.arrival_rounds}: {name}")
            own = min(SENDER_LIMIT, plan.arrival_share * capacities[name])
            contender, seconds = arena.contenders[name], plan.arrival_s
            slices.append(arrivals(contender, load="constant", rate=common, seconds=seconds, number=number))
            slices.append(arrivals(contender, load="share", rate=own, seconds=seconds, number=number))
    return slices
