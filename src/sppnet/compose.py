"""From the command line to a plain, resolved configuration: Hydra's part of every verb.

Hydra composes; the job itself runs after Hydra has finished, so that its error handling (several lines, exit code 1)
and Lightning's detection of Hydra (which would restart ranks with a changed command line) stay out of the way.
Nothing here imports torch.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet import settings
from sppnet.errors import UserError

HERE = Path(__file__).resolve().parent


def root() -> Path:
    """Where `conf/` and `experiments/` lie: inside the installed package, or two levels up in a checkout."""
    return HERE if (HERE / "conf").is_dir() else HERE.parents[1]


@functools.cache
def _scratch() -> str:
    """A directory that ends with the process: Hydra insists on one for a sweep's multirun.yaml."""
    path = tempfile.mkdtemp(prefix="sppnet-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


OmegaConf.register_new_resolver("sppnet.root", lambda: str(root()), replace=True)
OmegaConf.register_new_resolver("sppnet.scratch", _scratch, replace=True)


@dataclass(frozen=True)
class Job:
    """One composed job: its resolved configuration as plain data and the overrides that were typed for it."""

    cfg: dict[str, Any]
    overrides: list[str]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve `cfg` into plain dicts and lists, without Hydra's own node.

    Raises:
        UserError: a mandatory value is missing or an interpolation leads nowhere.
    """
    keys = [str(key) for key in cfg if key != "hydra"]
    kept = OmegaConf.masked_copy(cfg, keys)
    try:
        made = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        # often one wrong value (sizes.train=[]) leaves nowhere for another key's interpolation to lead
        settings.check_values(OmegaConf.to_container(kept, resolve=False))
        raise UserError(_one_line(error)) from None
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def run(verb: str, job: Callable[[Job], None]) -> None:
    """Compose `conf/<verb>.yaml` with the command line and run `job` on the result (or sweep, under `-m`).

    Raises:
        UserError: an option, a key or a value that Hydra does not accept, as one line.
    """
    composed: list[tuple[DictConfig, list[str]]] = []

    def task(cfg: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        composed.append((cfg, overrides))
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # a launcher that is not ours calls us in its worker
            start()

    def start() -> None:
        while composed:
            cfg, overrides = composed.pop()
            made = Job(plain(cfg), overrides)
            _warn(made)
            job(made)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through; the dispatcher words them
    _settle_options()
    try:
        hydra.main(version_base="1.3", config_path=str(root() / "conf"), config_name=verb)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, verb)) from error
    except ValueError as error:
        if "Config group override must be" in str(error):
            raise UserError(_unnamed_option()) from error
        raise
    start()


def again(verb: str, overrides: list[str]) -> dict[str, Any]:
    """What `overrides` compose to now, as plain data; mandatory values may be missing."""
    with hydra.initialize_config_dir(str(root() / "conf"), version_base="1.3"):
        cfg = hydra.compose(verb, overrides)
    made = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def _warn(job: Job) -> None:
    """Say which of the values that were typed have no effect; defaults may lie idle, as `optim.schedule` has."""
    typed = {word.lstrip("+").partition("=")[0] for word in job.overrides}
    for key, why in settings.unused(job.cfg).items():
        if key in typed:
            print(f"sppnet: warning: {key} has no effect with {why}", file=sys.stderr)


def _settle_options() -> None:
    """Put options before overrides (Hydra's parser refuses `a=1 -m b=2`) and refuse an unknown one in one line (it
    would print its usage first)."""
    # --info's value is optional: without one it would take the override that then follows it
    words = [*sys.argv[1:], ""]
    bare = {"--info", "-i"}
    sys.argv[1:] = ["--info=all" if a in bare and (not b or "=" in b) else a for a, b in itertools.pairwise(words)]
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; options of Hydra are listed by --hydra-help, keys are given as KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    args = parser.parse_intermixed_args()
    if args.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not available: a run is repeated from its own config.yaml")
    options = list(sys.argv[1:])
    for override in args.overrides:
        options.remove(override)
    sys.argv[1:] = [*options, *args.overrides]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("object_type=", "full_key:", "reference_type=", "See http"))
    ]
    options = next((i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines))
    text = " ".join(lines[:options]) or type(error).__name__
    if lines[options + 1 :]:
        text += f"; there are {', '.join(lines[options + 1 :])}"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and str(key) not in text else text


def explain(error: BaseException, verb: str) -> str:
    """One line for an error of Hydra: what is wrong, and what there is instead."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    key = str(getattr(cause, "full_key", "") or "")
    if isinstance(error, ConfigCompositionException) and "Could not override" in str(error) and key:
        return _unknown_key(key, verb)
    text = re.sub(r"^In '[^']*': ", "", _one_line(error))
    if "No match in the defaults list" in text:
        return f"unknown group {text.split(chr(39))[1]}; groups are {', '.join(_groups())}"
    return text.split("Config search path:")[0].rstrip(" ,")


def _unnamed_option() -> str:
    """Hydra says neither which group was given something that is no name, nor what its names are."""
    names = {group: sorted(path.stem for path in (root() / "conf" / group).glob("*.yaml")) for group in _groups()}
    typed = [word.partition("=") for word in sys.argv[1:]]
    wrong = next(((group, value) for group, _, value in typed if group in names and value not in names[group]), None)
    if wrong is None:
        return f"a group takes the name of one of its options; groups are {', '.join(names)}"
    return f"{wrong[0]}={wrong[1]} is not allowed; it takes one of {', '.join(names[wrong[0]])}"


def _groups() -> list[str]:
    return sorted(path.name for path in (root() / "conf").iterdir() if path.is_dir())


def _unknown_key(key: str, verb: str) -> str:
    """`key` is in no config: name its neighbours, from the configuration as it is without overrides."""
    with hydra.initialize_config_dir(str(root() / "conf"), version_base="1.3"):
        node: Any = hydra.compose(verb)
    where = ""
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"unknown key {key}; {where} is a plain value"
        if part not in node:
            names = sorted({str(name) for name in node} | set(() if where else _groups()))
            near = get_close_matches(part, names, n=1)
            hint = f"did you mean {'.'.join(filter(None, (where, near[0])))}? " if near else ""
            return f"unknown key {key}; {hint}{where or 'the top level'} has {', '.join(names)}"
        node, where = node[part], f"{where}.{part}".lstrip(".")
    return f"unknown key {key} in this combination of options (a new key is added with +{key}=VALUE)"
