"""Attacks on the credential proxy, end to end: what a guest sends to get at other objects, other sandboxes, the host or the keys.

    proxy_attack.py STORE LENGTH

STORE is a name by which the daemon's host knows the store at ENDPOINT. The attacks themselves are in proxy_attack_inside.py and
proxy_attack_s3.py; here is what is attacked, and what is looked at afterwards: objects, the store's log of requests, the audit log, and all that was seen inside.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import boto3
from botocore.config import Config

from client import Api, Checks, Failed

checks = Checks()
equal, true = checks.equal, checks.true
api = Api()
STORE = sys.argv[1]
HERE = pathlib.Path(__file__).parent
STATE, LOG, ENDPOINT, BUCKET = (os.environ[name] for name in ("STATE", "LOG", "ENDPOINT", "BUCKET"))
KEYS = {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
OUTER = urllib.parse.urlsplit(ENDPOINT)
# What nobody inside may read: in every object that is not of the mounts.
CANARY = "foreign-" + secrets.token_hex(12)
EMBEDDED = "my-r2-bucket"
FOREIGN_BUCKET = "foreign-" + secrets.token_hex(6)
# Not all stores take an object where a directory is.
FOREIGN = ["database/x", "data2/x", "Data/x", "other/x", "data.txt", "dat/x", "datb"]
PARTS = ["paths", "lists", "copies", "deletes", "multipart", "subresources", "signatures", "http", "network", "timing"]
s3 = boto3.client("s3", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=KEYS["accessKeyId"], aws_secret_access_key=KEYS["secretAccessKey"],
                  config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}))


# --- Around -------------------------------------------------------------------------------------------------------------

class Way:
    """Hands connections on to the store, and notes the first lines and copy sources of all requests."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.requests = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection((OUTER.hostname, OUTER.port))
            except OSError:
                client.close()
                continue
            threading.Thread(target=self.carry, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.carry, args=(server, client, False), daemon=True).start()

    def carry(self, source, sink, is_request):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if is_request:
                    self.note(piece)
                sink.sendall(piece)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def note(self, piece):
        for match in re.finditer(rb"(?:^|\r\n\r\n)([A-Z]+) (\S+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)", piece):
            source = re.search(rb"(?im)^x-amz-copy-source: *(\S+)", match[3])
            self.requests.append((time.time(), match[1].decode(), match[2].decode(), source[1].decode() if source else None))


class Host:
    """What the host has that no sandbox may reach: it counts who does."""

    def __init__(self):
        self.name = CANARY + "-socket"
        self.ports, self.seen = [], []
        for family, address in [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0)), (socket.AF_UNIX, "\0" + self.name)]:
            with contextlib.suppress(OSError):
                server = socket.socket(family, socket.SOCK_STREAM)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind(address)
                server.listen(64)
                if family != socket.AF_UNIX:
                    self.ports.append(server.getsockname()[1])
                threading.Thread(target=self.answer, args=(server,), daemon=True).start()

    def answer(self, server):
        while True:
            connection, address = server.accept()
            self.seen.append(str(address))
            with contextlib.suppress(OSError):
                connection.sendall(CANARY.encode())
            connection.close()

    @staticmethod
    def addresses():
        found = set(re.findall(r"inet6? ([0-9a-f.:]+)", subprocess.run(["ip", "addr"], capture_output=True, text=True).stdout))
        found |= set(re.findall(r"via ([0-9a-f.:]+)", subprocess.run(["ip", "route"], capture_output=True, text=True).stdout))
        return sorted(found - {"127.0.0.1", "::1"})


def audit():
    """Audit lines of the log by request id: the rule that refused, if one did."""
    found = {}
    for line in pathlib.Path(LOG).read_text(errors="replace").splitlines():
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if "sandpail::audit" in line and (match := re.search(r'request_id"?[=:]"?([0-9A-F]{16})', line)):
            rule = re.search(r'refused"?[=:]"?(?:Some\(")?([a-z0-9-]+)', line)
            found[match[1]] = (rule[1] if rule else None, line)
    return found


# --- What is attacked -----------------------------------------------------------------------------------------------------

