"""What a policy lets a sandbox reach, and what it does not: a daemon and servers in a network of their own.

    unshare --net --mount --propagation private python proxy_egress.py      (SANDPAIL names the program)

Two network namespaces and a cable between them: here the daemon, there the servers. Addresses are public ones, as private ones are
what some of the checks are about; nothing leaves. What runs there, and in the sandbox, is in proxy_egress_there.py.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time

from client import Api, Checks, Failed, until
from proxy_egress_there import API, DOCS, HOSTS, METADATA, OTHER, OWN, PRIVATE, SIX, SIX_OWN

checks = Checks()
equal, true = checks.equal, checks.true
HERE = pathlib.Path(__file__).parent
THERE = HERE / "proxy_egress_there.py"
TOKEN, LITERAL, SECOND = ("egress-" + secrets.token_hex(12) for _ in range(3))


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise Failed(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


class World:
    def __init__(self, directory):
        self.directory, self.reached = directory, []
        self.certificates()
        run("ip", "link", "set", "lo", "up")
        self.servers = subprocess.Popen(["unshare", "--net", sys.executable, str(THERE), "servers", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.expect("here")
        run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there")
        run("ip", "link", "set", "there", "netns", str(self.servers.pid))
        run("ip", "addr", "add", f"{OWN}/24", "dev", "here")
        run("ip", "-6", "addr", "add", f"{SIX_OWN}/64", "dev", "here", "nodad")
        run("ip", "link", "set", "here", "up")
        run("ip", "route", "add", "default", "dev", "here")
        self.servers.stdin.write("\n")
        self.servers.stdin.flush()
        self.expect("ready")
        self.hosts = pathlib.Path(directory, "hosts")
        self.write_hosts(HOSTS)
        # In this mount namespace alone.
        run("mount", "--bind", str(self.hosts), "/etc/hosts")
        # What nobody may reach, at all addresses of this side.
        for port in (80, 443, 7):
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                sock = socket.socket(family)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
                sock.listen(16)
                threading.Thread(target=self.reach, args=(sock,), daemon=True).start()
        until("the servers can be reached", self.is_connected)

    def is_connected(self):
        with contextlib.suppress(OSError):
            for address in (API, METADATA, SIX):
                socket.create_connection((address, 80), 1).close()
            return True

    def reach(self, sock):
        while True:
            connection, _ = sock.accept()
            self.reached.append(f"{connection.getsockname()}")
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nthe daemon")
            connection.close()

    def expect(self, word):
        said = self.servers.stdout.readline().strip()
        if said != word:
            raise Failed(f"the servers say {said!r}")

    def certificates(self):
        at = self.directory
        for name in ("ca", "bad"):
            run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{at}/{name}.key", "-out", f"{at}/{name}.crt",
                *([] if name == "ca" else ["-addext", "subjectAltName=DNS:badcert.example.test"]))
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=server", "-keyout", f"{at}/server.key", "-out", f"{at}/server.csr")
        pathlib.Path(at, "ext").write_text("subjectAltName=" + ",".join(f"DNS:{name}" for _, name in HOSTS if "badcert" not in name) + f",IP:{API}\n")
        run("openssl", "x509", "-req", "-in", f"{at}/server.csr", "-CA", f"{at}/ca.crt", "-CAkey", f"{at}/ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{at}/ext", "-out", f"{at}/server.crt")
        for name in ("server", "bad"):
            pathlib.Path(at, f"{name}.pem").write_text(pathlib.Path(at, f"{name}.crt").read_text() + pathlib.Path(at, f"{name}.key").read_text())

    def write_hosts(self, pairs):
        # In place: the file is mounted.
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in pairs))

    def requests(self, path):
        """What the servers got for this path."""
        lines = pathlib.Path(self.directory, "requests").read_text().splitlines() if os.path.exists(f"{self.directory}/requests") else []
        return [one for one in map(json.loads, lines) if one.get("path") == path]

    def end(self):
        with contextlib.suppress(OSError):
            self.servers.stdin.close()
        self.servers.kill()
        self.servers.wait()


class Daemon:
    def __init__(self, world):
        root = self.root = pathlib.Path(world.directory)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (root / "api-key").write_text("key-" + secrets.token_hex(12))
        (root / ".dev.vars").write_text(f"API_TOKEN={TOKEN}\nSECOND_TOKEN={SECOND}\n")
        self.configure("")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SANDPAIL"))}
        environment |= {"SSL_CERT_FILE": f"{root}/ca.crt", "HOME": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        self.supervisor = subprocess.Popen([sys.executable, str(HERE / "supervisor.py"), str(root / "state"), str(root / "log"), os.environ["SANDPAIL"], "serve", "--config", str(root / "sandpail.toml")],
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
        self.start()
        self.api = Api(f"http://127.0.0.1:{self.port}", (root / "api-key").read_text())

    def configure(self, more):
        (self.root / "sandpail.toml").write_text(f'listen = "127.0.0.1:{self.port}"\nstate_dir = "{self.root}/state"\napi_key = "file:{self.root}/api-key"\n{more}\n')

    def ask(self, command):
        self.supervisor.stdin.write(command + "\n")
        self.supervisor.stdin.flush()
        return self.supervisor.stdout.readline().strip()

    def start(self):
        self.ask("start")
        until("the daemon answers", self.is_healthy, 30)

    def is_healthy(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200

    def log(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", (self.root / "log").read_text(errors="replace"))

    def end(self):
        self.supervisor.stdin.close()
        left = self.supervisor.stdout.read().strip()
        self.supervisor.wait()
        return left


class Box:
    """A sandbox, and what is asked of it."""

    def __init__(self, daemon):
        self.api, self.daemon = daemon.api, daemon
        self.id = self.api.create()
        self.api.put(self.id, "/tmp/guest.py", THERE.read_bytes())
        self.api.put(self.id, "/tmp/ca.pem", (daemon.root / "ca.crt").read_bytes())

    def policy(self, **policy):
        return self.api.must("PUT", f"/v1/sandbox/{self.id}/egress", policy).json()

    def shown(self):
        return self.api.must("GET", f"/v1/sandbox/{self.id}/egress").json()

    def refused(self, policy):
        return self.api.call("PUT", f"/v1/sandbox/{self.id}/egress", policy)

    def ask(self, *what):
        """Does several things inside."""
        result = self.api.exec(self.id, "python3", "/tmp/guest.py", "guest", json.dumps(what), timeout_ms=60_000)
        rows = [json.loads(line) for line in result.out.decode().splitlines()]
        if result.code:
            raise Failed(f"{what}: {result.err.decode()[-2000:]}")
        SEEN.append(result.out + result.err)
        return [row for row in rows if isinstance(row, dict)]


SEEN = []


def get(to, **more):
    return ("fetch", {"to": to, **more})


def reached(name, result, at):
    true(f"{name}: is reached", result.get("status") == 200 and f'"at": "{at}"' in result["text"], result)


def not_reached(name, result, seconds=4):
    """Nobody outside was reached: no connection, or sandpail's own refusal."""
    ours = result.get("status") in (400, 403, 421, 502) and "\r\n\r\nsandpail: " in result.get("text", "")
    ok = "error" in result or (not result.get("text") and not result.get("count")) or ours
    true(f"{name}: is not reached", ok and result["seconds"] < seconds, result)


