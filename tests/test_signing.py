"""Signatures: who vouches for an archive, and that nothing else passes for it where a signature is required."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from carla_policy.digests import file_digest
from carla_policy_tools import build as build_module
from carla_policy_tools.build import build, verify
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.keys import (
    PASSPHRASE_VARIABLE,
    KeyFileError,
    PublicKey,
    SigningKey,
    load_public_key,
    load_public_keys,
    load_signing_key,
    make_key_pair,
)
from carla_policy_tools.paths import CONFIG, archive_name
from carla_policy_tools.signing import (
    MAX_FILE_BYTES,
    SignatureError,
    check_archive,
    require_signature,
    sign_archive,
    signature_path,
)
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import make_artifact
from tests.test_archive import repack

VERSION, OTHER_VERSION = "v1.9.0", "v1.10.0"
PROFILE = (CONFIG / "profiles" / "realtime.yaml").read_text()


@pytest.fixture(autouse=True)
def _no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two key pairs, `ours` and `theirs`, not encrypted."""
    directory = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv(PASSPHRASE_VARIABLE, raising=False)
        for name in ("ours", "theirs"):
            make_key_pair(directory / name)
    return directory


@pytest.fixture
def ours(keys: Path) -> SigningKey:
    return load_signing_key(keys / "ours.key")


@pytest.fixture
def theirs(keys: Path) -> SigningKey:
    return load_signing_key(keys / "theirs.key")


@pytest.fixture
def trusted(keys: Path) -> tuple[PublicKey, ...]:
    return load_public_keys([keys / "ours.pub"])


@pytest.fixture
def archive(small_store: Path, tmp_path: Path) -> Path:
    """An archive in a store of its own, not signed."""
    (tmp_path / "store").mkdir()
    return Path(shutil.copy(small_store / archive_name(VERSION), tmp_path / "store"))


@pytest.fixture
def signed(archive: Path, ours: SigningKey) -> Path:
    sign_archive(archive, ours)
    return archive


@pytest.fixture
def accept(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, ...]]:
    """Check an archive in a fresh directory; the ids of the keys that have signed it."""

    def check(archive: Path, trusted_keys: tuple[PublicKey, ...]) -> tuple[str, ...]:
        return check_archive(archive, tmp_path_factory.mktemp("check"), trusted_keys).signed_by

    return check


def run(*arguments: object, status: int = 0, **environment: str) -> str:
    command = [*COMMAND, *map(str, arguments)]
    environment = {**os.environ, **environment}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr if status else process.stdout


