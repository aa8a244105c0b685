"""Rows of many small files: created, written back, read."""

import concurrent.futures
import os

from common import SMALL_LEN, expect, small_bytes
from rows import Row


class Create(Row):
    name, threads = "create", 1

    def title(self, sizes):
        return f"create {sizes['small']} files of 4 KiB, one after the other"

    def prepare(self, case):
        case.store.put("new/", directory=True)
        # Made ahead: making random bytes is no work of a mount.
        case.contents = [small_bytes(number) for number in range(case.sizes["small"])]

    def create(self, case, number):
        file = os.open(case.path / "new" / f"file-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, case.contents[number])
        finally:
            os.close(file)

    def work(self, case):
        if self.threads == 1:
            for number in range(case.sizes["small"]):
                self.create(case, number)
        else:
            with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda number: self.create(case, number), range(case.sizes["small"])))

    def check(self, case):
        case.store.expect_count("new/file-", case.sizes["small"])
        last = case.sizes["small"] - 1
        expect(case.store.get(f"new/file-{last}", 0, SMALL_LEN) == case.contents[last], "the last file differs")


class CreateSixteen(Create):
    name, threads = "create-16", 16

    def title(self, sizes):
        return f"create {sizes['small']} files of 4 KiB, {self.threads} at a time"


class CreateWriteBack(Create):
    # Who can, lets a close return before the bucket has the file; a row ends with the last close.
    name, write_back, ends_at_close, local = "create-wb", True, True, True

    def title(self, sizes):
        return f"create {sizes['small']} files of 4 KiB, one after the other, until closed"


class ReadSmall(Row):
    name, shared = "read-small", True

    def title(self, sizes):
        return f"read {sizes['small']} files of 4 KiB, cold"

    def prepare(self, case):
        case.store.put_small("small", case.sizes["small"])

    def work(self, case):
        for number in range(case.sizes["small"]):
            with open(case.path / "small" / f"file-{number}", "rb", buffering=0) as file:
                expect(len(file.read(2 * SMALL_LEN)) == SMALL_LEN, "a file is cut")

    def client(self, case, client):
        return ["small", "--at-once", "16", "--count", case.sizes["small"], "small/file-"]


ROWS = [Create(), CreateSixteen(), CreateWriteBack(), ReadSmall()]
