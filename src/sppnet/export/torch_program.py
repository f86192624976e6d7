"""Writes a network as a program of `torch.export`, and runs it in a new process, which needs nothing of sppnet."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.export.tracing import exporting
from sppnet.runs.model_metadata import to_text

# Loads a program, runs it on batches of images, and saves its outputs, each with the logits, or the error.
SCRIPT = """
import sys, torch

class Runner(torch.fx.Interpreter):
    def call_function(self, target, args, kwargs):
        if target in (torch.ops.aten.softmax.int, torch.ops.aten.sigmoid.default):
            self.logits = args[0]  # those of the last one, which makes the probabilities
        return super().call_function(target, args, kwargs)

program, batches, results, threads, preprocess = sys.argv[1:]
module = torch.export.load(program).module()
torch.set_num_threads(int(threads))
found = []
for images in torch.load(batches, weights_only=True):
    try:
        with torch.no_grad():
            runner = Runner(module)
            runner.logits = None
            output = runner.run(images)
        found.append((output, runner.logits if preprocess == "True" else output))
    except Exception as error:
        found.append(str(error).partition("\\n")[0])
torch.save(found, results)
"""


def build_program(deployed: Deployed, example: Tensor, fixed: bool, metadata: Mapping[str, Any], advice: str) -> bytes:
    """Export a network with `torch.export`; the content of the file is returned. For the arguments, see `build_onnx`.

    Raises:
        UserError: the network cannot be exported.
    """
    free = dict.fromkeys(deployed.free_dimensions(fixed), torch.export.Dim.DYNAMIC)
    file = io.BytesIO()
    with exporting("pt2", advice):
        program = torch.export.export(deployed, (example,), dynamic_shapes={"images": free}, strict=False)
        torch.export.save(program, file, extra_files=to_text(metadata))
    return file.getvalue()


class ProgramRun:
    """Runs a program of `build_program` in a new process, and returns the logits beside the output.

    Args:
        content: the content of the file.
        preprocess: whether its output are probabilities.
    """

    def __init__(self, content: bytes, preprocess: bool) -> None:
        self.content, self.preprocess = content, preprocess

    def __call__(self, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | str]:
        """Run the program on batches of images.

        Raises:
            UserError: a temporary folder cannot be written to.
        """
        images = io.BytesIO()
        torch.save(list(batches), images)  # into a file, it would raise a RuntimeError if the disk is full
        with contextlib.ExitStack() as stack:
            try:
                name = stack.enter_context(tempfile.TemporaryDirectory(prefix="sppnet-"))
                program, inputs, results = (str(Path(name, file)) for file in ("program.pt2", "batches", "results"))
                Path(program).write_bytes(self.content)
                Path(inputs).write_bytes(images.getvalue())
            except OSError as error:
                raise UserError(
                    f"format=pt2: the folder for temporary files cannot be written to ({error.strerror}); TMPDIR=FOLDER"
                    " names another"
                ) from None
            settings = (str(torch.get_num_threads()), str(self.preprocess))
            command = [sys.executable, "-P", "-c", SCRIPT, program, inputs, results, *settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = done.stderr.strip().rpartition("\n")[2] or f"its process ended with code {done.returncode}"
                return [reason] * len(batches)
            found: list[tuple[Tensor, Tensor] | str] = torch.load(results, weights_only=True)
        return found