def content(archive: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(signature_path(archive).read_bytes())
    return document


def write_content(archive: Path, document: dict[str, Any]) -> None:
    signature_path(archive).write_text(json.dumps(document, indent=1) + "\n")


# What a signature is


def test_signed_is_the_list_of_digests_behind_a_prefix(signed: Path, keys: Path) -> None:
    with zipfile.ZipFile(signed) as packed:
        message = b"carla-policy archive v1\n" + packed.read("digests.json")
    key = serialization.load_pem_public_key((keys / "ours.pub").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    (entry,) = content(signed)["signatures"]
    key.verify(base64.b64decode(entry["signature"]), message)


def test_signature_by_a_trusted_key_is_accepted(
    signed: Path, ours: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    assert accept(signed, trusted) == (ours.key_id,)
    assert verify(signed, trusted_keys=trusted).signed_by == (ours.key_id,)


def test_signing_leaves_the_archive_as_it_is_and_nothing_but_the_signature(
    archive: Path, small_store: Path, ours: SigningKey
) -> None:
    sign_archive(archive, ours)
    first = signature_path(archive).read_bytes()
    sign_archive(archive, ours)
    assert signature_path(archive).read_bytes() == first
    assert archive.read_bytes() == (small_store / archive.name).read_bytes()
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name, f"{archive.name}.sig"]


def test_signature_is_not_required_where_no_key_is_trusted(archive: Path, accept: Callable[..., Any]) -> None:
    signature_path(archive).write_bytes(b"garbage")
    assert accept(archive, ()) == ()


# What is refused


def test_archive_without_a_signature_is_refused(
    archive: Path, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    with pytest.raises(SignatureError, match=r"\.mar\.sig: there is no such file.*carla-policy build \.\.\. --sign"):
        accept(archive, trusted)


def test_signature_by_another_key_is_refused_and_both_keys_are_named(
    archive: Path, ours: SigningKey, theirs: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    sign_archive(archive, theirs)
    expected = rf"signed by {theirs.key_id}, but a signature by {ours.key_id} \(.*ours\.pub\) is required"
    with pytest.raises(SignatureError, match=expected):
        accept(archive, trusted)


def test_signature_of_another_key_under_a_trusted_name_is_refused(
    archive: Path, ours: SigningKey, theirs: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    sign_archive(archive, theirs)
    document = content(archive)
    document["signatures"][0]["key_id"] = ours.key_id
    write_content(archive, document)
    with pytest.raises(SignatureError, match=rf"the signature by {ours.key_id} is not valid"):
        accept(archive, trusted)


def test_signature_of_another_version_is_refused(
    archive: Path, small_store: Path, ours: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    other = Path(shutil.copy(small_store / archive_name(OTHER_VERSION), archive.parent))
    sign_archive(other, ours)
    signature_path(other).replace(signature_path(archive))
    with pytest.raises(SignatureError, match=rf"signs other content: {OTHER_VERSION} .*holds {VERSION}"):
        accept(archive, trusted)


def test_archive_that_was_changed_and_packed_anew_is_refused(
    signed: Path, tmp_path: Path, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    with zipfile.ZipFile(signed) as packed:
        packed.extractall(tmp_path / "unpacked")
    handler = tmp_path / "unpacked" / "policy_handler.py"
    handler.write_text(handler.read_text() + "\n")
    repack(tmp_path / "unpacked", signed)
    assert accept(signed, ()) == ()
    with pytest.raises(SignatureError, match=r"signs other content: .*one of the two has changed since signing"):
        accept(signed, trusted)


def test_changed_archive_is_refused_also_where_the_signature_file_names_its_digests(
    signed: Path, tmp_path: Path, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    with zipfile.ZipFile(signed) as packed:
        packed.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "policy_handler.py").write_text("changed = True\n")
    repack(tmp_path / "unpacked", signed)
    write_content(signed, {**content(signed), "digests": file_digest(tmp_path / "unpacked" / "digests.json")})
    with pytest.raises(SignatureError, match="is not valid; it was changed or forged"):
        accept(signed, trusted)


def test_signature_made_for_another_purpose_is_refused(
    signed: Path, ours: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    with zipfile.ZipFile(signed) as packed:
        bare = ours.sign(packed.read("digests.json"))
    document = content(signed)
    document["signatures"][0]["signature"] = base64.b64encode(bare).decode()
    write_content(signed, document)
    with pytest.raises(SignatureError, match="is not valid"):
        accept(signed, trusted)


def test_every_byte_of_the_signature_file_matters(signed: Path, trusted: tuple[PublicKey, ...]) -> None:
    """Without unpacking the archive each time, which has not changed."""
    with zipfile.ZipFile(signed) as packed:
        manifest = packed.read("digests.json")
    path, data = signature_path(signed), signature_path(signed).read_bytes()
    require_signature(signed, manifest, VERSION, trusted)
    changes = [(position, bit) for position in range(len(data)) for bit in (0x01, 0x20, 0x80)]
    for position, bit in changes:
        changed = bytearray(data)
        changed[position] ^= bit
        path.write_bytes(changed)
        with pytest.raises(SignatureError, match=path.name):
            require_signature(signed, manifest, VERSION, trusted)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(SignatureError, match=r"not a signature file|not spelled"):
            require_signature(signed, manifest, VERSION, trusted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comment": "x"}, "'comment': Extra inputs are not permitted"),
        ({"algorithm": "rsa"}, "'algorithm': Input should be 'ed25519'"),
        ({"version": "1.9"}, "'version': .*is not a version"),
        ({"digests": "sha1:00"}, "'digests': String should match pattern"),
        ({"signatures": []}, "'signatures': Tuple should have at least 1 item"),
        ({"signatures": [{"key_id": "0" * 16, "signature": "AAAA"}]}, "'signatures.0.signature': .*64 bytes in base64"),
        ({"signatures": [{"key_id": "0" * 15, "signature": "A" * 86 + "=="}]}, "'signatures.0.key_id'"),
        ({"signatures": [{"key_id": "0" * 16, "signature": "A" * 85 + "B=="}]}, "64 bytes in base64"),
        ({"signatures": [{"key_id": "0" * 16, "signature": "A" * 86 + "=="}] * 2}, "spelled as"),
    ],
)
def test_file_of_another_form_is_refused(
    signed: Path, trusted: tuple[PublicKey, ...], accept: Callable[..., Any], change: dict[str, Any], reason: str
) -> None:
    write_content(signed, {**content(signed), **change})
    with pytest.raises(SignatureError, match=rf"\.mar\.sig: not .*{reason}"):
        accept(signed, trusted)


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff\xfe", b"[]", b"{}", b"null", b"[" * 60_000, b" " * (MAX_FILE_BYTES + 1)]
)
def test_garbage_is_refused_in_one_line(
    signed: Path, trusted: tuple[PublicKey, ...], accept: Callable[..., Any], data: bytes
) -> None:
    signature_path(signed).write_bytes(data)
    with pytest.raises(SignatureError, match=r"\.mar\.sig: not a signature file.*delete it and sign again$") as refusal:
        accept(signed, trusted)
    assert len(str(refusal.value)) < 500


def test_signature_that_cannot_be_read_is_refused(
    archive: Path, ours: SigningKey, trusted: tuple[PublicKey, ...], accept: Callable[..., Any]
) -> None:
    signature_path(archive).mkdir()
    with pytest.raises(SignatureError, match=r"\.mar\.sig: cannot be read: Is a directory"):
        accept(archive, trusted)
    with pytest.raises(SignatureError, match=r"\.mar\.sig: cannot be read: Is a directory"):
        sign_archive(archive, ours)


def test_archive_is_not_replayed_before_its_signature_is_checked(
    archive: Path, trusted: tuple[PublicKey, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay runs code of the archive."""
    replayed: list[Path] = []
    monkeypatch.setattr(build_module, "_replay", replayed.append)
    with pytest.raises(SignatureError):
        verify(archive, trusted_keys=trusted)
    assert replayed == []


# Several signers


def test_any_of_several_signers_and_of_several_trusted_keys_will_do(
    archive: Path, keys: Path, ours: SigningKey, theirs: SigningKey, accept: Callable[..., Any]
) -> None:
    our_key, their_key = load_public_keys([keys / "ours.pub", keys / "theirs.pub"])
    sign_archive(archive, theirs)
    assert accept(archive, (our_key, their_key)) == (theirs.key_id,)
    sign_archive(archive, ours)
    assert accept(archive, (our_key,)) == (ours.key_id,)
    assert accept(archive, (their_key,)) == (theirs.key_id,)
    assert set(accept(archive, (our_key, their_key))) == {ours.key_id, theirs.key_id}


def test_order_of_signing_does_not_matter(archive: Path, ours: SigningKey, theirs: SigningKey) -> None:
    results = []
    for order in ((ours, theirs), (theirs, ours)):
        signature_path(archive).unlink(missing_ok=True)
        for key in order:
            sign_archive(archive, key)
        results.append(signature_path(archive).read_bytes())
    assert results[0] == results[1]


def test_forged_signature_of_a_trusted_key_is_refused_beside_a_valid_one(
    signed: Path, keys: Path, theirs: SigningKey, accept: Callable[..., Any]
) -> None:
    sign_archive(signed, theirs)
    document = content(signed)
    entries = {entry["key_id"]: entry for entry in document["signatures"]}
    entries[theirs.key_id]["signature"] = base64.b64encode(bytes(64)).decode()
    write_content(signed, document)
    with pytest.raises(SignatureError, match=rf"the signature by {theirs.key_id} is not valid"):
        accept(signed, load_public_keys([keys / "ours.pub", keys / "theirs.pub"]))


def test_signing_anew_drops_signatures_of_other_content(
    archive: Path, small_store: Path, keys: Path, ours: SigningKey, theirs: SigningKey, accept: Callable[..., Any]
) -> None:
    other = Path(shutil.copy(small_store / archive_name(OTHER_VERSION), archive.parent))
    sign_archive(other, theirs)
    signature_path(other).replace(signature_path(archive))
    assert [entry.key_id for entry in sign_archive(archive, ours).signatures] == [ours.key_id]
    assert accept(archive, load_public_keys([keys / "ours.pub"])) == (ours.key_id,)


# Keys


def test_keygen_makes_a_private_key_for_its_owner_only(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        made = json.loads(run("keygen", tmp_path / "release", "--json"))
    finally:
        os.umask(previous)
    private, public = tmp_path / "release.key", tmp_path / "release.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert (made["private_key"], made["public_key"], made["encrypted"]) == (str(private), str(public), False)
    assert load_signing_key(private).key_id == load_public_key(public).key_id == made["key_id"]
    assert sorted(tmp_path.iterdir()) == [private, public]


@pytest.mark.parametrize("existing", ["release.key", "release.pub"])
def test_keygen_overwrites_nothing(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    assert f"error: {tmp_path / existing}: exists, and a key is never overwritten" in run(
        "keygen", tmp_path / "release", status=1
    )
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_keygen_names_a_missing_directory(tmp_path: Path) -> None:
    assert f"error: {tmp_path / 'absent'}: no such directory" in run("keygen", tmp_path / "absent" / "key", status=1)


def test_private_key_is_encrypted_with_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "grüße")
    made = make_key_pair(tmp_path / "release")
    assert made.encrypted
    assert made.private_key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert load_signing_key(made.private_key).key_id == made.key_id
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    with pytest.raises(KeyFileError, match=r"release\.key: the passphrase in CARLA_POLICY_KEY_PASSPHRASE is wrong"):
        load_signing_key(made.private_key)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match=r"release\.key: is encrypted; set CARLA_POLICY_KEY_PASSPHRASE"):
        load_signing_key(made.private_key)


def test_empty_passphrase_makes_no_key_in_plain_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "")
    with pytest.raises(KeyFileError, match="CARLA_POLICY_KEY_PASSPHRASE is empty"):
        make_key_pair(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_passphrase_in_the_environment_does_not_matter_to_a_key_without_one(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "of another key")
    assert load_signing_key(keys / "ours.key").key_id == load_public_key(keys / "ours.pub").key_id


def test_private_and_public_keys_are_not_mistaken_for_each_other(keys: Path) -> None:
    with pytest.raises(KeyFileError, match=r"ours\.key: is a private key, where a public one is needed"):
        load_public_key(keys / "ours.key")
    with pytest.raises(KeyFileError, match=r"ours\.pub: is a public key, where a private one is needed"):
        load_signing_key(keys / "ours.pub")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), "RSA"),
        (lambda: ec.generate_private_key(ec.SECP256R1()), "EC"),
        (lambda: ed448.Ed448PrivateKey.generate(), "Ed448"),
    ],
)
def test_keys_of_other_types_are_refused_by_name(tmp_path: Path, make: Callable[[], Any], kind: str) -> None:
    key, pem = make(), serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (tmp_path / "x.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (tmp_path / "x.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(KeyFileError, match=rf"x\.key: holds an {kind}PrivateKey, but archives are signed with Ed25519"):
        load_signing_key(tmp_path / "x.key")
    with pytest.raises(KeyFileError, match=rf"x\.pub: holds an {kind}PublicKey, but archives are signed with Ed25519"):
        load_public_key(tmp_path / "x.pub")


def test_files_that_hold_no_key_are_refused(tmp_path: Path, keys: Path) -> None:
    path = tmp_path / "file"
    pem = (keys / "ours.pub").read_text()
    for text, reason in (
        ("", "got 0 PEM blocks"),
        (pem * 2, "got 2 PEM blocks"),
        (pem[:60], "is damaged"),
        (pem.replace("PUBLIC KEY", "CERTIFICATE"), "holds CERTIFICATE; expected an Ed25519 public key"),
    ):
        path.write_text(text)
        with pytest.raises(KeyFileError, match=reason):
            load_public_key(path)
    path.write_text((keys / "ours.key").read_text()[:60])
    with pytest.raises(KeyFileError, match="is damaged"):
        load_signing_key(path)
    with pytest.raises(KeyFileError, match=r"absent: cannot be read: No such file"):
        load_public_key(tmp_path / "absent")


def test_signing_key_is_not_printed(ours: SigningKey) -> None:
    assert repr(ours) == f"SigningKey({ours.key_id})"


# The verbs


def test_build_signs_and_an_unchanged_archive_is_signed_too(tmp_path: Path, keys: Path, ours: SigningKey) -> None:
    artifact, store = make_artifact(tmp_path, "v2.0.0"), tmp_path / "store"
    archive = store / archive_name("v2.0.0")
    build(artifact, store)
    before = archive.read_bytes()
    (built,) = json.loads(run("build", artifact, "--store", store, "--sign", keys / "ours.key", "--json"))["builds"]
    assert (built["unchanged"], built["signed_by"]) == (True, [ours.key_id])
    assert archive.read_bytes() == before
    assert f"signed by {ours.key_id}" in run(
        "verify", archive, "--key", keys / "theirs.pub", "--key", keys / "ours.pub"
    )
    assert f"error: {archive}.sig: signed by {ours.key_id}" in run(
        "verify", archive, "--key", keys / "theirs.pub", status=1
    )
    assert sorted(path.name for path in store.iterdir()) == [archive.name, f"{archive.name}.sig"]


def test_build_that_cannot_sign_leaves_the_store_as_it_was(tmp_path: Path, keys: Path, ours: SigningKey) -> None:
    artifact, store = make_artifact(tmp_path, "v2.0.0"), tmp_path / "store"
    assert "is a public key" in run("build", artifact, "--store", store, "--sign", keys / "ours.pub", status=1)
    assert not store.exists()
    store.mkdir()
    signature = signature_path(store / archive_name("v2.0.0"))
    signature.write_bytes(b"garbage")
    with pytest.raises(SignatureError, match=r"\.sig: not a signature file"):
        build(artifact, store, ours)
    assert [path.name for path in store.iterdir()] == [signature.name]
    assert signature.read_bytes() == b"garbage"


def test_sign_adds_a_signature_with_an_encrypted_key(
    signed: Path, tmp_path: Path, ours: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "secret")
    made = make_key_pair(tmp_path / "second")
    (result,) = json.loads(run("sign", signed, "--key", made.private_key, "--json"))["signed"]
    assert (result["version"], result["key_id"]) == (VERSION, made.key_id)
    assert set(result["signatures"]) == {ours.key_id, made.key_id}
    assert result["signature"] == str(signature_path(signed))
    refused = run("sign", signed, "--key", made.private_key, status=1, CARLA_POLICY_KEY_PASSPHRASE="wrong")
    assert f"error: {made.private_key}: the passphrase in {PASSPHRASE_VARIABLE} is wrong" in refused


def test_changed_archive_is_not_signed(archive: Path, keys: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert f"error: {archive}: " in run("sign", archive, "--key", keys / "ours.key", status=1)
    assert not signature_path(archive).exists()


@pytest.mark.parametrize("verb", ["keygen", "sign"])
def test_help_has_an_example(verb: str) -> None:
    text = run(verb, "--help")
    assert "Example" in text
    assert f"carla-policy {verb}" in text


# The profile


def write_profile(directory: Path, trusted_keys: str) -> Path:
    path = directory / "signed.yaml"
    path.write_text(f"{PROFILE}trusted_keys: {trusted_keys}\n")
    return path


def test_trusted_keys_of_a_profile_are_relative_to_its_file(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "[keys/ours.pub, /absolute.pub]")
    assert load_profile(str(path)).trusted_keys == (str(tmp_path / "keys" / "ours.pub"), "/absolute.pub")
    assert load_profile("realtime").trusted_keys == ()


@pytest.mark.parametrize("value", ["ours.pub", "[1]", "", "{a: b}"])
def test_trusted_keys_that_are_no_list_of_paths_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"signed\.yaml: trusted_keys"):
        load_profile(str(write_profile(tmp_path, value)))


def test_serve_refuses_what_no_trusted_key_has_signed_before_the_server_knows_of_it(
    small_store: Path, tmp_path: Path, run_dir: Path, keys: Path, ours: SigningKey
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    sign_archive(store / archive_name(VERSION), ours)
    shutil.copy(keys / "ours.pub", tmp_path)
    profile = write_profile(tmp_path, "[ours.pub]")
    missing = signature_path(store / archive_name(OTHER_VERSION))
    options = ("--store", store, "--port", 0, "--profile", profile)
    refused = run("serve", *options, "--run-dir", run_dir, status=1)
    assert f"error: {missing}: there is no such file, but a signature by {ours.key_id}" in refused
    assert not list(run_dir.rglob("*.yaml")), "it was unpacked"
    (tmp_path / "ours.pub").unlink()
    refused = run("serve", *options, status=1)
    assert f"error: {tmp_path / 'ours.pub'}: cannot be read: No such file" in refused


def test_serve_serves_what_a_trusted_key_has_signed(
    small_store: Path, tmp_path: Path, keys: Path, ours: SigningKey
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    sign_archive(store / archive_name(VERSION), ours)
    profile = write_profile(tmp_path, f"[{keys / 'theirs.pub'}, {keys / 'ours.pub'}]")
    with ServeProcess(store, VERSION, "--profile", str(profile)) as server:
        assert server.get(VERSION, "healthz").json()["status"] == "ok"
