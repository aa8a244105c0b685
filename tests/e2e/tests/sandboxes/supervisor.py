"""Runs a daemon for a test and ends everything that came of it, whatever happens to the test.

    supervisor.py STATE_DIR LOG COMMAND...

One command a line on standard input, one line of JSON as the answer: `start`, `kill` (as a crash), `term` (gracefully),
`wait` (until it ends by itself), `family` (the living processes that came of it). At the end of the input, which comes
also when the test is killed, the daemon is ended, then what it left, which is the last answer.

Orphans of the daemon are handed to this process, the nearest subreaper, so nothing escapes by losing its parent.
"""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
STOP_LIMIT = 60


def parents():
    """The parent of every living process."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything.
            state, parent = pathlib.Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state not in "ZX":
            found[int(entry.name)] = int(parent)
    return found


def family():
    """All living descendants of this process."""
    tree, found, grown = parents(), {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in tree.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {os.getpid()})


def told(pid):
    try:
        return f"{pid} " + pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"{pid} (gone)"


def cgroups_of(pids):
    """Control groups that are not this process's own, with their directories."""
    mounts = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split()[:3]
        if kind == "cgroup2":
            mounts[""] = head.split()[4]
        elif kind == "cgroup":
            for option in options.split(","):
                mounts[option] = head.split()[4]
    def of(pid):
        try:
            lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return set()
        entries = (line.split(":", 2) for line in lines)
        return {mounts[c.split(",")[0]] + path for _, c, path in entries if c.split(",")[0] in mounts}
    mine = of("self")
    found = set()
    for pid in pids:
        for path in of(pid) - mine:
            # Groups above one of ours may be made by the daemon too; rmdir refuses what is in use by others.
            while path not in mine and path not in mounts.values() and len(path) > len("/sys/fs/cgroup/"):
                found.add(path)
                path = os.path.dirname(path)
    return sorted(found, key=len, reverse=True)


class Daemon:
    def __init__(self, state, log, command):
        self.state, self.log, self.command, self.child, self.groups = state, log, command, None, set()

    def start(self):
        log = open(self.log, "ab")
        self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        return self.child.pid

    def signalled(self, number):
        """The exit code after the signal; none if the daemon outlives the limit."""
        self.groups |= set(cgroups_of(family()))
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.wait()

    def wait(self):
        try:
            return self.child.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            return None

    def end(self):
        if self.child is None:
            return []
        code = self.signalled(signal.SIGTERM)
        if code is None:
            self.signalled(signal.SIGKILL)
        reap(self.child)
        left = [told(pid) for pid in family()]
        self.groups |= set(cgroups_of(family()))
        limit = time.monotonic() + 30
        while (pids := family()) and time.monotonic() < limit:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)
            reap(self.child)
        mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in reversed(mounts):
            if place.startswith(self.state + "/"):
                left.append(f"mount {place}")
                subprocess.run(["umount", "-l", place], stderr=subprocess.DEVNULL)
        for group in sorted(self.groups, key=len, reverse=True):
            try:
                os.rmdir(group)
                left.append(f"cgroup {group}")
            except OSError:
                pass
        if code is None:
            left.append("the daemon did not end after SIGTERM")
        return left


def reap(child):
    """Takes in orphans; the daemon itself belongs to Popen."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or (child and child.returncode is None and found.si_pid == child.pid):
            return
        try:
            os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            # A signal came in between, and its handler has taken it in.
            pass


def main():
    state, log, *command = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    daemon = Daemon(state, log, command)
    signal.signal(signal.SIGCHLD, lambda *_: reap(daemon.child))
    actions = {
        "start": daemon.start,
        "kill": lambda: daemon.signalled(signal.SIGKILL),
        "term": lambda: daemon.signalled(signal.SIGTERM),
        "hup": lambda: daemon.child.send_signal(signal.SIGHUP),
        "wait": daemon.wait,
        "family": lambda: {pid: told(pid) for pid in family()},
    }
    try:
        for line in sys.stdin:
            print(json.dumps(actions[line.strip()]()), flush=True)
    finally:
        left = daemon.end()
        try:
            print(json.dumps(left), flush=True)
        except OSError:
            # Nobody listens any longer.
            pass


main()
