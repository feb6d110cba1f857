"""A gate as text for people."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from carla_policy.actions import CONTROLS
from carla_policy_tools.gating.parity import Difference
from carla_policy_tools.gating.result import Gate, verdict
from carla_policy_tools.gating.statistics import unseen_share


def render_gate(gate: Gate) -> RenderableType:
    """What was compared, each episode, and what came out."""
    return Group(*_parts(gate))


def _parts(gate: Gate) -> Iterator[RenderableType]:
    beside = f" against {gate.other}" if gate.other else ""
    yield Text(f"gate of {gate.version} ({gate.digests[gate.version][:19]}){beside}")
    steps = f" of at most {gate.max_steps} steps" if gate.max_steps else ""
    arguments = "" if gate.environment_arguments == "{}" else f" {gate.environment_arguments}"
    yield Text(f"  driven:      {gate.wanted} episodes{steps} from seed {gate.seed} on, {gate.environment}{arguments}")
    yield Text(f"  in process:  {gate.in_process}")
    yield Text(f"  server asks: {gate.asked}, by {gate.wire}")
    if gate.asked_again:
        yield Text(f"  asked again: {gate.asked_again} times, after the card's own deadline")
    if gate.episodes:
        yield _episodes(gate)
    if gate.difference is None:
        yield Text(f"parity:   {gate.steps:,} steps of {len(gate.episodes)} episodes with the same bits")
    else:
        yield from _difference(gate, gate.difference)
    if gate.returns:
        p = (
            ""
            if gate.returns.p is None
            else f" (p = {gate.returns.p:.2g})"
            if gate.returns.p >= 1e-4
            else " (p < 0.0001)"
        )
        yield Text(f"return:   {verdict(gate.returns)}{p}")
    if gate.failures:
        found, n = gate.failures, gate.failures.episodes
        chance = f"; p = {found.p:.2g} of so many more by chance" if found.failures > found.others else ""
        yield Text(f"failures: {found.failures} of {n} episodes, {found.others} of {gate.other}'s{chance}")
        yield Text(f"          what {n} episodes did not show may happen in up to {unseen_share(n):.1%} of all")


def _episodes(gate: Gate) -> Table:
    other = gate.other
    beside = (f"{other}\nsteps", "\nreturn", "\nending", "\n+/-") if other else ()
    table = Table("\nseed", f"{gate.version}\nsteps", "\nreturn", "\nending", *beside, box=None, padding=(0, 1))
    for column in table.columns:
        column.justify = "left" if str(column.header).endswith("ending") else "right"
    for episode in gate.episodes:
        row = [str(episode.seed), str(episode.steps), f"{episode.total_return:.3f}", episode.ending]
        if episode.other_return is not None and episode.other_ending is not None:
            difference = f"{episode.total_return - episode.other_return:+.3f}"
            row += [str(episode.other_steps), f"{episode.other_return:.3f}", episode.other_ending, difference]
        table.add_row(*row)
    return table


def _difference(gate: Gate, found: Difference) -> Iterator[RenderableType]:
    first, second = ("first", "again") if not gate.repeatable else ("in process", "through the server")
    yield Text(f"parity:   {gate.steps + found.step:,} steps with the same bits, then {found}")
    table = Table("", first, second, "ULP", box=None, padding=(0, 1))
    for name, one, two, distance in _controls(found):
        table.add_row(name, one, two, distance, style="red" if distance != "0" else None)
    yield table
    rows = {f"by the drive {first}": found.row, f"by the drive {second}": found.other_row}
    for who, row in {"by both": found.row}.items() if found.row == found.other_row else rows.items():
        if row:
            seen = ", ".join(f"{name} {np.float32(value)!s}" for name, value in zip(gate.columns, row, strict=True))
            yield Text(f"observed {who}: {seen}")


def _controls(found: Difference) -> Iterator[tuple[str, str, str, str]]:
    if found.controls and found.other_controls:
        for name, one, two in zip(CONTROLS, found.controls, found.other_controls, strict=True):
            yield name, str(np.float32(one)), str(np.float32(two)), str(found.ulps[name])
