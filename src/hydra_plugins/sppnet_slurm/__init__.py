"""Hydra launcher that sends every job of a sweep to a SLURM cluster."""
