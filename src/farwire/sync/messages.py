"""What the two ends of a sync say to each other: items on one channel.

The *sender* has the source, the *receiver* the destination; which of them is the controller makes no difference.

    sender                                          receiver
      START       about the root
      LIST ...    directories, see ``listing``        compares, makes directories and links,
      LISTED      that was all                        asks for files as soon as it knows
                                                      WANT      files of which it has nothing
                                                      COMPARE   a file, and what is there (see ``delta``)
                                                      MORE      the rest of that, as it is read
                                                      TOTAL     bytes of all files asked for, after LISTED
      FILES       small files, whole
      BEGIN       a larger file, then in any order:
        bytes       new data
        OLD         a part of the basis
        HOLE        nothing but zeros
      END         that was the file
      SAME        it is what is there already
      SKIP        it cannot be had; also in the place of END
                                                      ACK       files that are in their places
                                                      PROBLEM   what went wrong with one path
                                                      DONE      everything is done; the report

The sender answers each index of a WANT and each COMPARE exactly once, with one of FILES, BEGIN ... END, SAME, SKIP. It always takes
what comes, in a thread of its own; so the receiver may block in ``send``, and the sender too, and neither waits for itself. The receiver
keeps what it has asked for within bounds (``ASKED``), so the sender need not.
"""

from __future__ import annotations

VERSION = 1

START = 0  # (START, {"version", "single": file name or None, "mode", "mtime", "dry_run"})
LIST = 1  # see ``listing``
LISTED = 2  # (LISTED,)
FILES = 3  # (FILES, [(directory, index, mode, mtime, data), ...])
BEGIN = 4  # (BEGIN, directory, index, size)
OLD = 5  # (OLD, offset, length)
HOLE = 6  # (HOLE, length)
END = 7  # (END, mode, mtime)
SAME = 8  # (SAME, directory, index, mode, mtime)
SKIP = 9  # (SKIP, directory, index, reason or None in a dry run)

WANT = 20  # (WANT, [(directory, packed u32 indices), ...])
COMPARE = 21  # (COMPARE, directory, index, size of the basis, size of a block, salt, rows)
MORE = 26  # (MORE, rows); after a COMPARE until its rows are complete, with no other question in between
TOTAL = 22  # (TOTAL, bytes)
ACK = 23  # (ACK, [(directory, index), ...])
PROBLEM = 24  # (PROBLEM, path as bytes, reason)
DONE = 25  # (DONE, {counts}, [(action, path as bytes), ...])

# Files up to this size travel several in one item, of up to BATCH_BYTES or BATCH_FILES.
SMALL = 256 << 10
BATCH_BYTES = 512 << 10
BATCH_FILES = 256
CHUNK = 512 << 10
# Bytes of COMPAREs and their MOREs that are not answered yet; a single one may be larger.
ASKED = 2 << 20
# What a sender takes of them before it calls the receiver broken: the description of 16 TiB.
ASKED_MAX = 64 << 20
