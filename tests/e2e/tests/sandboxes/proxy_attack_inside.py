"""Attacks on the credential proxy from inside a sandbox: raw bytes, signed by the sandbox's own dummy key where that helps.

    proxy_attack_inside.py PART PARAMETERS SEEN

Prints a line of JSON for each attack: what was tried, what was to come of it, what did. All that came back is appended to SEEN,
so that it can be searched for what must not be known here. Only the standard library.
"""

from proxy_attack_s3 import *
from proxy_attack_tools import *


# --- HTTP ---------------------------------------------------------------------------------------------------------------

def exchange(target, data, seconds=6, pieces=()):
    """All that comes back for bytes, and whether the other side ended."""
    with connect(target) as connection:
        try:
            connection.sendall(data)
            for piece in pieces:
                time.sleep(0.05)
                connection.sendall(piece)
        except OSError:
            pass
        return read_all(connection, seconds)


def only_refused(name, target, data, codes=ANY, seconds=6, silent=False, lasts=False):
    """Bytes that end the connection, after one refusal (or none, where `silent` is right) and nothing else. With `lasts`, where the
    request ends is not in doubt, and the connection need not end."""
    begun = time.time()
    try:
        raw, ended = exchange(target, data, 1 if lasts else seconds)
    except OSError as error:
        raw, ended = b"", True
        if not silent:
            return tell(name, False, error)
    count = len(re.findall(rb"(?:^|\n|>)HTTP/1\.1 \d", raw))
    answer = Answer(raw) if raw else None
    ok = (ended or lasts) and (count == 1 and answer.code in codes and answer.status == STATUS[answer.code] if raw else silent)
    tell(name, ok, f"ended: {ended}, answers: {count}, {raw[:500]!r}", id=answer.id if answer else None, audited=bool(answer), at=[begun, time.time()], upstream=False, rule=f"{answer.status} {answer.code}: {answer.message}" if answer else "closed")


LASTING = {"chunked without length", "a host with a user", "a host with a path", "a host with a port of letters", "another host", "another internal host"}


