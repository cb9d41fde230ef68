"""How samples that are no images become a batch, in a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from kdcl_dist.config.base import Strict
from kdcl_dist.utils.import_strings import IMPORT_STRING

__all__ = ["CollateSpec", "Pad"]

#: The forms of the field, as paths of errors name them.
TAGS = ("import string", "pad")


class Pad(Strict):
    """Sequences are padded at their end: `{name: pad, values: {tokens: 0, mask: 0}, length: 128}`.

    A tensor alone is `input`; those of a tuple are `"0"`, `"1"` and so on.
    """

    name: Literal["pad"] = Field(default="pad", description="Padding.")
    values: dict[str, float] = Field(
        default={}, description="Number that pads a tensor, by the tensor's name. Others are padded with 0."
    )
    length: PositiveInt | None = Field(
        default=None,
        description="First axis of the tensors in `values`: shorter ones are padded, longer ones cut. "
        "`null`: the longest of the batch.",
    )

    @model_validator(mode="after")
    def _length_is_of_some(self) -> Pad:
        if self.length is not None and not self.values:
            raise ValueError(
                f"length: {self.length} is that of the tensors in values, which names none: give each tensor "
                "of sequences the number that pads it"
            )
        return self


def _form(value: Any) -> str:
    return TAGS[not isinstance(value, str)]


CollateSpec = Annotated[
    Annotated[str, Field(pattern=rf"^{IMPORT_STRING}$"), Tag(TAGS[0])] | Annotated[Pad, Tag(TAGS[1])],
    Discriminator(_form),
]
