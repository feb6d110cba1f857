"""All contenders side by side, started and checked: who answers wrongly is not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.bench.correctness import WrongAnswer, check_answers
from benchmarks.bench.results import Participant
from benchmarks.contenders.base import Contender, StartError, started
from benchmarks.contenders.workload import Workload


@dataclass
class Arena:
    """The contenders that run and answer rightly, by name, and what became of each that was to."""

    contenders: dict[str, Contender] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)

    def refuse(self, name: str, reason: str) -> None:
        """Take a contender out."""
        self.contenders.pop(name, None)
        self.participants[name] = self.participants[name].model_copy(update={"refused": reason})

    def check_again(self) -> None:
        """Refuse those that do not answer rightly any more."""
        for name, contender in list(self.contenders.items()):
            try:
                check_answers(contender)
            except (WrongAnswer, OSError) as error:
                self.refuse(name, f"after the measurement: {error}")


@contextmanager
def arena(
    kinds: Sequence[type[Contender]], workload: Workload, on_step: Callable[[str], None] = lambda _: None
) -> Iterator[Arena]:
    """Start all of `kinds` and check their answers; on leaving, all are gone."""
    with ExitStack() as stack:
        found = Arena()
        for kind in kinds:
            on_step(f"starting {kind.name}")
            found.participants[kind.name] = Participant(name=kind.name, title=kind.title)
            if missing := kind.missing():
                found.refuse(kind.name, f"not installed: {', '.join(missing)}")
                continue
            try:
                contender = stack.enter_context(started(partial(kind, workload)))
                found.contenders[kind.name] = contender
                difference = check_answers(contender)
            except (StartError, WrongAnswer, OSError) as error:
                found.refuse(kind.name, str(error))
            else:
                update = {"largest_difference": difference if contender.acts else None}
                found.participants[kind.name] = found.participants[kind.name].model_copy(update=update)
        yield found
