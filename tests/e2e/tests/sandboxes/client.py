"""A small client of sandpail's API for the tests: what goes over the wire is what the test wrote."""

import base64
import collections
import dataclasses
import http.client
import json
import os
import pathlib
import sys
import threading
import time
import traceback
import urllib.parse

URL = os.environ.get("SANDPAIL_URL", "")
LIMIT = 90


@dataclasses.dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)

    def error(self):
        """The text and code of an error."""
        try:
            told = self.json()
            return told.get("error"), told.get("code")
        except (ValueError, AttributeError):
            return self.body.decode(errors="replace"), None


Done = collections.namedtuple("Done", "code out err")


class Failed(Exception):
    pass


class Api:
    """One connection for each thread, kept alive."""

    def __init__(self, url=URL, key=None):
        self.host = urllib.parse.urlsplit(url).netloc
        self.key = key if key is not None else open(os.environ["SANDPAIL_KEY_FILE"]).read().strip()
        self.local = threading.local()

    def connect(self):
        return http.client.HTTPConnection(self.host, timeout=LIMIT)

    def request(self, method, path, body=None, headers=None, key=True):
        """Sends a request on this thread's connection, and returns the open answer."""
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        if isinstance(body, str):
            body = body.encode()
        if key:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        for attempt in (0, 1):
            connection = getattr(self.local, "connection", None) or self.connect()
            self.local.connection = connection
            fresh = connection.sock is None
            try:
                connection.request(method, path, body, headers, encode_chunked=body is not None and not isinstance(body, bytes))
                return connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A kept connection that the server closed meanwhile; a fresh one has no such excuse.
                connection.close()
                if fresh or attempt:
                    raise

    def call(self, method, path, body=None, headers=None, key=True):
        answer = self.request(method, path, body, headers, key)
        try:
            return Reply(answer.status, answer.headers, answer.read())
        except http.client.IncompleteRead:
            self.local.connection.close()
            raise
        finally:
            if answer.will_close:
                self.local.connection.close()

    def must(self, method, path, body=None, headers=None):
        """A call that must succeed."""
        reply = self.call(method, path, body, headers)
        if reply.status >= 300:
            raise Failed(f"{method} {path}: {reply.status} {reply.body[:2000].decode(errors='replace')}")
        return reply

    def create(self):
        return self.must("POST", "/v1/sandbox").json()["id"]

    def destroy(self, sandbox):
        self.must("DELETE", f"/v1/sandbox/{sandbox}")

    def sandboxes(self):
        return [one["id"] for one in self.must("GET", "/v1/sandbox").json()["sandboxes"]]

    def exec(self, sandbox, *argv, session=None, **more):
        """Runs a command to its end."""
        headers = {"Session-Id": session} if session else {}
        reply = self.call("POST", f"/v1/sandbox/{sandbox}/exec", {"argv": list(argv), **more}, headers)
        if reply.status != 200:
            raise Failed(f"exec {argv}: {reply.status} {reply.body.decode(errors='replace')}")
        return done(events(reply.body))

    def sh(self, sandbox, script, code=0, **more):
        """Runs a shell script that must end with `code`, and returns what it printed."""
        more.setdefault("timeout_ms", 60000)
        result = self.exec(sandbox, "bash", "-euo", "pipefail", "-c", script, **more)
        if result.code != code:
            raise Failed(f"exit {result.code}, not {code}, of:\n{script}\nstdout: {result.out.decode(errors='replace')[-3000:]}"
                         f"\nstderr: {result.err.decode(errors='replace')[-3000:]}")
        return result.out.decode(errors="surrogateescape")

    def mount(self, sandbox, path, **body):
        body.setdefault("options", {})
        return self.must("POST", f"/v1/sandbox/{sandbox}/mount", {"mountPath": path, **body})

    def unmount(self, sandbox, path, **more):
        return self.must("POST", f"/v1/sandbox/{sandbox}/unmount", {"mountPath": path, **more})

    def mounts(self, sandbox):
        return self.must("GET", f"/v1/sandbox/{sandbox}/mounts").json()["mounts"]

    def put(self, sandbox, path, data, scope="?scope=sandbox"):
        return self.must("PUT", f"/v1/sandbox/{sandbox}/file/{quote(path)}{scope}", data)

    def get(self, sandbox, path, scope="?scope=sandbox"):
        return self.must("GET", f"/v1/sandbox/{sandbox}/file/{quote(path)}{scope}").body

    def object(self, binding, key):
        """An object's bytes; none if it is not there."""
        reply = self.call("GET", f"/v1/bindings/{binding}/objects/{urllib.parse.quote(key, safe='')}")
        return reply.body if reply.status == 200 else None

    def put_object(self, binding, key, data):
        self.must("PUT", f"/v1/bindings/{binding}/objects/{urllib.parse.quote(key, safe='')}", data)

    def delete_object(self, binding, key):
        self.must("DELETE", f"/v1/bindings/{binding}/objects/{urllib.parse.quote(key, safe='')}")

    def keys(self, binding, prefix=""):
        found, cursor = [], ""
        while True:
            query = urllib.parse.urlencode({"prefix": prefix, **({"cursor": cursor} if cursor else {})})
            page = self.must("GET", f"/v1/bindings/{binding}/objects?{query}").json()
            found += [item["key"] for item in page["objects"]]
            if not page["truncated"]:
                return found
            cursor = page["cursor"]


def quote(path):
    return urllib.parse.quote(path.lstrip("/"), safe="/")


def events(body):
    """The events of a stream, as (name, data), without comments."""
    found = []
    for block in body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields.get("event"), fields.get("data")))
    return found


def done(stream):
    out = b"".join(base64.b64decode(data) for name, data in stream if name == "stdout")
    err = b"".join(base64.b64decode(data) for name, data in stream if name == "stderr")
    last = stream[-1] if stream else (None, None)
    if last[0] != "exit" or sum(name in ("exit", "error") for name, _ in stream) != 1:
        raise Failed(f"the stream ends with {last}; stderr: {err.decode(errors='replace')[-2000:]}")
    return Done(json.loads(last[1])["exit_code"], out, err)


def arguments_of(pid):
    """Of a process that may have ended since it was found."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def until(what, condition, seconds=20):
    """Waits for a condition, and returns what it gave."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > limit:
            raise Failed(f"not after {seconds} s: {what}")
        time.sleep(0.02)
    return found


class Checks:
    """Counts checks, and goes on after those that fail, so that one run tells everything."""

    def __init__(self):
        self.failed, self.count = [], 0

    def equal(self, name, found, wanted):
        self.count += 1
        if found != wanted:
            self.failed.append(f"{name}\n  found  {found!r}\n  wanted {wanted!r}")

    def true(self, name, condition, found=""):
        self.count += 1
        if not condition:
            self.failed.append(f"{name}\n  {found}")

    def section(self, function, *args):
        """Runs a part; one that breaks does not keep the others from running."""
        before = time.monotonic()
        try:
            function(*args)
        except Exception:
            self.failed.append(f"{function.__name__} broke off\n{traceback.format_exc(limit=-9)}")
        print(f"{function.__name__}: {time.monotonic() - before:.1f} s", flush=True)

    def end(self):
        print(f"{self.count} checks, {len(self.failed)} failed")
        for text in self.failed:
            print("FAILED", text, file=sys.stderr)
        sys.exit(bool(self.failed))
