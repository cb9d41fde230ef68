"""Every field of the training gives the weights of the sequential reference, also over a break."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from cohorts import Cohort, Inject, MakeRecipe
from equality import check

from kdcl_dist.launch import local
from kdcl_dist.run.run import Run

FIELDS = {
    "label_smoothing": ["students.a.label_smoothing=0.1"],
    "label_smoothing and dml": [
        "students.b.label_smoothing=0.2",
        "distillation.method=dml",
        "accumulate=2",
    ],
    "clip_grad_norm": ["students.a.clip_grad_norm=0.1", "students.b.clip_grad_norm=0.5"],
    "decay_norm_and_bias": ["students.a.optimizer={weight_decay: 0.1, decay_norm_and_bias: false}"],
    "rmsprop, cosine, ema": [
        "students.a.optimizer={name: rmsprop, momentum: 0.5}",
        "students.a.ema={decay: 0.6}",
        "students.b.ema={decay: 0.6, warmup: false}",
        "students.b.schedule={name: cosine, min_lr: 0.01}",
    ],
    "nadamw, lion": [
        "students.a.optimizer={name: nadamw, weight_decay: 0.1}",
        "students.b.optimizer={name: lion, weight_decay: 0.1}",
    ],
    "accumulate": [
        "accumulate=4",
        "distillation.logit_noise=0.1",
        "students.a.ema={decay: 0.5}",
        "students.b.clip_grad_norm=0.5",
    ],
    "accumulate and general": ["accumulate=2", "distillation.method=general", "data.holdout_per_class=3"],
    "own method": ["distillation.method='nets:sharpened'"],
    "lamb, own": [
        "students.a.optimizer={name: lamb, decay_norm_and_bias: false}",
        "students.b.optimizer={name: 'torch.optim:Adagrad', lr: 0.05, lr_decay: 0.01}",
        "students.b.schedule={name: 'nets:halving', every: 2}",
    ],
}

#: All kinds of fields at once.
ALL = [
    "distillation.method={name: 'nets:sharpened'}",
    "accumulate=2",
    "students.a.label_smoothing=0.1",
    "students.a.clip_grad_norm=0.5",
    "students.a.optimizer={name: nadamw, weight_decay: 0.1, decay_norm_and_bias: false}",
    "students.a.schedule={name: cosine, min_lr: 1e-4}",
    "students.a.ema={decay: 0.6}",
    "students.b.optimizer={name: 'torch.optim:Adagrad', lr: 0.05, lr_decay: 0.01}",
    "students.b.schedule={name: 'nets:halving', every: 2}",
]


@pytest.mark.parametrize("field", FIELDS)
def test_stopped_and_resumed_it_equals_the_reference(
    field: str, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    recipe, asked = make_recipe(*FIELDS[field]), itertools.count()
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 4)
    assert not stopped.errors
    assert stopped.finished["coordinator"] is False
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run)


def test_after_a_death_it_equals_the_reference(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], inject: Inject
) -> None:
    run = make_run(make_recipe(*ALL, "failure.max_failures=1"))
    met = inject("b", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check(run)
