"""The `.mar` archive of a version: packed by torch-model-archiver, written so that the same inputs give the same bytes.

torch-model-archiver lays out the files and the manifest. Its zip carries the time of day and the order of the file
system, so the archive is written here: sorted names, one date, no compression. That spelling is also checked when an
archive is read: an archive that would be written differently has been changed.
"""

from __future__ import annotations

import io
import json
import logging
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
from carla_policy.digests import DIGESTS_FILE, directory_digests, dump_digests
from carla_policy.errors import ArtifactError
from carla_policy.integrity import verify_files
from carla_policy.preprocessing import COMPILED_FILE, CompiledPreprocessor
from carla_policy.strict_yaml import parse_yaml
from carla_policy_tools.paths import CONFIG, HANDLER_SOURCES, MODEL_NAME, archive_name

MANIFEST_FILE = "MAR-INF/MANIFEST.json"
HANDLER_FILE = "policy_handler.py"
CONFIG_FILE = "model-config.yaml"
ROOT_FILES = frozenset(
    {*ARTIFACT_FILES, CARD_FILE, COMPILED_FILE, DIGESTS_FILE, MANIFEST_FILE, HANDLER_FILE, CONFIG_FILE}
)
CONFIG_KEYS = frozenset(
    {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout"}
    | {"startupTimeout", "maxRetryTimeoutInSec", "jobQueueSize"}
)
MAX_CONFIG_VALUE = 100_000
MAX_ENTRIES = 1_000
MAX_UNPACKED_BYTES = 4 << 30
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
        manifest = json.loads((content / MANIFEST_FILE).read_text())
        manifest["createdOn"] = card.created.strftime("%d/%m/%Y %H:%M:%S")
        (content / MANIFEST_FILE).write_text(_manifest_text(manifest))
        (content / DIGESTS_FILE).write_text(dump_digests(directory_digests(content)))
        return _zip(content)


def unpack(archive: Path, directory: Path) -> None:
    """Unpack `archive` into the empty `directory`; `ArtifactError` names what does not belong in an archive."""
    try:
        data = archive.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            entries = packed.infolist()
            _check_entries(archive.name, entries)
            for entry in entries:
                target = directory / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_read_entry(packed, entry))
    except OSError as error:
        raise ArtifactError(f"{archive}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ArtifactError(f"{archive.name}: {error}") from None
    if _zip(directory) != data:
        raise ArtifactError(
            f"{archive.name}: bytes around the packed files have changed; it is not as `carla-policy build` wrote it"
        )


def with_config(directory: Path, config: bytes) -> bytes:
    """The archive of the verified, unpacked version in `directory`, with `config` as its `model-config.yaml`.

    For a server's own copy: everything else of it, and so everything that a worker executes, stays as it was.
    """
    (directory / CONFIG_FILE).write_bytes(config)
    (directory / DIGESTS_FILE).write_text(dump_digests(directory_digests(directory)))
    return _zip(directory)


def check(archive: Path, directory: Path) -> ModelCard:
    """Unpack `archive` into the empty `directory` and check bytes, digests, card and names; nothing of it runs."""
    unpack(archive, directory)
    card = verify_files(directory)
    _check_names(archive, directory, card)
    return card


def _check_names(archive: Path, directory: Path, card: ModelCard) -> None:
    try:
        text = (directory / MANIFEST_FILE).read_text("utf-8")
        manifest = json.loads(text)
        model = manifest["model"]
        named = (model["modelName"], model["modelVersion"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{MANIFEST_FILE}: not a manifest of torch-model-archiver: {error!r}") from None
    if named != (MODEL_NAME, card.version):
        raise ArtifactError(f"{MANIFEST_FILE}: names {' '.join(map(str, named))}, the card {MODEL_NAME} {card.version}")
    started = {"handler": HANDLER_FILE, "serializedFile": card.model_file, "configFile": CONFIG_FILE}
    expected = {
        **{key: manifest.get(key) for key in ("archiverVersion", "createdOn")},
        "model": {"modelName": MODEL_NAME, "modelVersion": card.version, **started},
        "runtime": "python",
    }
    if text != _manifest_text(expected):
        raise ArtifactError(f"{MANIFEST_FILE}: expected {_manifest_text(expected)!r}, got {text!r:.500}")
    _check_config(directory / CONFIG_FILE)
    if archive.name != archive_name(card.version):
        raise ArtifactError(f"{archive.name}: holds {card.version}; its name must be {archive_name(card.version)}")


def _manifest_text(manifest: object) -> str:
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def _check_config(path: Path) -> None:
    """Numbers under the keys that a build packs: others start processes, install packages or run other code."""
    config = parse_yaml(path.read_bytes(), path.name)
    if not isinstance(config, dict) or config.keys() - CONFIG_KEYS:
        strangers = sorted(config.keys() - CONFIG_KEYS) if isinstance(config, dict) else [type(config).__name__]
        raise ArtifactError(f"{path.name}: {', '.join(strangers)}: not a key of an archive; {sorted(CONFIG_KEYS)} are")
    for key, value in config.items():
        if type(value) is not int or not 0 < value <= MAX_CONFIG_VALUE:
            raise ArtifactError(f"{path.name}: {key}: expected 1 to {MAX_CONFIG_VALUE}, got {value!r:.80}")


def _read_entry(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return packed.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise ArtifactError(f"{entry.filename}: {error}") from None


def _check_entries(name: str, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise ArtifactError(f"{name}: expected at most {MAX_ENTRIES} files and {MAX_UNPACKED_BYTES >> 30} GiB unpacked")
    seen: set[str] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        plain = entry.orig_filename == entry.filename == str(path) and entry.external_attr == _FILE_MODE << 16
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.flag_bits == 0
        if not (plain and stored) or path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
            raise ArtifactError(f"{name}: {entry.orig_filename!r}: not the name or kind of a file that a build packs")
        module = path.parts[0] == MODEL_NAME and path.suffix == ".py" and "__pycache__" not in path.parts
        if entry.filename not in ROOT_FILES and not module:
            raise ArtifactError(
                f"{name}: {entry.filename}: no part of an archive, which holds an artifact and its code"
            )
        if entry.filename.lower() in seen:
            raise ArtifactError(f"{name}: {entry.filename}: packed twice, or under names that differ only in case")
        seen.add(entry.filename.lower())


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
