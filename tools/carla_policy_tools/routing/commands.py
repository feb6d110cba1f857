"""The verbs that route traffic between versions; they find server and proxy by the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.options import Json, Reason, Registry, Store
from carla_policy_tools.paths import MODEL_STORE

if TYPE_CHECKING:
    from carla_policy_tools.routing.following import ProxyState
    from carla_policy_tools.routing.guarding import Guard
    from carla_policy_tools.routing.shadow import Report

TRIPPED = 3
"""Exit status of a guard that has taken a canary out."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A duration such as `90s`, `10m`, `1.5h`, in seconds."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * _UNITS[unit]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text!r}: expected a duration such as 90s, 10m or 1h")
    return value


For = Annotated[float | None, typer.Option("--for", parser=seconds, metavar="DURATION", help="Such as 90s, 10m or 1h.")]


def proxy(
    port: Annotated[int, typer.Option(help="Port for predictions; 0 takes a free one.", min=0, max=65535)] = 8090,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Route traffic between versions of the running server, as `split` and `shadow` say, until Ctrl-C.

    Vehicles ask the proxy instead of the server. An episode (`x-episode-id`) or vehicle (`x-vehicle-id`) keeps its
    version while shares change. Needs HAProxy: `make proxy`.

    Example: `carla-policy proxy --port 8090`
    """
    from carla_policy_tools.routing.following import follow

    def on_ready(state: ProxyState) -> None:
        if as_json:
            print_json({"status": "ready", **state.model_dump(mode="json")})
        else:
            out.print(f"ready: {state.url}/predictions/carla_policy; {_in_force(state)}")
            out.print("stop with Ctrl-C")

    def on_change(state: ProxyState) -> None:
        err.print(f"in force: {_in_force(state)}", markup=False)

    def on_trouble(reason: str) -> None:
        err.print(f"not followed: {reason}", markup=False)

    registry_file = RegistryFile.of(store, registry)
    follow(registry_file, port=port, on_ready=on_ready, on_change=on_change, on_trouble=on_trouble)
    if not as_json:
        err.print("stopped")


def split(
    shares: Annotated[
        list[str] | None, typer.Argument(help="Percent of the episodes by version, such as v0.2.0=90 v0.3.0=10.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the split: the promoted version answers.")] = False,
    reason: Reason = "",
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Divide requests that name no version among registered versions; a promotion or a rollback ends it.

    An episode keeps the version that it began with, unless that is taken out. The proxy does it within a second.

    Example: `carla-policy split v0.2.0=90 v0.3.0=10 --reason "canary of v0.3.0"`
    """
    from carla_policy_tools.routing import splitting

    if off == bool(shares):
        raise typer.BadParameter("expected shares such as v0.2.0=90 v0.3.0=10, or --off", param_hint="SHARES")
    registry_file = RegistryFile.of(store, registry)
    changed = splitting.split(registry_file, None if off else parse_shares(shares or []), reason=reason)
    in_force = splitting.wait_in_force(registry_file, changed.sequence)
    if as_json:
        answer = {"split": changed.split, "promoted": changed.promoted, "sequence": changed.sequence}
        print_json({**answer, "in_force": in_force})
        return
    out.print(f"split: {_shares(changed.split)}" if changed.split else f"no split: {changed.promoted} answers")
    if not in_force:
        out.print("no proxy runs: it is in force once `carla-policy proxy` does")


def shadow(
    version: Annotated[str, typer.Argument(help="A registered version that is to work beside the others.")],
    share: Annotated[int, typer.Option(help="Percent of the requests to copy.", min=1, max=100)] = 10,
    duration: For = None,
    requests: Annotated[int | None, typer.Option(help="End after so many copied requests.", min=1)] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Ask a version what it would have done, with copies of real requests, and compare it to what was done.

    Nobody drives with its answers, and no client waits for them. Ends with a report after --for, --requests or Ctrl-C.

    Example: `carla-policy shadow v0.3.0 --share 10 --for 60s`
    """
    from carla_policy_tools.routing import shadowing
    from carla_policy_tools.routing.following import stop_flag

    parsed = parse_version(version)
    with err.status(f"{parsed}: beginning") as status, stop_flag() as stopping:
        report = shadowing.shadow(
            RegistryFile.of(store, registry),
            parsed,
            share=share,
            duration_s=duration,
            requests=requests,
            stopping=stopping,
            on_progress=lambda report: status.update(f"{parsed}: {report.requests:,} requests compared"),
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)


def guard(
    duration: For = None,
    alpha: Annotated[
        float, typer.Option(help="Probability of a false alarm about a canary, over the whole watch.", min=0, max=1)
    ] = 0.01,
    failures: Annotated[int, typer.Option(help="Failures in a row that need no test.", min=1)] = 10,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Watch the canary of a split, and take it out if it is worse: errors, latency, refusals, interventions, OOD.

    Compares it to the promoted version by tests that stay valid however often they are made; all traffic goes back to
    that version if it fails one, and the history says why. Exits with 0 if nothing was found until --for or Ctrl-C,
    with 3 if the canary was taken out.

    Example: `carla-policy guard --for 10m`
    """
    from carla_policy_tools.routing import guarding
    from carla_policy_tools.routing.following import stop_flag

    with err.status("watching") as status, stop_flag() as stopping:
        done = guarding.guard(
            RegistryFile.of(store, registry),
            alpha=alpha,
            failures_in_a_row=failures,
            duration_s=duration,
            stopping=stopping,
            on_progress=lambda guarded: status.update(_progress(guarded)),
        )
    if as_json:
        print_json(done.to_json())
    else:
        _print_guard(done)
    if done.findings:
        raise typer.Exit(TRIPPED)


VERBS = (proxy, split, shadow, guard)


def parse_shares(texts: list[str]) -> dict[str, int]:
    """`["v0.2.0=90", "v0.3.0=10"]` as shares by version."""
    shares: dict[str, int] = {}
    for text in texts:
        name, _, share = text.partition("=")
        if not share.removesuffix("%").isdecimal():
            raise typer.BadParameter(f"{text!r}: expected a version and its percent, such as v0.3.0=10")
        version = parse_version(name)
        if version in shares:
            raise typer.BadParameter(f"{version} has two shares")
        shares[version] = int(share.removesuffix("%"))
    return shares


def _in_force(state: ProxyState) -> str:
    routed = f"split {_shares(state.split)}" if state.split else f"{state.promoted} answers"
    return routed + (f", {state.shadow_share} % mirrored" if state.shadow_share else "")


def _shares(shares: dict[str, int] | None) -> str:
    return " ".join(f"{version}={share}" for version, share in (shares or {}).items())


def _print_report(report: Report) -> None:
    baselines = ", ".join(sorted(report.baselines)) or "the version that answered"
    out.print(
        f"{report.shadow} against {baselines}: {report.requests:,} requests compared, {report.actions:,} actions, "
        f"{report.equal_actions:,} of them with the same bits"
    )
    table = Table("difference", "mean", "P99", "worst", "at speed (m/s)", box=None, padding=(0, 2))
    for name, found in report.differences.items():
        numbers = found.to_json(report.actions)
        cells = ["-" if numbers[key] is None else f"{numbers[key]:.3g}" for key in ("mean", "p99", "worst")]
        table.add_row(name, *cells, f"{found.worst_case['observation']['speed']:g}" if found.worst_case else "-")
    out.print(table)
    counts = {
        "answered by the shadow itself": report.same_version,
        "not comparable (state of a recurrent policy)": report.not_comparable,
        "too large to copy": report.too_large,
        "dropped": report.dropped,
        **{f"refused by the {who}: {kind}": n for who, kinds in report.refused.items() for kind, n in kinds.items()},
    }
    for what, count in counts.items():
        if count:
            out.print(f"  {count:,} {what}", markup=False)


def _progress(guarded: Guard) -> str:
    parts = [
        f"{canary}: {watch.arms[canary].requests:,} requests, next look at {watch.next_look:,}"
        for (_, canary), watch in guarded.watches.items()
    ]
    return "; ".join(parts)


def _print_guard(done: Guard) -> None:
    for (baseline, canary), watch in done.watches.items():
        table = Table(f"{canary} against {baseline}", baseline, canary, box=None, padding=(0, 2))
        summary = watch.summary()
        for name in summary[baseline]:
            cells = [summary[version][name] for version in (baseline, canary)]
            table.add_row(name.replace("_", " "), *("-" if cell is None else f"{cell:,.6g}" for cell in cells))
        out.print(table)
        out.print(f"  looks: {watch.looks}")
    for finding in done.findings:
        out.print(f"worse: {finding}", markup=False)
    if done.lost:
        out.print(f"  {done.lost:,} records came too fast to be read")
    if done.after:
        out.print(f"taken out: {_shares(done.after.split) or f'{done.after.promoted} answers'}", markup=False)
