"""The verbs that change and show versions; they find the running server by the registry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.gating.options import GateOptions, Words, with_gate_options
from carla_policy_tools.lifecycle.records import Registry as RegistryContent
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.options import Json, Reason, Registry, Store
from carla_policy_tools.paths import MODEL_STORE

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.status import Status

Version = Annotated[str, typer.Argument(help="A version, such as v0.3.0.")]


def register(
    version: Version,
    profile: Annotated[
        str | None, typer.Option(help="A profile in config/profiles or a .yaml file; the server's by default.")
    ] = None,
    reason: Reason = "",
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Load a version into the running server, beside those that it serves, once it has proven itself.

    Its archive is verified, its workers replay the golden vectors, and so does the server over HTTP. If anything fails,
    the version is removed again and nobody notices.

    Example: `carla-policy register v0.3.0 --reason "trained on rain"`
    """
    from carla_policy_tools.lifecycle import registering

    parsed = parse_version(version)
    with err.status(f"{parsed}: beginning") as status:
        done = registering.register(
            RegistryFile.of(store, registry),
            parsed,
            profile=profile,
            reason=reason,
            on_step=lambda step: status.update(f"{parsed}: {step}"),
        )
    if as_json:
        print_json({**vars(done), "registry": None, "promoted": done.registry.promoted})
        return
    same = "all" if done.bit_equal == done.actions else f"{done.bit_equal} of"
    out.print(f"registered {parsed}  {done.digest[:19]}")
    out.print(f"  {done.actions} golden actions replayed over HTTP, {same} with the same bits as in the archive alone")
    out.print(f"  promoted is {done.registry.promoted}; `carla-policy promote {parsed}` changes that")


@with_gate_options
def promote(
    version: Version,
    options: GateOptions,
    words: Words = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Only if it passes `carla-policy gate`, whose options follow.")
    ] = False,
    reason: Reason = "",
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Let a registered version answer where none is named.

    Its workers must be ready and answer a golden observation at this moment. A split ends. With --gate it must drive
    through the server as in process, and not worse than the promoted one; the history then says what was compared.

    Example: `carla-policy promote v0.3.0 --gate --reason "won the A/B test"`
    """
    from carla_policy_tools.lifecycle import promoting

    registry_file, parsed, passed = RegistryFile.of(store, registry), parse_version(version), None
    if gate:
        from carla_policy_tools.gating.running import require_gate

        passed = require_gate(registry_file, parsed, words or (), options, show=not as_json)
    elif words or options != GateOptions():
        raise typer.BadParameter("options of a gate do nothing without it", param_hint="--gate")
    done = promoting.promote(registry_file, parsed, reason=reason, gate=passed)
    _print_promoted(done, as_json)


def rollback(
    to: Annotated[str | None, typer.Option(help="Version to go back to; the one promoted before by default.")] = None,
    reason: Reason = "",
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Let the version that was promoted before answer again, whatever has become of the present one.

    A split ends. Without a running server, the next start obeys.

    Example: `carla-policy rollback --reason "brakes too late"`
    """
    from carla_policy_tools.lifecycle import promoting

    target = parse_version(to) if to else None
    _print_promoted(promoting.rollback(RegistryFile.of(store, registry), target, reason=reason), as_json)


def retire(
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Also if requests may be lost.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for it to finish its work.", min=0)] = 30.0,
    reason: Reason = "",
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Take a version off the server after it has answered all that it was asked; its archive stays.

    Example: `carla-policy retire v0.1.0`
    """
    from carla_policy_tools.lifecycle import retiring

    parsed = parse_version(version)
    with err.status(f"{parsed}: finishing its work"):
        done = retiring.retire(RegistryFile.of(store, registry), parsed, reason=reason, force=force, timeout_s=timeout)
    if as_json:
        print_json({"retired": parsed, "promoted": done.promoted, "versions": list(done.versions)})
    else:
        out.print(f"retired {parsed}; registered: {', '.join(done.versions)}")


def reconcile(store: Store = MODEL_STORE, registry: Registry = None, as_json: Json = False) -> None:
    """Make the running server what the registry declares: load, promote, restart, remove.

    Example: `carla-policy reconcile`
    """
    from carla_policy_tools.lifecycle import reconciling

    with err.status("comparing") as status:
        done = reconciling.reconcile(RegistryFile.of(store, registry), lambda step: status.update(step))
    _print_status(done, as_json)
    if done.drift:
        raise typer.Exit(1)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show what is declared, what runs, and how they differ.

    Example: `carla-policy status --watch`
    """
    from rich.live import Live

    from carla_policy_tools.lifecycle.rendering import render_status
    from carla_policy_tools.lifecycle.status import read_status

    registry_file = RegistryFile.of(store, registry)
    if not watch:
        _print_status(read_status(registry_file), as_json)
        return
    try:
        if as_json:
            while True:
                print_json(read_status(registry_file).to_json())
                time.sleep(1)
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(render_status(read_status(registry_file)), refresh=True)
                time.sleep(1)
    except KeyboardInterrupt:
        return


def history(
    last: Annotated[int, typer.Option(help="How many changes, the newest last; 0 for all.", min=0)] = 20,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show who changed which version when, and why.

    Example: `carla-policy history --last 0`
    """
    from carla_policy_tools.lifecycle.rendering import history_table

    events = RegistryFile.of(store, registry).read().history[-last:]
    if as_json:
        print_json({"history": [event.model_dump(mode="json", exclude_none=True) for event in events]})
    elif events:
        out.print(history_table(events))
    else:
        out.print("nothing has changed yet")


def health(store: Store = MODEL_STORE, registry: Registry = None, as_json: Json = False) -> None:
    """Exit with 0 if every declared version is ready and the promoted one answers a golden observation, else with 1.

    Example: `carla-policy health`
    """
    from carla_policy_tools.lifecycle.health import check_health

    found = check_health(RegistryFile.of(store, registry))
    if as_json:
        print_json(found.to_json())
    elif found.ready:
        out.print("ok")
    for finding in () if as_json else found.findings:
        err.print(f"failing: {finding}", markup=False)
    if not found.ready:
        raise typer.Exit(1)


VERBS = (register, promote, rollback, retire, reconcile, status, history, health)


def _print_promoted(registry: RegistryContent, as_json: bool) -> None:
    event = registry.history[-1]
    if as_json:
        print_json({"promoted": registry.promoted, "previous": registry.rollback_target(), "sequence": event.sequence})
    else:
        out.print(f"promoted: {registry.promoted}; a rollback would go to {registry.rollback_target() or 'none'}")


def _print_status(found: Status, as_json: bool) -> None:
    from carla_policy_tools.lifecycle.rendering import render_status

    if as_json:
        print_json(found.to_json())
    else:
        out.print(render_status(found))
