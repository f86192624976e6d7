"""`sppnet bench` times sppnet against the usual alternatives and reports ratios.

Most groups call the two alternately in one process.

`measurement.py` does the timing and defines the table's rows. Every other file measures one or two groups of rows:
`pooling_layer.py` (layer), `loading.py`, `views.py`, `windows.py`, `training_step.py` (step), `throughput.py`,
`compiled.py` (compile), `startup.py` (start and sweep). `commands/bench.py` runs them.
"""
