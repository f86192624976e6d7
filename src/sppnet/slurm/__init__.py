"""SLURM: `submit` sends jobs, `job` is a job's side of it (signals, requeueing), `queue` asks where jobs stand."""
