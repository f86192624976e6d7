"""`sppnet bench`: times sppnet and the usual alternative in turns, in one process, and reports their ratio.

`measurement.py` has the timing and the rows of the table. Every other file measures one group of rows:
`pooling_layer.py` (layer), `loading.py`, `views.py`, `windows.py`, `training_step.py` (step), `throughput.py`,
`compiled.py` (compile), `startup.py` (start and sweep). `commands/bench.py` runs them.
"""
