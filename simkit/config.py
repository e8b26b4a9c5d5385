"""Strict, typed options: unknown keys are refused with the nearest known one named."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from simkit.errors import ConfigError


class Options(BaseModel):
    """Base of every options class: immutable, no unknown keys, no value of the wrong type.

    Numbers written as text are read, because YAML takes ``1e-3`` for text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())

    IN_OLDER_FILES: ClassVar[Mapping[str, Any]] = {}
    """What files mean that were written before an option existed, where that is not its default."""

    def to_yaml(self) -> str:
        """Return the options as a recipe with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number belongs: Python takes them for 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        accepted = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and accepted & {int, float} and bool not in accepted:
            raise ValueError("expected a number")
        return value


def names_in(text: str) -> list[str]:
    """Return the names of a list that is separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


OptionsT = TypeVar("OptionsT", bound=Options)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def find_registered(name: str, registry: Mapping[str, tuple[str, str]], kind: str) -> tuple[Any, Any]:
    """Return a registered class and that of its options, which is called XOptions for a class X of the same module.

    Args:
        registry: name -> (module, class). kind: what the names are of, for the message.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in registry:
        raise ConfigError(f"unknown {kind} {name!r}{nearest(name, registry)}")
    module_name, class_name = registry[name]
    module = import_module(module_name)
    return getattr(module, class_name), getattr(module, f"{class_name}Options")


def parse_options(cls: type[OptionsT], values: Mapping[str, Any], where: str) -> OptionsT:
    """Validate ``values`` as ``cls``.

    Args:
        where: what is being read ("recipe ethanol.yaml", "options of painn"), for the message.

    Raises:
        ConfigError: naming each bad key, what it holds and what was expected.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_problem(cls, item, where) for item in error.errors())) from None


def _problem(cls: type[BaseModel], item: Any, where: str) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{nearest(location[-1], _fields_at(cls, location[:-1]))}"
    if item["type"] == "missing":
        return f"{where}: {key!r} is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {key or 'options'}: {message} (found {item['input']!r})" if key else f"{where}: {message}"


def _fields_at(cls: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the section that ``location`` points to."""
    current: Any = cls
    for part in location:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue  # a list index or the tag of a union
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), current)
    return list(current.model_fields)
