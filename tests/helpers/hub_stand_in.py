"""A data-set hub's HTTP interface on this machine: as much of it as an upload uses, with the files kept in memory."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LFS = (".parquet", ".tar")


class Hub:
    """What the server keeps.

    Attributes:
        address: to be HF_ENDPOINT.
        repos: name -> whether it is private.
        files: repository -> path -> bytes.
        commits: messages.
        token: the only one that may write.
    """

    def __init__(self, token: str) -> None:
        self.address = ""
        self.token = token
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []

    def answer(self, verb: str, path: str, body: bytes, host: str) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.repos:
                return 409, {"error": "exists", "url": f"{host}/datasets/{name}"}
            private = asked.get("private", asked.get("visibility") == "private")  # older clients, newer ones
            self.repos[name], self.files[name] = private, {}
            return 200, {"url": f"{host}/datasets/{name}"}
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
        name = "/".join(path.split("/")[3:5])
        if name not in self.repos:
            return 404, {"error": "Repository not found"}
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
            return 200, {"commitUrl": f"{host}/datasets/{name}/commit/1", "commitOid": "1" * 40}
        if "/tree/" in path:
            files = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in self.files[name].items()
            ]
            return 200, files
        if "/revision/" in path or verb == "GET":
            siblings = [{"rfilename": file} for file in self.files[name]]
            return 200, {"id": name, "sha": "1" * 40, "siblings": siblings, "tags": [], "private": False}
        return 404, {"error": path}

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
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer

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
