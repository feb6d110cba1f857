"""Artifacts from and to a real MLflow, with its SQLite store and with its server in front of that."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from carla_policy.card import load_card
from carla_policy.errors import ArtifactError
from carla_policy_tools.artifact import load_artifact, verify_artifact, write_card
from carla_policy_tools.cli import app
from carla_policy_tools.export.serialization import write_network
from carla_policy_tools.mlflow_adapter.connection import MlflowError, without_credentials
from tests.mlflow_server import DishonestServer, mlflow_server
from tests.synthetic import make_artifact, signature_of
from tests.test_export_modules import filled_card, network_of, recorded_observations

pytest.importorskip("mlflow", reason="MLflow is not here: pip install -e '.[mlflow]'")
pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not here: pip install -e '.[mlflow]'")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables, so once."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copyfile(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("graphene", reason="what `mlflow server` needs is not here: pip install -e '.[test]'")
    with mlflow_server(tmp_path_factory.mktemp("server"), empty_database) as url:
        yield url


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifacts"), "v1.0.0")


def run(*words: str, uri: str | None = None) -> dict[str, Any]:
    """What `carla-policy mlflow ... --json` prints."""
    result = CliRunner().invoke(app, ["mlflow", words[0], "--json", *_of(uri), *words[1:]])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _of(uri: str | None) -> list[str]:
    return ["--tracking-uri", uri] if uri else []


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def register_files(uri: str, name: str, directory: Path) -> str:
    """Register the files of a directory as anyone would who does not know this project; the run's id."""
    client = client_of(uri)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    experiment = client.get_experiment_by_name("theirs")
    location = str(directory.parent / "mlflow-artifacts") if uri.startswith("sqlite") else None
    number = experiment.experiment_id if experiment else client.create_experiment("theirs", location)
    ran = client.create_run(number).info
    client.log_artifacts(ran.run_id, str(directory), "model")
    client.create_model_version(name, f"{ran.artifact_uri}/model", ran.run_id)
    return str(ran.run_id)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("store", ["database", "server"])
