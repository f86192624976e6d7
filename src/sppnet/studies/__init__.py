"""Sweeps: many runs planned, started and looked up together.

1. The sweeper expands overrides, axes and listed rows into one list of overrides per job (Hydra's basic sweeper, or
   `hydra_plugins/sppnet/row_sweeper.py`). `hydra_launcher.py` composes each list into a `SweepJob`.
2. `sweep.py` plans the jobs: `Sweep` finds the run and the test of each, skips what is done, and groups jobs that share
   a training.
3. `study.py` records the sweep as `SweepPoint`s in `RUNS/STUDY/study.json`.
4. `local_launcher.py` starts the groups as processes on this machine, on GPUs that `gpus.py` assigns;
   `slurm_launcher.py` submits them as job arrays.
5. Each job is an ordinary `sppnet COMMAND` and writes its own run directory (`sppnet.runs`).
6. `status.py` reads the state of a run from its directory.
7. `lookup.py` finds studies and their points for `sppnet status` and `sppnet report`.
"""
