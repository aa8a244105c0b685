"""Every route of the API as its contract says: statuses, texts byte for byte, streams, frames, archives."""

import base64
import hashlib
import io
import json
import os
import re
import socket
import sys
import tarfile
import threading
import time
import urllib.parse

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from client import Api, Checks, Failed, done, events, quote, until

api = Api()
checks = Checks()
equal, true = checks.equal, checks.true
BAD = "invalid_request"
ENDPOINT, BUCKET = os.environ["ENDPOINT"], os.environ["BUCKET"]
KEYS = {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
LIMIT = int(os.environ["UPLOAD_LIMIT"])
UNKNOWN = "unknown234567"


def refuses(method, path, status, error, code, body=None, headers=None, key=True):
    """A call that must fail with this text; a pattern (compiled) must match it whole."""
    reply = api.call(method, path, body, headers, key)
    name = f"{method} {path} {json.dumps(body) if isinstance(body, (dict, list)) else (body or b'')[:60]!r}"
    equal(f"{name}: status", reply.status, status)
    text, found = reply.error()
    if isinstance(error, re.Pattern):
        true(f"{name}: text", error.fullmatch(text or ""), f"found {text!r}, wanted {error.pattern!r}")
    else:
        equal(f"{name}: text", text, error)
    equal(f"{name}: code", found, code)
    equal(f"{name}: type", (reply.headers.get("Content-Type") or "").split(";")[0], "application/json")
    return reply


def starts(text):
    return re.compile(re.escape(text) + r".*", re.S)


def gives(method, path, wanted, body=None, headers=None, status=200):
    reply = api.call(method, path, body, headers)
    equal(f"{method} {path} {body!r:.80}: status", reply.status, status)
    if wanted is not None:
        try:
            equal(f"{method} {path} {body!r:.80}", reply.json(), wanted)
        except ValueError:
            true(f"{method} {path}", False, reply.body[:200])
    return reply


# --- 1 and 2: common rules, the routes themselves --------------------------------------------------------------------

def common():
    equal("health needs no key", gives("GET", "/health", {"ok": True}).status, 200)
    equal("health without key", api.call("GET", "/health", key=False).json(), {"ok": True})
    for method, path in [("GET", "/"), ("POST", "/sandbox"), ("POST", f"/sandbox/{UNKNOWN}/exec"), ("GET", "/v1"), ("GET", "/v1/nothing"),
                         ("PUT", "/v1/sandbox"), ("GET", f"/v1/sandbox/{UNKNOWN}/exec"), ("POST", f"/v1/sandbox/{UNKNOWN}/nothing"), ("POST", "/health")]:
        reply = api.call(method, path)
        equal(f"{method} {path}", (reply.status, reply.error()[1]), (404, "not_found"))
    for value in [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {api.key}x", f"Bearer {api.key[:-1]}", f"Basic {api.key}", api.key,
                  f"Bearer {api.key} {api.key}", "Bearer " + "x" * 5000]:
        headers = {} if value is None else {"Authorization": value}
        for method, path in [("POST", "/v1/sandbox"), ("DELETE", "/v1/sandbox/BAD!"), ("GET", "/v1/sandbox"), ("GET", "/v1/openapi.json"),
                             ("GET", "/v1/pool/stats"), ("GET", f"/v1/sandbox/{UNKNOWN}/pty")]:
            refuses(method, path, 401, "Unauthorized", "unauthorized", headers=headers, key=False)
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"]:
        equal(f"scheme {scheme}", api.call("GET", "/v1/pool/stats", headers={"Authorization": f"{scheme} {api.key}"}, key=False).status, 200)
    equal("the token is for the document only", api.call("GET", f"/v1/pool/stats?token={api.key}", key=False).status, 401)
    routes = [("DELETE", ""), ("GET", "/running"), ("POST", "/exec"), ("GET", "/file/workspace/a"), ("PUT", "/file/workspace/a"), ("POST", "/session"),
              ("DELETE", "/session/a"), ("GET", "/pty"), ("POST", "/persist"), ("POST", "/hydrate"), ("POST", "/mount"), ("POST", "/unmount"),
              ("POST", "/tunnel/8080"), ("DELETE", "/tunnel/8080"), ("GET", "/mounts"), ("GET", "/files"), ("GET", "/processes")]
    for method, path in routes:
        for bad in ["ABC", "a1", "a-b", "a8", "z" * 129, "a%20b", "%2e%2e", "a%00"]:
            refuses(method, f"/v1/sandbox/{bad}{path}", 400, "Invalid sandbox ID format", BAD, body=b"{}" if method in ("POST", "PUT") else None)
    for path in ["/exec", "/mount", "/unmount", "/session"]:
        for body in [b"{", b"", b"[1", b"\xff\xfe", b"[]", b"1", b"null", b'"a"', b"{} {}"]:
            if path == "/session" and not body:
                continue
            refuses("POST", f"/v1/sandbox/{UNKNOWN}{path}", 400, "Invalid JSON body", BAD, body=body)
    for bad in ["a/b", "a..b", "..", "a b", "x" * 129, "é".encode(), "a:b"]:
        for method, path, body in [("POST", "/exec", {"argv": ["true"]}), ("GET", "/file/workspace/a", None), ("PUT", "/file/workspace/a", b"x")]:
            refuses(method, f"/v1/sandbox/{UNKNOWN}{path}", 400, "Invalid session ID format", BAD, body=body, headers={"Session-Id": bad})


def life():
    one = gives("POST", "/v1/sandbox", None, body=b"ignored, no JSON").json()["id"]
    true("26 base32 characters", re.fullmatch(r"[a-z2-7]{26}", one), one)
    gives("GET", f"/v1/sandbox/{one}/running", {"running": True})
    gives("GET", f"/v1/sandbox/{UNKNOWN}/running", {"running": False})
    true("running starts nothing", UNKNOWN not in api.sandboxes())
    # The content type does not matter, unknown members neither, and an id need not be known.
    other = "a" * 128
    reply = api.call("POST", f"/v1/sandbox/{other}/exec", {"argv": ["sh", "-c", "echo here >/workspace/f"], "unknown": [1]}, {"Content-Type": "text/plain"})
    equal("first exec makes the sandbox", done(events(reply.body)).code, 0)
    gives("GET", f"/v1/sandbox/{other}/running", {"running": True})
    true("listed", {one, other} <= set(api.sandboxes()), api.sandboxes())
    for sandbox in [other, other, UNKNOWN]:
        reply = api.call("DELETE", f"/v1/sandbox/{sandbox}")
        equal("delete", (reply.status, reply.body), (204, b""))
    gives("GET", f"/v1/sandbox/{other}/running", {"running": False})
    equal("afresh", api.exec(other, "ls", "-A", "/workspace").out, b"")
    api.destroy(other)
    for method, path, body in [("PUT", "/file/workspace/x", b"x"), ("POST", "/session", None), ("POST", "/persist", None), ("GET", "/file/workspace/x", None)]:
        api.call(method, f"/v1/sandbox/{other}{path}", body)
        equal(f"{path} makes the sandbox", api.call("GET", f"/v1/sandbox/{other}/running").json(), {"running": True})
        api.destroy(other)
    api.destroy(one)
    stats = gives("GET", "/v1/pool/stats", None).json()
    equal("pool", (set(stats), set(stats["config"]), stats["total"]),
          ({"warm", "assigned", "total", "config", "maxInstances"}, {"warmTarget", "refreshInterval", "maxInstances", "scaleBatchSize"}, stats["warm"] + stats["assigned"]))
    gives("POST", "/v1/pool/prime", {"ok": True})
    gives("POST", "/v1/pool/shutdown-prewarmed", {"ok": True})
    for port in ["0", "80", "1023", "65536", "3000", "x", "1e4", "-1", "8080.5"]:
        for method in ["POST", "DELETE"]:
            refuses(method, f"/v1/sandbox/{UNKNOWN}/tunnel/{port}", 400, re.compile("Invalid port.*"), BAD)
    tunnel = f"/v1/sandbox/{UNKNOWN}/tunnel/8080"
    refuses("POST", tunnel, 400, "name must be a string when provided", BAD, body={"name": 1})
    refuses("POST", tunnel, 400, re.compile(".*valid DNS label.*"), BAD, body={"name": "-a_"})
    refuses("POST", tunnel, 502, re.compile("tunnel failed: .+"), "tunnel_error", body={"name": "good"})
    refuses("POST", tunnel, 502, re.compile("tunnel failed: .+"), "tunnel_error")
    equal("delete of a tunnel", api.call("DELETE", tunnel).status, 204)


# --- 3: exec -----------------------------------------------------------------------------------------------------------

def execs(box):
    path = f"/v1/sandbox/{box}/exec"
    reply = api.call("POST", path, {"argv": ["sh", "-c", "echo hello"]})
    equal("stream", (reply.status, reply.headers["Content-Type"].split(";")[0], reply.headers["Cache-Control"]), (200, "text/event-stream", "no-cache"))
    equal("frames", reply.body, b'event: stdout\ndata: aGVsbG8K\n\nevent: exit\ndata: {"exit_code":0}\n\n')
    reply = api.call("POST", path, {"argv": ["sh", "-c", "echo oh no >&2"]})
    equal("frames", reply.body, b'event: stderr\ndata: b2ggbm8K\n\nevent: exit\ndata: {"exit_code":0}\n\n')
    for body in [{}, {"argv": []}, {"argv": "ls"}, {"argv": None}, {"argv": {"a": "b"}}]:
        refuses("POST", path, 400, "argv must be a non-empty array", BAD, body=body)
    for argv in [[1], ["ls", None], [["ls"]]]:
        refuses("POST", path, 400, starts("argv must be a non-empty array"), BAD, body={"argv": argv})
    for value in [0, -1, "5", True, [], 0.0]:
        refuses("POST", path, 400, re.compile(".*timeout_ms.*"), BAD, body={"argv": ["true"], "timeout_ms": value})
    for cwd in ["/etc", "/", "..", "/workspace/..", "a/../../b", "/workspacex", "../workspacex"]:
        refuses("POST", path, 403, "cwd must resolve to a location within /workspace", BAD, body={"argv": ["pwd"], "cwd": cwd})
    words = ["a b", "'", '"', "a\nb", "$HOME", "*", "", "~", "; id", "`id`", "-n", "é🪣", "\\", "a\tb", "#", "!", "x" * 100000]
    found = api.exec(box, "python3", "-c", "import json,sys; print(json.dumps(sys.argv[1:]))", *words)
    equal("words arrive unchanged", json.loads(found.out or b"null"), words)
    api.sh(box, "mkdir -p src/deep; echo text >plain.txt; chmod 644 plain.txt; printf '#!/bin/sh\necho script\n' >run; chmod +x run")
    for argv, code in [(["exit", "42"], 42), (["false"], 1), (["no-such-program"], 127), (["./none"], 127), (["/workspace/plain.txt"], 126), (["/workspace"], 126),
                       (["sh", "-c", "kill -9 $$"], 137), (["sh", "-c", "kill $$"], 143), (["sh", "-c", "exit 255"], 255), (["./run"], 0), (["cd", "src"], 0),
                       (["cat"], 0), (["test", "-x", "./run"], 0), (["[", "1", "=", "2", "]"], 1), (["sh", "-lc", "command -v tar"], 0)]:
        equal(f"exit code of {argv}", api.exec(box, *argv, timeout_ms=20000).code, code)
    true("not found on stderr", b"not found" in api.exec(box, "no-such-program").err)
    everything = bytes(range(256)) * 3
    equal("bytes", api.exec(box, "python3", "-c", "import os; os.write(1, bytes(range(256))*3); os.write(2, bytes(range(256))*3)")[1:], (everything, everything))
    big = api.exec(box, "python3", "-c", "import sys\nfor n in range(300): sys.stdout.buffer.write(bytes([n % 256]) * 65537)")
    equal("much output", hashlib.sha256(big.out).digest(), hashlib.sha256(b"".join(bytes([n % 256]) * 65537 for n in range(300))).digest())
    for cwd, wanted in [(None, "/workspace"), ("src", "/workspace/src"), ("/workspace/src/deep", "/workspace/src/deep"), ("src/../src/./deep/", "/workspace/src/deep")]:
        equal(f"cwd {cwd}", api.exec(box, "pwd", **({"cwd": cwd} if cwd else {})).out, f"{wanted}\n".encode())
    equal("cwd anywhere by scope", api.exec(box, "pwd", cwd="/usr/bin", scope="sandbox").out, b"/usr/bin\n")
    equal("env", api.exec(box, "sh", "-c", 'echo "$A|$B"', env={"A": "1 2", "B": "é'"}).out.decode(), "1 2|é'\n")
    equal("env of one command only", api.exec(box, "sh", "-c", 'echo "$A"').out, b"\n")
    # Timeouts: the whole group is killed, in sessions too.
    for session in (None, "timed"):
        before = time.monotonic()
        found = api.exec(box, "sh", "-c", "echo begun; echo told >&2; (sleep 1; touch /workspace/late) & sleep 60", timeout_ms=300, session=session)
        equal("timeout", (found.code, found.out), (124, b"begun\n"))
        true("its last words", found.err.endswith(b"Command timed out after 300ms\n") and found.err.startswith(b"told\n"), found.err)
        true("in time", time.monotonic() - before < 5)
        time.sleep(1.1)
        equal("its children are gone", api.exec(box, "ls", "/workspace/late").code, 2)
    equal("the session lives", api.exec(box, "echo", "alive", session="timed").out, b"alive\n")
    before = time.monotonic()
    equal("a child in the background", api.exec(box, "sh", "-c", "sleep 20 & echo hi", timeout_ms=15000)[:2], (0, b"hi\n"))
    true("is not waited for", time.monotonic() - before < 5, time.monotonic() - before)
    equal("commands run side by side", serial(box, [None, None]), False)
    equal("one session's one after the other", serial(box, ["row", "row"]), True)
    equal("two sessions side by side", serial(box, ["row", "other"]), False)
    # Whoever goes away does not end the command.
    with socket.create_connection(api.host.split(":")) as raw:
        body = json.dumps({"argv": ["sh", "-c", "echo a; sleep 0.7; echo b; echo c >/workspace/alone"]}).encode()
        raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        true("begun", b"stdout" in raw.recv(4096) + raw.recv(4096))
    until("the command ran on alone", lambda: api.exec(box, "cat", "/workspace/alone").out == b"c\n")
    # The first event comes while the command runs.
    begun = time.monotonic()
    answer = api.request("POST", path, {"argv": ["sh", "-c", "echo first; sleep 1"]})
    answer.readline()
    true("flushed event by event", time.monotonic() - begun < 0.8, time.monotonic() - begun)
    answer.read()
    one = api.create()
    answer = api.request("POST", f"/v1/sandbox/{one}/exec", {"argv": ["sh", "-c", "echo x; sleep 60"]})
    answer.readline()
    begun = time.monotonic()
    killer = threading.Thread(target=lambda: Api().destroy(one))
    killer.start()
    rest = answer.read()
    true("a destroyed sandbox ends the stream", time.monotonic() - begun < 10 and (b"event: exit" in rest or b"event: error" in rest), rest[-300:])
    killer.join()


def serial(box, sessions):
    """Whether two commands of half a second run one after the other."""
    api.exec(box, "true", session=sessions[0])
    def run(session):
        spans.append(Api().exec(box, "python3", "-c", "import time\na = time.time()\ntime.sleep(0.5)\nprint(a, time.time())", session=session).out.split())
    spans = []
    threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (a, b), (c, d) = sorted([float(x) for x in span] for span in spans)
    return c >= b


# --- 4: files ----------------------------------------------------------------------------------------------------------

def files(box):
    base = f"/v1/sandbox/{box}/file"
    data = bytes(range(256)) * 1000
    gives("PUT", f"{base}/workspace/deep/er/a.bin", {"ok": True}, body=data)
    reply = api.call("GET", f"{base}/workspace/deep/er/a.bin")
    equal("bytes come back", (reply.status, reply.headers["Content-Type"], reply.body == data), (200, "application/octet-stream", True))
    gives("PUT", f"{base}/workspace/deep/er/a.bin", {"ok": True}, body=b"short")
    equal("replaced whole", api.call("GET", f"{base}/workspace/deep/er/a.bin").body, b"short")
    gives("PUT", f"{base}/workspace/empty", {"ok": True}, body=b"")
    equal("an empty file", api.call("GET", f"{base}/workspace/empty").body, b"")
    for name in ["a b", "#x?y", "100%", "%41", "é🪣", "a+b", "a&b=c;d:e,f@g$h", "'\"\\", "new\nline", "-rf", "*"]:
        encoded = urllib.parse.quote(name, safe="")
        gives("PUT", f"{base}/workspace/names/{encoded}", {"ok": True}, body=name.encode())
        equal(f"name {name!r} inside", api.exec(box, "cat", f"/workspace/names/{name}").out.decode(), name)
        equal(f"name {name!r}", api.call("GET", f"{base}/workspace/names/{encoded}").body.decode(), name)
    equal("slashes may be encoded", api.call("GET", f"{base}/workspace%2Fdeep%2Fer%2Fa.bin").body, b"short")
    for path in ["/", "", "%2F", "//"]:
        for method, body in [("GET", None), ("PUT", b"x")]:
            reply = api.call(method, base + path, body)
            true(f"{method} {path!r}: no path", reply.error() in [("file path must not be empty", BAD), ("path must resolve to a location within /workspace", BAD), ("Not found", "not_found")],
                 (reply.status, reply.body))
    refuses("GET", f"{base}/", 400, "file path must not be empty", BAD)
    for path in ["etc/passwd", "workspace/../etc/passwd", "workspace/%2e%2e/etc/passwd", "workspace/a/../../etc/passwd", "%2e%2e/etc/passwd", "workspacex/a",
                 "workspace%2f..%2fetc/passwd", "/etc/passwd", "proc/self/environ", "workspace/../../../../etc/shadow"]:
        for method, body in [("GET", None), ("PUT", b"x")]:
            refuses(method, f"{base}/{path}", 403, "path must resolve to a location within /workspace", BAD, body=body)
    refuses("GET", f"{base}/workspace/none", 404, "File not found: /workspace/none", "workspace_read_not_found")
    refuses("GET", f"{base}/workspace/no/ne%20x", 404, "File not found: /workspace/no/ne x", "workspace_read_not_found")
    refuses("GET", f"{base}/workspace/deep", 502, re.compile("read failed: .+", re.S), "exec_transport_error")
    refuses("PUT", f"{base}/workspace/deep", 502, re.compile("write failed: .+", re.S), "workspace_archive_write_error", body=b"x")
    refuses("PUT", f"{base}/workspace/empty/below", 502, re.compile("write failed: .+", re.S), "workspace_archive_write_error", body=b"x")
    api.put(box, "/workspace/kept", b"old")
    too_long = f"payload too large: {LIMIT + 1} bytes exceeds the {LIMIT}-byte limit"
    refuses("PUT", f"{base}/workspace/kept", 413, too_long, "payload_too_large", body=bytes(LIMIT + 1))
    api.local.connection.close()
    chunks = (bytes(1 << 20) for _ in range((LIMIT >> 20) + 2))
    try:
        reply = api.call("PUT", f"{base}/workspace/kept", chunks)
        equal("a body without a length is counted", reply.status, 413)
        true("its text", re.fullmatch(rf"payload too large: \d+ bytes exceeds the {LIMIT}-byte limit", reply.error()[0]), reply.body)
    except (BrokenPipeError, ConnectionResetError):
        # The server may refuse before all is sent.
        pass
    api.local.connection.close()
    gives("PUT", f"{base}/workspace/full", {"ok": True}, body=bytes(LIMIT))
    equal("a refused upload leaves the old file", api.get(box, "/workspace/kept"), b"old")
    equal("and nothing beside it", sorted(api.sh(box, "ls -A /workspace/deep/er").split()), ["a.bin"])
    # Links are followed, inside.
    api.sh(box, "echo inside >/tmp/target; ln -s /tmp/target /workspace/link; ln -s loop /workspace/loop; ln -s ../../../../../../etc/hostname /workspace/up; mkfifo /workspace/pipe")
    equal("a link is followed", api.call("GET", f"{base}/workspace/link").body, b"inside\n")
    equal("a link upwards ends at the sandbox's root", api.call("GET", f"{base}/workspace/up").body.decode(), api.sh(box, "cat /etc/hostname"))
    refuses("GET", f"{base}/workspace/loop", 502, re.compile("read failed: .+", re.S), "exec_transport_error")
    begun = time.monotonic()
    equal("a pipe is refused", api.call("GET", f"{base}/workspace/pipe").status, 502)
    true("without waiting for its other end", time.monotonic() - begun < 5)
    equal("anywhere by scope", api.call("GET", f"{base}/tmp/target?scope=sandbox").body, b"inside\n")
    equal("only this scope", api.call("GET", f"{base}/tmp/target?scope=host").status in (400, 403), True)
    refuses("GET", f"{base}/none?scope=sandbox", 404, "File not found: /none", "workspace_read_not_found")
    # Own routes on files.
    own = f"/v1/sandbox/{box}"
    gives("POST", f"{own}/mkdir", None, body={"path": "/workspace/own/deep", "recursive": True})
    api.put(box, "/workspace/own/f.txt", b"12345")
    listed = gives("GET", f"{own}/files?path=/workspace/own&recursive=true", None).json()
    equal("listing", sorted((one["relativePath"], one["type"]) for one in listed["files"]), [("deep", "directory"), ("f.txt", "file")])
    gives("POST", f"{own}/rename", None, body={"oldPath": "/workspace/own/f.txt", "newPath": "/workspace/own/deep/g.txt"})
    equal("stat", gives("GET", f"{own}/stat?path=own/deep/g.txt", None).json()["size"], 5)
    equal("exists", [api.must("GET", f"{own}/exists?path={path}").json()["exists"] for path in ["own/f.txt", "own/deep/g.txt"]], [False, True])
    equal("delete", api.call("DELETE", f"{base}/workspace/own?recursive=true").status, 200)
    equal("deleted", api.call("DELETE", f"{base}/workspace/own").status, 404)


# --- 5: sessions -------------------------------------------------------------------------------------------------------

def sessions(box):
    path = f"/v1/sandbox/{box}/session"
    gives("POST", path, {"id": "mine"}, body={"id": "mine", "cwd": "src", "env": {"GREETING": "hi there"}})
    refuses("POST", path, 502, "session create failed: Session 'mine' already exists", "session_error", body={"id": "mine"})
    made = gives("POST", path, None).json()["id"]
    true("ids match the header's pattern", re.fullmatch(r"[a-zA-Z0-9._-]{1,128}", made) and ".." not in made, made)
    equal("cwd and env", api.exec(box, "sh", "-c", 'echo "$PWD $GREETING"', session="mine").out, b"/workspace/src hi there\n")
    for argv in [["cd", "deep"], ["export", "MORE=x y"], ["eval", "greet() { echo hello $1; }"], ["exit", "3"], ["false"], ["no-such-program"],
                 ["sh", "-c", "kill -9 $$"], ["eval", "exit 5"], ["eval", "set -e; false; true"]]:
        api.exec(box, *argv, session="mine", timeout_ms=10000)
    equal("a session keeps its state", api.exec(box, "eval", 'pwd; echo "$MORE"; greet you', session="mine", timeout_ms=10000).out, b"/workspace/src/deep\nx y\nhello you\n")
    equal("the exit code of exit", api.exec(box, "exit", "42", session="mine").code, 42)
    equal("words in a session", api.exec(box, "printf", "%s|", "a b", "$HOME", "", "'", session="mine").out, b"a b|$HOME||'|")
    equal("others do not", api.exec(box, "sh", "-c", 'echo "$PWD$MORE"', session=made).out, b"/workspace\n")
    equal("nor commands without", api.exec(box, "sh", "-c", 'echo "$PWD$MORE"').out, b"/workspace\n")
    equal("the header makes a session", api.exec(box, "cd", "/tmp", session="by.header-1_x").code, 0)
    equal("with state", api.exec(box, "pwd", session="by.header-1_x").out, b"/tmp\n")
    equal("cwd of the call wins", api.exec(box, "pwd", cwd="src", session="by.header-1_x").out, b"/workspace/src\n")
    api.exec(box, "sh", "-c", "echo shared >/workspace/shared", session="mine")
    equal("files are shared", api.exec(box, "cat", "/workspace/shared", session=made).out, b"shared\n")
    reply = gives("DELETE", f"{path}/mine", None).json()
    equal("delete", (reply["success"], reply["sessionId"], bool(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", reply["timestamp"]))), (True, "mine", True))
    refuses("DELETE", f"{path}/mine", 502, "session delete failed: Session 'mine' not found", "session_error")
    equal("afresh", api.exec(box, "pwd", session="mine").out, b"/workspace\n")


# --- 6: pty ------------------------------------------------------------------------------------------------------------

class Terminal:
    def __init__(self, box, query="", headers=None):
        headers = {"Authorization": f"Bearer {api.key}", **(headers or {})}
        self.socket = connect(f"ws://{api.host}/v1/sandbox/{box}/pty{query}", additional_headers=headers, open_timeout=20, max_size=None)
        self.shown, self.frames = b"", []

    def until(self, condition, seconds=20):
        limit = time.monotonic() + seconds
        while not condition():
            frame = self.socket.recv(timeout=max(0.01, limit - time.monotonic()))
            if isinstance(frame, bytes):
                self.shown += frame
            else:
                self.frames.append(json.loads(frame))
        return self

    def type(self, text):
        self.socket.send(text.encode())

    def ready(self):
        return self.until(lambda: {"type": "ready"} in self.frames)

    def sees(self, text):
        return self.until(lambda: text in self.shown)


def pty(box):
    path = f"/v1/sandbox/{box}/pty"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode()}
    refuses("GET", path, 400, "WebSocket upgrade required", BAD)
    refuses("GET", f"{path}?cols=x", 400, "WebSocket upgrade required", BAD)
    for query in ["cols=x", "rows=x", "cols=80&rows=abc"]:
        refuses("GET", f"{path}?{query}&session=a/b", 400, "cols and rows must be valid numbers", BAD, headers=upgrade)
        api.local.connection.close()
    for query, headers in [("?session=a..b", {}), ("?session=good", {"Session-Id": "a b"})]:
        refuses("GET", path + query, 400, "Invalid session ID format", BAD, headers={**upgrade, **headers})
        api.local.connection.close()
    terminal = Terminal(box, "?cols=91&rows=33").ready()
    terminal.type("stty size; pwd; tty >/dev/null && echo a$((1+1))tty; echo $0\n")
    terminal.sees(b"a2tty")
    true("size and directory", b"33 91" in terminal.shown and b"/workspace" in terminal.shown, terminal.shown)
    terminal.sees(b"bash")
    terminal.socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 30}))
    terminal.type("stty size\n")
    terminal.sees(b"30 120")
    for frame, text in [({"type": "resize", "cols": 0, "rows": 10}, "Invalid dimensions: cols and rows must be positive"),
                        ({"type": "resize", "cols": 10, "rows": -1}, "Invalid dimensions: cols and rows must be positive"), ("no JSON", "Invalid control message")]:
        terminal.frames.clear()
        terminal.socket.send(frame if isinstance(frame, str) else json.dumps(frame))
        terminal.until(lambda: terminal.frames)
        equal(f"frame {frame}", terminal.frames, [{"type": "error", "message": text}])
    terminal.type("echo still$((40+2))here\n")
    terminal.sees(b"still42here")
    terminal.frames.clear()
    terminal.type("exit 7\n")
    terminal.until(lambda: terminal.frames)
    equal("exit frame", terminal.frames, [{"type": "exit", "code": 7}])
    try:
        terminal.socket.recv(timeout=10)
    except Exception as closed:
        equal("close code", getattr(getattr(closed, "rcvd", None), "code", closed), 1000)
    killed = Terminal(box).ready()
    killed.type("kill -9 $$\n")
    killed.until(lambda: any(frame["type"] == "exit" for frame in killed.frames))
    true("the signal is named", killed.frames[-1].get("signal") == "SIGKILL" and killed.frames[-1]["code"] == 137, killed.frames)
    # Without a session every connection is its own and ends with it.
    one, two = Terminal(box, "?shell=sh").ready(), Terminal(box).ready()
    one.type("mine=1; echo pid$$\n")
    one.until(lambda: re.search(rb"pid\d+", one.shown.replace(b"pid$$", b"")))
    pid = re.search(rb"pid(\d+)", one.shown.replace(b"pid$$", b"")).group(1).decode()
    two.type("echo [$mine]\n")
    two.sees(b"[]")
    one.socket.close()
    two.socket.close()
    until("the terminal ended with its connection", lambda: api.exec(box, "kill", "-0", pid).code != 0)
    # A session's outlives it, and is replayed before ready.
    first = Terminal(box, "?session=ignored", {"Session-Id": "term"}).ready()
    first.type("kept=yes; echo before$((1+1))\n")
    first.sees(b"before2")
    first.socket.close()
    again = Terminal(box, "?session=term").ready()
    true("replayed before ready", b"before2" in again.shown, again.shown)
    again.type("echo kept=[$kept]\n")
    again.sees(b"kept=[yes]")
    again.type("seq 1 200000 | tail -n 1; printf '\\303\\251'\n")
    again.sees(b"200000")
    again.sees("é".encode())
    again.socket.close()
    # What cannot be opened is refused before the upgrade.
    for query, named in [("?shell=/no/such", "/no/such: not found"), ("?shell=no-such", "no-such: not found"), ("?shell=/etc/passwd&session=absent", "/etc/passwd: not found")]:
        try:
            Terminal(box, query)
            true(f"a shell that is not there {query}", False, "it was opened")
        except InvalidStatus as refused:
            equal(f"a shell that is not there {query}", refused.response.status_code, 502)
            equal("says so", json.loads(refused.response.body)["error"], f"terminal failed: {named}")
    Terminal(box, "?session=absent").ready().socket.close()


