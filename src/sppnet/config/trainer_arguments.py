"""Which arguments of `lightning.Trainer` a configuration may give. Does not import Lightning.

The names come from the Trainer's own signature, read from Lightning's source file, because importing Lightning takes
seconds.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from sppnet.errors import format_value

REFUSED = {  # argument: why it is refused, and what to use instead
    "max_time": "a run that a clock ends cannot be repeated; use trainer.max_epochs or trainer.max_steps",
    "use_distributed_sampler": "the batch samplers divide the images among the processes themselves",
    "logger": "use logger=tensorboard or logger=wandb",
    "callbacks": "use +callbacks.NAME._target_=CLASS",
    "enable_checkpointing": "a run saves its checkpoints always; see checkpointing.every_n_steps",
    "enable_progress_bar": "use progress=none",
    "default_root_dir": "use paths.runs",
    "reload_dataloaders_every_n_epochs": "every epoch has the same number of batches, and a resumed run relies on it",
    "num_sanity_val_steps": "sizes, labels and files are checked before training, without running the network on them",
    "limit_predict_batches": "sppnet predict uses every image of its input",
    "fast_dev_run": "use debug=fast, which also tests saving and testing",
    "model_registry": "it names models that Lightning's ModelCheckpoint uploads, and a run saves its own",
    "barebones": "a run needs its checkpoints and records; use progress=none for less output",
}
SPAWNING = ("spawn", "fork", "notebook")  # parts of the names of strategies that start processes without a command line


class Argument(NamedTuple):
    """An argument of the Trainer: its annotation and its default, as they are written in Lightning's source file."""

    annotation: ast.expr | None
    default: ast.expr | None


@functools.cache
def trainer_arguments() -> dict[str, Argument]:
    """The Trainer's arguments by name, in the order of its signature."""
    package = importlib.util.find_spec("lightning")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    methods = (node for node in next(classes).body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    signature = next(methods).args
    pairs = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    return {argument.arg: Argument(argument.annotation, default) for argument, default in pairs}


def is_default(name: str, value: object) -> bool:
    """Whether `value` is the Trainer's own default of its argument `name`, so that giving it changes nothing."""
    default = trainer_arguments()[name].default
    return isinstance(default, ast.Constant) and (type(default.value), default.value) == (type(value), value)


def _type(annotation: ast.expr | None) -> Any:
    """The type that an annotation names, as far as it consists of plain values; Any for everything else."""
    if isinstance(annotation, ast.Name):
        return {"bool": bool, "int": int, "float": float, "str": str}.get(annotation.id, Any)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        types = [_type(node) for node in inner]
        if annotation.value.id == "Optional":
            return types[0] | None
        if annotation.value.id == "Union":
            return functools.reduce(operator.or_, types)
    return Any


def check_trainer_arguments(passed: Mapping[str, Any], usual: Iterable[str], strategy: object) -> None:
    """Check the arguments that are `passed` on, and that `strategy` does not spawn processes.

    Raises:
        ValueError: the Trainer has no such argument, or takes no such value, or a run could not keep its promises.
    """
    for name, value in passed.items():
        if name in REFUSED:
            raise ValueError(f"trainer.{name}={format_value(value)} is not allowed: {REFUSED[name]}")
        if name not in trainer_arguments():
            raise ValueError(f"unknown key trainer.{name}; {suggest_argument(name, usual)}")
        annotation = trainer_arguments()[name].annotation
        try:
            TypeAdapter(_type(annotation)).validate_python(value, strict=True)
        except ValidationError:
            takes = ast.unparse(annotation) if annotation else ""
            raise ValueError(
                f"trainer.{name}={format_value(value)} is not allowed: lightning.Trainer takes {takes}"
            ) from None
    if isinstance(strategy, str) and any(part in strategy for part in SPAWNING):
        raise ValueError(
            f"trainer.strategy={strategy} is not allowed: it starts processes that cannot resume a run; use ddp"
        )


def suggest_argument(name: str, usual: Iterable[str]) -> str:
    """Suggest the argument that the user may have meant by `name`, preferably one of the `usual` ones."""
    names = [name for name in trainer_arguments() if name not in REFUSED]
    if name in names:  # in hydra.sweeper.params, which Hydra reads itself
        return f"write +trainer.{name}, because the option file of trainer does not list it"
    near = get_close_matches(name, usual, n=1) or get_close_matches(name, names, n=1)
    hint = f"did you mean trainer.{near[0]}? " if near else ""
    return f"{hint}trainer has the arguments of lightning.Trainer: {', '.join(names)}"
