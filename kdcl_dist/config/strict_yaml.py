"""YAML as people mean it: numbers as in YAML 1.2, and no field given twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kdcl_dist.errors import RecipeError, one_line

__all__ = []


MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 5e-4 is a number, and a key given twice is a mistake.

    `<<: *anchor` takes up the fields of another mapping, as in YAML 1.1; fields beside it go first.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()  # ids of nodes, which all live as long as the document's

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Called before a mapping is built, and again whenever another takes up its fields. The first call
        # puts the fields taken up among its own, after which a field given on top of them stands twice.
        if id(node) not in self.checked:
            self._refuse_twice(node)
            self.checked.add(id(node))
        super().flatten_mapping(node)

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.tag if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key!r} is given twice", key_node.start_mark
                )
            seen.add(str(key))


def _replace_resolvers() -> None:
    """StepMetrics as in YAML 1.2: 5e-4 is one; 1:30 (ninety in YAML 1.1), 0o17 and dates are text."""
    own = {
        "int": r"[-+]?(0|[1-9][0-9_]*)",
        "float": r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.inf|\.nan",
    }
    dropped = {f"tag:yaml.org,2002:{name}" for name in (*own, "timestamp")}
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern in own.items():
        tag, anchored = f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$")
        _Loader.add_implicit_resolver(tag, anchored, list("-+.0123456789"))


_replace_resolvers()


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}:{line} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply") from None


def _parse_mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = _unshared(_parse_yaml(text, source))
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply, or a field contains itself by its alias") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a mapping of fields is needed (got {type(data).__name__})")
    return data


def _unshared(value: Any) -> Any:
    """A copy in which an anchor and its aliases are parts of their own: overriding one leaves the others."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value
