"""The section `tracking` of a recipe: the trackers that get the recorded metrics."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from kdcl_dist.config.base import NAME_REQUIRED, OWN, Own, Strict, kind_of, named
from kdcl_dist.utils.import_strings import IMPORT_STRING

__all__ = ["FILES", "NAMED", "MLflow", "OwnTracker", "Sampled", "Tracker", "Wandb", "name_of"]

#: The form of a tracker without fields, as paths of errors name it.
NAMED = "name of a tracker"
#: Trackers that write into the run folder; they have no fields.
FILES = ("tensorboard", "csv")
#: Credentials of a URI: before an "@" of the server, or after a ":" without a port; they may have a "/".
CREDENTIALS = r"://([^/]*@|[^/\[]*:(?!\d*(/|$)).*@)"
#: Parameters of a URI that are no business of a recipe.
SECRET = r"[?&][^=&]*(password|passwd|secret|token|key)[^=&]*="

ImportString = Annotated[str, Field(pattern=rf"^{IMPORT_STRING}$")]


class Sampled(Strict):
    """The fields of every tracker on a server."""

    every_steps: PositiveInt = Field(
        default=1, description="Steps from one point of the training to the next. Tests always give a point."
    )


class Wandb(Sampled):
    """Weights & Biases; the extra `wandb` has its package.

    Its own environment variables hold all else: `WANDB_API_KEY`, `WANDB_MODE`, `WANDB_RUN_GROUP` and others.
    """

    model_config = NAME_REQUIRED

    name: Literal["wandb"] = Field(default="wandb", description="The tracker.")
    project: str | None = Field(default=None, description="Project. `null`: the recipe's `name`.")
    entity: str | None = Field(default=None, description="Team or user. `null`: that of the key.")


class MLflow(Sampled):
    """MLflow; the extra `mlflow` has its client.

    A password or token belongs into its own environment variables: `MLFLOW_TRACKING_USERNAME` and
    `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`.
    """

    model_config = NAME_REQUIRED

    name: Literal["mlflow"] = Field(default="mlflow", description="The tracker.")
    uri: str | None = Field(
        default=None, description="The server, without a password. `null`: `MLFLOW_TRACKING_URI` says it."
    )
    experiment: str | None = Field(default=None, description="Experiment. `null`: the recipe's `name`.")

    @model_validator(mode="after")  # an error of the field itself would show its value
    def _uri_has_no_secret(self) -> MLflow:
        uri = self.uri or ""
        if re.search(CREDENTIALS, uri) or re.search(SECRET, uri, re.IGNORECASE):
            raise ValueError(
                "uri: holds a user, password or token, which no recipe shall hold: give the URI without it, "
                "and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        try:
            urlsplit(uri)  # last: its errors quote a password
        except ValueError as error:
            raise ValueError(f"uri: {error}") from None
        return self


class OwnTracker(Own):
    """A tracker of your own: `my_trackers:Slack`, or with arguments `{name: my_trackers:Slack, to: runs}`.

    It is called with the fields that this table does not list, and gives an object with the methods of
    `kdcl_dist.tracking.tracker.Tracker`.
    """


def _plain(part: Any) -> Any:
    """A mapping that has only a name as that name."""
    if isinstance(part, (str, Strict)):
        return part
    if not isinstance(part, dict) or not isinstance(name := part.get("name"), str):
        raise ValueError("must be the name of a tracker, such as csv, or have one: {name: wandb, entity: us}")
    if name in FILES and len(part) > 1:
        fields = ", ".join(str(key) for key in part if key != "name")
        raise ValueError(f"{name!r} has no fields (got {fields})")
    return name if len(part) == 1 else part


def _form(part: Any) -> str | None:
    return NAMED if isinstance(part, str) else kind_of(part)


def name_of(tracker: str | Wandb | MLflow | OwnTracker) -> str:
    """The name of a tracker, or its import string."""
    return tracker if isinstance(tracker, str) else tracker.name


Tracker = Annotated[
    Annotated[Literal["tensorboard", "csv", "wandb", "mlflow"] | ImportString, Tag(NAMED)]
    | Annotated[Wandb, Tag("wandb")]
    | Annotated[MLflow, Tag("mlflow")]
    | Annotated[OwnTracker, Tag(OWN)],
    Discriminator(_form),
    named("tensorboard", "csv", "wandb", "mlflow"),
    BeforeValidator(_plain),
]
