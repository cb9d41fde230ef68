"""The page of `gpu`: its parts as tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["page"]

#: What the reader of a part's table must know.
NOTES: Mapping[str, str] = {
    "equality": "Final weights of a deterministic fp32 run on the GPU (`torch.use_deterministic_algorithms`) "
    "against a second run, against the same code in one process, and against a plain loop.",
    "own device": "A network that has the GPU to itself; its peer is on the CPU, computes next to nothing, "
    "and stands for a peer on a GPU of its own. Alone: a plain loop on a batch that lies ready in pinned "
    "memory, the faster of one before and one after the run. Times are medians of a step; `forward` "
    "contains the work that the backward pass before has queued. `exchange hidden`: the share of the "
    "exchange that the difference of the step (`added`) does not show.",
    "shared device": "Two students on one GPU with half a GPU each. `added` is relative to both plain loops "
    "at once. The parts are those of the slower student. Peaks are of each student's tensors; the GPU's "
    "memory contains CUDA's contexts.",
    "shared device, MPS": "The same under NVIDIA's MPS, in the same run of the benchmark.",
    "copies": "Between host and device, with the host's wait for the end.",
    "settings": "A student's step by its settings, without exchange; all alternate with fp32.",
    "compile": "The same with `compile: true`.",
    "collectives": "all_gather and broadcast of 128 x 100 logits; needs two GPUs.",
}


def page(found: Mapping[str, Any]) -> str:
    """All parts that were measured so far.

    Args:
        found: `conditions`, and by the name of a part its `rows`, its `seconds`, and why it `failed`.
    """
    conditions = found["conditions"]
    facts = ", ".join(f"{name} {value}" for name, value in conditions.items() if name != "quick")
    lines = ["# On a GPU", "", f"Made by `python -m benchmarks.gpu`: {facts}.", ""]
    if conditions["quick"]:
        lines += ["**A test of the lines with `--quick`: the figures mean nothing.**", ""]
    for name, part in found["parts"].items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", NOTES[name], "", *_table(part["rows"])]
        if part["failed"]:
            lines += ["", f"Broke off after {part['seconds']:.0f} s:", "", "```", part["failed"], "```"]
        lines.append("")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["No figures."]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    texts = [[_cell(row.get(head, "")) for head in heads] for row in rows]
    aligns = ["---" if isinstance(rows[0].get(head), str) else "---:" for head in heads]
    return [f"| {' | '.join(cells)} |" for cells in (heads, aligns, *texts)]


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
