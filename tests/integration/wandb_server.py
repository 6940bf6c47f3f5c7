"""A fake W&B server on 127.0.0.1, sufficient for online runs."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RUN = {
    "id": "run-id",
    "displayName": "run",
    "config": "{}",
    "summaryMetrics": "{}",
    "sweepName": None,
    "historyLineCount": 0,
    "logLineCount": 0,
    "eventsLineCount": 0,
    "historyTail": "[]",
    "eventsTail": "[]",
    "tags": [],
    "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}},
}


class WandbServer:
    """Answers on a free port and records the requests.

    ``base`` is its address, ``requests`` every method and path, ``upserts`` the variables of every
    ``UpsertBucket``, ``stream`` the bodies posted to file streams, ``views`` the variables of every saved workspace,
    ``uploads`` the files by name.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.upserts: list[dict[str, Any]] = []
        self.stream: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Suppress the log."""

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append(f"{self.command} {self.path}")
                answer = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_CONNECT = do_HEAD = _answer  # noqa: N815

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Return the answer to one request."""
        if path.endswith("/file_stream"):
            self.stream.append(json.loads(body))
            return {}
        if path.startswith("/upload/"):
            self.uploads[path.removeprefix("/upload/")] = body
        if path != "/graphql":
            return {}
        query = json.loads(body)
        variables = query.get("variables") or {}
        operation = re.search(r"(?:mutation|query)\s+(\w+)", query["query"])
        match operation and operation[1]:
            case "UpsertBucket":
                self.upserts.append(variables)
                run = {**_RUN, "name": variables.get("name"), "displayName": variables.get("displayName")}
                return {"data": {"upsertBucket": {"bucket": run, "inserted": True}}}
            case "CreateRunFiles":
                names = variables.get("files", [])
                files = [{"name": name, "uploadUrl": f"{self.base}/upload/{name}"} for name in names]
                made = {"runID": "run-id", "uploadHeaders": [], "files": files}
                return {"data": {"createRunFiles": made}}
            case "CreateArtifact":
                name = {"name": variables["input"]["artifactCollectionName"]}
                made = {"id": "artifact-id", "digest": variables["input"]["digest"], "state": "COMMITTED",
                        "aliases": [], "artifactSequence": {"id": "s", "latestArtifact": None, **name}}  # fmt: skip
                return {"data": {"createArtifact": {"artifact": made}}}
            case "Viewer":
                viewer = {
                    "id": "v",
                    "entity": "entity",
                    "username": "me",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
                return {"data": {"viewer": viewer}}
            case "GetDefaultEntity":
                return {"data": {"viewer": {"id": "v", "entity": "entity"}}}
            case "UpsertView2":
                self.views.append(variables)
                view = {"id": variables.get("id", "view-id"), "name": variables["name"]}
                return {"data": {"upsertView": {"view": view, "inserted": True}}}
            case "View":
                known = [view for view in self.views if view["name"] == variables["viewName"]]
                nodes = [{"node": {"id": "view-id", **view}} for view in known[-1:]]
                return {"data": {"project": {"allViews": {"edges": nodes}}}}
            case "ServerFeaturesQuery":
                return {"data": {"serverInfo": {"features": []}}}
        return {"data": {}}

    def history(self) -> list[dict[str, Any]]:
        """Return the streamed rows of the history."""
        lines: list[str] = []
        for body in list(self.stream):
            part = (body.get("files") or {}).get("wandb-history.jsonl") or {}
            lines += part.get("content", [])
        return [json.loads(line) for line in lines]

    @property
    def exit_codes(self) -> list[int]:
        """The exit codes of the runs that ended."""
        return [body["exitcode"] for body in self.stream if body.get("complete")]
