"""The goals of this benchmark, each computed from one run: a text with the figure, and whether it is met.

A goal whose peer could not do the work, or was not there, is no claim: its verdict is open.
"""

from figures import moved, requests

OTHERS = ("s3fs", "rclone", "juicefs", "mountpoint")
DURABLE = ("s3fs", "juicefs", "mountpoint")


class Goal:
    def __init__(self, workload, goal, *parts):
        self.workload, self.goal, self.parts = workload, goal, parts


def faster(row, factor, peers, us="sandpail"):
    """Times as fast as the best of `peers`."""

    def part(figures, sizes):
        mine = figures.seconds(row, us)
        best = figures.best(row, peers)
        if mine is None:
            return f"{us}: {figures.error(row, us) or 'not measured'}", None
        if best is None:
            # Who gave up would have taken longer still.
            limits = [(figures.gave_up_after(row, peer), peer) for peer in peers if figures.gave_up_after(row, peer)]
            if not limits:
                measured = any(peer in figures.rows.get(row, {}) for peer in peers)
                return f"{' or '.join(peers)} {'cannot' if measured else 'not measured'}", None
            limit, name = min(limits)
            ratio = limit / mine
            return f"> {ratio:.2f} x {name}", ratio >= factor or None
        ratio = figures.seconds(row, best) / mine
        return f"{ratio:.2f} x {best}", ratio >= factor

    return part


def at_most(row, factor, field, peer, what, us="sandpail"):
    def part(figures, sizes):
        mine, theirs = figures.median(row, us), figures.median(row, peer)
        if not mine or not theirs or not field(theirs):
            return f"{what}: not measured", None
        ratio = field(mine) / field(theirs)
        return f"{what} {ratio:.2f} x {peer}", ratio <= factor

    return part


def below(row, limit, field, text, us="sandpail"):
    def part(figures, sizes):
        mine = figures.median(row, us)
        if not mine:
            return "not measured", None
        value = field(mine, figures)
        return text.format(value), value <= limit

    return part


def beyond_trips(limit, trips):
    """Milliseconds beyond so many round trips, for rows that the store's distance is part of."""

    def part(row):
        def judged(figures, sizes):
            mine = figures.median(row, "sandpail")
            if not mine:
                return "not measured", None
            value = mine["seconds"] * 1000 - trips * figures.delay
            text = f", {value:.1f} beyond {trips} round trip{'s' * (trips > 1)}" if trips and figures.delay else ""
            return f"{mine['seconds'] * 1000:.1f} ms{text}", value <= limit

        return judged

    return part


def beyond_client(row, limit):
    """Milliseconds beyond what our client takes, which needs one round trip more for its connection."""

    def part(figures, sizes):
        mine, client = figures.median(row, "sandpail"), figures.median(row, "client")
        if not mine or not client:
            return "our client: not measured", None
        value = (mine["seconds"] - client["seconds"]) * 1000 + figures.delay
        return f"{value:.1f} ms beyond our client without a mount", value <= limit

    return part


def kinds(row, allowed, us="sandpail"):
    def part(figures, sizes):
        mine = figures.median(row, us)
        if not mine:
            return "not measured", None
        asked = mine["requests"]
        text = ", ".join(f"{count:,} {kind}" for kind, count in sorted(asked.items()))
        return text or "no requests", all(asked.get(kind, 0) <= most for kind, most in allowed(sizes).items())

    return part


def cpu(figures):
    return figures["cpu"]


def peak(figures):
    return figures["peak"]


