"""What Hydra accepts from this namespace only: the launchers of a sweep, and the sweeper over listed rows.

Hydra imports these modules at every start, so they import nothing heavy at the top. Hydra also executes a module before
it is in `sys.modules`, where dataclasses look up deferred annotations, so the modules do not defer theirs.
"""
