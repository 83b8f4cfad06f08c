"""The protocol between controller and worker: bytes in, events out, no I/O.

Shipped to workers: standard library only, relative imports only.
"""