def table(box, name, good=(), bad=()):
    """Asks for all, of which some are to be reached."""
    results = box.ask(*[what for what, _ in good], *bad)
    for (what, at), result in zip(good, results):
        reached(f"{name}: {what}", result, at)
    for what, result in zip(bad, results[len(good):]):
        not_reached(f"{name}: {what}", result)


NEVER = [get(name) for name in ("metadata.example.test", "rebound.example.test", "own.example.test", "own6.example.test", "loop6.example.test", "mapped.example.test", "zero.example.test", "localhost")] + \
        [get(address) for address in (METADATA, OWN, "198.18.77.77", "224.0.0.1", "255.255.255.255")] + [get(METADATA, port=443, tls=True, verify=False)]
UNCLEAN = [("packet", {"to": address, "port": port}) for address in (API, "198.18.0.2", "198.18.1.0", METADATA) for port in (7, 443)] + [("packet", {"to": SIX, "port": 443}), get(SIX), get("::ffff:" + API)]


def nothing(box):
    """The default."""
    equal("the default policy", box.shown(), {"enableInternet": False, "allowedHosts": [], "deniedHosts": [], "outboundByHost": {}})
    outward = [get("api.example.test"), get(API), get(API, port=443, tls=True, verify=False), ("echo", {"to": API}), ("echo", {"to": "api.example.test"}), ("names", {"name": "api.example.test"}), get(PRIVATE), get("private.example.test")]
    table(box, "by default", [], outward + NEVER + UNCLEAN)
    # The same once the network is open.
    box.policy(allowedHosts=["nowhere.example.test"])
    table(box, "nowhere", [], outward + NEVER + UNCLEAN)
    box.policy(allowedHosts=[])
    table(box, "nothing again", [], outward + NEVER + UNCLEAN)
    equal("the policy is shown as it was put", box.policy(enableInternet=True, deniedHosts=["A.Example.TEST.", "10.0.0.0/8"]), {"enableInternet": True, "allowedHosts": [], "deniedHosts": ["a.example.test", "10.0.0.0/8"], "outboundByHost": {}})


