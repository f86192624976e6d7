"""Writes a network as an ONNX file that takes images of any size, and runs it with ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
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
ACTIVATIONS = ("Softmax", "Sigmoid")  # the operators that make the probabilities


def build_onnx(deployed: Deployed, example: Tensor, fixed: bool, metadata: Mapping[str, Any]) -> bytes:
    """Translate a network to ONNX; the content of the file is returned.

    Args:
        deployed: the network.
        example: images that it takes, at least two.
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
    with exporting("onnx"):
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
    for key, value in to_text({**metadata, DIGEST: weights_digest(model)}).items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "sppnet", metadata["origin"]["version"]
    content: bytes = model.SerializeToString()
    return content


@contextlib.contextmanager
def exporting(format_name: str) -> Iterator[None]:
    """Silence the exporters of torch, and explain their errors in one line.

    Raises:
        UserError: an exporter fails.
    """
    noise = io.StringIO()  # the exporters print, and log, how far they got
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(noise),
            contextlib.redirect_stderr(noise),
            warnings.catch_warnings(action="ignore"),
            torch.no_grad(),
        ):
            yield
    except UserError:
        raise
    except Exception as error:  # the exporters run the network, which may raise any exception
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"format={format_name} cannot express this network: {reason}") from error
    finally:
        logging.disable(before)


class OnnxRun:
    """Runs an ONNX file of `build_onnx`, and returns the logits beside the output.

    Args:
        content: the content of the file.
    """

    def __init__(self, content: bytes) -> None:
        import onnx
        import onnxruntime

        model = onnx.load_from_string(content)
        output = model.graph.output[0].name
        last = next(node for node in model.graph.node if output in node.output)
        self.outputs = [output, output]
        if last.op_type in ACTIVATIONS:
            self.outputs[1] = last.input[0]
            model.graph.output.add(name=last.input[0])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what a run raises says the same
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | str]:
        """Run the file on batches of images. For a batch that it refuses, the result is the reason."""
        return [self._run(images) for images in batches]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor] | str:
        try:
            output, logits = (self.session.run([name], {"images": images.numpy()})[0] for name in self.outputs)
        except Exception as error:  # the runtime has exceptions of its own
            return str(error).partition("\n")[0]
        return torch.from_numpy(output), torch.from_numpy(logits)
