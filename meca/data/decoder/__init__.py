"""Decoding in processes of its own: `decode` turns bytes into pixels, `worker` does it behind walls, `starter` makes workers.

`pool` is what the rest of meca calls.
"""
