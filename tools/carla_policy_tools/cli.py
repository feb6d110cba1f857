"""The `carla-policy` command line: one function per verb, each with an example in its help.

A verb prints for people, or one JSON object with `--json`. It exits with 0 only if it did what was asked; with 1 and
a one-line reason on standard error if it could not; with 2 if it was called wrongly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import requests
import typer

from carla_policy.errors import ArtifactError
from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, parity_table, print_json
from carla_policy_tools.export.commands import app as export_app
from carla_policy_tools.lifecycle import commands as lifecycle_commands
from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE, archive_name, naming
from carla_policy_tools.routing import commands as routing_commands
from carla_policy_tools.routing.haproxy import ProxyError
from carla_policy_tools.signing_commands import keygen, sign
from carla_policy_tools.torchserve import ServerError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
app.add_typer(export_app, name="export")
for _verb in (keygen, sign):
    app.command()(_verb)

for verb in (*lifecycle_commands.VERBS, *routing_commands.VERBS):
    app.command()(verb)


@app.callback()
def _root() -> None:
    """Build, verify and serve driving policies, exactly as they were trained."""


@app.command()
def build(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact directories, each named like its version.")],
    store: Store = MODEL_STORE,
    sign_with: Annotated[
        Path | None, typer.Option("--sign", help="Private key to sign the archives with, as `keygen` wrote it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack artifacts into archives, verify each in a process of its own, and sign them if a key is given.

    Example: `carla-policy build artifacts/v0.1.0 artifacts/v0.2.0 --sign release.key`
    """
    from carla_policy_tools.build import build as build_archive
    from carla_policy_tools.keys import load_signing_key

    signing_key = load_signing_key(sign_with) if sign_with else None
    results = []
    for artifact in artifacts:
        with err.status(f"building {artifact}"), naming(artifact):
            result = build_archive(artifact, store, signing_key)
        results.append(
            {**result.verification.to_json(), "unchanged": result.unchanged, "not_compiled": result.not_compiled}
        )
        if not as_json:
            _print_verification(results[-1], "unchanged" if result.unchanged else "built")
    if as_json:
        print_json({"builds": results})


