"""Brings a directory here to where another one is, or the other way round.

    files      what is done with files, by descriptors of directories
    rules      patterns of what is left out
    listing    a tree as it travels
    delta      what two versions of a file have in common
    staging    where new files are written before they take their places
    messages   what the two ends say to each other: start here
    sender     the end that has the source
    receiver   the end that has the destination
    remote     the worker's task, which is one of the two

All of it runs at both ends, so it is written as shipped code is: for Python 3.6 and the standard library. It is not in the bundle:
the first sync through a gateway brings it along. What programs use is ``farwire.rsync``.
"""
