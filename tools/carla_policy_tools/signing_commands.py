"""The verbs about keys and signatures: `carla-policy keygen` and `carla-policy sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Json
from carla_policy_tools.paths import naming


def keygen(
    name: Annotated[Path, typer.Argument(help="Name of the key: NAME.key and NAME.pub are written.")],
    as_json: Json = False,
) -> None:
    """Make a key to sign archives with: NAME.key, which you keep, and NAME.pub, which you hand out.

    The private key is encrypted if the environment variable CARLA_POLICY_KEY_PASSPHRASE is set. No file is overwritten.

    Example: `carla-policy keygen release`
    """
    from carla_policy_tools.keys import make_key_pair

    made = make_key_pair(name)
    if as_json:
        names = {"private_key": str(made.private_key), "public_key": str(made.public_key)}
        print_json({**names, "key_id": made.key_id, "encrypted": made.encrypted})
        return
    kind = "encrypted" if made.encrypted else "not encrypted"
    out.print(f"wrote {made.private_key} (private, {kind}) and {made.public_key} (public): key {made.key_id}")


def sign(
    archives: Annotated[list[Path], typer.Argument(help="Archive files, `carla_policy-<version>.mar`.")],
    key: Annotated[Path, typer.Option("--key", help="Private key, as `keygen` wrote it.")],
    as_json: Json = False,
) -> None:
    """Sign archives that are built: the signature is added to the file ARCHIVE.sig, nothing else changes.

    Bytes, digests and names of an archive are checked first; nothing of it runs.

    Example: `carla-policy sign model_store/carla_policy-v0.2.0.mar --key release.key`
    """
    from carla_policy_tools.keys import load_signing_key
    from carla_policy_tools.signing import sign_archive, signature_path

    signer, results = load_signing_key(key), []
    for archive in archives:
        with err.status(f"signing {archive}"), naming(archive):
            signed = sign_archive(archive, signer)
        signatures = [entry.key_id for entry in signed.signatures]
        place = {"archive": str(archive), "signature": str(signature_path(archive))}
        results.append({**place, "version": signed.version, "key_id": signer.key_id, "signatures": signatures})
        if not as_json:
            out.print(f"signed {archive} by {signer.key_id}; signatures: {', '.join(signatures)}")
    if as_json:
        print_json({"signed": results})


VERBS = (keygen, sign)
