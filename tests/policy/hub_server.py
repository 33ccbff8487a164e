"""A server on this machine that speaks as much of the Hugging Face Hub's language as pushing and fetching need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
TOKEN = "hf_stand_in"


@contextmanager
def serving(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a server answer, with no proxy in between."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Repository:
    """Commits by hash, each the bytes of its files by path; `refs` are the branches."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit with exactly these files."""
        oid = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = dict(files), oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a hash means."""
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision."""
        oid = self.find(revision)
        assert oid is not None
        return self.commits[oid]


class HubHandler(BaseHTTPRequestHandler):
    """The Hub's API, for models; `LFS` transfers in one piece."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.server
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with hub.lock:
            hub.asked.append((self.command, path))
            if hub.status:
                return self._error(hub.status, *hub.error)
            if match := re.fullmatch(r"/lfs/(\w+)", path):
                assert hashlib.sha256(self.body).hexdigest() == match[1]
                hub.blobs[match[1]] = self.body
                return self._json({})
            writing = self.command in ("POST", "PUT") and "/paths-info/" not in path
            if (
                writing
                and "validate-yaml" not in path
                and self.headers.get("Authorization") != f"Bearer {TOKEN}"
            ):
                return self._error(401, "", "Invalid credentials in Authorization header")
            if path == "/api/repos/create":
                return self._create(json.loads(self.body))
            if path == "/api/validate-yaml":
                hub.validated.append(json.loads(self.body)["content"])
                return self._json({"errors": [], "warnings": []})
            if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
                return self._lfs(json.loads(self.body))
            if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w[\w-]*)(?:/(.+))?)?", path):
                return self._api(match[1], match[2] or "revision", match[3] or "main", parse_qs(url.query))
            if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
                return self._resolve(match[1], match[2], match[3])
        self._error(404, "EntryNotFound", f"no such endpoint: {self.command} {path}")

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            self._error(404 if allowed else 401, "RepoNotFound", "Repository not found")
        elif found.gated and not allowed:
            self._error(403, "GatedRepo", "Access to this model is restricted")
        else:
            return found
        return None

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] in self.server.closed:
            return self._error(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.server.repositories:
            return self._error(
                409, "", "You already created this model repo", url=f"{self.server.address}/{name}"
            )
        private = asked.get("private") or asked.get("visibility") == "private"  # hub 1 and hub 2
        self.server.repositories[name] = Repository(bool(private))
        self._json({"url": f"{self.server.address}/{name}", "name": name})

    def _api(self, name: str, what: str, revision: str, query: dict[str, list[str]]) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if what in ("branch", "preupload", "commit") and name.partition("/")[0] in self.server.closed:
            return self._error(403, "", "You don't have write access to this repository")
        if what == "branch":
            if revision in repository.refs:
                return self._error(409, "", "Reference already exists")
            repository.refs[revision] = repository.refs["main"]
            return self._json({})
        revision = revision.partition("/")[0]
        commit = repository.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "tags": []}
            return self._json({**facts, "siblings": siblings, "downloads": 0, "likes": 0, "gated": False})
        if what == "tree":
            return self._json([_entry(path, data) for path, data in files.items()])
        if what == "paths-info":
            return self._json([])
        if what == "preupload":
            asked = json.loads(self.body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False, "oid": None}
                for f in asked
            ]
            return self._json({"files": modes})
        if what == "commit":
            return self._commit(repository, name, revision, files)
        self._error(404, "EntryNotFound", f"no such endpoint: {what}")

    def _commit(self, repository: Repository, name: str, branch: str, files: dict[str, bytes]) -> None:
        files, summary = dict(files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(key)
        oid = repository.commit(branch, files, summary)
        self._json({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid})

    def _lfs(self, asked: dict[str, Any]) -> None:
        objects = []
        for wanted in asked["objects"]:
            action = {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
            known = wanted["oid"] in self.server.blobs
            objects.append({**wanted, **({} if known else {"actions": action})})
        self._json({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repository.commits[commit]:
            return self._error(404, "EntryNotFound", "Entry not found")
        data = repository.commits[commit][path]
        given = self.headers.get("Range")
        start = int(given.removeprefix("bytes=").split("-")[0]) if given else 0
        entry = _entry(path, data)
        etag = entry.get("lfs", entry)["oid"]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        if "lfs" in entry:
            self.send_header("X-Linked-ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop(0) if self.server.cuts else len(data)
            self.wfile.write(data[start : start + cut])
            self.close_connection = cut < len(data)

    def _json(self, content: Any, kind: str = "application/json") -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _error(self, status: int, code: str, message: str, **more: str) -> None:
        answer = json.dumps({"error": message, **more}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)


class HubServer(ThreadingHTTPServer):
    """The stand-in, and what it is told to do.

    Attributes:
        cuts: bytes after which it hangs up on a file, one an answer; later ones are whole.
        status: an error that it answers with instead, and `error` its code and message.
        closed: owners that the token may not write to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.validated: list[str] = []
        self.cuts: list[int] = []
        self.status, self.error = 0, ("", "")
        self.closed: set[str] = set()

    def fetched(self) -> list[str]:
        """The files that were asked for, each once."""
        return sorted(
            {
                path.rpartition("/")[2]
                for method, path in self.asked
                if method == "GET" and "/resolve/" in path
            }
        )

    def environment(self, cache: Path) -> dict[str, str]:
        """What lets a process use the stand-in."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


def use(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process use the stand-in: the Hub's client has read its environment already."""
    from huggingface_hub import constants, file_download

    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".onnx")) else "regular"


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if _mode(path) == "lfs":
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
