"""SLURM: `sbatch_script.py` writes the script of a job array; `job.py` runs inside a job (rank, signals, requeueing);
`queue.py` asks for job states from outside.
"""
