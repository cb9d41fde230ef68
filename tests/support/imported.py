"""What the processes of a run import, and must not."""

from __future__ import annotations

from pathlib import Path

from cohorts import SUPPORT

#: First on PYTHONPATH, it lets each member note its modules in the folder of KDCL_TEST_IMPORTS.
NOTES = SUPPORT / "imports"
#: Nothing in a run with built-in small networks and no transforms needs these.
NEVER = {
    "torchvision",
    "scipy",
    "sklearn",
    "onnx",
    "onnxruntime",
    "tensorboard",
    "matplotlib",
    "wandb",
    "mlflow",
    "pytest",
    "IPython",
}
#: Only the coordinator compiles; numba looks up SciPy's version if there is one.
COMPILER = {"numba", "llvmlite"}


def never(name: str) -> set[str]:
    """What the process of a member must not import."""
    return NEVER - {"scipy"} if name == "coordinator" else NEVER | COMPILER


def noted(folder: Path) -> dict[str, set[str]]:
    """The modules of each member."""
    return {note.stem: set(note.read_text().split()) for note in folder.iterdir()}
