"""Programs at work in a sandbox with two mounts, and clients of the API, while the daemon is killed again and again.

    daemon_kills.py begin SEED      makes the sandbox and starts the programs in it
    daemon_kills.py clients SEED    calls the API until `stop` is there; what was acknowledged must be so, also at the end
    daemon_kills.py check           after a restart: everything is as it was
    daemon_kills.py overlap         kills the process behind a mount, and the daemon when another one has the mount
    daemon_kills.py end TO          ends the programs and leaves below TO what they were told is stored
    daemon_kills.py workers         the daemon of now, too, goes on with mounts whose processes are killed

What one of them learns for the others stands in the working directory.
"""

import http.client
import io
import json
import os
import pathlib
import random
import signal
import sys
import tarfile
import time
import urllib.parse

from client import Api, Failed, arguments_of, until

ENDPOINT, BUCKET = os.environ["ENDPOINT"], os.environ["BUCKET"]
TESTS = pathlib.Path(os.environ["SCRIPTS"]).parent
SANDBOX = pathlib.Path("sandbox")
# Each a path in the sandbox, a prefix of the bucket, and the name of the programs that work there.
MOUNTS = {"through": {}, "back": {"writeBack": True}}
# The longest that programs take to come to the end of their rounds, and a client waits for a daemon.
PROGRAMS_LIMIT, DAEMON_LIMIT = 180, 60
# Not the host's settings, and nothing in the background that would still use the mount at the end.
GIT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.autoDetach", "GIT_CONFIG_VALUE_0": "false", "GIT_CONFIG_KEY_1": "maintenance.autoDetach", "GIT_CONFIG_VALUE_1": "false",
}

api = Api()