# --- 7: archives -------------------------------------------------------------------------------------------------------

def members(body):
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return {one.name: one for one in archive.getmembers()}, {one.name: archive.extractfile(one).read() for one in archive.getmembers() if one.isreg()}


def archives(_box):
    box = api.create()
    path = f"/v1/sandbox/{box}"
    api.sh(box, """mkdir -p d/sub .hidden 'sp ace'; echo a >d/a; echo b >d/sub/b; echo h >.hidden/h; ln -s d/a link; ln -s ../../etc up; ln d/a hard; echo s >'sp ace/s,x'
                   chmod 750 d; chmod 4755 d/sub/b; echo x >run; chmod 711 run; echo star >'d/*'; echo n >$'new\\nline'; echo u >é; mkfifo d/pipe
                   long=$(printf 'l%.0s' $(seq 200)); mkdir -p $long; echo long >$long/$long""")
    reply = gives("POST", f"{path}/persist", None)
    equal("an archive", reply.headers["Content-Type"], "application/octet-stream")
    found, bodies = members(reply.body)
    true("relative names", all(name == "." or not name.startswith("/") for name in found), list(found))
    plain = {name.removeprefix("./"): one for name, one in found.items()}
    long = "l" * 200
    true("everything is there", {"d", "d/a", "d/sub/b", ".hidden/h", "link", "up", "hard", "sp ace/s,x", "run", "d/*", "new\nline", "é", f"{long}/{long}"} <= set(plain), list(plain))
    true("no pipes", "d/pipe" not in plain)
    equal("modes", (plain["d"].mode & 0o777, plain["run"].mode & 0o777), (0o750, 0o711))
    equal("links", (plain["link"].linkname, plain["up"].linkname), ("d/a", "../../etc"))
    equal("no member that clients refuse", [name for name, one in plain.items() if one.islnk() or one.isdev()], [])
    true("names begin with ./", all(name.startswith("./") or name == "." for name in raw_names(reply.body)), raw_names(reply.body)[:5])
    equal("the query root is ignored", set(members(api.must("POST", f"{path}/persist?root=/etc").body)[0]), set(found))
    less = members(api.must("POST", f"{path}/persist?excludes=d/sub,.hidden,sp%20ace,d/*,none").body)[0]
    plain = {name.removeprefix("./") for name in less}
    true("excluded", not plain & {"d/sub", "d/sub/b", ".hidden", ".hidden/h", "sp ace", "sp ace/s,x", "d/*"} and {"d/a", "run", "d"} <= plain, plain)
    for excludes in ["..", "a/../b", "../x", "d,.."]:
        refuses("POST", f"{path}/persist?excludes={excludes}", 400, 'exclude paths must not contain ".."', BAD)
    # What is mounted is left out; a bucket cannot be overwritten by an archive.
    api.mount(box, "/workspace/d/bucket", binding="SECOND")
    api.sh(box, "echo stored >d/bucket/object; mkdir beside; echo x >beside/f")
    found = members(api.must("POST", f"{path}/persist").body)[0]
    true("a mount is left out", not any("d/bucket/" in name for name in found) and "./beside/f" in found, list(found))
    api.unmount(box, "/workspace/d/bucket")
    other = api.create()
    api.put(other, "/workspace/kept", b"kept")
    api.put(other, "/workspace/d/a", b"replaced")
    gives("POST", f"/v1/sandbox/{other}/hydrate", {"ok": True}, body=reply.body)
    listing = "find . -mindepth 1 ! -name kept ! -type p -printf '%p %y %m %l\\n' | sort; cat d/a hard run 'sp ace/s,x' é"
    api.sh(box, "rm -r beside d/pipe")
    # What came out of an archive has no set-id bits.
    equal("the same tree", api.sh(other, listing), api.sh(box, f"chmod 755 d/sub/b; {listing}"))
    equal("what the archive does not name stays", api.get(other, "/workspace/kept"), b"kept")
    hydrate = f"/v1/sandbox/{other}/hydrate"
    refuses("POST", hydrate, 400, "Empty tar payload", BAD, body=b"")
    refuses("POST", hydrate, 400, f"tar payload too large: {LIMIT + 1} bytes exceeds the {LIMIT}-byte limit", BAD, body=bytes(LIMIT + 1))
    api.local.connection.close()
    refuses("POST", hydrate, 502, re.compile(r"(tar extract failed \(exit \d+\): |hydrate failed: ).+", re.S), "workspace_archive_write_error", body=b"this is no tar" * 100)
    refuses("POST", hydrate, 502, re.compile(r"(tar extract failed \(exit \d+\): |hydrate failed: ).+", re.S), "workspace_archive_write_error", body=reply.body[:700])
    api.destroy(box)
    api.destroy(other)


