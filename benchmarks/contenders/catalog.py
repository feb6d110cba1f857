"""All contenders by name, in the order of the report."""

from __future__ import annotations

from benchmarks.contenders.base import Contender
from benchmarks.contenders.noop import NoopRealtime, NoopThroughput
from benchmarks.contenders.ours import OursRealtime, OursThroughput
from benchmarks.contenders.services import BentoML, FastAPI1, FastAPI2, HandWritten, LitServe
from benchmarks.contenders.textbook import Textbook

CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        OursRealtime,
        OursThroughput,
        NoopRealtime,
        NoopThroughput,
        FastAPI2,
        FastAPI1,
        Textbook,
        LitServe,
        BentoML,
        HandWritten,
    )
}


def chosen(names: list[str]) -> list[type[Contender]]:
    """The contenders of `names`, all for none; `ValueError` for a name that there is not."""
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise ValueError(f"{', '.join(unknown)}: no contender; choose of {', '.join(CONTENDERS)}")
    return [CONTENDERS[name] for name in names or CONTENDERS]
