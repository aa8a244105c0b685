"""What attacks from inside a sandbox are made of: bytes, signatures by the sandbox's own dummy key, and what is told of answers."""

import base64
import datetime
import gzip
import hashlib
import hmac
import json
import os
import re
import select
import socket
import ssl
import struct
import sys
import time
import urllib.parse
import zlib

PART, P, SEEN = sys.argv[1], json.load(open(sys.argv[2])), open(sys.argv[3], "ab", buffering=0)
KEY = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
OTHER = (P["other"]["key"], P["other"]["secret"])
EMPTY = hashlib.sha256(b"").hexdigest()
LIMIT = 8
# What refusals may be.
DENIED, BAD, NONE = {"AccessDenied"}, {"InvalidRequest", "InvalidArgument"}, {"NoSuchKey"}
ANY = DENIED | BAD | {"MalformedXML", "BadDigest", "EntityTooLarge", "MissingContentLength", "MethodNotAllowed", "NotImplemented", "NoSuchUpload", "IncompleteBody", "KeyTooLongError"}
STATUS = {"AccessDenied": 403, "InvalidRequest": 400, "InvalidArgument": 400, "MalformedXML": 400, "BadDigest": 400, "EntityTooLarge": 400, "MissingContentLength": 411,
          "MethodNotAllowed": 405, "NotImplemented": 501, "NoSuchUpload": 404, "NoSuchKey": 404, "IncompleteBody": 400, "KeyTooLongError": 400}


# --- Signing ------------------------------------------------------------------------------------------------------------

def mac(key, text):
    return hmac.new(key, text.encode() if isinstance(text, str) else text, hashlib.sha256).digest()


def stamp(skew=0):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=skew)).strftime("%Y%m%dT%H%M%SZ")


def signing_key(secret, day, region="auto"):
    return mac(mac(mac(mac(b"AWS4" + secret.encode(), day), region), "s3"), "aws4_request")


def canonical_query(query):
    pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
    unquote = lambda text: urllib.parse.quote(urllib.parse.unquote_to_bytes(text), safe="-_.~")
    return "&".join("=".join(pair) for pair in sorted((unquote(name), unquote(value)) for name, value in pairs))


def signature(key, method, path, query, headers, signed, payload, at, region="auto"):
    """By lower-case headers; those named in `signed` count."""
    lines = "".join(f"{name}:{' '.join(str(headers.get(name, '')).split())}\n" for name in signed)
    canonical = f"{method}\n{path}\n{canonical_query(query)}\n{lines}\n{';'.join(signed)}\n{payload}"
    scope = f"{at[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode('utf-8', 'surrogateescape')).hexdigest()}"
    return scope, mac(signing_key(key[1], at[:8], region), text).hex()


class Request:
    """A request as bytes, signed as well as its parts let it be."""

    def __init__(self, target, method, path, query="", headers=(), body=b"", key=KEY, skew=0, payload=None, signed=None, host=None, length=True, sign=True, region="auto"):
        self.target, self.body = target, body
        host = host if host is not None else target["host"] + (f":{target['port']}" if target["port"] not in (80, 443) else "")
        headers = list(headers.items() if isinstance(headers, dict) else headers)
        own = {"host": host}
        self.at = stamp(skew)
        if sign:
            own |= {"x-amz-date": self.at, "x-amz-content-sha256": payload or hashlib.sha256(body).hexdigest()}
        known = own | {name.lower(): value for name, value in headers}
        self.names = sorted(known) if signed is None else signed
        self.signature = None
        if sign:
            scope, self.signature = signature(key, method, path, query, known, self.names, known["x-amz-content-sha256"], self.at, region)
            own["authorization"] = f"AWS4-HMAC-SHA256 Credential={key[0]}/{scope}, SignedHeaders={';'.join(self.names)}, Signature={self.signature}"
        if length and (body or method in ("PUT", "POST")):
            own["content-length"] = str(len(body))
        lines = [f"{method} {path}{'?' + query if query else ''} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in [*own.items(), *((name, value) for name, value in headers if name.lower() not in ("host", "x-amz-date", "x-amz-content-sha256"))]]
        self.head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")

    def bytes(self):
        return self.head + self.body

    def edited(self, old, new):
        """With one replacement in the head."""
        old, new = (text.encode() if isinstance(text, str) else text for text in (old, new))
        assert old in self.head, (old, self.head)
        self.head = self.head.replace(old, new, 1)
        return self


def presigned(target, method, path, query="", expires=60, key=KEY, skew=0, signed=("host",), headers=None, **replaced):
    host = target["host"] + (f":{target['port']}" if target["port"] not in (80, 443) else "")
    at = stamp(skew)
    parts = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"{key[0]}/{at[:8]}/auto/s3/aws4_request", "X-Amz-Date": at, "X-Amz-Expires": str(expires),
             "X-Amz-SignedHeaders": ";".join(signed)} | {name.replace("_", "-"): value for name, value in replaced.items()}
    query = "&".join([*filter(None, [query]), *(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in parts.items())])
    _, sig = signature(key, method, path, query, {"host": host} | (headers or {}), list(signed), "UNSIGNED-PAYLOAD", at)
    return f"{query}&X-Amz-Signature={sig}"


