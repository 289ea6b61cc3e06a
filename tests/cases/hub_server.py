"""A stand-in for the Hugging Face Hub on the loopback address: what its client asks to upload a folder and to read it.

Repositories are made, files go there by commits, large ones by LFS before; all of it needs the token. Anyone may read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import running

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".onnx", ".pt2", ".pth", ".bin")  # what the hub keeps by LFS
REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Files by name, commits' messages, and whether it is private."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The name of the last commit."""
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Holds the repositories. ``refuse`` is a status with which every commit is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.refuse: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Runs a hub until the block is left."""
    hub = Hub()
    with running(hub):
        yield hub


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer(_READING)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(_WRITING)

    do_PUT = do_POST

    def _answer(self, routes: dict[str, Any]) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, path):
                named = found.groupdict()
                if routes is _WRITING and self.command == "POST" and not self._logged_in():
                    return self.tell(401, {"error": "Invalid credentials in Authorization header"})
                if (name := named.pop("repository", None)) is not None:
                    if name not in self.server.repositories:
                        return self.tell(404, {"error": "Repository not found"}, code="RepoNotFound")
                    named["repository"] = self.server.repositories[name]
                return route(self, **named)
        return self.tell(404, {"error": f"the stand-in knows no {self.command} {path}"})

    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def tell(self, status: int, content: Any, *, code: str = "", **headers: str) -> None:
        """Sends JSON or bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if code:
            self.send_header("X-Error-Code", code)
        if status >= 400 and not isinstance(content, bytes):
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _create(handler: _Handler) -> None:
    asked = json.loads(handler.body)
    name = f"{asked['organization']}/{asked['name']}"
    held = handler.server.repositories
    status = 409 if name in held else 200
    held.setdefault(name, Repository("private" in (asked.get("visibility"), asked.get("private") and "private")))
    handler.tell(status, {"url": f"{handler.server.url}/{name}", "error": "You already created this model repo"})


def _validate(handler: _Handler) -> None:
    content = json.loads(handler.body)["content"]
    faults = [] if content.startswith("---\n") else [{"message": "no metadata"}]
    handler.tell(400 if faults else 200, {"errors": faults, "warnings": [], "error": "Invalid metadata"})


def _preupload(handler: _Handler, repository: Repository) -> None:
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
        }
        for file in json.loads(handler.body)["files"]
    ]
    handler.tell(200, {"files": files})


def _batch(handler: _Handler, repository: Repository) -> None:
    objects = json.loads(handler.body)["objects"]
    for one in objects:
        if one["oid"] not in handler.server.large:
            one["actions"] = {"upload": {"href": f"{handler.server.url}/large/{one['oid']}"}}
    handler.tell(200, {"transfer": "basic", "objects": objects})


def _put(handler: _Handler, oid: str) -> None:
    fits = hashlib.sha256(handler.body).hexdigest() == oid
    if fits:
        handler.server.large[oid] = handler.body
    handler.tell(200 if fits else 400, {"error": "another checksum"})


def _commit(handler: _Handler, repository: Repository) -> None:
    if status := handler.server.refuse:
        return handler.tell(status, {"error": "no room for this commit"})
    lines = [json.loads(line) for line in handler.body.splitlines() if line.strip()]
    files = dict(repository.files)
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            repository.commits.append(value["summary"])
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = handler.server.large[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    repository.files = files
    name = next(name for name, held in handler.server.repositories.items() if held is repository)
    address = f"{handler.server.url}/{name}/commit/{repository.head}"
    return handler.tell(200, {"success": True, "commitOid": repository.head, "commitUrl": address})


def _info(handler: _Handler, repository: Repository) -> None:
    files = [{"rfilename": name} for name in repository.files]
    handler.tell(200, {"id": "", "sha": repository.head, "private": repository.private, "siblings": files})


def _tree(handler: _Handler, repository: Repository) -> None:
    listed = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in repository.files.items()
    ]
    handler.tell(200, listed)


def _resolve(handler: _Handler, repository: Repository, name: str) -> None:
    if (data := repository.files.get(name)) is None:
        return handler.tell(404, {"error": "Entry not found"}, code="EntryNotFound")
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    return handler.tell(200, data, ETag=tag, X_Repo_Commit=repository.head)


_READING = {
    rf"/{REPOSITORY}/resolve/[^/]+/(?P<name>.+)": _resolve,
    rf"/api/models/{REPOSITORY}(/revision/[^/]+)?": _info,
    rf"/api/models/{REPOSITORY}/tree/[^/]+": _tree,
}
_WRITING = {
    "/api/repos/create": _create,
    "/api/validate-yaml": _validate,
    rf"/api/models/{REPOSITORY}/preupload/[^/]+": _preupload,
    rf"/{REPOSITORY}\.git/info/lfs/objects/batch": _batch,
    r"/large/(?P<oid>\w+)": _put,
    rf"/api/models/{REPOSITORY}/commit/[^/]+": _commit,
}
