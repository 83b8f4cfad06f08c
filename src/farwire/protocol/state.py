"""Every state of a channel and every transition, in one table that knows no roles.

The same table holds at both ends; "sent" and "received" are as seen from the end that asks. What is not in the table is a
mistake: ours when we wanted to send it, the peer's when it came in.

    OPEN ----sent EOF-----> LOCAL_EOF --received EOF--> BOTH_EOF
      `-----received EOF--> REMOTE_EOF ---sent EOF-----'
    any of these --sent CLOSE--> CLOSING --received CLOSE--> CLOSED
    any of these --received CLOSE--> CLOSED        (a CLOSE goes back)

Each side sends CLOSE once; after both, the channel's number is forgotten.
"""

from __future__ import annotations

OPEN, LOCAL_EOF, REMOTE_EOF, BOTH_EOF, CLOSING, CLOSED = range(6)
STATE_NAMES = ("OPEN", "LOCAL_EOF", "REMOTE_EOF", "BOTH_EOF", "CLOSING", "CLOSED")

SENT_DATA, SENT_EOF, SENT_CLOSE, RECEIVED_DATA, RECEIVED_EOF, RECEIVED_CLOSE = range(6)
EVENT_NAMES = ("sent data", "sent EOF", "sent CLOSE", "received data", "received EOF", "received CLOSE")

TRANSITIONS = {
    (OPEN, SENT_DATA): OPEN,
    (OPEN, SENT_EOF): LOCAL_EOF,
    (OPEN, SENT_CLOSE): CLOSING,
    (OPEN, RECEIVED_DATA): OPEN,
    (OPEN, RECEIVED_EOF): REMOTE_EOF,
    (OPEN, RECEIVED_CLOSE): CLOSED,
    (LOCAL_EOF, SENT_CLOSE): CLOSING,
    (LOCAL_EOF, RECEIVED_DATA): LOCAL_EOF,
    (LOCAL_EOF, RECEIVED_EOF): BOTH_EOF,
    (LOCAL_EOF, RECEIVED_CLOSE): CLOSED,
    (REMOTE_EOF, SENT_DATA): REMOTE_EOF,
    (REMOTE_EOF, SENT_EOF): BOTH_EOF,
    (REMOTE_EOF, SENT_CLOSE): CLOSING,
    (REMOTE_EOF, RECEIVED_CLOSE): CLOSED,
    (BOTH_EOF, SENT_CLOSE): CLOSING,
    (BOTH_EOF, RECEIVED_CLOSE): CLOSED,
    # What the peer sent before it saw our CLOSE is still on its way: it is dropped.
    (CLOSING, RECEIVED_DATA): CLOSING,
    (CLOSING, RECEIVED_EOF): CLOSING,
    (CLOSING, RECEIVED_CLOSE): CLOSED,
}

CAN_SEND = (True, False, True, False, False, False)
CAN_RECEIVE = (True, True, False, False, True, False)