def raw_names(body):
    """Names as they stand in the first headers (Python's module strips some)."""
    return [body[n * 512:n * 512 + 100].split(b"\0")[0].decode() for n in range(3) if body[n * 512 + 156:n * 512 + 157] in (b"0", b"5", b"2")]


# --- 8 and 10: mounts --------------------------------------------------------------------------------------------------

def mount_forms():
    path = f"/v1/sandbox/{UNKNOWN}/mount"
    # In the order of the contract: each body breaks one rule and all later ones that it can.
    bad_options = {"endpoint": 1, "s3fsOptions": "x", "readOnly": "x", "prefix": 1, "credentialProxy": "x", "credentials": None}
    forms = [
        ({"bucket": "", "options": 1}, "bucket must be a non-empty string"),
        ({"bucket": 1, "mountPath": 1}, "bucket must be a non-empty string"),
        ({"bucket": None}, "bucket must be a non-empty string"),
        ({"bucket": "b", "options": 1}, "mountPath must be a non-empty string"),
        ({"mountPath": "", "options": 1}, "mountPath must be a non-empty string"),
        ({"mountPath": 1}, "mountPath must be a non-empty string"),
        ({"mountPath": "data", "options": 1}, "mountPath must be an absolute path (start with /)"),
        ({"mountPath": "./data"}, "mountPath must be an absolute path (start with /)"),
        ({"mountPath": "/d", "binding": 1}, "options must be an object"),
        ({"mountPath": "/d", "options": None}, "options must be an object"),
        ({"mountPath": "/d", "options": "x"}, "options must be an object"),
        ({"mountPath": "/d", "options": []}, "options must be an object"),
        ({"mountPath": "/d", "options": bad_options, "binding": 1}, "options.endpoint must be a string when provided"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e"}, "binding": 1}, "binding must be a string when provided"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e"}, "binding": ""}, "binding must be a non-empty string when provided"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e"}, "binding": "B"}, "Provide either binding or options.endpoint, not both"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e"}}, "options.s3fsOptions must be an array of strings when provided"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e", "s3fsOptions": [1]}}, "options.s3fsOptions must be an array of strings when provided"),
        ({"mountPath": "/d", "options": {**bad_options, "endpoint": "http://e", "s3fsOptions": []}}, "options.readOnly must be a boolean when provided"),
        ({"mountPath": "/d", "options": {"readOnly": True, "prefix": 1, "credentialProxy": "x", "credentials": None}}, "options.prefix must be a string when provided"),
        ({"mountPath": "/d", "options": {"prefix": "x", "credentialProxy": "x", "credentials": None}}, "options.credentialProxy must be a boolean when provided"),
        ({"mountPath": "/d", "options": {"endpoint": "http://e", "credentials": None}}, "options.credentials must include string accessKeyId and secretAccessKey"),
        ({"mountPath": "/d", "options": {"credentials": {}}}, "options.credentials must include string accessKeyId and secretAccessKey"),
        ({"mountPath": "/d", "options": {"credentials": {"accessKeyId": "a"}}}, "options.credentials must include string accessKeyId and secretAccessKey"),
        ({"mountPath": "/d", "options": {"credentials": {"accessKeyId": "a", "secretAccessKey": 1}}}, "options.credentials must include string accessKeyId and secretAccessKey"),
        ({"mountPath": "/d", "options": {"credentials": "x"}}, "options.credentials must include string accessKeyId and secretAccessKey"),
        ({"mountPath": "/d", "options": {"endpoint": "http://e"}}, "bucket must be a non-empty string for remote mounts"),
        ({"mountPath": "/d", "options": {}}, "binding must be a non-empty string for R2 binding mounts"),
        ({"mountPath": "/d", "options": {}, "bucket": "b"}, "binding must be a non-empty string for R2 binding mounts"),
    ]
    for body, text in forms:
        refuses("POST", path, 400, text, BAD, body=body)
    for body, text in [({}, "mountPath must be a non-empty string"), ({"mountPath": "a"}, "mountPath must be an absolute path (start with /)"),
                       ({"mountPath": "/"}, "mountPath must not resolve to / (filesystem root)"), ({"mountPath": "/a/.."}, "mountPath must not resolve to / (filesystem root)")]:
        refuses("POST", f"/v1/sandbox/{UNKNOWN}/unmount", 400, text, BAD, body=body)
    true("a malformed request makes no sandbox", UNKNOWN not in api.sandboxes())


