"""Predictions for images without labels, and plots of what each bin of the pyramid adds to a logit.

- `predictor`: predictions for a stream of images, with the network of a checkpoint
- `onnx_network`: the same with an ONNX file, in ONNX Runtime
- `output`, `output_paths`: the table, the JSON lines, and the paths of all files
- `attribution`: what each bin adds to the logit
- `attribution_plot`, `plot_files`: the plot of an attribution, and its PNG file
"""
