"""The network of a student in a recipe: its name, with arguments or without."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag

from kdcl_dist.config.base import Own
from kdcl_dist.utils.import_strings import is_import_string

__all__ = ["LIBRARIES", "TAGS", "Model", "ModelSpec", "check_url", "is_url", "library_of"]

#: The libraries whose networks a recipe names as `library:network`.
LIBRARIES = ("torchvision", "timm", "hf")
#: The forms of the field, as paths of errors name them.
TAGS = ("name of a network", "network with arguments")


class Model(Own):
    """A network with arguments: `{name: my_nets:tiny, depth: 20}`.

    Its factory gets the fields that this table does not list. `num_classes` and `in_channels` come from the
    data.
    """

    name: str = Field(description="The network, as without arguments.")

    @classmethod
    def of(cls, spec: str | Model) -> Model:
        """The network of either form."""
        return spec if isinstance(spec, Model) else cls(name=spec)

    @property
    def import_string(self) -> str | None:
        """The import string of a factory of the user's own; None for another network."""
        return self.name if library_of(self.name) is None and is_import_string(self.name) else None

    def __str__(self) -> str:
        """The name and the arguments: `my_nets:tiny(depth=20)`."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({given})" if given else self.name

    def __repr__(self) -> str:
        """As that of the text, so that both forms read alike in messages."""
        return repr(str(self))


def library_of(name: str) -> str | None:
    """The library of `library:network`; None for the name of another network."""
    library, colon, _ = name.partition(":")
    return library if colon and library in LIBRARIES else None


def is_url(model: str | Model) -> bool:
    """Whether a model is a network that a server computes."""
    return Model.of(model).name.startswith(("http://", "https://"))


def check_url(model: str | Model) -> None:
    """See that the URL of a served network is one.

    Raises:
        ValueError: it is not; one line of text.
    """
    url, parts = Model.of(model).name, urlsplit(Model.of(model).name)
    try:
        plain = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        plain = plain and all("!" <= each <= "~" for each in url)  # else no request can be written
    except ValueError:  # the port is no number
        plain = False
    if parts.username is not None:
        raise ValueError(
            "a URL with a user's name or password would be stored in the run folder: leave it out"
        )
    if not plain or Model.of(model).arguments:
        raise ValueError(f"a served network is http://HOST:PORT, without arguments (got {url!r})")


def _form(value: Any) -> str:
    return TAGS[isinstance(value, (dict, Model))]


ModelSpec = Annotated[
    Annotated[str, Tag(TAGS[0])] | Annotated[Model, Tag(TAGS[1])],
    Discriminator(_form),
]
