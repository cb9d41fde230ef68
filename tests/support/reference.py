"""The whole algorithm as one short sequential loop: no process group, no package code but data and models.

Everything that is arithmetic is written anew here, from the paper, in the plainest way. Equality with the
distributed run is bit for bit, so sums are taken in the same order: losses over a student's own order of
the samples, ensembles over students in the order of the cohort.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import ArrowDataset, ArrowSamples
from kdcl_dist.data.views import Transforms
from kdcl_dist.distillation.ensembles import linear
from kdcl_dist.utils.seeding import Purpose, derive, permutation

#: The methods without a common soft target.
NO_TARGET = ("none", "dml", "switokd", "examples.custom.right:loss")


def soft_target(
    method: str, logits: list[Tensor], y: Tensor, T: float, w: Tensor, teachers: dict[int, float]
) -> Tensor:
    """log p at temperature T."""
    z = torch.stack(logits)
    rows = torch.arange(len(y))
    if method == "teacher" and len(teachers) == 1:
        return F.log_softmax(logits[next(iter(teachers))] / T, dim=1)
    if method == "teacher":
        w = torch.tensor(list(teachers.values()), dtype=torch.float64)
        z, w, method = z[list(teachers)], w / w.sum(), "general"
    if method in ("mean", "nets:sharpened"):
        return F.log_softmax(z.mean(dim=0) / T, dim=1)
    if method == "naive":
        ce = torch.stack([F.cross_entropy(each, y, reduction="none") for each in logits])
        return F.log_softmax(z[ce.argmin(dim=0), rows] / T, dim=1)
    if method == "min_logit":
        shifted = torch.stack([each - each[rows, y][:, None] for each in logits])
        return F.log_softmax(shifted.min(dim=0).values / T, dim=1)
    if method == "linear":  # the solver has tests of its own
        return F.log_softmax(linear(z, y).float() / T, dim=1)
    assert method == "general"
    p = (w.float()[:, None, None] * F.softmax(z / T, dim=2)).sum(dim=0)
    return torch.from_numpy(np.log(p.numpy()))


def divergence(recipe: Recipe, q: Tensor, p: Tensor, y: Tensor, T: float) -> Tensor:
    """The loss of log-probabilities q from the target's p, both at T, summed over the samples."""
    loss = recipe.distillation.loss
    if loss.name == "standardised":
        scores = []
        for x in (q, p):
            x = x - x.detach().max(dim=1, keepdim=True).values
            spread = x.std(dim=1, correction=0, keepdim=True)
            scores.append(F.log_softmax((x - x.mean(dim=1, keepdim=True)) / spread / T, dim=1))
        q, p = scores
    if loss.name == "dkd":
        binary, others = [], []
        for x in (q, p):
            rest = [torch.cat([row[:t], row[t + 1 :]]) for row, t in zip(x, y.tolist(), strict=True)]
            total = torch.logsumexp(torch.stack(rest), dim=1)
            binary.append(torch.stack([x[torch.arange(len(y)), y], total], dim=1))
            others.append(torch.stack(rest) - total[:, None])
        parts = [F.kl_div(a, b, reduction="sum", log_target=True) for a, b in (binary, others)]
        return loss.alpha * parts[0] + loss.beta * parts[1]
    if loss.name == "bdkd":
        P, Q = p.exp(), q.exp()
        forward, reverse = (P * (p - q)).sum(dim=1), (Q * (q - p)).sum(dim=1)
        wide = -(Q * q).sum(dim=1) > -(P * p).sum(dim=1)
        favoured, other = torch.where(wide, reverse, forward), torch.where(wide, forward, reverse)
        return (loss.larger * favoured + loss.smaller * other).sum()
    return F.kl_div(q, p, reduction="sum", log_target=True)


def too_far(own: Tensor, peers: list[Tensor], y: Tensor, T: float, fixed: list[bool]) -> list[int]:
    """How far a student is ahead of each peer: 0 not at all, 1 not too far, 2 too far (SwitOKD)."""
    y = y if y.ndim == 2 else torch.eye(own.shape[1])[y]

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().sum(dim=1).mean())

    p, found = F.softmax(own.detach() / T, dim=1), []
    for z, rests in zip(peers, fixed, strict=True):
        other = F.softmax(z / T, dim=1)
        d, e = apart(p, y), apart(other, y)
        if rests or not d < e:
            found.append(0)
        else:
            found.append(2 if apart(p, other) > e - math.exp(-d / (d + e)) * d else 1)
    return found