def mount_refusals(box):
    path = f"/v1/sandbox/{box}/mount"
    classes = {"InvalidMountConfigError": "INVALID_MOUNT_CONFIG", "MissingCredentialsError": "MISSING_CREDENTIALS", "S3FSMountError": "S3FS_MOUNT_ERROR"}
    free = "http://127.0.0.1:9"
    bucket_rule = ". Bucket names must be 3-63 characters, lowercase alphanumeric, dots, or hyphens, and cannot start/end with dots or hyphens."
    colon = "Bucket name cannot contain ':'. To mount a prefix, use the 'prefix' option:\n"
    bad = "InvalidMountConfigError"
    def remote(bucket=BUCKET, at="/data", **options):
        return {"bucket": bucket, "mountPath": at, "options": {"endpoint": ENDPOINT, "credentials": KEYS, **options}}
    def bound(binding="MY_BUCKET", at="/data", **options):
        return {"binding": binding, "mountPath": at, "options": options}
    cases = [
        (bound(prefix="data"), bad, "Prefix must start with '/': \"data\""),
        (bound(prefix=""), bad, "Prefix must start with '/': \"\""),
        (bound("NONE", prefix="data"), bad, "Prefix must start with '/': \"data\""),
        (remote(prefix="a/", endpoint="nonsense"), bad, "Prefix must start with '/': \"a/\""),
        (bound("NONE"), bad, starts('R2 binding "NONE" not found in Worker env')),
        (bound("NONE", localBucket=True), bad, starts('R2 binding "NONE" not found in Worker env')),
        (bound("1BAD"), bad, starts('Invalid R2 binding name: "1BAD". ')),
        (bound("a-b"), bad, starts('Invalid R2 binding name: "a-b". ')),
        (remote(endpoint="nonsense"), bad, 'Invalid endpoint URL: "nonsense". Must be a valid HTTP(S) URL.'),
        (remote(endpoint="ftp://host"), bad, 'Invalid endpoint URL: "ftp://host". Must be a valid HTTP(S) URL.'),
        (remote(endpoint="nonsense", bucket="X"), bad, 'Invalid endpoint URL: "nonsense". Must be a valid HTTP(S) URL.'),
        (remote("Bad_Name"), bad, 'Invalid bucket name: "Bad_Name"' + bucket_rule),
        (remote("-bad"), bad, 'Invalid bucket name: "-bad"' + bucket_rule),
        (remote("x" * 64), bad, f'Invalid bucket name: "{"x" * 64}"' + bucket_rule),
        (remote("my:folder/sub"), bad, re.compile(re.escape(colon) + r" *mountBucket\('my', '/data', \{ \.\.\.options, prefix: '/?folder/sub' \}\)")),
        (remote("Bad", at="/proc"), bad, 'Invalid bucket name: "Bad"' + bucket_rule),
        (bound(at="/"), bad, None), (bound(at="//."), bad, None), (bound(at="/a/.."), bad, None), (bound(at="/proc"), bad, None), (bound(at="/proc/self"), bad, None),
        (bound(at="/sys/fs"), bad, None), (bound(at="/dev"), bad, None), (bound(at="/x/../dev/shm"), bad, None), (remote(at="/sys/"), bad, None),
        (bound(s3fsOptions=["passwd_file=/x"]), bad, re.compile('s3fs option "passwd_file" cannot be overridden for .+ mounts')),
        (bound(s3fsOptions=["url=http://x"]), bad, re.compile('s3fs option "url" cannot be overridden for .+ mounts')),
        (remote(s3fsOptions=["passwd_file=/x"]), bad, re.compile('s3fs option "passwd_file" cannot be overridden for .+ mounts')),
        (remote(s3fsOptions=["use_path_request_style"], credentialProxy=True), bad, re.compile('s3fs option "use_path_request_style" cannot be overridden for .+ mounts')),
        (remote(s3fsOptions=["ahbe_conf=x"], credentialProxy=True), bad, re.compile('s3fs option "ahbe_conf" cannot be overridden for .+ mounts')),
        (bound(s3fsOptions=["no_such_option=1"]), bad, re.compile('s3fs option "no_such_option" .+')),
        (remote(endpoint=free), "S3FSMountError", starts("S3FS mount failed: ")),
        (remote("no-such-bucket"), "S3FSMountError", starts("S3FS mount failed: ")),
        (remote(credentials={"accessKeyId": KEYS["accessKeyId"], "secretAccessKey": "wrong-secret-value"}), "S3FSMountError", starts("S3FS mount failed: ")),
        (remote(credentials={"accessKeyId": "nobody", "secretAccessKey": "wrong-secret-value"}), "S3FSMountError", starts("S3FS mount failed: ")),
    ]
    causes = {}
    for body, name, text in cases:
        wanted = re.compile("mount failed: .+", re.S) if text is None else (
            re.compile("mount failed: " + text.pattern, re.S) if isinstance(text, re.Pattern) else f"mount failed: {text}")
        begun = time.monotonic()
        reply = refuses("POST", path, 502, wanted, "mount_error", body=body)
        try:
            told = reply.json()
        except ValueError:
            continue
        equal(f"{body}: class", (told.get("name"), told.get("sdkCode")), (name, classes[name]))
        true(f"{body}: no key in the text", KEYS["secretAccessKey"] not in reply.body.decode() and "wrong-secret" not in reply.body.decode(), reply.body)
        true(f"{body}: in time", time.monotonic() - begun < 30)
        if name == "S3FSMountError":
            causes[json.dumps(body)] = told["error"]
        equal(f"{body}: nothing is left", api.exec(box, "sh", "-c", "ls -d /data /x 2>/dev/null; grep -c fuse /proc/self/mountinfo").out, b"0\n")
    texts = list(causes.values())
    true("causes are told apart", len(texts) == 4 and texts[0] != texts[1] != texts[2] and "no-such-bucket" in texts[1], texts)
    equal("no mounts", api.mounts(box), [])
    # A failed mount over what is there leaves it.
    api.sh(box, "mkdir /data; echo mine >/data/f")
    refuses("POST", path, 502, starts("mount failed: S3FS mount failed: "), "mount_error", body=remote(endpoint=free))
    equal("what was there stays", api.exec(box, "cat", "/data/f").out, b"mine\n")
    api.sh(box, "rm -r /data")


