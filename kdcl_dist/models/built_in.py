"""The built-in networks as a table: the usual input of each, and its cost for that input.

`kdcl models` shows the table without importing torch, which takes seconds. A test counts every figure again
on the network itself.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COSTS", "Cost", "Usual"]


class Usual(NamedTuple):
    """The usual input of a network: the shape of its images (C, H, W), and the number of classes."""

    shape_CHW: tuple[int, int, int]
    classes: int


class Cost(NamedTuple):
    """The number of a network's parameters, and that of its multiply-adds on one image in evaluation mode.

    Convolutions and matrix products count; biases, norms, activations and pooling do not. Published figures
    count so too; their "FLOPs" is often this number, sometimes twice it.
    """

    parameters: int
    multiply_adds: int


#: By usual input; each network accepts other sizes and numbers of classes.
COSTS: dict[Usual, dict[str, Cost]] = {
    Usual((1, 8, 8), 10): {
        "mlp": Cost(8_970, 8_832),
        "cnn_small": Cost(5_178, 83_264),
        "cnn_medium": Cost(37_282, 843_744),
        "cnn_large": Cost(251_098, 6_000_576),
    },
    Usual((3, 32, 32), 100): {
        "resnet20": Cost(275_572, 40_556_800),
        "resnet32": Cost(470_004, 68_868_352),
        "resnet44": Cost(664_436, 97_179_904),
        "resnet56": Cost(858_868, 125_491_456),
        "resnet110": Cost(1_733_812, 252_893_440),
        "wrn_16_2": Cost(703_284, 101_118_464),
        "wrn_40_2": Cost(2_255_156, 327_610_880),
        "wrn_20_8": Cost(17_204_276, 2_454_161_408),
        "vgg16": Cost(14_774_436, 313_247_744),
    },
    Usual((3, 224, 224), 1000): {
        "resnet18": Cost(11_689_512, 1_814_073_344),
        "resnet34": Cost(21_797_672, 3_663_761_408),
        "resnet50": Cost(25_557_032, 4_089_184_256),
        "resnet101": Cost(44_549_160, 7_801_405_440),
        "mobilenet_v2": Cost(3_504_872, 300_774_272),
        "mobilenet_v2_x0_5": Cost(1_968_680, 97_131_840),
        "mobilenet_v2_x1_2": Cost(4_725_992, 464_959_968),
        "shufflenet_v2_x0_5": Cost(1_366_792, 40_476_448),
        "shufflenet_v2_x1_0": Cost(2_278_604, 144_907_992),
        "shufflenet_v2_x1_5": Cost(3_503_624, 295_759_392),
        "shufflenet_v2_x2_0": Cost(7_393_996, 583_253_464),
    },
}
