"""Plain values, as TOML and checkpoints hold them, to frozen dataclasses and back, strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar

from onebest.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def from_dict(kind: type[T], values: Any, where: str) -> T:
    """Build a dataclass from plain values.

    Args:
        kind: the dataclass; its fields are plain values, dataclasses, tuples or dictionaries of these.
        values: a dictionary with its fields.
        where: names the place in error messages.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type or is impossible.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r}.")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}. Known here: {', '.join(sorted(fields))}.")
    if missing := sorted(name for name in fields.keys() - values.keys() if _is_required(fields[name])):
        raise ConfigError(f"{where}: {', '.join(missing)} missing.")
    converted = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return a dataclass as plain values, for a checkpoint or a model card."""
    return dataclasses.asdict(config)


def require(fits: bool, message: str) -> None:
    """Make sure of something about a value.

    Raises:
        ConfigError: ``fits`` is false.
    """
    if not fits:
        raise ConfigError(f"expected {message}.")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[DataclassInstance]", kind), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [parameters[0]] * len(value) if parameters[-1] is Ellipsis else list(parameters)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}.")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_convert(inner, member, f"{where}[{index}]") for index, (inner, member) in pairs)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(parameters[1], member, f"{where}.{key}") for key, member in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    is_nan = isinstance(value, float) and math.isnan(value)  # which no comparison refuses for certain
    if not isinstance(kind, types.GenericAlias) and type(value) is kind and not is_nan:
        return value
    expected = kind if isinstance(kind, types.GenericAlias) else getattr(kind, "__name__", kind)
    raise ConfigError(f"{where}: expected {expected}, got {value!r}.")
