"""The identities of runs and tests, and their hashes. Does not import torch.

The identity of a run is everything that determines its weights; the identity of a test is everything that determines
its metrics. The schema marks what each key determines, and a key without a mark determines the weights. Data and
weights are identified by their content, never by their path.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.config.instantiate import user_source_files
from sppnet.config.keys import Key, select, without_effect
from sppnet.config.load import replace
from sppnet.config.schema import LAYOUT, Backbone, Config, OpenSection, OwnLoss
from sppnet.config.timm_networks import TIMM, weights_tag
from sppnet.errors import UserError
from sppnet.runs.checkpoint_files import WEIGHTS, is_hub_folder, locate
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record
from sppnet.storage.paths import expand_path

if TYPE_CHECKING:
    from sppnet.data import ImageSet

# A network is tested on one device. Otherwise, the hash of a test would depend on how many devices the run trained on.
ONE_DEVICE = {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}
# The sections whose classes build a network and determine its scores and losses.
NETWORK_SECTIONS = ("backbone", "pooling", "head", "loss")
LOWER_IS_BETTER = ("loss", "calibration_error")  # of the metrics that are built in
TABLE = "sppnet.data.Table"
# Arguments of TABLE. The fingerprint of the data set covers what they determine: the classes, labels, parts and groups.
IN_FINGERPRINT = ("file", "separator", "columns")
FORMAT = 2  # increment it when a code change alters the weights that a configuration produces


def run_identity(cfg: Config, images: ImageSet) -> dict[str, Any]:
    """Everything that determines the weights of a run on `images`, as plain data.

    Raises:
        UserError: the weights file, the run to start from or the module of a user class does not exist.
    """
    cfg = _without_default_monitor(cfg, images)
    config = _select(cfg, lambda key: key.affects.weights)
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "config": config,
        "callback_order": list(cfg.callbacks),  # Lightning calls them in this order
        "data.fingerprint": images.fingerprint(),
        "loss.name": _loss_name(cfg, images),
        "code": own_class_digests({"config": config, "strategy": strategy(cfg)}),
        "backbone.weights": weights_identity(cfg.backbone),
        "strategy": strategy(cfg),
        "world_size": world_size(cfg),
        **_monitored(cfg),
        **({"init": init_identity(cfg.init)} if cfg.init is not None else {}),
    }


def eval_identity(cfg: Config, weights: str, images: ImageSet) -> dict[str, Any]:
    """Everything that determines the metrics of a test on `images`; `weights` is a `TrainedNetwork.name`."""
    batches, code = cfg.trainer.limit_test_batches, own_class_digests(_metrics(cfg))
    limit = {"batches": batches, "batch_size": cfg.data.batch_size, "processes": world_size(cfg)}
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "config": _select(cfg, lambda key: key.affects.test),
        "weights": weights,
        "fingerprint": images.fingerprint(),
        "limit": None if batches is None else limit,  # which images are scored
        **({"code": code} if code else {}),  # of the user's metrics
    }


def _select(cfg: Config, keep: Callable[[Key], bool]) -> dict[str, Any]:
    """Select the keys that `keep` accepts, without those that have no effect, such as data.crop for whole images."""
    ineffective = without_effect(cfg)
    keys = select(cfg, lambda key: keep(key) and not any(f"{key.name}.".startswith(f"{k}.") for k in ineffective))
    backbone = keys.get("backbone") or {}
    if backbone.get("_target_") == TIMM:  # neither a tag of weights nor 0 instead of 0.0 makes another network
        arch, drop_path = str(backbone.get("arch")).partition(".")[0], backbone.get("drop_path", 0.0)
        drop_path = float(drop_path) if isinstance(drop_path, int) else drop_path
        keys["backbone"] = backbone | {"arch": arch, "drop_path": drop_path}
    if cfg.data.target == TABLE:
        keys["data"] = {name: value for name, value in keys["data"].items() if name not in IN_FINGERPRINT}
    return keys


def _metrics(cfg: Config) -> dict[str, Any]:
    return {name: node.plain() for name, node in cfg.metrics.items()}


def _monitored(cfg: Config) -> dict[str, Any]:
    """The user's metrics that select the best weights or may end the training, and their code; nothing without any."""
    callbacks = [(node.target, (node.model_extra or {}).get("monitor")) for node in cfg.callbacks.values()]
    names = {str(name).rpartition("/")[2] for name in (cfg.checkpointing.monitor, *(name for _, name in callbacks))}
    may_read_all = any(not target.startswith("lightning.") for target, _ in callbacks)
    monitored = {name: node for name, node in _metrics(cfg).items() if may_read_all or name in names}
    if not monitored:
        return {}
    pairs = {name: [list(pair) for pair in node.items()] for name, node in monitored.items()}
    return {"monitored": pairs, "monitored.code": own_class_digests(monitored)}


def _without_default_monitor(cfg: Config, images: ImageSet) -> Config:
    """Return `cfg` without the keys of `checkpointing` that choose the same best weights as their defaults."""
    monitor, mode = cfg.checkpointing.monitor, cfg.checkpointing.mode
    name = str(monitor).rpartition("/")[2]
    if name not in cfg.metrics and mode == ("min" if name in LOWER_IS_BETTER else "max"):
        mode = None
    if monitor == f"val/{'map' if images.multilabel else 'top1'}" and mode is None:
        monitor = None
    return replace(cfg, {"checkpointing.monitor": monitor, "checkpointing.mode": mode})


