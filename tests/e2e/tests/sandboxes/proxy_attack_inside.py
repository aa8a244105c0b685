"""Attacks on the credential proxy from inside a sandbox: raw bytes, signed by the sandbox's own dummy key where that helps.

    proxy_attack_inside.py PART PARAMETERS SEEN

Prints a line of JSON for each attack: what was tried, what was to come of it, what did. All that came back is appended to SEEN,
so that it can be searched for what must not be known here. Only the standard library.
"""

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


# --- Paths --------------------------------------------------------------------------------------------------------------

def paths():
    outside = {
        "a key outside": "database/x", "the prefix itself": "data", "no boundary": "data2/x", "another case": "Data/x", "the first letter encoded": "%64atabase/x",
        "a slash before": "/data/x", "two slashes before": "//database/x", "an encoded slash before": "%2Fdata/x", "a dot at the end of the prefix": "data./x", "dots at the end": "data../x",
        "a space before": "%20data/x", "full-width letters": "%EF%BD%84ata/x", "a combining mark": "data%CC%81/x", "a soft hyphen": "da%C2%ADta/x", "a zero-width space": "data%E2%80%8B/x",
        "a full-width slash": "data%EF%BC%8Fx", "a division slash": "data%E2%88%95x", "other": "other/x", "an upload of the store": ".uploads/x", "the store's own": ".sandpail/x", "a tab": "data%09/x",
        "a slash encoded twice": "data%252Fx", "a backslash": "data%5Cx", "a newline": "data%0A/x", "half of the prefix": "dat/x", "a parameter": "data;/x",
    }
    refused = {
        "..": "data/../database/x", ".. encoded": "data/%2e%2e/database/x", ".. half encoded": "data/.%2E/database/x", ".. and slash encoded": "data/..%2fdatabase/x",
        "all encoded": "data%2f%2e%2e%2fdatabase%2fx", "encoded twice": "data/%252e%252e/database/x", "slash encoded twice": "data/..%252fdatabase/x", "thrice": "data/%25252e%25252e/../database/x",
        "slashes and ..": "data//../database/x", ".": "data/./x", ". encoded": "data/%2e/x", "backslashes": "data/..%5cdatabase%5cx", "backslashes before": "data%5c..%5cdatabase", "a leading ..": "../my/database/x",
        "a trailing ..": "data/x/..", "a trailing .. encoded": "data/x/%2e%2e", "NUL": "data/x%00", "NUL before ..": "data/%00/../x", "overlong dots": "data/%c0%ae%c0%ae/database/x",
        "overlong slash": "data/..%c0%afdatabase/x", "three byte overlong": "data/%e0%80%ae%e0%80%ae/database/x", "surrogates": "data/%ed%a0%80x", "invalid UTF-8": "data/%ff", "half an escape": "data/%2",
        "no escape": "data/%zz", "% alone": "data/%", "too long": "data/" + "k" * 1020, "too long when decoded": "data/" + "%C3%A9" * 600, "UTF-16 escapes": "data/%u002e%u002e/database/x",
    }
    harmless = {
        "full-width dots": "data/%EF%BC%8E%EF%BC%8E/database/x", "a two dot leader": "data/%E2%80%A5/database/x", "three dots": "data/.../database/x", "a path parameter": "data/..;/database/x",
        "NFD": "data/e%CC%81-%CC%81", "a plus": "data/a+b", "empty parts": "data//database/x", "like the mount": "data/data/database/x",
        "a line for the log": "data/%0A2001-01-01T00:00:00.000000Z%20%20INFO%20sandpail::audit:%20forged%1B[31m",
    }
    for name in P["path_targets"]:
        target = TARGETS[name]
        for what, key in outside.items():
            for method, body in (("GET", b""), ("PUT", b"overwritten"), ("DELETE", b"")):
                refuse(f"{name}: {method} {what}", Request(target, method, at(target, key), body=body), DENIED)
            if target["name"] != "virtual":
                refuse(f"{name}: HEAD {what}", Request(target, "HEAD", at(target, key)), DENIED | NONE)
        for what, key in refused.items():
            for method, body in (("GET", b""), ("PUT", b"overwritten")):
                refuse(f"{name}: {method} {what}", Request(target, method, at(target, key), body=body), BAD | DENIED | {"EntityTooLarge"})
        for what, key in harmless.items():
            passes(f"{name}: {what}", Request(target, "GET", at(target, key)), 404, lambda answer: answer.code == "NoSuchKey")
        if name == P["path_targets"][0]:
            for what, line in {"backslashes": "data\\..\\database\\x", "raw UTF-8": "data/é", "a fragment": "data/x#/../../database/x", "a space": "data/x y", "a brace": "data/{x}", "a quote": 'data/"x"', "a caret": "data/^"}.items():
                refuse(f"{name}: raw {what}", Request(target, "GET", at(target, line)), BAD)
    relative = TARGETS["relative"]
    for what, key in {"..": "../database/x", "encoded": "%2e%2e%2fdatabase/x", "encoded twice": "%252e%252e/database/x", "backslash": "..%5cdatabase", "in the binding": "../MY_BUCKET/x"}.items():
        refuse(f"relative: {what}", Request(relative, "GET", at(relative, key)), BAD)
    passes("relative: a slash before stays below", Request(relative, "GET", at(relative, "/database/x")), 404)
    passes("relative: its own key is another below", Request(relative, "GET", at(relative, "database/x")), 404)
    for what, path in {"the bucket encoded": f"/%2e%2e{relative['base']}/x", "another bucket": "/SECOND/data/x", "a real name": "/second/data/x", "no bucket": "//data/x", "an id of another sandbox": f"/{P['other']['id']}/other/x",
                       "a mount that is gone": f"/{P['gone']}/x"}.items():
        refuse(f"relative: {what}", Request(relative, "GET", path), DENIED | BAD)
    internal = TARGETS["by id"]
    identity = internal["base"].split("/")[1]
    for what, path in {"another sandbox's mount": f"/{P['other']['id']}/{P['other']['bucket']}/other/x", "a mount that is gone": f"/{P['gone']}/{internal['bucket']}/data/x", "no mount": f"/nosuchmount/{internal['bucket']}/data/x",
                       "another bucket of a mount": f"/{identity}/second/data/x", "another mount's bucket": f"/{identity}/{P['remote_bucket']}/data/x", "an empty id": f"//{internal['bucket']}/data/x", "upper case": f"/{identity.upper()}/{internal['bucket']}/data/x",
                       ".. as id": f"/../{internal['bucket']}/data/x", ".. behind the id": f"/{identity}/../{P['other']['id']}/{P['other']['bucket']}/other/x", "encoded slash in the id": f"/{identity}%2F{internal['bucket']}/database/x"}.items():
        refuse(f"by id: {what}", Request(internal, "GET", path), DENIED | BAD)
    for what, host in {"another sandbox's mount": f"{P['other']['id']}.s3-credential-proxy.internal", "a mount that is gone": f"{P['gone']}.s3-credential-proxy.internal", "another bucket": "second.s3.internal",
                       "nested": f"x.{identity}.s3-credential-proxy.internal", "the store's address": "127.0.0.1"}.items():
        refuse(f"Host: {what}", Request({**internal, "address": internal["host"]}, "GET", f"/{internal['bucket']}/data/x", host=host), DENIED | BAD)