def one_host(box):
    box.policy(allowedHosts=["api.example.test"])
    name = "api.example.test"
    table(box, "one host", [(get(name), API), (get("API.example.TEST"), API), (get(name, port=443, tls=True), API), (get(name, port=8080), API), (get(name, port=8443, tls=True), API), (get(name, path="/x", method="PUT", body="data"), API)],
          [get("other.example.test"), get("a.sub.example.test"), get("example.test"), get("xapi.example.test"), get("api.example.test.evil.test"), get(API), get(OTHER), get(API, port=443, tls=True, verify=False), ("echo", {"to": API}), get(PRIVATE), *NEVER, *UNCLEAN])
    talk = box.ask(("echo", {"to": name}), ("greeted", {"to": name}), ("names", {"name": name}), ("names", {"name": name, "kind": 28}), ("names", {"name": name, "kind": 16}), ("names", {"name": "other.example.test"}), ("names", {"name": "other.example.test", "kind": 28}), ("names", {"name": name, "server": "8.8.8.8"}),
                   ("names", {"name": "own.example.test"}), ("names", {"name": "rebound.example.test"}))
    equal("an echo", talk[0].get("text"), "hello")
    equal("a server that begins", talk[1].get("text"), "220 hello\r\nEHLO x\r\n")
    true("its address is one of ours", talk[2].get("address", "").startswith(("198.18.", "198.19.")), talk[2])
    equal("no other records", [(one.get("code"), one.get("count")) for one in talk[3:5]], [(0, 0), (0, 0)])
    equal("no other names", [(one.get("code"), one.get("count")) for one in talk[5:7]], [(3, 0), (3, 0)])
    true("the same answer from any server", talk[7].get("address") == talk[2].get("address"), talk[7])
    equal("no names of this side", [one.get("code") for one in talk[8:]], [3, 3])


