"""Turn option files and overrides into a checked configuration. Nothing here imports torch.

1. `option_files` finds the files under `conf/`, `command_line` prepares the command line for Hydra, `overrides` reads
   and quotes a single override, `sweep_jobs` expands a sweep into jobs, and `compose` turns overrides into plain data.
2. `schema` declares every key of a run, with its `marks`; `command_schemas` adds the keys of single commands, and
   `trainer_arguments` those that are passed on to Lightning. `load` turns plain data into an object of a schema.
3. `keys` answers what the schema says about a key: its words, what it determines, which commands may change it.
   `renamed_keys` answers the names of earlier layouts.
4. `overlay` finds out what a command line sets by itself, and `merge` applies it to the stored configuration of a run.
5. `instantiate` builds objects of the classes that a configuration names.
"""
