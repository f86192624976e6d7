"""One run: its identity, its directory, and the trained network that it leaves.

- `plan.py`: configuration -> run directory and test hash, before anything is created.
- `identity.py`: the hashes behind both: what determines the weights, and what determines a test's metrics.
- `run_directory.py`: the directory itself: layout, lock, status, stored results.
- `provenance.py`: command, commit, packages and machine, written at every start.
- `ranks.py`: which process of a run this is; `slurm_status.py`: the SLURM job in `status.json`.
- `from_checkpoint.py`: `checkpoint=...` -> configuration and weights file of a trained network.
- `result_text.py`: a test result as printed lines.
"""
