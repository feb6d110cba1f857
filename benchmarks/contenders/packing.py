"""Archives of other handlers, packed by torch-model-archiver as its documentation says."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from model_archiver.model_archiver import ModelArchiver
from model_archiver.model_archiver_config import ModelArchiverConfig

from carla_policy_tools.archive import _private_temporary_directory
from carla_policy_tools.paths import MODEL_NAME


def pack_handler(
    archive: Path, handler: Path, *, version: str, serialized: Path, extra_files: Sequence[Path], config: Path | None
) -> None:
    """Write `archive` with `handler`, the network `serialized` and `extra_files`."""
    with tempfile.TemporaryDirectory(prefix="bench-pack-") as scratch:
        with _private_temporary_directory(Path(scratch, "archiver")):
            ModelArchiver.generate_model_archive(
                ModelArchiverConfig(
                    model_name=MODEL_NAME,
                    version=version,
                    handler=str(handler),
                    serialized_file=str(serialized),
                    extra_files=",".join(map(str, extra_files)),
                    config_file=str(config) if config else None,
                    export_path=scratch,
                )
            )
        Path(scratch, f"{MODEL_NAME}.mar").replace(archive)
