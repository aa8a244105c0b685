"""Rows of everyday tools that make trees: tar, git, npm, pip. What they unpack is made once, on the local disk."""

import base64
import hashlib
import json
import os
import random
import shutil
import tarfile
import zipfile

from common import ROOT, expect
from rows import Row, run

# Where all runs find what is unpacked; made by `make`, once for each.
_made = {}


def text(number, length):
    """Source-like text: compresses as text does."""
    words = ["let", "mount", "bucket", "key", "=", "(", ")", "match", "if", "return", "range", "offset", "\n    ", "\n"]
    source = random.Random(number)
    return " ".join(f"{source.choice(words)}{source.randrange(100)}" for _ in range(length // 7)).encode()


def sources(count):
    """Names and contents of a source tree: many files of some KiB, a few large ones, in nested directories."""
    source = random.Random(count)
    for number in range(count):
        length = 200_000 if number % 500 == 499 else int(source.lognormvariate(8, 1.1))
        yield f"src/part{number % 12}/unit{number % 60}/file{number}.rs", text(number, min(length, 200_000))


def made(work, kind, sizes, make):
    place = work / "trees" / kind
    if kind not in _made:
        place.mkdir(parents=True)
        make(place, sizes)
        _made[kind] = place
    return place


class TreeRow(Row):
    write_back, local = True, True

    def prepare(self, case):
        case.made = made(case.work, self.name, case.sizes, self.make)

    def check(self, case):
        for key, content in self.expected(case):
            case.store.expect_len(key, len(content))
            if content:
                expect(case.store.get(key, 0, len(content)) == content, f"{key} differs")


class Untar(TreeRow):
    name = "untar"

    def title(self, sizes):
        return f"tar -x of {sizes['sources']} source files"

    def make(self, place, sizes):
        with tarfile.open(place / "sources.tar", "w") as archive:
            directory = place / "tree"
            for name, content in sources(sizes["sources"]):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)
            # Without members for the directories: s3fs sets modes and times of a directory by copying its object onto
            # itself, and tar failed there with the server of the benchmark.
            for name in sorted(path for path in directory.rglob("*") if path.is_file()):
                archive.add(name, name.relative_to(place))
        shutil.rmtree(directory)

    def work(self, case):
        # Owners are kept only where tar runs as root; modes and times are kept by everybody who can.
        run("tar", "-xf", case.made / "sources.tar", "-C", case.path, "--no-same-owner")

    def expected(self, case):
        return [(f"tree/{name}", content) for name, content in list(sources(case.sizes["sources"]))[-3:]]


class GitClone(TreeRow):
    name = "git-clone"

    def title(self, sizes):
        return f"git clone of a repository of {sizes['sources']} files"

    def make(self, place, sizes):
        repository = place / "repository"
        for name, content in sources(sizes["sources"]):
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_bytes(content)
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]
        run("git", "init", "-q", "-b", "main", repository)
        run("git", "-C", repository, "add", ".")
        run("git", "-C", repository, *identity, "commit", "-q", "-m", "all")

    def work(self, case):
        # As from a server: a pack comes, and is indexed.
        quiet = ["-c", "advice.detachedHead=false", "-c", "safe.directory=*"]
        run("git", *quiet, "clone", "-q", f"file://{case.made / 'repository'}", case.path / "clone")

    def expected(self, case):
        return [(f"clone/{name}", content) for name, content in list(sources(case.sizes["sources"]))[-3:]]


class NpmInstall(TreeRow):
    name = "npm-install"

    def title(self, sizes):
        return f"npm install of {sizes['packages']} packages, {sizes['packages'] * 20:,} files"

    def files(self, number):
        yield "package.json", json.dumps({"name": f"part{number}", "version": "1.0.0", "main": "index.js"}).encode()
        for n in range(19):
            yield f"lib/{n % 4}/unit{n}.js", text(number * 100 + n, 500 + 331 * n)

    def make(self, place, sizes):
        for number in range(sizes["packages"]):
            source = place / "package"
            for name, content in self.files(number):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(content)
            with tarfile.open(place / f"part{number}-1.0.0.tgz", "w:gz") as archive:
                archive.add(source, "package")
            shutil.rmtree(source)

    def work(self, case):
        project = case.path / "project"
        project.mkdir()
        needs = {f"part{n}": f"file:{case.made / f'part{n}-1.0.0.tgz'}" for n in range(case.sizes["packages"])}
        about = {"name": "project", "version": "1.0.0", "dependencies": needs}
        (project / "package.json").write_text(json.dumps(about))
        command = ["npm", "install", "--offline", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        run(*command, "--cache", case.scratch / "npm", directory=project)

    def expected(self, case):
        last = case.sizes["packages"] - 1
        return [(f"project/node_modules/part{last}/{name}", content) for name, content in self.files(last)]


class PipInstall(TreeRow):
    name = "pip-install"

    def title(self, sizes):
        return f"pip install of a package of {sizes['modules']} modules, compiled too"

    def files(self, sizes):
        for number in range(sizes["modules"]):
            body = "\n".join(f"def f{n}(x):\n    return x + {n * number}" for n in range(20 + number % 60))
            yield f"bulk/part{number % 20}/unit{number}.py", body.encode()

    def make(self, place, sizes):
        about = "bulk-1.0.dist-info"
        files = dict(self.files(sizes))
        files[f"{about}/METADATA"] = b"Metadata-Version: 2.1\nName: bulk\nVersion: 1.0\n"
        files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        lines = []
        for name, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}")
        files[f"{about}/RECORD"] = "\n".join([*lines, f"{about}/RECORD,,", ""]).encode()
        with zipfile.ZipFile(place / "bulk-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)

    def work(self, case):
        # As into an environment that lies on the mount. Not --target: that copies times of directories, see `Untar`.
        command = [ROOT / ".venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        command += ["--no-deps", "--no-cache-dir", "--ignore-installed", "--prefix", case.path / "site"]
        command.append(case.made / "bulk-1.0-py3-none-any.whl")
        run(*command, environment=os.environ | {"TMPDIR": str(case.scratch), "HOME": str(case.scratch)})

    def expected(self, case):
        version = next((ROOT / ".venv/lib").glob("python3*")).name
        place = f"site/lib/{version}/site-packages"
        return [(f"{place}/{name}", content) for name, content in list(self.files(case.sizes))[-3:]]


ROWS = [Untar(), GitClone(), NpmInstall(), PipInstall()]