def mounts(box):
    path = f"/v1/sandbox/{box}"
    mount, unmount = f"{path}/mount", f"{path}/unmount"
    options = {"endpoint": ENDPOINT, "credentials": KEYS}
    gives("POST", mount, {"ok": True}, body={"bucket": BUCKET, "mountPath": "//data/./x/../", "options": options})
    api.sh(box, "mkdir /data/pre /data/pre-x; echo 1 >/data/pre/a; echo 2 >/data/pre-x/b; echo 3 >/data/top; mkdir '/data/pre/ü 1'; echo 4 >'/data/pre/ü 1/c'")
    reply = refuses("POST", mount, 502, starts("mount failed: Mount path already in use: /data. "), "mount_error", body={"binding": "MY_BUCKET", "mountPath": "/data/", "options": {}})
    true("which bucket", BUCKET in reply.error()[0], reply.error()[0])
    equal("class", (reply.json()["name"], reply.json()["sdkCode"]), ("InvalidMountConfigError", "INVALID_MOUNT_CONFIG"))
    equal("the first is intact and writable", api.sh(box, "cat /data/top; echo more >/data/more; cat /data/more"), "3\nmore\n")
    detected = {"endpoint": ENDPOINT}
    for at, more in [("/p1", {"prefix": "/pre"}), ("/p2", {"prefix": "/pre/", "readOnly": True}), ("/p3", {"prefix": "/"}), ("/w s/p 4", {"prefix": "/pre/ü 1/"}),
                     ("/p5", {"prefix": "/new/deep"}), ("/workspace/in", {"provider": "s3", "s3fsOptions": ["nomultipart", "use_path_request_style"]})]:
        gives("POST", mount, {"ok": True}, body={"bucket": BUCKET, "mountPath": at, "options": {**detected, **more}})
    equal("prefixes", api.sh(box, "ls /p1; ls /p2; ls /p3; ls '/w s/p 4'; ls /p5; ls /workspace/in"), "a\nü 1\na\nü 1\nmore\npre\npre-x\ntop\nc\nmore\npre\npre-x\ntop\n")
    equal("shared at once", api.sh(box, "echo new >/p1/n; cat /data/pre/n /p2/n /p3/pre/n"), "new\nnew\nnew\n")
    found = api.exec(box, "sh", "-c", "echo x >/p2/x")
    true("read-only", found.code != 0 and b"Read-only file system" in found.err, found)
    refuses("PUT", f"{path}/file/p2/x?scope=sandbox", 502, re.compile("write failed: .*Read-only filesystem.*", re.S), "workspace_archive_write_error", body=b"x")
    listed = {one["mountPath"]: one for one in api.mounts(box)}
    equal("list", sorted(listed), ["/data", "/p1", "/p2", "/p3", "/p5", "/w s/p 4", "/workspace/in"])
    true("list: details", listed["/p2"]["readOnly"] and listed["/p2"]["prefix"] == "/pre/" and listed["/p1"]["bucket"] == BUCKET and listed["/p1"]["state"] == "serving", listed["/p2"])
    for at in ["/p1/", "//p2", "/p3/.", "/w s/x/../p 4", "/p5", "/workspace/in"]:
        gives("POST", unmount, {"ok": True}, body={"mountPath": at})
    equal("directories that the mounts made are gone", api.exec(box, "sh", "-c", "ls -d /p1 /p2 /p3 '/w s/p 4' /p5 /workspace/in").out, b"")
    for at in ["/p1", "/nothing", "/data/pre"]:
        reply = refuses("POST", unmount, 502, f"unmount failed: No active mount found at path: {at}", "unmount_error", body={"mountPath": at})
        equal("class", (reply.json().get("name"), reply.json().get("sdkCode")), ("InvalidMountConfigError", "INVALID_MOUNT_CONFIG"))
    # A mount covers what was there, and it comes back.
    api.sh(box, "mkdir -p /workspace/covered; echo under >/workspace/covered/f")
    gives("POST", mount, {"ok": True}, body={"binding": "MY_BUCKET", "mountPath": "/workspace/covered", "options": {}})
    equal("covered", api.sh(box, "ls /workspace/covered; echo over >/workspace/covered/f; cat /workspace/covered/f"), "over\n")
    equal("seen by trusted code", api.object("MY_BUCKET", "f"), b"over\n")
    gives("POST", unmount, {"ok": True}, body={"mountPath": "/workspace/covered"})
    equal("back", api.sh(box, "cat /workspace/covered/f"), "under\n")
    equal("unmounting deletes nothing", api.object("MY_BUCKET", "f"), b"over\n")
    # Unmount, then mount at the same path, at once.
    for _ in range(3):
        gives("POST", unmount, {"ok": True}, body={"mountPath": "/data"})
        gives("POST", mount, {"ok": True}, body={"bucket": BUCKET, "mountPath": "/data", "options": options})
    equal("still there", api.sh(box, "cat /data/top"), "3\n")
    # At the same time: one wins, the other is told; no third thing.
    results = []
    def race():
        results.append(Api().call("POST", mount, {"binding": "MY_BUCKET", "mountPath": "/raced", "options": {}}).status)
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal("one of four wins", sorted(results), [200, 502, 502, 502])
    # Two prefixes of a binding, in two sandboxes; a bucket that a name alone could not open.
    gives("POST", mount, {"ok": True}, body={"binding": "REMOTE", "mountPath": "/remote", "options": {"prefix": "/pre"}})
    equal("a binding with keys", api.sh(box, "cat /remote/a"), "1\n")
    for at in ["/remote", "/raced", "/data"]:
        api.unmount(box, at)
    # Objects of a binding, for trusted code.
    base = "/v1/bindings/MY_BUCKET/objects"
    reply = api.must("PUT", f"{base}/a%2F%2Fb%20%23", b"body", {"Content-Type": "text/x-test", "X-Object-Metadata": '{"k":"v"}'}).json()
    equal("put", (reply["key"], reply["size"], reply["httpMetadata"], reply["customMetadata"]), ("a//b #", 4, {"contentType": "text/x-test"}, {"k": "v"}))
    equal("range", [(r.status, r.body) for r in [api.call("GET", f"{base}/a%2F%2Fb%20%23", headers={"Range": "bytes=1-2"})]], [(206, b"od")])
    equal("bindings", set(gives("GET", "/v1/bindings", None).json()["bindings"]), {"MY_BUCKET", "SECOND", "THIRD", "REMOTE"})
    equal("missing", api.call("GET", f"{base}/none").error()[1], "object_not_found")
    equal("no binding", api.call("GET", "/v1/bindings/NONE/objects").error()[1], "binding_not_found")


