"""What every file that a person or another stage writes has in common: strict reading, one-line errors, a hash."""

from __future__ import annotations

import re
from typing import Any, Self, get_args

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
    except ConfigError as error:  # a rule over several fields, raised by a validator, which does not know the file
        raise type(error)(f"{error.message.removesuffix('.')} in {where}.", hint=error.hint) from error


# pydantic's finding -> our rule; {} is filled from the finding's own context. What is not here keeps pydantic's words.
_RULES = {
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object of keys and values",
    "mapping_type": "must be an object of keys and values",
    "model_type": "must be an object of keys and values",
    "model_attributes_type": "must be an object of keys and values",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be finite",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} entries or fewer",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
}


def _one_line(error: ValidationError, kind: Any, where: str) -> ConfigError:
    """The most useful of pydantic's findings, in one line; a misspelt key explains a missing one."""
    findings = error.errors(include_url=False)
    finding = next((f for f in findings if f["type"] == "extra_forbidden"), findings[0])
    keys, kinds = _follow(kind, finding["loc"])
    field, got, context = ".".join(keys), finding["input"], finding.get("ctx", {})
    match finding["type"]:
        case "extra_forbidden":
            known = sorted(name for model in kinds for name in model.model_fields)
            hint = suggest(keys[-1], known) or f"known keys: {', '.join(known)}"
            return ConfigError(f"keys must be known; got {field} in {where}.", hint=hint)
        case "missing":
            return ConfigError(f"{field} must be given; it is missing in {where}.", hint=f"add {keys[-1]}")
        case "union_tag_not_found" | "union_tag_invalid":
            tags = [str(tag) for model in kinds for tag in get_args(model.model_fields["kind"].annotation)]
            tag = got.get("kind")
            hint = (isinstance(tag, str) and suggest(tag, tags)) or f"known kinds: {', '.join(tags)}"
            name = ".".join([*keys, "kind"])
            if tag is None:
                return ConfigError(f"{name} must be given; it is missing in {where}.", hint=hint)
            return ConfigError(f"{name} must be known; got {_shorten(tag)} in {where}.", hint=hint)
    known_rule = _RULES.get(finding["type"])
    rule = known_rule.format(**context) if known_rule else f"must be valid ({finding['msg']})"
    literals = re.findall(r"'([^']*)'", context.get("expected", ""))
    close = suggest(got, literals) if isinstance(got, str) else None
    return ConfigError(
        f"{field or 'content'} {rule}; got {_shorten(got)} in {where}.", hint=close or f"mend {field or 'the file'}"
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _follow(kind: Any, location: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """A finding's place as the file's own keys, and the records that can stand there.

    Pydantic names the chosen kind of a union among the keys; the file does not, so it is left out here.
    """
    keys: list[str] = []
    kinds = _models_in(kind)
    for part in location:
        chosen = [m for m in kinds if part in get_args(getattr(m.model_fields.get("kind"), "annotation", None))]
        if len(kinds) > 1 and chosen:
            kinds = chosen
            continue
        keys.append(str(part) if str(part).isprintable() else repr(part))
        fields = [m.model_fields[part].annotation for m in kinds if isinstance(part, str) and part in m.model_fields]
        if fields:  # else a place in a list, or a key that is not known: the records stay the same
            kinds = [model for field in fields for model in _models_in(field)]
    return keys, kinds


def _models_in(kind: Any) -> list[type[BaseModel]]:
    """The records that a type annotation can hold, through unions, lists and Annotated."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models_in(part)]
