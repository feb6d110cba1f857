"""Drive the gate: a version in this process and through the server, and the version that it is to replace."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from carla_policy.card import ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.loading import load_policy
from carla_policy.policy import Policy
from carla_policy_tools.archive import check
from carla_policy_tools.driving.defaults import ENVIRONMENT
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import Pilot, PolicyPilot
from carla_policy_tools.driving.records import Episode
from carla_policy_tools.driving.simulation import Simulation, simulation_of
from carla_policy_tools.export.environments import Environment, make_env
from carla_policy_tools.export.source import Source
from carla_policy_tools.gating.asking import AskingPilot, check_wire
from carla_policy_tools.gating.copies import NOBODY, asked
from carla_policy_tools.gating.errors import GateError
from carla_policy_tools.gating.in_process import SourcePilot
from carla_policy_tools.gating.parity import Difference, first_difference
from carla_policy_tools.gating.result import Driven, Gate
from carla_policy_tools.gating.statistics import Margin, compare_failures, compare_returns
from carla_policy_tools.lifecycle.endpoint import Endpoint, require_server
from carla_policy_tools.lifecycle.promoting import check_answers, check_registered
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import archive_name

FAILURES = ("collision", "off_road")
OWN_POLICY = "the archive's own policy"
REPEATED_STEPS = 50
"""Of the episode that is driven more than once in process, to see whether the environment follows its seed."""

Progress = Callable[[str, int, int], None]
"""What is under way, and how many drives are done of how many."""
Load = Callable[[ModelCard, Callable[[], Environment]], Source]


@dataclass(frozen=True)
class Plan:
    """What is to be driven; `environment` is the shipped one by default.

    `load` gives what the version was exported from, for its card and an environment's maker; without it the version
    drives by itself in this process. `themselves` is to ask the versions' own workers, whose metrics count it.
    """

    episodes: int
    seed: int
    margin: Margin
    environment: str | None = None
    environment_arguments: str = "{}"
    max_steps: int | None = None
    wire: str = "json"
    themselves: bool = False
    load: Load | None = None

    @property
    def driven(self) -> str:
        return self.environment or ENVIRONMENT


def drive_gate(
    registry_file: RegistryFile, version: str, against: str | None, plan: Plan, progress: Progress = lambda *_: None
) -> Gate:
    """Compare `version` with itself in process, and with `against`, the promoted version by default.

    What is promoted itself is not compared with another. Raises `RegistryError` (`GateError`) where nothing can be
    compared, `ArtifactError` for an archive that is not the registered one, and `ValueError` where the environment or
    the options do not fit.
    """
    torch.set_num_threads(1)  # as in a worker: several sum up in another order
    endpoint, registry = require_server(registry_file), registry_file.read()
    other = against or registry.promoted
    versions = [version] if other in (None, version) else [version, str(other)]
    with endpoint.management() as management:
        for name in versions:
            check_registered(registry, name)
            check_answers(management, endpoint, name)
    policies = {name: _load(registry_file, registry, name) for name in versions}
    with ExitStack() as stack:
        course = Course(stack, partial(_simulation, plan), plan)
        pilot, in_process = _in_process(policies[version], plan)
        progress("twice in process", 0, 1)
        trouble = course.repeat(pilot, policies[version].card)
        repeatable, what, again = trouble is None, NOBODY, 0
        driven: list[Driven] = []
        if repeatable:
            answering = stack.enter_context(
                asked(registry_file, endpoint, versions, lambda step: progress(step, 0, 1), plan.themselves)
            )
            what = answering.what
            pilots = {
                name: stack.enter_context(_asking(answering.urls[name], policy, endpoint, plan))
                for name, policy in policies.items()
            }
            trouble = course.drive(version, pilot, pilots, policies, driven, progress)
            again = sum(each.asked_again for each in pilots.values())
    gate = Gate(
        version=version,
        other=versions[1] if len(versions) > 1 else None,
        promoted=registry.promoted,
        digests={name: registry.versions[name].digest for name in versions},
        environment=plan.driven,
        environment_arguments=plan.environment_arguments,
        seed=plan.seed,
        wanted=plan.episodes,
        max_steps=plan.max_steps,
        wire=plan.wire,
        in_process=in_process,
        asked=what,
        asked_again=again,
        repeatable=repeatable,
        difference=trouble,
        columns=policies[version].card.observation.names,
        episodes=driven,
    )
    return gate if gate.other is None or trouble else _compared(gate, plan.margin)


class Course:
    """Environments, one for each who drives, and the episodes in them."""

    def __init__(self, stack: ExitStack, simulate: Callable[[ModelCard], Simulation], plan: Plan) -> None:
        """`simulate` makes an environment for a card; `stack` closes it."""
        self._stack, self._simulate, self._plan = stack, simulate, plan

    def repeat(self, pilot: Pilot, card: ModelCard) -> Difference | None:
        """Where the first episode differs if it is driven again in process, in the same environment and a new one."""
        plan, one, two = self._plan, self._enter(card), self._enter(card)
        steps = min(REPEATED_STEPS, plan.max_steps or REPEATED_STEPS)
        drives = [self._episode(simulation, pilot, 0, plan.seed, steps) for simulation in (one, one, two)]
        found = [first_difference(drives[0], again) for again in drives[1:]]
        return next(filter(None, found), None)

    def drive(
        self,
        version: str,
        pilot: Pilot,
        pilots: Mapping[str, Pilot],
        policies: Mapping[str, Policy],
        driven: list[Driven],
        progress: Progress,
    ) -> Difference | None:
        """Drive all episodes into `driven`, or up to the first at which `version` parts from `pilot` in process."""
        plan, total = self._plan, self._plan.episodes * (len(pilots) + 1)
        at_home = self._enter(policies[version].card)
        served = {name: self._enter(policy.card) for name, policy in policies.items()}
        for number in range(plan.episodes):
            seed, done = plan.seed + number, number * (len(pilots) + 1)
            progress(f"seed {seed}: in process", done, total)
            expected = self._episode(at_home, pilot, number, seed, plan.max_steps)
            episodes = {}
            for place, (name, asking) in enumerate(pilots.items(), start=1):
                progress(f"seed {seed}: {name} through the server", done + place, total)
                episodes[name] = self._episode(served[name], asking, number, seed, plan.max_steps)
                if name == version and (difference := first_difference(expected, episodes[name])):
                    return difference
            others = [episode for name, episode in episodes.items() if name != version]
            driven.append(_driven(episodes[version], others[0] if others else None))
        progress("done", total, total)
        return None

    def _enter(self, card: ModelCard) -> Simulation:
        return self._stack.enter_context(self._simulate(card))

    def _episode(self, simulation: Simulation, pilot: Pilot, number: int, seed: int, max_steps: int | None) -> Episode:
        try:
            (episode,) = drive_episodes(simulation, pilot, [seed], Pace(), max_steps)
        except GateError as error:
            raise GateError(f"episode {number} (seed {seed}), {error}") from None
        episode.number = number
        return episode


def _simulation(plan: Plan, card: ModelCard) -> Simulation:
    try:
        return simulation_of(card, plan.driven, plan.environment_arguments)
    except ValueError as error:
        told = "" if plan.environment else f"; name the --env of {card.version}, if it was not the shipped one"
        raise ValueError(f"{error}{told}") from None


def _load(registry_file: RegistryFile, registry: Registry, version: str) -> Policy:
    """The policy in a registered archive; `ArtifactError` if the store's is another one by now."""
    archive, expected = registry_file.store / archive_name(version), registry.versions[version].digest
    with tempfile.TemporaryDirectory(prefix="carla-policy-gate-") as scratch:
        _, digest = check(archive, Path(scratch))
        if digest != expected:
            raise ArtifactError(f"{archive}: has changed since it was registered: expected {expected}, got {digest}")
        return load_policy(Path(scratch)).policy


