"""Grids of benchmark cells, and the tables of their rows."""
