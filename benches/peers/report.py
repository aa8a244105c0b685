"""Tables in Markdown from the results, and the page that holds them all."""

import pathlib

from common import GIB, MIB, SIZES, expect
from figures import Figures, moved, requests
from goals import GOALS, judge
from peers import PEERS
from plot import plot
from rows import all_rows

def title_of(peer):
    return PEERS[peer].title or peer


def aligned(lines):
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    texts = [[line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [texts[0], rule, *texts[1:]])


class Notes:
    """Reasons below a table, numbered by first use."""

    def __init__(self):
        self.texts = []

    def mark(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return f"cannot [{self.texts.index(text) + 1}]"

    def lines(self):
        return [f"[{number}] {text.replace('|', '/')}" for number, text in enumerate(self.texts, 1)]


def cell(figures, row, peer, notes, text):
    found = figures.median(row.name, peer)
    if found:
        return text(found)
    error = figures.error(row.name, peer)
    gone = figures.gave_up_after(row.name, peer)
    if gone:
        return f"> {gone:.0f} s"
    return notes.mark(error) if error else ""


def seconds_text(row):
    def text(found):
        if row.in_milliseconds:
            return f"{found['seconds'] * 1000:.1f} ms"
        return f"{found['seconds']:.3f}" if found["seconds"] < 1 else f"{found['seconds']:.2f}"

    return text


def requests_text(found):
    return f"{requests(found):,} / {moved(found) / MIB:,.1f}"


def cpu_text(row, sizes):
    def text(found):
        first = f"{found['cpu']:.2f} / {found['peak']:.0f}"
        length = row.length(sizes) if callable(row.length) else None
        return f"{first} / {found['cpu'] * GIB / length:.2f}" if length else first

    return text


def tables(figures, rows, sizes):
    """Three tables: seconds; requests and MiB moved; CPU and memory."""
    peers = [name for name in PEERS if any(name in figures.rows.get(row.name, {}) for row in rows)]
    rows = [row for row in rows if row.name in figures.rows]
    notes = Notes()

    def table(first, peers, text):
        lines = [[first, *(title_of(peer) for peer in peers)]]
        lines += [[row.title(sizes), *(cell(figures, row, p, notes, text(row)) for p in peers)] for row in rows]
        return aligned(lines)

    on_road = [peer for peer in peers if peer != "local"]
    parts = [table("seconds", peers, seconds_text)]
    parts.append("\n".join(f"- {line}" for line in notes.lines()))
    parts.append(table("requests / MiB moved", on_road, lambda _: requests_text))
    parts.append(table("CPU s / peak MiB / CPU s per GiB", on_road, lambda row: cpu_text(row, sizes)))
    return [part for part in parts if part]


def kinds_table(figures, rows, sizes):
    """What sandpail's requests are."""
    lines = [["sandpail's requests", "by kind"]]
    for row in rows:
        for us in ("sandpail", "write-back"):
            found = figures.median(row.name, us)
            if found:
                counts = sorted(found["requests"].items(), key=lambda pair: -pair[1])
                text = ", ".join(f"{count:,} {kind}" for kind, count in counts) or "none"
                mode = " (`--write-back`)" if us == "write-back" else ""
                lines.append([row.title(sizes) + mode, text])
    return aligned(lines)


def goal_table(results, sizes):
    delays = sorted(results["rows"], key=float)
    head = ["workload", "goal"]
    for delay in delays:
        head += [f"{float(delay):g} ms", ""]
    lines = [head]
    for goal in GOALS:
        line = [goal.workload, goal.goal]
        for delay in delays:
            figures = Figures(results["rows"][delay])
            figures.delay = float(delay)
            line += judge(goal, figures, sizes)
        lines.append(line)
    return aligned(lines)


def about_all(results):
    return [each for rows in results["about"].values() for each in rows.values()]


def sizes_of(results):
    forms = {each["form"] for each in about_all(results)}
    expect(len(forms) == 1, f"results of different forms cannot stand in one table: {', '.join(sorted(forms))}")
    return SIZES[forms.pop()]


def page(results, path):
    """Writes the page with all tables, and its plots beside it."""
    about, sizes = about_all(results), sizes_of(results)
    rows = [row for row in all_rows() if any(row.name in found for found in results["rows"].values())]
    parts = [(pathlib.Path(__file__).parent / "page.md").read_text().strip()]
    machines = sorted({each["machine"] for each in about})
    versions = sorted({version for each in about for version in each["versions"]})
    rounds = sorted({each["rounds"] for each in about})
    days = sorted({each["day"] for each in about})
    commands = list(dict.fromkeys(f"`{each['command']}`" for each in about))
    parts.append(
        f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} with {', '.join(commands)}; median of "
        f"{' or '.join(str(each) for each in rounds)}. {'; '.join(machines)}. {'; '.join(versions)}."
    )
    parts += ["## Goals", goal_table(results, sizes)]
    for delay in sorted(results["rows"], key=float):
        figures = Figures(results["rows"][delay])
        name = f"benchmarks-{float(delay):g}ms.svg"
        (path.parent / name).write_text(plot(figures, rows, sizes, title_of))
        away = "on the same machine" if float(delay) == 0 else f"a round trip of {float(delay):g} ms away"
        parts += [f"## The store is {away}", f"![Seconds of each peer, by row]({name})"]
        parts += tables(figures, rows, sizes)
        parts.append(kinds_table(figures, rows, sizes))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")


def plain(results):
    """For the terminal."""
    parts, sizes = [], sizes_of(results)
    for delay in sorted(results["rows"], key=float):
        found = [row for row in all_rows() if row.name in results["rows"][delay]]
        parts += [f"### {float(delay):g} ms", *tables(Figures(results["rows"][delay]), found, sizes)]
    return "\n\n".join(parts)