def fronting(box, world):
    """A connection is for the host that it was made to, whatever it says."""
    box.policy(allowedHosts=["api.example.test", "other.example.test"])
    name = "api.example.test"
    before = len(box.daemon.log())
    raw = lambda *lines: get(name, raw="\r\n".join(lines))
    attempts = {
        "another host's name in TLS": get(name, port=443, tls=True, sni="other.example.test"), "a denied name in TLS": get(name, port=443, tls=True, sni="private.example.test"), "no name in TLS": get(name, port=443, tls=True, sni=""), "TLS on an odd port": get(name, port=8443, tls=True, sni="other.example.test"), "TLS on the port of another protocol": get(name, port=7, tls=True, sni="other.example.test"),
        "another Host": get(name, headers={"Host": "other.example.test"}), "a denied Host": get(name, headers={"Host": "private.example.test"}), "an address as Host": get(name, headers={"Host": METADATA}), "another port": get(name, headers={"Host": f"{name}:22"}), "a user": get(name, headers={"Host": f"{name}@other.example.test"}), "a Host on an odd port": get(name, port=8080, headers={"Host": "other.example.test"}),
        "two Hosts": raw("GET / HTTP/1.1", f"Host: {name}", "Host: other.example.test", "", ""), "no Host": raw("GET / HTTP/1.1", "Connection: close", "", ""), "an absolute URL": raw("GET http://other.example.test/ HTTP/1.1", f"Host: {name}", "", ""), "an absolute URL and its Host": raw("GET http://other.example.test/ HTTP/1.1", "Host: other.example.test", "", ""), "CONNECT": raw("CONNECT other.example.test:80 HTTP/1.1", "Host: other.example.test:80", "", ""),
        "CONNECT to itself": raw(f"CONNECT {name}:80 HTTP/1.1", f"Host: {name}:80", "", ""), "HTTP/1.0": raw("GET / HTTP/1.0", "Host: other.example.test", "", ""), "a folded Host": raw("GET / HTTP/1.1", f"Host: {name}", " .other.example.test", "", ""), "an empty line before": raw("", "GET / HTTP/1.1", "Host: other.example.test", "", ""), "HTTP/2": raw("PRI * HTTP/2.0", "", "SM", "", ""), "bare LF": get(name, raw="GET / HTTP/1.1\nHost: other.example.test\n\n"),
        "a tab": raw("GET\t/\tHTTP/1.1", "Host: other.example.test", "", ""), "lower case": raw("get / http/1.1", "host: other.example.test", "", ""), "HTTP where a server would begin": get(name, port=25, headers={"Host": "other.example.test"}), "TRACE": get(name, method="TRACE"),
        "a space before": raw(" GET / HTTP/1.1", "Host: other.example.test", "", ""), "a vertical tab before": raw("\x0bGET / HTTP/1.1", "Host: other.example.test", "", ""), "form feeds": raw("GET\x0c/\x0cHTTP/1.1", "Host: other.example.test", "", ""), "vertical tabs": raw("GET\x0b/\x0bHTTP/1.1", "Host: other.example.test", "", ""), "a long URL": raw(f"GET /{'a' * 40_000} HTTP/1.1", "Host: other.example.test", "", ""),
        "a long URL on an odd port": get(name, port=8080, raw=f"GET /{'a' * 40_000} HTTP/1.1\r\nHost: other.example.test\r\n\r\n"), "a large hello": ("large_hello", {"to": name, "sni": "other.example.test"}), "a large hello on an odd port": ("large_hello", {"to": name, "sni": "private.example.test", "port": 8443}),
        "an empty record before the hello": ("large_hello", {"to": name, "sni": "other.example.test", "padding": 0, "before": "1603010000"}), "an alert before the hello": ("large_hello", {"to": name, "sni": "other.example.test", "padding": 0, "before": "1503010002015a"}),
        "a slow request": ("in_pieces", {"to": name, "port": 8080, "pieces": ["G", "ET / HTTP/1.1\r\n", "Host: other.example.test\r\n\r\n"]}), "slow letters": ("in_pieces", {"to": name, "port": 8080, "pieces": ["lower", "case / HTTP/1.1\r\nHost: other.example.test\r\n\r\n"]}), "a slow space": ("in_pieces", {"to": name, "port": 8080, "pieces": ["\x0b", "GET / HTTP/1.1\r\nHost: other.example.test\r\n\r\n"]}),
        "a request behind silence": ("in_pieces", {"to": name, "port": 8080, "pieces": ["", "lower", "case / HTTP/1.1\r\nHost: other.example.test\r\n\r\n"]}),
    }
    for what, result in zip(attempts, box.ask(*attempts.values())):
        # That nobody knows a method is what the host itself says.
        refusal = not result.get("text") or 400 <= (result.get("status") or 0) < 500
        true(f"fronting: {what}", refusal and '"at"' not in result.get("text", ""), result)
    two = f"GET /first HTTP/1.1\r\nHost: {name}\r\n\r\nGET /second HTTP/1.1\r\nHost: other.example.test\r\nConnection: close\r\n\r\n"
    smuggle = f"POST /smuggle HTTP/1.1\r\nHost: {name}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.example.test\r\nConnection: close\r\n\r\n"
    results = box.ask(get(name, raw=two), get(name, raw=smuggle), get(name, headers={"Host": name.upper() + ":80"}), get(name, headers={"Host": name + "."}))
    true("the second request of a connection", results[0].get("statuses") == [200, 421], results[0])
    true("a smuggled request is a request like others, or none", results[1].get("statuses") in ([400], [200], [200, 421]) and not world.requests("/smuggled"), results[1])
    for result in results[2:]:
        reached("fronting: its own name, written otherwise", result, API)
    lines = box.daemon.log()[before:]
    true("fronting is told", lines.count('refused="other-host"') > 12, lines[-2000:])


