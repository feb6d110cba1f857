"""What a gate came to: whether the version passed, why not, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from carla_policy_tools.gating.parity import Difference
from carla_policy_tools.gating.statistics import NOT_WORSE, FailureTest, ReturnTest, unseen_share
from carla_policy_tools.lifecycle.events import GateResult
from carla_policy_tools.lifecycle.promoting import PassedGate


@dataclass(frozen=True)
class Driven:
    """One episode: how it went through the server, and for the other version, where there is one.

    `trajectory` is the SHA-256 of its observations and controls, to be held against another gate's.
    """

    seed: int
    steps: int
    total_return: float
    ending: str
    trajectory: str
    other_return: float | None = None
    other_steps: int | None = None
    other_ending: str | None = None


@dataclass(frozen=True)
class Gate:
    """A gate that was driven; `other` is the version that `version` was compared with, `None` for parity alone.

    `in_process` says by whose inference the version drove in this process, `asked` what answered through the server,
    and `asked_again` how often that was too late for the card's own deadline. `repeatable` is whether a drive in this
    process was the same twice; where it was not, `difference` is of these two, and nothing else was driven.
    """

    version: str
    other: str | None
    promoted: str | None
    digests: Mapping[str, str]
    environment: str
    environment_arguments: str
    seed: int
    wanted: int
    max_steps: int | None
    wire: str
    in_process: str
    asked: str
    episodes: Sequence[Driven]
    repeatable: bool
    difference: Difference | None
    columns: Sequence[str]
    """Names of what is observed."""
    returns: ReturnTest | None = None
    failures: FailureTest | None = None
    asked_again: int = 0

    @property
    def steps(self) -> int:
        return sum(episode.steps for episode in self.episodes)

    @property
    def reasons(self) -> list[str]:
        """Why it has not passed; empty if it has."""
        if difference := self.difference:
            if difference.of_environment:
                return [f"{self.environment} does not follow its seed, so nothing can be compared: {difference}"]
            if not self.repeatable:
                return [
                    f"{self.in_process} acts differently for the same observation, twice in this process: {difference}"
                ]
            return [f"{self.version} does not drive through the server as in process: {difference}"]
        found = []
        if (test := self.returns) and test.verdict != NOT_WORSE:
            found.append(f"return of {self.version} against {self.other}: {verdict(test)}")
        if (failures := self.failures) and not failures.passed:
            found.append(
                f"{failures.failures} of {failures.episodes} episodes of {self.version} end in a collision or off the "
                f"road, {failures.others} of {self.other}"
            )
        return found

    @property
    def passed(self) -> bool:
        return not self.reasons

    def to_promote(self) -> PassedGate:
        """What a promotion checks and keeps."""
        returns, failures = self.returns, self.failures
        result = GateResult(
            environment=f"{self.environment} {self.environment_arguments}".removesuffix(" {}"),
            in_process=self.in_process,
            seed=self.seed,
            episodes=len(self.episodes),
            steps=self.steps,
            against=self.other,
            difference=returns.difference if returns else None,
            bound=returns.bound if returns else None,
            margin=returns.margin if returns else None,
            p=returns.p if returns else None,
            failures=failures.failures if failures else None,
            other_failures=failures.others if failures else None,
        )
        return PassedGate(result, self.digests, self.promoted)

    def to_json(self) -> dict[str, Any]:
        difference = self.difference
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            "version": self.version,
            "against": self.other,
            "promoted": self.promoted,
            "digests": dict(self.digests),
            "environment": self.environment,
            "environment_arguments": self.environment_arguments,
            "seed": self.seed,
            "episodes_wanted": self.wanted,
            "max_steps": self.max_steps,
            "wire": self.wire,
            "in_process": self.in_process,
            "asked": self.asked,
            "asked_again": self.asked_again,
            "parity": {
                "same": difference is None,
                "repeatable": self.repeatable,
                "episodes": len(self.episodes),
                "steps": self.steps,
                "difference": difference and {**asdict(difference), "ulps": difference.ulps},
            },
            "returns": self.returns and asdict(self.returns),
            "failures": self.failures and {**asdict(self.failures), "passed": self.failures.passed},
            "unseen_share": unseen_share(len(self.episodes)) if self.episodes else None,
            "episodes": [asdict(episode) for episode in self.episodes],
        }


def verdict(test: ReturnTest) -> str:
    """The outcome of a test of returns in words."""
    numbers = f"{test.difference:+.4g} in the mean of {test.episodes} episodes"
    if test.bound is not None:
        numbers += f", from {test.bound:+.4g} on at 95 %, where {-test.margin:.4g} is allowed"
    if test.verdict == NOT_WORSE or test.bound is None:
        room = "" if test.bound is not None else f"; {test.needed} episodes or more may decide"
        return f"{test.verdict}: {numbers}{room}"
    if test.verdict != "undecided":
        return f"{test.verdict}: {numbers}"
    if test.needed is None:
        return f"{test.verdict}: {numbers}; with this mean no number of episodes would let it pass"
    return f"{test.verdict}: {numbers}; about {test.needed:,} episodes would tell"
