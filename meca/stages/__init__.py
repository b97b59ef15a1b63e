"""The stages: one program each, files in, files out; `python -m meca.stages.<name> --help` says which."""
