"""`serve --token-auth`: TorchServe asks for its keys, this project's verbs have them, and nobody else sees one."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from carla_policy_tools.client import curl_command
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.tokens import KeyFileError, Tokens, read_key
from carla_policy_tools.urls import local_session, prediction_url
from tests.servers import COMMAND, ServeProcess
from tests.serving import serving

OLD, NEW = "v1.9.0", "v1.10.0"
BODY = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}
POLL_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def guarded(small_store: Path) -> Iterator[ServeProcess]:
    with ServeProcess(small_store, OLD, "--token-auth") as process:
        yield process


def keys_of(server: ServeProcess) -> dict[str, str]:
    kinds = ("inference", "management", "API")
    return {kind: read_key(Path(server.ready["key_file"]), kind) for kind in kinds}


def operate(server: ServeProcess, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, "--store", str(store), "--registry", str(server.registry)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_prediction_needs_the_key_for_predictions(guarded: ServeProcess) -> None:
    keys = keys_of(guarded)
    assert guarded.post(OLD, BODY, **bearer(keys["inference"])).status_code == 200
    refused = [{}, bearer("wrong"), bearer(keys["management"]), bearer(keys["API"])]
    for headers in (*refused, {"Authorization": keys["inference"]}, {"Authorization": f"bearer {keys['inference']}"}):
        answer = guarded.post(OLD, BODY, **headers)
        assert (answer.status_code, answer.json()["type"]) == (400, "InvalidKeyException")


@pytest.mark.parametrize(
    ("port", "path", "kind"),
    [
        ("inference", "/ping", "inference"),
        ("inference", f"/predictions/carla_policy/{OLD}/healthz", "inference"),
        ("management", "/models", "management"),
        ("metrics", "/metrics", None),
        ("health", "/readyz", None),
        ("health", "/livez", None),
    ],
)
def test_each_port_asks_for_its_own_key_or_for_none(
    guarded: ServeProcess, port: str, path: str, kind: str | None
) -> None:
    url = f"{guarded.ready[port]}{path}"
    keys = {None: "", **keys_of(guarded)}
    for own, key in keys.items():
        answer = requests.get(url, headers=bearer(key) if key else {}, timeout=10)
        let_in = "InvalidKeyException" not in answer.text
        assert let_in == (kind is None or own == kind), (own, answer.status_code, answer.text)


def test_every_verb_works_and_none_shows_a_key(guarded: ServeProcess, small_store: Path) -> None:
    port = guarded.base.rpartition(":")[2]
    said = json.dumps(guarded.ready)
    for arguments in (
        ["register", NEW],
        ["promote", NEW, "--reason", "a test"],
        ["predict", "--url", f"127.0.0.1:{port}"],
        ["predict", OLD, "--url", f"http://localhost:{port}", "--json"],
        ["rollback"],
        ["retire", NEW],
        ["reconcile"],
        ["status", "--json"],
        ["status"],
        ["health"],
        ["history", "--json"],
    ):
        done = operate(guarded, small_store, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        said += done.stdout + done.stderr
    own = [path for path in Path(guarded.ready["run_dir"]).rglob("*") if path.is_file() and path.suffix != ".mar"]
    for path in (*own, guarded.registry, RegistryFile.of(small_store, guarded.registry).server_file):
        if path.name != "key_file.json":
            said += path.read_bytes().decode("latin-1")
    for key in keys_of(guarded).values():
        assert key not in said


def test_key_goes_to_the_store_s_own_server_only_and_a_file_can_be_named(guarded: ServeProcess, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(BODY))
    asked = [*COMMAND, "predict", OLD, "--url", guarded.base, "--file", str(request), "--store", str(tmp_path)]
    refused = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "400 InvalidKeyException" in refused.stderr
    named = [*asked, "--key-file", guarded.ready["key_file"]]
    done = subprocess.run(named, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_key_file_is_its_user_s_alone(guarded: ServeProcess) -> None:
    assert stat.S_IMODE(Path(guarded.ready["key_file"]).stat().st_mode) == 0o600


def test_command_that_serve_prints_to_paste_works(guarded: ServeProcess) -> None:
    command = curl_command(guarded.base, OLD, BODY, Path(guarded.ready["key_file"]))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["version"] == OLD


def test_renewed_keys_hold_at_once_the_old_ones_no_more_and_all_goes_on(small_store: Path) -> None:
    with ServeProcess(small_store, OLD, "--token-auth", "--token-minutes", "0.2", "--frozen") as server:
        first = keys_of(server)
        deadline = time.monotonic() + POLL_TIMEOUT_S
        while (now := keys_of(server))["inference"] == first["inference"] or now["management"] == first["management"]:
            assert time.monotonic() < deadline, "keys were not renewed"
            time.sleep(0.1)
        assert now["API"] == first["API"]
        assert server.post(OLD, BODY, **bearer(first["inference"])).status_code == 400
        with local_session(Tokens(Path(server.ready["key_file"]), "inference")) as session:
            assert session.post(prediction_url(server.base, OLD), json=BODY, timeout=10).status_code == 200
        assert requests.get(f"{server.ready['health']}/livez", timeout=10).status_code == 200
        assert operate(server, small_store, "promote", OLD).returncode == 0
        assert server.stop(signal.SIGTERM) == (0, "")
    assert not Path(server.ready["key_file"]).exists()


def test_lifetime_without_token_mode_is_refused(small_store: Path) -> None:
    command = [*COMMAND, "serve", "--token-minutes", "5", "--store", str(small_store)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2


class _Renewing(HTTPServer):
    """Lets in with the key `new` only; with `renews` it puts that into the file when it is asked with another."""

    def __init__(self, key_file: Path, renews: bool) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                server.asked.append(self.headers["authorization"])
                known = self.headers["authorization"] == "Bearer new"
                if not known and renews:
                    key_file.write_text('{"inference": {"key": "new"}}')
                answer = body if known else b'{"code": 400, "type": "InvalidKeyException"}'
                self.send_response(200 if known else 400)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.mark.parametrize(("renews", "status", "asked"), [(True, 200, ["old", "new"]), (False, 400, ["old"])])
def test_request_that_was_on_its_way_when_keys_were_renewed_is_asked_once_more(
    tmp_path: Path, renews: bool, status: int, asked: list[str]
) -> None:
    key_file = tmp_path / "key_file.json"
    key_file.write_text('{"inference": {"key": "old"}}')
    server = _Renewing(key_file, renews)
    with serving(server) as url, local_session(Tokens(key_file, "inference")) as session:
        answer = session.post(f"{url}/", data=b"a body", timeout=10)
    assert (answer.status_code, server.asked) == (status, [f"Bearer {key}" for key in asked])


def test_key_file_that_cannot_be_read_is_told_without_its_content(tmp_path: Path) -> None:
    key_file = tmp_path / "key_file.json"
    with pytest.raises(KeyFileError, match=r"the server's keys cannot be read: No such file.*run this as the user"):
        read_key(key_file, "inference")
    key_file.write_text('{"inference": "secret"')
    with pytest.raises(KeyFileError, match="holds no inference key; start the server again") as refused:
        read_key(key_file, "inference")
    assert "secret" not in str(refused.value)