@app.command()
def verify(
    archives: Annotated[list[Path], typer.Argument(help="Archive files, `carla_policy-<version>.mar`.")],
    keys: Annotated[
        list[Path] | None, typer.Option("--key", help="Public key; one of those given must have signed the archives.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check archives alone: bytes, digests, card, signature, and a replay of the golden vectors in a fresh process.

    Example: `carla-policy verify model_store/carla_policy-v0.2.0.mar --key release.pub`
    """
    from carla_policy_tools.build import verify as verify_archive
    from carla_policy_tools.keys import load_public_keys

    trusted_keys = load_public_keys(keys or ())
    results = []
    for archive in archives:
        with err.status(f"verifying {archive}"), naming(archive):
            results.append(verify_archive(archive, trusted_keys=trusted_keys).to_json())
        if not as_json:
            _print_verification(results[-1], "verified")
    if as_json:
        print_json({"verified": results})


@app.command()
def seal(artifact: Annotated[Path, typer.Argument(help="Artifact directory.")], as_json: Json = False) -> None:
    """Write the digests of all files into the model card, after an edit that was meant.

    Example: `carla-policy seal artifacts/v0.2.0`
    """
    from carla_policy_tools.artifact import seal as seal_artifact

    with naming(artifact):
        card = seal_artifact(artifact)
    if as_json:
        print_json({"sealed": str(artifact), "version": card.version, "card_hash": card.card_hash})
    else:
        out.print(f"sealed {artifact} ({card.version})")


@app.command()
def init(
    card: Annotated[Path, typer.Argument(help="File to write.")],
    head: Annotated[str, typer.Option(help="What the network's outputs mean, such as gaussian or categorical.")],
    sensors: Annotated[int, typer.Option(help="Numbers of the observation beside speed and steering.", min=0)],
    layout: Annotated[str, typer.Option(help="Dimensions of a continuous action, in order.")] = "acceleration,steer",
    state_size: Annotated[int, typer.Option(help="Numbers of a recurrent network's state.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write a commented model card to fill in, for `export torch`, `onnx`, `torchscript` and `pt2`.

    Example: `carla-policy init card.yaml --head gaussian --sensors 28 --layout throttle,brake,steer`
    """
    from carla_policy_tools.export.template import card_template

    names = [part.strip() for part in layout.split(",")]
    text = card_template(sensors=sensors, head=head, layout=names, state_size=state_size)
    with card.open("x") as file:
        file.write(text)
    if as_json:
        print_json({"card": str(card)})
    else:
        out.print(f"wrote {card}; replace what is marked with <-, then pass it to `carla-policy export ... --card`")


@app.command()
def serve(
    versions: Annotated[
        list[str] | None,
        typer.Argument(help="Versions for a new registry (all in the store by default), or to add to one."),
    ] = None,
    promote: Annotated[
        str | None, typer.Option(help="With a new registry: version that answers where none is named; else the newest.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile in config/profiles, or a .yaml file of your own. At first: realtime.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port for predictions; 0 takes free ports.", min=0, max=65535)] = 8080,
    management_port: Annotated[
        int | None, typer.Option(help="Port for management; the next one by default.", min=0, max=65535)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for metrics; the next but one by default.", min=0, max=65535)
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(help="Port for /livez and /readyz; the third after it by default.", min=0, max=65535)
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory for logs and temporary files; kept. By default a temporary one.")
    ] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Serve what the registry declares on this machine: ready when every worker is, until Ctrl-C.

    Without a registry, one is made of the versions in the store. Afterwards `register`, `promote`, `rollback` and
    `retire` change it, and every start obeys it.

    Example: `carla-policy serve --port 9080`
    """
    from carla_policy_tools import serving
    from carla_policy_tools.client import curl_command, golden_observations, request_body
    from carla_policy_tools.configuration import choose_ports
    from carla_policy_tools.lifecycle.declaring import Declaration
    from carla_policy_tools.lifecycle.endpoint import Endpoint
    from carla_policy_tools.lifecycle.registry import RegistryFile

    request = serving.Request(
        registry_file=RegistryFile.of(store, registry),
        ports=lambda: choose_ports(port, management_port, metrics_port, health_port),
        versions=versions or (),
        promote=promote,
        profile=profile,
        run_dir=run_dir,
    )
    status = err.status("starting")

    def on_start(declaration: Declaration) -> None:
        status.update(f"starting {', '.join(declaration.profiles)}")
        for notice in declaration.notices:
            err.print(f"note: {notice}", markup=False)

    def on_ready(declaration: Declaration, endpoint: Endpoint) -> None:
        status.stop()
        if as_json:
            print_json(serving.describe(declaration, endpoint))
            return
        promoted = declaration.promoted
        observations, recurrent = golden_observations(endpoint.store / archive_name(promoted))
        out.print(f"ready: {', '.join(declaration.profiles)}; promoted: {promoted}; profile: {endpoint.profile}")
        for kind in ("inference", "management", "metrics", "health"):
            out.print(f"  {kind:<11}{endpoint.ports.url(kind)}")
        out.print(f"  logs       {endpoint.log_file}")
        out.print("try:")
        body = request_body(observations[:1], episode_start=recurrent)
        out.print(curl_command(endpoint.ports.url("inference"), promoted, body), markup=False)
        out.print("stop with Ctrl-C")

    def on_trouble(reason: str) -> None:
        err.print(f"a worker has failed, the other versions are served on: {reason}", markup=False)

    with status:
        serving.serve(request, on_start=on_start, on_ready=on_ready, on_trouble=on_trouble)
    if not as_json:
        err.print("stopped")


@app.command()
def predict(
    version: Annotated[str | None, typer.Argument(help="Version to ask; the promoted one by default.")] = None,
    url: Annotated[str, typer.Option(help="Base URL for predictions.")] = "http://127.0.0.1:8080",
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
    store: Store = MODEL_STORE,
    as_json: Json = False,
) -> None:
    """Send an observation to a running server and print the action.

    Examples: `carla-policy predict`, `carla-policy predict v0.1.0 --golden 7 --stochastic --seed 42`,
    `carla-policy predict --file request.json`
    """
    from carla_policy_tools import client

    asked = parse_version(version) if version else None
    url = url if "://" in url else f"http://{url}"
    if file and (golden is not None or stochastic or seed is not None):
        raise typer.BadParameter("a file is sent as it is: write deterministic and seed into it", param_hint="--file")
    if seed is not None and not stochastic:
        raise typer.BadParameter("a seed matters to a sampled action only: add --stochastic", param_hint="--seed")
    if file:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    else:
        source = store / archive_name(asked or client.promoted_version(url))
        observations, recurrent = client.golden_observations(source)
        row = golden or 0
        if row >= len(observations):
            raise ValueError(f"--golden {row}: {source.name} has the observations 0 to {len(observations) - 1}")
        request = client.request_body(
            observations[row : row + 1], deterministic=not stochastic, seed=seed, episode_start=recurrent
        )
        body = json.dumps(request).encode()
    answer = client.predict(url, asked, body)
    if as_json:
        print_json(answer)
        return
    for action in answer["actions"]:
        out.print("  ".join(f"{name} {value:+.6f}" for name, value in action.items()))
    how = "deterministic" if answer["deterministic"] else f"seed {answer['seed']}"
    out.print(f"{answer['version']}, {how}, {answer['timingMs']:.3f} ms")


def _print_verification(result: dict[str, Any], verb: str) -> None:
    out.print(f"{verb} {result['archive']}  {result['digest'][:19]}")
    if result["signed_by"]:
        out.print(f"  signed by {', '.join(result['signed_by'])}")
    if result.get("not_compiled"):
        out.print(f"  preprocessor: scikit-learn in the worker, slower: {result['not_compiled']}")
    else:
        out.print(f"  preprocessor: {result['preprocessor']}")
    out.print(f"  {result['vectors']} golden vectors replayed ({result['gate']}):")
    out.print(parity_table(result["stages"]))


def main() -> None:
    """Run a verb; what is wrong with its input or surroundings is told in one line, without a traceback."""
    from carla_policy_tools.client import RefusedRequest

    try:
        app()
    except (ArtifactError, ServerError, RegistryError, ProxyError, RefusedRequest, ValueError, OSError) as error:
        if isinstance(error, requests.ConnectionError):
            url = error.request.url if error.request else ""
            error = OSError(f"no server answers at {url}; start one with `carla-policy serve`, or name its --url")
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        err.print(f"error: {text}", markup=False)
        sys.exit(1)
