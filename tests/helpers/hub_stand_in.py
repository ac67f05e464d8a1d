"""A hub's HTTP interface on this machine: as much of it as uploads and downloads use, with the files kept in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LFS = (".parquet", ".tar", ".safetensors")
TAG = "v1"


class Content(bytes):
    """A file of a commit, which is sent as it is, not as JSON."""

    def __new__(cls, content, commit):
        made = super().__new__(cls, content)
        made.commit = commit
        return made


class Hub:
    """What the server keeps.

    Attributes:
        address: to be HF_ENDPOINT.
        repos: name -> whether it is private.
        kinds: name -> `dataset` or `model`.
        revisions: what a repository may be asked for.
        files: repository -> path -> bytes.
        commits: messages.
        sizes: path -> bytes that it is said to have, where they are not those that it has.
        token: the only one that may write.
    """

    def __init__(self, token: str) -> None:
        self.address = ""
        self.token = token
        self.repos: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.revisions = {"main", TAG}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.sizes: dict[str, int] = {}

    def answer(self, verb: str, path: str, body: bytes, host: str) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            kind = asked.get("type", "model")
            place = f"{host}/{'datasets/' * (kind == 'dataset')}{name}"
            if name in self.repos:
                return 409, {"error": "exists", "url": place}
            self.kinds[name] = kind
            private = asked.get("private", asked.get("visibility") == "private")  # older clients, newer ones
            self.repos[name], self.files[name] = private, {}
            return 200, {"url": place}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/objects/"):
            self.objects[path.removeprefix("/objects/")] = body
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._place(o, host) for o in json.loads(body)["objects"]],
            }
        if "/resolve/" in path:
            return self._file(path)
        kind = path.split("/")[2].removesuffix("s")
        name = "/".join(path.split("/")[3:5])
        if name not in self.repos or kind != self.kinds[name]:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if "/commit/" in path:
            self._commit(name, body)
            place = f"{host}/{'datasets/' * (kind == 'dataset')}{name}"
            return 200, {"commitUrl": f"{place}/commit/{len(self.commits)}", "commitOid": self.sha(name)}
        if "/tree/" in path:
            files = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in self.files[name].items()
            ]
            return 200, files
        if "/revision/" in path or verb == "GET":
            if "/revision/" in path and path.rpartition("/")[2] not in {*self.revisions, self.sha(name)}:
                return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
            siblings = [
                {"rfilename": file, "size": self.sizes.get(file, len(content))}
                for file, content in self.files[name].items()
            ]
            return 200, {
                "id": name,
                "sha": self.sha(name),
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
        return 404, {"error": path}

    def sha(self, name: str) -> str:
        """Of the commit that holds a repository's files as they are."""
        digest = hashlib.sha1()
        for file, content in sorted(self.files[name].items()):
            digest.update(file.encode() + b"\0" + hashlib.sha1(content).digest())
        return digest.hexdigest()

    def _file(self, path: str) -> tuple[int, Any]:
        before, _, after = path.lstrip("/").partition("/resolve/")
        name, file = before.removeprefix("datasets/"), after.partition("/")[2]
        content = self.files.get(name, {}).get(file)
        return (
            (404, {"error": "Entry not found"})
            if content is None
            else (200, Content(content, self.sha(name)))
        )

    def _place(self, asked: dict[str, Any], host: str) -> dict[str, Any]:
        action = {"upload": {"href": f"{host}/objects/{asked['oid']}", "header": {}}}
        return {"oid": asked["oid"], "size": asked["size"], "actions": action}

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.commits.append(value["summary"])
            elif entry["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[name][value["path"]] = self.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.files[name][value["path"]]


@contextmanager
def stand_in(token: str = "hf_of_a_test") -> Iterator[Hub]:
    """A hub that listens on a free port of this machine until the block ends."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            stored = path.startswith("/objects/")  # signed addresses, which take no token
            if stored or self.headers.get("Authorization") == f"Bearer {hub.token}":
                status, content = hub.answer(self.command, path, body, hub.address)
            else:
                status, content = 401, {"error": "Invalid username or password."}
            stored = isinstance(content, Content)
            data = content if stored else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if stored else "application/json")
            self.send_header("Content-Length", str(len(data)))
            if stored:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", content.commit)
            elif "code" in content:
                self.send_header("X-Error-Code", content["code"])
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
