"""The verb about a server's log: `carla-policy logs`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from carla_policy.version import parse_version
from carla_policy_tools.options import Registry, Store
from carla_policy_tools.paths import MODEL_STORE

LEVELS = ("debug", "info", "warn", "error")


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last events; 0 for all.", min=0)] = 100,
    level: Annotated[str | None, typer.Option(help=f"From this level on: {', '.join(LEVELS)}.")] = None,
    event: Annotated[str | None, typer.Option(help="Events of this name, such as request_error.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Of one request: its x-request-id, the client's own, or the id of its trace.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Of one version's workers.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run directory of a server that has ended; else the running one is read.")
    ] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Annotated[bool, typer.Option("--json", help="The events as they are, a JSON object a line.")] = False,
) -> None:
    """Show what the server and its workers have logged, by time.

    Example: `carla-policy logs --follow --level warn`
    """
    from carla_policy_tools import log_reading

    if level is not None and level.lower() not in (*LEVELS, "warning"):
        raise typer.BadParameter(f"expected one of {', '.join(LEVELS)}, got {level!r}", param_hint="--level")
    asked = parse_version(version) if version else None
    wanted = log_reading.Filter(level=level, event=event, request_id=request_id, version=asked)
    directory = _directory(run_dir, store, registry)

    def show(found: Mapping[str, Any]) -> None:
        print(json.dumps(found, separators=(",", ":")) if as_json else log_reading.as_text(found), flush=True)

    try:
        began = datetime.now(timezone.utc).isoformat()
        coming = log_reading.new_events(directory) if follow else iter(())
        first = next(coming, None)
        past = log_reading.past_events(directory, wanted)
        for found in past[-lines:] if lines else past:
            show(found)
        shown = [found for found in past if str(found.get("time")) >= began]
        for came in itertools.chain([first], coming):
            if came and wanted(came) and came not in shown:
                show(came)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _directory(run_dir: Path | None, store: Path, registry: Path | None) -> Path:
    """Where the logs are; `RegistryError` if nothing says so."""
    from carla_policy_tools.lifecycle.endpoint import find_server
    from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile

    if run_dir is None:
        registry_file = RegistryFile.of(store, registry)
        endpoint = find_server(registry_file)
        if endpoint is None:
            raise RegistryError(
                f"{registry_file.path}: no server serves this registry; for one that has ended name its --run-dir"
            )
        run_dir = endpoint.run_dir
    directory = run_dir / "logs"
    if not directory.is_dir():
        raise RegistryError(f"{directory}: there are no logs; name the run directory of a server with --run-dir")
    return directory


VERBS = (logs,)
