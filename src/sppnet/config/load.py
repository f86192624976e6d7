"""Turn plain data into a typed configuration, and explain in one line why the data are not one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sppnet.config import option_files
from sppnet.config.alternatives import is_open
from sppnet.config.keys import Key, exists, key_named, keys, nearest, value_of
from sppnet.config.renamed_keys import RENAMED_OPTIONS, new_name, refuse_old_names
from sppnet.config.schema import LAYOUT, Section, Trainer
from sppnet.config.trainer_arguments import suggest_argument
from sppnet.errors import UserError, format_value

AnySection = TypeVar("AnySection", bound=Section)
# Matches a string that YAML would read as a number, boolean, null or list if it were not quoted.
LITERAL = re.compile(r"\s*([-+]?[\d._]+(e[-+]?\d+)?|true|false|null|\[.*\])\s*", re.I | re.S)
LEADING_ZERO = re.compile(r"[-+]?0[\d_]+")  # Hydra reads 007 as a string
LIMITS = {"le": "at most", "lt": "less than"}  # pydantic's names
UNRESOLVED = re.compile(r"\$\{|^\?\?\?$")


def load(schema: type[AnySection], data: Mapping[str, Any], prefix: str = "") -> AnySection:
    """Check plain data, with all interpolations resolved, and return them as a configuration.

    Messages put `prefix`, such as `report.`, before the names of keys.

    Raises:
        UserError: a key or a value is wrong; the message names the first one and what is allowed.
    """
    refuse_old_names(schema, data)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(schema, data, error.errors(include_url=False), prefix)) from None


def check_unresolved(schema: type[Section], data: Mapping[str, Any]) -> None:
    """Check the values of `data` that hold no interpolation. Absent keys and the placeholder `???` are accepted.

    Raises:
        UserError: a value is not allowed.
    """
    try:
        schema.model_validate(data)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if not UNRESOLVED.search(str(problem["input"])) and problem["type"] != "missing":
                raise UserError(_explain(schema, data, [problem])) from None


def replace(cfg: AnySection, values: Mapping[str, Any]) -> AnySection:
    """Return a copy of `cfg` in which the keys of `values` (such as `trainer.devices`) have new values.

    Raises:
        UserError: a value is not allowed.
    """
    data = cfg.plain()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        value_of(data, section)[key] = value
    return load(type(cfg), data)


def check_layout(layout: object, where: str) -> None:
    """Refuse a stored configuration whose layout (the names of its keys) differs from this version's.

    Raises:
        UserError: `layout` is not `LAYOUT`.
    """
    if layout != LAYOUT:
        stored = "without a configuration layout" if layout is None else f"with configuration layout {layout!r}"
        raise UserError(
            f"{where} was written {stored}, but this version of sppnet reads layout {LAYOUT} (see CHANGELOG.md); use"
            " the version that wrote it, or train the run again"
        )


def _explain(schema: type[Section], data: Mapping[str, Any], problems: Sequence[ErrorDetails], prefix: str = "") -> str:
    located = [(*_locate(schema, data, problem["loc"]), problem) for problem in problems]
    first = next((name for name, _, problem in located if problem["type"] == "extra_forbidden"), located[0][0])
    # a mapping may also be refused as the text that it could have been; what is wrong inside it says more
    inside = (each for each in located if f"{each[0]}.".startswith(f"{first}."))
    name, key, problem = max(inside, key=lambda each: len(each[0]))
    full_name, value, kind, context = f"{prefix}{name}", value_of(data, name), problem["type"], problem.get("ctx", {})
    if name.endswith("_target_") and kind == "value_error":  # `check_target` does not know the section
        return f"{full_name.removesuffix('._target_')}{context['error']}"
    if kind == "invalid_key":
        return f"{full_name} is not allowed: the names of keys must be strings"
    if kind == "extra_forbidden" and "." in str(problem["loc"][-1]):
        return f"{full_name} is not allowed: in a file, keys are nested, as in trainer: {{max_epochs: 3}}"
    if kind == "extra_forbidden":
        return unknown_key(schema, name, data, prefix)
    if kind == "missing":
        return f"{full_name} is missing; it is required"
    if kind == "value_error" and key is None and name:  # an argument of a class
        return f"{full_name} is not allowed: {context['error']}"
    if kind == "value_error" and (key is None or key.alternatives):  # a check of a section names its keys itself
        return str(context["error"])
    if kind in ("union_tag_not_found", "union_tag_invalid") and key is not None and isinstance(value, Mapping):
        return _refuse_alternative(full_name, value, key)
    if key is not None and len(key.alternatives) > 1 and isinstance(value, str):
        group = name.replace(".", "/")
        option = f"{group}={value}, or with 'override /{group}: {value}' in the defaults of a file"
        return f"{full_name}={value} is not allowed: must be a mapping; choose an option with {option}"
    parent = nearest(schema, name)
    if key is None and parent is not None and parent.name == "options":  # those of sbatch
        return _refusal(f"{prefix}{parent.name}", value_of(data, parent.name), parent, "")
    if key is None:
        more = " with _target_" if name.startswith("callbacks.") else ""
        return f"{full_name}={format_value(value)} is not allowed: must be a mapping{more}"
    if new := RENAMED_OPTIONS.get(f"{name.removesuffix('.name')}={value}"):
        return f"{full_name}={value} is not allowed: it is now {new}"
    limit = next((f"{words} {context[name]:.10g}" for name, words in LIMITS.items() if name in context), "")
    return _refusal(full_name, value, key, limit)


def _refuse_alternative(name: str, value: Mapping[str, Any], key: Key) -> str:
    """Explain that `value` is none of the alternatives of the section `key`."""
    chosen = key.chosen_by
    assert chosen is not None
    own = "; a class of your own needs _target_" if any(map(is_open, key.alternatives)) else ""
    if (tag := value.get(chosen.key)) is None:
        return f"{name}.{chosen.key} is missing; it is required{own}"
    options = ", ".join(option for section in key.alternatives for option in chosen.values(section))
    return f"{name}.{chosen.key}={format_value(tag)} is not allowed: must be one of {options}{own}"


def _locate(schema: type[Section], data: Mapping[str, Any], location: tuple[int | str, ...]) -> tuple[str, Key | None]:
    """Return the name of the key that pydantic's `location` is about, and the key; None if the schema lacks it.

    Parts of a location that are not keys of `data` name an alternative of a section, or a type.
    """
    name = ""
    for number, part in enumerate(location, start=1):
        node = value_of(data, name)
        inner = f"{name}.{part}".lstrip(".")
        declared = number == len(location) and (part == "_target_" or key_named(schema, inner))
        in_list = isinstance(node, list) and isinstance(part, int) and isinstance(node[part], Mapping)
        if in_list or (isinstance(node, Mapping) and (part in node or declared)):
            name = inner
    return name, key_named(schema, name, data)


def _refusal(name: str, value: object, key: Key, limit: str) -> str:
    """Explain why a key refuses `value`, which is above a `limit` unless that is "".

    The message names a wrong type, because `"0.1"` and `0.1` look alike.
    """
    text = key.takes(str)
    if text and not key.takes(int) and isinstance(value, int | float):
        kind = "boolean" if isinstance(value, bool) else "number"
        return f"{name}={format_value(value)} is a {kind} in YAML, but must be {key.allowed}; quote it in the file"
    if limit and limit.rpartition(" ")[2] not in key.allowed:  # too high to be described
        return f"{name}={format_value(value)} is not allowed: must be {limit}"
    items = value if isinstance(value, list) else [value]
    if not text and any(LEADING_ZERO.fullmatch(str(item)) for item in items):
        return f"{name}={format_value(value)} is not allowed: must be {key.allowed}, without leading zeros"
    if isinstance(value, str) and not text and key.allowed != "a mapping" and LITERAL.fullmatch(value):
        return f"{name}='{value}' is a quoted string: must be {key.allowed}, without quotes"
    return f"{name}={format_value(value)} is not allowed: must be {key.allowed}"


def unknown_key(
    schema: type[Section], name: str, data: Mapping[str, Any], prefix: str = "", groups: Iterable[str] = ()
) -> str:
    """Explain that a configuration has no key `name`: its new name, the nearest name, and the names that there are.

    `data` are the configuration, or the default one if there is none; `groups` may be used on the top level as well.
    """
    if new := new_name(schema, name):
        return f"unknown key {name}; it is now called {new}"
    section, _, last = name.rpartition(".")
    if name == "allow":
        return "unknown key allow; no file can allow a module: type allow=MODULE, or set SPPNET_ALLOW"
    if "experiments" in data:
        return "the study's file is not read as one: its first line must be '# @package _global_'"
    if section and key_named(schema, section) is None and value_of(data, section) is None:
        return unknown_key(schema, section, data, prefix, groups)
    if section == "trainer":
        return f"unknown key {name}; {suggest_argument(last, Trainer.model_fields)}"
    parent, node = key_named(schema, section, data), value_of(data, section)
    if parent is not None and not parent.alternatives and not isinstance(node, Mapping):
        return f"unknown key {name}; {section} is a value, not a section"
    own_class = parent is not None and value_of(data, f"{section}._target_") is not None
    siblings = (key for key in keys(schema) if exists(key, data) and key.name.rpartition(".")[0] == section)
    is_argument = section and parent is None and isinstance(node, Mapping)
    more = node if own_class or is_argument else () if section else groups
    names = sorted({*(key.name.rpartition(".")[2] for key in siblings), *more})
    option = option_files.option_with(section.replace(".", "/"), last)
    elsewhere = f"it exists with {option}" if option else ""
    if last in names:  # `data` are the default configuration, and the user has chosen other options
        return f"unknown key {name} in this combination of options; {elsewhere or f'add a new key with +{name}=VALUE'}"
    where, near = f"{prefix}{section}".rstrip("."), get_close_matches(last, names, n=1)
    hint = f"{elsewhere}; " if option else f"did you mean {'.'.join(filter(None, (where, *near)))}? " if near else ""
    add = f"; add another argument of its class with +{name}=VALUE" if own_class else ""
    subject = f"unknown key {prefix}{name}"
    if parent is not None and (chosen := parent.chosen_by):
        tag = f"{section}.{'_target_' if own_class else chosen.key}"
        subject += f" with {prefix}{tag}={format_value(value_of(data, tag))}"
    return f"{subject}; {hint}{where or 'the top level'} has {', '.join(names) or 'no keys'}{add}"
