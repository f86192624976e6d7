"""`sppnet bench` times sppnet against the usual alternatives and reports ratios.

`measurement.py` does the timing and defines the table's rows. Every other file measures one or two groups of rows:
`pooling_layer.py` (layer), `loading.py`, `views.py`, `windows.py`, `training_step.py` (step), `throughput.py`,
`compiled.py` (compile), `export.py`, `startup.py` (start and sweep). Most groups time sppnet and its alternative in one
process, switching between them on every call. `commands/bench.py` runs the groups.
"""
