"""The `.mar` archive of a version: packed by torch-model-archiver, written so that the same inputs give the same bytes.

torch-model-archiver lays out the files and the manifest. Its zip carries the time of day and the order of the file
system, so the archive is written here: sorted names, one date, no compression. That spelling is also checked when an
archive is read: an archive that would be written differently has been changed.
"""

from __future__ import annotations

import io
import logging
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from model_archiver.model_archiver import ModelArchiver
from model_archiver.model_archiver_config import ModelArchiverConfig

from carla_policy.card import ARTIFACT_FILES, CARD_FILE, ModelCard
from carla_policy.digests import DIGESTS_FILE, directory_digests, dump_digests, sha256
from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.integrity import verify_files
from carla_policy.preprocessing import COMPILED_FILE, CompiledPreprocessor
from carla_policy.zips import check_zip_end
from carla_policy_tools.manifest import CONFIG_FILE, HANDLER_FILE, MANIFEST_FILE, check_instructions, manifest_text
from carla_policy_tools.paths import CONFIG, HANDLER_SOURCES, MODEL_NAME, archive_name

ROOT_FILES = frozenset(
    {*ARTIFACT_FILES, CARD_FILE, COMPILED_FILE, DIGESTS_FILE, MANIFEST_FILE, HANDLER_FILE, CONFIG_FILE}
)
MAX_ENTRIES = 1_000
MAX_BYTES = 1 << 30
_MODULE = re.compile(rf"{MODEL_NAME}(/[A-Za-z_][A-Za-z0-9_]{{0,60}}){{1,4}}\.py")
_HEADERS_BYTES, _END_BYTES = 30 + 46, 22
"""What an entry takes beside its content and its name, which stands there twice; and the end of the archive."""
_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o100644


def pack(artifact: Path, card: ModelCard, compiled: CompiledPreprocessor | None) -> bytes:
    """The archive of a verified artifact; `compiled` is left out where the preprocessor has no such form."""
    with tempfile.TemporaryDirectory(prefix="carla-policy-build-") as scratch:
        extra, export = Path(scratch, "extra"), Path(scratch, "export")
        for module in (HANDLER_SOURCES / MODEL_NAME).rglob("*.py"):
            target = extra / module.relative_to(HANDLER_SOURCES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(module, target)
        for name in {CARD_FILE, *card.artifact_hashes} - {card.model_file}:
            shutil.copyfile(artifact / name, extra / name)
        if compiled is not None:
            compiled.save(extra / COMPILED_FILE)
        export.mkdir()
        with _private_temporary_directory(Path(scratch, "archiver")):
            ModelArchiver.generate_model_archive(
                ModelArchiverConfig(
                    model_name=MODEL_NAME,
                    version=card.version,
                    handler=str(HANDLER_SOURCES / HANDLER_FILE),
                    serialized_file=str(artifact / card.model_file),
                    extra_files=str(extra),
                    config_file=str(CONFIG / CONFIG_FILE),
                    export_path=str(export),
                    archive_format="no-archive",
                )
            )
        content = export / MODEL_NAME
        (content / MANIFEST_FILE).write_text(manifest_text(card))
        (content / DIGESTS_FILE).write_text(dump_digests(directory_digests(content)))
        return _zip(content)


def copy_archive(archive: Path, copy: Path) -> None:
    """Copy what may be an archive; `ArtifactError` for what cannot be one: a pipe, a link, a file that is too large."""
    copy.write_bytes(read_file(archive, MAX_BYTES))


def unpack(archive: Path, directory: Path) -> str:
    """Unpack `archive` into the empty `directory`; the digest of the bytes that were unpacked.

    `ArtifactError` names what does not belong in an archive. Nothing is unpacked before all names and sizes fit.
    """
    data = read_file(archive, MAX_BYTES)
    try:
        with _opened(archive.name, data) as packed:
            for entry in packed.infolist():
                target = directory / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_read_entry(packed, entry))
    except OSError as error:
        raise ArtifactError(f"{archive.name}: cannot be unpacked: {error.strerror}") from None
    if _zip(directory) != data:
        raise ArtifactError(
            f"{archive.name}: bytes around the packed files have changed; it is not as `carla-policy build` wrote it"
        )
    return sha256(data)


