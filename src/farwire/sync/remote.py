"""The worker's part of a sync: whichever end the controller does not have."""

from __future__ import annotations

import os

from . import messages as m
from .receiver import Receiver
from .sender import Sender, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def serve(channel: Any) -> None:
    """Run one end; the first item says which: ``("receive" or "send", path as bytes, options)``."""
    role, path, options = channel.receive()
    path = os.fsdecode(path)
    if role == "receive":
        Receiver(channel, path, options, _nobody).run()
        return

    def event(kind: str, *values: Any) -> None:
        if kind == "problem":
            channel.send((m.PROBLEM, os.fsencode(values[0]), values[1]))

    source = Source(path, options["exclude"], problem=lambda path, why: event("problem", path, why))
    try:
        sender = Sender(channel, source, event, options["dry_run"])
        channel.send(source.start(options["dry_run"]))
        sender.listen()
        source.scan(channel.send)
        sender.serve()
    finally:
        source.close()


def _nobody(*values: object) -> None:
    """The controller hears of everything from messages."""
