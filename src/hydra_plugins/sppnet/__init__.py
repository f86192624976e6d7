"""Hydra plugins, which must be in this namespace: the launchers of a sweep, and the sweeper over listed rows.

Hydra imports these modules at every start, so heavy imports are inside functions. Hydra also executes a module before
it is in `sys.modules`, where `dataclasses` looks up deferred annotations, so these modules cannot use
`from __future__ import annotations`.
"""