# --- The document ------------------------------------------------------------------------------------------------------

def document():
    wanted = set("""createSandbox deleteSandbox isSandboxRunning execCommand readFile writeFile createSession deleteSession ptyTerminal persistWorkspace hydrateWorkspace
        mountBucket unmountBucket createTunnel deleteTunnel getPoolStats primePool shutdownPrewarmed healthCheck getOpenApiSchema""".split())
    for auth in [dict(key=True), dict(key=False)]:
        query = "" if auth["key"] else f"?token={urllib.parse.quote(api.key)}"
        for name in ["/v1/openapi.json", "/v1/openapi.html", "/v1/openapi"]:
            equal(f"{name}{query[:6]}", api.call("GET", name + query, **auth).status, 200)
    equal("a wrong token", api.call("GET", "/v1/openapi.json?token=x", key=False).status, 401)
    document = api.must("GET", "/v1/openapi.json").json()
    true("version", document["openapi"] == "3.1.0", document["openapi"])
    operations = {one["operationId"]: (path, method, one) for path, item in document["paths"].items() for method, one in item.items() if isinstance(one, dict) and "operationId" in one}
    equal("operations", wanted - set(operations), set())
    true("the path of files", "/v1/sandbox/{id}/file/{path}" in document["paths"], list(document["paths"]))
    terminal = operations["ptyTerminal"][2]
    equal("parameters of pty", [one["name"] for one in terminal["parameters"]], "id cols rows shell session Session-Id".split())
    equal("answers of pty", sorted(terminal["responses"]), ["101", "400", "401", "502"])
    page = api.must("GET", "/v1/openapi.html").body.decode()
    true("a page that loads nothing", not re.search(r"""(<script[^>]* src|<link[^>]* href|<img[^>]* src|@import|url\()\s*=?\s*["']?(https?:)?//""", page) and "<html" in page.lower(), page[:200])


