"""Hydra launcher that starts every job of a sweep as a process of its own."""
