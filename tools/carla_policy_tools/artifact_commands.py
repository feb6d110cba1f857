"""The verbs about artifacts and archives: `carla-policy build`, `verify`, `fetch`, `seal` and `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from carla_policy_tools.console import err, out, parity_table, print_json
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import ARTIFACTS, MODEL_STORE, naming


def build(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifact directories, each named like its version; by default all of the artifact_dir."),
    ] = None,
    store: Store = MODEL_STORE,
    sign_with: Annotated[
        Path | None, typer.Option("--sign", help="Private key to sign the archives with, as `keygen` wrote it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack artifacts into archives, verify each in a process of its own, and sign them if a key is given.

    Examples: `carla-policy build`, `carla-policy build artifacts/v0.1.0 artifacts/v0.2.0 --sign release.key`
    """
    from carla_policy_tools.build import build as build_archive
    from carla_policy_tools.keys import load_signing_key

    signing_key = load_signing_key(sign_with) if sign_with else None
    results = []
    for artifact in artifacts or _all_artifacts():
        with err.status(f"building {artifact}"), naming(artifact):
            result = build_archive(artifact, store, signing_key)
        results.append(
            {**result.verification.to_json(), "unchanged": result.unchanged, "not_compiled": result.not_compiled}
        )
        if not as_json:
            _print_verification(results[-1], "unchanged" if result.unchanged else "built")
    if as_json:
        print_json({"builds": results})


def _all_artifacts() -> list[Path]:
    from carla_policy_tools.settings.artifacts import artifacts_in
    from carla_policy_tools.settings.resolving import resolve

    resolved = resolve()
    return artifacts_in(resolved.settings.artifact_dir or ARTIFACTS, resolved.sources["artifact_dir"])


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


def fetch(
    source: Annotated[
        str, typer.Option("--from", help="Where archives and signatures lie: a directory, http:// or https://.")
    ],
    versions: Annotated[
        list[str] | None, typer.Argument(help="Versions; all of the registry by default, or of the directory.")
    ] = None,
    declared: Annotated[
        Path | None, typer.Option(help="A registry that becomes the store's own, such as one of a ConfigMap.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where that gives up changes in the store's own registry.")
    ] = False,
    keys: Annotated[
        list[Path] | None, typer.Option("--key", help="Public key; one of those given must have signed the archives.")
    ] = None,
    patience_s: Annotated[
        float, typer.Option(help="Seconds for which a source that fails is asked again.", min=0)
    ] = 60.0,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Bring the archives that a registry declares into the store, each only if it has the declared digest.

    Nothing of an archive runs; `serve` replays its golden vectors. CARLA_POLICY_FETCH_TOKEN is sent as a bearer token.

    Example: `carla-policy fetch --from https://archives.example/policies --declared production.json --key release.pub`
    """
    from carla_policy.version import parse_version
    from carla_policy_tools import fetching
    from carla_policy_tools.keys import load_public_keys
    from carla_policy_tools.lifecycle.registry import RegistryFile

    with err.status(f"fetching from {source}"):
        results = fetching.fetch(
            fetching.source_of(source),
            RegistryFile.of(store, registry),
            declared=fetching.read_declared(declared) if declared else None,
            versions=[parse_version(version) for version in versions or ()],
            trusted_keys=load_public_keys(keys or ()),
            replace=replace,
            patience_s=patience_s,
            on_retry=lambda reason: err.print(f"asking again: {reason}", markup=False),
        )
    if as_json:
        print_json({"fetched": [vars(result) for result in results]})
        return
    for result in results:
        how = "there already" if result.unchanged else "fetched"
        signed = f", signed by {', '.join(result.signed_by)}" if result.signed_by else ""
        out.print(f"{how}: {result.version}  {result.digest[:19]}{signed}")


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


VERBS = (build, verify, fetch, seal, init)


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
