"""What stands at the other ends of the tests of egress.

    proxy_egress_there.py servers DIRECTORY     in a network of their own: web servers and echoes
    proxy_egress_there.py guest JSON            in a sandbox: does what it is told, and says what came of it
"""

import contextlib
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time

API, OTHER, OWN, PRIVATE, METADATA, DOCS = "198.51.101.10", "198.51.101.11", "198.51.101.1", "10.9.8.7", "169.254.169.254", "203.0.113.20"
SIX, SIX_OWN = "2a10:1::10", "2a10:1::1"
THERE = [API, OTHER, PRIVATE, METADATA, DOCS]
HOSTS = [(API, "api.example.test"), (OTHER, "other.example.test"), (OTHER, "a.sub.example.test"), (OTHER, "example.test"), (PRIVATE, "private.example.test"), (METADATA, "metadata.example.test"), ("127.0.0.1", "rebound.example.test"), (OWN, "own.example.test"),
         (DOCS, "docs.example.test"), ("::1", "loop6.example.test"), ("::ffff:127.0.0.1", "mapped.example.test"), (SIX, "six.example.test"), (SIX_OWN, "own6.example.test"), ("127.0.0.1", "both.example.test"), (API, "both.example.test"), (API, "badcert.example.test"), (OTHER, "xn--bcher-kva.example.test"), ("0.0.0.0", "zero.example.test")]


# --- There: the servers ---------------------------------------------------------------------------------------------------

