"""Attacks from inside a sandbox, in every mount mode, and from outside through the API."""

import base64
import contextlib
import ctypes
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

from client import Api, Checks, arguments_of, events, quote, until

checks = Checks()
equal, true = checks.equal, checks.true
HERE = pathlib.Path(__file__).parent
STATE, LOG, ENDPOINT, BUCKET, SANDPAIL = (os.environ[name] for name in ("STATE", "LOG", "ENDPOINT", "BUCKET", "SANDPAIL"))
SUPERVISOR = int(os.environ["SUPERVISOR"])
KEYS = {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
# A pair that the store does not know; it must not be seen anywhere either.
WRONG = {"accessKeyId": "WRONG" + secrets.token_hex(8), "secretAccessKey": "wrong" + secrets.token_hex(16)}
CANARY = "canary-" + secrets.token_hex(16)


class Watched(Api):
    """A client that looks for keys in everything that the API says."""

    def call(self, method, path, body=None, headers=None, key=True):
        reply = super().call(method, path, body, headers, key)
        said = reply.body + str(reply.headers).encode()
        for name, needle in NEEDLES.items():
            if needle in said:
                true(f"{method} {path} says the {name}", False, said[:500])
        return reply


api = Watched()
NEEDLES = {"access key": KEYS["accessKeyId"].encode(), "secret key": KEYS["secretAccessKey"].encode(), "API key": api.key.encode(),
           "wrong access key": WRONG["accessKeyId"].encode(), "wrong secret key": WRONG["secretAccessKey"].encode()}


def encoded(needles):
    return {name: bytes(byte ^ 0x5A for byte in needle).hex() for name, needle in needles.items()}


# --- What the host shows ------------------------------------------------------------------------------------------------

class Host:
    """Things on the host that no sandbox may see or change, each marked by a canary."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="attack-", dir=os.environ.get("TMPDIR"))
        root = self.root = pathlib.Path(self.directory.name)
        (root / "host-canary").write_text(CANARY)
        self.servers = []
        self.ports = []
        for family, address in [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::1", 0)), (socket.AF_UNIX, "\0" + CANARY), (socket.AF_UNIX, str(root / "s"))]:
            with contextlib.suppress(OSError):
                server = socket.socket(family, socket.SOCK_STREAM)
                server.bind(address)
                server.listen(64)
                self.servers.append(server)
                if family != socket.AF_UNIX:
                    self.ports.append(server.getsockname()[1])
                threading.Thread(target=self.answer, args=(server,), daemon=True).start()
        self.sleeper = subprocess.Popen(["sleep", "1000." + str(int(CANARY[7:11], 16))])
        libc = ctypes.CDLL(None, use_errno=True)
        self.shm_key = int(CANARY[7:14], 16) + 1
        self.shm = libc.shmget(self.shm_key, 4096, 0o1000 | 0o666)
        self.shmctl = libc.shmctl
        self.append = [path for path in ["/usr/bin/env", "/bin/sh", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/usr/bin/python3", "/etc/ssl/certs/ca-certificates.crt"] if os.path.exists(path)]
        self.before = self.hashes()

    @staticmethod
    def answer(server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with contextlib.suppress(OSError):
                    connection.sendall(CANARY.encode())
                connection.close()

    def hashes(self):
        return {path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() for path in [*self.append, SANDPAIL, str(self.root / "host-canary")]}

    def marks(self):
        name = "sandpail-attack-mark"
        return [f"{folder}/{name}" for folder in ["/usr/bin", "/usr/lib", "/usr/local/bin", "/bin", "/etc", "/etc/cron.d", "/root", "/tmp", "/var/tmp", "/run", "/dev/shm", "/home", "/opt", "/mnt", "/",
                                                  str(self.root), STATE, os.path.dirname(SANDPAIL)]]

    def addresses(self):
        found = set(re.findall(r"inet6? ([0-9a-f.:]+)", subprocess.run(["ip", "addr"], capture_output=True, text=True).stdout))
        with contextlib.suppress(OSError):
            found |= {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
        with contextlib.suppress(OSError):
            found |= set(re.findall(r"via ([0-9a-f.:]+)", subprocess.run(["ip", "route"], capture_output=True, text=True).stdout))
        return sorted(found - {"127.0.0.1", "::1"})

    def parameters(self, **more):
        return {"needles": encoded({**NEEDLES, "planted": CANARY[::-1].encode()}), "canary": CANARY, "canary_path": str(self.root / "host-canary"), "ports": [int(api.host.split(":")[1]), int(ENDPOINT.split(":")[2]), *self.ports],
                "answers": [CANARY, '"ok":true', "InvalidArgument", "<Error>", "SeaweedFS", "<?xml"], "addresses": self.addresses(), "abstract": CANARY, "socket_path": str(self.root / "s"),
                "shm_key": self.shm_key, "host_pids": [SUPERVISOR, self.sleeper.pid, os.getpid()], "host_command": f"sleep\x001000.{int(CANARY[7:11], 16)}",
                "hidden": [str(self.root), STATE, os.environ["REPO"], *([os.path.expanduser("~/.ssh")] if os.path.isdir(os.path.expanduser("~/.ssh")) else [])], "marks": [], "append": [], **more}

    def end(self):
        self.sleeper.kill()
        self.sleeper.wait()
        for server in self.servers:
            # An accept that waits does not end by close alone.
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        self.shmctl(self.shm, 0, None)
        self.directory.cleanup()


# Probes that cannot be shown to succeed here, with the condition.
IMPOSSIBLE = {
    "/dev/kvm": not os.path.exists("/dev/kvm"), "loop devices": not os.path.exists("/dev/loop-control"), "/dev/mem": not os.path.exists("/dev/mem"), "kcore": not os.path.exists("/proc/kcore"),
    "disks": not glob.glob("/dev/[svhx][dv][a-z]*"), "uevent_helper": not os.path.exists("/sys/kernel/uevent_helper"), "modprobe": not os.path.exists("/proc/sys/kernel/modprobe"),
    "sysrq-trigger": not os.path.exists("/proc/sysrq-trigger"), "the host's keys": False,
    "the host's addresses": False,
    # No test has a terminal, and a running program is busy whoever asks.
    "typing into the host's terminal": True, "init's program is writable": True,
}


def control(host):
    """The same probes as the host's root: each must be able to succeed."""
    with tempfile.TemporaryDirectory(prefix="attack-control-") as place:
        # The first is unmounted by a probe, the second stays.
        buckets = [f"{place}/bucket", f"{place}/second"]
        for bucket in buckets:
            os.mkdir(bucket)
        parameters = host.parameters(sandbox=False, scan=False, buckets=buckets, init=host.sleeper.pid, metadata=[["127.0.0.1", host.ports[0]]])
        parameters["hidden"].append(buckets[1])
        parameters["addresses"].append("127.0.0.3")
        pathlib.Path(place, "p.json").write_text(json.dumps(parameters))
        script = f"mount -t tmpfs none {buckets[0]}; mount -t tmpfs none {buckets[1]}; mount -t tmpfs none /tmp/attack; exec {sys.executable} {HERE}/attack_inside.py {place}/p.json"
        os.makedirs("/tmp/attack", exist_ok=True)
        ran = subprocess.run(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-ec", script], capture_output=True, text=True, timeout=120)
        with contextlib.suppress(OSError):
            os.rmdir("/tmp/attack")
    true("the probes run outside", ran.returncode == 0, ran.stderr[-3000:])
    probes = json.loads(ran.stdout)["probes"]
    weak = [f"{name}: {told}" for name, told in probes.items() if not told.startswith("SUCCEEDED") and not IMPOSSIBLE.get(name) and possible(name, told)]
    equal("every probe can succeed", weak, [])
    return probes


def possible(name, told):
    """Whether a refusal outside says something about the probe, not about this kernel."""
    return not any(text in told for text in ("Function not implemented", "No such device", "Address family not supported", "died with status"))


# --- From inside ----------------------------------------------------------------------------------------------------------

MODES = {
    "explicit keys": ("/explicit", {"bucket": BUCKET, "options": {"endpoint": ENDPOINT, "credentials": KEYS}}),
    "detected keys": ("/detected", {"bucket": BUCKET, "options": {"endpoint": ENDPOINT, "prefix": "/detected"}}),
    "credential proxy": ("/proxied", {"bucket": BUCKET, "options": {"endpoint": ENDPOINT, "credentials": KEYS, "credentialProxy": True, "prefix": "/proxied"}}),
    "binding with keys": ("/bound", {"binding": "REMOTE", "options": {"prefix": "/bound"}}),
    "embedded binding": ("/workspace/embedded", {"binding": "MY_BUCKET", "options": {}}),
    "local bucket": ("/local", {"binding": "SECOND", "options": {"localBucket": True}}),
}


def plant(sandbox):
    """Canaries that the scan must find: a file, an attribute, an argument, a variable, and memory alone."""
    text = CANARY[::-1]
    api.sh(sandbox, f"mkdir -p /var/lib/planted; echo x{text}x >/var/lib/planted/f; setfattr -n user.planted -v {text} /var/lib/planted 2>/dev/null || true")
    half = len(text) // 2
    code = f"import time; kept = ''.join([{text[:half]!r}, {text[half:]!r}]).encode() * 3; time.sleep(600)"
    for argv, env in [(["sleep", "600"], {"PLANTED": text}), (["sh", "-c", "sleep 600; exit", text], {}), (["python3", "-c", code], {})]:
        api.must("POST", f"/v1/sandbox/{sandbox}/processes", {"argv": argv, "env": env})


def inside(host):
    sandbox = api.create()
    for name, (path, body) in MODES.items():
        reply = api.call("POST", f"/v1/sandbox/{sandbox}/mount", {"mountPath": path, **body})
        true(f"mounts: {name}", reply.status == 200, reply.body)
        if reply.status == 200:
            api.sh(sandbox, f"echo data >{path}/file; cat {path}/file")
    # Failures leave nothing either.
    for options in [{"endpoint": ENDPOINT, "credentials": WRONG}, {"endpoint": "http://127.0.0.1:9", "credentials": WRONG}, {"endpoint": f"http://{WRONG['accessKeyId']}:{WRONG['secretAccessKey']}@127.0.0.1:9"}]:
        reply = Api().call("POST", f"/v1/sandbox/{sandbox}/mount", {"mountPath": "/failed", "bucket": BUCKET, "options": options})
        equal("a mount with wrong keys", reply.status, 502)
        true("its text holds no key", WRONG["secretAccessKey"].encode() not in reply.body, reply.body)
    plant(sandbox)
    # Sessions and terminals of the sandbox are there while the scan runs.
    api.exec(sandbox, "cd", "/tmp", session="attack")
    other = api.create()
    api.put(other, "/workspace/other", CANARY.encode())
    buckets = [path for name, (path, _) in MODES.items() if name != "local bucket"]
    # The host's marks are only named where the path is the sandbox's own, too.
    parameters = host.parameters(sandbox=True, scan=True, buckets=buckets, init=1, metadata=[["169.254.169.254", 80], ["169.254.170.2", 80], ["100.100.100.200", 80], ["fd00:ec2::254", 80]], marks=host.marks(), append=host.append)
    api.put(sandbox, "/tmp/attack.py", (HERE / "attack_inside.py").read_bytes())
    api.put(sandbox, "/tmp/attack.json", json.dumps(parameters).encode())
    ran = api.exec(sandbox, "python3", "-I", "/tmp/attack.py", "/tmp/attack.json", timeout_ms=300000)
    true("the attack runs", ran.code == 0, ran.err[-3000:])
    report = json.loads(ran.out)
    print(f"scan: {report['looked']}")
    for name, told in report["probes"].items():
        true(f"probe {name}", told.startswith("refused"), told)
    places = {name: sorted({re.sub(r"\d+", "N", where) for found, where in report["found"] if found == name}) for name in dict(report["found"])}
    planted = places.pop("planted", [])
    for kind in ["/var/lib/planted/f", "/proc/N/environ", "/proc/N/cmdline", "/proc/N/mem"]:
        true(f"the scan finds what was planted in {kind}", any(kind in where for where in planted), planted)
    equal("no key is found inside", places, {})
    true("the scan looked", report["looked"]["files"] > 100 and report["looked"]["processes"] >= 4, report["looked"])
    equal("nothing on the host changed", host.hashes(), host.before)
    equal("no file of the host was written", [path for path in host.marks() if os.path.exists(path)], [])
    equal("the mounts are intact", sorted(one["mountPath"] for one in api.mounts(sandbox) if one["state"] == "serving"), sorted(path for path, _ in MODES.values()))
    api.sh(sandbox, " && ".join(f"cat {path}/file" for path, _ in MODES.values()))
    return sandbox, other, report


# --- On the host ----------------------------------------------------------------------------------------------------------

def family():
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parents[int(entry.name)] = int(pathlib.Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = {SUPERVISOR}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {SUPERVISOR})


def host_scan():
    """Where on the host a needle is: environments and arguments of our processes, files of state, run and log."""
    found, counted = [], dict(processes=0, files=0)
    needles = {**NEEDLES, "planted": (CANARY + "-host").encode()}
    ours = set(family())
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            counted["processes"] += 1
            # The test's own processes may know the keys; of others only the arguments count.
            texts = {"cmdline": pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()}
            if pid in ours:
                texts["environ"] = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
            for where, text in texts.items():
                # The S3 servers of the tests get an access key as an argument; it is no secret there.
                found += [(name, f"/proc/N/{where}") for name, needle in needles.items() if needle in text and (pid in ours or name not in ("access key",))]
    for top in [STATE, "/run/sandpail", LOG]:
        for folder, folders, names in os.walk(top) if os.path.isdir(top) else [(os.path.dirname(top), [], [os.path.basename(top)])]:
            # Mounts of sandboxes show buckets.
            folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        counted["files"] += 1
                        data = pathlib.Path(path).read_bytes()
                        found += [(name, path.replace(STATE, "STATE")) for name, needle in needles.items() if needle in data]
    return sorted(set(found)), counted


def on_host(sandbox):
    init = [pid for pid in family() if pathlib.Path(f"/proc/{pid}/status").read_text().count("NSpid:") and re.search(r"NSpid:.*\t1$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)]
    true("there are inits", init, family())
    needles = list(NEEDLES.values())
    for pid in init:
        # A sandbox's init holds nothing, not even in memory that no probe inside can read.
        held = []
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
                    first, last = (int(x, 16) for x in line.split()[0].split("-"))
                    if "r" in line.split()[1] and last - first < 1 << 28:
                        with contextlib.suppress(OSError, OverflowError):
                            memory.seek(first)
                            data = memory.read(last - first)
                            held += [line.split()[-1] for needle in needles if needle in data]
        equal(f"memory of init {pid}", held, [])
        # Files of its own: the log it writes, the lock on its ids. No directory and no device, through which more could be reached.
        reached = []
        for fd in glob.glob(f"/proc/{pid}/fd/*"):
            target, kind = os.readlink(fd), os.stat(fd).st_mode
            known = re.fullmatch(rf"{re.escape(STATE)}/sandboxes/[a-z2-7]+/logs/init|/run/sandpail/ids/\d+", target)
            null = stat.S_ISCHR(kind) and os.stat(fd).st_rdev == os.makedev(1, 3)
            if not (known and stat.S_ISREG(kind) or null or stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind) or target.startswith(("anon_inode:", "/dev/pts/", "/ptmx", "/pts/"))):
                reached.append(target)
        equal("descriptors of init lead nowhere", reached, [])
    seen = 0
    for pid in family():
        # Helpers come and go.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            if pathlib.Path(f"/proc/{pid}/exe").resolve().name.startswith(("sandpail", "memfd:sandpail")) and not re.search(r"NSpid:\t\d+\t\d+", status):
                limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
                seen += 1
                true(f"no core files of {arguments_of(pid)[:80]!r}", re.search(r"Max core file size +[01] +[01] ", limits), re.search(r"Max core.*", limits).group())
    true("the daemon and its workers were looked at", seen > 1, seen)
    # The scan sees what is planted.
    pathlib.Path(STATE, "planted").write_text(CANARY + "-host")
    with subprocess.Popen(["sleep", "30", ], env={"X": "y"}, executable="/bin/sleep") as sleeper:
        # An argument of somebody else's process is found, too.
        sleeper.kill()
    with subprocess.Popen(["sh", "-c", "sleep 30; exit", CANARY + "-host"]) as shell:
        found, counted = host_scan()
        subprocess.run(["pkill", "-P", str(shell.pid)])
        shell.kill()
    os.unlink(pathlib.Path(STATE, "planted"))
    true("the scan of the host sees what is planted", ("planted", "STATE/planted") in found and ("planted", "/proc/N/cmdline") in found, found)
    equal("no key on the host", [one for one in found if one[0] != "planted"], [])
    print(f"scan of the host: {counted}")
    true("modes of the state", stat.S_IMODE(os.stat(STATE).st_mode) & 0o077 == 0, oct(os.stat(STATE).st_mode))


# --- Through the API ------------------------------------------------------------------------------------------------------

def through_files(host, sandbox):
    base = f"/v1/sandbox/{sandbox}"
    canary = str(host.root / "host-canary")
    links = {"root": "/", "up": "../../../../../../../..", "procroot": "/proc/1/root", "selfroot": "/proc/self/root", "selfcwd": "/proc/self/cwd", "fd": "/proc/self/fd", "proc": "/proc", "host": str(host.root),
             "file": canary, "exe": "/proc/self/exe", "sock": "/proc/net/unix"}
    api.sh(sandbox, "cd /workspace; " + "; ".join(f"ln -s {target} {name}" for name, target in links.items()))
    daemon = [pid for pid in family() if b"serve" in arguments_of(pid)]
    wanted = [f"/workspace/{name}{canary}" for name in links] + [f"/workspace/fd/{n}{canary}" for n in range(20)] + ["/workspace/file", canary, "/workspace/host/host-canary"]
    wanted += [f"/proc/{pid}/root{canary}" for pid in ["self", 1, *daemon]] + [f"/proc/self/fd/{n}{canary}" for n in range(20)] + [f"/workspace/proc/{pid}/root{canary}" for pid in daemon]
    for path in wanted:
        for scope in ["?scope=sandbox", ""]:
            reply = api.call("GET", f"{base}/file/{quote(path)}{scope}")
            true(f"read {path}{scope}", CANARY.encode() not in reply.body and reply.status in (200, 403, 404, 502), (reply.status, reply.body[:200]))
            reply = api.call("PUT", f"{base}/file/{quote(path)}{scope}", b"overwritten")
            true(f"write {path}{scope}", reply.status in (200, 403, 404, 502), (reply.status, reply.body[:200]))
    for path in ["/proc/self/environ", "/proc/self/cmdline", *[f"/proc/{pid}/environ" for pid in daemon], "/dev/fuse"]:
        reply = api.call("GET", f"{base}/file/{quote(path)}?scope=sandbox")
        true(f"read {path}", b"SANDPAIL" not in reply.body and b"sandpail" not in reply.body and reply.status in (200, 403, 404, 502), (reply.status, reply.body[:300]))
    for name in links:
        listed = api.call("GET", f"{base}/files?path=/workspace/{name}&hidden=true&recursive=false")
        true(f"list {name}", b"host-canary" not in listed.body and b"daemon.log" not in listed.body, listed.body[:300])
        api.call("POST", f"{base}/mkdir", {"path": f"/workspace/{name}{host.root}/made", "recursive": True})
        api.call("POST", f"{base}/rename", {"oldPath": f"/workspace/{name}{canary}", "newPath": "/workspace/taken"})
        api.call("POST", f"{base}/rename", {"oldPath": "/workspace/link", "newPath": f"/workspace/{name}{host.root}/given"})
        api.call("GET", f"{base}/stat?path=/workspace/{name}{canary}")
        api.call("DELETE", f"{base}/file/workspace/{name}{host.root}?recursive=true&scope=sandbox")
        api.call("POST", f"{base}/exec", {"argv": ["ls"], "cwd": f"/workspace/{name}{host.root}"})
    equal("the host's directory", sorted(os.listdir(host.root)), sorted(["host-canary", "s"]))
    equal("nothing on the host changed", host.hashes(), host.before)
    # A link that changes under the daemon's eyes.
    api.sh(sandbox, "mkdir -p /workspace/race/dir; echo mine >/workspace/race/dir/host-canary")
    api.must("POST", f"{base}/processes", {"argv": ["python3", "-c", f"""
import os, time
os.chdir("/workspace/race"); os.symlink({str(host.root)!r}, "link"); os.symlink("/proc/self/root" + {str(host.root)!r}, "proclink")
end = time.time() + 4
import ctypes; libc = ctypes.CDLL(None)
while time.time() < end:
    for name in (b"link", b"proclink"):
        libc.renameat2(-100, b"dir", -100, name, 2); libc.renameat2(-100, b"dir", -100, name, 2)
"""], "processId": "racer"})
    end, count = time.monotonic() + 3, 0
    while time.monotonic() < end:
        count += 1
        reply = api.call("GET", f"{base}/file/workspace/race/dir/host-canary")
        true("read in a race", CANARY.encode() not in reply.body, reply.body)
        api.call("PUT", f"{base}/file/workspace/race/dir/host-canary", b"raced")
        api.call("PUT", f"{base}/file/workspace/race/dir/more-{count % 7}", b"raced")
    equal("the host after a race", (host.hashes(), sorted(os.listdir(host.root))), (host.before, ["host-canary", "s"]))
    for session in ["../../etc", "..%2f..%2fetc", "a%2fb", "a%00b", "x" * 200]:
        reply = api.call("POST", f"{base}/session", {"id": session})
        true(f"session {session[:20]}", reply.status in (400, 502), (reply.status, reply.body))
    for cwd in ["/proc/self/root", "/workspace/selfroot" + str(host.root), "/workspace/../../../.."]:
        made = api.call("POST", f"{base}/session", {"id": f"c{abs(hash(cwd))}", "cwd": cwd, "scope": "sandbox"})
        if made.status == 200:
            told = api.call("POST", f"{base}/exec", {"argv": ["ls", "-A"]}, {"Session-Id": made.json()["id"]})
            true(f"session in {cwd}", b"host-canary" not in b"".join(base64.b64decode(data) for name, data in events(told.body) if name == "stdout"), told.body)


def through_mounts(host, sandbox):
    def try_mount(path):
        return api.call("POST", f"/v1/sandbox/{sandbox}/mount", {"mountPath": path, "binding": "THIRD", "options": {}})
    api.sh(sandbox, f"mkdir -p /workspace/m; cd /workspace/m; ln -s /etc etc; ln -s /proc proc; ln -s / root; ln -s /dev dev; ln -s /sys sys; ln -s /proc/1/root initroot; ln -s {host.root} host; ln -s loop loop; ln -s ../../../../.. up; mkfifo pipe")
    before = pathlib.Path("/proc/self/mountinfo").read_text()
    for path in ["etc", "etc/new", "proc", "proc/self", "proc/sys", "root", "root/proc", "root/proc/sys", "dev", "dev/shm", "sys", "sys/fs", "initroot", "initroot/etc", "host", "host/x", "loop", "up", "up/proc", "pipe", "pipe/x"]:
        reply = try_mount(f"/workspace/m/{path}")
        if reply.status == 200:
            # Where it is, is the sandbox's own business, but the kernel's windows stay uncovered.
            table = api.sh(sandbox, "cat /proc/self/mountinfo")
            places = [line.split()[4] for line in table.splitlines() if " - fuse" in line and "/workspace/embedded" not in line]
            true(f"mount over {path}", not any(place == top or place.startswith(top + "/") for place in places for top in ("/proc", "/sys", "/dev")) and "/" not in places, places)
            api.unmount(sandbox, f"/workspace/m/{path}")
        equal(f"mounts of the host after {path}", pathlib.Path("/proc/self/mountinfo").read_text(), before)
        true("the host's own directory", sorted(os.listdir(host.root)) == ["host-canary", "s"])
    for path in ["/workspace/m/\0x", "/workspace/m/" + "x" * 300, "/workspace/" + "d/" * 3000 + "x", "/workspace/m/é\n🪣 \\040", "/workspace/m/.", "/workspace/m/..//../proc/"]:
        reply = try_mount(path)
        true(f"mount at {path[:40]!r}", reply.status in (200, 400, 502), (reply.status, reply.body[:300]))
        if reply.status == 200:
            api.unmount(sandbox, path)
    equal("the sandbox's mounts", [one["mountPath"] for one in api.mounts(sandbox) if one["binding"] == "THIRD"], [])
    # The target changes while it is mounted.
    api.must("POST", f"/v1/sandbox/{sandbox}/processes", {"argv": ["python3", "-c", f"""
import os, time, ctypes
libc = ctypes.CDLL(None); os.makedirs("/workspace/m/swap", exist_ok=True); os.symlink("/proc/self/root" + {str(host.root)!r}, "/workspace/m/swapped"); end = time.time() + 4
while time.time() < end: libc.renameat2(-100, b"/workspace/m/swap", -100, b"/workspace/m/swapped", 2)
"""], "processId": "swapper"})
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if try_mount("/workspace/m/swap").status == 200:
            api.call("POST", f"/v1/sandbox/{sandbox}/unmount", {"mountPath": "/workspace/m/swap", "force": True})
    equal("mounts of the host after a race", pathlib.Path("/proc/self/mountinfo").read_text(), before)
    equal("its directory", sorted(os.listdir(host.root)), ["host-canary", "s"])


def archive(*members):
    """A tar of (name, kind, link target or bytes)."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o6777
            if kind == tarfile.REGTYPE:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                if isinstance(value, tuple):
                    info.devmajor, info.devminor = value
                else:
                    info.linkname = value
                tar.addfile(info)
    return body.getvalue()


def through_archives(host):
    F, L, S, D = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
    target = str(host.root)
    evil = [
        [("../escaped", F, b"x")], [("../../../../../../../tmp/escaped", F, b"x")], [("/tmp/escaped", F, b"x")], [("//tmp/escaped", F, b"x")], [("./a/../../tmp/escaped", F, b"x")],
        [("l", S, "/tmp"), ("l/escaped", F, b"x")], [("l", S, ".."), ("l/tmp/escaped", F, b"x")], [("l", S, "../tmp"), ("l/escaped", F, b"x")],
        [("d", D, ""), ("d/l", S, "../.."), ("d/l/tmp/escaped", F, b"x")], [("a", S, "b"), ("b", S, "/tmp"), ("a/escaped", F, b"x")],
        [("l", S, "/tmp/escaped"), ("l", F, b"x")], [("h", L, "/etc/passwd"), ("h", F, b"x")], [("h", L, "../etc/passwd"), ("h", F, b"overwritten")], [("h", L, "../../etc/passwd")],
        [("l", S, "/etc"), ("h", L, "l/passwd")], [("l", S, target), ("l/escaped", F, b"x")], [("l", S, "/proc/self/root" + target), ("l/escaped", F, b"x")], [("l", S, "/proc/1/root"), ("l/tmp/escaped", F, b"x")],
        [("l", S, "/proc/self/cwd"), ("l/escaped", F, b"x")], [("..", D, "")], [("../..", D, "")], [(".", S, "/tmp")], [("", F, b"x")], [("../workspacex/escaped", F, b"x")],
        [("dev", tarfile.CHRTYPE, (1, 1))], [("dev", tarfile.BLKTYPE, (8, 0))], [("fuse", tarfile.CHRTYPE, (10, 229))], [("l", S, "/tmp"), ("l", D, ""), ("l/escaped", F, b"x")],
        [("x" * 300 + "/../../tmp/escaped", F, b"x")], [("a/" * 2000 + "deep", F, b"x")],
    ]
    box = api.create()
    before = api.sh(box, "sha256sum /etc/passwd /etc/hostname; ls -lAd /tmp /workspace; ls -A / /tmp /etc")
    for members in evil:
        body = archive(*members)
        reply = api.call("POST", f"/v1/sandbox/{box}/hydrate", body)
        true(f"hydrate {str(members)[:100]}", reply.status in (200, 400, 502), (reply.status, reply.body[:300]))
        told = api.sh(box, "sha256sum /etc/passwd /etc/hostname; ls -lAd /tmp /workspace; ls -A / /tmp /etc")
        true(f"outside /workspace after {str(members)[:100]}", [line for line in told.splitlines() if not line.startswith("d")] == [line for line in before.splitlines() if not line.startswith("d")], told)
        equal(f"devices, setuid after {str(members)[:80]}", api.sh(box, "find /workspace -type c -o -type b; test ! -e /workspace/h || test ! /workspace/h -ef /etc/passwd || echo linked"), "")
        api.sh(box, "find /workspace -mindepth 1 -maxdepth 1 -exec rm -rf {} +")
    equal("the host's directory", sorted(os.listdir(host.root)), ["host-canary", "s"])
    equal("nothing on the host changed", host.hashes(), host.before)
    # The archives would escape if they were unpacked carelessly.
    with tempfile.TemporaryDirectory() as place:
        os.mkdir(f"{place}/in")
        careless = dict(filter="fully_trusted") if hasattr(tarfile, "fully_trusted_filter") else {}
        tarfile.open(fileobj=io.BytesIO(archive(("../escaped", F, b"x"), ("l", S, ".."), ("l/through", F, b"x")))).extractall(f"{place}/in", **careless)
        equal("the archives can escape", sorted(os.listdir(place)), ["escaped", "in", "through"])
    # Archives that lie, and a bomb: more than is there, and a file of many terabytes.
    for body in [b"\0" * 1024, b"\xff" * 1024, archive(("f", F, b"x" * 5000))[:1500], bytes(512) + archive(("f", F, b"x"))]:
        reply = api.call("POST", f"/v1/sandbox/{box}/hydrate", body)
        true("hydrate of rubbish", reply.status in (200, 502), (reply.status, reply.body[:200]))
    sparse = tarfile.TarInfo("huge")
    sparse.size = 1 << 43
    reply = api.call("POST", f"/v1/sandbox/{box}/hydrate", sparse.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    true("an archive that ends early", reply.status in (400, 502), reply.body)
    # What a guest puts there does not break persist, and persist does not leave the workspace.
    api.sh(box, f"cd /workspace; ln -s / root; ln -s {target} host; ln -s /proc/self/root{target} p; mkfifo pipe; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"; truncate -s 1T sparse || truncate -s 1G sparse; truncate -s 3M sparse; echo -n >$'\\xff\\xfe'")
    reply = api.call("POST", f"/v1/sandbox/{box}/persist")
    true("persist stays inside", reply.status == 200 and CANARY.encode() not in reply.body and b"passwd" not in reply.body, reply.status)
    api.sh(box, "rm -rf /workspace/* && rmdir /workspace 2>/dev/null; ln -sfn / /workspace 2>/dev/null || true")
    reply = api.call("POST", f"/v1/sandbox/{box}/persist")
    true("a workspace that is a link", b"host-canary" not in reply.body, reply.status)
    api.destroy(box)


def through_http(sandbox):
    host, port = api.host.split(":")
    base = f"/v1/sandbox/{sandbox}"
    auth = f"Authorization: Bearer {api.key}\r\n"

    def raw(data, seconds=5, whole=True):
        with socket.create_connection((host, int(port)), timeout=seconds) as s:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                s.sendall(data)
            answer = b""
            with contextlib.suppress(OSError):
                while chunk := s.recv(65536):
                    answer += chunk
                    if not whole:
                        break
            return answer

    for name, data in {
        "a long header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1000000 + b"\r\n\r\n", "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50000 + b"\r\n",
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00" + bytes(512), "two lengths": f"POST {base}/exec HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 2\r\nContent-Length: 50\r\n\r\n{{}}".encode(),
        "length and chunks": f"POST {base}/exec HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/sandbox HTTP/1.1\r\n\r\n".encode(),
        "a bad chunk": f"PUT {base}/file/workspace/chunk HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx".encode(),
        "a path with a line": f"GET /v1/sandbox/a\r\nX: y/running HTTP/1.1\r\nHost: x\r\n{auth}\r\n".encode(), "an absolute target": f"GET http://169.254.169.254/v1/sandbox HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n", "two keys": f"GET /v1/sandbox HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n{auth}Connection: close\r\n\r\n".encode(),
    }.items():
        answer = raw(data, 3)
        status = answer.split(b" ")[1:2]
        true(name, not status or status[0][:1] in b"4" or (name == "a bad chunk" and status == [b"502"]) or (name == "many headers" and status == [b"431"]), answer[:200])
        equal(f"alive after {name}", api.call("GET", "/health").status, 200)
    # Stacks, numbers, letters.
    for body in [b'{"argv":' + b"[" * 200000, b'{"argv":' + b"[" * 100000 + b"]" * 100000 + b"}", b'{"a":' * 100000, b'{"argv":["x"],"timeout_ms":1e400}', b'{"argv":["x"],"timeout_ms":99999999999999999999999}', b'{"argv":["\\ud800"]}',
                 b'{"argv":["a\\u0000b"]}', b'{"argv":["true"],"env":{"A=B":"c"}}', b'{"argv":["true"],"env":{"":"c"}}', b'{"argv":["true"],"env":{"A":"b\\u0000"}}', b'{"argv":["true"],"cwd":"/workspace/\\u0000"}', b'{"argv":["true"],"argv":["false"]}']:
        for path in ["/exec", "/mount", "/session", "/processes"]:
            reply = api.call("POST", base + path, body)
            true(f"{path} {body[:40]!r}", reply.status in (200, 400, 403, 502), (reply.status, reply.body[:200]))
    reply = api.call("POST", f"{base}/exec", b'{"argv":["echo","' + b"x" * (64 << 20) + b'"]}')
    true("a body of 64 MiB as JSON", reply.status in (400, 413), (reply.status, reply.body[:200]))
    api.local.connection.close()
    for value in ["é", "a\tb", "x" * 5000]:
        reply = api.call("POST", f"{base}/exec", {"argv": ["true"]}, {"Session-Id": value.encode()})
        equal(f"session {value[:5]!r}", reply.status, 400)
    # Whoever is slow holds up nobody, and leaves nothing.
    slow = [socket.create_connection((host, int(port))) for _ in range(200)]
    for n, one in enumerate(slow):
        one.sendall(f"PUT {base}/file/workspace/slow-{n} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 1000\r\n\r\nbegun".encode() if n % 2 else b"GET /health HTT")
    begun = time.monotonic()
    equal("others are served", api.exec(sandbox, "echo", "quick").out, b"quick\n")
    true("at once", time.monotonic() - begun < 5, time.monotonic() - begun)
    for one in slow:
        one.close()
    until("half an upload leaves nothing", lambda: api.sh(sandbox, "ls -A /workspace | grep -c slow || true").strip() == "0")
    # Much output that nobody reads is not kept in memory.
    daemon = next(pid for pid in family() if b"serve" in arguments_of(pid))
    memory = lambda: int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{daemon}/status").read_text()).group(1)) >> 10
    before = memory()
    streams = []
    for _ in range(4):
        own = Api()
        answer = own.request("POST", f"{base}/exec", {"argv": ["sh", "-c", "yes | head -c 300000000"], "timeout_ms": 60000})
        answer.readline()
        streams.append((own, answer))
    time.sleep(1.5)
    true("output that nobody reads", memory() - before < 100, f"{memory() - before} MiB more")
    for own, _ in streams:
        own.local.connection.close()
    true("output of background processes is bounded", api.must("POST", f"{base}/processes", {"argv": ["sh", "-c", "yes | head -c 200000000"], "processId": "loud"}))
    until("it ends", lambda: api.must("GET", f"{base}/processes/loud").json()["status"] != "running", 60)
    true("its logs are bounded", len(api.must("GET", f"{base}/processes/loud/logs").body) < 32 << 20 and memory() - before < 200, f"{memory() - before} MiB more")


def between(host, sandbox, other):
    """Two sandboxes do not see each other."""
    api.must("POST", f"/v1/sandbox/{other}/processes", {"argv": ["python3", "-c", "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',47011)); s.listen(); u=socket.socket(socket.AF_UNIX); u.bind('\\0other'); u.listen(); time.sleep(600)"], "processId": "server"})
    until("the other listens", lambda: api.exec(other, "python3", "-c", "import socket; socket.create_connection(('127.0.0.1',47011),1); s=socket.socket(socket.AF_UNIX); s.connect('\\0other')").code == 0)
    told = api.exec(sandbox, "python3", "-c", "import socket; socket.create_connection(('127.0.0.1',47011),1)")
    true("its loopback", told.code != 0, told)
    told = api.exec(sandbox, "python3", "-c", "import socket; s=socket.socket(socket.AF_UNIX); s.connect('\\0other')")
    true("its abstract sockets", told.code != 0, told)
    true("its processes", b"47011" not in api.exec(sandbox, "sh", "-c", "cat /proc/*/cmdline").out)
    told = api.exec(sandbox, "sh", "-c", f"grep -rs {CANARY} /workspace /tmp /run /var /mnt /home /root /etc /dev/shm --exclude=attack.json")
    equal("its files", told.out, b"")
    ids = {api.sh(one, "cat /proc/self/uid_map") for one in (sandbox, other)}
    true("their ids are not the host's root's", all(line.split()[1] != "0" for text in ids for line in text.splitlines()), ids)


def main():
    host = Host()
    try:
        checks.section(control, host)
        sandbox = other = None
        def first():
            nonlocal sandbox, other
            sandbox, other, _ = inside(host)
        checks.section(first)
        if sandbox:
            checks.section(on_host, sandbox)
            checks.section(between, host, sandbox, other)
            checks.section(through_files, host, sandbox)
            checks.section(through_mounts, host, sandbox)
            checks.section(through_http, sandbox)
        checks.section(through_archives, host)
        if sandbox:
            api.destroy(sandbox)
            api.destroy(other)
        found, _ = host_scan()
        equal("no key on the host afterwards", found, [])
        equal("nothing on the host changed", host.hashes(), host.before)
    finally:
        host.end()
    checks.end()


main()
