"""Windows on the digits: test accuracy over seeds, with paired intervals.

python -m benchmarks.window_accuracy --seeds 10 --out docs/results/window-accuracy
"""

from __future__ import annotations

from benchmarks.accuracy import Study

#: An epoch of the digits has 22 steps of 64 samples.
STUDY = Study(
    title="window",
    arms={
        "labels only": ["distillation.method=none"],
        "1": [],
        "8": ["distillation.window=8"],
        "epoch": ["distillation.window=epoch"],
        "8, max_staleness 7": ["distillation.window=8", "distillation.max_staleness=7"],
        "epoch, max_staleness 21": ["distillation.window=epoch", "distillation.max_staleness=21"],
    },
    base="1",
)

if __name__ == "__main__":
    STUDY.main("docs/results/window-accuracy")
