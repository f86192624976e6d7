"""SLURM support.

- `job.py` handles rank, signals and requeueing inside a job.
- `queue.py` queries SLURM for the states of jobs.
"""
