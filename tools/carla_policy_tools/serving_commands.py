"""The verb that starts a server: `carla-policy serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Deployment, Json, RegistryFlag, StoreFlag
from carla_policy_tools.paths import archive_name

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.endpoint import Endpoint
    from carla_policy_tools.settings.resolving import Resolved
    from carla_policy_tools.workers.preloading import ForkServer


def serve(
    versions: Annotated[
        list[str] | None,
        typer.Argument(help="Versions for a new registry (all in the store by default), or to add to one."),
    ] = None,
    promote: Annotated[
        str | None,
        typer.Option(help="For a new registry: the version that answers where none is named; else the newest."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile in config/profiles, or a .yaml file of your own. At first: realtime.")
    ] = None,
    deployment: Deployment = None,
    host: Annotated[
        str | None, typer.Option(help="Address for predictions, metrics and health; 127.0.0.1 by default.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port for predictions, 8080 by default; 0 takes free ports.", min=0, max=65535)
    ] = None,
    management_port: Annotated[
        int | None, typer.Option(help="Port for management; the next one by default.", min=0, max=65535)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for metrics; the next but one by default.", min=0, max=65535)
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(help="Port for /livez and /readyz; the third after it by default.", min=0, max=65535)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers of each version, instead of what its profile says.", min=1, max=256)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda: where policies run. auto by default.")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error or critical; info by default.")
    ] = None,
    jvm_heap_mb: Annotated[
        int | None, typer.Option(help="Memory for bodies of requests in MiB, instead of what profiles say.", min=64)
    ] = None,
    artifact_dir: Annotated[
        Path | None, typer.Option(help="Artifacts in it that have no archive in the store yet are built first.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory for logs and temporary files; kept. By default a temporary one.")
    ] = None,
    frozen: Annotated[
        bool | None,
        typer.Option("--frozen/--no-frozen", help="No version joins or leaves: its management API is closed for that."),
    ] = None,
    token_auth: Annotated[
        bool | None,
        typer.Option(
            "--token-auth/--no-token-auth",
            help="TorchServe asks for its keys: see key_file.json in the run directory.",
        ),
    ] = None,
    token_minutes: Annotated[
        float | None, typer.Option(help="What keys live for; renewed after three quarters. 60 by default.", min=0.1)
    ] = None,
    log_console: Annotated[
        bool | None,
        typer.Option(
            "--log-console/--no-log-console", help="Log to standard error too, a JSON object a line: for containers."
        ),
    ] = None,
    store: StoreFlag = None,
    registry: RegistryFlag = None,
    as_json: Json = False,
) -> None:
    """Serve what the registry declares on this machine: ready when every worker is, until Ctrl-C.

    Without a registry, one is made of the versions in the store. Afterwards `register`, `promote`, `rollback` and
    `retire` change it, and every start obeys it. What no option says is taken from the environment, then from the
    deployment's file: `carla-policy config show` tells.

    Examples: `carla-policy serve --port 9080`, `carla-policy serve --deployment production --host 0.0.0.0`
    """
    flags = {name: value for name, value in locals().items() if name not in ("deployment", "as_json")}
    from carla_policy_tools.workers.preloading import ForkServer

    with ForkServer() as fork_server:  # first of all, since nothing takes longer
        from carla_policy_tools.settings.resolving import resolve

        resolved = resolve(deployment, flags)
        if token_minutes is not None and not resolved.settings.token_auth:
            raise typer.BadParameter("there are keys with --token-auth only", param_hint="--token-minutes")
        _serve(fork_server, as_json, resolved, profile)
    if not (as_json or resolved.settings.log_console):
        err.print("stopped")


def _serve(fork_server: ForkServer, as_json: bool, resolved: Resolved, profile: str | None) -> None:
    from carla_policy_tools import serving
    from carla_policy_tools.lifecycle.declaring import Declaration
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.ports import choose_ports
    from carla_policy_tools.settings.effects import check_device
    from carla_policy_tools.settings.notices import exposure

    wanted = resolved.settings
    check_device(wanted.device, resolved.sources["device"])
    if wanted.artifact_dir:
        from carla_policy_tools.settings.artifacts import build_missing

        build_missing(wanted.artifact_dir, wanted.store, resolved.sources["artifact_dir"], lambda said: err.print(said))
    request = serving.Request(
        registry_file=RegistryFile.of(wanted.store, wanted.registry),
        ports=lambda: choose_ports(
            wanted.port, wanted.management_port, wanted.metrics_port, wanted.health_port, wanted.host
        ),
        versions=wanted.versions,
        promote=wanted.promote,
        profile=profile,
        newcomers_profile=wanted.profile,
        run_dir=wanted.run_dir,
        frozen=wanted.frozen,
        heap_mb=wanted.jvm_heap_mb,
        worker_count=wanted.workers,
        device=wanted.device,
        log_level=wanted.log_level,
        log_console=wanted.log_console,
        resolved=resolved,
        token_minutes=wanted.token_minutes if wanted.token_auth else None,
        workers=fork_server,
    )
    status = err.status("starting")

    def on_start(declaration: Declaration) -> None:
        status.update(f"starting {', '.join(declaration.profiles)}")
        for notice in () if wanted.log_console else (*exposure(wanted), *declaration.notices):
            err.print(f"note: {notice}", markup=False)

    def on_ready(declaration: Declaration, endpoint: Endpoint) -> None:
        status.stop()
        if as_json:
            print_json(serving.describe(declaration, endpoint))
        if as_json or request.log_console:
            return
        from carla_policy_tools.client import curl_command, golden_observations, request_body

        promoted = declaration.promoted
        observations, recurrent = golden_observations(endpoint.store / archive_name(promoted))
        out.print(f"ready: {', '.join(declaration.profiles)}; promoted: {promoted}; profile: {endpoint.profile}")
        if endpoint.ports.host != LOOPBACK:
            out.print(f"  listens on {endpoint.ports.host}, management on this machine only")
        for kind in ("inference", "management", "metrics", "health"):
            out.print(f"  {kind:<11}{endpoint.ports.url(kind)}")
        out.print(f"  logs       {endpoint.log_file}")
        if endpoint.token_auth:
            out.print(f"  keys       {endpoint.key_file}")
        out.print("try:")
        body = request_body(observations[:1], episode_start=recurrent)
        key_file = endpoint.key_file if endpoint.token_auth else None
        out.print(curl_command(endpoint.ports.url("inference"), promoted, body, key_file), markup=False)
        out.print("stop with Ctrl-C")

    def on_trouble(reason: str) -> None:
        if not request.log_console:
            err.print(f"a worker has failed, the other versions are served on: {reason}", markup=False)

    with status:
        serving.serve(request, on_start=on_start, on_ready=on_ready, on_trouble=on_trouble)


VERBS = (serve,)
