"""Hydra sweeper for tables whose rows differ in several settings at once."""
