"""SLURM support.

- `sbatch_script.py` builds the script of a job array.
- `job.py` handles rank, signals and requeueing inside a job.
- `queue.py` queries SLURM for the states of jobs.
"""
