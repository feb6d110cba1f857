"""Ed25519 keys in PEM files: made, loaded, and told apart from whatever else such a file can hold.

A private key lies in `NAME.key` (PKCS8, readable by its owner only), its public key in `NAME.pub`. The private one is
encrypted where CARLA_POLICY_KEY_PASSPHRASE is set.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from carla_policy_tools.processes import PASSPHRASE_VARIABLE

KEY_ID_DIGITS = 16

_Kind = Literal["private", "public"]
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_ENCRYPTED = "ENCRYPTED PRIVATE KEY"
_LABELS: dict[_Kind, tuple[str, ...]] = {"private": ("PRIVATE KEY", _ENCRYPTED), "public": ("PUBLIC KEY",)}
_MODES: dict[_Kind, int] = {"private": 0o600, "public": 0o644}


class KeyFileError(ValueError):
    """A file that does not hold the key that is needed; the message begins with the file."""


@dataclass(frozen=True)
class PublicKey:
    """Verifies signatures; `path` is the file that it was loaded from."""

    path: Path
    key_id: str
    """The first 16 hex digits of the SHA-256 of the key in DER form (SubjectPublicKeyInfo)."""
    _key: Ed25519PublicKey

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's, of exactly these bytes."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """Signs; the private key is neither printed nor part of what it signs."""

    key_id: str
    _key: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`, 64 bytes; the same each time."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


@dataclass(frozen=True)
class KeyPair:
    """What `make_key_pair` wrote."""

    private_key: Path
    public_key: Path
    key_id: str
    encrypted: bool


def make_key_pair(name: Path) -> KeyPair:
    """Write a new key to `name`.key and `name`.pub; `KeyFileError` if one of them exists, and nothing is written then.

    The private key is encrypted if CARLA_POLICY_KEY_PASSPHRASE is set.
    """
    if not name.parent.is_dir():
        raise KeyFileError(f"{name.parent}: no such directory")
    key, secret = Ed25519PrivateKey.generate(), _passphrase()
    encryption = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
    contents: dict[_Kind, bytes] = {
        "private": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        "public": key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }
    paths: dict[_Kind, Path] = {
        "private": name.with_name(f"{name.name}.key"),
        "public": name.with_name(f"{name.name}.pub"),
    }
    with tempfile.TemporaryDirectory(prefix=".keygen-", dir=name.parent) as scratch:
        for kind, path in paths.items():
            staged = os.open(Path(scratch, path.name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODES[kind])
            with os.fdopen(staged, "wb") as file:
                file.write(contents[kind])
        _publish(Path(scratch), paths.values())
    return KeyPair(paths["private"], paths["public"], _key_id(key.public_key()), secret is not None)


def load_signing_key(path: Path) -> SigningKey:
    """The private key in `path`, decrypted with CARLA_POLICY_KEY_PASSPHRASE where it is encrypted."""
    data, label = _read_pem(path, "private")
    secret = _passphrase() if label == _ENCRYPTED else None
    if label == _ENCRYPTED and secret is None:
        raise KeyFileError(f"{path}: is encrypted; set {PASSPHRASE_VARIABLE} to its passphrase")
    try:
        key = serialization.load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = f"the passphrase in {PASSPHRASE_VARIABLE} is wrong, or the file is damaged" if secret else "is damaged"
        raise KeyFileError(f"{path}: {reason}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _wrong_type(path, key)
    return SigningKey(_key_id(key.public_key()), key)


def load_public_key(path: Path) -> PublicKey:
    """The public key in `path`; `KeyFileError` says what the file holds instead."""
    data, _ = _read_pem(path, "public")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{path}: is damaged") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _wrong_type(path, key)
    return PublicKey(path, _key_id(key), key)


def load_public_keys(paths: Iterable[str | Path]) -> tuple[PublicKey, ...]:
    """The public keys in `paths`, such as a profile's `trusted_keys`."""
    return tuple(load_public_key(Path(path)) for path in paths)


def _read_pem(path: Path, kind: _Kind) -> tuple[bytes, str]:
    """Content and label of a file that holds one key of this kind and nothing else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    labels = [label.decode() for label in _LABEL.findall(data)]
    if len(labels) != 1:
        raise KeyFileError(f"{path}: expected one {kind} key in PEM form, got {len(labels)} PEM blocks")
    (label,) = labels
    if label in _LABELS[kind]:
        return data, label
    if kind == "public" and label.endswith("PRIVATE KEY"):
        raise KeyFileError(f"{path}: is a private key, where a public one is needed: name the .pub file")
    if kind == "private" and label.endswith("PUBLIC KEY"):
        raise KeyFileError(f"{path}: is a public key, where a private one is needed: name the .key file")
    raise KeyFileError(f"{path}: holds {label}; expected an Ed25519 {kind} key as `carla-policy keygen` makes it")


def _publish(scratch: Path, paths: Iterable[Path]) -> None:
    """Move files from `scratch` to `paths`: all of them, or none if one exists."""
    written: list[Path] = []
    try:
        for path in paths:
            path.hardlink_to(scratch / path.name)
            written.append(path)
    except OSError as error:
        for done in written:
            done.unlink()
        if isinstance(error, FileExistsError):
            raise KeyFileError(f"{path}: exists, and a key is never overwritten; choose another name") from None
        raise


def _passphrase() -> bytes | None:
    text = os.environ.get(PASSPHRASE_VARIABLE)
    if text == "":
        raise KeyFileError(f"{PASSPHRASE_VARIABLE} is empty; set it to a passphrase, or unset it for a key without one")
    return None if text is None else os.fsencode(text)


def _key_id(key: Ed25519PublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:KEY_ID_DIGITS]


def _wrong_type(path: Path, key: object) -> KeyFileError:
    return KeyFileError(
        f"{path}: holds an {type(key).__name__}, but archives are signed with Ed25519; make a key with "
        "`carla-policy keygen`"
    )
