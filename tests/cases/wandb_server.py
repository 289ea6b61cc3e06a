"""A stand-in for W&B's server on the loopback address: what `wandb sweep`, `wandb agent`, runs and wandb.Api ask for.

Sweeps are enumerated by W&B's own package ``sweeps``; `Sweep`, `Run` and `Artifact` hold what the clients sent.
"""

from __future__ import annotations

import json
import re
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from loopback import running

with warnings.catch_warnings(action="ignore"):  # pydantic's, of how the package is written
    from sweeps.config import schema_violations_from_proposed_config
    from sweeps.grid_search import grid_search_next_runs
    from sweeps.run import SweepRun

ENTITY = "tester"
SILENCE = 300.0  # seconds after which a run that was not heard of has crashed
WHEN = "2026-01-01T00:00:00"  # the time of everything but runs
USER = {
    "id": "user",
    "name": "Tester",
    "username": ENTITY,
    "entity": ENTITY,
    "email": "tester@localhost",
    "admin": False,
    "flags": "{}",
    "teams": {"edges": []},
}


def when(seconds: float) -> str:
    """A time as the server writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass
class Run:
    """A run. ``config`` maps each key to {"value": ...}, as W&B holds it."""

    name: str
    project: str
    sweep: str | None = None
    state: str = "pending"
    config: dict[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    heard: float = field(default_factory=time.time)  # when its process was last heard of
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The configuration as a user sees it."""
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Whether a filter, {"$and": [...]}, {"sweep": its name} or {"config.KEY": value}, lets it through."""
        known = {"sweep": self.sweep} | {f"config.{key}": value for key, value in self.values().items()}
        parts = wanted.get("$and", [])
        return all(map(self.matches, parts)) and all(known.get(k) == v for k, v in wanted.items() if k != "$and")

    def bucket(self) -> dict[str, Any] | None:
        """What a client that goes on with the run is told of it."""
        started = "t" in (self.config.get("_wandb") or {}).get("value", {})
        return self.node() | {
            "wandbConfig": json.dumps({"t": {}} if started else {}),
            "historyTail": json.dumps([json.dumps(line) for line in self.history[-1:]]),
            "eventsTail": "[]",
            "logLineCount": 0,
            "eventsLineCount": 0,
        }

    def node(self) -> dict[str, Any]:
        """The run as GraphQL gives it."""
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.name,
            "projectId": "1",
            "sweepName": self.sweep,
            "state": self.state,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "tags": [],
            "group": "",
            "jobType": "",
            "commit": "",
            "readOnly": False,
            "createdAt": when(self.created),
            "heartbeatAt": when(self.heard),
            "description": "",
            "notes": "",
            "user": USER,
            "historyLineCount": len(self.history),
            "historyKeys": {},
            "project": {"id": "project", "name": self.project, "entity": {"id": ENTITY, "name": ENTITY}},
        }


@dataclass
class Artifact:
    """A version of an artifact."""

    name: str
    kind: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False


@dataclass
class Sweep:
    """A sweep and the runs handed out for it, in that order."""

    name: str
    project: str
    text: str  # its YAML, as the client sent it
    runs: list[Run] = field(default_factory=list)
    state: str = "RUNNING"

    def next_run(self) -> Run | None:
        """The grid's next point, or None after the last."""
        for point in grid_points(yaml.safe_load(self.text), [run.config for run in self.runs]):
            self.runs.append(Run(f"{self.name}-{len(self.runs)}", self.project, self.name, config=point))
            return self.runs[-1]
        self.state = "FINISHED"
        return None

    def node(self) -> dict[str, Any]:
        return {
            "__typename": "Sweep",
            "id": self.name,
            "name": self.name,
            "displayName": None,
            "method": "grid",
            "state": self.state,
            "description": None,
            "bestLoss": None,
            "config": self.text,
            "createdAt": WHEN,
            "updatedAt": WHEN,
            "heartbeatAt": WHEN,
            "runCount": len(self.runs),
            "runCountExpected": None,
            "runs": {"edges": []},
            "controller": None,
            "scheduler": None,
            "earlyStopJobRunning": False,
        }


