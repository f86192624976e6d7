"""Turn option files and overrides into a checked configuration. Nothing here imports torch.

`option_files` finds the files under `conf/`, `overrides` prepares the command line for Hydra, and `compose` turns
overrides into a configuration. `schema` checks the configuration's keys and values with the rules in `validators`, and
`instantiate` builds objects of the classes that the configuration names. `merge` applies overrides to the stored
configuration of a run.
"""
