"""What the schema says about the keys of a configuration: types, marks and descriptions."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union

from pydantic.fields import FieldInfo

from sppnet.config.alternatives import ChosenBy
from sppnet.config.marks import Affects, Changes, Only, Passed, affects
from sppnet.config.schema import INT_MAX, Section
from sppnet.errors import format_value

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Key:
    """A key of a schema.

    Attributes:
        name: the dotted name, such as `data.batch_size`.
        section: the class that declares the key.
        field: pydantic's description of its type.
        marks: its own marks and those that it takes over from the sections it is in, the outermost first.
        variant: if the section is one of several alternatives, the key that chooses it and the values with which it
            does. The key is `_target_`, without values, for a class of the user's own.
    """

    name: str
    section: type[Section]
    field: FieldInfo
    marks: tuple[Any, ...]
    variant: tuple[str, tuple[str, ...]] | None = None

    def mark(self, kind: type[Mark]) -> Mark | None:
        """The innermost mark of a kind."""
        return next((mark for mark in reversed(self.marks) if isinstance(mark, kind)), None)

    @property
    def affects(self) -> Affects:
        return self.mark(Affects) or affects.weights

    def may_change(self, command: str) -> bool:
        """Whether `command` may change the key of the run whose checkpoint it loads."""
        changes = self.mark(Changes)
        return changes is not None and command in changes.commands

    @property
    def alternatives(self) -> list[type[Section]]:
        """The sections that the value may be; none for a plain value, several for a group of alternatives."""
        return [part for part in _parts(self.field.annotation) if isinstance(part, type) and issubclass(part, Section)]

    @property
    def chosen_by(self) -> ChosenBy | None:
        """How its section is chosen, if there are several alternatives."""
        return next((mark for mark in self.field.metadata if isinstance(mark, ChosenBy)), None)

    def takes(self, kind: type) -> bool:
        """Whether the value, or an item of a list, may be of the plain type `kind`."""
        return kind in _parts(self.field.annotation)

    @property
    def takes_anything(self) -> bool:
        """Whether the value may be of any type, because it is an argument of a class."""
        return any(part is Any for part in _parts(self.field.annotation))

    @property
    def allowed(self) -> str:
        """The values that the key accepts, in words that complete "must be ..."."""
        return _describe(self.section.model_json_schema()["properties"][self.name.rpartition(".")[2]])


@functools.cache
def keys(schema: type[Section]) -> tuple[Key, ...]:
    """All sections and keys of `schema`, in its order; a key that several alternatives have is listed for each."""
    return tuple(_keys(schema, "", (), None))


def _keys(
    schema: type[Section], prefix: str, inherited: tuple[Any, ...], variant: tuple[str, tuple[str, ...]] | None
) -> Iterator[Key]:
    for name, field in schema.model_fields.items():
        key = Key(f"{prefix}{field.alias or name}", schema, field, (*inherited, *field.metadata), variant)
        yield key
        for section in key.alternatives:
            inner = variant
            if chosen := key.chosen_by:
                values = chosen.values(section)
                inner = (f"{key.name}.{chosen.key if values else '_target_'}", values)
            yield from _keys(section, f"{key.name}.", key.marks, inner)


def key_named(schema: type[Section], name: str, data: object = None) -> Key | None:
    """The key or section called `name`; None if the schema does not list it.

    If several alternatives of a section have the key, it is that of the alternative in `data`. If that is a class of
    the user's own, a name that it does not have is an argument of the class, although another alternative has it.
    """
    named = [key for key in keys(schema) if key.name == name]
    chosen = next((key for key in named if exists(key, data)), None)
    if chosen or not named or _has_own_class(named[0], data):
        return chosen
    return named[0]


def exists(key: Key, data: object) -> bool:
    """Whether the key belongs to the alternative of its section that `data` have chosen."""
    if key.variant is None:
        return True
    tag, values = key.variant
    own = _has_own_class(key, data)
    return not own and value_of(data, tag) in values if values else own


def _has_own_class(key: Key, data: object) -> bool:
    """Whether the key belongs to an alternative of a section that has a class of the user's own in `data`."""
    return key.variant is not None and value_of(data, f"{key.variant[0].rpartition('.')[0]}._target_") is not None


def nearest(schema: type[Section], name: str, data: object = None) -> Key | None:
    """The key called `name`, or the innermost section that it lies in."""
    while name:
        if key := key_named(schema, name, data):
            return key
        name = name.rpartition(".")[0]
    return None


