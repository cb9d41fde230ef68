"""Networks that recipes of the tests name by import string."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.distillation.methods import Context


class Dropout(nn.Module):
    """A small network with dropout, so that the step's random numbers matter."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * in_channels, 32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.layers(x)


class Tiny(nn.Module):
    """One convolution and batch norm: little to compile."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 36, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.linear(torch.relu(self.norm(self.conv(x))).flatten(1))


class Views(Tiny):
    """Takes for granted that an image's rows lie side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.linear(torch.relu(self.norm(self.conv(x))).view(len(x), -1))


class Plain(nn.Module):
    """One linear layer; `trouble` is called with the number of the training step, also of a resumed run."""

    steps: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits = self.linear(x.flatten(1))
        if self.training:
            logits = self.trouble(int(self.steps), logits)
            self.steps += 1
        return logits

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        """What goes wrong."""
        return logits


class Raises(Plain):
    """Raises at step 3."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        if step == 3:
            raise ArithmeticError("a user's mistake")
        return logits


class Killed(Plain):
    """Dies without a word at step 3."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return logits


class LastWords(Plain):
    """Prints its steps, and dies at step 3 as by a C library that writes why."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        print(f"step {step}")
        if step == 3:
            os.write(2, b"terminate called after throwing an instance\n")
            os.abort()
        return logits


class KilledInOne(Plain):
    """Dies without a word at step 3, where it is the second replica of student "a"."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        if step == 3 and multiprocessing.current_process().name == "kdcl-a/1":
            os.kill(os.getpid(), signal.SIGKILL)
        return logits


class Flips(Plain):
    """The lowest bit of one logit flips at step 4, in the first process that can make the file `once`.

    With `where` only in the process of that name.
    """

    def __init__(self, num_classes: int, once: str, where: str = "") -> None:
        super().__init__(num_classes)
        self.once, self.where = Path(once), where

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        here = multiprocessing.current_process().name
        if step == 4 and self.where in ("", here) and not self.once.exists():
            self.once.touch()
            logits.data.view(torch.int32)[0, 0] ^= 1
        return logits


class Hangs(Plain):
    """Does not come back at step 3."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        if step == 3:
            time.sleep(60)
        return logits


class NotFinite(Plain):
    """NaN at step 3, and for ever after: a step that is skipped does not count."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        return logits * torch.nan if step == 3 else logits


class NotFiniteOnce(Plain):
    """NaN in one step, the fourth of the process."""

    steps_here = 0

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        self.steps_here += 1
        return logits * torch.nan if self.steps_here == 4 else logits


class NotFiniteInOneRow(Plain):
    """NaN of one sample in one step, the fourth of the process."""

    steps_here = 0

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        self.steps_here += 1
        if self.steps_here != 4:
            return logits
        return torch.cat([logits[:1] * torch.nan, logits[1:]])


class _Poison(torch.autograd.Function):
    """Nothing on the way forth, NaN on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """NaN."""
        return gradient * torch.nan


class BadGradient(Plain):
    """The gradient of step 3 is NaN, and those of all later ones."""

    first, last = 3, 10**9

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        bad = self.first <= step <= self.last
        poisoned: Tensor = _Poison.apply(logits) if bad else logits
        return poisoned


class BadGradientOnce(BadGradient):
    """The gradient of step 3 is NaN."""

    last = 3


class BadGradientInOne(BadGradient):
    """The gradient of step 3 is NaN in the second replica only."""

    last = 3

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        second = multiprocessing.current_process().name.endswith("/1")
        return super().trouble(step, logits) if second else logits


class Explodes(Plain):
    """Sure of the wrong class at step 24."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        return logits * -1000 if step == 24 else logits


class Paced(Plain):
    """Takes a twentieth of a second a step, so that a run of many steps lasts until it is stopped."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        time.sleep(0.05)
        return logits


class TooFewRows(Plain):
    """Loses a sample at step 3."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        return logits[1:] if step == 3 else logits


