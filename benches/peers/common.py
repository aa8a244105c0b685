"""What all parts of the benchmark share: sizes, data, processes, and a failure that reads well."""

import array
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
ACCESS_KEY, SECRET_KEY = "benchaccess", "benchsecretsecret"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK_LEN = 1 * MIB
PAGE_LEN = 4 * KIB
SMALL_LEN = 4 * KIB
TICKS = os.sysconf("SC_CLK_TCK")
# A server on a busy machine takes some seconds to elect itself.
START_LIMIT = 60
# What is not in the bucket so long after a mount said that it is done will not come.
SETTLE_LIMIT = 60


class Failure(Exception):
    """What the user reads instead of a stack."""


def expect(holds, what):
    if not holds:
        raise Failure(what)


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- Sizes -----------------------------------------------------------------------------------------------------------
# large: streams. image: what is edited and appended to. log: small appends. blocks: random reads of 128 KiB, pages: of
# 4 KiB. directories x entries: the tree of `find`. plain: keys in one directory, million: in the long row.

FULL = dict(large=1024 * MIB, image=256 * MIB, log=64 * MIB, small=2000, renamed=200, moved=500, appends=20)
FULL |= dict(blocks=2048, pages=200_000, directories=100, entries=100, plain=100_000, million=1_000_000)
FULL |= dict(sources=1500, packages=60, modules=600)
QUICK = dict(large=256 * MIB, image=64 * MIB, log=32 * MIB, small=200, renamed=40, moved=100, appends=5)
QUICK |= dict(blocks=512, pages=50_000, directories=20, entries=50, plain=10_000, million=100_000)
QUICK |= dict(sources=300, packages=20, modules=150)
# Figures of these mean nothing; they show that each row works with each peer.
TINY = dict(large=16 * MIB, image=16 * MIB, log=8 * MIB, small=20, renamed=5, moved=5, appends=2)
TINY |= dict(blocks=64, pages=500, directories=4, entries=5, plain=1200, million=1500)
TINY |= dict(sources=30, packages=3, modules=10)
SIZES = {"full": FULL, "quick": QUICK, "tiny": TINY}


# --- Data ------------------------------------------------------------------------------------------------------------


class Data:
    """Bytes that no server can compress. Each page of 4 KiB begins with its number: one from elsewhere is seen."""

    def __init__(self, seed):
        self.template = array.array("Q", random.Random(seed).randbytes(BLOCK_LEN))

    def block(self, number):
        block = self.template[:]
        first = number * (BLOCK_LEN // PAGE_LEN)
        numbers = array.array("Q", range(first, first + BLOCK_LEN // PAGE_LEN))
        if sys.byteorder == "little":
            numbers.byteswap()
        block[:: PAGE_LEN // 8] = numbers
        return block.tobytes()

    def blocks(self, length):
        return (self.block(number) for number in range(length // BLOCK_LEN))

    def at(self, offset, length):
        number, start = divmod(offset, BLOCK_LEN)
        data = b"".join(self.block(number + n) for n in range((start + length - 1) // BLOCK_LEN + 1))
        return data[start : start + length]


def small_bytes(number):
    return random.Random(number).randbytes(SMALL_LEN)


# --- Processes -------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(command, log, environment, directory="/", **more):
    # In a session of its own: Ctrl-C is for us, and we end our children in order.
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=more.get("stdin", subprocess.DEVNULL),
            stdout=more.get("stdout", output),
            stderr=output,
            cwd=directory,
            env=os.environ | environment,
            start_new_session=True,
        )


def stop(process, patience=20):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log, count=20):
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else ""


def first_line(error):
    """The gist of an error, for a table."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:120] if lines else type(error).__name__


class Tree:
    """The figures of a process with those that it started and still has or has waited for."""

    def __init__(self, pid):
        self.pid = pid

    def pids(self):
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    todo += [int(word) for word in (task / "children").read_text().split()]
            except OSError:
                # It ended meanwhile; its parent has its times then.
                continue
        return found

    def cpu_seconds(self):
        total = 0
        for pid in self.pids():
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(int(field) for field in fields[11:15])
        return total / TICKS

    def reset_peak(self):
        for pid in self.pids():
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def mib(self, field):
        total = 0
        for pid in self.pids():
            try:
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))
        return total / 1024


def kill_group(process):
    """Ends a process at once with all that it started: each is the first of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Watchdog:
    """Ends `process` if its block takes longer than `limit` seconds."""

    def __init__(self, process, limit):
        self.has_bitten = False
        self.timer = threading.Timer(limit, self.bite, [process])

    def bite(self, process):
        self.has_bitten = True
        if process is not None:
            kill_group(process)

    def __enter__(self):
        self.timer.start()
        return self

    def __exit__(self, *_):
        self.timer.cancel()
