"""Compares sandpail with other mounts of S3 buckets, on one server of this machine, at several distances.

Each row is a small piece of work on a mounted bucket; page.md says what is measured, and rows_*.py is the work itself.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import report
from common import MIB, ROOT, SIZES, Failure, expect, say
from measure import Run, save
from peers import PEERS
from rows import LOAD, all_rows
from server import RELAY, WEED

PAGE = ROOT / "docs/benchmarks.md"
PEERS_BY_DEFAULT = list(PEERS)


def names(known):
    def parse(text):
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return parse


def numbers(text):
    return [float(word) for word in text.split(",")]


def parse(rows):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", dest="form", action="store_const", const="quick", help="small sizes, fewer rounds")
    form.add_argument("--tiny", dest="form", action="store_const", const="tiny", help="shows that rows work")
    row_names, ordinary = [row.name for row in rows], [row.name for row in rows if not row.optional]
    path = {"type": pathlib.Path, "metavar": "FILE"}

    def add(name, help, **more):
        parser.add_argument(name, help=help, **more)

    add("--rounds", "default: 5; with --quick 3, with --tiny 1", type=int, metavar="N")
    add("--peers", ",".join(PEERS), type=names(list(PEERS)), default=PEERS_BY_DEFAULT)
    add("--rows", ",".join(row_names), type=names(row_names), default=ordinary)
    add("--delay", "round trips; default: 0,10,40; with --quick 0,10", type=numbers, metavar="MS,…")
    add("--patience", "no further round of a row for a peer after this; default: 120, else 10", type=float, metavar="S")
    add("--limit", "a run that takes longer is given up; default: 300, else 60", type=float, metavar="S")
    add("--write", "also write the tables there, as Markdown", **path)
    add("--save", "add the results to this file, as JSON; rows that it has are replaced", **path)
    add("--page", "write the page and its plots; default: docs/benchmarks.md", nargs="?", const=PAGE, **path)
    add("--from", "measure nothing: take saved results", dest="source", **path)
    arguments = parser.parse_args()
    arguments.form = arguments.form or "full"
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    arguments.rounds = arguments.rounds or {"full": 5, "quick": 3, "tiny": 1}[arguments.form]
    arguments.delay = arguments.delay or {"full": [0, 10, 40], "quick": [0, 10], "tiny": [0]}[arguments.form]
    is_full = arguments.form == "full"
    arguments.patience = (120 if is_full else 10) if arguments.patience is None else arguments.patience
    arguments.limit = arguments.limit or (300 if is_full else 60)
    arguments.sizes = SIZES[arguments.form]
    return arguments


def machine():
    cpus = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1] for line in cpus if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} cores ({' '.join(model.split())}), {memory:.0f} GiB, Linux {kernel}"


def versions(peers):
    commands = [[WEED, "version"], *filter(None, (PEERS[name].version() for name in peers))]
    found = [subprocess.run([str(w) for w in command], capture_output=True, text=True).stdout for command in commands]
    lines = [" ".join(text.splitlines()[0].split()) if text.strip() else "?" for text in found]
    lines[0] = f"SeaweedFS {lines[0]}"
    return list(dict.fromkeys(lines))


def check_that_all_is_there(arguments):
    able, missing = [], []
    for name in arguments.peers:
        what = PEERS[name].missing()
        if what:
            # Without a peer the others can still be compared, unless it was asked for.
            say(f"left out: {what} is missing")
            missing += [what] if arguments.peers != PEERS_BY_DEFAULT or name == "sandpail" else []
        else:
            able.append(name)
    missing += [f"{path} (scripts/setup bench)" for path in (WEED, RELAY, LOAD) if not path.exists()]
    missing += [] if shutil.which("fusermount3") else ["fusermount3 (scripts/setup bench)"]
    missing += [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["/dev/fuse (nothing can be mounted here)"]
    expect(not missing, f"missing: {'; '.join(missing)}")
    arguments.peers = able


def measure(arguments, rows):
    check_that_all_is_there(arguments)
    about = {
        "form": arguments.form,
        "rounds": arguments.rounds,
        "machine": machine(),
        "versions": versions(arguments.peers),
        "day": datetime.date.today().isoformat(),
        "command": " ".join(["benches/peers/run", *sys.argv[1:]]),
    }
    with contextlib.ExitStack() as cleanup:
        work = pathlib.Path(tempfile.mkdtemp(prefix="sandpail-bench-"))
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        # What rows share, once for those that see objects and once for each that does not; caches; a run's own files.
        need = 20 * arguments.sizes["large"]
        free = shutil.disk_usage(work).free
        expect(free > need, f"{work.parent} has {free // MIB} MiB free, {need // MIB} are needed; set TMPDIR")
        # After each row, so that a run that is broken off has not been in vain.
        arguments.after_row = lambda results: arguments.save and save(arguments.save, results, about)
        arguments.rows = rows
        results = Run(arguments, work, cleanup).everything()
    found = {"rows": results, "about": {d: dict.fromkeys(r, about) for d, r in results.items()}}
    return save(arguments.save, results, about) if arguments.save else found


def main():
    rows = all_rows()
    arguments = parse(rows)
    start = time.monotonic()
    if arguments.source:
        found = json.loads(arguments.source.read_text())
    else:
        found = measure(arguments, [row for row in rows if row.name in arguments.rows])
    text = report.plain(found)
    print(f"{text}\n\nTook {time.monotonic() - start:.0f} s in all.")
    if arguments.write:
        arguments.write.write_text(f"{text}\n")
    if arguments.page:
        report.page(found, arguments.page)
    ours = [cells["sandpail"] for rows in found["rows"].values() for cells in rows.values() if "sandpail" in cells]
    return 1 if any(cell["error"] for cell in ours) else 0


def on_signal(number, _):
    # Once: the clean-up itself is not to be cut short.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def start():
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, on_signal)
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"benches/peers/run: {failure}")
