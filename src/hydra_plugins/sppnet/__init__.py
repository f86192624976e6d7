"""Hydra plugins: launchers for sweeps, and a sweeper over listed rows. Hydra finds plugins only in `hydra_plugins`.

Hydra imports these modules at every start, so heavy imports are inside functions. Hydra also executes a module before
adding it to `sys.modules`, where `dataclasses` looks up deferred annotations. These modules therefore cannot use
`from __future__ import annotations`.
"""
