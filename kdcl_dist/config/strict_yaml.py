"""YAML with the decimal numbers of YAML 1.2 and without duplicate keys.

PyYAML reads YAML 1.1, in which 5e-4 is text, 1:30 is 90 and the last of two equal keys wins.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from kdcl_dist.errors import RecipeError, one_line

__all__ = ["MAX_BYTES", "MAX_DEPTH", "StrictLoader", "load_mapping", "load_yaml"]

MERGE = "tag:yaml.org,2002:merge"
#: Bytes of the largest document that is read.
MAX_BYTES = 1_000_000
#: Values of a document, an alias counted as all that it stands for. The names of 20,000 classes fit.
MAX_VALUES = 100_000
#: Levels of a document. A recipe has fewer than ten.
MAX_DEPTH = 100


class StrictLoader(yaml.SafeLoader):
    """A safe loader for which 5e-4 is a number and a duplicate key is an error.

    `<<: *anchor` merges the fields of another mapping, as in YAML 1.1; fields beside it take precedence.
    A document whose aliases unfold to more than `MAX_VALUES` is an error before any value is built.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()  # ids of nodes; all nodes live as long as the document's
        self.composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node, of a limited number."""
        self.composed += 1
        if self.composed > MAX_VALUES:
            raise _too_large("it has")
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        """The document's node, with all that its aliases stand for within the limits."""
        node = super().get_single_node()
        if node is not None:
            _Extent().measure(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; `ConstructorError` also where PyYAML fails on what an explicit tag says."""
        try:
            return super().construct_object(node, deep)
        except (LookupError, AttributeError, ArithmeticError):  # of `!!bool x`, `!!timestamp x`, `!!int ''`
            problem = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check a mapping for duplicate keys, then merge as PyYAML does.

        PyYAML calls this before it builds a mapping, and again for each merge of that mapping. The first
        call puts merged fields among the mapping's own, so that later calls would see duplicates.
        """
        if id(node) not in self.checked:
            self._refuse_duplicates(node)
            self.checked.add(id(node))
        super().flatten_mapping(node)

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.tag if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key!r} is given twice", key_node.start_mark
                )
            seen.add(str(key))


class _Extent:
    """Measures the nodes of a document as if each alias were a copy; visits each node once."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int, int] | None] = {}  # None: not measured to the end

    def measure(self, node: yaml.Node) -> tuple[int, int, int]:
        """Values, characters and levels of a node.

        Raises:
            YAMLError: they are too many.
            RecursionError: the node is nested too deeply, or contains itself.
        """
        if id(node) in self.known:
            if (found := self.known[id(node)]) is None:
                raise RecursionError
            return found
        self.known[id(node)] = None
        inner = [self.measure(child) for child in _children(node)]
        values = 1 + sum(each[0] for each in inner)
        characters = sum(each[1] for each in inner) + (0 if inner else len(node.value))
        depth = 1 + max((each[2] for each in inner), default=0)
        if values > MAX_VALUES:
            raise _too_large("its aliases unfold to")
        if characters > MAX_BYTES:
            raise yaml.YAMLError(f"its aliases unfold to more than {MAX_BYTES:,} characters")
        if depth > MAX_DEPTH:
            raise RecursionError
        self.known[id(node)] = values, characters, depth
        return values, characters, depth


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _too_large(text: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{text} more than {MAX_VALUES:,} values")


def _replace_resolvers() -> None:
    """Decimal numbers as in YAML 1.2, such as 5e-4; 1:30, 0o17 and dates are text."""
    own = {
        "int": r"[-+]?(0|[1-9][0-9_]*)",
        "float": r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.inf|\.nan",
    }
    dropped = {f"tag:yaml.org,2002:{name}" for name in (*own, "timestamp")}
    StrictLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern in own.items():
        tag, anchored = f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$")
        StrictLoader.add_implicit_resolver(tag, anchored, list("-+.0123456789"))


_replace_resolvers()


def load_yaml(text: str, source: str) -> Any:
    """Read a YAML document.

    Args:
        text: the document.
        source: its file or option, for error messages.

    Raises:
        RecipeError: the text is not YAML or too large, or a mapping has a duplicate key.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{source}: larger than {MAX_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=StrictLoader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}:{line} not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{source}: not valid YAML: {one_line(error)}") from None
    except yaml.YAMLError as error:  # of the limits
        raise RecipeError(f"{source}: too large: {error}") from None
    except ValueError as error:
        raise RecipeError(f"{source}: not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply, or a field contains itself by its alias") from None


def load_mapping(text: str, source: str) -> dict[str, Any]:
    """Read a YAML document that is a mapping of fields; arguments and errors as `load_yaml`."""
    data = _unshared(load_yaml(text, source))
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a mapping of fields is needed (got {type(data).__name__})")
    return data


def _unshared(value: Any) -> Any:
    """A copy in which aliases are independent of their anchor: an override of one leaves the others."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value