def begin(seed):
    box = api.create()
    SANDBOX.write_text(box)
    api.put(box, "/workspace/survive.py", (TESTS / "survive.py").read_bytes())
    credentials = {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
    for name, options in MOUNTS.items():
        api.mount(box, f"/{name}", bucket=BUCKET, options={"endpoint": ENDPOINT, "prefix": f"/{name}", "credentials": credentials, **options})
        api.sh(box, f"mkdir /workspace/{name}")
    for name in MOUNTS:
        argv = ["python3", "/workspace/survive.py", f"/{name}", f"/workspace/{name}", "-1", seed, "0"]
        api.must("POST", f"/v1/sandbox/{box}/processes", {"processId": name, "argv": argv, "env": GIT})


def programs(box):
    return {one["id"]: one["status"] for one in api.must("GET", f"/v1/sandbox/{box}/processes").json()["processes"]}


def logs(box, name):
    told = api.must("GET", f"/v1/sandbox/{box}/processes/{name}/logs").json()
    return f"{name}: {told['stdout']}{told['stderr']}".strip()


def serving(box):
    """Everything is there, and works."""
    found = api.must("GET", "/v1/sandbox").json()["sandboxes"]
    assert [(one["id"], one["running"]) for one in found] == [(box, True)], found
    assert api.call("GET", f"/v1/sandbox/{box}/running").json() == {"running": True}
    states = {one["mountPath"]: one["state"] for one in api.mounts(box)}
    assert states == {f"/{name}": "serving" for name in MOUNTS}, api.mounts(box)
    for name in MOUNTS:
        word = f"{time.time_ns()}\n"
        assert api.sh(box, f"echo -n '{word}' >/{name}/checked; cat /{name}/checked") == word


def check():
    box = SANDBOX.read_text()
    assert programs(box) == {name: "running" for name in MOUNTS}, [logs(box, name) for name in MOUNTS]
    serving(box)


def processes(box):
    """Those behind the mounts, as a daemon that is started now would find them."""
    record = json.loads((pathlib.Path(os.environ["STATE"]) / "registry" / f"{box}.json").read_text())
    return {mount["worker"]["pid"] for mount in record["mounts"]}


def workers():
    box = SANDBOX.read_text()
    before = processes(box)
    assert len(before) == len(MOUNTS), before
    for pid in before: os.kill(pid, signal.SIGKILL)
    until("others go on", lambda: len(processes(box) - before) == len(MOUNTS), DAEMON_LIMIT)
    serving(box)


def children(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def has_mount(pid):
    # Until it has become another program, it has all that the daemon has.
    if b"mount-worker" not in arguments_of(pid): return False
    try: return any(os.readlink(link) == "/dev/fuse" for link in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    except OSError: return False


def overlap():
    box = SANDBOX.read_text()
    daemon = next(pid for pid in children(os.environ["SUPERVISOR"]) if b"\0serve\0" in arguments_of(pid))
    before = processes(box)
    os.kill(random.choice(sorted(before)), signal.SIGKILL)
    while not any(has_mount(pid) for pid in children(daemon) - before): pass
    os.kill(daemon, signal.SIGKILL)


class Client:
    """Calls whose answers may not come: then what they would have changed is the one or the other."""

    def __init__(self, box, name, rng):
        self.box, self.name, self.rng = box, name, rng
        # Of each file, what it may hold; none: it is not there.
        self.known = {}
        self.answered = self.unanswered = 0
        self.number = 0

    def ask(self, call):
        try:
            answer = call()
        except TimeoutError:
            raise
        except (OSError, http.client.IncompleteRead):
            # The daemon was killed.
            self.unanswered += 1
            api.local.connection = None
            time.sleep(0.02)
            return None
        self.answered += 1
        return answer

    def change(self, file, data, call):
        """A call that writes a file. Without an answer nobody writes it again: the call may still be at work inside."""
        if self.ask(call) is None:
            self.known[file] = self.known.get(file, {None}) | {data}
        else:
            self.known[file] = {data}
            if self.name == "through": self.compare(file)

    def compare(self, file):
        """With what is in the bucket."""
        key = urllib.parse.quote(f"{self.name}/api/{file}", safe="")
        reply = self.ask(lambda: api.call("GET", f"/v1/bindings/REMOTE/objects/{key}"))
        if reply is None: return
        if reply.status not in (200, 404): raise Failed(f"{file}: {reply}")
        found = reply.body if reply.status == 200 else None
        if found not in self.known[file]:
            shown = "nothing" if found is None else f"{len(found)} bytes ({found[:40]!r})"
            raise Failed(f"/{self.name}/api/{file} is {shown} in the bucket, and one of {[data and len(data) for data in self.known[file]]} bytes")

    def act(self):
        certain = [file for file, held in self.known.items() if len(held) == 1]
        action = self.rng.randrange(6)
        file = self.rng.choice(certain) if certain and self.rng.random() < 0.5 else None
        if action <= 1:
            data = self.rng.randbytes(self.rng.choice([0, 10, 5000, 300000]))
            at = file or self.new()
            self.change(at, data, lambda: api.put(self.box, f"/{self.name}/api/{at}", data))
        elif action == 2:
            text = f"{self.rng.random()}"
            at = file or self.new()
            # Not what the shell makes of a file that it was killed in: the new contents come by a rename.
            script = f"mkdir -p /{self.name}/api; cd /{self.name}/api; printf %s '{text}' >{at}.new; mv {at}.new {at}; cat {at}"
            self.change(at, text.encode(), lambda: self.printed(script, text))
        elif action == 3 and file:
            reply = self.ask(lambda: api.get(self.box, f"/{self.name}/api/{file}"))
            if reply is not None and reply not in self.known[file]: raise Failed(f"{file}: {len(reply)} bytes are read")
        elif action == 4:
            reply = self.ask(self.sync)
            if reply is None: return
            for file in self.rng.sample(certain, min(3, len(certain))): self.compare(file)
        else:
            found = self.ask(lambda: api.mounts(self.box))
            if found is not None and [one["state"] for one in found] != ["serving"] * len(MOUNTS): raise Failed(str(found))

    def new(self):
        self.number += 1
        return f"f{self.number}"

    def printed(self, script, text):
        told = api.sh(self.box, script)
        if told != text: raise Failed(f"{told!r} instead of {text!r}")
        return told

    def sync(self):
        told = api.must("POST", f"/v1/sandbox/{self.box}/mounts/sync", {"mountPath": f"/{self.name}"}).json()
        if not told["ok"] or told["failed"]: raise Failed(str(told))
        return told

    def end(self):
        self.sync()
        for file in self.known: self.compare(file)
        # Nothing half done is left by calls that were cut off.
        prefix = f"{self.name}/api/"
        names = {key.removeprefix(prefix) for key in api.keys("REMOTE", prefix)} - {""}
        extra = {name for name in names if name.removesuffix(".new") not in self.known}
        if extra: raise Failed(f"{extra} in the bucket")


def clients(seed):
    box, rng = SANDBOX.read_text(), random.Random(int(seed))
    at_work = [Client(box, name, rng) for name in MOUNTS]
    while not os.path.exists("stop"):
        for client in at_work: client.act()
        time.sleep(0.02)
    for client in at_work: client.end()
    count = {name: sum(getattr(client, name) for client in at_work) for name in ("answered", "unanswered")}
    print(f"calls of the API: {count['answered']} answered, {count['unanswered']} cut off; {sum(len(client.known) for client in at_work)} files")


def end(to):
    box = SANDBOX.read_text()
    for name in MOUNTS: api.sh(box, f"touch /workspace/{name}/stop")
    until("the programs end", lambda: "running" not in programs(box).values(), PROGRAMS_LIMIT)
    told = [logs(box, name) for name in MOUNTS]
    print("\n".join(told))
    assert programs(box) == {name: "completed" for name in MOUNTS}, (programs(box), told)
    for name in MOUNTS:
        survived = (TESTS / "survived.sh").read_text()
        api.sh(box, f"cd /{name}; export PYTHON=python3 LOCAL=/workspace/{name}\n{survived}", env=GIT, timeout_ms=120000)
        Client(box, name, None).sync()
        # By way of the sandbox's own disk, and not of the mount.
        api.sh(box, f"tar -C /workspace/{name} -cf /workspace/{name}.tar expected rows")
        with tarfile.open(fileobj=io.BytesIO(api.get(box, f"/workspace/{name}.tar"))) as archive: archive.extractall(pathlib.Path(to) / name, filter="data")


{"begin": begin, "clients": clients, "check": check, "overlap": overlap, "end": end, "workers": workers}[sys.argv[1]](*sys.argv[2:])
