"""What every file that a person or another stage writes has in common: strict reading, one-line errors, a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cptplan.errors import ConfigError, suggest
from cptplan.files import hash_json


class Contract(BaseModel):
    """An immutable record read from a file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """Check a decoded JSON or YAML value.

        Args:      value: the decoded mapping. where: file or option it came from, for the message.
        Raises:    ConfigError naming the first broken rule, the value, the field and the file.
        """
        record: Self = parse_as(cls, value, where)
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; reading it back gives an equal record."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def hash(self) -> str:
        """Name of this content, independent of key order and of how the file was formatted."""
        return hash_json(self.to_json())


def parse_as(kind: Any, value: object, where: str) -> Any:
    """Check a decoded value against any contract type, a union of kinds included; errors as in Contract.parse."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise _one_line(error, kind, where) from error


def _one_line(error: ValidationError, kind: Any, where: str) -> ConfigError:
    """The most useful of pydantic's findings, said as house style says errors."""
    findings = error.errors(include_url=False)
    finding = next((f for f in findings if f["type"] == "extra_forbidden"), findings[0])
    keys = [str(part) for part in finding["loc"]]
    field = ".".join(keys) or "value"
    got = _shorten(finding.get("input"))
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return type(cause)(f"{cause.message.rstrip('.')} in {where}{f' at {field}' if keys else ''}.", hint=cause.hint)
    if finding["type"] == "extra_forbidden":
        known = _fields_at(kind, keys[:-1])
        hint = suggest(keys[-1], known) or f"known keys: {', '.join(sorted(known))}"
        return ConfigError(f"keys must be known; got {keys[-1]!r} at {field} in {where}.", hint=hint)
    if finding["type"] == "missing":
        return ConfigError(f"{field} must be given; it is missing in {where}.", hint=f"add {keys[-1]!r}")
    if finding["type"] == "union_tag_invalid":
        context = finding["ctx"]
        tag, tags = str(context["tag"]), [t.strip("' ") for t in str(context["expected_tags"]).split(",")]
        hint = suggest(tag, tags) or f"known kinds: {', '.join(tags)}"
        return ConfigError(f"kind must be known; got {tag!r} at {field} in {where}.", hint=hint)
    rule = finding["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    rule = rule if rule.startswith("must") else f"must be right ({rule[:1].lower()}{rule[1:]})"
    return ConfigError(f"{field} {rule}; got {got} in {where}.", hint=f"mend {field}")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(kind: Any, keys: list[str]) -> set[str]:
    """Known keys of the record that a path of keys leads to; the kinds of a union count together."""
    kinds = [kind]
    for key in [*keys, None]:
        models = [m for k in kinds for m in _models_in(k)]
        if key is None:
            return {field.alias or name for m in models for name, field in m.model_fields.items()}
        stepped = [m.model_fields[key].annotation for m in models if key in m.model_fields]
        kinds = stepped or kinds  # a list index or a union's tag is no field: stay
    return set()


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if get_origin(kind) is Mapping:
        return []
    parts = get_args(kind) if get_origin(kind) is not None or isinstance(kind, type(Union[int, str])) else ()
    return [model for part in parts for model in _models_in(part)]
