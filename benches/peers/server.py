"""The S3 server of the benchmark, and the road to it: a relay that delays and counts."""

import contextlib
import http.client
import json
import pathlib
import subprocess
import time

from common import ACCESS_KEY, HERE, ROOT, SECRET_KEY, START_LIMIT, Failure, expect, free_port, spawn, stop, tail
from stores import Bucket

WEED = ROOT / ".venv/bin/weed"
RELAY = HERE / "tools/target/release/relay"


class Server:
    """SeaweedFS, with keys and signatures checked. `others`: identities with fewer rights."""

    def __init__(self, work, cleanup, others=()):
        self.port, self.ports, directory = free_port(), [], work / "server"
        (directory / "data").mkdir(parents=True)
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identity = {"name": "bench", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (directory / "identities.json").write_text(json.dumps({"identities": [identity, *others]}))
        # Every bucket has volumes of its own; one at a time is plenty.
        (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\ncopy_other = 1\n")
        command = [WEED, "server", "-ip=127.0.0.1", "-filer", "-s3", "-s3.iam=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=1000"]
        # So large that no volume is full within a row.
        command += ["-master.volumeSizeLimitMB=8192", "-master.volumePreallocate=false"]
        command += [f"-dir={directory / 'data'}", f"-s3.config={directory / 'identities.json'}"]
        command.append(f"-s3.port={self.port}")
        for role in ("master.port", "volume.port", "filer.port"):
            command += [f"-{role}={self.new_port()}", f"-{role}.grpc={self.new_port()}"]
        command.append(f"-s3.port.grpc={self.new_port()}")
        log = work / "server.log"
        self.process = spawn(command, log, {"TMPDIR": str(directory)}, directory)
        cleanup.callback(self.end)
        start = time.monotonic()
        while True:
            expect(self.process.poll() is None, f"the server ended:\n{tail(log)}")
            expect(time.monotonic() - start < START_LIMIT, f"the server does not answer:\n{tail(log)}")
            with contextlib.suppress(OSError, http.client.HTTPException, Failure):
                Bucket(self.port, "ready").make()
                return
            time.sleep(0.2)

    def new_port(self):
        self.ports.append(free_port())
        return self.ports[-1]

    def end(self):
        # Asked politely it takes half a minute, and its data is thrown away.
        self.process.kill()
        self.process.wait()
        for port in [self.port, *self.ports]:
            for path in pathlib.Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()


class Road:
    """What all mounts go through to reach the server."""

    def __init__(self, server, work, cleanup):
        command = [RELAY, f"127.0.0.1:{server.port}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = spawn(command, work / "relay.log", {}, **pipes)
        cleanup.callback(stop, self.process)
        self.port = int(self.process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def ask(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.readline().decode()

    def set_delay(self, milliseconds):
        self.ask(f"delay {round(milliseconds * 1000)}")

    def take(self):
        """What went over the road since it was last asked: requests by kind, bytes to the server and from it."""
        return json.loads(self.ask("take"))
