"""A pod of a rendered Deployment: its volumes, its init containers one after the other, and its server."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from typing_extensions import Self

from tests.image.engine import PATIENCE_S, USER, Container, Image

Document = dict[str, Any]


def named(documents: Sequence[Document], kind: str, name: str | None = None) -> Document:
    """The one document of a kind, and of a name where there are more."""
    (found,) = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


class InitFailed(AssertionError):
    """An init container that did not end well; the message is its output."""


class Pod:
    """A context manager: from entering on the server runs, as `server`. What a kubelet does is done by hand."""

    def __init__(
        self,
        image: Image,
        documents: Sequence[Document],
        deployment: str = "carla-policy",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` stand over those of the ConfigMaps."""
        self._image = image
        self._documents = documents
        self.template = named(documents, "Deployment", deployment)["spec"]["template"]["spec"]
        self._settings = dict(settings or {})
        self._stack = ExitStack()
        self.server: Container

    @property
    def specification(self) -> Document:
        """Of the server's container."""
        (container,) = self.template["containers"]
        return dict(container)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pod-")))
            volumes = {volume["name"]: self._volume(scratch, volume) for volume in self.template["volumes"]}
            for container in self.template["initContainers"]:
                with self._container(container, volumes) as running:
                    status = running.wait(PATIENCE_S)
                    if status:
                        raise InitFailed(f"{container['name']}: status {status}: {running.output.read_text()}")
            self.server = stack.enter_context(self._container(self.specification, volumes))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _volume(self, scratch: Path, volume: Document) -> Path:
        directory = scratch / volume["name"]
        if "configMap" in volume:
            data = named(self._documents, "ConfigMap", volume["configMap"]["name"])["data"]
            (directory / "..2026").mkdir(parents=True)
            (directory / "..data").symlink_to("..2026")
            for name, content in data.items():
                (directory / "..2026" / name).write_text(content)
                (directory / name).symlink_to(f"..data/{name}")
        else:
            assert "emptyDir" in volume, f"{volume}: not known here"
            directory.mkdir()
            os.chown(directory, 0, self.template["securityContext"]["fsGroup"])
            directory.chmod(0o2777)
        return directory

    def _container(self, container: Document, volumes: Mapping[str, Path]) -> Container:
        assert self.template["securityContext"]["runAsUser"] == USER == self._image.user
        environment = {}
        for source in container["envFrom"]:
            environment |= named(self._documents, "ConfigMap", source["configMapRef"]["name"])["data"]
        environment |= {variable["name"]: variable["value"] for variable in container["env"]}
        environment |= self._settings
        mounts = container["volumeMounts"]
        return Container(
            self._image,
            arguments=[re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], word) for word in container["args"]],
            volumes={mount["mountPath"]: volumes[mount["name"]] for mount in mounts},
            read_only=[mount["mountPath"] for mount in mounts if mount.get("readOnly")],
            environment=environment,
        )
