"""Bars as SVG, by hand: a group for each row, a bar for each peer. Readable on light and on dark pages."""

from xml.sax.saxutils import escape

WIDTH, LABEL, RIGHT = 900, 150, 110
BAR, GAP, GROUP = 13, 3, 34
COLOURS = {
    "sandpail": "#d9822b",
    "write-back": "#e8b04a",
    "s3fs": "#5b8db8",
    "rclone": "#4aa38a",
    "juicefs": "#7c9b3f",
    "juicefs-writeback": "#a3bd6a",
    "mountpoint": "#9270b5",
    "local": "#8a8f98",
    "client": "#6b7280",
}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.row { font-weight: 600; font-size: 13px; }
.none { fill: #7a828c; font-style: italic; }
.axis { stroke: #8a8f98; stroke-width: 1; }
@media (prefers-color-scheme: dark) { text { fill: #d7dde4; } .none { fill: #9aa3ad; } }
"""


def said(row, seconds):
    if row.in_milliseconds or seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def plot(figures, rows, sizes, title_of):
    """Within a row the slowest fills the width; shorter is better."""
    parts, y = [], 30
    for row in rows:
        cells = figures.rows.get(row.name)
        if not cells:
            continue
        known = {peer: figures.seconds(row.name, peer) for peer in cells}
        gone = {peer: figures.gave_up_after(row.name, peer) for peer in cells}
        longest = max([value for value in (*known.values(), *gone.values()) if value], default=None)
        if longest is None:
            continue
        parts.append(f'<text class="row" x="8" y="{y}">{escape(row.title(sizes))}</text>')
        y += 8
        top = y
        for peer in (name for name in COLOURS if name in cells):
            middle = y + BAR - 3
            parts.append(f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end">{escape(title_of(peer))}</text>')
            value = known[peer] or gone[peer]
            if value:
                width = max(1.5, (WIDTH - LABEL - RIGHT) * value / longest)
                colour = COLOURS[peer]
                faded = "" if known[peer] else ' opacity="0.45"'
                place = f'x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}"'
                parts.append(f'<rect {place} rx="2" fill="{colour}"{faded}/>')
                text = said(row, value) if known[peer] else f"more than {gone[peer]:.0f} s"
                parts.append(f'<text x="{LABEL + width + 6:.1f}" y="{middle}">{text}</text>')
            else:
                parts.append(f'<text class="none" x="{LABEL + 6}" y="{middle}">cannot</text>')
            y += BAR + GAP
        parts.append(f'<line class="axis" x1="{LABEL}" y1="{top - 2}" x2="{LABEL}" y2="{y - GAP + 2}"/>')
        y += GROUP - GAP
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Seconds of each peer, by row; shorter is better</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])
