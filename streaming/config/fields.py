"""The kinds of values that a configuration holds: numbers, ids, paths, secrets. Each checks itself."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import FieldSerializationInfo


class Section(BaseModel):
    """One mapping of the file. Unknown keys are refused; errors and repr never show a value by themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


def rule(sentence: str, *at: str) -> PydanticCustomError:
    """An error that is already a whole sentence; `at` names the key below the one being checked."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence, "at": list(at)})


def expected(text: str) -> dict[str, Any]:
    """Schema extra: what an error says was expected, where type and bounds do not say it well."""
    return {"x-expected": text}


def default_text(text: str) -> dict[str, Any]:
    """Schema extra: the default in words, where it is not one fixed value."""
    return {"x-default": text}


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):  # to Python, true is 1: nobody means that
        raise PydanticCustomError("bool_as_number", "expected a number")
    return value


NotBool = BeforeValidator(_not_bool)
Whole = Annotated[int, NotBool]
Number = Annotated[float, NotBool, Field(allow_inf_nan=False)]

ID_WORDS: Final = "1 to 64 of a-z, 0-9, _ and -"
Id = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$", json_schema_extra=expected(ID_WORDS))]
"""A name that stands in a topic."""


def slug(text: str) -> str:
    """Any text -> the nearest valid `Id`; "" if nothing of it can stay."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:64]


def switch(value: Any) -> Any:
    """`true` -> a section with its defaults, `false` (or off) -> none."""
    word = str(value).lower() if isinstance(value, bool | str) else ""
    if word in {"true", "on", "yes"}:
        return {}
    return None if word in {"false", "off", "no"} else value


def reveals(info: FieldSerializationInfo) -> bool:
    """Whether this dump may hold secrets: only `Config.to_json` and `dump(redacted=False)` ask for them."""
    return bool(info.context and info.context.get("reveal"))


def _dump_secret(value: SecretStr, info: FieldSerializationInfo) -> str:
    return value.get_secret_value() if reveals(info) else "***"


Secret = Annotated[SecretStr, PlainSerializer(_dump_secret, return_type=str)]


def beside_config_file(path: Path, info: ValidationInfo) -> Path:
    """A relative path starts at the folder of the configuration file, `~` at the user's."""
    base = (info.context or {}).get("base_dir")
    try:
        path = path.expanduser()
    except RuntimeError:
        raise rule("expected a path from /, because the home folder that ~ stands for is not known") from None
    return Path(base) / path if base is not None else path


ConfigPath = Annotated[Path, AfterValidator(beside_config_file)]


def is_loopback(host: str) -> bool:
    """Whether nobody but this host can be there."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_host(host: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._-]+", host):
        return host
    try:
        ip_address(host)
    except ValueError:
        raise rule("expected a host name or address alone: no scheme, no user, and the port in mqtt.port") from None
    return host


Host = Annotated[
    str,
    AfterValidator(_check_host),
    Field(min_length=1, max_length=253, json_schema_extra=expected("a host name or address")),
]