# --- Lists --------------------------------------------------------------------------------------------------------------

def listed(answer):
    text = answer.body.decode(errors="replace")
    return [urllib.parse.unquote(key) for key in re.findall(r"<Key>([^<]*)</Key>", text) + re.findall(r"<CommonPrefixes><Prefix>([^<]*)</Prefix>", text)]


def lists():
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        base, prefixes = target["base"], tuple(target["prefixes"])
        inside = lambda answer: listed(answer) and all(key.startswith(prefixes) for key in listed(answer)) and b"Owner" not in answer.body
        inside_or_none = lambda answer: all(key.startswith(prefixes) for key in listed(answer)) and b"Owner" not in answer.body
        ask = lambda query, **more: Request(target, "GET", base, query, **more)
        for what, query in {"no prefix": "list-type=2", "no prefix, version 1": "", "an empty prefix": "list-type=2&prefix=", "half a prefix": "list-type=2&prefix=d", "without boundary": "list-type=2&prefix=data", "owners": "list-type=2&fetch-owner=true",
                            "a delimiter": "list-type=2&delimiter=%2F", "a delimiter in the prefix": "list-type=2&delimiter=a", "a delimiter across the prefix": "list-type=2&delimiter=ta%2F", "encoded": "list-type=2&encoding-type=url",
                            "before the prefix": "list-type=2&start-after=a", "a marker before": "marker=a", "its own": "list-type=2&prefix=data%2F", "a trailing slash": "list-type=2&prefix=data/", "small pages": "list-type=2&max-keys=1"}.items():
            passes(f"{name}: list, {what}", ask(query), check=inside)
        passes(f"{name}: a list with a slash behind the bucket", Request(target, "GET", base + "/", "list-type=2"), check=inside)
        for what, query in {"behind the prefix": "list-type=2&start-after=datab", "a marker behind": "marker=datab", "a marker between": "marker=data0", "a part of ..": "list-type=2&prefix=data%2F..", "nothing": "list-type=2&prefix=data%2Fnone&delimiter=%2F",
                            "no keys": "list-type=2&max-keys=0", "uploads": "uploads"}.items():
            passes(f"{name}: list, {what}", ask(query), check=inside_or_none)
        for what, query in {"uploads with a marker": "uploads&key-marker=a", "uploads behind": f"uploads&key-marker=database%2Fup&upload-id-marker={quoted(P['uploads'].get(name, 'x'))}"}.items():
            answer = send(ask(query))
            # SeaweedFS does not do this.
            tell(f"{name}: list, {what}", answer.status in (200, 501) and inside_or_none(answer), answer.body[:600])
        for what, query in {"a foreign prefix": "list-type=2&prefix=database%2F", "a foreign prefix, version 1": "prefix=database%2F", "without slash": "list-type=2&prefix=database", "another case": "list-type=2&prefix=DATA%2F", "a slash": "list-type=2&prefix=%2F",
                            "a slash before": "list-type=2&prefix=%2Fdata%2F", "..": "list-type=2&prefix=data%2F..%2F", ".. encoded twice": "list-type=2&prefix=data%2F%252e%252e%2F", "the store's uploads": "list-type=2&prefix=.uploads%2F",
                            "foreign uploads": "uploads&prefix=database%2F", "two prefixes": "list-type=2&prefix=data%2F&prefix=database%2F", "two prefixes, one encoded": "list-type=2&prefix=data%2F&%70refix=database%2F", "a prefix of another case": "list-type=2&Prefix=database%2F",
                            "version 3": "list-type=3", "two versions": "list-type=2&list-type=1", "uploads and objects": "list-type=2&uploads", "versions": "versions", "versions and objects": "list-type=2&versions", "a version marker": "version-id-marker=1&key-marker=a",
                            "negative pages": "list-type=2&max-keys=-1", "endless pages": "list-type=2&max-keys=99999999999999999999", "another encoding": "list-type=2&encoding-type=base64", "NUL": "list-type=2&prefix=data%2F%00", "a token": "list-type=2&continuation-token=1", "no token": "list-type=2&continuation-token=",
                            "a marker of version 2": "list-type=2&marker=a", "a token of version 1": "continuation-token=x", "a long delimiter": "list-type=2&delimiter=" + "d" * 3000, "a filter": "list-type=2&prefix=data%2F&glob=*", "metadata": "list-type=2&metadata=true", "many parameters": "list-type=2&" + "&".join(f"p{n}=1" for n in range(80)),
                            "an unfinished escape": "list-type=2&prefix=data%2", "invalid UTF-8": "list-type=2&prefix=%ff"}.items():
            refuse(f"{name}: list, {what}", ask(query))
        first = send(ask("list-type=2&prefix=data%2F&max-keys=1"))
        token = (re.search(r"<NextContinuationToken>([^<]+)<", first.body.decode()) or [None, ""])[1].replace("&amp;", "&")
        tell(f"{name}: a list goes on", token, first.body[:500])
        passes(f"{name}: its own token", ask(f"list-type=2&prefix=data%2F&max-keys=1&continuation-token={urllib.parse.quote(token, safe='')}"), check=inside)
        for what, query in {"of another prefix": f"list-type=2&prefix=data%2Fsub&continuation-token={{}}", "with a delimiter": "list-type=2&prefix=data%2F&delimiter=%2F&continuation-token={}", "changed": "list-type=2&prefix=data%2F&continuation-token={}x"}.items():
            refuse(f"{name}: a token {what}", ask(query.format(urllib.parse.quote(token, safe=""))), BAD)
        other = TARGETS["remote" if name == "embedded" else "embedded"]
        refuse(f"{name}: a token of another mount", Request(other, "GET", other["base"], f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(token, safe='')}"), BAD)
        refuse(f"{name}: a token of another sandbox", ask(f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(P['other']['token'], safe='')}"), BAD)
        refuse(f"{name}: the store's own token", ask(f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(token[32:] or 'x', safe='')}"), BAD)
    for host in ("s3.internal", "r2.internal"):
        target = {"host": host, "port": 80}
        allowed = set(P["buckets"])
        passes(f"all buckets at {host}", Request(target, "GET", "/"), check=lambda answer: set(re.findall(r"<Name>([^<]*)</Name>", answer.body.decode())) <= allowed)
        for what, query in {"by prefix": "prefix=s", "by region": "bucket-region=x", "by token": "continuation-token=x"}.items():
            refuse(f"all buckets at {host}, {what}", Request(target, "GET", "/", query))
    relative = TARGETS["relative"]
    for what, query in {"all": "list-type=2", "a foreign name": "list-type=2&prefix=database%2F", "uploads": "uploads"}.items():
        passes(f"relative: list, {what}", Request(relative, "GET", relative["base"], query), check=lambda answer: not any(key.startswith(("data", "ro/", "other", "Data")) and key not in P["relative_keys"] for key in listed(answer)))
    refuse("relative: list, ..", Request(relative, "GET", relative["base"], "list-type=2&prefix=..%2F"))
    read_only = TARGETS["read-only"]
    passes("read-only: list", Request(read_only, "GET", read_only["base"], "list-type=2&prefix=ro%2F"), check=lambda answer: listed(answer) == ["ro/x"])


# --- Copies -------------------------------------------------------------------------------------------------------------

def copies():
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        bucket, path = target["bucket"], at(target, "data/copied")
        sources = {
            "outside": f"/{bucket}/database/x", "without slash": f"{bucket}/database/x", "the prefix itself": f"{bucket}/data", "no boundary": f"{bucket}/data2/x", "..": f"{bucket}/data/../database/x", ".. encoded": f"{bucket}/data/%2e%2e/database/x",
            ".. with encoded slashes": f"{bucket}/data%2F..%2Fdatabase%2Fx", "all encoded": f"{bucket}%2Fdatabase%2Fx", "all encoded, slash before": f"%2F{bucket}%2Fdatabase%2Fx", "encoded twice": f"{bucket}/data/%252e%252e/database/x", "one letter encoded": f"{bucket}/%64atabase/x",
            "another bucket": "second/data/x", "another bucket, slash": "/second/data/x", "a bucket of another sandbox": f"{P['other']['bucket']}/other/x", "a foreign bucket": f"{P['foreign_bucket']}/data/x", "an ARN": f"arn:aws:s3:::{bucket}/database/x",
            "an access point": "arn:aws:s3:us-east-1:123456789012:accesspoint/point/object/database/x", "outposts": "arn:aws:s3-outposts:us-east-1:123456789012:outpost/o/object/database/x", "a version": f"{bucket}/data/x?versionId=1", "no version": f"{bucket}/data/x?versionId=null", "an empty query": f"{bucket}/data/x?",
            "another query": f"{bucket}/data/x?partNumber=1", "two slashes": f"//{bucket}/data/x", "a slash in the key": f"{bucket}//data/x", "only a bucket": bucket, "only a bucket and slash": f"{bucket}/", "nothing": "", "a URL": f"http://s3.internal/{bucket}/database/x", "a host": f"s3.internal/{bucket}/database/x",
            "backslashes": f"{bucket}\\database\\x", "NUL": f"{bucket}/data/x%00", "invalid UTF-8": f"{bucket}/data/%ff", "overlong": f"{bucket}/data/%c0%ae%c0%ae/database/x", "a read-only mount": f"{bucket}/ro/x", "two foreign sources": f"{bucket}/database/x, {bucket}/data/x",
            "another case": f"{bucket.upper()}/database/x", "a mount's id": f"{P['other']['id']}/other/x",
        }
        for what, source in sources.items():
            refuse(f"{name}: copy of {what}", Request(target, "PUT", path, headers={"x-amz-copy-source": source}), DENIED | BAD)
        refuse(f"{name}: copy by Google's header", Request(target, "PUT", path, headers={"x-goog-copy-source": f"{bucket}/database/x"}), DENIED)
        refuse(f"{name}: two kinds of sources", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x", "x-goog-copy-source": f"{bucket}/database/x"}), BAD)
        one = Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x"})
        refuse(f"{name}: the source given twice", one.edited("x-amz-copy-source: ", f"x-amz-copy-source: {bucket}/database/x\r\nX-Amz-Copy-Source: "), BAD | DENIED)
        for method in ("GET", "DELETE", "POST"):
            refuse(f"{name}: {method} with a copy source", Request(target, method, path, headers={"x-amz-copy-source": f"{bucket}/data/x"}))
        refuse(f"{name}: a copy source in a presigned URL", plain(target, "PUT", path, presigned(target, "PUT", path, **{"X_Amz_Copy_Source": f"{bucket}/database/x"})), DENIED | BAD)
        refuse(f"{name}: a copy to outside", Request(target, "PUT", at(target, "database/x"), headers={"x-amz-copy-source": f"{bucket}/data/x"}), DENIED)
        refuse(f"{name}: a copy with a body", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x"}, body=b"x"), BAD)
        refuse(f"{name}: a copy that sets tags", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x", "x-amz-tagging-directive": "REPLACE", "x-amz-tagging": "a=b"}), DENIED)
        passes(f"{name}: nothing was copied", Request(target, "GET", path), 404)
        made = passes(f"{name}: an upload for copies", Request(target, "POST", at(target, "data/parts"), "uploads"))
        upload = (re.search(r"<UploadId>([^<]+)<", made.body.decode()) or [None, ""])[1]
        query = f"partNumber=1&uploadId={urllib.parse.quote(upload, safe='')}"
        for what, source in sources.items():
            refuse(f"{name}: part copy of {what}", Request(target, "PUT", at(target, "data/parts"), query, {"x-amz-copy-source": source}), DENIED | BAD)
        refuse(f"{name}: part copy by Google's header", Request(target, "PUT", at(target, "data/parts"), query, {"x-goog-copy-source": f"{bucket}/database/x"}), DENIED)
        passes(f"{name}: no part was made", Request(target, "GET", at(target, "data/parts"), f"uploadId={urllib.parse.quote(upload, safe='')}"), check=lambda answer: b"<Part>" not in answer.body)
        passes(f"{name}: the upload ends", Request(target, "DELETE", at(target, "data/parts"), f"uploadId={urllib.parse.quote(upload, safe='')}"), 204)
    read_only = TARGETS["read-only"]
    refuse("a copy into a read-only mount", Request(read_only, "PUT", at(read_only, "ro/y"), headers={"x-amz-copy-source": f"{read_only['bucket']}/ro/x"}), DENIED)


# --- DeleteObjects ------------------------------------------------------------------------------------------------------

SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def deletes():
    one = lambda key: f"<Object><Key>{key}</Key></Object>"
    wrap = lambda inner, root="Delete", more=f' xmlns="{SPACE}"': f"<{root}{more}>{inner}</{root}>"
    laughs = "<!DOCTYPE d [" + "".join(f'<!ENTITY e{n} "{(f"&e{n - 1};" if n else "ha") * 10}">' for n in range(9)) + "]>"
    bodies = {
        "a foreign key": wrap(one("database/x")), "a foreign key among own": wrap(one("data/gone") + one("database/x")), "a key of the read-only mount": wrap(one("data/gone") + one("ro/x")), "..": wrap(one("data/../database/x")), ".. twice encoded": wrap(one("data/%2e%2e/database/x")),
        "the prefix itself": wrap(one("data")), "a slash before": wrap(one("/data/x")), "a reference": wrap(one("&#x64;atabase/x")), "CDATA": wrap(one("<![CDATA[database/x]]>")), "a comment in a key": wrap(one("data<!-- -->base/x")), "two keys": wrap("<Object><Key>data/gone</Key><Key>database/x</Key></Object>"),
        "a key in a key": wrap("<Object><Key>data/<Key>database/x</Key></Key></Object>"), "objects in objects": wrap(f"<Object><Key>data/gone</Key>{one('database/x')}</Object>"), "an entity": f'<!DOCTYPE d [<!ENTITY k "database/x">]>{wrap(one("&k;"))}', "an outer entity": f'<!DOCTYPE d [<!ENTITY k SYSTEM "file:///etc/passwd">]>{wrap(one("data/&k;"))}',
        "a URL entity": f'<!DOCTYPE d SYSTEM "http://169.254.169.254/x.dtd">{wrap(one("data/gone"))}', "a parameter entity": f'<!DOCTYPE d [<!ENTITY % p SYSTEM "http://127.0.0.1/"> %p;]>{wrap(one("data/gone"))}', "a billion laughs": f"{laughs}{wrap(one('data/&e8;'))}", "an unknown entity": wrap(one("data/&nbsp;")),
        "a version": wrap("<Object><Key>data/gone</Key><VersionId>null</VersionId></Object>"), "an ETag": wrap("<Object><Key>data/gone</Key><ETag>*</ETag></Object>"), "another namespace": wrap(one("data/gone"), more=' xmlns="urn:other"'), "a namespace on the key": wrap('<Object><Key xmlns="urn:x">data/gone</Key></Object>'),
        "prefixed names": f'<s:Delete xmlns:s="{SPACE}"><s:Object><s:Key>data/gone</s:Key></s:Object></s:Delete>', "another root": wrap(one("data/gone"), "DeleteAll"), "two documents": wrap(one("data/gone")) * 2, "an unknown element": wrap(one("data/gone") + "<Bypass>true</Bypass>"), "attributes": wrap('<Object a="b"><Key>data/gone</Key></Object>'),
        "nothing": "", "no objects": wrap(""), "an empty key": wrap(one("")), "no end": "<Delete>" + one("data/gone"), "text": wrap("x" + one("data/gone")), "1001 keys": wrap(one("data/gone") * 1001), "a long key": wrap(one("data/" + "k" * 1100)), "deep": "<a>" * 50_000, "JSON": '{"Objects":[{"Key":"database/x"}]}',
        "UTF-16": wrap(one("database/x")).encode("utf-16"), "UTF-7": b'<?xml version="1.0" encoding="UTF-7"?>' + wrap("+ADw-Object+AD4-").encode(), "invalid UTF-8": wrap(one("data/\udcff")).encode("utf-8", "surrogateescape"), "NUL": wrap(one("data/\0x")), "NUL by reference": wrap(one("data/&#0;x")),
        "too large": wrap(one("data/gone") + " " * (3 << 20)), "gzip": gzip.compress(wrap(one("database/x")).encode()), "a form": "Action=Delete&Key=database/x",
    }
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        for what, body in bodies.items():
            body = body.encode() if isinstance(body, str) else body
            md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
            refuse(f"{name}: delete many, {what}", Request(target, "POST", target["base"], "delete", {"content-md5": md5}, body))
        body = wrap(one("data/x")).encode()
        for what, headers in {"a wrong Content-MD5": {"content-md5": base64.b64encode(bytes(16)).decode()}, "no MD5": {"content-md5": "x"}, "a wrong checksum": {"x-amz-checksum-crc32": "AAAAAA=="}, "a wrong SHA-256": {"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()},
                              "a bypass": {"x-amz-bypass-governance-retention": "true"}, "MFA": {"x-amz-mfa": "1 2"}, "an owner": {"x-amz-expected-bucket-owner": "123456789012"}}.items():
            refuse(f"{name}: delete many with {what}", Request(target, "POST", target["base"], "delete", headers, body))
        refuse(f"{name}: delete many of another hash", Request(target, "POST", target["base"], "delete", body=body, payload=EMPTY), {"BadDigest"})
        refuse(f"{name}: delete many with a value", Request(target, "POST", target["base"], "delete=1", body=body))
        refuse(f"{name}: delete many on a key", Request(target, "POST", at(target, "data/x"), "delete", body=body))
        refuse(f"{name}: delete many twice", Request(target, "POST", target["base"], "delete&delete", body=body))
        passes(f"{name}: nothing was deleted", Request(target, "GET", at(target, "data/x")), check=lambda answer: answer.body == b"mine")
    relative = TARGETS["relative"]
    for key in ("../database/x", "/../database/x", "..\\database"):
        refuse(f"relative: delete many, {key}", Request(relative, "POST", relative["base"], "delete", body=wrap(one(key)).encode()))
    read_only = TARGETS["read-only by id"]
    refuse("read-only: delete many", Request(read_only, "POST", read_only["base"], "delete", body=wrap(one("ro/x")).encode()), DENIED)


# --- Multipart ----------------------------------------------------------------------------------------------------------

def multipart():
    complete = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag></Part></CompleteMultipartUpload>"
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        made = send(Request(target, "POST", at(target, "data/up"), "uploads"))
        own = (re.search(r"<UploadId>([^<]+)<", made.body.decode()) or [None, ""])[1]
        tell(f"{name}: an upload of its own", own, made.body)
        # `\0` would not even be one.
        foreign = {"of another key outside": P["uploads"].get(name), "of another mount": P["uploads"].get("other"), "made up": "0" * 32, "a path": "../../database", "a path, encoded": "..%2F..%2Fdatabase", "a path behind its own": f"{own}/../../database", "backslashes": f"{own}\\..\\..\\database", "an absolute path": "/database", "the directory": ".", "a long one": "u" * 5000, "a space": "a b", "empty": "", "a wildcard": "*", "a query": "x&versionId=1"}
        for what, upload in foreign.items():
            if upload is None:
                continue
            query = f"uploadId={urllib.parse.quote(upload, safe='')}"
            for operation, request in {
                "part": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}", body=b"evil part"), "part copy": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}", {"x-amz-copy-source": f"{target['bucket']}/data/x"}),
                "completion": Request(target, "POST", at(target, "data/up"), query, body=complete), "abort": Request(target, "DELETE", at(target, "data/up"), query), "parts": Request(target, "GET", at(target, "data/up"), query),
            }.items():
                refuse(f"{name}: {operation} of an upload {what}", request, {"NoSuchUpload"} | BAD, upstream=True)
        if P["uploads"].get(name):
            query = f"uploadId={urllib.parse.quote(P['uploads'][name], safe='')}"
            for operation, request in {"part": Request(target, "PUT", at(target, "database/up"), f"partNumber=1&{query}", body=b"evil part"), "completion": Request(target, "POST", at(target, "database/up"), query, body=complete), "abort": Request(target, "DELETE", at(target, "database/up"), query), "parts": Request(target, "GET", at(target, "database/up"), query)}.items():
                refuse(f"{name}: {operation} of the foreign upload by its own key", request, DENIED)
        query = f"uploadId={urllib.parse.quote(own, safe='')}"
        for operation, request in {"part": Request(target, "PUT", at(target, "data/up2"), f"partNumber=1&{query}", body=b"x"), "completion": Request(target, "POST", at(target, "data/up2"), query, body=complete), "abort": Request(target, "DELETE", at(target, "data/up2"), query), "parts": Request(target, "GET", at(target, "data/up2"), query)}.items():
            refuse(f"{name}: {operation} of its own upload by another key", request, {"NoSuchUpload"} | BAD, upstream=True)
        for what, request in {
            "part 0": Request(target, "PUT", at(target, "data/up"), f"partNumber=0&{query}", body=b"x"), "part 10001": Request(target, "PUT", at(target, "data/up"), f"partNumber=10001&{query}", body=b"x"), "part -1": Request(target, "PUT", at(target, "data/up"), f"partNumber=-1&{query}", body=b"x"),
            "no part": Request(target, "PUT", at(target, "data/up"), query, body=b"x"), "no upload": Request(target, "PUT", at(target, "data/up"), "partNumber=1", body=b"x"), "two ids": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}&uploadId=x", body=b"x"), "another case": Request(target, "PUT", at(target, "data/up"), "partNumber=1&uploadid=x", body=b"x"),
            "a completion with a key": Request(target, "POST", at(target, "data/up"), query, body=b"<CompleteMultipartUpload><Key>database/x</Key><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"), "a completion with entities": Request(target, "POST", at(target, "data/up"), query, body=b"<!DOCTYPE c [<!ENTITY e 'x'>]>" + complete),
            "another document": Request(target, "POST", at(target, "data/up"), query, body=b"<Delete><Object><Key>database/x</Key></Object></Delete>"), "a huge completion": Request(target, "POST", at(target, "data/up"), query, body=complete[:-26] + b" " * (5 << 20)), "uploads and an id": Request(target, "POST", at(target, "data/up"), f"uploads&{query}", body=b""),
            "a beginning outside": Request(target, "POST", at(target, "database/up3"), "uploads"), "a beginning with a body": Request(target, "POST", at(target, "data/up3"), "uploads", body=b"x"),
        }.items():
            refuse(f"{name}: {what}", request)
        passes(f"{name}: its upload is untouched", Request(target, "GET", at(target, "data/up"), query), check=lambda answer: b"<Part>" not in answer.body)
        passes(f"{name}: and ends", Request(target, "DELETE", at(target, "data/up"), query), 204)
    for target, key in ((TARGETS["read-only"], "ro/x"), (TARGETS["read-only by id"], "ro/x")):
        for method, query, body in (("PUT", "", b"x"), ("DELETE", "", b""), ("POST", "uploads", b""), ("PUT", "partNumber=1&uploadId=x", b"x"), ("POST", "uploadId=x", complete), ("DELETE", "uploadId=x", b"")):
            refuse(f"{target['name']}: {method} ?{query}", Request(target, method, at(target, key), query, body=body), DENIED)


# --- Subresources and headers -------------------------------------------------------------------------------------------

def subresources():
    names = ["accelerate", "acl", "analytics", "cors", "encryption", "intelligent-tiering", "inventory", "legal-hold", "lifecycle", "logging", "metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication", "requestPayment", "restore", "retention",
             "select&select-type=2", "session", "tagging", "torrent", "versioning", "versions", "website", "renameObject", "append", "versionId=null", "versionId=1", "x-foo", "policy&x-id=GetObject"]
    document = b"<AccessControlPolicy/>"
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        for query in names:
            for method, body in (("GET", b""), ("PUT", document), ("DELETE", b""), ("POST", document)):
                refuse(f"{name}: {method} bucket?{query}", Request(target, method, target["base"], query, body=body))
                refuse(f"{name}: {method} key?{query}", Request(target, method, at(target, "data/x"), query, body=body))
        for what, query in {"capitals": "ACL", "encoded": "%61cl", "twice": "acl&acl=", "twice, encoded": "acl&%61cl", "a value": "acl=x", "behind x-id": "x-id=GetObject&acl", "only x-id": "x-id=GetObjectAcl", "another x-id": "x-id=PutObject", "a semicolon": ";acl", "a space": "%20acl", "NUL": "acl%00", "an ampersand": "&&acl", "a plus": "+acl", "a slash": "acl/", "policy after list": "list-type=2&policy", "uploads with value": "uploads=1", "location with value": "location=1",
                            "attributes with value": "attributes=1", "part number": "partNumber=x", "expires": "response-expires=%0d%0aSet-Cookie:x"}.items():
            refuse(f"{name}: GET key?{query} ({what})", Request(target, "GET", at(target, "data/x"), query))
        for what, request in {
            "CreateBucket": Request(target, "PUT", target["base"]), "CreateBucket elsewhere": Request(target, "PUT", "/attacked"), "DeleteBucket": Request(target, "DELETE", target["base"]), "CreateBucket with a slash": Request(target, "PUT", target["base"] + "/"), "a form": Request(target, "POST", target["base"], headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\ndatabase/x\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nevil\r\n--b--\r\n"),
            "a form on a key": Request(target, "POST", at(target, "data/x"), headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b--\r\n"), "PATCH": Request(target, "PATCH", at(target, "data/x"), body=b"x"), "OPTIONS": Request(target, "OPTIONS", at(target, "data/x")), "POST of nothing": Request(target, "POST", at(target, "data/x")),
            "an unsigned form": plain(target, "POST", target["base"], headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b--\r\n"), "a body with GET": Request(target, "GET", at(target, "data/x"), body=b"x"), "a body with DELETE": Request(target, "DELETE", at(target, "data/x"), body=b"x"),
        }.items():
            refuse(f"{name}: {what}", request)
        for header, value in {"x-amz-acl": "public-read", "x-amz-grant-read": "uri=http://acs.amazonaws.com/groups/global/AllUsers", "x-amz-grant-full-control": "id=1", "x-amz-website-redirect-location": "http://169.254.169.254/", "x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00Z", "x-amz-object-lock-legal-hold": "ON",
                              "x-amz-bypass-governance-retention": "true", "x-amz-expected-bucket-owner": "123456789012", "x-amz-source-expected-bucket-owner": "1", "x-amz-request-payer": "requester", "x-amz-tagging": "a=b", "x-amz-mfa": "1 1", "x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k", "x-amz-server-side-encryption-customer-key": "a",
                              "x-amz-copy-source-server-side-encryption-customer-key": "a", "x-amz-write-offset-bytes": "1", "x-amz-rename-source": f"/{target['bucket']}/database/x", "x-amz-security-token": "token", "x-goog-acl": "publicRead", "x-goog-if-generation-match": "0", "x-goog-project-id": "1", "x-amz-fwd-status": "200"}.items():
            refuse(f"{name}: PUT with {header}", Request(target, "PUT", at(target, "data/marked"), headers={header: value}, body=b"x"))
        passes(f"{name}: none of these was made", Request(target, "GET", at(target, "data/marked")), 404)
        made = passes(f"{name}: headers that mean nothing are left out", Request(target, "PUT", at(target, "data/plain"), headers={"x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil", "forwarded": "for=1", "via": "1.1 x", "cookie": "a=b", "x-http-method-override": "DELETE", "x-original-url": "/database/x", "proxy-authorization": "x", "x-amz-acl": "private"}, body=b"plain"))
        passes(f"{name}: and the object is as it was sent", Request(target, "GET", at(target, "data/plain")), check=lambda answer: answer.body == b"plain" and not {"server", "via", "x-amz-id-2", "x-amz-version-id", "location"} & set(answer.headers))
        passes(f"{name}: away with it", Request(target, "DELETE", at(target, "data/plain")), 204)


# --- Signatures ---------------------------------------------------------------------------------------------------------

def chunked(parts, request, sign=True, end=b"\r\n", sizes=None):
    """A body in aws-chunked, whose chunks are signed in a chain."""
    previous, out = request.signature, b""
    key, scope = signing_key(KEY[1], request.at[:8]), f"{request.at[:8]}/auto/s3/aws4_request"
    for index, part in enumerate([*parts, b""]):
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{request.at}\n{scope}\n{previous}\n{EMPTY}\n{hashlib.sha256(part).hexdigest()}"
        previous = mac(key, text).hex()
        size = sizes[index] if sizes else f"{len(part):x}"
        out += f"{size};chunk-signature={previous if sign else '0' * 64}\r\n".encode() + part + (b"\r\n" if part else end)
    return out


def signatures():
    for name in ("embedded", "remote by host", "by id"):
        target = TARGETS[name]
        path = at(target, "data/x")
        get = lambda **more: Request(target, "GET", path, **more)
        day = stamp()[:8]
        for what, request in {
            "none": plain(target, "GET", path), "another sandbox's key": get(key=OTHER), "its id with our secret": get(key=(OTHER[0], KEY[1])), "our id with its secret": get(key=(KEY[0], OTHER[1])), "a wrong secret": get(key=(KEY[0], "wrong")), "an unknown id": get(key=("AKIAIOSFODNN7EXAMPLE", KEY[1])), "an empty id": get(key=("", KEY[1])), "lower case": get(key=(KEY[0].lower(), KEY[1])),
            "old": get(skew=-1000), "from the future": get(skew=1000), "no host signed": get(signed=["x-amz-content-sha256", "x-amz-date"]), "no date signed": get(signed=["host", "x-amz-content-sha256"]), "a header more": Request(target, "GET", path, signed=["host", "x-amz-content-sha256", "x-amz-date", "x-amz-meta-a"]), "unsorted": get(signed=["x-amz-date", "host", "x-amz-content-sha256"]),
            "doubled names": get(signed=["host", "host", "x-amz-content-sha256", "x-amz-date"]), "of another path": Request(target, "GET", at(target, "data/y")).edited("data/y", "data/x"), "of another method": Request(target, "GET", path).edited("GET ", "DELETE "), "a parameter more": get().edited(f"{path} ", f"{path}?partNumber=1 "), "an x-amz- header more": get().edited("\r\n\r\n", "\r\nx-amz-meta-a: b\r\n\r\n"),
            "version 2": plain(target, "GET", path, headers={"authorization": f"AWS {KEY[0]}:c2ln", "date": "x"}), "version 2 in the query": plain(target, "GET", path, f"AWSAccessKeyId={KEY[0]}&Expires=9999999999&Signature=c2ln"), "version 4A": get().edited("AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 "), "Basic": plain(target, "GET", path, headers={"authorization": "Basic eDp4"}), "Bearer": plain(target, "GET", path, headers={"authorization": "Bearer " + KEY[1]}),
            "a token": get(headers={"x-amz-security-token": "x"}), "a token in the query": Request(target, "GET", path, "X-Amz-Security-Token=x"), "no payload hash": Request(target, "GET", path, signed=["host", "x-amz-date"]).edited(f"x-amz-content-sha256: {EMPTY}\r\n", ""), "two of them": get().edited("authorization: ", "Authorization: AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=x\r\nauthorization: "),
            "two dates": get().edited("x-amz-date: ", f"x-amz-date: {stamp(-5000)}\r\nx-amz-date: "), "another service": get().edited("/s3/aws4_request", "/sts/aws4_request"), "another day": get().edited(f"/{day}/", "/20200101/"), "no fields": get().edited("Signature=", "Sig="), "fields twice": get().edited(", Signature=", f", Signature={'0' * 64}, Signature="), "an empty signature": Request(target, "GET", path, sign=False, headers={"x-amz-date": stamp(), "x-amz-content-sha256": EMPTY, "authorization": f"AWS4-HMAC-SHA256 Credential={KEY[0]}/{day}/auto/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="}),
            "Google's by our key": get().edited("AWS4-HMAC-SHA256 ", "GOOG4-HMAC-SHA256 "),
        }.items():
            refuse(f"{name}: signature, {what}", request, DENIED | BAD)
        good = presigned(target, "GET", path)
        passes(f"{name}: presigned by our key", plain(target, "GET", path, good), check=lambda answer: answer.body == b"mine")
        for what, request in {
            "for a foreign key": plain(target, "GET", at(target, "database/x"), presigned(target, "GET", at(target, "database/x"))), "for a foreign key, PUT": plain(target, "PUT", at(target, "database/x"), presigned(target, "PUT", at(target, "database/x")), body=b"evil"), "used for a foreign key": plain(target, "GET", at(target, "database/x"), good), "used for PUT": plain(target, "PUT", path, good, body=b"evil"), "used for DELETE": plain(target, "DELETE", path, good),
            "expired": plain(target, "GET", path, presigned(target, "GET", path, expires=1, skew=-10)), "0 seconds": plain(target, "GET", path, presigned(target, "GET", path, expires=0)), "8 days": plain(target, "GET", path, presigned(target, "GET", path, expires=691200)), "negative": plain(target, "GET", path, presigned(target, "GET", path, expires=-1)), "from the future": plain(target, "GET", path, presigned(target, "GET", path, skew=2000)),
            "by another sandbox": plain(target, "GET", path, presigned(target, "GET", path, key=OTHER)), "with a parameter more": plain(target, "GET", path, good + "&response-content-type=text/html"), "with acl": plain(target, "GET", path, presigned(target, "GET", path, "acl")), "with acl added": plain(target, "GET", path, good + "&acl"), "with a version": plain(target, "GET", path, presigned(target, "GET", path, "versionId=1")),
            "without host": plain(target, "GET", path, presigned(target, "GET", path, signed=("x-amz-date",), headers={"x-amz-date": "x"})), "signed headers that are not there": plain(target, "GET", path, presigned(target, "GET", path, signed=("host", "x-amz-acl"))), "a header that is not signed": plain(target, "GET", path, good, {"x-amz-acl": "public-read"}), "and signed by a header": Request(target, "GET", path, good), "and by another's header": Request(target, "GET", path, good, key=OTHER),
            "twice": plain(target, "GET", path, good + "&" + good), "in two cases": plain(target, "GET", path, good + "&x-amz-signature=0"), "with Google's too": plain(target, "GET", path, good + "&X-Goog-Signature=0"), "with version 2 too": plain(target, "GET", path, good + f"&AWSAccessKeyId={KEY[0]}&Signature=x"), "a changed date": plain(target, "GET", path, good.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")),
            "a grant in it": plain(target, "PUT", path, presigned(target, "PUT", path, **{"x_amz_grant_read": "id=1"}), body=b"evil"), "an acl in it": plain(target, "PUT", path, presigned(target, "PUT", path, **{"X_Amz_Acl": "public-read"}), body=b"evil"), "a list of all": plain(target, "GET", target["base"], presigned(target, "GET", target["base"], "list-type=2&prefix=database%2F")),
        }.items():
            refuse(f"{name}: presigned {what}", request, DENIED | BAD | {"NotImplemented"})
        streaming = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
        put = lambda payload=streaming, length=8, **more: Request(target, "PUT", at(target, "data/streamed"), headers={"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(length)} | more, payload=payload, length=False)

        def streamed(what, request, body, codes=ANY):
            request.head = request.head[:-2] + f"content-length: {len(body)}\r\n\r\n".encode()
            request.body = body
            refuse(f"{name}: streaming, {what}", request, codes)
        unsigned = lambda body, trailer="x-amz-checksum-crc32:AAAAAA==": f"{len(body):x}\r\n{body}\r\n0\r\n{trailer}\r\n\r\n".encode()
        trailing = {"payload": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-trailer": "x-amz-checksum-crc32"}
        crc = base64.b64encode(struct.pack(">I", zlib.crc32(b"evilevil"))).decode()
        request = put()
        streamed("wrong signatures", request, chunked([b"evil", b"evil"], request, sign=False))
        request = put()
        streamed("chunks in another order", request, chunked([b"evil", b"good"], request).replace(b"evil", b"good", 1))
        request = put(length=9)
        streamed("shorter than it says", request, chunked([b"evil", b"evil"], request))
        request = put(length=7)
        streamed("longer than it says", request, chunked([b"evil", b"evil"], request))
        request = put()
        streamed("cut off", request, chunked([b"evil", b"evil"], request)[:-120])
        request = put()
        streamed("bytes behind", request, chunked([b"evil", b"evil"], request) + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        request = put()
        streamed("a negative size", request, chunked([b"evil", b"evil"], request, sizes=["-4", "4", "0"]))
        request = put()
        streamed("a huge size", request, chunked([b"evil", b"evil"], request, sizes=["ffffffffffffffff", "4", "0"]))
        request = put()
        streamed("a plain body", request, b"evilevil")
        request = put(length="8.0")
        streamed("a length that is none", request, chunked([b"evil", b"evil"], request))
        streamed("a wrong trailer", put(**trailing), unsigned("evilevil"))
        streamed("no trailer", put(**trailing), b"8\r\nevilevil\r\n0\r\n\r\n")
        streamed("another trailer", put(**trailing), unsigned("evilevil", "x-amz-checksum-sha256:" + base64.b64encode(hashlib.sha256(b"evilevil").digest()).decode()))
        streamed("a header as trailer", put(**trailing), unsigned("evilevil", f"x-amz-checksum-crc32:{crc}\r\nx-amz-acl:public-read"))
        streamed("the trailer twice", put(**trailing), unsigned("evilevil", f"x-amz-checksum-crc32:{crc}\r\nx-amz-checksum-crc32:AAAAAA=="))
        streamed("a trailer that is no checksum", put(payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", **{"x-amz-trailer": "x-amz-copy-source"}), unsigned("evilevil"))
        streamed("an extension", put(**trailing), f"8;x=y\r\nevilevil\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n".encode())
        streamed("ECDSA", put(payload="STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), b"0\r\n\r\n")
        streamed("UNSIGNED of another kind", put(payload="STREAMING-UNSIGNED-PAYLOAD"), b"8\r\nevilevil\r\n0\r\n\r\n")
        refuse(f"{name}: another body than was signed", Request(target, "PUT", at(target, "data/streamed"), body=b"evilevil", payload=hashlib.sha256(b"goodgood").hexdigest()), {"BadDigest"})
        refuse(f"{name}: a hash that is none", Request(target, "PUT", at(target, "data/streamed"), body=b"evilevil", payload="e3b0"), BAD)
        passes(f"{name}: none of these was stored", Request(target, "GET", at(target, "data/streamed")), 404)


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
                only_refused(f"{name}: {what}", target, data, lasts=what in LASTING)
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
