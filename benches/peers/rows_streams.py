"""Rows of large files: streams, random reads, models, the disk cache, writes."""

import json
import mmap
import os
import random
import time

from common import BLOCK_LEN, KIB, MIB, PAGE_LEN, Data, expect
from rows import Row, load


class Read(Row):
    name, shared = "read", True

    def title(self, sizes):
        return f"read a file of {sizes['large'] // MIB} MiB, cold"

    def length(self, sizes):
        return sizes["large"]

    def prepare(self, case):
        case.store.put_large("large", case.sizes["large"])

    def work(self, case):
        return load("stream", case.path / "large")

    def client(self, case, client):
        return ["stream", "large"]


class ReadFour(Row):
    name, shared, count = "read-4", True, 4

    def title(self, sizes):
        return f"{self.count} files of {sizes['large'] // 2 // MIB} MiB at once, cold"

    def length(self, sizes):
        return self.count * sizes["large"] // 2

    def keys(self):
        return [f"stream-{n}" for n in range(self.count)]

    def prepare(self, case):
        for key in self.keys():
            case.store.put_large(key, case.sizes["large"] // 2)

    def work(self, case):
        return load("stream", *(case.path / key for key in self.keys()))

    def client(self, case, client):
        return ["stream", *self.keys()]


class First(Row):
    name, shared, in_milliseconds = "first-byte", True, True

    def title(self, sizes):
        return f"first byte of a file of {sizes['large'] // MIB} MiB, cold"

    def prepare(self, case):
        case.store.put_large("large", case.sizes["large"])

    def warm(self, case):
        # The name is known, as after an `ls`; the data is not.
        os.stat(case.path / "large")

    def work(self, case):
        start = time.monotonic()
        file = os.open(case.path / "large", os.O_RDONLY)
        found = os.pread(file, 8, 0)
        seconds = time.monotonic() - start
        os.close(file)
        expect(found == bytes(8), "the first page is another")
        return seconds

    def client(self, case, client):
        return ["first", "large"]


class Random(Row):
    name, shared, threads, block = "random", True, 16, 128 * KIB

    def title(self, sizes):
        return f"{sizes['blocks']} random reads of 128 KiB, {self.threads} threads, cold"

    def length(self, sizes):
        return sizes["blocks"] * self.block

    def prepare(self, case):
        case.store.put_large("large", case.sizes["large"])

    def work(self, case):
        words = ["random", "--block", self.block, "--threads", self.threads, "--count", case.sizes["blocks"]]
        return load(*words, case.path / "large")

    def client(self, case, client):
        words = ["random", "--block", self.block, "--at-once", self.threads, "--count", case.sizes["blocks"]]
        return [*words, "large"]


class Offsets(Row):
    name, shared, readers = "offsets", True, 8

    def title(self, sizes):
        return f"{self.readers} readers at distant offsets of one descriptor, {self.each(sizes) // MIB} MiB each, cold"

    def each(self, sizes):
        return sizes["large"] // self.readers // 2

    def length(self, sizes):
        return self.each(sizes) * self.readers

    def prepare(self, case):
        case.store.put_large("large", case.sizes["large"])

    def work(self, case):
        return load("offsets", "--readers", self.readers, "--each", self.each(case.sizes), case.path / "large")


class Mmap(Row):
    # As a model is loaded from a safetensors file: a header that says where each tensor lies, then the tensors of each
    # layer, in the order in which the program has its layers and not in that of the file.
    name, shared, header_len = "mmap", True, BLOCK_LEN

    def title(self, sizes):
        return f"load a safetensors-like file of {sizes['large'] // MIB} MiB by mmap, cold"

    def length(self, sizes):
        return sizes["large"]

    def prepare(self, case):
        key, length = "model.safetensors", case.sizes["large"]
        if case.store.len_of(key) == length:
            return
        order = list(range(1, case.blocks, 8))
        random.Random(7).shuffle(order)
        tensors = {
            f"layer.{n}": {"data_offsets": [at * BLOCK_LEN, min(at + 8, case.blocks) * BLOCK_LEN]}
            for n, at in enumerate(order)
        }
        text = json.dumps(tensors).encode()
        header = (len(text).to_bytes(8, "little") + text).ljust(self.header_len)
        blocks = Data(key).blocks(length)
        next(blocks)
        case.store.put(key, (piece for part in ([header], blocks) for piece in part), length=length)

    def work(self, case):
        path = case.path / "model.safetensors"
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            tensors = json.loads(view[8 : 8 + int.from_bytes(view[:8], "little")])
            total = self.header_len
            for tensor in tensors.values():
                start, end = tensor["data_offsets"]
                for at in range(start, end, BLOCK_LEN):
                    piece = view[at : at + BLOCK_LEN]
                    expect(int.from_bytes(piece[:8], "big") == at // PAGE_LEN, f"another page at {at}")
                    total += len(piece)
        expect(total == case.sizes["large"], "a part is missing")


class Warm(Row):
    name, shared, cache, local = "warm", True, True, True

    def title(self, sizes):
        return f"read a file of {sizes['large'] // MIB} MiB again, disk cache on"

    def length(self, sizes):
        return sizes["large"]

    def prepare(self, case):
        case.store.put_large("large", case.sizes["large"])

    def warm(self, case):
        # Twice: the first time fills the cache, the second may still wait for what is being written there.
        for _ in range(2):
            load("stream", case.path / "large")
        # A cache is filled in the background; peers get the same time for it.
        time.sleep(1)
        load("stream", case.path / "large")

    def work(self, case):
        return load("stream", case.path / "large")


class WarmRandom(Warm):
    name = "warm-random"

    def title(self, sizes):
        return f"{sizes['pages']:,} random reads of 4 KiB of it, disk cache on"

    def length(self, sizes):
        return sizes["pages"] * 4 * KIB

    def work(self, case):
        return load("random", "--block", 4 * KIB, "--count", case.sizes["pages"], case.path / "large")


class Write(Row):
    name = "write"

    def title(self, sizes):
        return f"write a file of {sizes['large'] // MIB} MiB, close"

    def length(self, sizes):
        return sizes["large"]

    def work(self, case):
        data = Data("written")
        with open(case.path / "written", "wb", buffering=0) as file:
            for block in data.blocks(case.sizes["large"]):
                count = 0
                while count < len(block):
                    count += file.write(block[count:])

    def check(self, case):
        case.store.expect_large("written", "written", case.sizes["large"])


ROWS = [Read(), ReadFour(), First(), Random(), Offsets(), Mmap(), Warm(), WarmRandom(), Write()]
