"""Sweeps of many runs: how they are planned, started and looked up.

1. The sweeper (`hydra_plugins/sppnet/row_sweeper.py`) expands overrides, axes and listed rows into one list of
   overrides per job. `hydra_launcher.py` composes a `SweepJob` from each list.
2. `sweep.py` plans the jobs. `Sweep` determines the run and the test of each job, skips jobs that are done, and groups
   jobs that share a run.
3. `study.py` records the sweep as `SweepPoint`s in `RUNS/STUDY/study.json`.
4. `local_launcher.py` runs the groups on this machine, on GPUs that `gpus.py` assigns. `slurm_launcher.py` submits them
   as job arrays.
5. Each job is an ordinary `sppnet COMMAND` process, which writes to its run directory (`sppnet.runs`).
6. `status.py` reads the state of a run from its directory.
7. `lookup.py` finds studies and their points for `sppnet status` and `sppnet report`.
"""
