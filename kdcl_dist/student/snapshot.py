"""A copy of all that a training step of a student changes: compared with its state later, or put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist.student.student import Student

__all__ = ["Snapshot", "buffers_of", "gradients_of", "named_state"]


class Snapshot:
    """The state of a student at one moment.

    It has the network's parameters and buffers, the attributes of its modules (objects in them are not
    copied), the weights' average, the optimiser, and the loss scale.

    Attributes:
        tensors: copies of what `named_state` gives.
    """

    def __init__(self, student: Student) -> None:
        self.student = student
        self.modules = [(module, dict(vars(module))) for module in student.model.modules()]
        self.scaler = student.scaler.state_dict()
        self.average = (student.average.updates, student.average.begun) if student.average else None
        self.states, self.groups, self.attributes = {}, list[Any](), dict[str, Any]()
        if not student.frozen:
            self.states = _copied(student.optimizer.state)
            self.groups = [_options(group) for group in student.optimizer.param_groups]
            self.attributes = dict(vars(student.optimizer))
        network = {name: tensor.detach().clone() for name, tensor in _of_network(student)}
        self.tensors = network | _of_optimizer(student, self.states)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the student this state again."""
        student = self.student
        for module, attributes in self.modules:
            _restore_attributes(vars(module), attributes)
        for name, tensor in _of_network(student):
            tensor.copy_(self.tensors[name])
        student.scaler.load_state_dict(self.scaler)
        if student.average is not None and self.average is not None:
            student.average.updates, student.average.begun = self.average
        if not student.frozen:
            _restore_attributes(vars(student.optimizer), self.attributes)
            _restore(student.optimizer.state, self.states)
            for group, options in zip(student.optimizer.param_groups, self.groups, strict=True):
                group.update(_copied(options))


def named_state(student: Student) -> dict[str, Tensor]:
    """The tensors and numbers that a step changes, under the names that an error shows; not copied.

    Tensors that the state of an optimiser of the user's own has in lists are not among them.
    """
    network = {name: tensor.detach() for name, tensor in _of_network(student)}
    return network | _of_optimizer(student, {} if student.frozen else student.optimizer.state)


def buffers_of(model: nn.Module) -> set[str]:
    """The names of a network's buffers, and of their averages."""
    names = {name for name, _ in model.named_buffers()}
    return names | {f"average of {name}" for name in names}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that a network has, by name; not copied."""
    return {
        f"gradient of {name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _of_network(student: Student) -> Iterator[tuple[str, Tensor]]:
    """The network's parameters and buffers, and their averages."""
    yield from student.model.named_parameters()
    yield from student.model.named_buffers()
    if student.average is not None:
        yield from ((f"average of {name}", tensor) for name, tensor in student.average.tensors.items())


def _of_optimizer(student: Student, states: Mapping[Any, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The state of an optimiser, and the loss scale."""
    names = {parameter: name for name, parameter in student.model.named_parameters()}
    found = {
        f"{kind} of {names.get(key, 'the optimiser')}": torch.as_tensor(value).detach()
        for key, state in states.items()
        for kind, value in state.items()
        if isinstance(value, (Tensor, int, float))
    }
    if student.scaler.is_enabled():
        found["the loss scale"] = torch.tensor(student.scaler.get_scale())
    return found


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of the options of a group of parameters."""
    return {name: _copied(value) for name, value in group.items() if name != "params"}


def _copied(value: Any) -> Any:
    """A copy of the tensors in mappings and lists; all else is the same object."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value


def _restore_attributes(live: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Give an object its attributes again; a compiled network notices any that is written, so few are."""
    for name in live.keys() - kept.keys():
        del live[name]
    for name, value in kept.items():
        if live.get(name, live) is not value:
            live[name] = value


def _restore(live: dict[Any, Any], kept: Mapping[Any, Any]) -> None:
    """Give a mapping the entries of a copy, which stays apart from it; tensors keep their place."""
    for key in live.keys() - kept.keys():
        del live[key]
    for key, value in kept.items():
        now = live.get(key)
        if isinstance(value, Tensor) and isinstance(now, Tensor) and now.shape == value.shape:
            now.copy_(value)
        elif isinstance(value, Mapping) and isinstance(now, dict):
            _restore(now, value)
        else:
            live[key] = _copied(value)
