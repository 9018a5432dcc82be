"""The transports of a receiver as the collector's users write them: `protocols:`, and below it those that are to be served."""

from typing import Any, Self

from pydantic import model_validator

from lockgate.pipeline.needs import ComponentSettings


class NamedProtocols(ComponentSettings):
    """Every field is a transport's settings, or None where it is not served; one that is named alone has its defaults."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        # Elsewhere null means "not written"; here `http:` alone is how the collector's users switch a protocol on.
        if isinstance(value, dict):
            return {key: {} if item is None else item for key, item in value.items()}
        return {} if value is None else value

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"names no protocol; add {' or '.join(type(self).model_fields)}")
        return self