def test_logged_artifact_comes_back_byte_for_byte(
    store: str, artifact: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue(store)
    logged = run("log", str(artifact), "--name", "racer", uri=uri)
    assert (logged["version"], logged["model_version"], logged["unchanged"]) == ("v1.0.0", "1", False)
    taken = run("pull", "racer", "--artifacts", str(tmp_path / "pulled"), uri=uri)
    assert (taken["version"], taken["model"], taken["model_version"]) == ("v1.0.0", "racer", "1")
    assert files_of(tmp_path / "pulled" / "v1.0.0") == files_of(artifact)
    assert names(tmp_path / "pulled") == ["v1.0.0"]
    again = run("pull", "racer/1", "--artifacts", str(tmp_path / "pulled"), uri=uri)
    assert again["unchanged"]


def test_run_has_the_numbers_and_texts_of_the_card(database: str, tmp_path: Path) -> None:
    metrics = {"mean_return": 413.57, "episodes": 10, "scene": "racetrack"}
    directory = make_artifact(tmp_path / "artifacts", "v1.0.0", card={"performance_metrics": metrics})
    logged = run("log", str(directory), uri=database)
    found = client_of(database).get_run(logged["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"mean_return": 413.57, "episodes": 10.0}
    assert {"head": "gaussian", "version": "v1.0.0", "scene": "racetrack"}.items() <= found.data.params.items()


def test_artifact_is_logged_once_and_never_with_other_content(database: str, artifact: Path, tmp_path: Path) -> None:
    run("log", str(artifact), uri=database)
    assert run("log", str(artifact), uri=database)["unchanged"]
    assert len(client_of(database).search_model_versions("name='carla_policy'")) == 1
    other = make_artifact(tmp_path / "artifacts", "v1.0.0", card={"description": "another"})
    with pytest.raises(MlflowError, match=r"v1\.0\.0 was logged before with other content, as carla_policy version 1"):
        run("log", str(other), uri=database)
    path = other / "model_card.yaml"
    path.write_text(path.read_text().replace("another", "a third one"))
    with pytest.raises(ArtifactError, match="content has changed"):
        run("log", str(other), uri=database)


def test_run_that_breaks_off_is_marked_failed_and_registers_nothing(
    database: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.pt")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(OSError, match="No space left"):
        run("log", str(artifact), uri=database)
    client = client_of(database)
    (failed,) = client.search_runs([client.get_experiment_by_name("carla_policy").experiment_id])
    assert failed.info.status == "FAILED"
    assert client.search_registered_models() == []


@pytest.mark.parametrize("store", ["database", "server"])
def test_registered_network_becomes_an_artifact_that_says_where_it_came_from(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue(store)
    files = tmp_path / "files"
    (files / "data").mkdir(parents=True)
    write_network(network_of("gaussian"), files / "data" / "actor.pt", signature_of(7, 2, "gaussian", False))
    recorded_observations(files / "rows.npz")
    run_id = register_files(uri, "exported", files)
    card = tmp_path / "card.yaml"
    card.write_text(yaml.dump(filled_card("gaussian"), sort_keys=False))
    words = ["torchscript", "{}/data/actor.pt", "--card", str(card), "--observations", "{}/rows.npz"]
    target = tmp_path / "artifacts"
    done = run("pull", "exported/1", "--version", "v3.1.0", "--artifacts", str(target), "--", *words, uri=uri)
    assert done["version"] == "v3.1.0"
    assert names(target) == ["v3.1.0"]
    load_artifact(target / "v3.1.0")
    origin = load_card(target / "v3.1.0" / "model_card.yaml").provenance
    assert origin
    assert (origin.mlflow, origin.model, origin.version, origin.run_id) == (uri, "exported", "1", run_id)
    assert origin.files.startswith("sha256:")


def test_failed_export_leaves_nothing(database: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "actor.pt").write_bytes(b"no network")
    register_files(database, "broken", files)
    target = tmp_path / "artifacts"
    with pytest.raises(ValueError, match=r"actor\.pt: does not load"):
        run("pull", "broken", "--artifacts", str(target), "--", "torchscript", "{}/actor.pt", uri=database)
    assert names(target) == []


@pytest.mark.parametrize("file", ["model.pt", "golden.npz", "preprocessor.pkl", "model_card.yaml"])
def test_registered_artifact_whose_bytes_have_changed_is_refused_and_nothing_is_left(
    file: str, database: str, artifact: Path, tmp_path: Path
) -> None:
    run("log", str(artifact), "--name", "racer", uri=database)
    (stored,) = tmp_path.rglob(f"mlflow-artifacts/*/artifacts/artifact/{file}")
    stored.write_bytes(stored.read_bytes().replace(b"a", b"b"))
    with pytest.raises(ArtifactError, match=r"content has changed|not"):
        run("pull", "racer", "--artifacts", str(tmp_path / "pulled"), uri=database)
    assert names(tmp_path / "pulled") == []


def test_files_beside_those_of_an_artifact_are_left_where_they_are(
    database: str, artifact: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(artifact, tmp_path / "theirs"))
    (theirs / "MLmodel").write_text("flavors: {}")
    register_files(database, "racer", theirs)
    run("pull", "racer", "--artifacts", str(tmp_path / "pulled"), uri=database)
    assert files_of(tmp_path / "pulled" / "v1.0.0") == files_of(artifact)


def test_alias_names_a_version_and_no_version_means_the_newest(database: str, artifact: Path, tmp_path: Path) -> None:
    run("log", str(artifact), uri=database)
    run("log", str(make_artifact(tmp_path / "artifacts", "v1.1.0")), uri=database)
    client_of(database).set_registered_model_alias("carla_policy", "champion", "1")
    pulled = ["--artifacts", str(tmp_path / "pulled")]
    assert run("pull", "carla_policy@champion", *pulled, uri=database)["version"] == "v1.0.0"
    assert run("pull", "models:/carla_policy", *pulled, uri=database)["version"] == "v1.1.0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["racer@champion"], "racer has no alias 'champion'; it has none"),
        (["racer/7"], "racer has not version 7; it has 1"),
        (["other"], "has no registered model 'other'; it has racer"),
        (["racer/x/y"], "expected NAME, NAME/VERSION or NAME@ALIAS"),
        (
            ["racer", "--version", "v2.0.0"],
            "is the sealed artifact v1.0.0, which cannot become v2.0.0; leave --version out",
        ),
        (
            ["racer", "--", "sb3", "model.zip"],
            "none of the words after -- names a file of the model, as {}/artifact|{}/",
        ),
    ],
)
def test_what_mlflow_does_not_have_is_said_in_one_line_with_what_it_has(
    words: list[str], message: str, database: str, artifact: Path, tmp_path: Path
) -> None:
    run("log", str(artifact), "--name", "racer", uri=database)
    name, *rest = words
    with pytest.raises(MlflowError) as refused:
        run("pull", name, "--artifacts", str(tmp_path / "pulled"), *rest, uri=database)
    assert any(part in str(refused.value) for part in message.split("|"))
    assert "\n" not in str(refused.value)
    assert names(tmp_path / "pulled") == []


def test_model_that_is_no_artifact_says_which_files_it_has(database: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "sac.zip").write_bytes(b"a checkpoint")
    register_files(database, "racer", files)
    with pytest.raises(
        MlflowError, match=r"racer version 1 is no artifact .* \(it has sac\.zip\); say how to export it"
    ):
        run("pull", "racer", "--artifacts", str(tmp_path / "pulled"), uri=database)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, "which MLflow? Name it with --tracking-uri, or in MLFLOW_TRACKING_URI"),
        ("http://127.0.0.1:9", "no MLflow server answers at http://127.0.0.1:9; start it"),
        ("http://user:secret@127.0.0.1:9", "no MLflow server answers at http://127.0.0.1:9; start it"),
        ("./mlruns", "expected http://HOST:PORT of an MLflow server, or its database"),
        ("sqlite:///nowhere/mlflow.db", "nowhere/mlflow.db: no such database"),
    ],
)
def test_wrong_tracking_uri_says_what_to_do(uri: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for verb in (["pull", "racer"], ["push"]):
        with pytest.raises((MlflowError, ValueError)) as refused:
            run(*verb, uri=uri)
        if verb[0] == "pull":
            assert message in str(refused.value)
            assert "secret" not in str(refused.value)


def test_server_that_is_no_mlflow_is_named(tmp_path: Path) -> None:
    with DishonestServer({}, b"<html>").running() as url, pytest.raises(MlflowError, match=f"MLflow at {url}: ") as no:
        run("log", str(make_artifact(tmp_path, "v1.0.0")), uri=url)
    assert "\n" not in str(no.value)


def test_uri_is_shown_without_name_and_password() -> None:
    assert without_credentials("https://user:secret@mlflow.example:5000/x") == "https://mlflow.example:5000/x"


def _file(path: str, size: int | None = 10) -> dict[str, Any]:
    return {"path": path, "is_dir": False, **({} if size is None else {"file_size": size})}


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ({"": [_file("../escaped")]}, "lists|nvalid|refused"),
        ({"": [_file("/etc/passwd")]}, "lists|nvalid|refused"),
        ({"": [_file("a\\b")]}, "lists"),
        ({"": [_file("weights", None)]}, "does not say how large"),
        ({"": [_file("weights", -1)]}, "does not say how large"),
        ({"": [_file("weights", 2 << 30)]}, "expected at most 1024 MiB"),
        ({"": [_file(f"file{n}") for n in range(201)]}, "more than 200 files"),
        ({"/".join("d" * n): [{"path": "d", "is_dir": True}] for n in range(20)}, "more than 6 deep"),
    ],
    ids=["parent", "absolute", "backslash", "no size", "negative", "too large", "too many", "too deep"],
)
def test_listing_of_a_server_cannot_escape_or_go_on_for_ever(
    listing: dict[str, Any], message: str, tmp_path: Path
) -> None:
    target = tmp_path / "artifacts"
    with DishonestServer(listing, b"x" * 10).running() as url, pytest.raises(MlflowError, match=message):
        run("pull", "racer", "--artifacts", str(target), "--", "sb3", "{}/weights", uri=url)
    assert names(target) == []
    assert [path.name for path in tmp_path.iterdir()] in ([], ["artifacts"])