def lists(box):
    """Globs, ranges and what wins."""
    box.policy(allowedHosts=["*.example.test"])
    table(box, "a glob", [(get("api.example.test"), API), (get("a.sub.example.test", port=443, tls=True), OTHER), (get("six.example.test"), SIX), (get("both.example.test"), API), (get("xn--bcher-kva.example.test"), OTHER)], [get("example.test"), get("private.example.test"), get("docs.example.test"), get(API), get(PRIVATE), *NEVER])
    box.policy(allowedHosts=["*.example.test"], deniedHosts=["*.sub.example.test", "api*"])
    table(box, "denied wins", [(get("other.example.test"), OTHER)], [get("api.example.test"), get("a.sub.example.test"), get("both.other.test")])
    box.policy(allowedHosts=["*.example.test"], deniedHosts=[f"{OTHER}/32"])
    table(box, "a denied address", [(get("api.example.test"), API)], [get("other.example.test"), get(OTHER)])
    box.policy(allowedHosts=["*.example.test", "10.9.0.0/16"])
    table(box, "a range", [(get("private.example.test"), PRIVATE), (get(PRIVATE), PRIVATE), (get(PRIVATE, port=8080), PRIVATE)], [get("docs.example.test"), get(API), get("10.10.0.1"), *NEVER])
    box.policy(allowedHosts=[API])
    table(box, "an address", [(get(API), API), (get(API, port=443, tls=True), API)], [get(OTHER), get("other.example.test"), get(PRIVATE)])
    box.policy(allowedHosts=["*", "0.0.0.0/0", "::/0", "127.0.0.0/8", "169.254.0.0/16", OWN, METADATA, "localhost", "metadata.example.test", "rebound.example.test"])
    table(box, "all that can be named", [(get("api.example.test"), API), (get(OTHER), OTHER), (get("private.example.test"), PRIVATE), (get("docs.example.test"), DOCS)], NEVER + UNCLEAN)
    box.policy(allowedHosts=["*"], deniedHosts=["198.51.101.0/24"])
    table(box, "a denied range", [(get("six.example.test"), SIX)], [get("api.example.test"), get(API), get("both.example.test")])
    for policy in ({"allowedHosts": ["http://a"]}, {"allowedHosts": ["a:80"]}, {"allowedHosts": ["10.0.0.0/33"]}, {"allowedHosts": [""]}, {"allowedHosts": "a"}, {"allowed_hosts": []}, {"enableInternet": "yes"}, {"deniedHosts": ["a/b"]}, {"more": 1}, []):
        reply = box.refused(policy)
        true(f"{policy} is refused", reply.status == 400 and reply.json().get("error"), reply)
    equal("the old policy stays", box.shown()["deniedHosts"], ["198.51.101.0/24"])


def internet(box):
    box.policy(enableInternet=True)
    table(box, "internet", [(get("api.example.test"), API), (get("other.example.test", port=443, tls=True), OTHER), (get(API), API), (get("six.example.test"), SIX), (get("both.example.test"), API)], [get("private.example.test"), get(PRIVATE), get("docs.example.test"), get(DOCS), get("10.0.0.1"), get("192.168.1.1"), get("100.64.0.1"), *NEVER, *UNCLEAN])
    box.policy(enableInternet=True, deniedHosts=["other.example.test"])
    table(box, "internet without a name", [(get("api.example.test"), API)], [get("other.example.test"), get(OTHER), get(API)])
    box.policy(enableInternet=True, deniedHosts=[f"{OTHER}/32"])
    table(box, "internet without an address", [(get("api.example.test"), API), (get(API), API)], [get("other.example.test"), get(OTHER), get("a.sub.example.test")])
    box.policy(enableInternet=True, allowedHosts=["other.example.test"])
    table(box, "a list closes the internet", [(get("other.example.test"), OTHER)], [get("api.example.test"), get(API)])


def rebinding(box, world):
    """A name that turns to another address after it was looked up."""
    box.policy(allowedHosts=["*.example.test"])
    before = box.ask(("names", {"name": "api.example.test"}))[0]["address"]
    for turned in ("127.0.0.1", METADATA, PRIVATE, OWN, "::1", "::ffff:169.254.169.254", "0.0.0.0"):
        world.write_hosts([(turned, "api.example.test"), *HOSTS[1:]])
        results = box.ask(get(before, headers={"Host": "api.example.test"}), ("echo", {"to": before}), get("api.example.test"), ("names", {"name": "api.example.test"}))
        for result in results[:3]:
            not_reached(f"rebound to {turned}", result)
        equal(f"rebound to {turned}: no such name", results[3].get("code"), 3)
    world.write_hosts(HOSTS)
    reached("turned back", box.ask(get(before, headers={"Host": "api.example.test"}))[0], API)


