"""A fresh mount that goes away with its block, and the time that both take."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from common import START_LIMIT, Tree, expect, kill_group, spawn, stop, tail

# How often it is looked whether a mount is there; mounts take 10 ms and more.
GLANCE = 0.0005


class Mount:
    """Mounts `store` with `peer`. `seconds` is the time to the first stat, `gone` that of the unmount."""

    def __init__(self, peer, store, cache=False, past_road=False):
        self.peer, self.store, self.cache, self.past_road = peer, store, cache, past_road
        self.process = self.gone = None

    def __enter__(self):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.peer.name}-", dir=self.peer.work))
        if not self.peer.is_mount:
            self.path, self.seconds = self.store.path, 0
            return self
        self.path = self.scratch / "mnt"
        self.path.mkdir()
        device = os.stat(self.path).st_dev
        more = {"bucket_at": f"http://127.0.0.1:{self.peer.server.port}"} if self.past_road else {}
        command = self.peer.command(self.store, self.path, self.scratch, self.cache, **more)
        # The log of this mount alone.
        self.peer.log.unlink(missing_ok=True)
        start = time.monotonic()
        self.process = spawn(command, self.peer.log, self.peer.environment)
        try:
            while os.stat(self.path).st_dev == device:
                expect(self.process.poll() is None, f"the mount ended: {tail(self.peer.log, 1)}")
                expect(time.monotonic() - start < START_LIMIT, f"not mounted:\n{tail(self.peer.log)}")
                time.sleep(GLANCE)
            self.seconds = time.monotonic() - start
            self.tree = Tree(self.process.pid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def unmount(self):
        """Returns the seconds until the mount's process has gone, too."""
        start = time.monotonic()
        done = subprocess.run(["fusermount3", "-u", self.path], capture_output=True, text=True)
        expect(done.returncode == 0, done.stderr.strip())
        self.process.wait(60)
        self.gone = time.monotonic() - start
        return self.gone

    def __exit__(self, *_):
        if self.process and self.gone is None:
            done = subprocess.run(["fusermount3", "-u", self.path], capture_output=True)
            if done.returncode == 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(60)
            stop(self.process)
            kill_group(self.process)
            if done.returncode != 0:
                subprocess.run(["fusermount3", "-u", "-z", self.path], capture_output=True)
        # Never into a mount that is still there.
        if not os.path.ismount(self.path) or self.path.parent != self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
