"""SLURM: `submit` sends jobs, `job` is a job's side of it (signals, requeueing), `mark` what a
run says of its job, `queue` asks where jobs stand."""