class Stage:
    def __init__(self):
        self.way, self.host = Way(), Host()
        self.planted = {}
        for key in [*FOREIGN, "data/x", "data/sub/y", "data/z", "ro/x"]:
            text = self.text(key).encode()
            with contextlib.suppress(Failed):
                api.put_object("MY_BUCKET", key, text)
                self.planted["MY_BUCKET", key] = text
            s3.put_object(Bucket=BUCKET, Key=key, Body=text)
            self.planted["", key] = text
        for binding in ("SECOND", "THIRD"):
            for key in ("data/x", "data/y", "other/x", "other/y"):
                text = b"mine" if (binding, key) == ("THIRD", "data/x") else f"{CANARY} {binding} {key}".encode()
                api.put_object(binding, key, text)
                self.planted[binding, key] = text
        s3.create_bucket(Bucket=FOREIGN_BUCKET)
        s3.put_object(Bucket=FOREIGN_BUCKET, Key="data/x", Body=self.text("foreign").encode())
        remote = lambda **more: {"bucket": BUCKET, "options": {"endpoint": f"http://{STORE}:{self.way.port}", "credentials": KEYS, "credentialProxy": True, **more}}
        self.box, self.other, self.owner = api.create(), api.create(), api.create()
        self.mounts = {}
        # One that is gone, and whose place is taken by another.
        api.mount(self.box, "/mnt/gone", binding="SECOND")
        self.gone = self.id(self.box, "/mnt/gone")
        api.unmount(self.box, "/mnt/gone")
        for name, path, what in [("ro", "/mnt/gone", {"binding": "MY_BUCKET", "options": {"prefix": "/ro/", "readOnly": True}}), ("data", "/mnt/data", {"binding": "MY_BUCKET", "options": {"prefix": "/data/"}}),
                                 ("remote ro", "/mnt/remote-ro", remote(prefix="/ro/", readOnly=True)), ("remote", "/mnt/remote", remote(prefix="/data/"))]:
            api.mount(self.box, path, **what)
            self.mounts[name] = self.id(self.box, path)
        true("a mount's id is not used again", self.gone not in self.mounts.values(), self.mounts)
        api.mount(self.other, "/mnt/third", binding="THIRD")
        api.mount(self.other, "/mnt/remote", **remote(prefix="/other/"))
        api.mount(self.owner, "/mnt/all", binding="MY_BUCKET")
        self.uploads = {"embedded": self.upload(self.owner, f"/{EMBEDDED}/database/up"), "other": self.upload(self.other, "/third/other/up")}
        self.uploads["remote"] = s3.create_multipart_upload(Bucket=BUCKET, Key="database/up")["UploadId"]
        s3.upload_part(Bucket=BUCKET, Key="database/up", UploadId=self.uploads["remote"], PartNumber=1, Body=b"a part")
        listed = self.probe(self.other, path="/third", query="list-type=2&prefix=other%2F&max-keys=1")["body"]
        token = re.search("<NextContinuationToken>([^<]+)<", listed)
        true("another sandbox's list goes on", token, listed)
        named = self.environment(self.other)
        self.parameters = {
            "targets": self.targets(), "path_targets": ["embedded", "virtual", "by id", "remote", "remote by host"], "gone": self.gone, "uploads": self.uploads, "remote_bucket": BUCKET, "foreign_bucket": FOREIGN_BUCKET,
            "buckets": [EMBEDDED, "MY_BUCKET", BUCKET], "relative_keys": ["x", "sub/y", "z", "sub/"], "host_name": socket.gethostname(), "host_addresses": Host.addresses(), "host_sockets": [self.host.name],
            "host_ports": [int(api.host.rpartition(":")[2]), OUTER.port, self.way.port, *self.host.ports], "patience": 75, "crowd": 10_000, "hold": 8,
            "other": {"id": self.id(self.other, "/mnt/third"), "bucket": "third", "key": named["AWS_ACCESS_KEY_ID"], "secret": named["AWS_SECRET_ACCESS_KEY"], "token": token[1] if token else "x"},
        }
        self.mine = self.environment(self.box)
        true("keys are of one sandbox only", self.mine["AWS_ACCESS_KEY_ID"] != named["AWS_ACCESS_KEY_ID"])
        for box in (self.box, self.other):
            self.send_in(box, self.parameters)

    @staticmethod
    def text(key):
        return "mine" if key == "data/x" else f"mine too: {key}" if key.startswith(("data/", "ro/")) else f"{CANARY} {key}"

    def id(self, box, path):
        return next(one["mountId"] for one in api.mounts(box) if one["mountPath"] == path)

    def targets(self):
        internal = {"host": "s3.internal", "port": 80, "base": f"/{EMBEDDED}", "bucket": EMBEDDED, "prefixes": ["data/", "ro/"]}
        remote = {"host": STORE, "port": self.way.port, "base": f"/{BUCKET}", "bucket": BUCKET, "prefixes": ["data/", "ro/"]}
        by_id = {**internal, "host": "s3-credential-proxy.internal"}
        return [{"name": "embedded", **internal}, {"name": "virtual", **internal, "host": f"{EMBEDDED}.s3.internal", "base": ""}, {"name": "by id", **by_id, "base": f"/{self.mounts['data']}/{EMBEDDED}", "prefixes": ["data/"]},
                {"name": "read-only", **internal}, {"name": "read-only by id", **by_id, "base": f"/{self.mounts['ro']}/{EMBEDDED}"}, {"name": "relative", **internal, "host": "r2.internal", "base": "/MY_BUCKET"},
                {"name": "remote", **remote}, {"name": "remote by host", **remote, "host": f"{BUCKET}.{STORE}", "base": ""}, {"name": "tls", **remote, "port": 443, "tls": True}]

    @staticmethod
    def environment(box):
        return dict(line.split("=", 1) for line in api.sh(box, "env").splitlines() if line.startswith("AWS_"))

    @staticmethod
    def send_in(box, parameters):
        for name in ("inside", "s3", "tools"):
            api.put(box, f"/tmp/proxy_attack_{name}.py", (HERE / f"proxy_attack_{name}.py").read_bytes())
        api.put(box, "/tmp/attack.json", json.dumps(parameters).encode())

    def probe(self, box, method="GET", host="s3.internal", **more):
        """One request by another sandbox."""
        self.send_in(box, {"targets": [], "other": {"key": "x", "secret": "x"}, "method": method, "probe": {"host": host, "port": 80, **more}})
        reply = self.run(box, "probe")
        return reply[-1] if reply else {"body": "", "status": None}

    def upload(self, box, path):
        told = self.probe(box, "POST", path=path, query="uploads")
        found = re.search("<UploadId>([^<]+)<", told["body"])
        true(f"an upload of {path}", found, told)
        return found[1] if found else None

    @staticmethod
    def run(box, part, parameters="/tmp/attack.json"):
        """Runs a part inside; what each line of it says."""
        result = api.exec(box, "python3", "/tmp/proxy_attack_inside.py", part, parameters, "/tmp/seen", timeout_ms=150_000)
        rows = [json.loads(line) for line in result.out.decode(errors="replace").splitlines()]
        if result.code:
            checks.failed.append(f"{part} ended with {result.code} after {rows[-1:]}\n{result.err.decode(errors='replace')[-2500:]}")
        return rows


