"""Turn plain data into a typed configuration, and explain in one line why the data are not one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sppnet.config.instantiate import check_target
from sppnet.config.keys import describe, key_named, keys, sections, takes_text, value_of
from sppnet.config.schema import LAYOUT, RENAMED, RENAMED_OPTIONS, Config, OpenSection, Section, Trainer
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
        if key_named(schema, old) is None and value_of(data, old) is not None and (new := renamed(schema, old)):
            raise UserError(f"unknown key {old}; it is now called {new}")
    try:
        cfg = schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(schema, data, error)) from None
    for slot, target in _targets(cfg):
        check_target(target, slot)
    return cfg


def check_unresolved(schema: type[Section], data: Mapping[str, Any]) -> None:
    """Check the values of `data` that hold no interpolation. Absent keys and the placeholder `???` are accepted.

    Raises:
        UserError: a value is not allowed.
    """
    try:
        schema.model_validate(data)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            unresolved = UNRESOLVED.search(str(problem["input"])) or problem["type"] == "missing"
            if not unresolved:
                raise UserError(_explain(schema, data, error, problem)) from None


def replace(cfg: AnySection, values: Mapping[str, Any]) -> AnySection:
    """Return a copy of `cfg` in which the keys of `values` (such as `trainer.devices`) have new values.

    Raises:
        UserError: a value is not allowed.
    """
    data = to_plain(cfg)
    for name, value in values.items():
        node: Any = data
        *parents, last = name.split(".")
        for part in parents:
            node = node[part]
        node[last] = to_plain(value) if isinstance(value, BaseModel) else value
    return load(type(cfg), data)


def to_plain(cfg: BaseModel) -> dict[str, Any]:
    """Return a configuration as plain data, as a run stores it."""
    return cfg.model_dump(by_alias=True, exclude_unset=True)


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


def _targets(cfg: object, slot: str = "") -> Iterator[tuple[str, object]]:
    """Yield the slot and the value of every `_target_` that will be built."""
    if isinstance(cfg, OpenSection):
        yield slot, cfg.target
    if isinstance(cfg, Section):
        extra = cfg.model_extra if isinstance(cfg, Trainer) else {}
        for name, value in {**{name: getattr(cfg, name) for name in type(cfg).model_fields}, **(extra or {})}.items():
            yield from _targets(value, f"{slot}.{name}".lstrip("."))
    elif isinstance(cfg, Mapping):
        if "_target_" in cfg:
            yield slot, cfg["_target_"]
        for name, value in cfg.items():
            if isinstance(value, Section):
                yield from _targets(value, f"{slot}.{name}")
    elif isinstance(cfg, list):
        for number, value in enumerate(cfg):
            yield from _targets(value, f"{slot}[{number}]")


def _explain(
    schema: type[Section], data: Mapping[str, Any], error: ValidationError, problem: Mapping[str, Any] | None = None
) -> str:
    if problem is None:
        problems = error.errors(include_url=False)
        problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    name, field = _locate(schema, problem["loc"])
    value, kind = value_of(data, name), problem["type"]
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
    if kind.startswith("union_tag"):
        assert field is not None
        tag = str(field.discriminator)
        options = [get_args(section.model_fields[tag].annotation)[0] for section in sections(field.annotation)]
        if not isinstance(value, Mapping):
            return f"{name}={format_value(value)} is not allowed: must be a mapping"
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


def _locate(schema: type[Section], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """Return the key that pydantic's `location` is about, and its field; None for a key that the schema lacks."""
    names: list[str] = []
    options: list[type[Section]] = [schema]
    field: FieldInfo | None = None
    parts = iter(location)
    for part in parts:
        fields = {f.alias or name: f for section in options for name, f in section.model_fields.items()}
        names.append(str(part))
        field = fields.get(str(part))
        if field is None:
            break
        options = sections(field.annotation)
        if len(options) > 1 and field.discriminator is not None:  # the next part is the alternative, not a key
            tag = next(parts, None)
            if tag is not None:
                discriminator = str(field.discriminator)
                options = [s for s in options if tag in get_args(s.model_fields[discriminator].annotation)]
        elif not options:
            if (item := _section_of_items(field)) is not None and (name := next(parts, None)) is not None:
                names.append(str(name))
                options, field = [item], None
                continue
            break
    return ".".join(names), field


def _section_of_items(field: FieldInfo) -> type[Section] | None:
    """The section that each value of a mapping is, as in `callbacks`."""
    args = get_args(field.annotation)
    return args[1] if len(args) == 2 and isinstance(args[1], type) and issubclass(args[1], Section) else None


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
        return f"unknown key {name} with {setting}={format_value(value_of(data, setting))}; it exists with {values}"
    existing = [k for k in here if k.variant is None or value_of(data, k.variant[0]) == k.variant[1]]
    names = sorted(dict.fromkeys(key.name.rpartition(".")[2] for key in existing))
    near = get_close_matches(last, names, n=1)
    hint = f"did you mean {'.'.join(filter(None, (section, near[0])))}? " if near else ""
    return f"unknown key {name}; {hint}{section or 'the top level'} has {', '.join(names) or 'no keys'}"


def renamed(schema: type[Section], name: str) -> str:
    """The new name of a key that an earlier version had; "" if there was no such key or `schema` lacks the new one."""
    new = RENAMED.get(name, "")
    return "" if key_named(Config, new) and not key_named(schema, new) else new
