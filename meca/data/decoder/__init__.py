"""Decoding in processes of its own: `decode` turns bytes into pixels, `worker` does it behind walls, `starter` makes workers.

`pool` is what the rest of meca calls.
"""

__all__ = ["FITS"]

FITS = ("squash", "pad")  # how an image of another shape comes to a size: each side for itself; or as a whole, with borders
