"""Medians, and questions to the results that tables and goals both ask."""

import re


class Figures:
    """What was measured at one delay: rows of cells, a cell for each peer."""

    def __init__(self, rows):
        self.rows = rows

    def median(self, row, peer):
        """The round with the median seconds, whole, so that its CPU and its requests belong together."""
        rounds = self.rows.get(row, {}).get(peer, {}).get("rounds") or []
        if self.error(row, peer) or not rounds:
            return None
        return sorted(rounds, key=lambda figures: figures["seconds"])[(len(rounds) - 1) // 2]

    def error(self, row, peer):
        return self.rows.get(row, {}).get(peer, {}).get("error")

    def gave_up_after(self, row, peer):
        """The seconds after which a peer was ended; what it would have taken is more."""
        found = re.match(r"gave up after (\d+) s", self.error(row, peer) or "")
        return float(found[1]) if found else None

    def seconds(self, row, peer):
        found = self.median(row, peer)
        return found["seconds"] if found else None

    def best(self, row, peers):
        """The peer with the least seconds, among those that could do it."""
        able = [peer for peer in peers if self.seconds(row, peer) is not None]
        return min(able, key=lambda peer: self.seconds(row, peer), default=None)


def requests(figures):
    return sum(figures["requests"].values())


def moved(figures):
    return figures["up"] + figures["down"]