def _loss_name(cfg: Config, images: ImageSet) -> str | None:
    """The name of the loss, in which `auto` means one of two; None for the user's own, which `config` identifies."""
    if isinstance(cfg.loss, OwnLoss):
        return None
    return ("cross_entropy", "bce")[images.multilabel] if cfg.loss.name == "auto" else cfg.loss.name


def strategy(cfg: Config) -> Any:
    """The strategy with which Lightning trains: `trainer.strategy`, in which `auto` means DDP for several processes."""
    chosen = cfg.trainer.strategy
    if chosen == "auto":
        return "ddp" if world_size(cfg) > 1 else "auto"
    return chosen.plain() if isinstance(chosen, OpenSection) else chosen


def digest(identity: Mapping[str, Any]) -> str:
    """Return the first ten hex digits of the SHA-256 hash of `identity` as JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def format_mismatch(number: object) -> str:
    """Return a remark if a result's format `number` differs from `FORMAT`; "" if they are equal or `number` is None."""
    if number in (None, FORMAT):
        return ""
    return f"results in format {number}, from a version of sppnet that trains differently"


def world_size(cfg: Config) -> int:
    """The number of processes that train together: devices x nodes."""
    devices = cfg.trainer.devices
    return (len(devices) if isinstance(devices, list) else devices) * cfg.trainer.num_nodes


def weights_identity(backbone: Backbone) -> str | None:
    """The SHA-256 digest of a weights file, or the name of weights of torchvision or timm.

    Raises:
        UserError: `backbone.weights` is a folder, or looks like a path, but no such file exists; or a network of timm
            has no such weights.
    """
    if (weights := backbone.weights) is None:
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return file_digest(path)
    if is_hub_folder(path):
        raise UserError(f"backbone.weights={weights} is a folder; give its file {path / WEIGHTS}")
    if "/" in weights or path.suffix:
        hint = " (of a run: checkpoints/best.ckpt, or init=RUN for the whole network)" if path.is_dir() else ""
        raise UserError(f"backbone.weights={weights}: no such file{hint}")
    return weights_tag(backbone.node()["arch"], weights) if backbone.target == TIMM else weights


def init_identity(init: str) -> str:
    """What identifies the weights that `init` names: the hash of a run for its best weights, otherwise a file's digest.

    The hash covers everything that determines the weights of a run, so a study can be planned before the runs that it
    starts from are done, and after their checkpoints have been deleted.

    Raises:
        UserError: `init` names neither a file nor a run.
    """
    source = _init_source(init)
    return file_digest(source) if isinstance(source, Path) else _run_hash(source)


def init_setting(init: str) -> str:
    """What identifies the weights that `init` names, apart from the seed with which they were trained.

    Reports put runs into one row that start from the runs of one row.

    Raises:
        UserError: `init` names neither a file nor a run.
    """
    source = _init_source(init)
    record = {} if isinstance(source, Path) else read_record(source.path / "provenance.json")
    if not record:
        return init_identity(init)
    identity = {name: part for name, part in record["identity"].items() if name != "init"}
    config = {name: part for name, part in identity["config"].items() if name != "seed"}
    return digest(identity | {"config": config, "init": record["starts"][-1].get("init")})


def _init_source(init: str) -> Run | Path:
    """The run whose best weights `init` names, which may have been deleted, or another checkpoint file."""
    path = expand_path("init", init)
    if not path.is_file() and not is_hub_folder(path):
        return Run(path)
    run, weights = locate(path, "init")
    is_best = run is not None and weights.resolve() == run.best.resolve()
    return run if run is not None and is_best else weights


def _run_hash(run: Run) -> str:
    """The hash of a run: of its recorded identity or, if the run was deleted, the one in its directory's name.

    Raises:
        UserError: there is no such run.
    """
    identity = read_record(run.path / "provenance.json").get("identity")
    if isinstance(identity, dict):
        return digest(identity)
    if (run.path / "config.yaml").exists():
        raise UserError(f"init={run.path}: provenance.json is missing or damaged; give a checkpoint file")
    is_queued, is_named = bool(run.status), re.search(r"-[0-9a-f]{10}$", run.path.name)
    if (run.path.exists() and not is_queued) or not is_named:
        problem = " is not an sppnet run" if run.path.exists() else ": no such file or directory"
        raise UserError(
            f"init={run.path}{problem}; give a run directory or a checkpoint file, or study:NAME in a sweep"
        )
    return run.hash


def own_class_digests(node: Mapping[str, Any]) -> dict[str, str]:
    """Map each user class that is named by a `_target_` in `node` to the digest of its source file.

    A class that is named by its package (`mypackage.Net`) has the digest of all modules of the package, because any of
    them may define it. For `mypackage.nets.Net`, only `nets.py` counts.
    """
    return {target: _code_digest(path) for target, path in user_source_files(node).items()}


def network_code(cfg: Config) -> dict[str, str]:
    """Map each of the user's classes of `NETWORK_SECTIONS` to the digest of its source file."""
    return own_class_digests({name: getattr(cfg, name).plain() for name in NETWORK_SECTIONS})


def _code_digest(path: Path) -> str:
    if path.name != "__init__.py":
        return file_digest(path)
    modules = {
        module.relative_to(path.parent).as_posix(): file_digest(module)
        for module in path.parent.rglob("*.py")
        if module.is_file() and not any(part.startswith(".") for part in module.relative_to(path.parent).parts)
    }
    return f"sha256:{hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()}"


def file_digest(path: Path) -> str:
    """The SHA-256 digest of a file, as `sha256:...`; cached until the file's size or modification time changes."""
    return _file_digest(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, _mtime: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
