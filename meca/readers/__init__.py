"""Readers: one file per format, from bytes that nobody vouches for to samples."""
