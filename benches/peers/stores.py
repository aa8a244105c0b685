"""Where the files of a row lie, seen past the mounts: a bucket over S3, or a directory."""

import concurrent.futures
import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import shutil
import threading
import urllib.parse
import xml.etree.ElementTree

from common import ACCESS_KEY, BLOCK_LEN, SECRET_KEY, Data, Failure, expect, small_bytes


class Store:
    """What rows prepare with and check with. `put`, `get`, `len_of`, `keys` and `empty` are each store's own."""

    # Requests at the same time while preparing.
    at_once = 8

    def put_large(self, key, length):
        """A file of numbered pages."""
        if self.len_of(key) != length:
            self.put(key, Data(key).blocks(length), length=length)

    def put_small(self, directory, count):
        if self.count(f"{directory}/file-") == count:
            return
        self.put(f"{directory}/", directory=True)
        self.put_many((f"{directory}/file-{n}", small_bytes(n)) for n in range(count))

    def put_many(self, files, plain=False):
        with concurrent.futures.ThreadPoolExecutor(self.at_once) as pool:
            for _ in pool.map(lambda file: self.put(*file, plain=plain), files):
                pass

    def count(self, prefix):
        return sum(1 for _ in self.keys(prefix))

    def expect_len(self, key, length):
        found = self.len_of(key)
        expect(found == length, f"{key} has {found} bytes in the bucket instead of {length}")

    def expect_large(self, key, seed, length):
        self.expect_len(key, length)
        data = Data(seed)
        for offset in {0, length // 2 // BLOCK_LEN * BLOCK_LEN, length - BLOCK_LEN}:
            expect(self.get(key, offset, BLOCK_LEN) == data.block(offset // BLOCK_LEN), f"{key} differs at {offset}")

    def expect_count(self, prefix, count):
        found = self.count(prefix)
        expect(found == count, f"{found} keys begin with {prefix} in the bucket instead of {count}")


class Bucket(Store):
    """Signs with SigV4 and leaves the payload out of the signature."""

    def __init__(self, port, name):
        self.port, self.name, self.local = port, name, threading.local()

    def request(self, method, key="", query=None, headers=None, body=None, accept=(200, 204, 206)):
        # What is made while it is sent can be sent once only: on a fresh connection, which no server has left.
        is_stream = body is not None and not isinstance(body, bytes)
        if is_stream:
            self.local.connection = None
        for last in (is_stream, True):
            if getattr(self.local, "connection", None) is None:
                self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            try:
                path, signed = self.sign(method, key, query or {}, headers or {})
                self.local.connection.request(method, path, body, signed)
                response = self.local.connection.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException):
                # The server closes connections that were idle.
                self.local.connection.close()
                self.local.connection = None
                if last:
                    raise
        if response.status not in accept:
            raise Failure(f"{method} {key}: status {response.status} {content[:300]!r}")
        return response, content

    def sign(self, method, key, query, headers):
        now = datetime.datetime.now(datetime.timezone.utc)
        day, stamp = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        headers = {name.lower(): value for name, value in headers.items()}
        headers |= {"host": f"127.0.0.1:{self.port}", "x-amz-date": stamp, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
        path = urllib.parse.quote(f"/{self.name}/{key}" if key else f"/{self.name}")
        quoted = [(urllib.parse.quote(n, safe=""), urllib.parse.quote(v, safe="")) for n, v in query.items()]
        text = "&".join(f"{name}={value}" for name, value in sorted(quoted))
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"{method}\n{path}\n{text}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        scope = f"{day}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        secret = f"AWS4{SECRET_KEY}".encode()
        for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        credential = f"{ACCESS_KEY}/{scope}"
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={secret.hex()}"
        )
        return (f"{path}?{text}" if text else path), headers

    def make(self):
        self.request("PUT")
        # The first object makes the server find room for the bucket, which is no work of a mount.
        self.put("room/for-the-bucket", b"x")
        return self

    def drop(self):
        """Away with the bucket and all in it; the server gives its room back at once."""
        self.request("DELETE", accept=(200, 204, 404, 409))

    def put(self, key, body=b"", directory=False, length=None, plain=False):
        headers = {"content-length": str(len(body) if length is None else length)}
        if not plain:
            # The metadata that s3fs and sandpail write, so that nobody has to guess. Plain S3 tools write none.
            headers |= {
                "content-type": "application/x-directory" if directory else "application/octet-stream",
                "x-amz-meta-mode": str(0o40755 if directory else 0o100644),
                "x-amz-meta-uid": str(os.getuid()),
                "x-amz-meta-gid": str(os.getgid()),
                "x-amz-meta-mtime": "1700000000",
            }
        self.request("PUT", key, headers=headers, body=body)

    def get(self, key, at, length):
        return self.request("GET", key, headers={"range": f"bytes={at}-{at + length - 1}"})[1]

    def len_of(self, key):
        response, _ = self.request("HEAD", key, accept=(200, 404))
        return int(response.headers["content-length"]) if response.status == 200 else None

    def keys(self, prefix):
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = xml.etree.ElementTree.fromstring(self.request("GET", query=query)[1])
            for element in page.iter():
                if element.tag.rpartition("}")[2] == "Key":
                    yield element.text
            token = next((e.text for e in page.iter() if e.tag.endswith("NextContinuationToken")), None)
            if not token:
                return
            query["continuation-token"] = token


class Directory(Store):
    """Files of a directory: those of the local disk, or those of a file system that nobody else can write for."""

    at_once = 4

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def put(self, key, body=b"", directory=False, length=None, plain=False):
        path = self.path / key
        if directory:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            for piece in [body] if isinstance(body, bytes) else body:
                file.write(piece)

    def get(self, key, at, length):
        with open(self.path / key, "rb") as file:
            file.seek(at)
            return file.read(length)

    def len_of(self, key):
        path = self.path / key
        return path.stat().st_size if path.exists() else None

    def keys(self, prefix):
        directory = (self.path / prefix).parent if not prefix.endswith("/") else self.path / prefix
        for parent, _, names in os.walk(directory):
            for name in names:
                key = str((pathlib.Path(parent) / name).relative_to(self.path))
                if key.startswith(prefix):
                    yield key

    def make(self):
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def drop(self):
        shutil.rmtree(self.path, ignore_errors=True)
