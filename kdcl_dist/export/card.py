"""The model card of an export: the network, its test results, its use, and its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcl_dist.config.model import Model
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.data.dataset import ArrowDataset, ArrowSamples, Dataset
from kdcl_dist.data.layout import Layout
from kdcl_dist.data.subset import Subset
from kdcl_dist.export.example import names_of
from kdcl_dist.export.preprocessing import Description
from kdcl_dist.export.source import Source
from kdcl_dist.export.standalone import call_of_own, call_without_package, module_without_package
from kdcl_dist.models.ensemble import Ensemble
from kdcl_dist.models.outputs import accessor
from kdcl_dist.run.metrics import EMA, ENSEMBLE
from kdcl_dist.utils.intervals import mean_interval, share_interval
from kdcl_dist.utils.text import NAME, shown

__all__ = ["CARD", "card"]

CARD = "README.md"

PAPER = """Guo, Wang, Wu, Yu, Liang, Hu, Luo: *Online Knowledge Distillation via Collaborative Learning*,
CVPR 2020, pp. 11020-11029."""

READ = {
    "state_dict": 'network.load_state_dict(torch.load("{file}", weights_only=True))',
    "safetensors": 'network.load_state_dict(safetensors.torch.load_file("{file}"))',
    "torch_export": 'network = torch.export.load("{file}").module()',
    "onnx": 'session = onnxruntime.InferenceSession("{file}")',
}


def card(source: Source, description: Description, difference: float) -> str:
    """The card, in Markdown.

    Args:
        source: the exported student.
        description: the description of the export.
        difference: the largest difference between the exported network's logits and the student's.
    """
    sections = [
        _head(source, description),
        _figures(source),
        _use(source, description, difference),
        _data(source),
        f"## Training\n\n{_training(source)}",
        f"## Paper\n\n{PAPER}",
    ]
    return "\n\n".join(sections) + "\n"


def _head(source: Source, description: Description) -> str:
    method = source.recipe.distillation.method_name
    others = [name for name in source.recipe.names if name != source.student.name]
    partners = "" if source.members else f" with {', '.join(others)}"
    training = f"trained together{partners} (method `{method}`)" if others else "trained alone"
    parameters = sum(parameter.numel() for parameter in source.network.parameters())
    averaged = " The weights are the exponential moving average over the steps." if source.ema else ""
    return (
        f"# {source.title}\n\n"
        f"{_what(source, description)}, {parameters:,} parameters, a classifier of "
        f"{len(description.classes)} classes, {training}.{averaged} From the run `{description.run}`, "
        f"{source.when}; exported as {description.kind} by kdcl_dist {description.kdcl_dist}."
    )


def _what(source: Source, description: Description) -> str:
    """The network in words."""
    if not isinstance(source.network, Ensemble):
        return f"`{description.model}`"
    weights = source.network.weights.tolist()
    members = [
        f"{each.name} (`{each.model}`, weight {weight:.4g})"
        for each, weight in zip(source.members, weights, strict=True)
    ]
    return (
        "The weighted mean of the probabilities of the students, whose logarithms are the logits: "
        f"{', '.join(members)}"
    )


def _figures(source: Source) -> str:
    samples, what = len(source.training_data.test), _nouns(source.training_data.channels)
    if not source.results:
        return (
            "## Figures\n\nThe run recorded no test results for this checkpoint. "
            f"`kdcl evaluate {source.folder}` tests its latest one."
        )
    lines = [
        "## Figures",
        "",
        f"On the {samples:,} test {what}; in brackets Wilson's 95% score interval for this number of {what}.",
        f"The interval covers the choice of the {what}, not of the seed.",
        "",
        "| network | model | top-1 % | top-5 % | loss, nats |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    models = {student.name: student.model for student in source.recipe.students}
    for name, values in source.results.items():
        title = f"**{name}**" if name == source.title else name
        cells = [_share(values["top1"], samples), _share(values["top5"], samples), f"{values['loss']:.4f}"]
        lines.append(f"| {title} | {models.get(name.removesuffix(EMA), '')} | {' | '.join(cells)} |")
    lines += ["", f"`{ENSEMBLE}`: the mean of the students' probabilities (weighted, for `general`)."]
    if source.recipe.averaged:
        lines += [f"`{EMA}`: with the moving averages of the weights; other students with their own weights."]
    if source.student.precision != "fp32":
        lines += [
            f"The run tests this network in {source.student.precision}; the export computes in float32."
        ]
    return "\n".join([*lines, *_over_seeds(source.seeds(), source.title)])


def _share(share: float, samples: int) -> str:
    value, low, high, _ = share_interval(share, samples)
    return f"{100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _over_seeds(seeds: Mapping[int, Mapping[str, Mapping[str, float]]], student: str) -> list[str]:
    """The student's top-1 over the seeds of the same arm at whose end it took part."""
    found = [100 * results[student]["top1"] for results in seeds.values() if student in results]
    if len(found) < 2:
        return []
    top1 = mean_interval(found)
    return [
        "",
        f"Over the {len(found)} seeds of this arm that `kdcl compare` trained to their end, top-1 of "
        f"{student} is {top1.value:.2f} ± {top1.half_width:.2f} % (mean with the 95% interval, Student's t).",
    ]


