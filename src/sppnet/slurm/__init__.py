"""SLURM: `job` is a job's own side of it (signals, requeueing), `queue` asks where jobs stand."""
