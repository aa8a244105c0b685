"""Makes and destroys sandboxes, many times and many at once, and looks for what is left of them.

    cycles.py CYCLES AT_ONCE
"""

import concurrent.futures
import os
import pathlib
import re
import sys

from client import Api, Checks, Failed, arguments_of, until

api, checks = Api(), Checks()
STATE, SUPERVISOR, ENDPOINT, BUCKET = os.environ["STATE"], int(os.environ["SUPERVISOR"]), os.environ["ENDPOINT"], os.environ["BUCKET"]
# What an allocator may keep, whatever the number of cycles.
GROWTH_LIMIT_MIB = 24
FD_GROWTH_LIMIT = 4


def family():
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                state, parent = pathlib.Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            parents[int(entry.name)] = (int(parent), state)
    found, grown = {SUPERVISOR}, True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {pid: parents[pid][1] for pid in found - {SUPERVISOR}}


def daemon():
    return next(pid for pid in sorted(family()) if b"\0serve\0" in arguments_of(pid))


def links():
    return {line.split(":")[0].strip() for line in pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]}


def count_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) >> 10


def traces(ids):
    """What on this host still names one of these sandboxes."""
    found = []
    pattern = re.compile("|".join(sorted(ids))) if ids else None
    for table in ["/proc/self/mountinfo", f"/proc/{daemon()}/mountinfo"]:
        found += [f"mount {line}" for line in pathlib.Path(table).read_text().splitlines() if pattern and pattern.search(line)]
    for top in ["/sys/fs/cgroup", STATE, "/run/sandpail", "/run/netns", "/var/run/sandpail"]:
        for folder, folders, names in os.walk(top):
            found += [f"path {folder}/{name}" for name in [*folders, *names] if pattern and pattern.search(name)]
            # The buckets are data.
            folders[:] = [name for name in folders if name not in ("buckets", "cache") and not os.path.ismount(os.path.join(folder, name))]
    return found


def names(ids):
    return [line for line in traces(ids)]


def cycle(n):
    own = Api()
    sandbox = own.create()
    own.mount(sandbox, "/data", binding="MY_BUCKET", options={"prefix": f"/c{n % 7}"})
    if n % 2:
        own.mount(sandbox, "/remote", bucket=BUCKET, options={"endpoint": ENDPOINT})
    if n % 3 == 0:
        own.mount(sandbox, "/local", binding="SECOND", options={"localBucket": True, "prefix": f"/l{n % 5}"})
    told = own.sh(sandbox, f"echo {n} >/data/n; cat /data/n; sleep 100 </dev/null >/dev/null 2>&1 &")
    if told != f"{n}\n":
        raise Failed(told)
    if n % 5 == 0:
        own.unmount(sandbox, "/data")
    if n % 4 == 0:
        own.must("POST", f"/v1/sandbox/{sandbox}/processes", {"argv": ["sleep", "1000"]})
        own.exec(sandbox, "cd", "/data", session="s")
    own.destroy(sandbox)
    return sandbox


def settled(what, condition):
    try:
        until(what, condition, 15)
    except Failed:
        pass


def clean(name, ids, before):
    settled(name, lambda: len(family()) <= len(before["family"]) and not traces(ids))
    checks.equal(f"{name}: traces", traces(ids)[:10], [])
    checks.true(f"{name}: processes", len(family()) <= len(before["family"]), {pid: arguments_of(pid) for pid in family()})
    checks.equal(f"{name}: zombies", [pid for pid, state in family().items() if state == "Z"], [])
    checks.equal(f"{name}: links", links() - before["links"], set())
    checks.equal(f"{name}: mounts", [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if STATE in line], before["mounts"])
    checks.true(f"{name}: descriptors", count_fds(daemon()) <= before["fds"] + FD_GROWTH_LIMIT, sorted(os.readlink(f"/proc/{daemon()}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon()}/fd")))
    checks.true(f"{name}: memory", memory_mib(daemon()) <= before["memory"] + GROWTH_LIMIT_MIB, f"{before['memory']} MiB before, {memory_mib(daemon())} after")
    checks.equal(f"{name}: sandboxes", api.sandboxes(), [])


def now():
    return {"family": family(), "fds": count_fds(daemon()), "memory": memory_mib(daemon()), "links": links(), "mounts": [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if STATE in line]}


def main():
    cycles, at_once = map(int, sys.argv[1:])
    # What is made once and kept (pools, caches of an allocator) is made first.
    warm = [cycle(n) for n in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        warm += pool.map(cycle, range(8))
    settled("warm", lambda: not traces(warm))
    before = now()
    # A sanity check of the search itself: a living sandbox leaves traces.
    living = api.create()
    api.mount(living, "/data", binding="MY_BUCKET")
    checks.true("a living sandbox is seen", traces([living]) and len(family()) > len(before["family"]), (traces([living]), family()))
    api.destroy(living)
    ids = [living]
    for n in range(cycles):
        ids.append(cycle(n))
        if n % 50 == 49:
            print(f"{n + 1} cycles: {count_fds(daemon())} descriptors, {memory_mib(daemon())} MiB", flush=True)
    clean("cycles", ids, before)
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        made = list(pool.map(lambda n: Api().create(), range(at_once)))
        def use(n):
            own = Api()
            own.mount(made[n], "/data", binding="MY_BUCKET")
            own.mount(made[n], "/remote", bucket=BUCKET, options={"endpoint": ENDPOINT, "prefix": f"/many{n}"})
            return own.sh(made[n], f"echo {n} >/data/many{n}; echo {n} >/remote/f; cat /remote/f")
        checks.equal("all at once", list(pool.map(use, range(at_once))), [f"{n}\n" for n in range(at_once)])
        # Every one sees what all the others closed.
        checks.equal("shared", set(pool.map(lambda n: Api().sh(made[n], "ls /data | grep -c many").strip(), range(at_once))), {str(at_once)})
        print(f"{at_once} at once: {count_fds(daemon())} descriptors, {memory_mib(daemon())} MiB, {len(family())} processes", flush=True)
        list(pool.map(lambda n: Api().destroy(made[n]), range(at_once)))
    clean("many", made, before)
    checks.end()


main()
