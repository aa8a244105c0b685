"""Runs rows: peers take turns within a row, and another one begins each round."""

import json
import os
import pathlib
import subprocess
import time

from common import Failure, Watchdog, first_line, say, tail
from mounting import Mount
from peers import PEERS
from rows import Case
from server import Road, Server


def takes_part(row, peer):
    if peer.name == "local":
        return row.local
    if peer.name == "client":
        return row.client(Case({"large": 0, "small": 0, "blocks": 0}, ""), peer) is not None
    return row.write_back or not peer.is_write_back


class Run:
    """One server, one road, the peers, and what was found."""

    def __init__(self, options, work, cleanup):
        self.options, self.work, self.cleanup = options, work, cleanup
        self.server = Server(work, cleanup)
        self.road = Road(self.server, work, cleanup)
        self.peers = [PEERS[name](self.server, self.road, work) for name in options.peers]
        self.shared = {}
        self.results = {}

    def everything(self):
        for row in self.options.rows:
            for delay in self.options.delay:
                self.road.set_delay(delay)
                self.row(row, delay)
                self.options.after_row(self.results)
            # What rows share stays for the next row; it is the same for all of them.
        return self.results

    def row(self, row, delay):
        peers = [peer for peer in self.peers if takes_part(row, peer)]
        cells = {peer.name: {"rounds": [], "error": None} for peer in peers}
        self.results.setdefault(str(delay), {})[row.name] = cells
        spent = dict.fromkeys(cells, 0)
        for number in range(self.options.rounds):
            first = number % max(len(peers), 1)
            for peer in peers[first:] + peers[:first]:
                cell = cells[peer.name]
                # What a peer cannot do it cannot do the next time; what takes minutes tells enough in few rounds.
                if cell["error"] or (number and spent[peer.name] > self.options.patience):
                    continue
                if row.plain and not peer.reads_objects:
                    cell["error"] = "its bucket holds blocks, not files"
                    continue
                start = time.monotonic()
                try:
                    figures = self.measure(row, peer, f"{row.name}-{delay:g}-{number}")
                except (Failure, OSError, ValueError) as error:
                    cell["error"] = first_line(error)
                    say(f"{delay:3g} ms {row.name:13}{peer.name:18}cannot: {error}\n{tail(peer.log)[-600:]}")
                    continue
                spent[peer.name] += time.monotonic() - start
                cell["rounds"].append(figures)
                say(
                    f"{delay:3g} ms {row.name:13}{peer.name:18}{figures['seconds']:9.3f} s {figures['cpu']:7.2f} s CPU"
                    f"{figures['peak']:6.0f} MiB {sum(figures['requests'].values()):6} requests"
                )

    def store(self, row, peer, tag):
        """The store of a run, and whether it is to be dropped after it."""
        if not row.shared:
            return peer.store(f"b-{tag}-{peer.name}").make(), True
        # Those that see objects read the same; the others have their own.
        own = "" if peer.reads_objects and peer.name != "local" else peer.name
        if own not in self.shared:
            self.shared[own] = peer.store(f"shared{own and '-'}{own}").make()
        return self.shared[own], False

    def measure(self, row, peer, tag):
        case = Case(self.options.sizes, tag)
        case.work, case.scratch = self.work, self.work / f"scratch-{peer.name}"
        store, is_own = self.store(row, peer, tag)
        try:
            with peer.reaching(store) as case.store:
                row.prepare(case)
            # Dirty pages of what came before are nobody's work here.
            os.sync()
            case.scratch.mkdir(exist_ok=True)
            if peer.name == "client":
                return self.measure_client(row, peer, case, store)
            figures = self.measure_mount(row, peer, case, store)
            if not peer.reads_objects:
                with peer.reaching(store) as case.store:
                    row.check(case)
            return figures
        finally:
            run_quietly("rm", "-rf", case.scratch)
            if is_own:
                store.drop()

    def measure_client(self, row, peer, case, store):
        self.road.take()
        seconds, cpu, peak = peer.run(store, *row.client(case, peer))
        return self.figures(seconds, cpu, peak, 0)

    def measure_mount(self, row, peer, case, store):
        self.road.take()
        with Mount(peer, store, row.cache) as mount:
            case.path = mount.path
            tree = mount.tree if mount.process else None
            with Watchdog(mount.process, self.options.limit) as watchdog:
                try:
                    row.warm(case)
                    if not row.in_milliseconds or row.name == "first-byte":
                        # For all but the mount itself: its own requests are in the row that is about them.
                        self.road.take()
                    before = self.usage(tree)
                    start = time.monotonic()
                    own = row.work(case)
                    seconds = time.monotonic() - start
                    if own is not None:
                        seconds = own
                    settled = peer.settle(row, case) - start
                    if own is None:
                        seconds = max(seconds, settled) if not row.ends_at_close else seconds
                    after = self.usage(tree)
                    seconds = row.measured(case, mount, seconds)
                except (Failure, OSError) as error:
                    if watchdog.has_bitten:
                        raise Failure(f"gave up after {self.options.limit:.0f} s") from error
                    raise
                if watchdog.has_bitten:
                    raise Failure(f"gave up after {self.options.limit:.0f} s")
            figures = self.figures(seconds, after[0] - before[0], after[1], after[1] - before[2])
            if getattr(case, "first", None):
                figures["first"] = case.first
            if peer.reads_objects:
                case.store = store
                row.check(case)
        return figures

    @staticmethod
    def usage(tree):
        """CPU seconds so far, the peak since this was last asked, and what is resident now (MiB)."""
        if tree is None:
            return 0, 0, 0
        found = (tree.cpu_seconds(), tree.mib("VmHWM"), tree.mib("VmRSS"))
        tree.reset_peak()
        return found

    def figures(self, seconds, cpu, peak, growth):
        told = self.road.take()
        return {
            "seconds": seconds,
            "cpu": cpu,
            "peak": peak,
            "growth": growth,
            "requests": told["requests"],
            "up": told["up"],
            "down": told["down"],
            "connections": told["connections"],
        }


def run_quietly(*words):
    subprocess.run([str(word) for word in words], capture_output=True)


def save(path, results, about):
    """Adds rows to what was measured before: a row is replaced as a whole, so that its peers were measured together."""
    found = json.loads(path.read_text()) if path.exists() else {"rows": {}, "about": {}}
    for delay, rows in results.items():
        for name, cells in rows.items():
            found["rows"].setdefault(delay, {})[name] = cells
            found["about"].setdefault(delay, {})[name] = about
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(f"{path}.new")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.rename(path)
    return found
