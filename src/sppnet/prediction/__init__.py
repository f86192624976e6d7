"""Predictions for images without labels, and plots of what each bin of the pyramid adds to a logit.

- `predictor`: the stream of predictions; `output`: the table and JSON lines; `output_paths`: where files go
- `attribution`: what each bin adds to the logit; `attribution_plot`, `plot_files`: the PNG of it
"""
