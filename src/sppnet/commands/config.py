"""`sppnet config schema`: print the JSON Schema of configuration files, with which editors complete and check keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sppnet.config.alternatives import is_open
from sppnet.config.command_schemas import TransferConfig
from sppnet.config.keys import keys
from sppnet.config.trainer_arguments import REFUSED, trainer_arguments
from sppnet.errors import UserError

INTERPOLATION = {"type": "string", "pattern": r"\$\{"}
# What an experiment file has besides the keys of the configuration.
HYDRA = {
    "defaults": {"type": "array", "description": "the options of groups that the file chooses"},
    "hydra": {"type": "object", "description": "the sweep (hydra.sweeper) and the launcher (hydra.launcher)"},
}


def main(words: Sequence[str]) -> None:
    """Print the schema that the word `schema` asks for.

    Raises:
        UserError: another word, or none, was typed.
    """
    if list(words) != ["schema"]:
        raise UserError("it takes one word: sppnet config schema")
    print(json.dumps(build_json_schema(), indent=1))


def build_json_schema() -> dict[str, Any]:
    """Build the JSON Schema of a file that sets some keys: none is required, and any value may be an interpolation."""
    schema: dict[str, Any] = _relax(TransferConfig.model_json_schema())  # a study may also be one of sppnet transfer
    trainer = schema["$defs"]["Trainer"]
    trainer["properties"] = {name: {} for name in list(trainer_arguments()) if name not in REFUSED} | trainer[
        "properties"
    ]
    trainer["additionalProperties"] = False
    for key in keys(TransferConfig):
        for section in key.alternatives if key.chosen_by else ():
            if is_open(section):  # without it, any misspelled key of ours would do as an argument of the user's class
                schema["$defs"][section.__name__]["required"] = ["_target_"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "a configuration file of sppnet"
    schema["properties"] |= HYDRA
    return schema


def _relax(node: Any) -> Any:
    if isinstance(node, list):
        return [_relax(item) for item in node]
    if not isinstance(node, dict):
        return node
    relaxed = {name: _relax(value) for name, value in node.items() if name not in ("required", "discriminator")}
    if "oneOf" in relaxed:  # without its required keys, a section may fit several alternatives
        relaxed["anyOf"] = relaxed.pop("oneOf")
    if "items" in relaxed:
        relaxed["items"] = {"anyOf": [relaxed["items"], INTERPOLATION]}
    if isinstance(relaxed.get("properties"), dict):
        relaxed["properties"] = {
            name: {"anyOf": [value, INTERPOLATION]} for name, value in relaxed["properties"].items()
        }
    return relaxed
