"""Mixup and cutmix against torchvision's and timm's, and the distribution of what a step draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohorts import MakeRecipe
from scipy import stats
from torchvision.transforms import v2

from kdcl_dist.data.mixing import Box, Mix, mix_of_round
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.views import Views
from kdcl_dist.distillation.labels import two_hot
from kdcl_dist.distillation.losses import task_loss
from kdcl_dist.errors import RecipeError

IDS = np.arange(100, 150)
CROP = "data.augment=[{name: RandomCrop, size: 8, padding: 2}]"


def mixes(make_recipe: MakeRecipe, *fields: str, steps: int = 4000) -> list[Mix]:
    recipe = make_recipe(*fields)
    found = [mix_of_round(recipe, step, IDS[:2]) for step in range(steps)]
    assert None not in found
    return [mix for mix in found if mix is not None]


def test_draws_are_frozen(make_recipe: MakeRecipe) -> None:
    """Other values would change the result of every recipe that mixes."""
    both = make_recipe("data.mixup={alpha: 0.2, probability: 0.5}", "data.cutmix={probability: 0.5}")
    first, third = (mix_of_round(both, step, np.array([7, 3, 5, 4])) for step in (0, 2))
    assert first is not None
    assert third is not None
    assert first.partners.tolist() == [4, 7, 3, 5]
    assert first.share == pytest.approx(0.7525, abs=1e-5)
    assert first.box == pytest.approx((0.0, 0.61693, 0.0, 0.40117), abs=1e-5)
    assert (third.share, third.box) == (pytest.approx(0.81801, abs=1e-5), None)


def test_a_partner_is_another_sample_and_each_is_one_once(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.mixup={}")
    seen = set()
    for step in range(40):
        mix = mix_of_round(recipe, step, IDS)
        assert mix is not None
        assert sorted(mix.partners) == IDS.tolist()
        assert not (mix.partners == IDS).any()
        seen.add(mix.partners.tobytes())
        order = np.random.default_rng(step).permutation(len(IDS))
        shuffled = mix_of_round(recipe, step, IDS[order])
        assert shuffled is not None
        assert np.array_equal(shuffled.partners, mix.partners[order]), "whatever a student's own order"
    assert len(seen) == 40


def test_all_pairs_are_equally_likely(make_recipe: MakeRecipe) -> None:
    recipe, counts = make_recipe("data.mixup={}"), np.zeros((4, 4))
    for step in range(3000):
        mix = mix_of_round(recipe, step, np.arange(4))
        assert mix is not None
        counts[np.arange(4), mix.partners] += 1
    assert stats.chisquare(counts[~np.eye(4, dtype=bool)]).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 5.0, 1000.0])
def test_the_ratio_has_its_distribution(alpha: float, make_recipe: MakeRecipe) -> None:
    shares = [mix.share for mix in mixes(make_recipe, f"data.mixup={{alpha: {alpha}}}")]
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * stats.beta(alpha, alpha).std() / 4000**0.5)
    if alpha > 0.01:  # else rounding puts most at 0 or 1
        assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_the_box_has_its_distribution(alpha: float, make_recipe: MakeRecipe) -> None:
    """A square of area 1 - lambda around a uniform point, cut off at the edges."""
    found = mixes(make_recipe, f"data.cutmix={{alpha: {alpha}}}")
    rng = np.random.default_rng(0)
    half = np.sqrt(1 - rng.beta(alpha, alpha, 100_000)) / 2
    sides = [np.minimum(1, c + half) - np.maximum(0, c - half) for c in rng.random((2, 100_000))]
    areas = [1 - mix.share for mix in found]
    assert stats.ks_2samp(areas, sides[0] * sides[1]).pvalue > 0.001
    whole = [mix.box for mix in found if mix.box and min(mix.box) > 0 and max(mix.box) < 1]
    assert len(whole) > 100
    for box in whole:
        assert box.bottom - box.top == pytest.approx(box.right - box.left)
    assert np.mean([(mix.box.top + mix.box.bottom) / 2 for mix in found if mix.box]) == pytest.approx(
        0.5, abs=0.02
    )


def test_each_way_has_its_share_of_the_steps(make_recipe: MakeRecipe) -> None:
    fields = "data.mixup={alpha: 0.5, probability: 0.2}", "data.cutmix={alpha: 0.5, probability: 0.5}"
    found = mixes(make_recipe, *fields)
    boxes, ratios = (sum(mix.box is not None for mix in found), sum(mix.share < 1 for mix in found))
    assert boxes / 4000 == pytest.approx(0.5, abs=0.03)
    assert ratios / 4000 == pytest.approx(0.7, abs=0.03)
    for mix in found:
        assert (mix.partners.tolist() == IDS[:2].tolist()) is (mix.share == 1)


def images(seed: int = 0, size: tuple[int, int] = (8, 12)) -> torch.Tensor:
    return torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(seed))


def rolled(share: float, box: Box | None = None) -> Mix:
    """Each sample's partner is the one before it, as torchvision's is."""
    return Mix(np.roll(np.arange(6), 1), share, box)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.987])
def test_mixup_equals_torchvisions(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 1, 1, 3, 2, 0])
    monkeypatch.setattr(v2.MixUp, "make_params", lambda self, inputs: {"lam": share})
    expected, expected_labels = v2.MixUp(num_classes=4)(images(), labels)
    mix = rolled(share)
    assert torch.equal(mix.images(np.arange(6), images()), expected)
    assert torch.equal(mix.labels(labels, labels.roll(1), 4), expected_labels)


@pytest.mark.parametrize("box", [Box(0.25, 0.75, 0.0, 0.5), Box(0.5, 1.0, 0.25, 0.5), Box(0, 1, 0, 1)])
def test_cutmix_equals_torchvisions(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 1, 1, 3, 2, 0])
    pixels = (int(box.left * 12), int(box.top * 8), int(box.right * 12), int(box.bottom * 8))
    given = {"box": pixels, "lam_adjusted": 1 - box.area}
    monkeypatch.setattr(v2.CutMix, "make_params", lambda self, inputs: given)
    expected, expected_labels = v2.CutMix(num_classes=4)(images(), labels)
    mix = rolled(1 - box.area, box)
    assert torch.equal(mix.images(np.arange(6), images()), expected)
    assert torch.equal(mix.labels(labels, labels.roll(1), 4), expected_labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_losses_equal_timms(share: float, smoothing: float) -> None:
    from timm.data.mixup import mixup_target  # not at the top: it takes seconds
    from timm.loss import SoftTargetCrossEntropy

    generator = torch.Generator().manual_seed(1)
    logits, labels = 3 * torch.randn(8, 5, generator=generator), torch.randint(5, (8,), generator=generator)
    expected = SoftTargetCrossEntropy()(logits, mixup_target(labels, 5, share, smoothing))
    found = task_loss(logits, two_hot(labels, labels.flip(0), share, 5), label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_box_is_the_same_part_of_images_of_any_size() -> None:
    box = Box(0.25, 0.5, 0.5, 1.0)
    for size in (8, 32, 224):
        shown = rolled(0.875, box).images(np.arange(6), images(size=(size, size)))
        changed = (shown != images(size=(size, size))).all(dim=1).float().mean(dim=(1, 2))
        assert changed.tolist() == [0.125] * 6


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_student_sees_its_own_views_mixed(kind: str, workers: int, make_recipe: MakeRecipe) -> None:
    """Of the partner too: the very view that it would see of it at that step."""
    recipe = make_recipe(CROP, f"data.{kind}={{}}", f"data.loader_workers={workers}")
    plain = TrainingData.open(make_recipe(CROP)).training_batches(1, 0)
    for step, (mixed, own) in enumerate(
        zip(TrainingData.open(recipe).training_batches(1, 0), plain, strict=True)
    ):
        mix = mix_of_round(recipe, step, own.ids.numpy())
        assert mix is not None
        view = dict(zip(own.ids.tolist(), own.inputs, strict=True))
        label = dict(zip(own.ids.tolist(), own.labels.tolist(), strict=True))
        assert torch.equal(mixed.ids, own.ids)
        assert torch.equal(mixed.labels, own.labels)
        for row, (id, partner) in enumerate(zip(own.ids.tolist(), mix.partners.tolist(), strict=True)):
            if mix.box is None:
                expected = mix.share * view[id] + (1 - mix.share) * view[partner]
            else:
                top, bottom, left, right = (round(8 * edge) for edge in mix.box)
                expected = view[id].clone()
                expected[:, top:bottom, left:right] = view[partner][:, top:bottom, left:right]
            assert torch.equal(mixed.inputs[row], expected)
            shares = [0.0] * 4
            shares[label[id]] += mix.share
            shares[label[partner]] += 1 - mix.share
            assert mixed.loss_labels[row].tolist() == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("replicas", [1, 2, 4, 16])
def test_replicas_see_what_one_worker_sees(
    replicas: int, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = CROP, "data.mixup={probability: 0.5}", "data.cutmix={probability: 0.4}"
    whole = TrainingData.open(make_recipe(*fields))
    shared = TrainingData.open(make_recipe(*fields, f"students.a.replicas={replicas}"))
    streams = [shared.training_batches(0, 1, replica) for replica in range(replicas)]
    expected = list(whole.training_batches(0, 1))
    loaded: list[np.ndarray] = []
    batch = Views.batch
    monkeypatch.setattr(
        Views, "batch", lambda self, epoch, ids: (loaded.append(ids), batch(self, epoch, ids))[1]
    )
    for one, *parts in zip(expected, *streams, strict=True):
        tensors = [batch[:-1] for batch in parts]  # without the seconds that the loading took
        for field, together in zip(one[:-1], map(torch.cat, zip(*tensors, strict=True)), strict=True):
            assert torch.equal(field, together)
    for ids in loaded:
        assert len(ids) == len(set(ids.tolist())) <= 16, "no view is made twice"


def test_a_run_that_does_not_mix_has_classes_as_labels(make_recipe: MakeRecipe) -> None:
    batch = next(TrainingData.open(make_recipe()).training_batches(0, 0))
    assert batch.loss_labels is batch.labels


@pytest.mark.parametrize("field", ["data.mixup", "data.cutmix"])
def test_tests_and_held_out_samples_are_never_mixed(field: str, make_recipe: MakeRecipe) -> None:
    fields = "data.holdout_per_class=3", "distillation.method=general"
    mixing = TrainingData.open(make_recipe(*fields, f"{field}={{}}"))
    plain = TrainingData.open(make_recipe(*fields))
    for found, expected in (
        (mixing.test_batches(), plain.test_batches()),
        (mixing.holdout_batches(), plain.holdout_batches()),
    ):
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["data.mixup={alpha: 0}"], "data.mixup.alpha: .* 0.001 .got 0"),
        (["data.mixup={alpha: .inf}"], "data.mixup.alpha: .*finite"),
        (["data.mixup={alpha: 1e300}"], "data.mixup.alpha: .*1000"),
        (["data.cutmix={probability: 0}"], "data.cutmix.probability: .*greater than 0"),
        (["data.cutmix={probability: 1.1}"], "data.cutmix.probability: .*1 .got 1.1"),
        (["data.cutmix={prob: 0.5}"], "data.cutmix.prob: unknown field"),
        (["data.mixup=0.2"], "data.mixup: .*0.2"),
        (["data.mixup={}", "data.cutmix={}"], r"data: mixup.probability \(1.0\) and cutmix.* sum above 1"),
        (["data.mixup={}", "distillation.method=min_logit"], "data.mixup: method 'min_logit' .*use 'linear'"),
        (["data.mixup={}", "distillation.loss=dkd"], "data.mixup: loss 'dkd' .*true class.*use 'kl'"),
        (["data.cutmix={}", "distillation.window=4"], "data.cutmix: .*distillation.window 1 only .got 4"),
        (["data.mixup={}", "batch_size=1"], r"data.mixup: .*batch_size is 1, accumulate 1"),
        (["data.mixup={}", "accumulate=16"], r"data.mixup: .*batch_size is 16, accumulate 16"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(fields: list[str], words: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        make_recipe(*fields)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_shares_of_the_steps_may_fill_all(make_recipe: MakeRecipe) -> None:
    make_recipe("data.mixup={probability: 0.9}", "data.cutmix={probability: 0.1}")
    make_recipe("data.mixup={probability: 0.3}", "data.cutmix={probability: 0.7}")
