"""Writes a network as an ONNX file that takes images of any size, and runs it with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.export.tracing import exporting
from sppnet.runs.model_metadata import to_text
from sppnet.runs.onnx_checkpoint import open_session, sealed

if TYPE_CHECKING:
    import onnx

LIMIT = 2**31 - 1  # bytes; a protobuf message holds no more
ACTIVATIONS = ("Softmax", "Sigmoid")  # the operators that make the probabilities


def build_onnx(deployed: Deployed, example: Tensor, fixed: bool, metadata: Mapping[str, Any], advice: str) -> bytes:
    """Translate a network to ONNX; the content of the file is returned.

    Args:
        deployed: the network.
        example: images that it takes, at least two.
        fixed: whether the height and width of the images are those of `example`; the batch size is always free.
        metadata: see `sppnet.runs.model_metadata.describe`; a digest of the file is added.
        advice: what to do if the network cannot be translated.

    Raises:
        UserError: the network cannot be translated, or it is too large.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in deployed.state_dict().values())
    if size > LIMIT:
        raise UserError(
            f"format=onnx: the network has {size / 2**30:.1f} GiB of weights, and an ONNX file holds at most 2 GiB;"
            " format=pt2 and format=safetensors hold more"
        )
    with exporting("onnx", advice):
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=[deployed.output],
            dynamic_shapes={"images": deployed.free_dimensions(fixed)},
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    del model.metadata_props[:]
    for key, value in to_text(metadata).items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "sppnet", metadata["origin"]["version"]
    return sealed(model.SerializeToString())


class OnnxRun:
    """Runs an ONNX file of `build_onnx`, and returns the logits beside the output.

    Args:
        content: the content of the file.
        preprocess: whether its output are probabilities, so that its last operator takes the logits.
    """

    def __init__(self, content: bytes, preprocess: bool) -> None:
        import onnx

        model = onnx.load_from_string(content)
        self.outputs = [model.graph.output[0].name]
        if preprocess:
            last = next(node for node in model.graph.node if self.outputs[0] in node.output)
            assert last.op_type in ACTIVATIONS, last.op_type
            self.outputs.append(last.input[0])
            model.graph.output.add(name=last.input[0])
        self.session = open_session(model.SerializeToString(), torch.get_num_threads())

    def __call__(self, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | str]:
        """Run the file on batches of images. For a batch that it refuses, the result is the reason."""
        return [self._run(images) for images in batches]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor] | str:
        try:
            found = self.session.run(self.outputs, {"images": images.numpy()})
        except Exception as error:  # the runtime has exceptions of its own
            return str(error).partition("\n")[0][:300]
        return torch.from_numpy(found[0]), torch.from_numpy(found[-1])
