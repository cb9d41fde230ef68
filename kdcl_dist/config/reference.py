"""The reference of the recipe, made from its models: the JSON schema for editors, and docs/recipe.md."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kdcl_dist.config import (
    collate,
    data,
    distillation,
    losses,
    mixing,
    model,
    optim,
    own_data,
    schedules,
    sections,
    student,
    tracking,
)
from kdcl_dist.config.base import Strict
from kdcl_dist.config.differences import FREE_FIELDS, ROUNDING_FIELDS
from kdcl_dist.config.recipe import Recipe

__all__ = ["recipe_reference", "recipe_schema"]


class Section(NamedTuple):
    """One table of the page: its heading, the model whose fields it lists, and a page with more."""

    heading: str
    model: type[Strict]
    more: str | None = None


SECTIONS = (
    Section("## The run", Recipe),
    Section("## `data`", data.Data, "data.md"),
    Section("### Transforms", data.Transform),
    Section("### `data`: mixup and cutmix", mixing.Mixing, "mixing.md"),
    Section("### `data.collate`: pad", collate.Pad),
    Section("## `distillation`", distillation.Distillation, "method.md"),
    Section("### `distillation.method`: your own", distillation.OwnMethod),
    Section("### `loss`: kl", losses.KL, "losses.md"),
    Section("### `loss`: standardised", losses.StandardisedLoss),
    Section("### `loss`: dkd", losses.DecoupledLoss),
    Section("### `loss`: bdkd", losses.BalancedLoss),
    Section("### `loss`: your own", losses.OwnLoss, "losses.md"),
    Section("### `distillation.bank`", distillation.Bank, "windows.md"),
    Section("### `distillation.record_logits`", distillation.RecordLogits, "stored-logits.md"),
    Section("## `students`", student.Student, "models.md"),
    Section("### `data`: of one student", own_data.OwnData, "shards.md"),
    Section("### `model`: with arguments", model.Model, "models.md"),
    Section("### `optimizer`: sgd", optim.SGD),
    Section("### `optimizer`: rmsprop", optim.RMSprop),
    Section("### `optimizer`: adam", optim.Adam),
    Section("### `optimizer`: adamw", optim.AdamW),
    Section("### `optimizer`: nadamw", optim.NAdamW),
    Section("### `optimizer`: lamb", optim.Lamb),
    Section("### `optimizer`: lion", optim.Lion),
    Section("### `optimizer`: your own", optim.OwnOptimizer),
    Section("### `schedule`: multistep", schedules.MultiStep),
    Section("### `schedule`: constant", schedules.Constant),
    Section("### `schedule`: cosine", schedules.Cosine),
    Section("### `schedule`: poly", schedules.Poly),
    Section("### `schedule`: onecycle", schedules.OneCycle),
    Section("### `schedule`: your own", schedules.OwnSchedule),
    Section("### `ema`", student.Ema, "run-folder.md"),
    Section("### `resources`", student.Resources, "gpu.md"),
    Section("## `evaluate`", sections.Evaluate, "best.md"),
    Section("## `early_stopping`", sections.EarlyStopping, "best.md"),
    Section("## `checkpoint`", sections.Checkpoint, "storage.md"),
    Section("## `analysis`", sections.Analysis, "analysis.md"),
    Section("## `tracking`: wandb", tracking.Wandb, "tracking.md"),
    Section("### `tracking`: mlflow", tracking.MLflow, "tracking.md"),
    Section("### `tracking`: your own", tracking.OwnTracker, "tracking.md"),
    Section("## `failure`", sections.Failure, "failures.md"),
    Section("## `limits`", sections.Limits, "failures.md"),
)

#: Types with parts: their name in a schema, the key of the type of their parts there, and both in words.
PLURAL = (("array", "items", "list of"), ("object", "additionalProperties", "mapping of names to"))

HEAD = """\
# The recipe

The code of the recipe makes this page: `kdcl recipe reference > docs/recipe.md`.

A recipe is a YAML file. It holds every field that changes a result or a placement:

```yaml
name: digits
epochs: 20
data: {train: kdcl:digits-train, test: kdcl:digits-test}
students:
  - {name: large, model: cnn_medium, schedule: {milestones: [12, 17]}}
  - {name: mlp, model: mlp, optimizer: {name: adamw, lr: 1e-3}}
```

The file has at most 1 MB. With all aliases (`*name`) unfolded it has at most 100,000 values, in 100 levels.

A field that is left out has its default. Unknown fields, values of another type and parts that contradict
each other are errors before anything starts. A run writes its complete recipe to `recipe.yaml` in its folder.