def changes(box):
    """What a changed policy forbids ends, what it allows stays."""
    box.policy(allowedHosts=["api.example.test", "other.example.test"])
    told = {}

    def holding(name):
        told[name] = box.ask(("hold", {"to": name}))[0]
    threads = [threading.Thread(target=holding, args=(name,)) for name in ("api.example.test", "other.example.test")]
    for thread in threads:
        thread.start()
    until("both are connected", lambda: connected(box, 2), 10)
    begun = time.monotonic()
    box.policy(allowedHosts=["api.example.test"])
    threads[1].join(5)
    true("a connection that is forbidden ends", told.get("other.example.test", {}).get("text") == "ended" or "error" in told.get("other.example.test", {}), told)
    true("and soon", time.monotonic() - begun < 3, time.monotonic() - begun)
    time.sleep(0.5)
    true("the other stays", threads[0].is_alive(), told)
    box.policy()
    threads[0].join(5)
    true("nothing stays when nothing is allowed", not threads[0].is_alive() and told["api.example.test"].get("text") != "open", told)


def connected(box, count):
    """Whether so many connections to the echo are held inside."""
    lines = box.api.sh(box.id, "cat /proc/net/tcp").splitlines()[1:]
    # 198.18.0.1 is where they come from.
    return sum(line.split()[3] == "01" and line.split()[2].endswith(":0007") and line.split()[1].startswith("010012C6") for line in lines) >= count