def servers(directory):
    """Serves HTTP, HTTPS, and echoes; ends with its input."""
    log, lock = open(f"{directory}/requests", "a"), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            with lock:
                log.write(json.dumps({"method": self.command, "path": self.path, "headers": self.headers.items(), "body": body.decode(errors="replace"), "tls": isinstance(self.connection, ssl.SSLSocket)}) + "\n")
                log.flush()
            # What came in headers is not told.
            text = json.dumps({"at": self.connection.getsockname()[0].removeprefix("::ffff:"), "host": self.headers.get("host"), "path": self.path}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = do_TRACE = do_DELETE = do_lowercase = answer

        def log_message(self, *_):
            pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        address_family, daemon_threads, request_queue_size = socket.AF_INET6, True, 64

        def handle_error(self, request, client_address):
            pass

    def echo(sock):
        while True:
            connection, _ = sock.accept()

            def serve(connection=connection):
                with contextlib.suppress(OSError), connection:
                    while data := connection.recv(4096):
                        connection.sendall(data)
            threading.Thread(target=serve, daemon=True).start()

    def greet(sock):
        while True:
            connection, _ = sock.accept()
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"220 hello\r\n")
                connection.settimeout(5)
                connection.sendall(connection.recv(100))

    def packets(sock):
        while True:
            data, address = sock.recvfrom(4096)
            with lock:
                log.write(json.dumps({"packet": data.decode(errors="replace")}) + "\n")
                log.flush()
            sock.sendto(data, address)

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("here", flush=True)
    sys.stdin.readline()
    for address in THERE:
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "addr", "add", "198.51.101.2/24", "dev", "there"], check=True)
    subprocess.run(["ip", "-6", "addr", "add", f"{SIX}/64", "dev", "there", "nodad"], check=True)
    subprocess.run(["ip", "link", "set", "there", "up"], check=True)
    listening = []
    for port, tls in ((80, False), (8080, False), (443, True), (8443, True)):
        server = Server(("::", port), Handler)
        if tls:
            good, bad = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
            good.load_cert_chain(f"{directory}/server.pem")
            bad.load_cert_chain(f"{directory}/bad.pem")
            good.sni_callback = lambda sock, name, _: setattr(sock, "context", bad) if name == "badcert.example.test" else None
            server.socket = good.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        listening.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    for port, serve in ((7, echo), (25, greet)):
        threading.Thread(target=serve, args=(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64),), daemon=True).start()
    for port in (7, 53, 443):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::", port))
        threading.Thread(target=packets, args=(sock,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


# --- Inside: the guest ----------------------------------------------------------------------------------------------------

def question(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def fetch(to, port=80, tls=False, path="/", method="GET", headers=None, sni=None, raw=None, alpn=None, body="", verify=True):
    """What a web server says: the status, and the body."""
    with socket.create_connection((to, port), 6) as connection:
        if tls:
            context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
            context.load_verify_locations("/tmp/ca.pem")
            if alpn:
                context.set_alpn_protocols(alpn)
            if not verify or sni is not None:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname=(to if sni is None else sni) or None)
        connection.settimeout(6)
        if raw is None:
            lines = {"Host": to, "Connection": "close", **({"Content-Length": str(len(body))} if body else {}), **(headers or {})}
            raw = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n" + body
        connection.sendall(raw.encode())
        answer = b""
        with contextlib.suppress(TimeoutError):
            while piece := connection.recv(65536):
                answer += piece
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]
    return {"status": statuses[0] if statuses else None, "statuses": statuses, "text": answer.decode(errors="replace")}


def large_hello(to, sni, port=443, padding=40_000, before=""):
    """What comes back for a client's hello that is longer than anybody's, or has something before it, for another host."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=sni).do_handshake()
    body = outgoing.read()[9:]
    # Version, random, session, ciphers, compression; then the extensions, to which one is added that nobody knows.
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + struct.unpack(">H", body[at:at + 2])[0]
    at += 1 + body[at]
    extensions = body[at + 2:] + struct.pack(">HH", 0xFE77, padding) + bytes(padding)
    body = body[:at] + struct.pack(">H", len(extensions)) + extensions
    message = b"\1" + struct.pack(">I", len(body))[1:] + body
    with socket.create_connection((to, port), 6) as connection:
        connection.settimeout(3)
        with contextlib.suppress(OSError):
            connection.sendall(bytes.fromhex(before))
            for start in range(0, len(message), 16_000):
                piece = message[start:start + 16_000]
                connection.sendall(b"\x16\3\1" + struct.pack(">H", len(piece)) + piece)
        answer = connection.recv(4096)
    # Alerts say no.
    return {"text": "" if answer[:1] == b"\x15" else answer.hex()}


def in_pieces(to, pieces, port=80, pause=0.6):
    """What a web server says to a request that comes slowly."""
    with socket.create_connection((to, port), 6) as connection:
        connection.settimeout(3)
        answer = b""
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece.encode("latin-1"))
                time.sleep(pause)
            while piece := connection.recv(65536):
                answer += piece
    return {"text": answer.decode(errors="replace"), "status": int((re.match(rb"HTTP/1\.1 (\d{3})", answer) or [0, 0])[1]) or None}


def echo(to, port=7, text="hello"):
    with socket.create_connection((to, port), 6) as connection:
        connection.settimeout(4)
        connection.sendall(text.encode())
        return {"text": connection.recv(4096).decode()}


def greeted(to, port=25):
    with socket.create_connection((to, port), 6) as connection:
        connection.settimeout(4)
        first = connection.recv(100).decode()
        connection.sendall(b"EHLO x\r\n")
        return {"text": first + connection.recv(100).decode()}


def packet(to, port=7):
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((to, port))
        sock.send(b"a packet")
        return {"text": sock.recv(100).decode()}


def names(name, kind=1, server="198.18.0.2"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.sendto(question(name, kind), (server, 53))
        answer = sock.recv(4096)
    count = struct.unpack(">H", answer[6:8])[0]
    return {"code": answer[3] & 15, "count": count, "address": socket.inet_ntoa(answer[-4:]) if count and kind == 1 else None}


def hold(to, port=7):
    """Keeps a connection busy until it ends, or for long."""
    begun = time.monotonic()
    with socket.create_connection((to, port), 6) as connection:
        connection.settimeout(3)
        while time.monotonic() - begun < 25:
            connection.sendall(b"x")
            if not connection.recv(10):
                break
            print(json.dumps("alive"), flush=True)
            time.sleep(0.1)
        else:
            return {"text": "open"}
    return {"text": "ended"}


def guest(asked):
    for name, arguments in json.loads(asked):
        begun = time.monotonic()
        try:
            result = globals()[name](**arguments)
        except OSError as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**result, "seconds": round(time.monotonic() - begun, 2)}), flush=True)


if __name__ == "__main__":
    {"servers": servers, "guest": guest}[sys.argv[1]](sys.argv[2])