def read_entry(archive: Path, name: str) -> bytes:
    """One file of an archive that nobody has verified; `ArtifactError` if it cannot be read."""
    with _opened(archive.name, read_file(archive, MAX_BYTES)) as packed:
        return _read_entry(packed, packed.getinfo(name))


def with_config(directory: Path, config: bytes) -> bytes:
    """The archive of the verified, unpacked version in `directory`, with `config` as its `model-config.yaml`.

    For a server's own copy: everything else of it, and so everything that a worker executes, stays as it was.
    """
    (directory / CONFIG_FILE).write_bytes(config)
    (directory / DIGESTS_FILE).write_text(dump_digests(directory_digests(directory)))
    return _zip(directory)


def check(archive: Path, directory: Path) -> tuple[ModelCard, str]:
    """Unpack `archive` into the empty `directory` and check bytes, digests, card and names; nothing of it runs.

    The card, and the digest of the archive that was checked: the file may be another one by now.
    """
    digest = unpack(archive, directory)
    card = verify_files(directory)
    check_instructions(directory, card)
    if archive.name != archive_name(card.version):
        raise ArtifactError(f"{archive.name}: holds {card.version}; its name must be {archive_name(card.version)}")
    return card, digest


@contextmanager
def _opened(name: str, data: bytes) -> Iterator[zipfile.ZipFile]:
    """The zip file `data`, after its end and its list of files were checked; `ArtifactError` begins with `name`."""
    try:
        check_zip_end(data, MAX_ENTRIES)
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            _check_entries(name, packed.infolist(), len(data))
            yield packed
    except ArtifactError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, ValueError) as error:
        raise ArtifactError(f"{name}: {error}") from None


def _read_entry(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return packed.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise ArtifactError(f"{entry.filename}: {error}") from None


def _check_entries(name: str, entries: list[zipfile.ZipInfo], length: int) -> None:
    """Names and kinds that a build packs, and sizes that add up to the `length` of the archive."""
    if len(entries) > MAX_ENTRIES:
        raise ArtifactError(f"{name}: expected at most {MAX_ENTRIES} files, got {len(entries)}")
    seen: set[str] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        plain = entry.orig_filename == entry.filename == str(path) and entry.external_attr == _FILE_MODE << 16
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.flag_bits == 0
        if not (plain and stored) or path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
            raise ArtifactError(f"{name}: {entry.orig_filename!r}: not the name or kind of a file that a build packs")
        if entry.filename not in ROOT_FILES and not _MODULE.fullmatch(entry.filename):
            raise ArtifactError(
                f"{name}: {entry.filename!r}: no part of an archive, which holds an artifact and its code"
            )
        if entry.filename.lower() in seen:
            raise ArtifactError(f"{name}: {entry.filename}: packed twice, or under names that differ only in case")
        seen.add(entry.filename.lower())
    expected = sum(_HEADERS_BYTES + 2 * len(entry.filename) + entry.file_size for entry in entries) + _END_BYTES
    if expected != length:
        raise ArtifactError(
            f"{name}: its files need {expected} bytes, but it has {length}: they overlap, or one claims a size"
        )


def _zip(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(directory).as_posix(), _DATE)
                entry.external_attr = _FILE_MODE << 16
                entry.create_system = 3
                packed.writestr(entry, path.read_bytes())
    return buffer.getvalue()


@contextmanager
def _private_temporary_directory(directory: Path) -> Iterator[None]:
    """torch-model-archiver deletes `<temporary directory>/<model name>` first: give it one that is nobody else's."""
    directory.mkdir()
    previous, tempfile.tempdir = tempfile.tempdir, str(directory)
    level = logging.getLogger().level
    try:
        yield
    finally:
        tempfile.tempdir = previous
        logging.getLogger().setLevel(level)
