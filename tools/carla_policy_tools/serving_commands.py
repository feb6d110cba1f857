"""The verbs about a server: `carla-policy serve` and `predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from carla_policy.version import parse_version
from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Deployment, Json, Registry, RegistryFlag, Store, StoreFlag
from carla_policy_tools.paths import MODEL_STORE, archive_name

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.endpoint import Endpoint
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.settings.resolving import Resolved
    from carla_policy_tools.tokens import Tokens
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
    from carla_policy_tools.configuration import choose_ports
    from carla_policy_tools.lifecycle.declaring import Declaration
    from carla_policy_tools.lifecycle.registry import RegistryFile
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


def predict(
    version: Annotated[str | None, typer.Argument(help="Version to ask; the promoted one by default.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Base URL for predictions; the store's own server's, else port 8080 here.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A request as JSON, or - for standard input.", allow_dash=True)
    ] = None,
    golden: Annotated[
        int | None,
        typer.Option(help="Without a file: which golden observation to send; the first by default.", min=0),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample the action instead of taking the mode.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of a stochastic answer.", min=0)] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="key_file.json of a server with --token-auth; the store's own server's is found."),
    ] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Send an observation to a running server and print the action.

    Examples: `carla-policy predict`, `carla-policy predict v0.1.0 --golden 7 --stochastic --seed 42`,
    `carla-policy predict --file request.json`
    """
    from carla_policy_tools import client
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.tokens import Tokens

    asked = parse_version(version) if version else None
    if file and (golden is not None or stochastic or seed is not None):
        raise typer.BadParameter("a file is sent as it is: write deterministic and seed into it", param_hint="--file")
    if seed is not None and not stochastic:
        raise typer.BadParameter("a seed matters to a sampled action only: add --stochastic", param_hint="--seed")
    own = _own_server(RegistryFile.of(store, registry))
    if url is None:
        url = own.ports.url("inference") if own else f"http://{LOOPBACK}:8080"
    url = url if "://" in url else f"http://{url}"
    auth = Tokens(key_file, "inference") if key_file else _auth_of(url, own)
    if file:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    else:
        source = store / archive_name(asked or client.promoted_version(url, auth))
        observations, recurrent = client.golden_observations(source)
        row = golden or 0
        if row >= len(observations):
            raise ValueError(f"--golden {row}: {source.name} has the observations 0 to {len(observations) - 1}")
        request = client.request_body(
            observations[row : row + 1], deterministic=not stochastic, seed=seed, episode_start=recurrent
        )
        body = json.dumps(request).encode()
    answer = client.predict(url, asked, body, auth)
    if as_json:
        print_json(answer)
        return
    for action in answer["actions"]:
        out.print("  ".join(f"{name} {value:+.6f}" for name, value in action.items()))
    how = "deterministic" if answer["deterministic"] else f"seed {answer['seed']}"
    out.print(f"{answer['version']}, {how}, {answer['timingMs']:.3f} ms")


def _own_server(registry_file: RegistryFile) -> Endpoint | None:
    from carla_policy_tools.lifecycle.endpoint import find_server
    from carla_policy_tools.lifecycle.registry import RegistryError

    try:
        return find_server(registry_file)
    except RegistryError:
        return None


def _auth_of(url: str, server: Endpoint | None) -> Tokens | None:
    """The keys of a registry's own server, if it asks for them: they are for nobody else at another `url`."""
    if server is None:
        return None
    asked, own = urlsplit(url), urlsplit(server.ports.url("inference"))
    hosts = {own.hostname, "localhost"} if own.hostname == LOOPBACK else {own.hostname}
    return server.auth("inference") if asked.hostname in hosts and asked.port == own.port else None


VERBS = (serve, predict)
