"""The programs that are compared: how each mounts a bucket as its manual says, and when its promise is kept.

Each runs in the foreground, so that the child is the mount's process. What differs from a peer's defaults has its
reason beside it. `cache`: the row reads twice, and the peer may keep data on the local disk.
"""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

from common import ACCESS_KEY, HERE, ROOT, SECRET_KEY, SETTLE_LIMIT, Failure, expect
from stores import Bucket, Directory

VENV = ROOT / ".venv/bin"
MOUNTPOINT = HERE / "mountpoint/target/release/mountpoint-peer"
CLIENT = HERE / "client/target/release/client"
_sandpail = []


def sandpail_program():
    """SANDPAIL_BIN, or the release build."""
    if not _sandpail:
        chosen = os.environ.get("SANDPAIL_BIN")
        if not chosen:
            command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            expect(done.returncode == 0, f"cargo metadata: {done.stderr.strip()}")
            chosen = pathlib.Path(json.loads(done.stdout)["target_directory"]) / "release/sandpail"
        _sandpail.append(pathlib.Path(chosen))
    return _sandpail[0]


class Peer:
    """One program. A bucket for each run of a row, or one that all runs share, since they only read."""

    # The mount is seen by others with the same metadata that this one writes; JuiceFS has a format of its own.
    reads_objects = True
    # Not a mount: the local disk, and our client.
    is_mount = True
    # Returns from a close before the bucket has the bytes. Rows then end at the close, and the bucket is waited for
    # outside of the time.
    is_write_back = False
    title = None

    def __init__(self, server, road, work):
        self.server, self.endpoint, self.work, self.log = server, road.endpoint, work, work / f"{self.name}.log"
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "HOME": str(work),
        }

    @staticmethod
    def missing():
        return None

    @staticmethod
    def version():
        return None

    def store(self, name):
        return Bucket(self.server.port, name)

    @contextlib.contextmanager
    def reaching(self, store):
        """The store, ready to be filled or checked."""
        yield store

    def settle(self, row, case):
        """Returns when what was closed is in the bucket: the time at which that was so."""
        return time.monotonic()


class Sandpail(Peer):
    # As installed. A close returns when the bytes are in the bucket.
    name = "sandpail"

    @staticmethod
    def missing():
        return None if sandpail_program().is_file() else "sandpail (cargo build --release -p sandpail)"

    @staticmethod
    def version():
        return [sandpail_program(), "--version"]

    def command(self, store, path, scratch, cache):
        command = [sandpail_program(), "mount", "--foreground", "--no-restart", store.name, path]
        command += ["--endpoint", self.endpoint, "--path-style", "--region", "us-east-1"]
        command += ["--staging-dir", scratch / "staging"]
        return [*command, "--cache-dir", scratch / "cache"] if cache else command


class SandpailPosix(Sandpail):
    # Each file is asked for what it carries, whoever has written it.
    name, title = "posix", "sandpail --metadata posix"

    def command(self, store, path, scratch, cache):
        return [*super().command(store, path, scratch, cache), "--metadata", "posix"]


class SandpailWriteBack(Sandpail):
    name, is_write_back, title = "write-back", True, "sandpail --write-back"

    def command(self, store, path, scratch, cache):
        self.path = path
        return [*super().command(store, path, scratch, cache), "--write-back"]

    def settle(self, row, case):
        closed = time.monotonic()
        subprocess.run([sandpail_program(), "sync", self.path], check=True, capture_output=True, env=self.environment)
        return closed


