"""Rows of names: listings, walks, renames, mounting itself."""

import os
import subprocess
import time

from common import expect, first_line
from rows import Row


def list_long(directory, *options):
    done = subprocess.run(["ls", *options, directory], capture_output=True, text=True)
    expect(done.returncode == 0, first_line(done.stderr or "ls failed"))
    return done.stdout.splitlines()


class List(Row):
    name, shared = "list", True

    def title(self, sizes):
        return f"ls -l of {sizes['small']} files, cold"

    def prepare(self, case):
        case.store.put_small("small", case.sizes["small"])

    def work(self, case):
        lines = [line for line in list_long(case.path / "small", "-l") if " file-" in line]
        expect(len(lines) == case.sizes["small"], f"{len(lines)} names instead of {case.sizes['small']}")


class Find(Row):
    name, shared = "find", True

    def title(self, sizes):
        total = sizes["directories"] * sizes["entries"]
        return f"find -ls over {total:,} files in {sizes['directories']} directories, cold"

    def keys(self, sizes):
        return [f"tree/dir-{d:03}/file-{n:03}" for d in range(sizes["directories"]) for n in range(sizes["entries"])]

    def prepare(self, case):
        keys = self.keys(case.sizes)
        if case.store.count("tree/") != len(keys):
            case.store.put_many(((key, b"x" * 100) for key in keys), plain=True)

    def work(self, case):
        done = subprocess.run(["find", case.path / "tree", "-ls"], capture_output=True, text=True)
        expect(done.returncode == 0, first_line(done.stderr or "find failed"))
        found = sum(" -rw" in line or "/file-" in line for line in done.stdout.splitlines())
        expect(found == len(self.keys(case.sizes)), f"{found} files instead of {len(self.keys(case.sizes))}")


class ListPlain(Row):
    name, shared, plain, size = "list-plain", True, True, "plain"

    def title(self, sizes):
        return f"ls -l of {sizes[self.size]:,} keys that plain S3 tools wrote, cold"

    def prepare(self, case):
        directory, count = f"plain-{self.size}", case.sizes[self.size]
        if case.store.len_of(f"{directory}/done") is None:
            case.store.put_many(((f"{directory}/key-{n:07}", b"x" * 10) for n in range(count - 1)), plain=True)
            case.store.put(f"{directory}/done", b"x", plain=True)

    def work(self, case):
        found = len([line for line in list_long(case.path / f"plain-{self.size}", "-l") if line.startswith("-")])
        expect(found == case.sizes[self.size], f"{found} names instead of {case.sizes[self.size]}")


class ListMillion(ListPlain):
    # In the order of the directory, without attributes: so `ls` itself keeps little, and the first name can come early.
    name, size, optional = "list-million", "million", True

    def title(self, sizes):
        return f"ls -f of {sizes[self.size]:,} keys, cold"

    def work(self, case):
        start, found, case.first = time.monotonic(), 0, None
        with os.scandir(case.path / f"plain-{self.size}") as entries:
            for _ in entries:
                case.first = case.first or time.monotonic() - start
                found += 1
        expect(found == case.sizes[self.size], f"{found} names instead of {case.sizes[self.size]}")


class Rename(Row):
    name = "rename"

    def title(self, sizes):
        return f"rename {sizes['renamed']} files"

    def prepare(self, case):
        case.store.put_small("names", case.sizes["renamed"])

    def work(self, case):
        for number in range(case.sizes["renamed"]):
            os.rename(case.path / "names" / f"file-{number}", case.path / "names" / f"other-{number}")

    def check(self, case):
        case.store.expect_count("names/other-", case.sizes["renamed"])
        case.store.expect_count("names/file-", 0)


class Move(Row):
    name = "move"

    def title(self, sizes):
        return f"rename a directory of {sizes['moved']} files"

    def prepare(self, case):
        case.store.put_small("from", case.sizes["moved"])

    def work(self, case):
        os.rename(case.path / "from", case.path / "to")

    def check(self, case):
        case.store.expect_count("to/file-", case.sizes["moved"])
        case.store.expect_count("from/file-", 0)


class Mounting(Row):
    name, shared, in_milliseconds = "mount", True, True

    def title(self, sizes):
        return "mount, until the first stat"

    def work(self, case):
        pass

    def measured(self, case, mount, seconds):
        return mount.seconds


class Unmounting(Row):
    name, shared, in_milliseconds = "unmount", True, True

    def title(self, sizes):
        return "unmount what has nothing to store, until its process is gone"

    def work(self, case):
        os.listdir(case.path)

    def measured(self, case, mount, seconds):
        return mount.unmount()


ROWS = [List(), Find(), ListPlain(), ListMillion(), Rename(), Move(), Mounting(), Unmounting()]
