"""The method: the paper and what we add to it, one file an idea."""
