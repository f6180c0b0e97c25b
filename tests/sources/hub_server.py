"""A hub on this machine that has one data set: what streaming asks for, and how many bytes of files it was sent."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME, COMMIT = "somebody/texts", "0123456789" * 4


class Hub(ThreadingHTTPServer):
    """The server."""

    def __init__(self, folder: Path) -> None:
        """Serve the files of a folder as the data set `NAME`."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.n_requests = 0
        self.n_bytes = 0
        self.breaks_after_bytes: int | None = None

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A hub that has the files of a folder, for as long as the block lasts."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.n_requests += 1
        path, _, query = self.path.partition("?")
        folder = self.server.folder
        if re.fullmatch(rf"/api/datasets/{NAME}(/revision/\w+)?", path):
            files = [{"rfilename": str(each.relative_to(folder))} for each in folder.rglob("*") if each.is_file()]
            self._send_json({"id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": files})
        elif (match := re.fullmatch(rf"/api/datasets/{NAME}/tree/\w+(/.*)?", path)) and (
            top := folder / (match[1] or "").strip("/")
        ).exists():
            each = top.rglob("*") if "recursive=true" in query.lower() else top.iterdir()
            self._send_json([self._about(one) for one in sorted(each)])
        elif (match := re.fullmatch(rf"/datasets/{NAME}/resolve/\w+/(.*)", path)) and (folder / match[1]).is_file():
            self._send_file(folder / match[1])
        else:
            self._send_json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _about(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.server.folder))
        if path.is_dir():
            return {"type": "directory", "oid": "0", "size": 0, "path": name}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}

    def _send_json(self, content: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self._send(body)

    def _send_file(self, path: Path) -> None:
        data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)) if asked else (0, len(data) - 1)
        limit = self.server.breaks_after_bytes
        if limit is not None and self.server.n_bytes >= limit and self.command == "GET":
            self._send_json({"error": "gone"}, 403)
            return
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        if self.command == "GET":
            self.server.n_bytes += last + 1 - first
        self._send(data[first : last + 1])

    def _send(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever has enough hangs up
                self.wfile.write(body)