def http():
    for name in ("embedded", "remote", "tls"):
        target = TARGETS[name]
        path = at(target, "data/x")
        get = Request(target, "GET", path).bytes()
        host = re.search(rb"host: ([^\r]+)", get)[1].decode()
        # What would do harm, were it taken for a request.
        smuggled = Request(target, "DELETE", at(target, "data/victim")).bytes()
        passes(f"{name}: a victim", Request(target, "PUT", at(target, "data/victim"), body=b"alive"))
        signed = lambda method="PUT", **more: Request(target, method, at(target, "data/smuggled"), payload="UNSIGNED-PAYLOAD", length=False, **more)
        with_ = lambda lines, body, **more: signed(**more).head[:-2] + lines.encode("latin-1") + b"\r\n" + body
        chunks = lambda body: f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        rows = {
            "CL.TE": with_(f"Content-Length: {len(smuggled) + 5}\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + smuggled), "TE.CL": with_("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunks(smuggled)), "TE.TE": with_("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n" + smuggled),
            "TE: xchunked": with_("Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + smuggled), "TE: chunked, identity": with_("Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + smuggled), "TE: gzip, chunked": with_("Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + smuggled), "TE with a space before the colon": with_("Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + smuggled),
            "TE with a vertical tab": with_("Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + smuggled), "TE folded": with_("Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + smuggled), "TE quoted": with_('Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n" + smuggled), "TE twice": with_("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + smuggled),
            "CL twice": with_(f"Content-Length: 0\r\nContent-Length: {len(smuggled)}\r\n", smuggled), "CL twice the same": with_("Content-Length: 1\r\nContent-Length: 1\r\n", b"x" + smuggled), "CL list": with_("Content-Length: 0, 0\r\n", smuggled), "CL +": with_("Content-Length: +0\r\n", smuggled), "CL -": with_("Content-Length: -1\r\n", smuggled), "CL hex": with_("Content-Length: 0x0\r\n", smuggled), "CL empty": with_("Content-Length:\r\n", smuggled),
            "CL with space": with_("Content-Length: 0 0\r\n", smuggled), "CL overflow": with_("Content-Length: 18446744073709551616\r\n", smuggled), "CL huge": with_("Content-Length: 9223372036854775807\r\n", smuggled), "chunk extension": with_("Transfer-Encoding: chunked\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n" + smuggled), "chunk of no size": with_("Transfer-Encoding: chunked\r\n", b"\r\nhello\r\n0\r\n\r\n" + smuggled),
            "chunk size 0x": with_("Transfer-Encoding: chunked\r\n", b"0x5\r\nhello\r\n0\r\n\r\n" + smuggled), "chunk size -": with_("Transfer-Encoding: chunked\r\n", b"-5\r\nhello\r\n0\r\n\r\n" + smuggled), "chunk overflow": with_("Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n" + smuggled), "long chunk line": with_("Transfer-Encoding: chunked\r\n", b"0" * 5000 + b"\r\n\r\n" + smuggled),
            "chunk without CRLF": with_("Transfer-Encoding: chunked\r\n", b"5\r\nhelloXX0\r\n\r\n" + smuggled), "chunk with LF": with_("Transfer-Encoding: chunked\r\n", b"5\nhello\n0\n\n" + smuggled), "trailer with TE": with_("Transfer-Encoding: chunked\r\n", b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled), "trailer with host": with_("Transfer-Encoding: chunked\r\n", b"0\r\nHost: evil\r\n\r\n" + smuggled),
            "trailer with x-amz": with_("Transfer-Encoding: chunked\r\n", b"0\r\nx-amz-acl: public-read\r\n\r\n" + smuggled), "trailer with authorization": with_("Transfer-Encoding: chunked\r\n", b"0\r\nAuthorization: x\r\n\r\n" + smuggled), "long trailers": with_("Transfer-Encoding: chunked\r\n", b"0\r\n" + b"a: b\r\n" * 2000 + b"\r\n" + smuggled), "chunked without length": with_("Transfer-Encoding: chunked\r\n", chunks(b"hello")),
            "no host": get.replace(f"host: {host}\r\n".encode(), b""), "two hosts": get.replace(b"host: ", b"Host: evil.example\r\nhost: "), "two hosts, the same": get.replace(b"host: ", f"Host: {host}\r\nhost: ".encode()), "an empty host": get.replace(f"host: {host}".encode(), b"host: "), "a host with a user": get.replace(f"host: {host}".encode(), f"host: evil@{host}".encode()), "a host with a path": get.replace(f"host: {host}".encode(), f"host: {host}/x".encode()),
            "a host with a port of letters": get.replace(f"host: {host}".encode(), f"host: {host}:x".encode()), "another host": get.replace(f"host: {host}".encode(), b"host: 169.254.169.254"), "another internal host": get.replace(f"host: {host}".encode(), b"host: s3-credential-proxy.internal" if host != "s3-credential-proxy.internal" else b"host: r2.internal"), "a host in two lines": get.replace(f"host: {host}".encode(), f"host: {host}\r\n x".encode()),
            "folded": get.replace(b"\r\n\r\n", b"\r\nx-a: b\r\n c\r\n\r\n"), "folded by a tab": get.replace(b"\r\n\r\n", b"\r\nx-a: b\r\n\tc\r\n\r\n"), "bare LF": get.replace(b"\r\n", b"\n"), "one bare LF": get.replace(b"\r\n", b"\n", 1), "bare CR": get.replace(b"\r\n\r\n", b"\r\nx-a: b\rc: d\r\n\r\n"), "NUL in a header": get.replace(b"\r\n\r\n", b"\r\nx-a: b\0c\r\n\r\n"), "NUL in a name": get.replace(b"\r\n\r\n", b"\r\nx\0a: b\r\n\r\n"), "DEL": get.replace(b"\r\n\r\n", b"\r\nx-a: \x7f\r\n\r\n"),
            "a space in a name": get.replace(b"\r\n\r\n", b"\r\nx a: b\r\n\r\n"), "a space before the colon": get.replace(b"\r\n\r\n", b"\r\nx-a : b\r\n\r\n"), "no colon": get.replace(b"\r\n\r\n", b"\r\nxa\r\n\r\n"), "no name": get.replace(b"\r\n\r\n", b"\r\n: b\r\n\r\n"), "an empty line first": b"\r\n" + get, "a space first": b" " + get, "a BOM": b"\xef\xbb\xbf" + get, "two spaces": get.replace(b" /", b"  /", 1), "a tab": get.replace(b" /", b"\t/", 1),
            "lower case": get.replace(b"GET ", b"get ", 1), "HTTP/1.0": get.replace(b"HTTP/1.1", b"HTTP/1.0"), "HTTP/2.0": get.replace(b"HTTP/1.1", b"HTTP/2.0"), "HTTP/1.2": get.replace(b"HTTP/1.1", b"HTTP/1.2"), "http/1.1": get.replace(b"HTTP/1.1", b"http/1.1"), "HTTP/0.9": f"GET {path}\r\n".encode() if target["name"] == "embedded" else None, "no version": get.replace(b" HTTP/1.1", b""), "more words": get.replace(b" HTTP/1.1", b" x HTTP/1.1"),
            "absolute, another host": get.replace(b"GET /", b"GET http://169.254.169.254/", 1), "absolute, a user": get.replace(b"GET /", f"GET http://evil@{host}/".encode(), 1), "absolute, another scheme": get.replace(b"GET /", f"GET ftp://{host}/".encode(), 1), "absolute, file": get.replace(b"GET /", b"GET file:///", 1), "absolute, a port": get.replace(b"GET /", f"GET http://{host.split(':')[0]}:22/".encode(), 1), "absolute without slashes": get.replace(b"GET /", f"GET http:{host}/".encode(), 1),
            "only an authority": f"GET {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), "CONNECT": f"CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n".encode(), "CONNECT elsewhere": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n", "CONNECT with a path": get.replace(b"GET ", b"CONNECT ", 1), "OPTIONS *": f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), "TRACE": get.replace(b"GET ", b"TRACE ", 1),
            "PROPFIND": get.replace(b"GET ", b"PROPFIND ", 1), "our own stand-in": b"REFUSED /0 HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n", "a method with a slash": get.replace(b"GET ", b"G/T ", 1), "h2c": get.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"), "websocket": get.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"),
            "an upgrade alone": get.replace(b"\r\n\r\n", b"\r\nUpgrade: TLS/1.0\r\n\r\n"), "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), "Connection names host": get.replace(b"\r\n\r\n", b"\r\nConnection: close, host\r\n\r\n"), "Connection names authorization": get.replace(b"\r\n\r\n", b"\r\nConnection: authorization\r\n\r\n"), "TE gzip": get.replace(b"\r\n\r\n", b"\r\nTE: gzip\r\n\r\n"),
            "Expect": get.replace(b"\r\n\r\n", b"\r\nExpect: 200-ok\r\n\r\n"), "101 headers": get.replace(b"\r\n\r\n", b"\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(101)) + b"\r\n"), "a head of 70 KB": get.replace(b"\r\n\r\n", b"\r\nx-a: " + b"y" * 70_000 + b"\r\n\r\n"), "a URL of 70 KB": f"GET /{'a' * 70_000} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), "a name of 70 KB": get.replace(b"\r\n\r\n", b"\r\n" + b"y" * 70_000 + b": x\r\n\r\n"),
            "raw bytes in the URL": get.replace(b"/data/x", b"/data/\xff\xfe"), "CRLF in a value": get.replace(b"x-amz-date: ", b"x-amz-meta-a: b\r\r\n\r\nx-amz-date: "), "SSH": b"SSH-2.0-x\r\n", "TLS where it is plain": None if target.get("tls") else b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n",
        }
        for what, data in rows.items():
            if data is not None:
                # What is TLS to the first byte is not answered in plain words.
                only_refused(f"{name}: {what}", target, data, lasts=what in LASTING, silent=what == "TLS where it is plain")
        passes(f"{name}: the victim lives", Request(target, "GET", at(target, "data/victim")), check=lambda answer: answer.body == b"alive")
        passes(f"{name}: nothing was made", Request(target, "GET", at(target, "data/smuggled")), 404)
        # Bodies of refused requests are not requests.
        only = Request(target, "PUT", at(target, "database/x"), body=smuggled).bytes().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        only_refused(f"{name}: a request in the body of a refused one", target, only, DENIED)
        expect = Request(target, "PUT", at(target, "database/x"), body=b"evil").head[:-2] + b"Expect: 100-continue\r\n\r\n"
        begun = time.monotonic()
        raw, ended = exchange(target, expect, 5)
        answer = Answer(raw)
        tell(f"{name}: no 100 for what is refused", b" 100 " not in raw.split(b"\r\n")[0] and answer.code == "AccessDenied", raw[:300], id=answer.id, audited=True, upstream=False)
        # Pipelines: each request is judged by itself.
        inside, outside = Request(target, "GET", path).bytes(), Request(target, "GET", at(target, "database/x")).bytes()
        last = Request(target, "GET", path, headers={"connection": "close"}).bytes()
        raw, ended = exchange(target, inside + outside + inside + last)
        codes = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", raw)]
        tell(f"{name}: a pipeline", codes == [200, 403, 200, 200] and raw.count(b"mine") == 3, raw[:800], audited=False, upstream=True)
        passes(f"{name}: away with the victim", Request(target, "DELETE", at(target, "data/victim")), 204)
    one, two = TARGETS["by id"], TARGETS["read-only by id"]
    raw, _ = exchange(one, Request(one, "GET", at(one, "data/x")).bytes() + Request(two, "GET", at(two, "ro/x")).bytes() + Request(two, "PUT", at(two, "ro/x"), body=b"evil").bytes() + Request(one, "GET", f"/{P['other']['id']}/{P['other']['bucket']}/other/x", headers={"connection": "close"}).bytes())
    tell("a pipeline across mounts", [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", raw)] == [200, 200, 403, 403], raw[:1500], audited=False, upstream=True)
    # A connection that is made to one host is for that host.
    remote, embedded = TARGETS["remote"], TARGETS["embedded"]
    only_refused("a mount's host by way of another", {**remote, "address": "s3.internal", "port": 80}, Request({**remote}, "GET", at(remote, "data/x"), headers={"connection": "close"}).bytes(), DENIED | BAD)
    only_refused("an internal host by way of the endpoint", {**embedded, "address": remote["host"], "port": remote["port"]}, Request(embedded, "GET", at(embedded, "data/x"), headers={"connection": "close"}).bytes(), DENIED | BAD)
    tls = TARGETS["tls"]
    for what, server_name in {"an outer name": "example.com", "another internal name": "r2.internal", "no such name": "x.y.z"}.items():
        try:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection((tls["host"], 443), LIMIT) as connection, context.wrap_socket(connection, server_hostname=server_name) as stream:
                stream.sendall(Request(tls, "GET", at(tls, "data/x")).bytes())
                raw, _ = read_all(stream, 5)
                tell(f"TLS for {what}", not raw, raw[:300])
        except OSError as error:
            tell(f"TLS for {what}", True, error)
    for host in ("s3.internal", "r2.internal", "s3-credential-proxy.internal"):
        answer = send((({"host": host, "port": 80}), f"GET /__sandbox_credential_proxy_self_test__ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))
        tell(f"self test at {host}", answer.status == 200 and answer.body == b"OK", answer.body)
        refuse(f"self test with POST at {host}", ({"host": host, "port": 80}, f"POST /__sandbox_credential_proxy_self_test__ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()))


# --- The network --------------------------------------------------------------------------------------------------------

def question(name, kind=1, klass=1, flags=0x0100, count=1):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".")) if name else b""
    return struct.pack(">HHHHHH", 0x1234, flags, count, 0, 0, 0) + (labels + b"\0" + struct.pack(">HH", kind, klass)) * count


def asked(packet, server="198.18.0.2", port=53, seconds=3):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        sock.sendto(packet, (server, port))
        try:
            answer = sock.recv(4096)
        except OSError:
            return None
        SEEN.write(answer + b"\n")
        return answer[3] & 15, struct.unpack(">H", answer[6:8])[0], answer


def fails(name, attempt, quick=None, audited=None):
    """An attempt that must come to nothing, and at once where that is said."""
    begun = time.monotonic()
    try:
        got = attempt()
    except OSError as error:
        took = time.monotonic() - begun
        return tell(name, quick is None or took < quick, f"{error}, {took:.1f} s", key=audited)
    tell(name, got in (None, b"", False), f"{got!r}", key=audited)


def talk(family, address, data=b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", seconds=4):
    """What a server says, but not sandpail's own refusal."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect(address)
        sock.sendall(data)
        raw, _ = read_all(sock, seconds)
        return b"" if b"\r\n\r\nsandpail: " in raw and b" 403 " in raw.split(b"\r\n")[0] else raw


def network():
    for what, address in {"the internet": "1.1.1.1", "a private address": "10.0.0.1", "another": "192.168.0.1", "one more": "172.17.0.1", "shared space": "100.64.0.1", "metadata": "169.254.169.254", "metadata of another": "100.100.100.200", "link-local": "169.254.1.1", "multicast": "224.0.0.1", "broadcast": "255.255.255.255", "reserved": "240.0.0.1", "an address of names": "198.18.99.99",
                          "the name server": "198.18.0.2", "ourselves": "198.18.0.1", "zero": "0.0.0.1"}.items():
        for port in (80, 443, 8080):
            fails(f"{what} {address}:{port}", lambda: talk(socket.AF_INET, (address, port)), 6)
    for address in P["host_addresses"]:
        for port in P["host_ports"]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            fails(f"the host at {address}:{port}", lambda: talk(family, (address, port)), 6)
    for address in ("127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "fd00:ec2::254", "fe80::1", "2606:4700:4700::1111", "64:ff9b::7f00:1"):
        for port in P["host_ports"]:
            fails(f"[{address}]:{port}", lambda: talk(socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port)), 6)
    for text in ("2130706433", "0x7f000001", "017700000001", "127.1", "0"):
        fails(f"the loopback as {text}", lambda: talk(socket.AF_INET, (socket.inet_ntoa(socket.inet_aton(text)), P["host_ports"][0])), 6)
    # The daemon's own sockets in here, by their address.
    listening = [int(line.split()[1].split(":")[1], 16) for line in open("/proc/net/tcp").read().splitlines()[1:] if line.split()[3] == "0A"]
    tell("the daemon listens in here", listening, listening)
    embedded = TARGETS["embedded"]
    for port in listening:
        data = Request(embedded, "GET", at(embedded, "data/x")).bytes()
        for address in ("127.0.0.1", "198.18.0.1"):
            fails(f"the daemon's listener {address}:{port}", lambda: talk(socket.AF_INET, (address, port), data), 6, audited="loopback" if address == "127.0.0.1" else None)
    for what, port in {"QUIC": 443, "NTP": 123, "mDNS": 5353, "high": 33434, "http": 80, "DHCP": 67}.items():
        for address in ("1.1.1.1", "10.0.0.1", "169.254.169.254", "198.18.0.2", "224.0.0.251", "198.18.1.0"):
            def udp():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(1.5)
                    sock.connect((address, port))
                    sock.send(b"\xc0\0\0\0\1" + b"x" * 1200)
                    return sock.recv(2000)
            fails(f"UDP {what} to {address}", udp, 1.0)

    def udp6():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.5)
            sock.connect(("2606:4700:4700::1111", 443))
            sock.send(b"x")
            return sock.recv(100)
    fails("UDP by IPv6", udp6, 1.0)
    for what, arguments in {"ICMP": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), "raw IP": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), "raw IPv6": (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW), "packets": (socket.AF_PACKET, socket.SOCK_RAW, 0x0300)}.items():
        def raw():
            with socket.socket(*arguments) as sock:
                if what == "ICMP":
                    sock.settimeout(1.5)
                    sock.sendto(b"\x08\0\xf7\xfd\0\1\0\1", ("1.1.1.1", 0))
                    return sock.recv(100)[28:] or None
                return b"made"
        fails(f"a socket for {what}", raw)
    for cid in (0, 1, 2, 0xFFFFFFFF):
        def vsock():
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
                sock.settimeout(1.5)
                sock.connect((cid, 22))
                return b"connected"
        fails(f"vsock to {cid}", vsock)

    def sctp():
        with socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 132) as sock:
            sock.settimeout(1.5)
            sock.connect(("1.1.1.1", 80))
            return b"connected"
    fails("SCTP", sctp, 1.0)

    def ping():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(1.5)
            sock.sendto(b"\x08\0\0\0\0\1\0\1", ("1.1.1.1", 0))
            return sock.recv(100)
    fails("ping", ping, 2.5)
    for name in P["host_sockets"]:
        fails("an abstract socket of the host", lambda: talk(socket.AF_UNIX, "\0" + name))
    for what, command in {"an address": ["addr", "add", "10.1.1.1/24", "dev", "lo"], "a route": ["route", "replace", "default", "dev", "lo"], "lo down": ["link", "set", "lo", "down"], "a bridge": ["link", "add", "b0", "type", "dummy"]}.items():
        def change():
            head = {"an address": (20, struct.pack("=BBBBI", 2, 24, 0, 0, 1) + struct.pack("=HH", 8, 2) + bytes([10, 1, 1, 1])), "a route": (24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 253, 1, 0) + struct.pack("=HHI", 8, 4, 1)), "lo down": (16, struct.pack("=BBHiII", 0, 0, 0, 1, 0, 1)), "a bridge": (16, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH", 7, 3) + b"b0\0\0")}[what]
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
                sock.settimeout(2)
                sock.send(struct.pack("=IHHII", 16 + len(head[1]), head[0], 0x0001 | 0x0004 | 0x0500, 1, 0) + head[1])
                reply = sock.recv(4096)
            error = -struct.unpack_from("=i", reply, 16)[0]
            if error:
                raise OSError(error, os.strerror(error))
            return b"done"
        fails(f"netlink, {what}", change)

    def rules():
        # nftables: delete all tables.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
            sock.settimeout(2)
            message = lambda kind, flags, family, sub: struct.pack("=IHHII", 20, kind, flags, 1, 0) + struct.pack(">BBH", family, 0, sub)
            sock.send(message(0x10, 1, 0, 10) + message(10 << 8 | 2, 5, 0, 0) + message(0x11, 1, 0, 10))
            reply = sock.recv(4096)
        error = -struct.unpack_from("=i", reply, 16)[0]
        if error:
            raise OSError(error, os.strerror(error))
        return b"done"
    fails("netlink, the rules", rules)
    passes("after all that, the mounts are there", Request(embedded, "GET", at(embedded, "data/x")), check=lambda answer: answer.body == b"mine")
    # Names.
    found = asked(question("s3.internal"))
    tell("an internal name", found and found[:2] == (0, 1) and found[2][-4:-2] in (b"\xc6\x12", b"\xc6\x13"), found)
    for what, packet in {"the internet": question("example.com"), "the host": question("localhost"), "a name of an address": question("169.254.169.254.nip.io"), "below r2.internal": question("x.r2.internal"), "beside": question("xs3.internal"), "behind": question("s3.internal.example.com"), "the suffix": question("internal"), "the root": question(""), "a name as an address": question("127.0.0.1"), "metadata": question("metadata.google.internal"),
                         "the daemon's host": question(P["host_name"]), "with a NUL": question("s3.internal\0.example"), "an address backwards": question("1.0.0.127.in-addr.arpa", 12), "TXT": question("example.com", 16), "ANY": question("example.com", 255), "AXFR": question("internal", 252), "long": question(".".join(["a" * 60] * 4)), "a store's name below": question("x.example.test")}.items():
        found = asked(packet)
        tell(f"DNS: {what}", found is None or found[1] == 0, found)
    for what, packet in {"IPv6": question("s3.internal", 28), "TXT": question("s3.internal", 16), "SRV": question("s3.internal", 33), "HTTPS": question("s3.internal", 65), "ANY": question("s3.internal", 255), "CHAOS": question("version.bind", 16, 3), "two questions": question("s3.internal", count=2), "an update": question("s3.internal", flags=0x2800), "a notification": question("s3.internal", flags=0x2000), "an answer": question("s3.internal", flags=0x8180), "no question": question("x")[:12], "cut off": question("s3.internal")[:20],
                         "a loop": struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "a pointer outside": struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\xff\xff\0\1\0\1", "nothing": b"", "one byte": b"x", "noise": os.urandom(512), "many": struct.pack(">HHHHHH", 1, 0x100, 65535, 65535, 65535, 65535) + os.urandom(400)}.items():
        found = asked(packet, seconds=1)
        tell(f"DNS: {what}", found is None or found[1] == 0, found)
    for server in ("8.8.8.8", "1.1.1.1", "198.18.0.1", "169.254.169.253"):
        found = asked(question("example.com"), server)
        tell(f"DNS at {server}", found is None or found[1] == 0, found)

    def over_tcp(packet, address="8.8.8.8"):
        with socket.create_connection((address, 53), 4) as sock:
            sock.sendall(struct.pack(">H", len(packet)) + packet)
            return read_all(sock, 3, lambda raw: len(raw) > 2 and len(raw) >= 2 + struct.unpack(">H", raw[:2])[0])[0]
    reply = over_tcp(question("s3.internal"))
    tell("DNS over TCP", len(reply) > 14 and reply[9] == 1, reply)
    reply = over_tcp(question("example.com"))
    tell("DNS over TCP for the internet", len(reply) > 14 and reply[5] & 15 == 3 and reply[9] == 0, reply)
    reply = over_tcp(b"")
    tell("DNS over TCP with nothing", reply == b"", reply)
    found = asked(question("s3.internal"))
    tell("the name server is still there", found and found[1] == 1, found)
    for port in (22, 25, 6379, 8787):
        # Every port of an internal name is the proxy's, and asks for a signature.
        fails(f"an internal name at port {port}", lambda: (lambda raw: b"" if b"<Code>" in raw else raw)(talk(socket.AF_INET, (socket.gethostbyname("s3.internal"), port), seconds=2)))
    gone = [name for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "SANDPAIL_API_KEY") if name in os.environ]
    tell("nothing of the daemon's in the environment", not gone, gone)
    SEEN.write(json.dumps(dict(os.environ)).encode() + b"\n")
    for file in ("/etc/resolv.conf", "/etc/hosts", "/proc/net/tcp", "/proc/net/udp", "/proc/net/route", "/proc/net/arp", "/proc/net/unix", "/proc/self/mountinfo", "/proc/self/environ"):
        try:
            SEEN.write(open(file, "rb").read() + b"\n")
        except OSError:
            pass
    bundle = open("/etc/ssl/certs/ca-certificates.crt").read()
    tell("the authority's key is not here", "PRIVATE KEY" not in bundle)


# --- Patience -----------------------------------------------------------------------------------------------------------

def slow():
    """Connections that say little: they end in time, and keep nobody from anything."""
    embedded = TARGETS["embedded"]
    request = Request(embedded, "GET", at(embedded, "data/x")).bytes()
    body = Request(embedded, "PUT", at(embedded, "data/slow"), body=b"x" * 1000).bytes()[:-900]
    begun, waiting = time.monotonic(), {}
    for what, data in {"nothing": b"", "a letter": b"G", "half a head": request[:60], "a head without end": request[:-2], "half a body": body, "half a TLS hello": b"\x16\x03\x01\x02\x00\x01"}.items():
        for n in range(8):
            connection = connect(embedded)
            connection.sendall(data)
            waiting[connection] = what
    drip = connect(embedded)
    drip.sendall(request[:-4] + b"\r\n")
    took = []
    for _ in range(20):
        at_ = time.monotonic()
        answer = send(Request(embedded, "GET", at(embedded, "data/x")))
        took.append(time.monotonic() - at_)
        if answer.body != b"mine":
            tell("others are served meanwhile", False, answer.body)
    tell("others are served meanwhile, and soon", max(took) < 4, took)
    ended, broken = {}, False
    while waiting and time.monotonic() - begun < P["patience"]:
        if not broken:
            try:
                drip.sendall(b"x-a: b\r\n")
            except OSError:
                broken = time.monotonic() - begun
        for connection in select.select(list(waiting), [], [], 1)[0]:
            try:
                more = connection.recv(65536)
            except OSError:
                more = b""
            SEEN.write(more)
            if not more:
                ended[waiting.pop(connection)] = round(time.monotonic() - begun, 1)
    tell("slow connections end", not waiting, f"still open: {sorted(set(waiting.values()))}, ended: {ended}")
    tell("one that drips headers ends", broken, "still open")
    passes("nothing came of half a body", Request(embedded, "GET", at(embedded, "data/slow")), 404)


def crowd():
    """Holds as many connections as it gets, for some seconds."""
    embedded, held, refused = TARGETS["embedded"], [], 0
    address = socket.gethostbyname(embedded["host"])
    limit = time.monotonic() + P["hold"]
    for _ in range(P["crowd"]):
        connection = socket.socket()
        connection.settimeout(1)
        try:
            connection.connect((address, 80))
            connection.sendall(b"GET / HTTP/1.1\r\n")
            held.append(connection)
        except OSError:
            refused += 1
        if time.monotonic() > limit:
            break
    print(json.dumps({"name": "held", "ok": True, "why": f"{len(held)} held, {refused} refused"}), flush=True)
    time.sleep(max(0, limit - time.monotonic()))
    for connection in held:
        connection.close()
    until = time.monotonic() + 10
    while (answer := send(Request(embedded, "GET", at(embedded, "data/x")))).body != b"mine" and time.monotonic() < until:
        time.sleep(0.1)
    tell("afterwards it is as before", answer.body == b"mine", answer.body)


def documents():
    """Large documents that do not end: the daemon reads some, and lets the others wait."""
    embedded = TARGETS["embedded"]
    made = send(Request(embedded, "POST", at(embedded, "data/large"), "uploads"))
    upload = urllib.parse.quote((re.search(r"<UploadId>([^<]+)<", made.body.decode()) or [None, ""])[1], safe="")
    body = b"<CompleteMultipartUpload>" + b"<Part/>" * ((4 << 20) // 7 - 10)
    data = Request(embedded, "POST", at(embedded, "data/large"), f"uploadId={upload}", body=body).bytes()
    waiting, limit, sent = [], time.monotonic() + P["hold"], 0
    for _ in range(250):
        connection = connect(embedded)
        connection.setblocking(False)
        waiting.append([connection, 0])
    while time.monotonic() < limit:
        for one in select.select([], [one[0] for one in waiting if one[1] < len(data) - 1], [], 0.2)[1]:
            entry = next(entry for entry in waiting if entry[0] is one)
            try:
                count = one.send(data[entry[1]:min(len(data) - 1, entry[1] + (1 << 18))])
                entry[1], sent = entry[1] + count, sent + count
            except OSError:
                entry[1] = len(data)
    tell("large documents were sent", sent > 20 << 20, sent)
    for connection, _ in waiting:
        connection.close()
    until = time.monotonic() + 12
    while (answer := send(Request(embedded, "GET", embedded["base"], "list-type=2&prefix=data%2F"))).status != 200 and time.monotonic() < until:
        time.sleep(0.2)
    tell("lists are served again", answer.status == 200, answer.body)
    passes("the upload is there, and ends", Request(embedded, "DELETE", at(embedded, "data/large"), f"uploadId={upload}"), 204)


def timing():
    """How long a refusal takes says nothing of how near the key was."""
    embedded = TARGETS["embedded"]
    path = at(embedded, "data/x")

    def median(make):
        took = []
        with connect(embedded) as connection:
            for _ in range(150):
                data = make().bytes()
                begun = time.perf_counter()
                connection.sendall(data)
                raw, _ = read_all(connection, 5, whole)
                took.append(time.perf_counter() - begun)
        return sorted(took)[len(took) // 2]
    one = median(lambda: Request(embedded, "GET", path, key=("X" + KEY[0][1:], KEY[1])))
    two = median(lambda: Request(embedded, "GET", path, key=(KEY[0][:-1] + "_", KEY[1])))
    three = median(lambda: Request(embedded, "GET", path, key=(KEY[0], "wrong")))
    tell("timing of wrong keys", max(one, two, three) < 3 * min(one, two, three) + 0.002, (one, two, three))


def probe():
    """What this sandbox sees of a mount, for another's tests."""
    answer = send(Request(P["probe"], P.get("method", "GET"), P["probe"]["path"], P["probe"].get("query", "")))
    tell("probe", True, "", status=answer.status, code=answer.code, body=answer.body.decode(errors="replace"))


for part in PART.split(","):
    globals()[part]()
