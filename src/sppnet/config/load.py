"""Turn plain data into a typed configuration, and explain in one line why the data are not one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sppnet.config.instantiate import check_target
from sppnet.config.keys import describe, key_named, keys, sections, takes_text, value_of
from sppnet.config.schema import LAYOUT, RENAMED, RENAMED_OPTIONS, Config, Section, Trainer
from sppnet.config.trainer_arguments import suggest_argument
from sppnet.errors import UserError, format_value

AnySection = TypeVar("AnySection", bound=Section)
# Matches a string that YAML would read as a number, boolean, null or list if it were not quoted.
LITERAL = re.compile(r"\s*([-+]?[\d._]+(e[-+]?\d+)?|true|false|null|\[.*\])\s*", re.I | re.S)
UNRESOLVED = re.compile(r"\$\{|^\?\?\?$")


def load(schema: type[AnySection], data: Mapping[str, Any]) -> AnySection:
    """Check plain data, with all interpolations resolved, and return them as a configuration.

    Raises:
        UserError: a key or a value is wrong; the message names the first one and what is allowed.
    """
    for old in RENAMED:
        section = old.rpartition(".")[0]
        own_class = not str(value_of(data, f"{section}._target_") or "sppnet.").startswith("sppnet.")
        known = key_named(schema, old) is not None or own_class  # the arguments of one's own class may have any name
        if not known and value_of(data, old) is not None and (new := renamed(schema, old)):
            raise UserError(f"unknown key {old}; it is now called {new}")
    try:
        cfg = schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(schema, data, error)) from None
    return cfg


def check_unresolved(schema: type[Section], data: Mapping[str, Any]) -> None:
    """Check the values of `data` that hold no interpolation. Absent keys and the placeholder `???` are accepted.

    Raises:
        UserError: a value is not allowed.
    """
    try:
        schema.model_validate(data)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            unresolved = UNRESOLVED.search(str(problem["input"])) or problem["type"] == "missing"
            if not unresolved:
                raise UserError(_explain(schema, data, error, problem)) from None


def replace(cfg: AnySection, values: Mapping[str, Any]) -> AnySection:
    """Return a copy of `cfg` in which the keys of `values` (such as `trainer.devices`) have new values.

    Raises:
        UserError: a value is not allowed.
    """
    data = cfg.plain()
    for name, value in values.items():
        node: Any = data
        *parents, last = name.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    return load(type(cfg), data)


def check_layout(layout: object, where: str) -> None:
    """Refuse a stored configuration whose layout (the names of its keys) differs from this version's.

    Args:
        layout: the layout that the run or the checkpoint stores; None if it stores none.
        where: the name of the run or the checkpoint, used in the message.

    Raises:
        UserError: `layout` is not `LAYOUT`.
    """
    if layout != LAYOUT:
        stored = "without a configuration layout" if layout is None else f"with configuration layout {layout!r}"
        raise UserError(
            f"{where} was written {stored}, but this version of sppnet reads layout {LAYOUT} (see CHANGELOG.md); use"
            " the version that wrote it, or train the run again"
        )


def _explain(
    schema: type[Section], data: Mapping[str, Any], error: ValidationError, problem: Mapping[str, Any] | None = None
) -> str:
    if problem is None:
        problems = error.errors(include_url=False)
        first = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
        name = _locate(schema, data, first["loc"])[0]
        # a mapping may also be refused as the text that it could have been; what is wrong inside it says more
        inside = (each for each in problems if f"{_locate(schema, data, each['loc'])[0]}.".startswith(f"{name}."))
        problem = max(inside, key=lambda each: len(_locate(schema, data, each["loc"])[0]))
    name, field = _locate(schema, data, problem["loc"])
    value, kind = value_of(data, name), problem["type"]
    if kind == "invalid_key":
        return f"{name} is not allowed: the names of keys must be strings"
    own_message = (problem.get("ctx") or {}).get("error")
    if kind == "extra_forbidden":
        return unknown_key(schema, name, data)
    if kind == "missing":
        if name.endswith("_target_"):
            return _target_problem(None, name)
        return f"{name} is missing; it is required"
    if name.endswith("_target_"):
        return _target_problem(value, name)
    if kind == "value_error" and own_message is not None and (field is None or sections(field.annotation)):
        return str(own_message)
    if field is not None and len(sections(field.annotation)) > 1 and not isinstance(value, Mapping):
        option = f"; choose an option with {name.replace('.', '/')}={value}" if isinstance(value, str) else ""
        return f"{name}={format_value(value)} is not allowed: must be a mapping{option}"
    if kind.startswith("union_tag"):
        assert field is not None
        tag = str(field.discriminator)
        options = [get_args(section.model_fields[tag].annotation)[0] for section in sections(field.annotation)]
        if tag not in value:
            return f"{name}.{tag} is missing; it is required"
        return f"{name}.{tag}={format_value(value[tag])} is not allowed: must be one of {', '.join(options)}"
    if field is None:
        more = " with _target_" if name.startswith("callbacks.") else ""
        return f"{name}={format_value(value)} is not allowed: must be a mapping{more}"
    if new := RENAMED_OPTIONS.get(f"{name.removesuffix('.name')}={value}"):
        return f"{name}={value} is not allowed: it is now {new}"
    return refusal(name, value, field)


def _target_problem(value: object, name: str) -> str:
    try:
        check_target(value, name.removesuffix("._target_"))
    except UserError as error:
        return str(error)
    return f"{name}={format_value(value)} is not allowed"


def _locate(
    schema: type[Section], data: Mapping[str, Any], location: tuple[int | str, ...]
) -> tuple[str, FieldInfo | None]:
    """Return the key that pydantic's `location` is about, and its field; None for a key that the schema lacks.

    Parts of a location that are not keys of `data` name an alternative of a section, or a type.
    """
    names: list[str] = []
    for number, part in enumerate(location, start=1):
        node = value_of(data, ".".join(names)) if names else data
        inner = ".".join([*names, str(part)])
        if isinstance(node, Mapping) and (part in node or (number == len(location) and key_named(schema, inner))):
            names.append(str(part))
    name = ".".join(names)
    key = key_named(schema, name, data)
    return name, key.field if key else None


def refusal(name: str, value: object, field: FieldInfo) -> str:
    """Explain why a field refuses `value`. The message names a wrong type, because `"0.1"` and `0.1` look alike."""
    expected, text = describe(field.annotation, field.metadata), takes_text(field.annotation)
    if text and isinstance(value, int | float):
        kind = "boolean" if isinstance(value, bool) else "number"
        return f"{name}={format_value(value)} is a {kind} in YAML, but must be {expected}; quote it in the file"
    items = value if isinstance(value, list) else [value]
    strings = [] if text else [item for item in items if isinstance(item, str)]
    if any(re.fullmatch(r"[-+]?0[\d_]+", string) for string in strings):  # Hydra reads 007 as a string
        return f"{name}={format_value(value)} is not allowed: must be {expected}, without leading zeros"
    if isinstance(value, str) and not text and expected != "a mapping" and LITERAL.fullmatch(value):
        return f"{name}='{value}' is a quoted string: must be {expected}, without quotes"
    return f"{name}={format_value(value)} is not allowed: must be {expected}"


def unknown_key(schema: type[Section], name: str, data: Mapping[str, Any]) -> str:
    """Explain that there is no key `name` in `data`: its new name, the nearest name, and the names that there are."""
    section, _, last = name.rpartition(".")
    if section == "trainer":
        return f"unknown key {name}; {suggest_argument(last, Trainer.model_fields)}"
    here = [key for key in keys(schema) if key.name.rpartition(".")[0] == section]
    if others := [key.variant for key in here if key.name == name and key.variant is not None]:
        setting = others[0][0]
        values = " or ".join(f"{setting}={value}" for _, value in others)
        group = setting.rpartition(".")[0].replace(".", "/")
        present = f"{setting}={format_value(value_of(data, setting))}"
        return f"unknown key {name} with {present}; it exists with {values} (choose an option with {group}=NAME)"
    existing = [k for k in here if k.variant is None or value_of(data, k.variant[0]) == k.variant[1]]
    names = sorted(dict.fromkeys(key.name.rpartition(".")[2] for key in existing))
    near = get_close_matches(last, names, n=1)
    hint = f"did you mean {'.'.join(filter(None, (section, near[0])))}? " if near else ""
    return f"unknown key {name}; {hint}{section or 'the top level'} has {', '.join(names) or 'no keys'}"


def renamed(schema: type[Section], name: str) -> str:
    """The new name of a key that an earlier version had; "" if there was no such key or `schema` lacks the new one."""
    new = RENAMED.get(name, "")
    return "" if key_named(Config, new) and not key_named(schema, new) else new
