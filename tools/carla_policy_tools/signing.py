"""Who vouches for an archive: Ed25519 signatures in a file next to it, `carla_policy-v1.2.3.mar.sig`.

Signed is `digests.json`, which lists the SHA-256 of every other file, and whose archive has one spelling only: so a
signature covers every byte of the archive. It stands beside the archive and not in it, so that an archive has the
same bytes whether it is signed or not, and others can sign it later. The file itself has one spelling too.
"""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from carla_policy.card import ModelCard
from carla_policy.digests import DIGESTS_FILE, sha256
from carla_policy.errors import ArtifactError
from carla_policy.files import open_file
from carla_policy.version import check_version
from carla_policy_tools.archive import check
from carla_policy_tools.keys import KEY_ID_DIGITS, PublicKey, SigningKey

DOMAIN = b"carla-policy archive v1\n"
"""Stands before what is signed, so that a signature made for another purpose never counts for an archive."""
MAX_FILE_BYTES = 64 << 10
_SIGNATURE_BYTES = 64


class SignatureError(ArtifactError):
    """An archive that is not signed as required; the message begins with the signature file."""


def _is_signature(text: str) -> str:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != _SIGNATURE_BYTES or base64.b64encode(data).decode() != text:
        raise ValueError(f"expected {_SIGNATURE_BYTES} bytes in base64")
    return text


class Signature(BaseModel):
    """One signer's signature."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key_id: Annotated[str, Field(pattern=f"^[0-9a-f]{{{KEY_ID_DIGITS}}}$")]
    signature: Annotated[str, AfterValidator(_is_signature)]
    """64 bytes in base64."""


class SignatureFile(BaseModel):
    """Content of a signature file; only `signatures` prove anything, the rest tells people what was signed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    algorithm: Literal["ed25519"] = "ed25519"
    version: Annotated[str, AfterValidator(check_version)]
    digests: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    """`sha256:<64 hex digits>` of the archive's `digests.json`."""
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1)]

    def dump(self) -> bytes:
        """The one spelling of the file: each signer once, ordered by key."""
        ordered = dict(sorted({entry.key_id: entry.model_dump() for entry in self.signatures}.items()))
        return (json.dumps({**self.model_dump(), "signatures": [*ordered.values()]}, indent=1) + "\n").encode()


@dataclass(frozen=True)
class CheckedArchive:
    card: ModelCard
    digest: str
    """`sha256:<64 hex digits>` of the bytes that were checked."""
    signed_by: tuple[str, ...]
    """Ids of those of the trusted keys that have signed it."""


def signature_path(archive: Path) -> Path:
    """Where the signatures of `archive` are."""
    return archive.with_name(f"{archive.name}.sig")


def check_archive(
    archive: Path, directory: Path, trusted_keys: Sequence[PublicKey] = (), original: Path | None = None
) -> CheckedArchive:
    """Unpack `archive` into the empty `directory` and check it; nothing of it runs.

    With `trusted_keys` an archive that none of them has signed is refused with `SignatureError`. The signatures stand
    beside the `original` where `archive` is a copy.
    """
    card, digest = check(archive, directory)
    manifest = (directory / DIGESTS_FILE).read_bytes()
    signed_by = require_signature(original or archive, manifest, card.version, trusted_keys) if trusted_keys else ()
    return CheckedArchive(card, digest, signed_by)


def require_signature(
    archive: Path, manifest: bytes, version: str, trusted_keys: Sequence[PublicKey]
) -> tuple[str, ...]:
    """Ids of those of `trusted_keys` that have signed `manifest`, the `digests.json` of `archive`; at least one.

    `SignatureError` where there is none, and also where one that claims to be a trusted key's is not.
    """
    path = signature_path(archive)
    if not path.exists():
        raise SignatureError(
            f"{path}: there is no such file, but a signature by {_names(trusted_keys)} is required; sign with "
            "`carla-policy build ... --sign KEY`"
        )
    found = read_signatures(path)
    if (found.version, found.digests) != (version, sha256(manifest)):
        raise SignatureError(
            f"{path}: signs other content: {found.version} with {DIGESTS_FILE} {found.digests}, the archive holds "
            f"{version} with {sha256(manifest)}; one of the two has changed since signing"
        )
    signed_by = []
    for entry in found.signatures:
        candidates = [key for key in trusted_keys if key.key_id == entry.key_id]
        signature = base64.b64decode(entry.signature)
        if candidates and not any(key.verifies(signature, DOMAIN + manifest) for key in candidates):
            raise SignatureError(f"{path}: the signature by {entry.key_id} is not valid; it was changed or forged")
        signed_by += [entry.key_id] if candidates else []
    if not signed_by:
        others = ", ".join(entry.key_id for entry in found.signatures)
        raise SignatureError(f"{path}: signed by {others}, but a signature by {_names(trusted_keys)} is required")
    return tuple(signed_by)


def read_signatures(path: Path) -> SignatureFile:
    """What stands in a signature file, nothing of it verified; `SignatureError` if it is not of this form."""
    advice = "delete it and sign again"
    try:
        with open_file(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise SignatureError(f"{path}: not a signature file, which has at most {MAX_FILE_BYTES} bytes; {advice}")
    try:
        content = SignatureFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{'.'.join(map(str, first['loc']))[:80]!r}: " if first["loc"] else ""
        raise SignatureError(f"{path}: not a signature file: {place}{first['msg']}; {advice}") from None
    if content.dump() != data:
        raise SignatureError(f"{path}: not spelled as `carla-policy` writes it, so it was changed; {advice}")
    return content


def add_signature(path: Path, manifest: bytes, version: str, key: SigningKey) -> SignatureFile:
    """What is to stand in the signature file `path` once `key` has signed `manifest` too.

    Signatures of the same content by other keys stay. Those of other content are left out: the archive that they
    were made for is not here any more. `SignatureError` if the file is there and not of this form.
    """
    entry = Signature(key_id=key.key_id, signature=base64.b64encode(key.sign(DOMAIN + manifest)).decode())
    signed = SignatureFile(version=version, digests=sha256(manifest), signatures=(entry,))
    if not path.exists():
        return signed
    present = read_signatures(path)
    if (present.version, present.digests) != (signed.version, signed.digests):
        return signed
    others = [other for other in present.signatures if other.key_id != key.key_id]
    return signed.model_copy(update={"signatures": (*others, entry)})


def sign_archive(archive: Path, key: SigningKey) -> SignatureFile:
    """Check `archive`, nothing of which runs, and add `key`'s signature to its file, whose content is returned."""
    path = signature_path(archive)
    with tempfile.TemporaryDirectory(prefix="carla-policy-sign-") as scratch:
        card, _ = check(archive, Path(scratch))
        signed = add_signature(path, Path(scratch, DIGESTS_FILE).read_bytes(), card.version, key)
    with tempfile.TemporaryDirectory(prefix=".sign-", dir=path.parent) as scratch:
        staged = Path(scratch, path.name)
        staged.write_bytes(signed.dump())
        staged.replace(path)
    return signed


def _names(keys: Sequence[PublicKey]) -> str:
    return " or ".join(f"{key.key_id} ({key.path})" for key in keys)
