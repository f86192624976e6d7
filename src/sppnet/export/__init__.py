"""Export: files with a trained network that other programs run or load.

1. `commands/export.py` reads the checkpoint and builds the network.
2. `deployed.py` wraps the network: from images of 8 bits to probabilities, or from normalised images to logits.
3. `onnx_file.py` and `torch_program.py` write the wrapped network, and run what they have written.
4. `verification.py` compares that with the network at many shapes, before the file gets its name.
5. `safetensors_file.py`, `hub_folder.py` and `model_card.py` write weights for other people.
6. `from_pretrained.py` loads a network in three lines.
"""
