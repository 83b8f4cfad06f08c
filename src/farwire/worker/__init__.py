"""The program on the target.

Shipped to workers: standard library only, relative imports only. The controller never imports it.
"""