# --- Processes and events, our own -----------------------------------------------------------------------------------------

def processes(box):
    path = f"/v1/sandbox/{box}/processes"
    one = gives("POST", path, None, body={"argv": ["sh", "-c", "echo out; echo err >&2; exec sleep 100"], "processId": "srv", "env": {"A": "b"}}).json()
    equal("started", (one["id"], one["status"], one["exitCode"]), ("srv", "running", None))
    until("logs", lambda: api.must("GET", f"{path}/srv/logs").json()["stderr"] == "err\n")
    equal("logs", api.must("GET", f"{path}/srv/logs").json()["stdout"], "out\n")
    true("listed", "srv" in [p["id"] for p in api.must("GET", path).json()["processes"]])
    gives("DELETE", f"{path}/srv?signal=KILL", None)
    until("killed", lambda: api.must("GET", f"{path}/srv").json()["status"] == "killed")
    equal("exit code", api.must("GET", f"{path}/srv").json()["exitCode"], 137)
    api.must("POST", path, {"argv": ["sh", "-c", "echo a; sleep 0.3; echo b; exit 3"], "processId": "short"})
    equal("followed", done(events(api.must("GET", f"{path}/short/logs?follow=true").body))[:2], (3, b"a\nb\n"))
    refuses("GET", f"{path}/none", 404, "Process 'none' not found", "process_not_found")
    refuses("POST", path, 400, "Invalid process ID format", BAD, body={"argv": ["true"], "processId": "a/b"})


def main():
    checks.section(common)
    checks.section(life)
    checks.section(mount_forms)
    checks.section(document)
    box = api.create()
    for part in [execs, files, sessions, pty, archives, mount_refusals, mounts, processes]:
        if len(sys.argv) == 1 or part.__name__ in sys.argv[1:]:
            checks.section(part, box)
    api.destroy(box)
    checks.end()


main()
