"""Bytes that nobody vouches for, and the one form in which images reach the method."""
