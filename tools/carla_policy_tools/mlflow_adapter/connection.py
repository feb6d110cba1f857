"""A connection to MLflow: where it is, how patiently it is asked, and what its errors mean for a person."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PROBE_TIMEOUT_S = 10.0
MAX_MESSAGE = 300

_ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow tells its makers of every use unless it is told not to, before it is imported."""
_UNLESS_SET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class MlflowError(ValueError):
    """What MLflow does not have or refuses; the message says what to do."""


@dataclass(frozen=True)
class Connection:
    uri: str
    client: MlflowClient

    @property
    def shown(self) -> str:
        """The URI without a user's name and password."""
        return without_credentials(self.uri)

    @property
    def database(self) -> Path | None:
        """The file of a SQLite store."""
        return _sqlite_file(self.uri)

    @property
    def is_remote(self) -> bool:
        """Whether a server of somebody answers, and not a database that is read here."""
        return urlsplit(self.uri).scheme in SERVERS

    def repository(self, location: str) -> Any:
        """MLflow's access to the artifacts at `location`."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(location, tracking_uri=self.uri, registry_uri=self.uri)


@contextmanager
def connect(uri: str | None, *, create: bool = False) -> Iterator[Connection]:
    """MLflow at `uri`, or at the one in the environment; whatever it refuses inside becomes an `MlflowError`.

    A SQLite file that is not there is made with `create` only: by a wrong path one would ask an empty store.
    """
    uri = uri or os.environ.get(URI_VARIABLE, "")
    _check_uri(uri, create=create)
    os.environ.update(_ALWAYS)
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise MlflowError(f"this needs MLflow ({error}): pip install -e '.[mlflow]'") from None
    try:
        yield Connection(uri, MlflowClient(tracking_uri=uri, registry_uri=uri))
    except MlflowException as error:
        raise MlflowError(f"MLflow at {without_credentials(uri)}: {_one_line(error)}") from None
    except requests.RequestException as error:
        raise MlflowError(f"MLflow at {without_credentials(uri)}: broke off: {_one_line(error)}") from None


def without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.username else uri


def _check_uri(uri: str, *, create: bool) -> None:
    if not uri:
        raise MlflowError(f"which MLflow? Name it with --tracking-uri, or in {URI_VARIABLE}")
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in SERVERS:
        _probe(uri)
    elif scheme not in DATABASES:
        raise MlflowError(
            f"--tracking-uri {without_credentials(uri)}: expected http://HOST:PORT of an MLflow server, or its "
            "database, such as sqlite:///mlflow.db"
        )
    file = _sqlite_file(uri)
    if file and not create and not file.is_file():
        raise MlflowError(f"{file}: no such database; sqlite:///FILE is relative, sqlite:////FILE is absolute")


def _probe(uri: str) -> None:
    """MLflow itself would try for minutes before it says that nobody answers."""
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S, allow_redirects=False, stream=True).close()
    except (requests.RequestException, ValueError):
        raise MlflowError(
            f"no MLflow server answers at {without_credentials(uri)}; start it, or name another --tracking-uri"
        ) from None


def _sqlite_file(uri: str) -> Path | None:
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme.partition("+")[0] == "sqlite" else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return without_credentials(text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}...")
