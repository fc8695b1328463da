"""A server that speaks as much of W&B's protocol as its client asks for when runs are logged: GraphQL, file stream, uploads.

What it was sent is kept in memory, so that tests see what a real server would have been told. Names of operations and fields
are those that wandb 0.31 sends.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServedRun:
    """A run as the server knows it. told: what the client last said of it; starts: how often one has opened it; history: its
    points, in order; used, made: names of artifacts; exits: its exit codes."""

    id: str
    told: dict[str, Any] = field(default_factory=dict)
    starts: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        """Of its points, tables left out."""
        return [point["step"] for point in self.history if not any(isinstance(value, dict) for value in point.values())]


@dataclass
class ServedArtifact:
    """All versions of an artifact: digest -> whether it is complete."""

    kind: str
    versions: dict[str, bool] = field(default_factory=dict)


class Server:
    """Everything that clients have said. unknown: operations that it does not answer, which clients can do without."""

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: dict[str, ServedArtifact] = {}
        self.unknown: set[str] = set()
        self.url = ""

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL reply."""
        match operation:
            case "RunResumeStatus":
                run = self.runs.get(v["name"])
                return {"model": {"id": "p", "name": v["project"], "entity": {"id": "e", "name": "me"},
                                  "bucket": None if run is None else self._resumable(run)}}
            case "UpsertBucket":
                run = self.runs.setdefault(v["name"], ServedRun(v["name"]))
                if v["displayName"] is not None:
                    run.starts += 1
                run.told |= {key: value for key, value in v.items() if value is not None}
                if v["config"] is not None:
                    run.config = {key: one["value"] for key, one in json.loads(v["config"]).items()}
                return {"upsertBucket": {"bucket": {
                    "id": "UnVu", "name": run.id, "displayName": run.told.get("displayName"), "description": "",
                    "config": run.told.get("config"), "sweepName": None, "historyLineCount": len(run.history),
                    "project": {"id": "p", "name": v["project"], "entity": {"id": "e", "name": "me"}}},
                    "inserted": run.starts == 1}}
            case "CreateRunFiles":
                return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": [
                    {"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]}}
            case "ArtifactType":
                known = self.artifacts.get(v["name"].partition(":")[0])
                return {"project": {"artifact": None if known is None else {"artifactType": {"name": known.kind}}}}
            case "CreateArtifact":
                return {"createArtifact": {"artifact": self._create(v["input"])}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                return {operation[0].lower() + operation[1:]: {"artifactManifest": {"id": "m", "file": {
                    "id": "f", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}}}}
            case "CreateArtifactFiles":
                return {"createArtifactFiles": {"files": {"edges": [{"node": {
                    "storagePath": one["name"], "uploadUrl": f"{self.url}/upload/{one['artifactID']}/{one['name']}",
                    "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}}
                    for one in v["input"]["artifactFiles"]]}}}
            case "CommitArtifact":
                name, _, digest = v["artifactID"].partition("@")
                self.artifacts[name].versions[digest] = True
                return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": digest}}}
            case "UseArtifact":
                self.runs[v["input"]["runName"]].used.append(v["input"]["artifactID"].partition("@")[0])
                return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}",
                                   "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}}
        self.unknown.add(operation)
        return {}

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["artifactCollectionName"]
        found = self.artifacts.setdefault(name, ServedArtifact(asked["artifactTypeName"]))
        assert found.kind == asked["artifactTypeName"]  # a real server refuses it
        there = found.versions.setdefault(asked["digest"], False)
        if asked["runName"] is not None:  # else a user's, not a run's
            self.runs[asked["runName"]].made.append(name)
        return {"id": f"{name}@{asked['digest']}", "state": "COMMITTED" if there else "PENDING",
                "artifactSequence": {"latestArtifact": None}}

    def _resumable(self, run: ServedRun) -> dict[str, Any]:
        lines = [json.dumps(point) for point in run.history]
        return {"id": "UnVu", "name": run.id, "displayName": run.told.get("displayName"), "notes": None,
                "summaryMetrics": json.dumps(run.summary), "logLineCount": 0, "historyLineCount": len(lines),
                "eventsLineCount": 0, "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
                "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
                "tags": run.told.get("tags") or [], "wandbConfig": json.dumps({"t": 1})}

    def stream(self, run_id: str, told: dict[str, Any]) -> None:
        """One piece of a run's file stream: lines from an offset on."""
        run = self.runs[run_id]
        for file, piece in (told.get("files") or {}).items():
            lines = [json.loads(line) for line in piece["content"]]
            if file == "wandb-history.jsonl":
                assert piece["offset"] <= len(run.history)  # else lines are lost
                run.history[piece["offset"]:] = lines
            elif file == "wandb-summary.json":
                run.summary |= lines[-1]
        if told.get("complete"):
            run.exits.append(told["exitcode"])


@contextmanager
def serving() -> Iterator[Server]:
    """A server on this machine for the time of a `with` block."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            found = self.rfile.read(int(self.headers.get("content-length") or 0))
            return gzip.decompress(found) if self.headers.get("content-encoding") == "gzip" else found

        def reply(self, value: Any) -> None:
            sent = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_GET(self) -> None:
            self.reply({})

        def do_PUT(self) -> None:
            self.body()
            self.reply({})

        def do_POST(self) -> None:
            found = self.body()
            if self.path == "/graphql":
                asked = json.loads(found)
                name = asked.get("operationName") or asked["query"].split("(")[0].split()[-1].strip("{ ")
                self.reply({"data": server.answer(name, asked.get("variables") or {})})
                return
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(found))
            self.reply({})

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that ends drops its connections."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