def select(cfg: Section, keep: Callable[[Key], bool]) -> dict[str, Any]:
    """Return the keys of `cfg` for which `keep` returns true, as plain data, without those at the schema's default.

    A key that is added later with the former behaviour as its default therefore does not change what is selected.
    Arguments of a user's class and of the Trainer have no line in the schema; `keep` is asked about their section.
    Mappings in them become pairs: their order and the types of their keys count, and JSON keeps neither.
    """

    def part(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        selected: dict[str, Any] = {}
        for name, value in node.items():
            key = nearest(type(cfg), f"{prefix}{name}", plain)
            assert key is not None
            if isinstance(value, dict) and key.name == f"{prefix}{name}" and key.alternatives:
                if inner := part(value, f"{key.name}."):
                    selected[name] = inner
            elif keep(key):
                is_argument = key.name != f"{prefix}{name}" or key.mark(Passed) is not None
                selected[name] = _ordered(value) if is_argument else _with_ordered_arguments(value)
        return selected

    plain = cfg.model_dump(by_alias=True, exclude_defaults=True)
    return part(plain, "")


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = _with_ordered_arguments(value)
    return items if "_target_" in value else {"pairs": [list(pair) for pair in items.items()]}


def _with_ordered_arguments(value: Any) -> Any:
    """Order what lies in a value that the schema declares, such as `callbacks`, which keeps its names."""
    return {name: _ordered(item) for name, item in value.items()} if isinstance(value, Mapping) else _ordered(value)


def without_effect(cfg: Section) -> dict[str, str]:
    """Map each key of `cfg` that has no effect to the setting that disables it (such as `data.fit=full`)."""
    ineffective, plain = {}, cfg.plain()
    for key in keys(type(cfg)):
        for only in (mark for mark in key.marks if isinstance(mark, Only) and exists(key, plain)):
            value = value_of(plain, only.key)
            if value not in only.values if only.values else value in only.unless:
                ineffective[key.name] = f"{only.key}={format_value(value)}"
    bins = value_of(plain, "pooling.bins") if key_named(type(cfg), "pooling.bins", plain) else None
    if bins is not None and bins != value_of(plain, "pyramid.bins"):  # typed or set in a file instead
        ineffective["pyramid"] = f"pooling.bins={bins}"
    return ineffective


def value_of(data: object, name: str) -> Any:
    """The value of a key of plain data; None if it is absent. The data themselves have the name "".

    An item of a list has its number as its name, as in `augment.transforms.0`.
    """
    for part in filter(None, name.split(".")):
        if isinstance(data, list):
            data = dict(enumerate(data)).get(int(part)) if part.isdecimal() else None
        else:
            data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the plain types that a value, or an item of a list, may have."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _parts(arguments[0])
    elif origin in (Union, types.UnionType, list):
        for argument in arguments:
            yield from _parts(argument)
    else:
        yield annotation


def _describe(values: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows. A description of its own says more than its limits."""
    if "description" in values:
        return str(values["description"])
    if arms := values.get("anyOf"):
        given = ", or ".join(_describe(arm) for arm in arms if arm != {"type": "null"})
        return f"null or {given}" if {"type": "null"} in arms else given
    if "const" in values:
        return format_value(values["const"])
    if listed := values.get("enum"):
        return f"one of {', '.join(map(format_value, listed))}"
    match values.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number":
            return _describe_number(values)
        case "array":
            kind = "non-empty list" if values.get("minItems") else "list"
            repeats = " without repeats" if values.get("uniqueItems") else ""
            return f"a {kind}{repeats}, each item {_describe(values['items'])}"
    return "a mapping"


def _describe_number(values: Mapping[str, Any]) -> str:
    whole, low, high = values["type"] == "integer", values.get("minimum"), values.get("maximum")
    noun = "an integer" if whole else "a number"
    if whole and low is not None and high is not None and high < INT_MAX:
        return f"{noun} from {low} to {high}"
    above, below = values.get("exclusiveMinimum"), values.get("exclusiveMaximum")
    parts = [f"of at least {low:g}"] if low is not None else []
    parts += [f"greater than {above:g}"] if above is not None else []
    parts += [f"less than {below:g}"] if below is not None and below < 1e300 else []
    parts += [f"at most {high:g}"] if high is not None and not whole else []
    return f"{noun} {' and '.join(parts)}".rstrip()
