"""Export: files with a trained network that other programs run or load.

1. `commands/export.py` reads the checkpoint, and writes what the modules below return.
2. `graph.py` builds the content of an ONNX file or a program of `torch.export`, in steps 3 to 6.
3. `deployed.py` wraps the network: from images of 8 bits to probabilities, or from normalised images to logits.
4. `shapes.py` and `sample_images.py` choose the images on which the file is compared with the network.
5. `onnx_file.py` and `torch_program.py` (with `tracing.py`) translate the wrapped network, and run the result.
6. `verification.py` compares the result with the network.
7. `safetensors_file.py`, `hub_folder.py` and `model_card.py` write weights for other people.
8. `from_pretrained.py` loads a network in three lines.
"""
