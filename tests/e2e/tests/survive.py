"""Programs at work in a mount whose process is killed again and again: none may see an error, nothing may be missing.

Arguments: the mountpoint, a directory beside it, how many kills, the seed, the longest pause between two (seconds), and which
programs (all if left out). With 0 kills it kills until the file `stop` stands in the directory; with fewer it only waits for that.
"""
import os, pathlib, random, shutil, signal, sqlite3, subprocess, sys, tarfile, threading, time, traceback

MNT, LOCAL, KILLS, SEED, PAUSE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
# None in a sandbox, where nobody kills from.
SANDPAIL = os.environ.get("SANDPAIL")
stop = threading.Event()
failures, rounds = [], {}
longest = 0.0


def load(work):
    """Runs `work(round)` until the end; an exception is a failure of the whole test."""

    def run():
        n = 0
        try:
            while not stop.is_set():
                work(n)
                n += 1
        except BaseException:
            failures.append(f"{work.__name__}, round {n}:\n{traceback.format_exc()}")
            stop.set()
        rounds[work.__name__] = n

    thread = threading.Thread(target=run, name=work.__name__)
    thread.start()
    return thread


def sh(command, cwd):
    result = subprocess.run(command, cwd=cwd, shell=isinstance(command, str), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode: raise AssertionError(f"{command}: {result.returncode}\n{result.stdout.decode(errors='replace')}")
    return result.stdout


def sqlite(n):
    connection = sqlite3.connect(MNT / "db", timeout=60)
    connection.execute("create table if not exists t(n integer primary key, v blob)")
    for step in range(5):
        at = connection.execute("select coalesce(max(n), 0) from t").fetchone()[0]
        if at != sqlite.last: raise AssertionError(f"{at} instead of {sqlite.last}")
        connection.execute("insert into t values (?, ?)", (at + 1, os.urandom(2000)))
        # It stays as large as it is: a long run shall show what grows by itself.
        connection.execute("delete from t where n < ?", (at - 200,))
        connection.commit()
        sqlite.last = at + 1
    if n % 10 == 0 and connection.execute("pragma integrity_check").fetchone() != ("ok",): raise AssertionError("damaged")
    connection.close()


sqlite.last = 0


def git(n):
    tree, commits = MNT / "repo", n % 25 + 1
    if commits == 1:
        if n: shutil.rmtree(tree)
        tree.mkdir()
        sh("git init -q -b main . && git config user.email a@b && git config user.name n && git config gc.auto 0", tree)
    rng = random.Random(SEED * 1000 + n)
    for _ in range(4): (tree / f"f{rng.randrange(30)}").write_bytes(rng.randbytes(rng.choice([10, 3000, 100000])))
    sh(["git", "add", "-A"], tree)
    sh(["git", "commit", "-q", "--allow-empty", "-m", f"round {n}"], tree)
    if sh(["git", "status", "--porcelain"], tree): raise AssertionError("not clean")
    if n % 5 == 4:
        sh(["git", "fsck", "--strict"], tree)
        if int(sh(["git", "rev-list", "--count", "HEAD"], tree)) != commits: raise AssertionError("commits are missing")


def tar(n):
    if n == 0:
        source, rng = LOCAL / "source", random.Random(SEED)
        for directory in range(6):
            (source / f"d{directory}").mkdir(parents=True)
            for file in range(8): (source / f"d{directory}" / f"f{file}").write_bytes(rng.randbytes(rng.choice([0, 100, 9000])))
            (source / f"d{directory}" / "link").symlink_to("f0")
        with tarfile.open(LOCAL / "source.tar", "w") as archive: archive.add(source, "tree")
    target = MNT / "tars" / str(n)
    target.mkdir(parents=True)
    sh(["tar", "xf", LOCAL / "source.tar"], target)
    sh(["diff", "-r", LOCAL / "source", target / "tree"], "/")
    os.rename(target / "tree", target / "moved")
    if len(os.listdir(target / "moved" / "d0")) != 9: raise AssertionError(os.listdir(target / "moved" / "d0"))
    sh(["diff", "-r", LOCAL / "source", target / "moved"], "/")
    shutil.rmtree(target)


def files(n):
    """Small things, each checked against what is remembered: a name, a place, an open file, an end that grows."""
    rng, model, base = files.rng, files.model, MNT / "files"
    if n == 0:
        base.mkdir()
        files.appended = open(base / "log", "ab", buffering=0)
        files.edited = open(base / "edited", "w+b", buffering=0)
        files.gone = open(base / "gone", "w+b", buffering=0)
        files.gone.write(b"still there")
        os.unlink(base / "gone")
        model["log"], model["edited"] = b"", b""
    for _ in range(10):
        names = sorted(set(model) - {"log", "edited"})
        action = rng.randrange(9)
        if action <= 2:
            name, data = f"n{rng.randrange(60)}", rng.randbytes(rng.choice([0, 5, 4096, 70000]))
            with open(base / name, "wb") as file: file.write(data)
            model[name] = data
        elif action == 3 and names:
            name = rng.choice(names)
            os.unlink(base / name)
            del model[name]
        elif action == 4 and names:
            name, new = rng.choice(names), f"n{rng.randrange(60)}"
            os.rename(base / name, base / new)
            if name != new: model[new] = model.pop(name)
        elif action == 5:
            data = rng.randbytes(rng.randrange(1, 3000))
            if len(model["log"]) > 300000:
                os.ftruncate(files.appended.fileno(), 0)
                model["log"] = b""
            files.appended.write(data)
            model["log"] += data
        elif action == 6:
            at, data = rng.randrange(200000), rng.randbytes(rng.randrange(1, 9000))
            os.pwrite(files.edited.fileno(), data, at)
            old = model["edited"].ljust(at, b"\0")
            model["edited"] = old[:at] + data + old[at + len(data):]
            if rng.random() < 0.2: os.fsync(files.edited.fileno())
        elif action == 7:
            try: os.close(os.open(base / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError as error: raise AssertionError("made by nobody else") from error
            os.unlink(base / "once")
        else:
            os.mkdir(base / "d")
            os.symlink("x", base / "d" / "l")
            if os.readlink(base / "d" / "l") != "x": raise AssertionError("link")
            os.unlink(base / "d" / "l")
            os.rmdir(base / "d")
    listed = set(os.listdir(base))
    if listed != set(model): raise AssertionError(f"listed, but not there: {sorted(listed - set(model))}; not listed: {sorted(set(model) - listed)}")
    for name in rng.sample(sorted(model), min(6, len(model))):
        found = (base / name).read_bytes()
        if found != model[name]: raise AssertionError(f"{name}: {len(found)} bytes, {len(model[name])} expected; " + first_difference(found, model[name]))
    if os.pread(files.gone.fileno(), 100, 0) != b"still there": raise AssertionError("an open file without a name")


files.rng, files.model = random.Random(SEED), {}


def first_difference(a, b):
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"they differ at {at}: {a[at:at + 16]!r} and {b[at:at + 16]!r}"


def listing(n):
    """A directory of many entries, read a little at a time: every name once."""
    many = MNT / "many"
    if n == 0:
        many.mkdir()
        for number in range(300): (many / f"{number:04}-a-name-of-some-length-so-that-one-reply-does-not-hold-all").touch()
    seen = []
    with os.scandir(many) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 50 == 0: time.sleep(0.02)
    if len(seen) != 300 or len(set(seen)) != 300: raise AssertionError((len(seen), len(set(seen))))


def fio(n):
    sh(["fio", "--name=verified", f"--directory={MNT}", f"--filename=fio{n % 3}", "--rw=randwrite", "--bs=4k-64k", "--size=4m", "--verify=crc32c",
        "--do_verify=1", "--verify_fatal=1", "--ioengine=psync", "--fallocate=none", "--unlink=1", f"--randseed={SEED * 1000 + n}", "--output=/dev/null"], LOCAL)


def worker():
    for line in subprocess.run([SANDPAIL, "list"], capture_output=True, text=True).stdout.splitlines():
        if line.startswith(f"{MNT}\t"): return int(line.split("pid ")[1])
    return None


def pauses():
    """The longest time that a call waits while a process follows another."""
    global longest
    while not stop.is_set():
        before = time.monotonic()
        # Nothing that the kernel knows by itself.
        (MNT / f"nothing-{before}").exists()
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.02)


rng = random.Random(SEED)
works = [sqlite, git, tar, files, listing] + ([fio] if shutil.which("fio") else [])
chosen = sys.argv[6].split(",") if len(sys.argv) > 6 else None
threads = [load(work) for work in works if not chosen or work.__name__ in chosen]
kills = 0
looking = threading.Thread(target=pauses, daemon=True)
looking.start()
time.sleep(0.5)
while not stop.is_set() and not (LOCAL / "stop").exists() if KILLS <= 0 else kills < KILLS and not stop.is_set():
    time.sleep(rng.uniform(0, PAUSE))
    if KILLS < 0:
        time.sleep(0.2)
        continue
    pid = worker()
    if pid is None: continue
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: continue
    kills += 1
    deadline = time.monotonic() + 60
    while worker() in (pid, None):
        if time.monotonic() > deadline:
            failures.append("no other process has come")
            stop.set()
            break
        time.sleep(0.005)
stop.set()
for thread in threads:
    thread.join(120)
    if thread.is_alive(): failures.append(f"{thread.name} hangs")
print(f"{kills} kills, seed {SEED}; rounds: {rounds}; the longest lookup took {longest:.2f} s", flush=True)
if failures:
    print("\n".join(failures), file=sys.stderr, flush=True)
    os._exit(1)
if files.model:
    files.appended.close(); files.edited.close(); files.gone.close()
    shutil.rmtree(LOCAL / "expected", ignore_errors=True)
    (LOCAL / "expected").mkdir()
    for name, data in files.model.items(): (LOCAL / "expected" / name).write_bytes(data)
if sqlite.last: (LOCAL / "rows").write_text(str(sqlite.last))