def _use(source: Source, description: Description, difference: float) -> str:
    lines = [
        "## Use",
        "",
        "```python",
        *_code(source, description),
        "```",
        "",
        _of_images(description)
        if description.inputs is None
        else _of_samples(description, description.inputs),
        "",
        f"At the time of the export, the logits on test {_nouns(description.channels)} differed from the "
        f"trained network's by at most {difference:.1g}.",
    ]
    return "\n".join(lines)


def _nouns(channels: int | None) -> str:
    return "samples" if channels is None else "images"


def _of_images(description: Description) -> str:
    """How image files become the network's input."""
    colours = "with channels of its own" if description.colours == "own" else description.colours
    shape = "x".join(map(str, description.input_shape or ()))
    return (
        "`preprocessing.json` describes how an image becomes `images`: decode it to 8 bits, "
        f"{colours}, channels first; {_view(description.test_view)}the shape is now {shape}; divide by 255, "
        "subtract `mean`, divide by `std`. `kdcl predict FOLDER IMAGE...` of kdcl_dist does all of this."
    )


def _of_samples(description: Description, layout: Layout) -> str:
    """How samples become the network's inputs."""
    scaled = "subtract `mean`, divide by `std`, feature by feature; " if description.mean else ""
    return (
        f"A sample is a {layout}. `preprocessing.json` describes how samples become a batch: "
        f"{_view(description.test_view)}{scaled}stack them, with `collate`. `kdcl predict FOLDER DATASET` of "
        "kdcl_dist does all of this."
    )


def _view(items: Sequence[Mapping[str, Any]]) -> str:
    if not items:
        return ""
    names = ", ".join(
        f"{item['name']}({', '.join(f'{key}={value!r}' for key, value in item.items() if key != 'name')})"
        for item in items
    )
    origin = "" if any(":" in item["name"] for item in items) else " of torchvision.transforms.v2"
    return f"apply `{names}`{origin}; "


def _code(source: Source, description: Description) -> list[str]:
    kind, model, layout = description.kind, Model.of(description.model), description.inputs
    names, types = (
        names_of(layout),
        "float32, (B, C, H, W)" if layout is None else "batches of the samples below",
    )
    fed = ", ".join(f'"{name}": {name}' for name in names)
    given = ", ".join(f"{name}={name}" if layout and layout.kind == "dict" else name for name in names)
    read = READ[kind].format(file=description.weights)
    if kind == "onnx":
        return [
            "import onnxruntime",
            "",
            read,
            f'(logits,) = session.run(["logits"], {{{fed}}})  # {types}',
        ]
    run = f"logits = network({given}){{}}  # {types}"
    if kind == "torch_export":
        return ["import torch", "", read, run.format("")]
    lines = ["import safetensors.torch" if kind == "safetensors" else "import torch"]
    channels, classes = description.channels, len(description.classes)
    if call := call_without_package(model, classes, channels):
        lines += [f"import {call.partition('.')[0]}", "", f"network = {call}"]
    elif description.students or module_without_package(model, classes, channels):
        lines += ["from model import build  # model.py, beside this file", "", "network = build()"]
    else:
        statement, call = call_of_own(model, classes, channels)
        lines += [statement, "", f"network = {call}"]
    return [*lines, read, "network.eval()", run.format(accessor(source.network, source.example.inputs))]


def _data(source: Source) -> str:
    data, what = source.recipe.data, _nouns(source.training_data.channels)
    lines = ["## Data", ""]
    for part, path, dataset in (
        ("training", data.train, source.training_data.train),
        ("test", data.test, source.training_data.test),
    ):
        lines.append(f"- {part}: `{path}`, {len(dataset):,} {what}{_origin(dataset)}")
    classes = source.training_data.test.classes
    first = ", ".join(shown(str(name), NAME) for name in classes[:20])
    return "\n".join([*lines, f"- classes: {first}{', ...' if len(classes) > 20 else ''}"])


def _origin(dataset: Dataset) -> str:
    whole = dataset.whole if isinstance(dataset, Subset) else dataset
    if not isinstance(whole, ArrowDataset | ArrowSamples):
        return "; licence not known"
    origin = f"; {shown(whole.info.source)}" if whole.info.source else ""
    return f"{origin}; licence: {shown(whole.info.license) or 'not known'}"


def _training(source: Source) -> str:
    versions = source.record.get("versions", {})
    ran = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"With {ran}. The recipe:\n\n```yaml\n{dump_recipe(source.recipe).rstrip()}\n```"
