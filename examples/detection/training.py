"""The work of each worker: its share of every step and of every test.

Gradients are averaged over all workers, and batch norm takes its statistics over all workers, on GPUs and on
CPUs. The random numbers of a step come from (seed, step, worker), so that a run that was stopped and resumed
equals one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist

from examples.detection.coco import annotation_file, read_annotations, read_split
from examples.detection.evaluation import Detection, average_precision, detect, to_coco
from examples.detection.loading import Batch, Images, Sample, epoch_steps, load
from examples.detection.model import build_detector
from examples.detection.picture import draw_predictions
from examples.detection.run import Run
from kdcl_dist.errors import KdclError
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.run.metrics import MetricsTable
from kdcl_dist.run.record import update_record
from kdcl_dist.student.optimizer import build_optimizer, load_optimizer
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["OnProgress", "Worker", "gather"]

#: Seconds for which the metrics are written again while the storage fails.
METRICS_S = 30.0

#: Called with the name of a task, the images done, and all its images.
OnProgress = Callable[[str, int, int], None]


class Worker:
    """One worker's detector, data and part in the run.

    Args:
        run: the run, continued from its latest checkpoint.
        link: to the other workers.
        rank: this worker's number; the first one writes files and reports.
        device: device of the detector.
        on_progress: called with the progress of each task.
        say: called with each line for the user.
        asked: whether a checkpoint and an end are asked for; called in the first worker only.
    """

    def __init__(
        self,
        run: Run,
        link: Replicas,
        rank: int,
        device: torch.device,
        *,
        on_progress: OnProgress,
        say: Callable[[str], None],
        asked: Callable[[], bool],
    ) -> None:
        self.run, self.recipe, self.link, self.rank, self.device = run, run.recipe, link, rank, device
        self.on_progress, self.say, self.asked = on_progress, say, asked
        names = self.recipe.data
        self.train_split = read_split(run.data, names.train, masks=self.recipe.masks)
        self.val_split = read_split(run.data, names.val, masks=self.recipe.masks)
        state = run.load()
        self.step, self.fixed = state.step, {name: state.parts[name] for name in ("mean", "std", "classes")}
        self.model = build_detector(self.recipe, state.parts["classes"], state.normalisation)
        self.model.load_state_dict(state.parts["model"])
        self.model.to(device)
        self.optimizer = build_optimizer(self.recipe.optimizer, self.model)
        self.table = MetricsTable(run.folder)
        if "optimizer" in state.parts:
            load_optimizer(self.optimizer, state.parts["optimizer"])
            self.table.load_state_dict(state.parts["table"])
        link.synchronise_batchnorm(self.model)
        self.training_model = link.wrap(self.model)
        self.steps_per_epoch = len(epoch_steps(self.train_split, self.recipe, 0))

    def train(self) -> bool:
        """Train to the end; False when it was stopped before, after a checkpoint.

        Raises:
            KdclError: the loss is not finite, or an image cannot be read.
        """
        stopped = False
        while self.step < self.recipe.epochs * self.steps_per_epoch and not stopped:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            stopped = self._train_epoch(epoch, first)
            if self.step == (epoch + 1) * self.steps_per_epoch:
                self._end_epoch(epoch)
            if self.rank == 0:
                self._save()
        finished = self.step == self.recipe.epochs * self.steps_per_epoch
        if finished and self.rank == 0:
            self._finish()
        return finished

    def _train_epoch(self, epoch: int, first: int) -> bool:
        """Take the remaining steps of an epoch, from `first` on; returns whether a stop was asked for."""
        share = slice(
            self.rank * self.recipe.images_per_worker, (self.rank + 1) * self.recipe.images_per_worker
        )
        steps = epoch_steps(self.train_split, self.recipe, epoch)
        self.model.train()
        images = Images(self.train_split, self.recipe, epoch)
        for samples in self._load(images, [step[share] for step in steps[first:]]):
            stop = self._train_step(samples)
            self.step += 1
            done = self.step - epoch * self.steps_per_epoch
            self.on_progress(
                f"epoch {epoch + 1} of {self.recipe.epochs}",
                done * self.recipe.images_per_step,
                self.steps_per_epoch * self.recipe.images_per_step,
            )
            if stop:
                return True
        return False

    def _train_step(self, samples: Sequence[Sample]) -> bool:
        """Learn from one step's images; returns whether a stop is asked for."""
        torch.manual_seed(derive(self.recipe.seed, Purpose.STEP, self.step, self.rank))
        lr = self.recipe.lr(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = [sample.image.to(self.device).float() / 255 for sample in samples]
        targets = [
            {name: value.to(self.device) for name, value in sample.target.items()} for sample in samples
        ]
        losses = self.training_model(images, targets)
        stop = self._record(losses, lr)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        return stop

    def _record(self, losses: dict[str, torch.Tensor], lr: float) -> bool:
        """Record the losses' means over all workers, which must be finite; whether a stop is asked for."""
        asked = float(self.rank == 0 and self.asked())
        means = torch.stack(
            [*(loss.detach() for loss in losses.values()), torch.tensor(asked).to(self.device)]
        )
        self.link.average([means])
        *values, stop = means.tolist()
        if not math.isfinite(sum(values)):
            text = ", ".join(f"{name} {value:g}" for name, value in zip(losses, values, strict=True))
            raise KdclError(f"the loss is not finite ({text}); lower optimizer.lr", step=self.step)
        row = {"loss": sum(values)} | dict(zip(losses, values, strict=True)) | {"lr": lr}
        epoch = self.step // self.steps_per_epoch
        self.table.add(self.recipe.detector, epoch, self.step, "train", row)
        return bool(stop > 0)

    def _end_epoch(self, epoch: int) -> None:
        """Test if the epoch has a test; the first worker records the results of the epoch."""
        number, last = epoch + 1, self.recipe.epochs
        results = self._test(epoch) if number % self.recipe.test_every_epochs == 0 or number == last else {}
        if self.rank != 0:
            return
        loss = self.table.mean("train")[self.recipe.detector]["loss"]
        figures = [f"{kind} AP {values['AP']:.2f}" for kind, values in results.items()]
        self.say(", ".join([f"epoch {number} of {last}: loss {loss:.4f}", *figures]))
        self.table.end_epoch(epoch)
        self.table.flush(METRICS_S)
        update_record(self.run.folder, state="running", epoch=number)

    def _test(self, epoch: int) -> dict[str, dict[str, float]]:
        """AP of all test images; each worker detects in a share, and the first computes the figures."""
        parts = gather(json.dumps(self.detect()).encode(), self.link, self.device)
        if self.rank != 0:
            return {}
        detections = [item for part in parts for item in json.loads(part)]
        truth = read_annotations(annotation_file(self.run.data, self.recipe.data.val))
        results = average_precision(truth, detections, masks=self.recipe.masks)
        for kind, values in results.items():
            row = {f"{kind}_{name}": value for name, value in values.items()}
            self.table.add(self.recipe.detector, epoch, self.step, "test", row)
        self.run.folder.write("detections.json", json.dumps(detections).encode())
        update_record(self.run.folder, results=results)
        return results

    def detect(self) -> list[Detection]:
        """The detections in this worker's share of the test images."""
        self.model.eval()
        own = range(len(self.val_split))[self.rank :: self.recipe.workers]
        size, categories = self.recipe.images_per_worker, list(self.val_split.categories)
        found: list[Detection] = []
        batches: list[Batch] = [own[start : start + size] for start in range(0, len(own), size)]
        images = Images(self.val_split, self.recipe, targets=False)
        for number, samples in enumerate(self._load(images, batches)):
            for sample, output in zip(samples, detect(self.model, samples, self.device), strict=True):
                found += to_coco(output, int(self.val_split.ids[sample.number]), categories)
            done = (number + 1) * size * self.recipe.workers  # all workers are about as fast
            self.on_progress("testing", min(done, len(self.val_split)), len(self.val_split))
        return found

    def _load(self, images: Images, batches: Sequence[Batch]) -> Iterable[list[Sample]]:
        return load(images, batches, workers=self.recipe.loader_workers, timeout_s=self.recipe.wait_s)

    def _save(self) -> None:
        self.run.save(
            self.step,
            self.fixed
            | {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "table": self.table.state_dict(),
            },
        )

    def _finish(self) -> None:
        picture = draw_predictions(self.model, self.val_split, self.recipe, self.device)
        self.run.folder.write("predictions.png", picture)
        update_record(self.run.folder, state="finished")


def gather(own: bytes, link: Replicas, device: torch.device) -> list[bytes]:
    """The bytes of every worker, on every worker; they are sent padded to the longest."""
    bytes_N = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(link.count)]
    dist.all_gather(sizes, torch.tensor([len(bytes_N)], device=device), group=link.group)
    padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8, device=device)
    padded[: len(bytes_N)] = bytes_N
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=link.group)
    return [part[: int(size)].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
