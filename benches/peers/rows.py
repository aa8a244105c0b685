"""What a row is, and the list of all rows."""

import json
import os
import subprocess

from common import BLOCK_LEN, HERE, expect, first_line

LOAD = HERE / "tools/target/release/load"


class Case:
    """One run of a row: sizes, a name that no other run uses, the store past the mount, and, once mounted, the path."""

    def __init__(self, sizes, tag):
        self.sizes, self.tag, self.store, self.path = sizes, tag, None, None
        self.blocks = sizes["large"] // BLOCK_LEN


class Row:
    """Prepares the store, does the work that is timed, checks the store."""

    # All runs and peers read the same bucket; none writes into it.
    shared = False
    # Peers keep read data on the local disk, and the row compares with files that lie there.
    cache = False
    # Local disk takes part.
    local = False
    # Those who write back take part, too.
    write_back = False
    # Ends when everything is closed, for rclone too.
    ends_at_close = False
    # Only with --rows: takes long.
    optional = False
    # Shown in milliseconds.
    in_milliseconds = False
    # The files were written by plain S3 tools: who keeps blocks in the bucket cannot see them.
    plain = False
    # Bytes that are read or written, for a throughput; none for rows of many small things.
    length = None

    def title(self, sizes):
        raise NotImplementedError

    def prepare(self, case):
        pass

    def warm(self, case):
        """What happens in the mount before the time begins."""

    def work(self, case):
        """Returns the seconds, if they are not those of this call."""
        raise NotImplementedError

    def client(self, case, client):
        """The words for our client, if it can do the like without a mount."""
        return None

    def measured(self, case, mount, seconds):
        """The seconds to show, from those of the work and what the mount knows."""
        return seconds

    def check(self, case):
        pass


def load(*words):
    """Runs the reader that costs little itself; returns its seconds."""
    done = subprocess.run([str(word) for word in (LOAD, *words)], capture_output=True, text=True)
    expect(done.returncode == 0, first_line(done.stderr) if done.stderr else "the reader failed")
    return json.loads(done.stdout)["seconds"]


def run(*words, directory="/", environment=None):
    """Runs a program as a user would; its complaint is the row's."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=directory, env=environment, errors="replace"
    )
    complaint = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in complaint):
        wanted = complaint[-1:]
    else:
        wanted = [line for line in complaint if "rror" in line or "annot" in line or "fatal" in line] or complaint
    expect(done.returncode == 0, f"{os.path.basename(words[0])}: {wanted[0] if wanted else done.returncode}")
    return done.stdout


def all_rows():
    import rows_change
    import rows_names
    import rows_small
    import rows_streams
    import rows_trees

    return [row for part in (rows_streams, rows_small, rows_names, rows_change, rows_trees) for row in part.ROWS]
