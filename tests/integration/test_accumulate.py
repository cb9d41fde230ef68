"""A step in parts learns what one in a single part learns; it is skipped, or begun anew, as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import reference
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, train, weights
from equality import PAIR, check_replicas, single

from kdcl_dist.errors import NonFiniteLogits
from kdcl_dist.run.events import Note, Stepped, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.parametrize("method", ["linear", "dml", "none"])
def test_parts_and_replicas_learn_what_whole_batches_teach(
    method: str, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """Also the figures are those of steps."""
    more = [PAIR, f"distillation.method={method}", "analysis.every_steps=2", "students.a.clip_grad_norm=0.5"]
    runs = [make_run(make_recipe(*more, f"accumulate={parts}")) for parts in (1, 4)]
    tables = []
    for run in runs:
        cohort = Cohort(run).train()
        assert not cohort.errors
        assert max(event.step for event in cohort.events if isinstance(event, Stepped)) <= 6
        rows = [row for row in read_metrics(run.folder).to_pylist() if row["split"] in ("train", "test")]
        assert set(Counter((r["student"], r["step"], r["split"], r["name"]) for r in rows).values()) == {1}
        tables.append({(r["student"], r["step"], r["name"]): r["value"] for r in rows})
    check_replicas(runs[1], atol=1e-6)
    whole = reference.train(single(runs[0].recipe))
    for name, state in zip(runs[1].recipe.names, whole, strict=True):
        for key, value in weights(runs[1].folder, 6, name).items():
            assert torch.allclose(value, state[key], atol=1e-5), (name, key)
    assert tables[0].keys() == tables[1].keys()
    for key, value in tables[0].items():
        if not key[2].endswith("_s"):
            assert value == pytest.approx(tables[1][key], abs=1e-4), key


@pytest.mark.parametrize("allowed", [5, 4])
def test_a_part_with_bad_logits_makes_the_student_skip_the_step(
    allowed: int, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """The logits of every second part are bad from step 1 on, since a skipped step leaves no trace."""
    bad = ("accumulate=2", "batch_size=20", "students.b.model=nets:NotFinite")
    cohort = Cohort(make_run(make_recipe(*bad, f"failure.max_bad_steps={allowed}"))).train()
    if allowed == 4:
        error = cohort.errors["a"]
        assert isinstance(error, NonFiniteLogits)
        assert (error.student, error.step) == ("b", 5)
        assert "5 steps in a row" in error.message
        return
    assert not cohort.errors
    rows = [row for row in read_metrics(cohort.run.folder).to_pylist() if row["split"] == "train"]
    assert [r["step"] for r in rows if r["name"] == "skipped"] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in rows if (r["student"], r["name"]) == ("b", "loss")] == [0]
    assert [r["step"] for r in rows if (r["student"], r["name"]) == ("a", "loss")] == list(range(6))
    assert_same(weights(cohort.run.folder, 3, "b"), weights(cohort.run.folder, 6, "b"))
    assert all(bool(torch.isfinite(value).all()) for value in weights(cohort.run.folder, 6, "a").values())
    (note,) = [event.text for event in cohort.events if isinstance(event, Note | Warned)]
    assert "logits of b at step 1 are NaN" in note


def test_good_parts_after_a_bad_one_are_not_learned(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    """The logits of the first part of step 1 are bad."""
    bad = ("accumulate=3", "batch_size=18", "students.b.model=nets:NotFiniteOnce")
    cohort = Cohort(make_run(make_recipe(*bad, "students.b.optimizer={name: adamw}"))).train()
    assert not cohort.errors
    rows = read_metrics(cohort.run.folder).to_pylist()
    assert [r["step"] for r in rows if r["name"] == "skipped"] == [1]
    part = torch.load(f"{cohort.run.folder.local}/checkpoints/step-00000006/b.pt", weights_only=True)
    assert part["optimizer"]["state"][0]["step"] == 5
    assert part["model"]["steps"] == 3 * 5


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_survivors_begin_an_interrupted_step_anew(
    phase: str, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """Student a learns from nobody, so that it must have the weights of a run without a failure.

    Its third part's answer does not come: by then it has computed the gradient.
    """
    survives = ("failure={policy: continue, max_failures: 3, min_students: 1}", "limits.step_s=150")
    students = "students=[{name: a, model: mlp}, {name: b, model: mlp}]"
    run = make_run(make_recipe(students, "accumulate=4", "distillation.method=none", *survives))
    met = inject("b", phase, 4, "kill", nth=3)
    train(run)
    assert met.exists()
    assert_same(weights(run.folder, 6, "a"), reference.train(run.recipe)[0])
