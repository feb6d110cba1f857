"""A gate as the verbs run it: from options to a gate that is driven, shown and written."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from carla_policy.card import ModelCard
from carla_policy.version import parse_version
from carla_policy_tools.console import err, out
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.source import Source
from carla_policy_tools.gating.errors import GateError
from carla_policy_tools.gating.gate import Load, Plan, drive_gate
from carla_policy_tools.gating.options import GateOptions
from carla_policy_tools.gating.rendering import render_gate
from carla_policy_tools.gating.result import Gate
from carla_policy_tools.gating.statistics import Margin
from carla_policy_tools.lifecycle.promoting import PassedGate
from carla_policy_tools.lifecycle.registry import RegistryFile

GATE_FILE = "gate.json"


def run_gate(registry_file: RegistryFile, version: str, words: Sequence[str], options: GateOptions) -> Gate:
    """Drive the gate that `options` describe, with a progress bar; `gate.json` is written where they say so."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that no copy is left
    plan = Plan(
        episodes=options.episodes,
        seed=options.seed,
        margin=Margin.parse(options.margin),
        environment=options.env,
        environment_arguments=options.env_arguments,
        max_steps=options.max_steps,
        wire=options.wire,
        themselves=options.live,
        load=_loader(options, words),
    )
    against = parse_version(options.against) if options.against else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("gate")

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        gate = drive_gate(registry_file, version, against, plan, progress)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / GATE_FILE).write_text(json.dumps(gate.to_json(), indent=1) + "\n")
    return gate


def require_gate(
    registry_file: RegistryFile, version: str, words: Sequence[str], options: GateOptions, *, show: bool
) -> PassedGate:
    """The gate that `version` has passed; `GateError` says why it has not."""
    gate = run_gate(registry_file, version, words, options)
    if show:
        out.print(render_gate(gate))
    if not gate.passed:
        raise GateError(f"{version} is not promoted, since it has not passed: {'; '.join(gate.reasons)}")
    return gate.to_promote()


def _loader(options: GateOptions, words: Sequence[str]) -> Load | None:
    """Loads the checkpoint as `carla-policy export` would; none where none is named."""
    from carla_policy_tools.export import commands  # noqa: F401 - its frameworks register themselves
    from carla_policy_tools.export.command import FRAMEWORKS, load_source

    if options.checkpoint is None:
        if words or options.framework:
            raise typer.BadParameter("belongs to a checkpoint: name its --checkpoint", param_hint="--from")
        return None
    if options.framework not in FRAMEWORKS:
        raise typer.BadParameter(f"expected one of {', '.join(FRAMEWORKS)}", param_hint="--from")
    framework, arguments = options.framework, [options.checkpoint, *words]

    def load(card: ModelCard, make: Callable[[], Environment]) -> Source:
        overlay: dict[str, Any] = card.model_dump(mode="json", exclude_none=True)
        return load_source(framework, arguments, overlay=overlay, env=make)

    return load