# --- What is looked at ----------------------------------------------------------------------------------------------------

ROWS = []


def part(stage, name):
    before = len(stage.way.requests)
    rows = stage.run(stage.box, name)
    true(f"{name}: there are attacks", len(rows) > 5 or name == "timing", rows)
    for row in rows:
        true(f"{name}: {row['name']}", row["ok"], row["why"])
    ROWS.extend(rows)
    # A refused request reaches no store. Mounts ask theirs by themselves, but never for what is outside.
    sent = stage.way.requests[before:]
    for row in rows:
        if row.get("upstream") is False and "at" in row:
            within = [one[1:] for one in sent if row["at"][0] <= one[0] <= row["at"][1]]
            true(f"{name}: {row['name']}: nothing is sent", not within, within)


def upstream(stage):
    """All that the store was ever asked for by the daemon is inside the mounts."""
    true("the store was asked", len(stage.way.requests) > 20, stage.way.requests)
    for _, method, url, source in stage.way.requests:
        split = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        path = urllib.parse.unquote(split.path)
        bucket, _, key = path.lstrip("/").partition("/")
        inside = lambda key: key.startswith(("data/", "ro/", "other/"))
        # The probe of a mount asks for the bucket, or for its prefix.
        ok = bucket == BUCKET and ".." not in path.split("/") and (inside(key) or (not key and inside(query.get("prefix", "data/"))))
        true(f"asked of the store: {method} {url}", ok and not (method not in ("GET", "HEAD") and key.startswith("ro/")))
        # Stores that keep uploads in directories would look elsewhere.
        true(f"asked of the store: {url}", not re.search(r"(^|[/\\])\.\.?([/\\]|$)", query.get("uploadId", "")))
        true(f"asked of the store: a copy of {source}", source is None or source.lstrip("/").startswith(f"{BUCKET}/data/"))
        true(f"asked of the store: {method} {url}", not {"acl", "policy", "versionId", "tagging", "lifecycle"} & set(query))