class WrongClasses(nn.Module):
    """One class too many."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, num_classes + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.linear(x.flatten(1))


def number(num_classes: int) -> int:
    """Not a network."""
    return num_classes


def waits(num_classes: int) -> nn.Module:
    """A factory that does not come back."""
    time.sleep(1000)
    return Plain(num_classes)


def killed(num_classes: int) -> nn.Module:
    """A factory that takes all memory, as far as its launcher can see."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Plain(num_classes)


def killed_on_two(num_classes: int) -> nn.Module:
    """A factory that dies on the host whose data set has the number 2."""
    return killed(num_classes) if os.environ["KDCL_TEST_DATA"].endswith("2.arrow") else Plain(num_classes)


def broken(num_classes: int) -> nn.Module:
    """A factory that fails."""
    raise RuntimeError("no such weights")


class Deep(nn.Module):
    """As many blocks as its arguments say."""

    def __init__(self, num_classes: int, in_channels: int, depth: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        blocks = [
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(depth)
        ]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Entry(Plain):
    """Gives a dictionary, with logits and more."""

    def forward(self, x: Tensor) -> Any:
        """Logits and something else."""
        return {"features": x, "logits": super().forward(x)}


class Output(NamedTuple):
    """An output with logits."""

    logits: Tensor
    features: Tensor


class Attribute(Plain):
    """Gives an object, with logits and more."""

    def forward(self, x: Tensor) -> Any:
        """Logits and something else."""
        return Output(super().forward(x), x)


class Tuples(Plain):
    """Gives more than logits."""

    def forward(self, x: Tensor) -> Any:
        """Logits and something else."""
        return super().forward(x), None


class RaisesInTraining(Plain):
    """Raises at every step."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        raise ArithmeticError("not in training")


class Detached(Plain):
    """Cuts its own gradient."""

    def trouble(self, step: int, logits: Tensor) -> Tensor:
        return logits.detach()


def not_a_number() -> Callable[[Tensor], Tensor]:
    """A transform that gives NaN."""
    return lambda image: image.float() * torch.nan


class FailingImages:
    """A data set whose files are gone."""

    classes = tuple(f"class {c}" for c in range(4))
    channels, mean, std = 1, (0.5,), (0.25,)
    labels = np.arange(60) % 4

    def __len__(self) -> int:
        return 60

    def image(self, index: int) -> Tensor:
        """No image."""
        raise OSError("disk gone")


def data_of_host() -> ArrowDataset:
    """The data set that a host's own environment names."""
    return ArrowDataset(os.environ["KDCL_TEST_DATA"])


def dies() -> ArrowDataset:
    """Ends its process."""
    os._exit(5)


def exits() -> ArrowDataset:
    """Ends the process of the host whose data set has the number 2."""
    if os.environ["KDCL_TEST_DATA"].endswith("2.arrow"):
        os._exit(1)
    return data_of_host()


class Bessel(Plain):
    """Has an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return torch.special.bessel_j0(super().forward(x))


class Branches(Plain):
    """What it computes depends on what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits = super().forward(x)
        return logits if logits.sum() > 0 else logits * 2


class EightOnly(Plain):
    """Takes eight images at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x.reshape(8, 1, 8, 8))


class Restless(Plain):
    """Draws random numbers in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x) + torch.rand(())


