"""16-bit logits in the exchange, on the digits: test accuracy over seeds, with paired intervals.

python -m benchmarks.wire_accuracy --seeds 10 --out docs/results/wire-accuracy
"""

from __future__ import annotations

from benchmarks.accuracy import Study

STUDY = Study(
    title="wire_precision",
    arms={name: [f"distillation.wire_precision={name}"] for name in ("fp32", "fp16", "bf16")},
    base="fp32",
)

if __name__ == "__main__":
    STUDY.main("docs/results/wire-accuracy")