class Pass(NamedTuple):
    """After an epoch, from 0: each student's top-1 and loss on the validation samples, by its average if it
    has one; its weights, and that average."""

    epoch: int
    top1: list[float]
    loss: list[float]
    weights: list[dict[str, Tensor]]
    averages: list[dict[str, Tensor]]


def best(passes: list[Pass], metric: str, student: int) -> Pass:
    """The pass in which a student is best, the earliest among equals."""
    return max(passes, key=lambda p: (p.top1[student] if metric == "top1" else -p.loss[student], -p.epoch))


def train(
    recipe: Recipe,
    averages: dict[str, dict[str, Tensor]] | None = None,
    passes: list[Pass] | None = None,
    pauses: dict[str, list[int]] | None = None,
    records: dict[str, dict[tuple[int, int], Tensor]] | None = None,
) -> list[dict[str, Tensor]]:
    """Train all students; their final weights. `averages`, `passes` and `pauses`, steps, are filled.

    So are `records`: by student, and for "ensemble", the last logits of each sample and view.
    """
    S, method, T = len(recipe.students), recipe.distillation.method_name, recipe.distillation.temperature
    data = dataset_at(recipe.data.train)
    labels = torch.from_numpy(data.labels)
    held, val, used = [], [], []
    for label in range(len(data.classes)):
        of_class = np.flatnonzero(data.labels == label)
        if recipe.data.train_per_class:
            order = permutation(len(of_class), recipe.seed, Purpose.SUBSET, label)
            of_class = np.sort(of_class[order[: recipe.data.train_per_class]])
        used += of_class.tolist()
        if recipe.data.val_fraction:
            order = permutation(len(of_class), recipe.seed, Purpose.VALIDATION, label)
            val += of_class[order[: int(recipe.data.val_fraction * len(of_class) + 0.5)]].tolist()
            of_class = np.array([i for i in of_class if i not in val])
        order = permutation(len(of_class), recipe.seed, Purpose.HOLDOUT, label)
        held += of_class[order[: recipe.data.holdout_per_class]].tolist()
    train_ids = np.array([i for i in sorted(used) if i not in held + val])
    validation = (dataset_at(recipe.data.val), None) if recipe.data.val else (data, sorted(val))
    passes = [] if passes is None else passes
    seeds, nets, optims = [], [], []
    files = {i: stored_rows(s.logits) for i, s in enumerate(recipe.students) if s.logits}
    for i, s in enumerate(recipe.students):
        own = s.seed is not None
        given = derive(s.seed, Purpose.STUDENT_WITH_OWN_SEED) if own else 0
        seeds.append(given if own else derive(recipe.seed, Purpose.STUDENT, i))
        torch.manual_seed(derive(seeds[i], Purpose.INITIAL_WEIGHTS))
        if i in files:
            nets.append(torch.nn.Identity())
            optims.append(None)
            continue
        nets.append(network_of(s.model, len(data.classes), getattr(data, "channels", None)))
        if s.weights:
            nets[i].load_state_dict(torch.load(s.weights, weights_only=True))
        optims.append(optimizer_of(s.optimizer, nets[i]))
    given = recipe.distillation.teacher or {}
    given = {given: 1.0} if isinstance(given, str) else given
    teachers = {i: given[name] for i, name in enumerate(recipe.names) if name in given}
    w = torch.full((S,), 1 / S, dtype=torch.float64)
    students = enumerate(recipe.students)
    fixed = {*teachers, *files}
    join = [s.from_epoch - 1 for s in recipe.students]
    leave = [s.until_epoch or recipe.epochs for s in recipe.students]
    last = [0 if s.frozen or i in fixed else join[i] + (s.epochs or leave[i] - join[i]) for i, s in students]
    own = [own_ids(recipe, data, train_ids, s.data, seeds[i]) for i, s in enumerate(recipe.students)]
    part_only = [s.data is not None and s.data.sees == "own" for s in recipe.students]
    seen = [ids if part_only[i] else train_ids for i, ids in enumerate(own)]
    most = max(len(ids) for i, ids in enumerate(seen) if i not in files)
    T_epoch, k = most // recipe.batch_size, recipe.accumulate
    B = recipe.batch_size // k
    W = T_epoch if recipe.distillation.window == "epoch" else recipe.distillation.window
    bank: dict[tuple[int, int], tuple[int, Tensor]] = {}
    paused, taken = [False] * S, [0] * S
    before: list[list[Tensor]] = []
    means: list[dict[str, Tensor]] = [net.state_dict() for net in nets]
    for epoch in range(recipe.epochs):
        order = train_ids[permutation(len(train_ids), recipe.seed, Purpose.EPOCH_ORDER, epoch)]
        there = [i for i in range(S) if join[i] <= epoch < leave[i]]
        bank = {key: value for key, value in bank.items() if key[0] in there}
        w_there = w[there]
        if len(there) < S:
            total = w_there.sum()
            w_there = w_there / total if total > 0 else torch.full((len(there),), 1 / len(there)).double()
        for turn in range(T_epoch * k):
            step, part = divmod(turn, k)
            window, first = turn // W, turn // W * W
            ids = order[first * B : min(first + W, T_epoch * k) * B]
            keys = (epoch * T_epoch + step, 0, part) if part else (epoch * T_epoch + step,)
            mine = {}
            for i in there:
                walk = ids[permutation(len(ids), seeds[i], Purpose.WINDOW_ORDER, epoch, window)]
                mine[i] = walk[(turn - first) * B :][:B]
                if part_only[i]:
                    passes_done, at = divmod(turn, len(own[i]) // B)
                    order_i = permutation(len(own[i]), seeds[i], Purpose.WINDOW_ORDER, epoch, passes_done)
                    mine[i] = own[i][order_i][at * B :][:B]
            y = {int(id): labels[id] for id in [*ids, *np.concatenate(list(mine.values()))]}
            lam, box, partner = mixing(recipe, epoch * T_epoch * k + turn, np.sort(ids))
            if recipe.data.mixup or recipe.data.cutmix:
                one_hot = torch.eye(len(data.classes))[labels]
                y = {id: lam * one_hot[id] + (1 - lam) * one_hot[partner[id]] for id in y}
            if part == 0:
                before, paused = [[b.clone() for b in net.buffers()] for net in nets], [False] * S
            logits = {}
            for i in there:
                s = recipe.students[i]
                if i in files:
                    of_view = rows_of_epoch(files[i], epoch)
                    logits[i] = torch.stack([of_view[id] for id in mine[i].tolist()])
                    continue
                view_seed = seeds[i] if recipe.distillation.invariant else recipe.seed
                view = epoch % recipe.data.views if recipe.data.views else epoch
                x = inputs(recipe, data, mine[i], recipe.augment_of(s), view_seed, view)
                if lam < 1:
                    others = np.array([partner[id] for id in mine[i].tolist()])
                    x2 = inputs(recipe, data, others, recipe.augment_of(s), view_seed, view)
                    x = mixed_images(x, x2, lam, box)
                torch.manual_seed(derive(seeds[i], Purpose.STEP, *keys))
                nets[i].train(epoch < last[i])
                logits[i] = answer(nets[i], x)
            all_sent = {}
            for i in there:
                sent = logits[i].detach()
                if recipe.distillation.logit_noise:
                    seed = derive(seeds[i], Purpose.LOGIT_NOISE, *keys)
                    noise = torch.randn(sent.shape, generator=torch.Generator().manual_seed(seed))
                    sent = sent + recipe.distillation.logit_noise * noise
                all_sent[i] = on_the_wire(recipe, sent)
            if records is not None:
                view = epoch % recipe.data.views
                for i in there:
                    last_of = records.setdefault(recipe.names[i], {})
                    last_of.update({(int(id), view): z for id, z in zip(mine[i], all_sent[i], strict=True)})
                if W == 1:
                    aligned = [all_sent[i][np.argsort(mine[i])] for i in there]
                    mean = soft_target("general", aligned, labels[np.sort(ids)], 1.0, w_there, {})
                    last_of = records.setdefault("ensemble", {})
                    last_of.update({(int(id), view): z for id, z in zip(np.sort(ids), mean, strict=True)})
            target: dict[int, Tensor] = {}
            if W > 1 and method != "none":
                always = {i: rows_of_epoch(rows, epoch) for i, rows in files.items()}
                target = windowed_targets(
                    recipe, bank, all_sent, mine, labels, epoch * T_epoch + step, w, teachers, always
                )
            elif method not in NO_TARGET:
                aligned = [all_sent[i][np.argsort(mine[i])] for i in there]
                if method == "nets:sharpened":
                    z = (1 + 2.0 / ((epoch * T_epoch + step) * k + part + 1)) * torch.stack(aligned).mean(
                        dim=0
                    )
                    aligned = [z]
                sorted_y = torch.stack([y[id] for id in np.sort(ids).tolist()])
                places = {there.index(i): share for i, share in teachers.items() if i in there}
                rows = soft_target(method, aligned, sorted_y, T, w_there, places)
                target = dict(zip(np.sort(ids).tolist(), rows, strict=True))
            target = {id: on_the_wire(recipe, row) for id, row in target.items()}
            losses = {}
            for i in there:
                own_z, own_n, factor_i = logits[i], mine[i], 1.0
                if recipe.students[i].data and recipe.students[i].data.sees == "all":
                    rows_i = [row for row, id in enumerate(mine[i].tolist()) if id in own[i].tolist()]
                    own_z, own_n = logits[i][rows_i], mine[i][rows_i]
                    factor_i = len(rows_i) / (len(own[i]) / len(train_ids) * B)
                    if not rows_i:
                        losses[i] = logits[i].sum() * 0
                        continue
                smoothing = recipe.students[i].label_smoothing
                own_y = torch.stack([y[id] for id in own_n.tolist()])
                loss = F.cross_entropy(own_z, own_y, label_smoothing=smoothing)
                if chosen := recipe.students[i].class_weights:
                    factor = torch.tensor([chosen[name] for name in data.classes])
                    loss = F.cross_entropy(own_z, own_y, factor, reduction="sum", label_smoothing=smoothing)
                    loss = loss / len(own_y)
                loss = factor_i * loss
                if method not in NO_TARGET:
                    known = [row for row, sample in enumerate(own_n.tolist()) if sample in target]
                    q = F.log_softmax(own_z / T, dim=1)[known]
                    p = torch.stack([target[int(own_n[row])] for row in known]) if known else q.detach()
                    kl = divergence(recipe, q, p, own_y[known], T) / len(own_n)
                    loss = loss + recipe.distillation.weight * (factor_i * (T**2 * kl))
                if method in ("dml", "switokd", "examples.custom.right:loss"):
                    row = np.searchsorted(np.sort(ids), own_n)
                    sent_j = [all_sent[j][np.argsort(mine[j])][row] for j in there if j != i]
                if method == "examples.custom.right:loss":
                    q = F.log_softmax(own_z / T, dim=1)
                    parts = []
                    largest = own_y if own_y.ndim == 1 else own_y.argmax(dim=1)
                    for z in sent_j:
                        p = F.log_softmax(z / T, dim=1)
                        parts.append((p.exp() * (p - q)).sum(dim=1) * (z.argmax(dim=1) == largest))
                    loss = loss + recipe.distillation.weight * (factor_i * (T**2 * torch.stack(parts).mean()))
                if method == "switokd" and len(there) > 1:
                    rest = [epoch >= last[j] for j in there if j != i]
                    ahead = too_far(own_z, sent_j, own_y, T, rest)
                    if max(ahead) == 2 and 1 not in ahead:
                        paused[i] = True
                    else:
                        q = F.log_softmax(own_z / T, dim=1)
                        kept = [
                            divergence(recipe, q, F.log_softmax(z / T, dim=1), own_y, T)
                            for z, a in zip(sent_j, ahead, strict=True)
                            if a < 2
                        ]
                        kl = torch.stack(kept).sum() / (len(sent_j) * len(q))
                        loss = loss + recipe.distillation.weight * (factor_i * (T**2 * kl))
                if method == "dml" and len(there) > 1:
                    q = F.log_softmax(own_z, dim=1)
                    peers = [F.log_softmax(each, dim=1) for each in sent_j]
                    kls = [divergence(recipe, q, p, own_y, 1.0) / len(q) for p in peers]
                    loss = loss + recipe.distillation.weight * (factor_i * torch.stack(kls).mean())
                losses[i] = loss
            for i in there:
                if epoch >= last[i]:
                    continue
                if part == 0:
                    optims[i].zero_grad()
                if paused[i]:
                    for buffer, value in zip(nets[i].buffers(), before[i], strict=True):
                        buffer.copy_(value)
                    if pauses is not None and part == k - 1:
                        pauses.setdefault(recipe.students[i].name, []).append(epoch * T_epoch + step)
                    continue
                (losses[i] / k).backward()
                if part == k - 1:
                    for group in optims[i].param_groups:
                        done = (epoch - join[i]) * T_epoch + step
                        now = rate(recipe.students[i], done, T_epoch * (last[i] - join[i]), T_epoch)
                        group["lr"] = now * group.get("factor", 1)
                    if limit := recipe.students[i].clip_grad_norm:
                        torch.nn.utils.clip_grad_norm_(nets[i].parameters(), limit)
                    optims[i].step()
                    taken[i] += 1
                    if (ema := recipe.students[i].ema) is not None:
                        means[i] = moved(ema, means[i], nets[i].state_dict(), taken[i])
        if method == "general":
            w = torch.zeros(S, dtype=torch.float64)
            rows_there = {there.index(i): rows for i, rows in files.items() if i in there}
            w[there] = held_out_weights(recipe, data, [nets[i] for i in there], sorted(held), rows_there)
        last_epoch, every = epoch + 1 == recipe.epochs, recipe.evaluate.every_epochs
        if (recipe.data.val or val) and ((epoch + 1) % every == 0 or last_epoch):
            judged = copy.deepcopy(nets)
            for i, s in enumerate(recipe.students):
                judged[i].load_state_dict(means[i] if s.ema else nets[i].state_dict())
            scores = [
                (0.0, 0.0) if i in files else score_of(recipe, net, *validation)
                for i, net in enumerate(judged)
            ]
            states = [copy.deepcopy(net.state_dict()) for net in nets]
            passes.append(Pass(epoch, *map(list, zip(*scores, strict=True)), states, list(means)))
            if recipe.early_stopping and waited(recipe, passes) >= recipe.early_stopping.patience:
                break
    if averages is not None:
        averages.update({s.name: means[i] for i, s in enumerate(recipe.students) if s.ema})
    return [net.state_dict() for net in nets]


def own_ids(recipe: Recipe, data: Any, train_ids: np.ndarray, given: Any, seed: int) -> np.ndarray:
    """The samples of one student: from each of its classes a part of a shuffled list."""
    if given is None:
        return train_ids
    low, high = given.share if isinstance(given.share, list) else (0, given.share or 1)
    found = []
    for label, name in enumerate(data.classes):
        of_class = [i for i in train_ids.tolist() if data.labels[i] == label]
        own = isinstance(given.share, float)
        order = permutation(len(of_class), seed if own else recipe.seed, Purpose.SHARE, label)
        ends = [int(edge * len(of_class) + 0.5) for edge in (low, high)]
        if given.classes is None or name in given.classes:
            found += [of_class[place] for place in order[ends[0] : ends[1]]]
    return np.array(sorted(found))


def moved(ema: Any, mean: dict[str, Tensor], state: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """A moving average of weights after its nth step, from 1."""
    keep = ema.decay if n > 1 else 0.0
    if ema.warmup:
        keep = min(keep, 1 - n ** (-2 / 3))
    return {
        name: mean[name].lerp(value, 1 - keep) if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }


def mixing(recipe: Recipe, step: int, ids: np.ndarray) -> tuple[float, Any, dict[int, int]]:
    """Lambda, the box of cutmix, and each sample's partner: the next in a shuffled circle."""
    key = np.random.SeedSequence((recipe.seed, Purpose.MIXING, step))
    random, lam, box = np.random.RandomState(np.random.Philox(key)), 1.0, None
    mixup, cutmix, which = recipe.data.mixup, recipe.data.cutmix, random.random_sample()
    if mixup and which < mixup.probability:
        lam = random.beta(mixup.alpha, mixup.alpha)
    elif cutmix and which < (mixup.probability if mixup else 0) + cutmix.probability:
        side = math.sqrt(1 - random.beta(cutmix.alpha, cutmix.alpha))
        y, x = random.random_sample(), random.random_sample()
        box = [min(max(edge, 0), 1) for edge in (y - side / 2, y + side / 2, x - side / 2, x + side / 2)]
        lam = 1 - (box[1] - box[0]) * (box[3] - box[2])
    circle = ids[permutation(len(ids), recipe.seed, Purpose.PARTNER, step)].tolist()
    return lam, box, dict(zip(circle, circle[1:] + circle[:1], strict=True))


def mixed_images(x: Tensor, x2: Tensor, lam: float, box: Any) -> Tensor:
    """Blended, or with a box of the others."""
    if box is None:
        return lam * x + (1 - lam) * x2
    top, bottom = (round(edge * x.shape[2]) for edge in box[:2])
    left, right = (round(edge * x.shape[3]) for edge in box[2:])
    x[:, :, top:bottom, left:right] = x2[:, :, top:bottom, left:right]
    return x


def score_of(recipe: Recipe, net: torch.nn.Module, data: Any, ids: Any = None) -> tuple[float, float]:
    """Top-1 and loss of a network on some samples, all if not given."""
    ids = range(len(data)) if ids is None else ids
    right, losses = 0, 0.0
    for start in range(0, len(ids), recipe.batch_size):
        part = np.array(ids[start : start + recipe.batch_size])
        y = torch.from_numpy(np.asarray(data.labels, np.int64)[part])
        net.eval()
        with torch.no_grad():
            z = answer(net, inputs(recipe, data, part, [], 0, 0))
        right += int((z.argmax(dim=1) == y).sum())
        losses += float(F.cross_entropy(z, y, reduction="none").double().sum())
    return right / len(ids), losses / len(ids)


def waited(recipe: Recipe, passes: list[Pass]) -> int:
    """The passes since the last in which some student beat all of its passes before."""
    good = []
    for number in range(len(passes)):
        rows = [p.top1 if recipe.early_stopping.metric == "top1" else [-x for x in p.loss] for p in passes]
        good.append(any(all(rows[number][i] > row[i] for row in rows[:number]) for i in range(len(rows[0]))))
    return good[::-1].index(True)


def network_of(model: Any, classes: int, channels: Any) -> torch.nn.Module:
    """A network, by the call that its library or its module would be given."""
    name, more = (model, {}) if isinstance(model, str) else (model.name, model.model_extra)
    library, _, network = name.partition(":")
    if library == "timm":
        import timm

        made: torch.nn.Module = timm.create_model(network, num_classes=classes, in_chans=channels, **more)
        return made
    if library == "nets" and (more or network == "Entry"):
        import nets

        return getattr(nets, network)(classes, **({"in_channels": channels} if more else {}), **more)
    return models.build(model, classes, channels)


def layer_of(name: str, net: torch.nn.Module) -> int:
    """How far a parameter of `nets.Deep` or a ViT of timm is from the head."""
    blocks = len(net.blocks)  # type: ignore[arg-type]
    if name.startswith("blocks."):
        return blocks - int(name.split(".")[1])
    return {"head": 0, "norm": 1}.get(name.split(".")[0], blocks + 1)


def optimizer_of(o: Any, net: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser, by its class in torch or timm."""
    parameters: Any = list(net.parameters())
    if o.layer_decay < 1:
        parameters = [
            {
                "params": [p],
                "factor": o.layer_decay ** layer_of(name, net),
                "weight_decay": o.weight_decay * (p.ndim > 1 or o.decay_norm_and_bias),
            }
            for name, p in net.named_parameters()
        ]
    elif not o.decay_norm_and_bias:
        plain = [p for p in parameters if p.ndim <= 1]
        parameters = [{"params": [p for p in parameters if p.ndim > 1]}, {"params": plain, "weight_decay": 0}]
    if o.name == "sgd":
        return torch.optim.SGD(parameters, o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
    if o.name == "rmsprop":
        return torch.optim.RMSprop(parameters, o.lr, o.alpha, o.eps, o.weight_decay, o.momentum)
    if ":" in o.name:
        assert o.name == "torch.optim:Adagrad"
        return torch.optim.Adagrad(parameters, o.lr, o.lr_decay)
    betas: Any = {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay}
    if o.name == "nadamw":
        return torch.optim.NAdam(parameters, o.lr, **betas, eps=o.eps, decoupled_weight_decay=True)
    if o.name in ("adam", "adamw"):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.name]
        return kind(parameters, o.lr, **betas, eps=o.eps)
    import timm.optim

    if o.name == "lion":
        return timm.optim.Lion(parameters, o.lr, **betas)
    assert o.name == "lamb"
    return timm.optim.Lamb(parameters, o.lr, **betas, eps=o.eps)


def rate(student: Any, step: int, steps: int, per_epoch: int) -> float:
    """The learning rate; the schedules have tests of their own."""
    schedule, lr = student.schedule, student.optimizer.lr
    if schedule.name == "cosine":
        low, warm = schedule.min_lr, schedule.warmup_epochs * per_epoch
        if step < warm:
            return schedule.warmup_lr + (lr - schedule.warmup_lr) * step / warm
        return low + (lr - low) * 0.5 * (1 + math.cos(math.pi * ((step - warm) / (steps - warm))))
    if schedule.name == "nets:halving":
        return lr * 0.5 ** (step // schedule.every)
    assert schedule.name == "multistep"
    assert not schedule.milestones
    assert not schedule.warmup_epochs
    return lr


def on_the_wire(recipe: Recipe, values: Tensor) -> Tensor:
    """As it arrives."""
    if recipe.distillation.wire_precision == "fp16":
        return values.clamp(min=-65504).half().float()
    return values.bfloat16().float() if recipe.distillation.wire_precision == "bf16" else values


def windowed_targets(
    recipe: Recipe,
    bank: dict[tuple[int, int], tuple[int, Tensor]],
    sent: dict[int, Tensor],
    mine: dict[int, np.ndarray],
    labels: Tensor,
    step: int,
    w: Tensor,
    teachers: dict[int, float],
    always: dict[int, dict[int, Tensor]],
) -> dict[int, Tensor]:
    """log p of the samples of a step that have one: all logits are kept first, then samples taken singly.

    `always`: rows of files, which are there at any time.
    """
    S, oldest = len(recipe.students), recipe.distillation.max_staleness
    senders = [i for i in sent if i not in always]
    fresh = {(i, int(id)): z for i in senders for id, z in zip(mine[i], sent[i], strict=True)}
    for key, z in fresh.items():
        bank[key] = step, (z - z.max()).clamp(min=-65504).half()
    found = {}
    for id in sorted({id for _, id in fresh}):
        there = [
            i
            for i in range(S)
            if i in always or ((i, id) in bank and (oldest is None or step - bank[i, id][0] <= oldest))
        ]
        if not set(teachers) & set(there) if teachers else len(there) < 2:
            continue
        z = [
            (always[i][id] if i in always else fresh.get((i, id), bank[i, id][1].float()))[None]
            for i in there
        ]
        share = w[there]
        if len(there) < S:
            total = share.sum()
            share = share / total if total > 0 else torch.full((len(there),), 1 / len(there)).double()
        places = {there.index(i): share for i, share in teachers.items() if i in there}
        T = recipe.distillation.temperature
        found[id] = soft_target(recipe.distillation.method, z, labels[[id]], T, share, places)[0]
    return found


def held_out_weights(
    recipe: Recipe, data: Any, nets: list, held: list[int], files: dict[int, dict[tuple[int, int], Tensor]]
) -> Tensor:
    """The weights of `general`, by its own function, from residuals taken here."""
    from kdcl_dist.distillation.ensembles import general_weights

    parts = []
    B = recipe.batch_size // recipe.accumulate
    for start in range(0, len(held), B):
        ids = np.array(held[start : start + B])
        x = inputs(recipe, data, ids, [], 0, 0)
        rows = []
        for i, net in enumerate(nets):
            net.eval()
            with torch.no_grad():
                z = torch.stack([files[i][id, -1] for id in ids.tolist()]) if i in files else answer(net, x)
                p = F.softmax(z.double(), dim=1)
            rows.append(p[torch.arange(len(ids)), torch.from_numpy(data.labels[ids])] - 1)
        parts.append(torch.stack(rows))
    return general_weights(torch.cat(parts, dim=1))


def stored_rows(path: str) -> dict[tuple[int, int], Tensor]:
    """The logits in a file, by sample and view."""
    import json

    import pyarrow as pa

    with pa.memory_map(path) as file:
        table = pa.ipc.open_file(file).read_all()
    classes = len(json.loads(table.schema.metadata[b"kdcl"])["classes"])
    found = {}
    for row in table.to_pylist():
        z = torch.tensor([float(each) for each in row["logits"]])
        if "classes" in row:
            largest, z = z, torch.full((classes,), float(row["rest"]))
            for label, value in zip(row["classes"], largest, strict=True):
                z[label] = value
        found[row["id"], row["view"]] = z
    return found


def rows_of_epoch(rows: dict[tuple[int, int], Tensor], epoch: int) -> dict[int, Tensor]:
    """The logits of an epoch's view, the test view where a file has no others, by sample."""
    count = 1 + max(view for _, view in rows)
    return {id: z for (id, view), z in rows.items() if view == (epoch % count if count else -1)}


def images(data: ArrowDataset, ids: np.ndarray, augment: list, seed: int, epoch: int) -> Tensor:
    """A batch as a student sees it."""
    views = []
    transforms = Transforms(augment)
    for i in ids:
        torch.manual_seed(derive(seed, Purpose.VIEW, epoch, int(i)))
        views.append(transforms(data.image(int(i))))
    x = torch.stack(views).float() / 255
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return (x - mean[:, None, None]) / std[:, None, None]


def dataset_at(path: str) -> Any:
    """Images, or other samples, by the one column that only images have; `kdcl:NAME` is of the examples."""
    import pyarrow as pa

    if path.startswith("kdcl:"):
        path = f"examples/data/{path.removeprefix('kdcl:')}.arrow"
    with pa.memory_map(path) as file:
        of_images = "image" in pa.ipc.open_file(file).schema.names
    return ArrowDataset(path) if of_images else ArrowSamples(path)


def answer(net: torch.nn.Module, x: Any) -> Tensor:
    """The logits, by the call that a sample's kind stands for."""
    out: Any = net(**x) if isinstance(x, dict) else net(*x) if isinstance(x, tuple) else net(x)
    return out["logits"] if isinstance(out, dict) else out


def inputs(recipe: Recipe, data: Any, ids: np.ndarray, augment: list, seed: int, epoch: int) -> Any:
    """A batch as a student sees it, of images or of other samples: a dict of sequences, or a tensor each."""
    if isinstance(data, ArrowDataset):
        return images(data, ids, augment, seed, epoch)
    samples = []
    for i in ids:
        torch.manual_seed(derive(seed, Purpose.VIEW, epoch, int(i)))
        samples.append(Transforms(augment)(data.sample(int(i))))
    if isinstance(samples[0], Tensor):
        x = torch.stack(samples)
        if recipe.data.normalise:
            mean, std = (np.array(each["input"]) for each in (data.info.mean, data.info.std))
            x = torch.from_numpy((x.double().numpy() - mean) / std).float()
        return x
    batch = {}
    for name, first in samples[0].items():
        pad = recipe.data.collate.values if recipe.data.collate else {}
        longest = max(len(sample[name]) for sample in samples)
        if name in pad and recipe.data.collate.length:
            longest = recipe.data.collate.length
        batch[name] = torch.full((len(ids), longest), pad.get(name, 0), dtype=first.dtype)
        for row, sample in enumerate(samples):
            for place, value in enumerate(sample[name][:longest]):
                batch[name][row, place] = value
    return batch
