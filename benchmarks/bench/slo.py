"""Goals for a run's figures, from `benchmarks/slo.yaml`, and whether they were met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from benchmarks.bench.figures import estimate, unit
from benchmarks.bench.results import Results
from benchmarks.bench.statistics import Estimate
from carla_policy.strict_yaml import parse_yaml

SLO_FILE = Path(__file__).parents[1] / "slo.yaml"

Outcome = Literal["met", "missed", "not measured"]


class Objective(BaseModel):
    """A limit on a figure of one contender, or on its ratio to another's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    name: str
    figure: str
    of: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("expected one of at_most and at_least")
        return self

    @property
    def limit(self) -> str:
        """In words, with the unit."""
        sign, value = ("≤", self.at_most) if self.at_most is not None else ("≥", self.at_least)
        return f"{sign} {value:,g}" + (f" x {self.against}" if self.against else f" {unit(self.figure)}")

    def holds(self, value: float) -> bool:
        """NaN holds nothing."""
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)


class Verdict(BaseModel):
    """What became of an objective; it is `certain` where the whole interval of the figure says the same."""

    objective: Objective
    outcome: Outcome
    found: Estimate | None = None
    certain: bool = False


def load_objectives(path: Path = SLO_FILE) -> list[Objective]:
    """The objectives in a file; `ValueError` names the one that does not fit."""
    try:
        return TypeAdapter(list[Objective]).validate_python(parse_yaml(path.read_bytes(), path.name))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def judge(results: Results, objectives: Sequence[Objective]) -> list[Verdict]:
    """A verdict for each objective; a value on the limit meets it."""
    return [_judge_one(results, objective) for objective in objectives]


def _judge_one(results: Results, objective: Objective) -> Verdict:
    found = estimate(results, objective.figure, objective.of, objective.against)
    if found is None:
        return Verdict(objective=objective, outcome="not measured")
    met = objective.holds(found.value)
    certain = objective.holds(found.low) == objective.holds(found.high) == met
    return Verdict(objective=objective, outcome="met" if met else "missed", found=found, certain=certain)
