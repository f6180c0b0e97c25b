"""A stand-in for W&B's server on this machine, well or ill, and the logins that are sent to it."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sae_utils.training.wandb_login import stop_service

Answer = tuple[int, dict]
"""Status and body."""

HANGS = threading.Event()
"""What a request waits for that gets no answer; never set."""

QUERY_NAME = re.compile(r"(?:query|mutation) (\w+)")

VIEWER = {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}}


class WandbServer:
    """Answers as W&B's server does, as far as its client asks; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Names of the queries, and paths of the other requests, in their order."""

        self.sent: dict[str, Any] = {}
        """By run id, the last summary that was sent."""

        self.answers: dict[str, Callable[[], Answer]] = {}
        """By the name of a query, or `""` for every request, what is answered instead."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        """Close the port."""
        self.http.shutdown()
        self.http.server_close()

    def _answer(self, path: str, body: dict) -> Answer:
        name = body.get("operationName") or (QUERY_NAME.search(body.get("query", "")) or [None, path])[1]
        if "otel" in path:  # how W&B's client is doing
            return 200, {}
        self.asked.append(name)
        for each in ("", name):
            if each in self.answers:
                return self.answers[each]()
        if summary := body.get("files", {}).get("wandb-summary.json"):
            self.sent[path.split("/")[-2]] = json.loads(summary["content"][-1])
        return 200, {"data": self.data_of(name, body.get("variables", {}) | {"url": f"{self.url}/upload"})}

    @staticmethod
    def data_of(name: str, variables: dict) -> dict:
        """What a query is answered by a server that is well."""
        entity, project = variables.get("entity") or "me", variables.get("project") or "p"
        where = {"id": "cDox", "name": project, "entity": {"id": "e", "name": entity}}
        if name == "Viewer":
            return VIEWER
        if name == "UpsertBucket":
            about = {"id": "aWQ=", "name": variables["name"], "displayName": "", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"inserted": True, "bucket": about | {"project": where}}}
        if name == "RunResumeStatus":
            return {"model": where | {"bucket": None}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": variables["url"]} for each in variables["files"]]
            return {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": files}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateArtifact":  # as one whose files the server has already
            artifact = {"id": "QXJ0aWZhY3Q6MQ==", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if name == "ArtifactByID":
            return {"artifact": artifact_of(where | {"internalId": "SW50OjE="})}
        return {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                is_json = "json" in self.headers.get("Content-Type", "")
                status, body = answer(self.path, json.loads(content) if is_json else {})
                encoded = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            do_PUT = do_GET = do_POST  # noqa: N815  names of http.server's

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # of a client that has ended
                    super().handle()

            def log_message(self, *what) -> None:
                pass

        return Handler


def artifact_of(project: dict) -> dict:
    """A complete artefact, as W&B's server describes it."""
    sequence = {"__typename": "ArtifactSequence", "id": "QXJ0aWZhY3RTZXF1ZW5jZTox", "name": "a", "project": project}
    numbers = {"versionIndex": 0, "ttlDurationSeconds": -2, "historyStep": None, "size": 1, "fileCount": 1}
    texts = {"description": None, "metadata": None, "digest": "d", "commitHash": None, "state": "COMMITTED"}
    times = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00Z")
    about = {
        "__typename": "Artifact",
        "id": "QXJ0aWZhY3Q6MQ==",
        "artifactSequence": sequence,
        "tags": [],
        "aliases": [],
    }
    return about | numbers | texts | times | {"artifactType": {"name": "comparison"}, "ttlIsInherited": True}


def no_answer() -> Answer:
    """What is answered by a server that hangs."""
    HANGS.wait()
    raise AssertionError


def refusal(status: int, message: str) -> Callable[[], Answer]:
    """An error, as W&B's server says it."""
    return lambda: (status, {"errors": [{"message": message}], "data": None})


@contextlib.contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server, and a login there, for a process of W&B's that knows of no other; it is ended with them."""
    stop_service()
    server = WandbServer()
    log_in(monkeypatch, server.url)
    yield server
    stop_service()
    server.go_away()


@contextlib.contextmanager
def deaf_port(*, listens: bool) -> Iterator[str]:
    """Address of a port that nobody listens at, or that accepts and never answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if listens:
            held.listen()
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As a user who is logged in to this server, and has set no mode."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines that a user sees with `--quiet`, too."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