def _in_process(policy: Policy, plan: Plan) -> tuple[Pilot, str]:
    if plan.load is None:
        return PolicyPilot(policy), OWN_POLICY
    source = plan.load(policy.card, make_env(plan.driven, plan.environment_arguments))
    return SourcePilot(source, policy), f"the framework's own predict, {source.description}"


def _asking(url: str, policy: Policy, endpoint: Endpoint, plan: Plan) -> AskingPilot:
    card = policy.card
    check_wire(plan.wire, card)
    return AskingPilot(
        url, card.version, recurrent=card.recurrent is not None, wire=plan.wire, auth=endpoint.auth("inference")
    )


def _driven(episode: Episode, other: Episode | None) -> Driven:
    trajectory = hashlib.sha256()
    for step in episode.steps:
        trajectory.update(step.row.tobytes() + step.answer.controls.tobytes())
    return Driven(
        seed=episode.seed,
        steps=len(episode.steps),
        total_return=episode.total_return,
        ending=episode.ending,
        trajectory=f"sha256:{trajectory.hexdigest()}",
        other_return=other.total_return if other else None,
        other_steps=len(other.steps) if other else None,
        other_ending=other.ending if other else None,
    )


def _compared(gate: Gate, margin: Margin) -> Gate:
    """`gate` with the tests of its returns and failures."""
    returns = [episode.total_return for episode in gate.episodes]
    others = [float(episode.other_return or 0.0) for episode in gate.episodes]
    failed = [episode.ending in FAILURES for episode in gate.episodes]
    others_failed = [episode.other_ending in FAILURES for episode in gate.episodes]
    return replace(
        gate,
        returns=compare_returns(returns, others, margin.of(others)),
        failures=compare_failures(failed, others_failed),
    )
