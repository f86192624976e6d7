"""A single run: its identity, its directory and the trained network that it produces.

- `plan.py` maps a configuration to a run directory and a test hash before anything is created.
- `identity.py` computes two hashes: that of a run, from everything that determines its weights, and that of a test,
  from everything that determines its metrics.
- `run_directory.py` defines the layout of the directory, its lock, its status and its stored results.
- `provenance.py` describes the command, commit, packages and machine, which are recorded each time a run starts.
- `ranks.py` removes stale rank variables from the environment and checks the number of processes.
- `slurm_status.py` provides the fields of `status.json` that describe the SLURM job.
- `checkpoint_files.py` finds and reads the files that `checkpoint=...` names.
- `from_checkpoint.py` resolves `checkpoint=...` to the configuration and the weights file of a trained network.
- `result_text.py` prints a test result.
"""
