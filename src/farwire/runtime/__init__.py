"""Threads and byte streams around the protocol; the same at both ends.

Shipped to workers: standard library only, relative imports only.
"""