# MLflow leaves the socket of a copy that was ended open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("sent", [9, 11, 64 << 20], ids=["shorter", "longer", "far longer"])
def test_file_that_is_not_as_long_as_was_listed_is_refused(sent: int, tmp_path: Path) -> None:
    served = DishonestServer({"": [_file("model_card.yaml")]}, b"x" * sent)
    with served.running() as url, pytest.raises(MlflowError, match=r"expected a file of 10 bytes|File too large"):
        run("pull", "racer", "--artifacts", str(tmp_path / "artifacts"), uri=url)
    assert names(tmp_path / "artifacts") == []
    gc.collect()


@pytest.mark.parametrize(
    "location", ["file:///etc", "/etc", "http://elsewhere/x", "mlflow-artifacts://elsewhere:1/x", "ftp://elsewhere/x"]
)
def test_server_cannot_point_to_files_of_this_machine_or_to_other_hosts(location: str, tmp_path: Path) -> None:
    with DishonestServer({}, b"", location).running() as url, pytest.raises(MlflowError, match="are at"):
        run("pull", "racer", "--artifacts", str(tmp_path / "artifacts"), uri=url)


def test_command_line_imports_no_mlflow_and_verbs_switch_its_telemetry_off(database: str) -> None:
    code = (
        "import sys, carla_policy_tools.cli as cli\n"
        "assert 'mlflow' not in sys.modules and 'sqlalchemy' not in sys.modules\n"
        "from carla_policy_tools.mlflow_adapter.connection import connect\n"
        f"with connect({database!r}) as connection:\n"
        "    connection.client.search_registered_models()\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "assert is_telemetry_disabled() and get_telemetry_client() is None\n"
    )
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST")
    }
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120, env=clean)


def test_without_mlflow_a_verb_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(MlflowError, match=r"pip install -e '\.\[mlflow\]'"):
        run("pull", "racer", uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_card_with_a_changed_origin_is_refused(artifact: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(artifact, tmp_path / "v1.0.0"))
    content = yaml.safe_load((directory / "model_card.yaml").read_text())
    digest = f"sha256:{'0' * 64}"
    origin = {"mlflow": "http://localhost:5000", "model": "racer", "version": "7", "files": digest}
    write_card(directory, content | {"provenance": origin})
    path = directory / "model_card.yaml"
    path.write_text(path.read_text().replace("version: '7'", "version: '8'"))
    with pytest.raises(ArtifactError, match="content has changed"):
        verify_artifact(directory)
    with pytest.raises(ArtifactError, match=r"provenance\.version"):
        write_card(directory, content | {"provenance": {**origin, "version": "latest"}})