def untouched(stage):
    for (binding, key), text in stage.planted.items():
        found = api.object(binding, key) if binding else s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        equal(f"{binding or 'the store'}: {key} is as it was", found, text)
    mine = {key for _, key in stage.planted}
    for name, keys in {"embedded": set(api.keys("MY_BUCKET")), "store": {one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET) for one in page.get("Contents", [])}}.items():
        equal(f"nothing new in the {name}", {key for key in keys - mine if not key.endswith("/")}, set())
    equal("nothing new in the foreign bucket", [one["Key"] for one in s3.list_objects_v2(Bucket=FOREIGN_BUCKET)["Contents"]], ["data/x"])
    parts = s3.list_parts(Bucket=BUCKET, Key="database/up", UploadId=stage.uploads["remote"])["Parts"]
    equal("the foreign upload is as it was", [(one["PartNumber"], one["Size"]) for one in parts], [(1, 6)])
    told = stage.probe(stage.owner, path=f"/{EMBEDDED}/database/up", query=f"uploadId={stage.uploads['embedded']}")
    true("the foreign embedded upload is as it was", told["status"] == 200 and "<Part>" not in told["body"], told)
    told = stage.probe(stage.other, path="/third/other/up", query=f"uploadId={stage.uploads['other']}")
    true("another sandbox's upload is as it was", told["status"] == 200 and "<Part>" not in told["body"], told)
    equal("nobody reached the host", stage.host.seen, [])


def secrecy(stage):
    needles = {"the store's key": KEYS["accessKeyId"], "the store's secret": KEYS["secretAccessKey"], "the API's key": api.key, "the state's path": STATE, "a foreign object": CANARY, "the store's address": f"{OUTER.hostname}:{OUTER.port}"}
    for box in (stage.box, stage.other):
        seen = api.get(box, "/tmp/seen")
        if box == stage.box:
            true("much was seen inside", len(seen) > 100_000, len(seen))
        for name, needle in needles.items():
            if box == stage.box or needle != CANARY:
                place = seen.find(needle.encode())
                true(f"nobody inside saw {name}", place < 0, seen[max(0, place - 300):place + 100])
    log = pathlib.Path(LOG).read_bytes()
    dummies = {"a dummy secret": stage.mine["AWS_SECRET_ACCESS_KEY"], "another dummy secret": stage.parameters["other"]["secret"]}
    for name, needle in {"the store's secret": KEYS["secretAccessKey"], "the API's key": api.key, "an object's bytes": CANARY + " ", **dummies}.items():
        place = log.find(needle.encode())
        true(f"the log does not hold {name}", place < 0, log[max(0, place - 300):place + 100])
    place = log.find(f'"{KEYS["accessKeyId"]}"'.encode())
    true("the log does not hold the store's key", KEYS["accessKeyId"].encode() not in log, log[max(0, place - 300):place + 100])
    true("the log holds no signature", not re.search(rb"Signature=[0-9a-f]{64}", log))


def audited(stage):
    """Each refusal that was answered is told, with its rule."""
    time.sleep(0.2)
    found = audit()
    wanted = [row for row in ROWS if row.get("audited")]
    true("there are refusals", len(wanted) > 500, len(wanted))
    for row in wanted:
        rule, line = found.get(row["id"], (None, "no line"))
        true(f"audited: {row['name']}", row["id"] in found and (rule or row.get("upstream")), f"{row.get('rule')}; {line}")
    log = pathlib.Path(LOG).read_text(errors="replace")
    true("a direct connection to the listener is told", 'refused="loopback"' in log)
    # A refusal is told with all that is known of it.
    lines = {row["name"]: found.get(row["id"], (None, ""))[1] for row in wanted}
    for name, words in {"by id: GET a key outside": ["operation=\"GetObject\"", 'key="database/x"', f'mount="{stage.mounts["data"]}"', 'refused="outside-prefix"'], "read-only by id: PUT ?": ['operation="PutObject"', 'key="ro/x"', f'mount="{stage.mounts["ro"]}"', 'refused="read-only"'],
                        "embedded: GET ..": ['key="/my-r2-bucket/data/../database/x"', 'refused="invalid"'], "by id: signature, none": ['operation="GetObject"', 'key="data/x"', 'refused="signature"']}.items():
        true(f"told of {name}", all(word in lines.get(name, "") for word in words), lines.get(name))
    equal("no line is forged", [line for line in log.splitlines() if line.startswith("2001-") or "\x1b[31m" in line], [])
    counted = next(one for one in api.mounts(stage.box) if one["mountPath"] == "/mnt/data")
    true("refusals are counted for their mount", counted.get("proxy", {}).get("refused", 0) > 100, counted)
    no_panic = [line for line in log.splitlines() if "panicked" in line]
    equal("nothing panicked", no_panic, [])


