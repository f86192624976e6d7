"""Writes a network as an ONNX file that takes images of any size, and runs it with ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.runs.model_metadata import to_text
from sppnet.runs.onnx_checkpoint import DIGEST, weights_digest

if TYPE_CHECKING:
    import onnx

LIMIT = 2**31 - 1  # bytes; a protobuf message holds no more


def build_onnx(deployed: Deployed, example: Tensor, fixed: bool, metadata: Mapping[str, Any]) -> bytes:
    """Translate a network to ONNX; the content of the file is returned.

    Args:
        deployed: the network.
        example: images that it takes; its batch has at least two.
        fixed: whether the height and width of the images are those of `example`; the batch size is always free.
        metadata: see `sppnet.runs.model_metadata.describe`; the digest of the weights is added.

    Raises:
        UserError: the network cannot be translated, or it is too large.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in deployed.state_dict().values())
    if size > LIMIT:
        raise UserError(
            f"format=onnx: the network has {size / 2**30:.1f} GiB of weights, and an ONNX file holds at most 2 GiB;"
            " format=pt2 and format=safetensors hold more"
        )
    height, width = (1, 2) if deployed.preprocess else (2, 3)
    free = {0: "batch"} if fixed else {0: "batch", height: "height", width: "width"}
    with quiet(), torch.inference_mode():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=[deployed.output],
            dynamic_shapes={"images": free},
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    del model.metadata_props[:]
    for key, value in to_text({**metadata, DIGEST: weights_digest(model)}).items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "sppnet"
    model.producer_version = metadata["origin"]["version"]
    content: bytes = model.SerializeToString()
    return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters of torch print about steps that they take by themselves."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class OnnxRun:
    """Runs an ONNX file of `build_onnx`, and returns the logits beside the output.

    Args:
        content: the content of the file.
    """

    def __init__(self, content: bytes) -> None:
        import onnx
        import onnxruntime

        model = onnx.load_from_string(content)
        node = next(node for node in model.graph.node if node.output[0] == model.graph.output[0].name)
        self.names = [model.graph.output[0].name] * 2
        if node.op_type in ("Softmax", "Sigmoid"):
            self.names[1] = node.input[0]
            model.graph.output.add(name=node.input[0])  # the logits, for the comparison
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | str]:
        """Run the file on batches of images."""
        return [self._run(images) for images in batches]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor] | str:
        try:
            output, logits = self.session.run(list(dict.fromkeys(self.names)), {"images": images.numpy()}) * (
                1 if self.names[0] != self.names[1] else 2
            )
        except Exception as error:  # of the runtime, which has many
            return str(error).partition("\n")[0]
        return torch.from_numpy(output), torch.from_numpy(logits)