def grid_points(sweep: dict[str, Any], before: Iterable[dict[str, Any]] = (), most: int = 1) -> list[dict[str, Any]]:
    """At most so many points, name -> {"value": ...}, that W&B's grid search hands out next after those ``before``."""
    found = grid_search_next_runs([SweepRun(config=config) for config in before], sweep, n=most)
    return [as_sent(run.config) for run in found if run]


def schema_faults(sweep: dict[str, Any]) -> list[str]:
    """What W&B's schema finds wrong with a sweep file."""
    return schema_violations_from_proposed_config(sweep)


def as_sent(value: Any) -> Any:
    """A value as the JSON of W&B's server, Go's, carries it: keys in order, 4.0 as 4, and from 1e21 on as 1e+21."""
    if isinstance(value, dict):
        return {key: as_sent(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [as_sent(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e21
    return int(value) if is_whole else value


class WandbServer:
    """The server's state, and one method for each GraphQL operation, under the operation's name."""

    def __init__(self) -> None:
        self.url = ""  # http://127.0.0.1:PORT
        self.sweeps: dict[str, Sweep] = {}
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}  # by their IDs, in the order in which they came
        self.asked: list[str] = []  # method and path, or GraphQL operation
        self.unknown: list[str] = []  # operations that were answered with an error
        self.handing_out = threading.Lock()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL request."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else query
        self.asked.append(name)
        method = getattr(self, name, None)
        if method is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"unknown operation {name}"}]}
        return {"data": method(**variables)}

    def Viewer(self, **_: Any) -> dict[str, Any]:
        return {"viewer": USER}

    GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, **_: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def UpsertSweep(self, config: str, projectName: str, **_: Any) -> dict[str, Any]:
        sweep = Sweep(f"sweep{len(self.sweeps)}", projectName, config)
        self.sweeps[sweep.name] = sweep
        project = {"id": "project", "name": projectName, "entity": {"id": ENTITY, "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": sweep.name, "project": project}, "configValidationWarnings": []}}

    def SweepWithRuns(self, sweep: str, **_: Any) -> dict[str, Any]:
        return {"project": {"sweep": self.sweeps[sweep].node()}}

    def GetSweep(self, name: str, **_: Any) -> dict[str, Any]:
        return {"project": {"sweep": self.sweeps[name].node() if name in self.sweeps else None}}

    def CreateAgent(self, sweep: str, **_: Any) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": sweep}}}  # an agent is called by its sweep: one is enough

    def Heartbeat(self, id: str, runState: str, **_: Any) -> dict[str, Any]:
        sweep, commands = self.sweeps[id], []
        if not json.loads(runState):  # the agent's process has ended
            with self.handing_out:
                run = sweep.next_run()
            commands = [{"type": "exit"}]
            if run:
                self.runs[run.name] = run
                program = yaml.safe_load(sweep.text)["program"]
                commands = [{"type": "run", "run_id": run.name, "program": program, "args": run.config}]
        return {"agentHeartbeat": {"agent": {"id": id}, "commands": json.dumps(commands)}}

    def RunResumeStatus(self, project: str, name: str, **_: Any) -> dict[str, Any]:
        bucket = self.runs[name].bucket() if name in self.runs else None
        return {"model": {"id": "project", "name": project, "entity": {"id": ENTITY, "name": ENTITY}, "bucket": bucket}}

    def UpsertBucket(self, id: str | None = None, name: str | None = None, **sent: Any) -> dict[str, Any]:
        inserted = (name or id) not in self.runs
        run = self.runs.setdefault(name or id, Run(name or id, sent.get("project") or ""))
        if name:  # a process that logs; the public API names a run by what is here the same, its id
            run.state, run.heard = "running", time.time()
            if sent.get("sweep") and run.sweep is None:
                run.sweep = sent["sweep"]
                self.sweeps[run.sweep].runs.append(run)
        if sent.get("config"):
            run.config = json.loads(sent["config"])
        if sent.get("summaryMetrics"):
            run.summary = json.loads(sent["summaryMetrics"])
        return {"upsertBucket": {"bucket": run.node(), "inserted": inserted}}

    def CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        urls = [{"name": name, "uploadUrl": f"{self.url}/stored/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def pass_time(self, seconds: float) -> None:
        """Makes it so much later: runs that are not heard of meanwhile have crashed, but not those never begun."""
        for run in self.runs.values():
            run.created, run.heard = run.created - seconds, run.heard - seconds
            if run.state == "running" and time.time() - run.heard > SILENCE:
                run.state = "crashed"

    def Run(self, name: str, **_: Any) -> dict[str, Any]:
        return {"project": {"run": self.runs[name].node() if name in self.runs else None}}

    def Runs(self, filters: str, **_: Any) -> dict[str, Any]:
        found = [run for run in self.runs.values() if run.matches(json.loads(filters))]
        edges = [{"node": run.node(), "cursor": run.name} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": page},
            }
        }

    def RunFiles(self, name: str, fileNames: list[str], **_: Any) -> dict[str, Any]:
        files = {key: content for key, content in self.runs[name].files.items() if key in fileNames}
        nodes = [
            {
                "id": key,
                "name": key,
                "url": f"{self.url}/stored/{name}/{key}",
                "directUrl": "",
                "md5": "",
                "sizeBytes": str(len(content)),
                "mimetype": "application/json",
                "updatedAt": WHEN,
            }
            for key, content in files.items()
        ]
        page = {"endCursor": None, "hasNextPage": False}
        edges = [{"node": node, "cursor": node["name"]} for node in nodes]
        return {
            "project": {
                "internalId": "1",
                "run": {"fileCount": len(nodes), "files": {"edges": edges, "pageInfo": page}},
            }
        }

    def ArtifactType(self, **_: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}  # its name is not taken by one of another type

    def CreateArtifact(self, input: dict[str, Any], **_: Any) -> dict[str, Any]:
        aliases = [item["alias"] for item in input["aliases"]]
        key, metadata = f"artifact{len(self.artifacts)}", json.loads(input["metadata"] or "{}")
        self.artifacts[key] = Artifact(input["artifactCollectionName"], input["artifactTypeName"], aliases, metadata)
        artifact = {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def CreateArtifactFiles(self, input: dict[str, Any], **_: Any) -> dict[str, Any]:
        edges = [{"node": self._upload(file["artifactID"], file["name"])} for file in input["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CreateArtifactManifest(self, artifactID: str, name: str, **_: Any) -> dict[str, Any]:
        manifest = {"id": artifactID, "file": self._upload(artifactID, name)}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def CommitArtifact(self, artifactID: str, **_: Any) -> dict[str, Any]:
        self.artifacts[artifactID].is_committed = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": ""}}}

    def _upload(self, artifact: str, name: str) -> dict[str, Any]:
        """Where a file of an artifact goes."""
        place = {"uploadUrl": f"{self.url}/artifacts/{artifact}/{name}", "uploadHeaders": []}
        more = {"storagePath": name, "uploadMultipartUrls": None, "artifact": {"id": artifact}}
        return {"id": name, "name": name, "displayName": name} | place | more

    def file_stream(self, run: str, sent: dict[str, Any]) -> None:
        """What a run sends while it goes: lines of its history, its summary, and at last its exit code."""
        found = self.runs[run]
        found.heard = time.time()
        for name, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]] if name.endswith((".json", ".jsonl")) else []
            if name == "wandb-history.jsonl":
                found.history += lines
            elif name == "wandb-summary.json":
                found.summary = lines[-1]
        if sent.get("complete"):
            found.state = "failed" if sent.get("exitcode") else "finished"


@contextmanager
def serve() -> Iterator[WandbServer]:
    """A server that listens, on a port of its own."""
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/graphql":
                request = json.loads(body)
                self.reply(json.dumps(server.answer(request["query"], request.get("variables") or {})).encode())
            elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.file_stream(found[1], json.loads(body))
                self.reply(b"{}")
            else:
                server.asked.append(f"POST {self.path}")
                self.reply(b"{}")  # telemetry

        def do_PUT(self) -> None:
            _, kind, key, name = self.path.split("/", 3)
            holder = server.artifacts[key] if kind == "artifacts" else server.runs[key]
            holder.files[name] = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(b"")

        def do_GET(self) -> None:
            _, _, run, name = self.path.split("/", 3)
            self.reply(server.runs[run].files[name])

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    with running(http):
        yield server
