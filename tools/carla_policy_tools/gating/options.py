"""What both `gate` and `promote --gate` are told; light enough for a `--help`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from carla_policy_tools.driving.defaults import FIRST_SEED

EPISODES, MARGIN = 20, "2%"

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- OPTION ...]",
        help="After --: what `carla-policy export` needs beside the --checkpoint, such as --vecnormalize FILE.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class GateOptions:
    """Options of a gate."""

    against: Annotated[str | None, typer.Option(help="Version to compare with; the promoted one by default.")] = None
    env: Annotated[
        str | None,
        typer.Option(help="Environment to drive in: `id`, `module:id`, `module:callable`; the shipped one by default."),
    ] = None
    env_arguments: Annotated[str, typer.Option(help="Arguments of the environment, as a JSON object.")] = "{}"
    episodes: Annotated[int, typer.Option(help="How many episodes each drives.", min=1)] = EPISODES
    seed: Annotated[int, typer.Option(help="Of the first episode; each has the next one.", min=0)] = FIRST_SEED
    max_steps: Annotated[int | None, typer.Option(help="Of an episode, if it does not end before.", min=1)] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(help="What the version was exported from: its framework's own predict drives in process."),
    ] = None
    framework: Annotated[
        str | None, typer.Option("--from", help="Of the checkpoint, as `carla-policy export` names it, such as sb3.")
    ] = None
    margin: Annotated[
        str,
        typer.Option(help="How much lower the return may be: a number, or % of the other version's mean |return|."),
    ] = MARGIN
    wire: Annotated[str, typer.Option(help="How observations travel: json, or npy.")] = "json"
    live: Annotated[
        bool, typer.Option("--live", help="Ask the versions' own workers, not copies; their metrics count it.")
    ] = False
    out: Annotated[Path | None, typer.Option(help="Directory to write gate.json to.")] = None


def with_gate_options(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb with the fields of `GateOptions` as options of its own; it gets them as `options`."""
    parameters = [p for p in inspect.signature(verb).parameters.values() if p.name != "options"]
    hints = {**get_type_hints(verb, include_extras=True), **get_type_hints(GateOptions, include_extras=True)}
    shared = inspect.signature(GateOptions).parameters.values()

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        options = GateOptions(**{name: values.pop(name) for name in GateOptions.__dataclass_fields__})
        verb(**values, options=options)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*parameters, *shared)]
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own}
    return run