def plain(target, method, path, query="", headers=(), body=b""):
    return Request(target, method, path, query, headers, body, sign=False)


# --- Sending ------------------------------------------------------------------------------------------------------------

CONTEXT = ssl.create_default_context()


def connect(target, timeout=LIMIT):
    connection = socket.create_connection((target.get("address") or target["host"], target["port"]), timeout)
    return CONTEXT.wrap_socket(connection, server_hostname=target["host"]) if target.get("tls") else connection


def read_all(connection, seconds=LIMIT, enough=None):
    """What comes until the other side ends, or enough did."""
    found, limit = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < limit:
            connection.settimeout(max(0.01, limit - time.monotonic()))
            piece = connection.recv(65536)
            if not piece:
                return found, True
            found += piece
            if enough and enough(found):
                return found, False
    except TimeoutError:
        pass
    except OSError:
        return found, True
    finally:
        SEEN.write(found + b"\n")
    return found, False


class Answer:
    def __init__(self, raw, is_head=False):
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3})( .*)?", lines[0])
        self.status = int(match[1]) if match else None
        self.headers = dict((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
        self.rest, self.body = b"", rest
        if self.status and self.headers.get("transfer-encoding") == "chunked":
            body, more = b"", rest
            while True:
                size, _, more = more.partition(b"\r\n")
                length = int(size or b"0", 16)
                body, more = body + more[:length], more[length + 2:]
                if not length:
                    break
            self.body, self.rest = body, more
        elif self.status:
            length = 0 if is_head or self.status in (204, 304) else int(self.headers.get("content-length", len(rest)))
            self.body, self.rest = rest[:length], rest[length:]
        self.complete = bool(self.status) and (is_head or len(self.body) >= int(self.headers.get("content-length", 0)))
        text = self.body.decode(errors="replace")
        find = lambda name: (re.search(f"<{name}>([^<]*)</{name}>", text) or [None, None])[1]
        self.code, self.message, self.told_id = find("Code"), find("Message"), find("RequestId")
        self.id = self.headers.get("x-amz-request-id")


def whole(raw):
    """Whether an answer is complete."""
    if b"\r\n\r\n" not in raw or raw.startswith(b"HTTP/1.1 100"):
        return False
    answer = Answer(raw)
    return answer.status in (204, 304) or ("content-length" in answer.headers and answer.complete)


def send(request, seconds=LIMIT, **more):
    """Sends a request, and gives its answer."""
    data = request.bytes() if isinstance(request, Request) else request[1]
    target = request.target if isinstance(request, Request) else request[0]
    try:
        with connect(target) as connection:
            try:
                connection.sendall(data)
            except OSError:
                # What was answered before all of it was sent is there to be read all the same.
                pass
            raw, _ = read_all(connection, seconds, (lambda raw: b"\r\n\r\n" in raw) if data.startswith(b"HEAD ") else whole)
    except OSError as error:
        return Answer(f"broke: {type(error).__name__}: {error}".encode())
    while raw.startswith(b"HTTP/1.1 100"):
        raw = raw.partition(b"\r\n\r\n")[2]
    return Answer(raw, is_head=data.startswith(b"HEAD "))


def tell(name, ok, why="", **more):
    print(json.dumps({"name": name, "ok": bool(ok), "why": str(why)[:700], **more}), flush=True)


def refuse(name, request, codes=ANY, seconds=LIMIT, upstream=False, audited=True):
    """An attack that must be answered with an error document of one of these codes. `upstream`: the store may be asked about it."""
    begun = time.time()
    answer = send(request, seconds)
    is_head = (request.head if isinstance(request, Request) else request[1]).startswith(b"HEAD ")
    if is_head:
        ok = answer.status in {STATUS[code] for code in codes} and not answer.body
    else:
        ok = answer.code in codes and answer.status == STATUS[answer.code] and answer.message and answer.told_id == answer.id
    tell(name, ok, f"{answer.status} {answer.code} {answer.message} {answer.headers} {answer.body[:300]!r}", id=answer.id, audited=audited, at=[begun, time.time()], upstream=upstream,
         rule=f"{answer.status} {answer.code}: {answer.message}")
    return answer


def passes(name, request, status=200, check=lambda answer: True, seconds=LIMIT):
    """What is allowed, and shows nothing that is not."""
    answer = send(request, seconds)
    tell(name, answer.status == status and check(answer), f"{answer.status} {answer.headers} {answer.body[:600]!r}", id=answer.id, audited=False, upstream=True)
    return answer


def quoted(key):
    return urllib.parse.quote(key, safe="/-_.~")


def at(target, key):
    return f"{target['base']}/{key}"


TARGETS = {target["name"]: target for target in P["targets"]}
