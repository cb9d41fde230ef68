"""The ensembles on one sample, as an SVG: `python docs/images/ensembles.py > docs/images/ensembles.svg`.

The logits of three students are given; all else comes from the functions that the coordinator calls.
Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcl_dist.ensembles import linear_weights, log_soft_target, naive_choice

CLASSES, TRUE, TEMPERATURE = ("3", "5", "8", "9"), 0, 2.0
#: Logits of an image of a 3, which two of the students take for another digit.
STUDENTS = {
    "large": (3.0, 0.2, 2.8, -1.5),
    "small": (1.6, 2.8, 0.2, 0.6),
    "mlp": (2.4, -1.0, 2.5, 1.9),
}
#: Weights of `general`, as errors on held-out samples may give them.
WEIGHTS = (0.6, 0.15, 0.25)

WIDTH, HEIGHT, BOX, TALL, GAP = 880, 470, 164, 196, 8
STYLE = """
text { fill: #1e293b; font-size: 15px; text-anchor: middle }
.name { font-weight: bold; font-size: 17px }
.small { font-size: 12.5px; fill: #475569 }
.legend { text-anchor: start }
.box { fill: #ffffff; stroke: #334155; stroke-width: 2 }
.true { fill: #1d4ed8 } .other { fill: #94a3b8 } .line { stroke: #475569; stroke-width: 1.5 }
"""
LEGEND = (
    ("name", "One sample: an image of a 3"),
    ("", "Bars: probabilities in % at T = 2"),
    ("", "Blue: the true class"),
    ("", "Cross-entropy: in nats, at T = 1"),
    ("", "Above: what the students say"),
    ("", "Below: the soft target of each method"),
)


def figure() -> str:
    """The SVG: students above, soft targets below."""
    logits_SBC = torch.tensor(list(STUDENTS.values()))[:, None]
    label_B, weights_S = torch.tensor([TRUE]), torch.tensor(WEIGHTS)

    def of(method: str, logits_SBC: Tensor, weights_S: Tensor | None) -> list[Tensor]:
        return [
            log_soft_target(method, logits_SBC, label_B, temperature, weights_S)[0]
            for temperature in (TEMPERATURE, 1.0)
        ]

    panels = [
        # The mean of one student is that student.
        panel(0, column, name, "a student", *of("mean", logits_SBC[column : column + 1], None))
        for column, name in enumerate(STUDENTS)
    ]
    panels += [
        panel(1, column, method, note, *of(method, logits_SBC, weights_S))
        for column, (method, note) in enumerate(notes(logits_SBC, label_B).items())
    ]
    legend = [
        f'<text class="legend {kind}" x="{3 * (BOX + GAP) + 32}" y="{56 + 28 * number}">{text}</text>'
        for number, (kind, text) in enumerate(LEGEND)
    ]
    return "\n".join([*HEAD, *legend, *panels, "</svg>"])


HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
    f'height="{HEIGHT}" role="img" font-family="Helvetica, Arial, sans-serif" aria-labelledby="title desc">',
    '<title id="title">The ensembles on one sample</title>',
    '<desc id="desc">Probabilities of four classes by three students and by the five ensembles.</desc>',
    f"<style>{STYLE}</style>",
    f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="#f8fafc" stroke="#cbd5e1" '
    'stroke-width="2"/>',
)


def notes(logits_SBC: Tensor, label_B: Tensor) -> dict[str, str]:
    """What each method makes of the students on this sample."""
    names, shares = list(STUDENTS), linear_weights(logits_SBC, label_B)[:, 0].tolist()
    return {
        "naive": f"all from {names[int(naive_choice(logits_SBC, label_B))]}",
        "linear": " + ".join(f"{a:.2f} {name}" for name, a in zip(names, shares, strict=True) if a > 5e-3),
        "min_logit": "smallest logits, shifted",
        "general": "weights " + ", ".join(f"{weight:g}" for weight in WEIGHTS),
        "mean": "mean of the logits",
    }


def panel(row: int, column: int, name: str, note: str, soft_C: Tensor, sharp_C: Tensor) -> str:
    """A box with a bar for each class, of log-probabilities at the temperature and at T = 1."""
    x, y = 16 + column * (BOX + GAP), 24 + row * (TALL + 32)
    middle, floor = x + BOX // 2, y + 152
    parts = [
        f'<rect class="box" x="{x}" y="{y}" width="{BOX}" height="{TALL}" rx="10"/>',
        f'<text class="name" x="{middle}" y="{y + 25}">{name}</text>',
        f'<text class="small" x="{middle}" y="{y + 44}">{note}</text>',
        f'<path class="line" d="M{x + 12} {floor} h{BOX - 24}"/>',
        f'<text class="small" x="{middle}" y="{y + 187}">cross-entropy {-sharp_C[TRUE]:.2f}</text>',
    ]
    for number, p in enumerate(soft_C.exp().tolist()):
        left, tall, kind = x + 14 + 35 * number, round(130 * p), "true" if number == TRUE else "other"
        parts += [
            f'<rect class="{kind}" x="{left}" y="{floor - tall}" width="31" height="{tall}"/>',
            f'<text class="small" x="{left + 15}" y="{floor - tall - 4}">{100 * p:.0f}</text>',
            f'<text x="{left + 15}" y="{floor + 17}">{CLASSES[number]}</text>',
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(figure())
