"""A hub on this machine: the few calls of huggingface_hub's that read, fetch and push repositories, counted."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

NAME, COMMIT = "somebody/texts", "0123456789" * 4
TOKEN, ACCOUNT = "hf_of_nobody", {"name": "me", "orgs": [{"name": "somebody"}]}
LFS_ENDINGS = (".arrow", ".safetensors")
"""Of files that are kept apart from the others, as the hub's own `.gitattributes` has it."""

ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS)

Key = tuple[str, str]
"""A repository: `models` or `datasets`, and its id."""


class Hub(ThreadingHTTPServer):
    """The server. A repository is a folder, under its kind (`models` or `datasets`) and id."""

    def __init__(self, folders: dict[Key, Path], root: Path) -> None:
        """Serve repositories, and take new ones below `root`."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders, self.root = folders, root
        self.account: dict[str, Any] = ACCOUNT
        self.visibility: dict[Key, str] = {}
        self.titles: dict[tuple[str, str, str], str] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.calls: list[str] = []
        self.before: Callable[[str], int | None] = lambda call: None
        self.n_requests = 0
        self.n_bytes = 0
        self.n_bytes_taken = 0
        self.breaks_after_bytes: int | None = None

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *arguments: Any) -> None:
        """Say nothing of clients that are gone."""

    def files(self, kind: str, repo: str) -> dict[str, bytes]:
        """What a repository holds."""
        folder = self.folders[kind, repo]
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def edit(self, kind: str, repo: str, name: str, text: str) -> None:
        """Change a file as people do on the hub's pages."""
        (self.folders[kind, repo] / name).write_text(text)
        self.titles[kind, repo, name] = f"Update {name}"


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A hub that has the files of a folder as the data set `NAME`, for as long as the block lasts."""
    with running(Hub({("datasets", NAME): folder}, folder.with_name("pushed"))) as hub:
        yield hub


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """A hub at work, for as long as the block lasts."""
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def git_hash(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.n_requests += 1
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command in ("POST", "PUT") else b""
        )
        self.server.n_bytes_taken += len(self.body)
        path, _, self.query = self.path.partition("?")
        self.server.calls.append(f"{self.command} {path}")
        if (refusal := self.server.before(f"{self.command} {path}")) is not None:
            return self._send_json({"error": "no"}, refusal)
        for method, pattern, answer in _CALLS:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                return answer(self, *match.groups())
        return self._send_json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    # who and where

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _whoami(self) -> None:
        if self._is_known():
            self._send_json({"type": "user", **self.server.account})
        else:
            self._send_json({"error": "no"}, 401)

    def _create(self) -> None:
        asked = json.loads(self.body)
        key = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in [
            self.server.account["name"],
            *(o["name"] for o in self.server.account["orgs"]),
        ]:
            return self._send_json({"error": "You don't have the rights"}, 403)
        if key in self.server.folders:
            return self._send_json({"error": "You already created this"}, 409)
        self.server.folders[key] = self.server.root / "/".join(key)
        self.server.folders[key].mkdir(parents=True)
        (self.server.folders[key] / ".gitattributes").write_text(ATTRIBUTES)
        self.server.visibility[key] = asked.get("visibility") or ("private" if asked.get("private") else "public")
        return self._send_json({"url": f"{self.server.address}/{key[1]}"})

    def _folder(self, kind: str, repo: str) -> Path | None:
        """A repository's folder; says so if there is none that this client may see."""
        folder = self.server.folders.get((kind, repo))
        if folder is None or (self.server.visibility.get((kind, repo)) == "private" and not self._is_known()):
            self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return folder

    # reading

    def _info(self, kind: str, repo: str) -> None:
        if (folder := self._folder(kind, repo)) is not None:
            found = [self._about(kind, repo, each) for each in sorted(folder.rglob("*")) if each.is_file()]
            files = [{"rfilename": each["path"], "size": each["size"], "blobId": each["oid"]} for each in found]
            self._send_json({"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": files})

    def _tree(self, kind: str, repo: str, below: str | None) -> None:
        if (folder := self._folder(kind, repo)) is not None:
            top = folder / (below or "").strip("/")
            each = top.rglob("*") if "recursive=true" in self.query.lower() else top.iterdir()
            self._send_json([self._about(kind, repo, one) for one in sorted(each)])

    def _paths_info(self, kind: str, repo: str) -> None:
        if (folder := self._folder(kind, repo)) is not None:
            paths = [folder / name for name in parse_qs(self.body.decode())["paths"]]
            self._send_json([self._about(kind, repo, path) for path in paths if path.exists()])

    def _about(self, kind: str, repo: str, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.server.folders[kind, repo]))
        if path.is_dir():
            return {"type": "directory", "oid": "0", "size": 0, "path": name}
        data = path.read_bytes()
        title = self.server.titles.get((kind, repo, name), "initial commit")
        last = {"id": COMMIT, "title": title, "date": "2026-01-01T00:00:00.000Z"}
        found = {"type": "file", "oid": git_hash(data), "size": len(data), "path": name, "lastCommit": last}
        if name.endswith(LFS_ENDINGS):
            oid = hashlib.sha256(data).hexdigest()
            found |= {"oid": git_hash(oid.encode()), "lfs": {"oid": oid, "size": len(data), "pointerSize": 134}}
        return found

    def _resolve(self, kind: str | None, repo: str, name: str) -> None:
        folder = self._folder(kind or "models", repo)
        if folder is None:
            return None
        if not (folder / name).is_file():
            return self._send_json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self._send_file(folder / name)

    # taking

    def _validate(self) -> None:
        self._send_json({})

    def _preupload(self, kind: str, repo: str) -> None:
        if (folder := self._folder(kind, repo)) is not None:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(LFS_ENDINGS) else "regular",
                    "shouldIgnore": False,
                    "oid": git_hash((folder / each["path"]).read_bytes()) if (folder / each["path"]).exists() else None,
                }
                for each in json.loads(self.body)["files"]
            ]
            self._send_json({"files": files})

    def _batch(self, kind: str | None, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.server.objects:
                each["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}}
        self._send_json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._send_json({"error": "other bytes"}, 400)
        self.server.objects[oid] = self.body
        return self._send_json({})

    def _commit(self, kind: str, repo: str) -> None:
        if (folder := self._folder(kind, repo)) is None:
            return
        header, *changes = (json.loads(line) for line in self.body.splitlines())
        for change in changes:
            about, name = change["value"], change["value"]["path"]
            if change["key"] == "deletedFile":
                (folder / name).unlink()
                continue
            is_file = change["key"] == "file"
            data = base64.b64decode(about["content"]) if is_file else self.server.objects[about["oid"]]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            self.server.titles[kind, repo, name] = header["value"]["summary"]
        self.server.commits.append(repo)
        self._send_json({"commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    # sending

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
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever has enough hangs up
                self.wfile.write(body)


_REPO = r"(models|datasets)/([\w.-]+/[\w.-]+)"
_CALLS = [
    ("GET", "/api/whoami-v2", _Handler._whoami),
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", rf"/api/{_REPO}(?:/revision/\w+)?", _Handler._info),
    ("GET", rf"/api/{_REPO}/tree/\w+(/.*)?", _Handler._tree),
    ("POST", rf"/api/{_REPO}/paths-info/\w+", _Handler._paths_info),
    ("POST", rf"/api/{_REPO}/preupload/\w+", _Handler._preupload),
    ("POST", rf"/api/{_REPO}/commit/\w+", _Handler._commit),
    ("POST", r"/(?:(datasets)/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/(\w+)", _Handler._put),
    ("GET", r"/(?:(datasets)/)?([\w.-]+/[\w.-]+)/resolve/\w+/(.*)", _Handler._resolve),
]
"""What is answered: method, path, by what."""
