"""Every field of the training gives the weights of the sequential reference, also over a break."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest
import reference
from cohorts import ROOT, Cohort, Inject, MakeRecipe
from equality import PAIR, VIEWS, check, check_replicas

from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.errors import MethodError
from kdcl_dist.launch import local
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.run import Run

WEIGHTS = "class_weights={class 0: 2.0, class 1: 0.5, class 2: 1, class 3: 3.5}"

VERIFY = "failure.verify_every_steps"

FIELDS = {
    "label_smoothing": ["students.a.label_smoothing=0.1"],
    "label_smoothing and dml": [
        "students.b.label_smoothing=0.2",
        "distillation.method=dml",
        "accumulate=2",
        f"{VERIFY}=1",
    ],
    "clip_grad_norm": ["students.a.clip_grad_norm=0.1", "students.b.clip_grad_norm=0.5"],
    "decay_norm_and_bias": ["students.a.optimizer={weight_decay: 0.1, decay_norm_and_bias: false}"],
    "rmsprop, cosine, ema": [
        "students.a.optimizer={name: rmsprop, momentum: 0.5}",
        "students.a.ema={decay: 0.6}",
        "students.b.ema={decay: 0.6, warmup: false}",
        "students.b.schedule={name: cosine, min_lr: 0.01}",
        f"{VERIFY}=1",
    ],
    "nadamw, lion": [
        "students.a.optimizer={name: nadamw, weight_decay: 0.1}",
        "students.b.optimizer={name: lion, weight_decay: 0.1}",
        f"{VERIFY}=2",
    ],
    "accumulate": [
        "accumulate=4",
        "distillation.logit_noise=0.1",
        "students.a.ema={decay: 0.5}",
        "students.b.clip_grad_norm=0.5",
        f"{VERIFY}=1",
    ],
    "accumulate and general": ["accumulate=2", "distillation.method=general", "data.holdout_per_class=3"],
    "train_per_class, val_fraction and general": [
        "epochs=3",
        "data.train_per_class=13",
        "data.val_fraction=0.1",
        "data.holdout_per_class=3",
        "distillation.method=general",
    ],
    "own method": ["distillation.method='nets:sharpened'"],
    "own method with peers": ["distillation.method={name: 'examples.custom.right:loss', peers: true}"],
    "mixup and linear": ["data.mixup={alpha: 0.7}", f"students.b.{WEIGHTS}"],
    "cutmix and naive": [
        "data.cutmix={}",
        "distillation.method=naive",
        "students.a.label_smoothing=0.1",
        f"students.a.{WEIGHTS}",
    ],
    "mixup, cutmix and dml": [
        "data.mixup={alpha: 0.2, probability: 0.4}",
        "data.cutmix={probability: 0.3}",
        "distillation.method=dml",
        f"students.b.{WEIGHTS}",
    ],
    "loss dkd in windows": [
        "distillation.loss={name: dkd, alpha: 0.5, beta: 2.0}",
        "distillation.window=3",
        "distillation.wire_precision=fp16",
        f"{VERIFY}=2",
    ],
    "loss bdkd and mixup": [
        "distillation.loss=bdkd",
        "data.mixup={}",
        "accumulate=2",
        f"students.b.{WEIGHTS}",
    ],
    "loss standardised and dml": [
        "distillation.loss=standardised",
        "distillation.method=dml",
        "students.a.label_smoothing=0.1",
    ],
    "own samples, and linear": [
        "students.a.data={share: [0, 0.5], sees: all}",
        "students.b.data={share: [0.5, 1], sees: all}",
        f"students.a.{WEIGHTS}",
    ],
    "own samples, and dml in parts": [
        "students.a.data={classes: [class 0, class 2], sees: all}",
        "students.b.data={share: 0.3, sees: all}",
        "distillation.method=dml",
        "accumulate=4",
        "batch_size=12",
    ],
    "own samples, and naive in windows": [
        "students.a.data={share: 0.6, sees: all}",
        "students.b.data={share: [0.2, 0.9]}",
        "distillation={method: naive, window: epoch}",
        "batch_size=7",
    ],
    "lamb, own": [
        "students.a.optimizer={name: lamb, decay_norm_and_bias: false}",
        "students.b.optimizer={name: 'torch.optim:Adagrad', lr: 0.05, lr_decay: 0.01}",
        "students.b.schedule={name: 'nets:halving', every: 2}",
    ],
}

#: A cohort in which both students pause now and then, one with running statistics.
SWITCHING = [
    "distillation={method: switokd, temperature: 0.3, loss: bdkd}",
    "students.a.model=nets:Tiny",
    "students.a.optimizer={name: adam, lr: 0.02}",
    "students.a.ema={decay: 0.5}",
    "students.b.optimizer.lr=0.02",
    "accumulate=2",
    "data.mixup={probability: 0.5}",
    "batch_size=8",
    f"{VERIFY}=1",
]

#: All kinds of fields at once, but for the method.
ALL = [
    "accumulate=2",
    "students.a.label_smoothing=0.1",
    "students.a.clip_grad_norm=0.5",
    "students.a.model={name: 'nets:Deep', depth: 2}",
    "students.a.optimizer={name: nadamw, weight_decay: 0.1, decay_norm_and_bias: false, layer_decay: 0.6}",
    "students.a.schedule={name: cosine, min_lr: 1e-4}",
    "students.a.ema={decay: 0.6}",
    "students.b.optimizer={name: 'torch.optim:Adagrad', lr: 0.05, lr_decay: 0.01}",
    "students.b.schedule={name: 'nets:halving', every: 2}",
    f"students.b.{WEIGHTS}",
    "data.mixup={alpha: 0.2, probability: 0.5}",
    "data.cutmix={probability: 0.5}",
    VIEWS,
    f"{VERIFY}=2",
]

#: One student of two workers, whose samples have partners in the other worker's share.
MIXED_PAIR = [
    PAIR,
    VIEWS,
    "data.mixup={probability: 0.5}",
    "data.cutmix={probability: 0.5}",
    "data.loader_workers=1",
    "distillation.invariant=false",
    f"students.a.{WEIGHTS}",
    f"{VERIFY}=2",
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


def test_pauses_equal_those_of_the_reference(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    recipe, asked = make_recipe(*SWITCHING), itertools.count()
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 9).errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run)
    expected: dict[str, list[int]] = {}
    reference.train(recipe, pauses=expected)
    rows = [row for row in read_metrics(run.folder).to_pylist() if row["name"] == "paused"]
    steps = {name: [row["step"] for row in rows if row["student"] == name] for name in ("a", "b")}
    run = make_run(recipe, "r", resume=True)
    assert steps == {name: list(range(run.step)) for name in ("a", "b")}
    paused = {
        name: [row["step"] for row in rows if row["student"] == name and row["value"]] for name in steps
    }
    assert paused == expected
    assert min(map(len, paused.values())) > 0
    assert max(map(len, paused.values())) < run.step


def test_the_recipe_of_today_equals_the_reference(
    make_run: Callable[..., Run], inject: Inject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a part of the digits, stopped in the second epoch and resumed."""
    pytest.importorskip("timm")
    monkeypatch.chdir(ROOT)
    short = [f"students.{name}.schedule.warmup_epochs=1" for name in ("vit", "resnet")]
    recipe = load_recipe("examples/modern.yaml", ["epochs=2", "data.holdout_per_class=100", *short])
    held, stop = inject("coordinator", "gather", 5, "hold", until="stop"), threading.Event()

    def ask() -> None:
        while not held.exists():
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=ask, daemon=True).start()
    assert not local.launch(make_run(recipe, "r"), lambda event: None, stop)
    run = make_run(recipe, "r", resume=True)
    assert run.step == 6
    assert local.launch(run, lambda event: None, threading.Event())
    check(run)


@pytest.mark.parametrize("field", ["own method", "own method with peers"])
def test_after_a_death_it_equals_the_reference(
    field: str, make_recipe: MakeRecipe, make_run: Callable[..., Run], inject: Inject
) -> None:
    run = make_run(make_recipe(*FIELDS[field], *ALL, "failure.max_failures=1"))
    met = inject("b", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check(run)


def test_a_mistake_of_a_method_with_peers_ends_the_run(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    method = "distillation.method={name: 'nets:nan_loss_later', peers: true}"
    errors = Cohort(make_run(make_recipe(method, "failure.max_failures=8"))).train().errors
    cause = errors["coordinator"]
    assert isinstance(cause, MethodError)
    assert str(cause).startswith("student '")
    assert str(cause).endswith("'nets:nan_loss_later', step 3: ValueError: the loss is nan")


def test_replicas_and_a_death_with_mixed_samples(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], inject: Inject
) -> None:
    run = make_run(make_recipe(*MIXED_PAIR, "failure.max_failures=1"))
    met = inject("b", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check_replicas(run, atol=1e-6)