In the tables, a name is text of letters, digits, `_`, `.` and `-`, 64 at most, that begins with a letter or a
digit. `{}` is a section with its own defaults.

## In an editor

```sh
kdcl recipe schema > recipe.schema.json
```

writes a JSON schema. With it, an editor completes and checks the fields of a recipe and shows the description
of each; it does not see contradictions between fields. VS Code with the YAML extension of Red Hat reads the
path of the schema from a comment at the top of the recipe:

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""

TAIL = """\
## Overrides

`--set path=value` changes a field: `--set epochs=3`. The value is YAML. An item of a list is named by its
`name` or its number: `--set students.a.optimizer.lr=0.01`. `null` removes an item: `--set students.a=null`.

## What may change on `--resume`

| fields | effect on the result |
| --- | --- |
| {free} | none |
| of a student {rounding} | the last bits of sums may differ; a warning says so |
| `epochs`, to a larger number | the run goes on, as if it had been started so |
| `early_stopping` | the run ends by the new rule; one that the old rule has ended may go on |
| `checkpoint.best`, to `null` | none; best epochs are no longer kept and tested |

Of `resources.gpu` the warning comes with the start, if a student's device is of another kind than before.
Every other change makes another run and is an error. With a larger `epochs` a finished run goes on too.
They cannot grow where a student's learning rate depends on them: with every schedule but `constant` and
`multistep`, unless the student has `epochs` or `until_epoch` of its own or is frozen. Then start a new run
with the `weights` of its students. `--resume` without `--name` takes the latest run of the
recipe's name that has a checkpoint.

`kdcl train --resume` needs no `--set` of the run's start again: while the recipe's file is unchanged, the
stored recipe counts, and a note lists what an earlier `--set` gave. A `--set` that contradicts it is an
error. After an earlier `--set` of an import string, or without `--name` of the recipe's `name`, the same
`--set` must be given again; so must all in a run that 0.1.0 began.
"""


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with the description of every field."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


def recipe_reference() -> str:
    """The page docs/recipe.md: one table for each section of a recipe."""
    schema = recipe_schema()
    tables = ["\n".join(_section(section, schema)) for section in SECTIONS]
    own = [field.removeprefix("students.*.") for field in ROUNDING_FIELDS]
    tail = TAIL.format(free=_listed(FREE_FIELDS), rounding=_listed(own))
    return "\n".join([HEAD, *tables, tail])


def _section(section: Section, schema: dict[str, Any]) -> Iterator[str]:
    part = schema if section.model is Recipe else schema["$defs"][section.model.__name__]
    yield from (section.heading, "", inspect.cleandoc(section.model.__doc__ or ""), "")
    if section.more:
        yield from (f"More: [{section.more}]({section.more}).", "")
    yield from ("| field | type | default | what it does |", "| --- | --- | --- | --- |")
    # `name` first also where a model inherits other fields.
    for name, field in sorted(part["properties"].items(), key=lambda item: item[0] != "name"):
        default = f"`{_yaml(field['default'])}`" if "default" in field else "required"
        yield f"| `{name}` | {_type(field)} | {default} | {field['description']} |"
    yield ""


def _type(field: dict[str, Any]) -> str:
    """The values that a field takes, in words."""
    if "$ref" in field:
        return _link(field["$ref"])
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if values := field.get("enum") or [field[key] for key in ("const",) if key in field]:
        return ", ".join(f"`{value}`" for value in values)
    for kind, parts, words in PLURAL:
        if field["type"] == kind:
            return f"{words} {_type(field[parts])}"
    single = {
        "string": "name" if "pattern" in field else "text",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    return single.get(field["type"]) or " ".join([field["type"], _bounds(field)]).strip()


def _bounds(field: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = {key: "2^63" if field[key] == 2**63 else f"{field[key]:.12g}" for key in signs if key in field}
    return " and ".join(f"{signs[key]} {bound}" for key, bound in bounds.items())


def _link(reference: str) -> str:
    """A link to the table of a model, as GitHub names the anchors of headings."""
    model = reference.rpartition("/")[2]
    (heading,) = (section.heading for section in SECTIONS if section.model.__name__ == model)
    title = heading.lstrip("# ").replace("`", "")
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title.rpartition(': ')[2]}](#{anchor})"


def _yaml(default: Any) -> str:
    """A default as a recipe holds it; `{}` is a section with its own defaults."""
    if isinstance(default, dict):
        return f"{{name: {default['name']}}}" if "name" in default else "{}"
    return default if isinstance(default, str) else json.dumps(default)


def _listed(fields: Iterable[str]) -> str:
    *most, last = (f"`{field}`" for field in fields)
    return f"{', '.join(most)} and {last}"
