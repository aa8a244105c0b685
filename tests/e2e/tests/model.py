import os, random, sys

ours, theirs, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
for root in (ours, theirs):
    os.mkdir(root)
names = [f"f{n}" for n in range(6)] + [f"d{n}/f{m}" for n in range(3) for m in range(3)] + ["d0/e/g"]
directories = ["d0", "d1", "d2", "d0/e", "d3"]


def both(what, call):
    results = []
    for root in (ours, theirs):
        try:
            results.append(("ok", call(root)))
        except OSError as error:
            results.append(("error", error.errno))
    assert results[0] == results[1], f"seed {seed}: {what}: mount {str(results[0])[:300]}, local {str(results[1])[:300]}"


def write(root, name, flags, offset, data):
    f = os.open(os.path.join(root, name), flags, 0o644)
    try:
        os.pwrite(f, data, offset) if not flags & os.O_APPEND else os.write(f, data)
        return os.fstat(f).st_size
    finally:
        os.close(f)


def read(root, name):
    with open(os.path.join(root, name), "rb") as f:
        return f.read()


def tree(root):
    found = []
    for path, dirs, files in os.walk(root):
        for name in dirs + files:
            full = os.path.join(path, name)
            stat = os.lstat(full)
            found.append((os.path.relpath(full, root), stat.st_mode, stat.st_size if not os.path.isdir(full) else 0))
    return sorted(found)


for step in range(count):
    name, other, directory = rng.choice(names), rng.choice(names), rng.choice(directories)
    size = rng.choice([0, 1, 100, 5000, 70000, 300000] + ([6_000_000] if rng.random() < 0.05 else []))
    data, offset = rng.randbytes(size), rng.choice([0, 1, 4095, 4096, 100000, rng.randrange(200000)])
    operation = rng.choice("create overwrite append patch truncate read read unlink rename mkdir rmdir move chmod utime symlink".split())
    what = f"step {step}: {operation} {name} {other} {directory} size {size} offset {offset}"
    path = lambda root, part=name: os.path.join(root, part)
    if operation == "create":
        both(what, lambda root: write(root, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0, data))
    elif operation == "overwrite":
        both(what, lambda root: write(root, name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0, data))
    elif operation == "append":
        both(what, lambda root: write(root, name, os.O_APPEND | os.O_WRONLY, 0, data))
    elif operation == "patch":
        both(what, lambda root: write(root, name, os.O_RDWR, offset, data))
    elif operation == "truncate":
        both(what, lambda root: os.truncate(path(root), offset))
    elif operation == "read":
        both(what, lambda root: read(root, name))
    elif operation == "unlink":
        both(what, lambda root: os.unlink(path(root)))
    elif operation == "rename":
        both(what, lambda root: os.rename(path(root), path(root, other)))
    elif operation == "mkdir":
        both(what, lambda root: os.mkdir(path(root, directory)))
    elif operation == "rmdir":
        both(what, lambda root: os.rmdir(path(root, directory)))
    elif operation == "move":
        both(what, lambda root: os.rename(path(root, directory), path(root, "d3")))
    elif operation == "chmod":
        mode = rng.choice([0o600, 0o644, 0o755, 0o444])
        both(what, lambda root: os.chmod(path(root), mode))
        both(what, lambda root: os.stat(path(root)).st_mode)
    elif operation == "utime":
        both(what, lambda root: os.utime(path(root), (1_000_000_000, 1_000_000_000 + step)))
        both(what, lambda root: int(os.stat(path(root)).st_mtime) if os.stat(path(root)).st_mtime < 1.5e9 else 0)
    elif operation == "symlink":
        both(what, lambda root: os.symlink("f0", path(root, other)))
    if step % 50 == 49:
        both(f"tree after step {step}", tree)
both("tree at the end", tree)
for name in names:
    both(f"read {name} at the end", lambda root: read(root, name))