class S3fs(Peer):
    # As documented for servers other than Amazon's, and with the memory of absent names, which only helps it here.
    # A close returns when the bytes are in the bucket.
    name = "s3fs"

    @staticmethod
    def missing():
        return None if shutil.which("s3fs") else "s3fs (scripts/setup bench)"

    @staticmethod
    def version():
        return ["s3fs", "--version"]

    def command(self, store, path, scratch, cache):
        passwords = self.work / "s3fs-passwords"
        passwords.touch(0o600)
        passwords.write_text(f"{ACCESS_KEY}:{SECRET_KEY}")
        options = f"url={self.endpoint},use_path_request_style,passwd_file={passwords},tmpdir={scratch}"
        if cache:
            (scratch / "cache").mkdir()
            options += f",use_cache={scratch / 'cache'}"
        # Newer ones see directories that no object stands for with this option only; the rows of plain keys have them.
        known = subprocess.run(["s3fs", "--help"], capture_output=True, text=True)
        options += ",compat_dir" if " compat_dir" in known.stdout + known.stderr else ""
        return ["s3fs", store.name, path, "-f", "-o", f"{options},enable_noobj_cache"]


class Rclone(Peer):
    # `--vfs-cache-mode writes` is what rclone's manual says for ordinary programs. It uploads after the close; with
    # `--vfs-write-back 0` it begins at once instead of after 5 seconds. So that all keep the same promise, a row ends
    # when rclone says (`vfs/stats`, asked over a socket) that nothing is queued or under way, and the bucket shows it:
    # just after a close rclone may not have queued the file yet. All else is the default.
    name = "rclone"

    @staticmethod
    def missing():
        return None if (VENV / "rclone").exists() else ".venv/bin/rclone (scripts/setup bench)"

    @staticmethod
    def version():
        return [VENV / "rclone", "--version"]

    def command(self, store, path, scratch, cache):
        config = self.work / "rclone.conf"
        config.touch()
        self.socket = f"{scratch}/rc"
        remote = ":s3,provider=SeaweedFS,env_auth=true,force_path_style=true,region=us-east-1"
        remote += f",endpoint='{self.endpoint}'"
        command = [VENV / "rclone", "mount", f"{remote}:{store.name}", path, "--config", config]
        command += ["--vfs-cache-mode", "full" if cache else "writes", "--vfs-write-back", "0"]
        command += ["--cache-dir", scratch / "cache"]
        return [*command, "--rc", "--rc-no-auth", "--rc-addr", f"unix://{self.socket}"]

    def settle(self, row, case):
        start = time.monotonic()
        while True:
            now = time.monotonic()
            if self.is_idle():
                try:
                    row.check(case)
                    # A row of written-back files ends at the close; see `WriteSerial`.
                    return start if row.ends_at_close else now
                except Failure:
                    if now - start > SETTLE_LIMIT:
                        raise
            time.sleep(0.01)

    def is_idle(self):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.socket)
        connection.request("POST", "/vfs/stats", "{}", {"Content-Type": "application/json"})
        cache = json.loads(connection.getresponse().read())["diskCache"]
        connection.close()
        return not cache["uploadsInProgress"] and not cache["uploadsQueued"]


class Mountpoint(Peer):
    # `mount-s3` with its defaults and what its manual says for programs that replace and remove files.
    name, title = "mountpoint", "Mountpoint"

    @staticmethod
    def missing():
        return None if MOUNTPOINT.exists() else "Mountpoint (scripts/setup bench builds it)"

    @staticmethod
    def version():
        return [MOUNTPOINT, "--version"]

    def command(self, store, path, scratch, cache):
        command = [MOUNTPOINT, store.name, path, "--endpoint-url", self.endpoint, "--region", "us-east-1"]
        command += ["--force-path-style", "--allow-delete", "--allow-overwrite"]
        if cache:
            (scratch / "cache").mkdir()
            command += ["--cache", scratch / "cache"]
        return command


