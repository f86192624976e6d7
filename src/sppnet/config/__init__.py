"""From option files and overrides to a checked configuration. Nothing here imports torch.

`option_files` finds the files under `conf/`, `overrides` prepares the command line for Hydra, `compose` turns overrides
into a configuration, `schema` checks its names and values with the rules of `validators`, and `instantiate` builds the
classes that it names.
"""
