"""Drives the grid of a latency-aware evaluation, in several processes; see `latency`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from carla_policy.policy import Policy
from carla_policy_tools.driving.delayed import Clock, drive_delayed
from carla_policy_tools.driving.latency import Condition, Evaluation, Outcome, Plan, cell_of
from carla_policy_tools.driving.packaged import load_packaged
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.simulation import Simulation, simulation_of
from carla_policy_tools.driving.strategies import strategy_of

Progress = Callable[[int, int], None]
"""Told after each episode how many are over, of how many."""


class Driver:
    """Drives episodes of a plan, any condition, in this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.policy: Policy = load_packaged(plan.source)
        self._simulation: Simulation = simulation_of(self.policy.card, plan.environment, plan.environment_arguments)
        self.clock = Clock.of(self._simulation, plan.step_s)
        self._pilot = PolicyPilot(self.policy)

    def drive(self, condition: Condition, seed: int) -> Outcome:
        fallback = strategy_of(condition.strategy or "brake")
        episode = drive_delayed(
            self._simulation, self._pilot, seed, condition.delay, fallback, self.clock, self._plan.max_steps
        )
        share = episode.count("fallback") / len(episode.steps)
        return Outcome(seed, episode.total_return, len(episode.steps), episode.ending, share)

    def close(self) -> None:
        self._simulation.__exit__()


def evaluate(plan: Plan, processes: int = 2, on_episode: Progress = lambda *_: None) -> Evaluation:
    """Drive the grid. The result is the same with any number of `processes`; one drives in this process."""
    driver, conditions = Driver(plan), plan.conditions
    tasks = [(number, seed) for seed in plan.seeds for number in range(len(conditions))]
    outcomes: dict[tuple[int, int], Outcome] = {}
    try:
        if processes == 1:
            for number, seed in tasks:
                outcomes[number, seed] = driver.drive(conditions[number], seed)
                on_episode(len(outcomes), len(tasks))
        else:
            _drive_in_processes(plan, processes, tasks, outcomes, on_episode)
    finally:
        driver.close()
    driven = [tuple(outcomes[number, seed] for seed in plan.seeds) for number in range(len(conditions))]
    plain = [outcome.total_return for outcome in driven[0]]
    cells = tuple(cell_of(condition, own, plain) for condition, own in zip(conditions, driven, strict=True))
    card = driver.policy.card
    return Evaluation(card.version, card.card_hash, plan, driver.clock.tick_s, cells)


def _drive_in_processes(
    plan: Plan,
    processes: int,
    tasks: Sequence[tuple[int, int]],
    outcomes: dict[tuple[int, int], Outcome],
    on_episode: Progress,
) -> None:
    # A fork would copy torch's threads in whatever state they are.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _prepare, (plan,))
    try:
        waiting = {pool.submit(_drive, number, seed): (number, seed) for number, seed in tasks}
        for future in as_completed(waiting):
            outcomes[waiting[future]] = future.result()
            on_episode(len(outcomes), len(tasks))
    finally:
        pool.shutdown(cancel_futures=True)


_driver: Driver | None = None
_conditions: list[Condition] = []


def _prepare(plan: Plan) -> None:
    """In each process, once: a policy and a simulation of its own, on one thread."""
    global _driver, _conditions
    import torch

    torch.set_num_threads(1)
    _driver, _conditions = Driver(plan), plan.conditions


def _drive(number: int, seed: int) -> Outcome:
    assert _driver is not None
    return _driver.drive(_conditions[number], seed)
