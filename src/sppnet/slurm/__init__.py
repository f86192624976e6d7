"""SLURM: `job.py` runs inside a job (rank, signals, requeueing); `queue.py` asks for job states from outside."""