def headers(box, world):
    """Headers that the sandbox never sees."""
    outbound = {"api.example.test": {"headers": {"Authorization": "Bearer ${API_TOKEN}", "X-Api-Key": LITERAL}}, "*.sub.example.test": {"headers": {"X-Sub": "${SECOND_TOKEN}"}, "allowHttp": True}, "badcert.example.test": {"headers": {"X-Api-Key": LITERAL}}}
    shown = box.policy(outboundByHost=outbound)
    hidden = {"api.example.test": {"headers": {"Authorization": "***", "X-Api-Key": "***"}, "allowHttp": False}, "*.sub.example.test": {"headers": {"X-Sub": "***"}, "allowHttp": True}, "badcert.example.test": {"headers": {"X-Api-Key": "***"}, "allowHttp": False}}
    equal("values are not shown when they are put", shown["outboundByHost"], hidden)
    equal("values are not shown", box.shown()["outboundByHost"], hidden)
    name, tls = "api.example.test", {"port": 443, "tls": True}
    table(box, "added headers", [(get(name, path="/plain", **tls), API), (get(name, path="/own", headers={"authorization": "mine", "AUTHORIZATION": "mine too", "x_api_key": "mine", "X-Api-Key": "mine", "x-other": "kept", "connection": "close, authorization, x-api-key"}, **tls), API), (get(name, path="/port", port=8443, tls=True, headers={"Host": f"{name}:8443"}), API), (get(name, path="/h2", alpn=["h2", "http/1.1"], **tls), API),
                                 (get(name, path="/body", method="POST", body="a body", **tls), API), (get("a.sub.example.test", path="/sub"), OTHER), (get("a.sub.example.test", path="/subtls", **tls), OTHER)],
          [get(name, path="/http"), get(name, path="/http8080", port=8080), get("other.example.test", path="/other"), get(API, path="/raw"), get(API, path="/raw", **tls, verify=False), get("badcert.example.test", path="/bad", **tls, verify=False)])
    for result in box.ask(("echo", {"to": name}), ("greeted", {"to": name})):
        not_reached("added headers: another protocol", result, 6)
    got = lambda path: [{(key.lower(), value) for key, value in one["headers"]} for one in world.requests(path)]
    for path in ("/plain", "/own", "/port", "/h2", "/body"):
        found = got(path)
        true(f"{path}: added once, in place of the sandbox's", len(found) == 1 and {("authorization", f"Bearer {TOKEN}"), ("x-api-key", LITERAL)} <= found[0] and not any("mine" in value for _, value in found[0]) and sum(key.replace("_", "-") in ("authorization", "x-api-key") for key, _ in found[0]) == 2, found)
    true("others are kept", got("/own") and ("x-other", "kept") in got("/own")[0], got("/own"))
    equal("the body comes through", [one["body"] for one in world.requests("/body")], ["a body"])
    for path in ("/sub", "/subtls"):
        found = got(path)
        true(f"{path}: the glob's", len(found) == 1 and ("x-sub", SECOND) in found[0] and not any(TOKEN in value for _, value in found[0]), found)
    equal("nothing went to where it must not", [path for path in ("/http", "/http8080", "/other", "/raw", "/bad") if world.requests(path)], [])
    attempts = {"another Host": get(name, path="/front", headers={"Host": "a.sub.example.test"}, **tls), "another name": get(name, path="/front", sni="a.sub.example.test", **tls), "TRACE": get(name, path="/front", method="TRACE", **tls), "CONNECT": get(name, raw=f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n", **tls), "another protocol": get(name, raw="SSH-2.0-x\r\n\r\n", **tls), "plain bytes": ("echo", {"to": name, "port": 443})}
    for what, result in zip(attempts, box.ask(*attempts.values())):
        true(f"added headers: {what}", result.get("status") in (None, 400, 421) and '"at"' not in result.get("text", ""), result)
    equal("nothing went for another host", world.requests("/front"), [])
    # A later value counts for the next request; an entry that is taken away adds nothing any more.
    box.policy(enableInternet=True, outboundByHost={name: {"headers": {"X-Api-Key": "${SECOND_TOKEN}"}}})
    box.ask(get(name, path="/later", **tls), get("other.example.test", path="/elsewhere"))
    true("a later value counts", len(got("/later")) == 1 and ("x-api-key", SECOND) in got("/later")[0] and not any(key == "authorization" for key, _ in got("/later")[0]), got("/later"))
    true("others get none", len(got("/elsewhere")) == 1 and not any(TOKEN in value or SECOND in value or LITERAL in value for _, value in got("/elsewhere")[0]), got("/elsewhere"))
    box.policy(enableInternet=True)
    box.ask(get(name, path="/away", **tls))
    true("without the entry nothing is added", len(got("/away")) == 1 and not any(key == "x-api-key" for key, _ in got("/away")[0]), got("/away"))
    box.policy(allowedHosts=["other.example.test"], outboundByHost=outbound)
    table(box, "a list counts for these hosts, too", [], [get(name, **tls)])
    box.policy(outboundByHost=outbound, deniedHosts=[name])
    table(box, "a denied host, too", [(get("a.sub.example.test"), OTHER)], [get(name, **tls)])
    for what, wrong in {"a secret that is not there": {name: {"headers": {"A": "${NO_SUCH}"}}}, "all hosts": {"*": {"headers": {"A": LITERAL}}}, "an address": {API: {"headers": {"A": LITERAL}}}, "Host": {name: {"headers": {"Host": LITERAL}}}, "Content-Length": {name: {"headers": {"content-length": LITERAL}}}, "a line break": {name: {"headers": {"A": f"a\r\nB: {LITERAL}"}}},
                        "no header": {name: {"headers": {"a b": LITERAL}}}, "no object": {name: LITERAL}, "a number": {name: {"headers": {"A": 1}}}, "other members": {name: {"headers": {}, "secret": LITERAL}}}.items():
        reply = box.refused({"outboundByHost": wrong})
        true(f"outboundByHost: {what} is refused", reply.status == 400, reply)
        if what != "no object":
            true(f"outboundByHost: {what}: the value is not repeated", LITERAL.encode() not in reply.body, reply.body)
    true("the missing secret is named", b"NO_SUCH" in box.refused({"outboundByHost": {name: {"headers": {"A": "${NO_SUCH}"}}}}).body)
    equal("the old policy stays", box.shown()["deniedHosts"], [name])


def restarts(box, daemon, world):
    """A policy outlives its daemon, and another default does not change it."""
    name, tls = "api.example.test", {"port": 443, "tls": True}
    box.policy(allowedHosts=[name, "10.9.8.0/24"], deniedHosts=["other.example.test"], outboundByHost={name: {"headers": {"X-Api-Key": "${API_TOKEN}", "X-Literal": LITERAL}}})
    before = box.shown()
    daemon.ask("kill")
    daemon.configure('[egress]\nallowed_hosts = ["other.example.test"]\ndenied_hosts = ["10.0.0.0/8"]\n[egress.outbound_by_host."other.example.test"]\nallow_http = true\nheaders = { X-Default = "${SECOND_TOKEN}" }')
    daemon.start()
    until("the sandbox is found again", lambda: box.id in box.api.sandboxes())
    equal("the policy outlives the daemon", box.shown(), before)
    table(box, "after the restart", [(get(name, path="/restarted", **tls), API), (get(PRIVATE), PRIVATE)], [get("other.example.test"), get(name), get(OTHER), *NEVER, *UNCLEAN])
    found = [dict((key.lower(), value) for key, value in one["headers"]) for one in world.requests("/restarted")]
    true("its headers, too", len(found) == 1 and found[0].get("x-api-key") == TOKEN and found[0].get("x-literal") == LITERAL, found)
    fresh = Box(daemon)
    equal("the default of the file", fresh.shown(), {"enableInternet": False, "allowedHosts": ["other.example.test"], "deniedHosts": ["10.0.0.0/8"], "outboundByHost": {"other.example.test": {"headers": {"X-Default": "***"}, "allowHttp": True}}})
    table(fresh, "the default of the file", [(get("other.example.test", path="/default"), OTHER)], [get(name), get(PRIVATE), get("a.sub.example.test"), *NEVER])
    found = [dict((key.lower(), value) for key, value in one["headers"]) for one in world.requests("/default")]
    true("its headers, too", len(found) == 1 and found[0].get("x-default") == SECOND, found)
    # Each sandbox has its own.
    fresh.policy()
    table(fresh, "taken away", [], [get("other.example.test")])
    table(box, "of its own", [(get(name, **tls), API)], [])
    fresh.api.destroy(fresh.id)


def secrecy(box, daemon, world):
    needles = {"a token": TOKEN, "another": SECOND, "a literal": LITERAL, "the API's key": daemon.api.key}
    inside = b"".join(SEEN) + box.api.sh(box.id, "env; cat /proc/self/environ /proc/net/tcp /etc/resolv.conf /etc/hosts | tr '\\0' '\\n'").encode()
    for what, needle in needles.items():
        true(f"{what} was never seen inside", needle.encode() not in inside)
        true(f"{what} is not in the log", needle not in daemon.log())
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                true(f"process {process.name} shows no token", not any(needle.encode() in text for needle in needles.values()), text[:300])
    for file in pathlib.Path(daemon.root, "state").rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 1 << 20 and LITERAL.encode() in file.read_bytes():
                equal(f"{file.name} is root's alone", file.stat().st_mode & 0o77, 0)
                true(f"{file.name} holds no secret that has a name", TOKEN.encode() not in file.read_bytes())
    equal("nobody reached this side", world.reached, [])
    equal("no packet arrived there", [line for line in pathlib.Path(world.directory, "requests").read_text().splitlines() if '"packet"' in line], [])
    log = daemon.log()
    for rule in ("not-allowed-host", "denied-host", "forbidden-address", "private-address", "raw-address", "other-host", "no-internet", "needs-tls", "unknown-address"):
        true(f"refusals of {rule} are told", re.search(rf'sandpail::audit.*refused="{rule}"', log))
    true("connections are told", re.search(r'sandpail::audit.*operation="CONNECT" key="api\.example\.test:7"', log))
    equal("nothing panicked", [line for line in log.splitlines() if "panicked" in line], [])


def main():
    with tempfile.TemporaryDirectory(prefix="egress-") as directory:
        world = daemon = None
        try:
            world = World(directory)
            daemon = Daemon(world)
            box = Box(daemon)
            checks.section(nothing, box)
            checks.section(one_host, box)
            checks.section(fronting, box, world)
            checks.section(lists, box)
            checks.section(internet, box)
            checks.section(rebinding, box, world)
            checks.section(changes, box)
            checks.section(headers, box, world)
            checks.section(restarts, box, daemon, world)
            checks.section(secrecy, box, daemon, world)
            for one in daemon.api.sandboxes():
                daemon.api.destroy(one)
        finally:
            if daemon:
                if checks.failed:
                    print(daemon.log()[-3000:], file=sys.stderr)
                equal("nothing is left", daemon.end(), "[]")
            if world:
                subprocess.run(["umount", "/etc/hosts"], check=False)
                world.end()
    checks.end()


main()
