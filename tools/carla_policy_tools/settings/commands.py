"""The verbs about settings: `carla-policy config show`, `check` and `apply`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.options import Deployment, Json, Registry, RegistryFlag, Store, StoreFlag
from carla_policy_tools.paths import MODEL_STORE

app = typer.Typer(no_args_is_help=True, help="Show, check and change how a server runs.", rich_markup_mode="markdown")


@app.command()
def show(
    deployment: Deployment = None,
    store: StoreFlag = None,
    registry: RegistryFlag = None,
    as_json: Json = False,
) -> None:
    """Every setting that a start from here would have, and where it was said; then what a running server differs in.

    Examples: `carla-policy config show`, `carla-policy config show --deployment production --json`
    """
    from carla_policy_tools.settings.resolving import resolve
    from carla_policy_tools.settings.showing import describe

    resolved = resolve(deployment, {"store": store, "registry": registry})
    content = describe(resolved)
    if as_json:
        print_json(content)
        return
    _print(content)


@app.command()
def check(
    deployments: Annotated[
        list[str] | None, typer.Argument(help="Deployments, or .yaml files of your own; all in config by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read deployments, profiles and the environment as a start would; exit with 1 if one of them is wrong.

    Examples: `carla-policy config check`, `carla-policy config check production own.yaml`
    """
    from carla_policy_tools.settings.checking import findings

    found = list(findings(deployments or (), os.environ))
    if as_json:
        print_json({"findings": [dict(zip(("subject", "finding", "text"), item, strict=True)) for item in found]})
    else:
        for subject, finding, text in found:
            (err if finding == "wrong" else out).print(f"{finding:<5}  {subject}  {text}", markup=False)
    if any(finding == "wrong" for _, finding, _ in found):
        raise typer.Exit(1)


@app.command()
def apply(
    assignments: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE, such as workers=3, until its next start; NAME= for what is said elsewhere."),
    ] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Let a running server do what its deployment's file says now, as far as that needs no restart.

    No request is lost while workers change.

    Examples: `carla-policy config apply`, `carla-policy config apply workers=3 log_level=debug`
    """
    from carla_policy_tools.lifecycle.endpoint import require_server
    from carla_policy_tools.lifecycle.resizing import resize
    from carla_policy_tools.settings.applying import ask
    from carla_policy_tools.settings.comparing import differences, to_apply

    registry_file = RegistryFile.of(store, registry)
    server = require_server(registry_file)
    values, sources = to_apply(server, assignments or ())

    def announce() -> None:
        if values:
            ask(registry_file, server, values, sources)

    with err.status("applying") as status:
        workers = values.get("workers", server.workers)
        resized = resize(registry_file, server, workers, announce, lambda step: status.update(step))
    remaining = differences(require_server(registry_file))
    if as_json:
        print_json({"applied": values, "workers": resized, "differences": [found.to_json() for found in remaining]})
        return
    for name, value in values.items():
        out.print(f"{name}: {_text(value)}, from {sources[name]}", markup=False)
    for version, count in resized.items():
        out.print(f"{version}: {count} workers")
    if not values and not resized:
        out.print("nothing to change")
    for found in remaining:
        wanted = f"{found.source} says {_text(found.wanted)}"
        out.print(f"{found.name}: {wanted}, it has {_text(found.running)}: {found.advice}", markup=False)


def _print(content: dict[str, Any]) -> None:
    out.print(f"deployment {content['deployment']}, {content['file']}", markup=False)
    rows = [("setting", "value", "from", "changes")]
    rows += [
        (name, _text(said["value"]), said["source"], "restart" if said["restart"] else "live")
        for name, said in content["settings"].items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.print("  ".join(cells).rstrip(), markup=False)
    for version, served in content["profiles"].items():
        values = ", ".join(f"{key} {_text(value)}" for key, value in served["values"].items())
        out.print(f"{version}: profile {served['profile']} ({served['said_by']}): {values}", markup=False)
    server = content["server"]
    if server is None:
        out.print(f"no server serves {content['registry']}", markup=False)
        return
    out.print(f"a server is {server['state']}, started with {server['deployment']}", markup=False)
    for name, running in server["settings"].items():
        here = content["settings"].get(name, {})
        if running["value"] != here.get("value"):
            out.print(f"  {name}: it has {_text(running['value'])} ({running['source']})", markup=False)
    for found in server["differences"]:
        wanted = f"{found['source']} says {_text(found['wanted'])}"
        out.print(f"  {found['name']}: {wanted}, it has {_text(found['running'])}: {found['advice']}", markup=False)
    for line in server["drift"]:
        out.print(f"  {line}: `carla-policy reconcile`, or a restart where a profile has changed", markup=False)


def _text(value: Any) -> str:
    if value in (None, []):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
