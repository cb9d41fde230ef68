"""The formats of an export: writing a network in each format, and reading it again.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from kdcl_dist.errors import ExportError, ModelError, UserError, one_line
from kdcl_dist.export.example import Example, names_of
from kdcl_dist.export.onnx_check import check_model
from kdcl_dist.export.preprocessing import Kind
from kdcl_dist.export.pt2_check import check_archive
from kdcl_dist.export.source import misfit
from kdcl_dist.utils.devices import needs_memory
from kdcl_dist.utils.files import check_stored, open_regular

__all__ = ["FORMATS", "Format", "Network", "read_network", "require", "write_network"]

#: Where networks are exported.
CPU = torch.device("cpu")
_SILENCE_LOCK = threading.Lock()
#: Inputs of B samples, called as `forward` calls it, to logits (B, C).
Network = Callable[..., Tensor]


class Format(NamedTuple):
    """One format.

    Attributes:
        file: name of the file of weights.
        needs: modules of optional libraries that writing and reading need.
        write: writes a network in evaluation mode, and returns by name the lengths of sequences of which the
            file takes one length only.
        read: reads the file for a device; its second argument builds the plain network, for files with
            weights only.
        program: whether the file also holds the network's computation.
    """

    file: str
    needs: tuple[str, ...]
    write: Callable[[nn.Module, Example, Path], dict[str, int]]
    read: Callable[[Path, Callable[[], nn.Module], torch.device], Network]
    program: bool


def require(kind: Kind) -> None:
    """Check that a format's optional libraries are installed.

    Raises:
        ExportError: a library is missing.
    """
    missing = [name for name in FORMATS[kind].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"format {kind} needs {', '.join(missing)}, not installed here: pip install 'kdcl_dist[export]'"
        )


def _write_state_dict(network: nn.Module, _: Example, path: Path) -> dict[str, int]:
    torch.save(network.state_dict(), path)
    return {}


def _read_state_dict(path: Path, build: Callable[[], nn.Module], device: torch.device) -> Network:
    try:
        with open_regular(path) as file:
            check_stored(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ExportError(f"{path}: holds more than tensors") from None
    return _with_weights(build(), state, device)


def _write_safetensors(network: nn.Module, _: Example, path: Path) -> dict[str, int]:
    from safetensors.torch import save

    # Clones: the format does not allow two names for one tensor.
    tensors = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))
    return {}


def _read_safetensors(path: Path, build: Callable[[], nn.Module], device: torch.device) -> Network:
    from safetensors.torch import load_file

    return _with_weights(build(), load_file(path), device)


def _with_weights(network: nn.Module, state: dict[str, Tensor], device: torch.device) -> Network:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {type(network).__name__}: {misfit(error)}") from error
    return network.to(device).eval()


def _write_torch_export(network: nn.Module, example: Example, path: Path) -> dict[str, int]:
    program = example.program(network)
    program.example_inputs = None  # the file would hold them as a pickle
    program._guards_code = []  # Python that the reader would evaluate
    torch.export.save(program, path)
    return example.lengths(program)


def _read_torch_export(path: Path, _: Callable[[], nn.Module], device: torch.device) -> Network:
    check_archive(path)
    with _silenced():
        program = torch.export.load(path)
        if device.type != "cpu":  # the program names the device of its constants
            program = move_to_device_pass(program, device)
        return program.module()


def _write_onnx(network: nn.Module, example: Example, path: Path) -> dict[str, int]:
    program = example.program(network)
    names: Any = {"input_names": names_of(example.layout), "output_names": ["logits"]}
    torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
    return example.lengths(program)


def _read_onnx(path: Path, _: Callable[[], nn.Module], device: torch.device) -> Network:
    import onnxruntime

    check_model(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised as exceptions
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor, **named: Tensor) -> Tensor:
        """The logits of a batch."""
        by_position = zip((each.name for each in session.get_inputs()), inputs, strict=False)
        fed = {name: tensor.numpy() for name, tensor in (dict(by_position) | named).items()}
        return torch.from_numpy(session.run(["logits"], fed)[0])

    return run


FORMATS: dict[Kind, Format] = {
    "state_dict": Format("model.pt", (), _write_state_dict, _read_state_dict, program=False),
    "safetensors": Format(
        "model.safetensors", ("safetensors",), _write_safetensors, _read_safetensors, program=False
    ),
    "torch_export": Format("model.pt2", (), _write_torch_export, _read_torch_export, program=True),
    "onnx": Format(
        "model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx, program=True
    ),
}


def write_network(kind: Kind, network: nn.Module, example: Example, path: Path) -> dict[str, int]:
    """Write a network.

    Args:
        kind: the format.
        network: in evaluation mode, on the CPU.
        example: of what the network takes.
        path: the file to write.

    Returns:
        Of the sequences of which the file takes one length only, that length by name.

    Raises:
        ModelError: the format cannot express the network's computation.
        ExportError: the file cannot be written.
    """
    try:
        with _silenced():
            return FORMATS[kind].write(network, example, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {one_line(error)}") from error
    except Exception as error:  # exporters and a user's network can raise anything
        raise ModelError(
            f"the network cannot be exported as {kind}: {one_line(_first_cause(error))}; state_dict and "
            "safetensors take any network"
        ) from error


def read_network(
    kind: Kind, path: Path, build: Callable[[], nn.Module], device: torch.device = CPU
) -> Network:
    """Read a network that `write_network` wrote.

    Args:
        kind: the format.
        path: the file.
        build: returns the network with other weights; for formats without a program.
        device: where the network takes its inputs; for onnx the CPU.

    Raises:
        ExportError: the file is damaged, or does not fit the network that `build` returns.
        UserError: the GPU has too little free memory.
    """
    try:
        with needs_memory():
            return FORMATS[kind].read(path, build, device)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ExportError(f"{path}: cannot be read as {kind}: {one_line(error)}; export it again") from error


def _first_cause(error: BaseException) -> BaseException:
    """The first cause, which names the operator; exporters wrap it in advice on how to fix PyTorch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress output, warnings and logs: exporters print graphs, and warn of their own code.

    A lock admits one thread at a time: the streams and filters belong to the whole process.
    """
    with _SILENCE_LOCK, _without_logs():
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
