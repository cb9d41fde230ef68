"""The YAML of recipes: what is a number, what is text, and which line is at fault."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdcl_dist.config import strict_yaml
from kdcl_dist.config.strict_yaml import load_mapping, load_yaml
from kdcl_dist.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E3", 1000.0),
        ("-2e+1", -20.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("0", 0),
        ("-12", -12),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("0o17", "0o17"),
        ("017", "017"),
        ("0x1F", "0x1F"),
        ("2020-01-01", "2020-01-01"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("true", True),
        ("no", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5e-4'", "5e-4"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = load_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(load_yaml(".nan", "here"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here: line 3 not valid YAML: the field 'a' is given twice"),
        ("a:\n  x: 1\n  x: 1", "here: line 3 not valid YAML: the field 'x' is given twice"),
        ("1: a\n'1': b", "here: line 2 not valid YAML: the field '1' is given twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "here: line 2 not valid YAML: the field '"),
        ("a: 1\nb: [", "here: line 2 not valid YAML: "),
        ("a: *b", "here: line 1 not valid YAML: found undefined alias"),
        ("a: !!python/object:os.x 1", "here: line 1 not valid YAML: could not determine a constructor"),
        ("a: !own 1", "here: line 1 not valid YAML: could not determine a constructor"),
        ("a: \x00", "here: not valid YAML: "),
        ("a: 1\nseed: !!bool x", "here: line 2 not valid YAML: 'x' is no bool"),
        ("seed: !!int ''", "here: line 1 not valid YAML: '' is no int"),
        ("seed: [!!float '']", "here: line 1 not valid YAML: '' is no float"),
        ("seed: !!timestamp foo", "here: line 1 not valid YAML: 'foo' is no timestamp"),
        ("!!bool x: 1", "here: line 1 not valid YAML: 'x' is no bool"),
        (
            "a: !!float " + "1:" * 300 + "1",
            "here: line 1 not valid YAML: '1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:' is",
        ),
        ("[" * 5000, "here: nested too deeply"),
    ],
)
def test_errors_name_source_and_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_yaml(text, "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_fields_beside_a_merge_take_precedence() -> None:
    text = "a: &a {x: 1, y: 1}\nb: {x: 2, <<: *a}\nc: {<<: *a, y: 3}\nd: {<<: [{x: 5}, *a]}"
    assert load_mapping(text, "here") == {
        "a": {"x": 1, "y": 1},
        "b": {"x": 2, "y": 1},
        "c": {"x": 1, "y": 3},
        "d": {"x": 5, "y": 1},
    }


def test_a_mapping_that_merges_can_be_merged() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\nd: {<<: *b}"
    found = load_mapping(text, "here")
    assert found["c"] == {"x": 3, "y": 2}
    assert found["d"] == {"x": 1, "y": 2}


def test_aliases_are_independent_of_their_anchor() -> None:
    found = load_mapping("a: &a {x: [1]}\nb: *a", "here")
    found["b"]["x"].append(2)
    assert found["a"] == {"x": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "here: a mapping of fields is needed (got list)"),
        ("text", "here: a mapping of fields is needed (got str)"),
        ("", "here: a mapping of fields is needed (got NoneType)"),
        ("a: &a {b: *a}", "here: nested too deeply, or a field contains itself by its alias"),
    ],
)
def test_only_a_mapping_has_fields(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_mapping(text, "here")
    assert str(caught.value) == message


def _levels(pattern: str, first: str, count: int = 9, copies: int = 10) -> str:
    """Mappings of which each holds the one before ten times."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, count + 1):
        lines.append(f"a{level}: &a{level} " + pattern % ", ".join([f"*a{level - 1}"] * copies))
    return "\n".join(lines)


BOMBS = {
    "lists": (_levels("[%s]", "lol"), "its aliases unfold to more than 100,000 values"),
    "mappings": (_levels("{x: [%s]}", "{y: 1}"), "its aliases unfold to more than 100,000 values"),
    "merges": (_levels("{<<: [%s]}", "{x: 1}"), "its aliases unfold to more than 100,000 values"),
    "a key": (_levels("[%s]", "[x]") + "\n? *a9\n: 1", "its aliases unfold to more than 100,000 values"),
    "long text": (
        "a: &a " + "x" * 90_000 + "\nb: [" + "*a, " * 20 + "]",
        "its aliases unfold to more than 1,000,000 characters",
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_aliases_that_unfold_are_refused_at_once(what: str) -> None:
    text, words = BOMBS[what]
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(RecipeError, match=f"^here: too large: {words}$"):
        load_mapping(text, "here")
    spent_s, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent_s < 60
    assert peak < 20e6


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a [*a]", "a: &a {<<: *a}", "a: &a {b: {c: [*a]}}"])
def test_a_field_that_contains_itself(text: str) -> None:
    with pytest.raises(RecipeError, match="contains itself by its alias"):
        load_yaml(text, "here")


def test_aliases_nested_deeper_than_any_recipe() -> None:
    chain = "- &a0 x\n" + "".join(f"- &a{level} [*a{level - 1}]\n" for level in range(1, 150))
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_yaml(chain, "here")


def test_a_document_has_a_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"^here: larger than 1,000,000 bytes$"):
        load_yaml("#" * 1_000_001, "here")
    monkeypatch.setattr(strict_yaml, "MAX_VALUES", 1000)
    with pytest.raises(RecipeError, match=r"^here: too large: it has more than 1,000 values$"):
        load_yaml("[" + "1, " * 1000 + "]", "here")
    assert len(load_yaml("[" + "1, " * 990 + "]", "here")) == 990


plain = st.recursive(
    st.integers() | st.text("abc", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=4)
    ),
    max_leaves=20,
)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + _count(child) for child in value.values())
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


@given(plain, st.integers(1, 5))
def test_an_alias_counts_as_what_it_stands_for(value: Any, copies: int) -> None:
    text = yaml.safe_dump([value] * copies)  # writes anchors and aliases
    found = load_yaml(text, "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "MAX_VALUES", _count(found))
        assert load_yaml(text, "here") == found
        patch.setattr(strict_yaml, "MAX_VALUES", _count(found) - 1)
        with pytest.raises(RecipeError, match="too large"):
            load_yaml(text, "here")