def slow(stage):
    """In another sandbox, at the same time as all else."""
    remote = {"name": "embedded", "host": "s3.internal", "port": 80, "base": "/third", "bucket": "third", "prefixes": [""]}
    api.put(stage.other, "/tmp/slow.json", json.dumps({**stage.parameters, "targets": [remote]}).encode())
    return stage.run(stage.other, "slow", "/tmp/slow.json")


def crowd(stage):
    """One sandbox takes all the connections that it gets: the others do not notice."""
    told = []
    thread = threading.Thread(target=lambda: told.extend(stage.run(stage.box, "crowd")))
    thread.start()
    time.sleep(3)
    for _ in range(5):
        begun = time.monotonic()
        answer = stage.probe(stage.other, path="/third/data/x")
        took = time.monotonic() - begun
        true("another sandbox is served in a crowd", answer["status"] == 200 and took < 5, f"{answer} {took:.1f} s")
    equal("the daemon answers", api.call("GET", "/health", key=False).status, 200)
    thread.join()
    true("the crowd was one", any(row["name"] == "held" for row in told), told)
    for row in told:
        true(f"crowd: {row['name']}", row["ok"], row["why"])
        print("crowd:", row["name"], row["why"])


def memory_mib():
    """Of the daemon, the supervisor's child that serves."""
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"\0serve\0" in (entry / "cmdline").read_bytes() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == int(os.environ["SUPERVISOR"]):
                return int(re.search(r"VmRSS:\s+(\d+)", (entry / "status").read_text())[1]) >> 10
    raise Failed("there is no daemon")


def documents(stage):
    """Documents are in memory whole, so there are not many of one sandbox at once."""
    told, before, most = [], memory_mib(), 0
    thread = threading.Thread(target=lambda: told.extend(stage.run(stage.box, "documents")))
    thread.start()
    while thread.is_alive():
        most = max(most, memory_mib())
        thread.join(0.05)
    for row in told:
        true(f"documents: {row['name']}", row["ok"], row["why"])
    print(f"documents: {before} MiB before, {most} MiB at most")
    true("memory stays bounded", len(told) >= 3 and most < before + 250, (before, most))


def unmounted(stage):
    """Doors close with their mounts, and with the sandbox."""
    target = stage.parameters["targets"][2]
    equal("before", stage.probe(stage.box, host=target["host"], path=f"{target['base']}/data/x")["status"], 200)
    for path in ("/mnt/data", "/mnt/remote"):
        api.unmount(stage.box, path)
    for host, base in [(target["host"], target["base"]), ("s3.internal", f"/{EMBEDDED}"), ("r2.internal", f"/{stage.mounts['data']}")]:
        told = stage.probe(stage.box, host=host, path=f"{base}/data/x")
        true(f"after the unmount, {host}{base}", told["status"] == 403 and told["code"] == "AccessDenied", told)
    told = stage.probe(stage.box, path=f"/{EMBEDDED}/ro/x")
    equal("the other mount is there", told["status"], 200)
    api.mount(stage.box, "/mnt/data", binding="MY_BUCKET", options={"prefix": "/data/"})
    again = stage.id(stage.box, "/mnt/data")
    true("with another id", again != stage.mounts["data"], again)
    told = stage.probe(stage.box, host=target["host"], path=f"{target['base']}/data/x")
    equal("the old one stays away", (told["status"], told["code"]), (403, "AccessDenied"))
    equal("the new one is served", stage.probe(stage.box, host=target["host"], path=f"/{again}/{EMBEDDED}/data/x")["status"], 200)


def main():
    stage = Stage()
    try:
        told = []
        thread = threading.Thread(target=lambda: told.extend(slow(stage)))
        thread.start()
        for name in PARTS:
            checks.section(part, stage, name)
            print(f"  {name}", flush=True)
        thread.join()
        true("slow: there are attacks", len(told) >= 4, told)
        for row in told:
            true(f"slow: {row['name']}", row["ok"], row["why"])
        for section in (crowd, documents, upstream, audited, untouched, secrecy, unmounted):
            checks.section(section, stage)
    finally:
        with contextlib.suppress(Exception):
            for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
                s3.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
            s3.delete_object(Bucket=FOREIGN_BUCKET, Key="data/x")
            s3.delete_bucket(Bucket=FOREIGN_BUCKET)
        for box in (stage.box, stage.other, stage.owner):
            with contextlib.suppress(Failed):
                api.destroy(box)
    checks.end()


main()
