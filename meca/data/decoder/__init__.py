"""Decoding in processes of its own: `decode` turns bytes into pixels, `worker` does it behind walls, `pool` is what the rest of meca calls."""