GOALS = [
    Goal(
        "cold sequential read, one file",
        "≥ 1.2 × Mountpoint, ≤ 0.6 × its CPU; ≥ 80 % of our client without a mount",
        faster("read", 1.2, ["mountpoint"]),
        at_most("read", 0.6, cpu, "mountpoint", "CPU"),
        faster("read", 0.8, ["client"]),
    ),
    Goal("4 cold streams at once", "≥ 1.2 × Mountpoint", faster("read-4", 1.2, ["mountpoint"])),
    Goal(
        "first byte of a cold file",
        "≤ 1 round trip + 2 ms",
        beyond_trips(2, 1)("first-byte"),
        beyond_client("first-byte", 2),
    ),
    Goal("cold random 128 KiB reads, 16 threads", "≥ 1.3 × the best peer", faster("random", 1.3, OTHERS)),
    Goal("warm sequential read", "≥ 0.95 × the local disk", faster("warm", 0.95, ["local"])),
    Goal("warm random 4 KiB reads", "≥ 0.95 × the local disk", faster("warm-random", 0.95, ["local"])),
    Goal("sequential write, close", "≥ 1.2 × the best durable peer", faster("write", 1.2, DURABLE)),
    Goal(
        "create small files, 16 at a time",
        "≥ 5 × s3fs, ≥ 1.5 × Mountpoint",
        faster("create-16", 5, ["s3fs"]),
        faster("create-16", 1.5, ["mountpoint"]),
    ),
    Goal(
        "create serially with `--write-back`",
        "≥ 20 × s3fs, ≥ rclone and JuiceFS",
        faster("create-wb", 20, ["s3fs"], us="write-back"),
        faster("create-wb", 1, ["rclone"], us="write-back"),
        faster("create-wb", 1, ["juicefs-writeback"], us="write-back"),
    ),
    Goal("cold read of small files", "≥ 3 × the best peer", faster("read-small", 3, OTHERS)),
    Goal(
        "cold `find -ls`",
        "≥ 2 × the best peer; ≤ 120 requests",
        faster("find", 2, OTHERS),
        below("find", 120, lambda mine, _: requests(mine), "{:,} requests"),
    ),
    Goal(
        "`ls -l` of keys written by plain S3 tools",
        "one LIST for 1,000 keys, no HEADs",
        kinds("list-plain", lambda sizes: {"LIST": sizes["plain"] // 1000 + 3, "HEAD": 1}),
    ),
    Goal(
        "listing a million keys",
        "≤ 64 MiB growth",
        below("list-million", 64, lambda mine, _: mine["growth"], "{:.0f} MiB growth"),
        below("list-million", 1, lambda mine, _: mine.get("first", 99), "first name after {:.3f} s"),
    ),
    Goal(
        "append 1 MiB to a large file",
        "≤ 10 % of the bytes that s3fs moves",
        at_most("append-image", 0.1, moved, "s3fs", "bytes"),
    ),
    Goal("edit 4 KiB inside it", "≤ 10 % of the bytes that s3fs moves", at_most("edit", 0.1, moved, "s3fs", "bytes")),
]
TREES = {"untar": "untar", "git-clone": "`git clone`", "npm-install": "`npm install`", "pip-install": "`pip install`"}
for _row, _title in TREES.items():
    GOALS.append(
        Goal(
            _title,
            "≥ 5 × s3fs durable; ≥ 0.5 × local disk with `--write-back`",
            faster(_row, 5, ["s3fs"]),
            faster(_row, 0.5, ["local"], us="write-back"),
        )
    )
GOALS += [
    Goal("mount to first stat", "≤ 30 ms beyond two round trips (connect, ask)", beyond_trips(30, 2)("mount")),
    Goal("unmount of a clean mount", "≤ 20 ms", beyond_trips(20, 0)("unmount")),
    Goal(
        "peak memory of the streams",
        "≤ 0.5 × Mountpoint's; 1 and 4 streams ≤ 256 and ≤ 512 MiB",
        at_most("read", 0.5, peak, "mountpoint", "1 stream"),
        at_most("read-4", 0.5, peak, "mountpoint", "4 streams"),
        below("read", 256, lambda mine, _: peak(mine), "{:.0f} MiB"),
        below("read-4", 512, lambda mine, _: peak(mine), "{:.0f} MiB"),
    ),
    Goal("readers at distant offsets of one descriptor", "≥ 3 × the best peer", faster("offsets", 3, OTHERS)),
    Goal("mmap of a safetensors-like file", "≥ 3 × the best peer", faster("mmap", 3, OTHERS)),
    Goal(
        "20 sandboxes reading one 256 MiB object cold",
        "one download",
        lambda figures, sizes: ("not in this benchmark yet", None),
    ),
]


def judge(goal, figures, sizes):
    found = [part(figures, sizes) for part in goal.parts]
    texts = "; ".join(text for text, _ in found)
    verdicts = [verdict for _, verdict in found]
    if any(verdict is False for verdict in verdicts):
        return texts, "**not met**"
    if any(verdict is None for verdict in verdicts):
        return texts, "open"
    return texts, "met"
