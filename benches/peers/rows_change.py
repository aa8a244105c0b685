"""Rows that change a part of a large file: what is moved tells as much as the time."""

from common import KIB, MIB, SMALL_LEN, Data, expect, small_bytes
from rows import Row


class AppendSmall(Row):
    name = "append"

    def title(self, sizes):
        return f"append 4 KiB to a file of {sizes['log'] // MIB} MiB, close; {sizes['appends']} times"

    def prepare(self, case):
        case.store.put_large("log", case.sizes["log"])

    def work(self, case):
        for number in range(case.sizes["appends"]):
            with open(case.path / "log", "ab", buffering=0) as file:
                file.write(small_bytes(number))

    def check(self, case):
        case.store.expect_len("log", case.sizes["log"] + case.sizes["appends"] * SMALL_LEN)
        for number in range(case.sizes["appends"]):
            at = case.sizes["log"] + number * SMALL_LEN
            expect(case.store.get("log", at, SMALL_LEN) == small_bytes(number), "an append is lost")


class Append(Row):
    name = "append-image"

    def title(self, sizes):
        return f"append 1 MiB to a file of {sizes['image'] // MIB} MiB, close"

    def prepare(self, case):
        case.store.put_large("image", case.sizes["image"])

    def work(self, case):
        with open(case.path / "image", "ab", buffering=0) as file:
            file.write(Data("appended").block(0))

    def check(self, case):
        length = case.sizes["image"]
        case.store.expect_len("image", length + MIB)
        expect(case.store.get("image", length, MIB) == Data("appended").block(0), "the appended bytes differ")
        expect(case.store.get("image", length - MIB, MIB) == Data("image").at(length - MIB, MIB), "the old end differs")


class Edit(Row):
    name = "edit"

    def title(self, sizes):
        return f"write 4 KiB in the middle of a file of {sizes['image'] // MIB} MiB, close"

    def prepare(self, case):
        case.store.put_large("image", case.sizes["image"])

    def work(self, case):
        with open(case.path / "image", "r+b", buffering=0) as file:
            file.seek(case.sizes["image"] // 2 + 1000)
            file.write(small_bytes(0))

    def check(self, case):
        middle = case.sizes["image"] // 2
        case.store.expect_len("image", case.sizes["image"])
        expected = bytearray(Data("image").at(middle, 8 * KIB))
        expected[1000 : 1000 + SMALL_LEN] = small_bytes(0)
        expect(case.store.get("image", middle, 8 * KIB) == expected, "the edited place differs")


ROWS = [AppendSmall(), Append(), Edit()]