def halving(lr: float, step: int, steps_per_epoch: int, epochs: int, every: int) -> float:
    """A schedule: half the learning rate after every so many steps."""
    return lr * 0.5 ** (step // every)


def negative(**position: float) -> float:
    """A schedule that gives no learning rate."""
    return -1.0


def sharpened(
    logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context, power: float = 2.0
) -> Tensor:
    """A method: the mean of the logits, sharper in its first steps, which it counts itself."""
    context.state["seen"] = context.state.get("seen", 0) + 1
    scale = 1 + power / context.state["seen"]
    return F.log_softmax(scale * logits_SBC.mean(dim=0) / temperature, dim=1)


def probabilities(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    """A method that forgets the logarithm."""
    return F.softmax(logits_SBC.mean(dim=0), dim=1)


def per_student(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    """A method of the wrong shape."""
    return F.log_softmax(logits_SBC, dim=2)


def names_only(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> str:
    """A method that gives no tensor."""
    return ", ".join(context.students)


def nan_later(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    """A method that is sound at first."""
    return F.log_softmax(logits_SBC.mean(dim=0) * (torch.nan if context.step >= 3 else 1), dim=1)


def sure(logits_BC: Tensor, peers_PBC: Tensor, *others: Any, power: float = 1.0) -> Tensor:
    """A method with peers: the smallest difference to one of them."""
    return power * (logits_BC - peers_PBC).square().mean(dim=(1, 2)).min()


def per_sample(logits_BC: Tensor, peers_PBC: Tensor, *others: Any) -> Tensor:
    """A method with peers that forgets the mean."""
    return (logits_BC - peers_PBC).square().mean(dim=(0, 2))


def plain_number(logits_BC: Tensor, peers_PBC: Tensor, *others: Any) -> float:
    """A method with peers that gives no tensor."""
    return float((logits_BC - peers_PBC).detach().square().mean())


def cut_off(logits_BC: Tensor, peers_PBC: Tensor, *others: Any) -> Tensor:
    """A method with peers whose loss has no gradient."""
    return (logits_BC.detach() - peers_PBC).square().mean()


def remembers(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, context: Context
) -> Tensor:
    """A method with peers that wants to keep something."""
    context.state["seen"] = True
    return logits_BC.mean()


def hard(
    log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor, temperature: float, power: float = 1.0
) -> Tensor:
    """A loss: more weight for samples that the target finds hard; at T = 1 NaN."""
    hardness_B = (1 - log_p_BC.exp().amax(dim=1)) ** power
    loss = (hardness_B * (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)).sum()
    return loss * torch.nan if temperature == 1 else loss


def loss_rows(log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """A loss of each sample."""
    return -log_q_BC[:, 0]


def loss_without_gradient(log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """A loss of the target alone."""
    return log_p_BC.sum()


def nan_loss_later(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, context: Context
) -> Tensor:
    """A method with peers that is sound at first, and knows its cohort of two."""
    if context.students != (("b",) if context.student == "a" else ("a",)):
        raise ValueError(f"{context.student} learns from {context.students}")
    return logits_BC.mean() * (torch.nan if context.step >= 3 else 1)


def no_optimizer(parameters: list, lr: float) -> str:
    """An optimiser that is none."""
    return "none"


class Lazy(nn.Module):
    """Layers that have no sizes before their first input, one of them in training only; a lock as well."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.lock, self.norm = threading.Lock(), nn.LazyBatchNorm1d(affine=False)
        self.hidden, self.linear, self.extra = nn.LazyLinear(8), nn.LazyLinear(num_classes), nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.hidden(self.norm(x.flatten(1))))
        logits: Tensor = self.linear(hidden)
        return logits * torch.tanh(self.extra(hidden)).exp() if self.training else logits


def compiled(num_classes: int, in_channels: int) -> nn.Module:
    """A network that compiles itself, and a part of it once more."""
    network = Tiny(num_classes, in_channels)
    network.norm = torch.compile(network.norm)  # type: ignore[assignment]
    return torch.compile(network)  # type: ignore[return-value]


class Alternating(nn.Module):
    """Uses one of its two layers at a step: which, the sum of the images' last pixels says."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, num_classes), nn.Linear(64, num_classes)])
        self.old = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layers[int(x[:, :, -1, -1].sum() > 0)](x.flatten(1))
        return logits


class Noisy(torch.utils.data.Dataset[Any]):
    """A torch data set of small images with random transforms of its own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image_CHW = (torch.rand(1, 8, 8) + np.random.random() + random.random()) / 6
        image_CHW[:, index % 4] += 0.5
        return image_CHW, index % 4


def noisy_train() -> Noisy:
    """A training set with random transforms."""
    return Noisy(48)


noisy_test = Noisy(16)


class Vector(nn.Module):
    """One layer for samples of any shape."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.layers(x)