class Volume(Directory):
    """A JuiceFS volume: blocks in a bucket, names in an SQLite file. Its files are seen through a mount only."""

    def __init__(self, peer, name):
        super().__init__(peer.work / f"{peer.name}-{name}" / "mnt")
        self.name, self.peer, self.bucket = name, peer, Bucket(peer.server.port, name)
        self.home = self.path.parent
        self.meta = f"sqlite3://{self.home / 'meta.db'}"

    def make(self):
        if not (self.home / "meta.db").exists():
            self.path.mkdir(parents=True)
            self.bucket.make()
            command = [VENV / "juicefs", "format", self.meta, self.name, "--storage", "s3"]
            command += ["--bucket", f"http://127.0.0.1:{self.peer.server.port}/{self.name}"]
            command += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, "--no-agent"]
            words, environment = [str(word) for word in command], os.environ | self.peer.environment
            done = subprocess.run(words, capture_output=True, text=True, env=environment)
            expect(done.returncode == 0, f"juicefs format: {done.stderr.strip()[-500:]}")
        return self

    def drop(self):
        self.bucket.drop()
        shutil.rmtree(self.home, ignore_errors=True)


class JuiceFs(Peer):
    # Its metadata is an SQLite file on the local disk, so names cost it no request at all; who shares a volume between
    # machines has a database on the network. Data: its defaults. A close returns when the blocks are in the bucket.
    name, title, reads_objects = "juicefs", "JuiceFS", False
    more = ()

    @staticmethod
    def missing():
        return None if (VENV / "juicefs").exists() else ".venv/bin/juicefs (scripts/setup bench)"

    @staticmethod
    def version():
        return [VENV / "juicefs", "--version"]

    def store(self, name):
        return Volume(self, name)

    def command(self, store, path, scratch, cache, bucket_at=None):
        self.path = path
        command = [VENV / "juicefs", "mount", store.meta, path, "--no-syslog", "--no-usage-report", "--no-agent"]
        # The bucket was made past the road; the mount takes the road.
        command += ["--bucket", f"{bucket_at or self.endpoint}/{store.name}"]
        return [*command, "--cache-dir", scratch / "cache", *self.more]

    @contextlib.contextmanager
    def reaching(self, store):
        # A mount of its own with an empty cache, past the road; the row's own mount knows nothing of it.
        from mounting import Mount

        with Mount(self, store, past_road=True) as mount:
            yield Directory(mount.path)


class JuiceFsWriteBack(JuiceFs):
    name, title, is_write_back, more = "juicefs-writeback", "JuiceFS --writeback", True, ("--writeback",)

    def settle(self, row, case):
        closed = time.monotonic()
        while time.monotonic() - closed < SETTLE_LIMIT:
            stats = (self.path / ".stats").read_text()
            waiting = [line.split()[1] for line in stats.splitlines() if line.startswith("juicefs_staging_blocks")]
            if all(float(number) == 0 for number in waiting):
                return closed
            time.sleep(0.02)
        raise Failure("blocks are still staged")


class LocalDisk(Peer):
    # The same files on the disk of this machine: what the rows of caches and of written-back trees aim at.
    name, title, is_mount, is_write_back, reads_objects = "local", "local disk", False, True, True

    def store(self, name):
        return Directory(self.work / "local" / name)


class Client(Peer):
    # Our own S3 client reading the same ranges, with no file system: what the machine and the store allow.
    name, title, is_mount = "client", "our client, no mount", False

    @staticmethod
    def missing():
        return None if CLIENT.exists() else "the benchmark's tools (scripts/setup bench builds them)"

    def run(self, store, *words):
        """Returns the seconds that it counted itself, its CPU seconds, and its peak in MiB."""
        command = [CLIENT, "--endpoint", self.endpoint, "--bucket", store.name, *words]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=log, env=os.environ | self.environment
            )
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        expect(process.returncode == 0, f"the client failed, see {self.log}")
        return json.loads(output)["seconds"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


ALL = (Sandpail, SandpailPosix, SandpailWriteBack, S3fs, Rclone, JuiceFs, JuiceFsWriteBack, Mountpoint, LocalDisk, Client)
PEERS = {peer.name: peer for peer in ALL}
