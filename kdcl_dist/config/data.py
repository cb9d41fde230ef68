"""The section `data` of a recipe: the data sets, their views, and their mixing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from kdcl_dist.config.base import ClassNames, Strict
from kdcl_dist.config.collate import CollateSpec
from kdcl_dist.config.mixing import Mixing

__all__ = ["Data", "Transform"]


class Transform(Strict):
    """One transform of an image, such as `{name: RandomCrop, size: 32, padding: 4}`.

    The fields beside `name` are the arguments of the transform. No transform may enlarge an image above
    4096 x 4096 pixels.

    Transforms run in the order of the list. The images are normalised afterwards, with the mean and the
    standard deviation of the data set.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        description="A class of `torchvision.transforms.v2`, `Cutout`, or an import string "
        "`package.module:factory`."
    )

    def item(self) -> dict[str, Any]:
        """The transform as `kdcl_dist.data.views.Transforms` takes it."""
        return self.model_dump()


class Data(Strict):
    """The data sets and the views of their samples."""

    train: str = Field(
        description="Training set: a path, `hf:FOLDER`, `kdcl:NAME`, or an import string "
        "`package.module:factory`; see [what data.train may be](data.md#what-datatrain-may-be)."
    )
    test: str = Field(description="Test set, in the same form.")
    label: str | None = Field(
        default=None,
        description="Column of labels of a table or of `hf:FOLDER`. `null`: the one called `label`, "
        "`target` or `class`.",
    )
    classes: ClassNames | None = Field(
        default=None, description="Classes to learn, at least two, in the order of their labels. `null`: all."
    )
    augment: list[Transform] = Field(default=[], description="Transforms of the training view.")
    views: PositiveInt | None = Field(
        default=None,
        description="Number of views of a sample that training shows in turn, one an epoch. `null`: a new "
        "view each epoch.",
    )
    test_view: list[Transform] = Field(
        default=[], description="Transforms of test, validation and held-out samples."
    )
    val: str | None = Field(
        default=None, description="Validation set, in the same form. `null`: none, or `val_fraction`."
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of each class of the training set that is taken out for validation, by the seed. "
        "At least one sample of a class stays.",
    )
    train_per_class: PositiveInt | None = Field(
        default=None,
        description="Samples of each class that are used, drawn by the seed, those of "
        "`val_fraction` and `holdout_per_class` included. `null`: all.",
    )
    holdout_per_class: NonNegativeInt = Field(
        default=0,
        description="Training samples of each class that are held out. The weights of method `general` "
        "need 1 or more.",
    )
    mixup: Mixing | None = Field(
        default=None,
        description="Images of training samples are blended in pairs (Zhang et al., 2018). `null`: never.",
    )
    cutmix: Mixing | None = Field(
        default=None,
        description="A box of each training image is taken from another image (Yun et al., 2019). `null`: "
        "never.",
    )
    collate: CollateSpec | None = Field(
        default=None,
        description="How samples that are no images become a batch: padding, or a function of your own "
        "`package.module:function` that gets a list of samples. `null`: they are stacked, and padded with 0 "
        "to the longest where first axes differ.",
    )
    normalise: bool = Field(
        default=False,
        description="Samples that are no images: floating-point tensors get mean 0 and deviation 1, by each "
        "feature of the last axis over the training set. Images are normalised always.",
    )
    loader_workers: NonNegativeInt = Field(
        default=0, description="Loader processes of each worker. `0`: the worker loads its own samples."
    )

    @property
    def mixes(self) -> bool:
        """Whether training samples are mixed, at some steps at least."""
        return self.mixup is not None or self.cutmix is not None

    def view_of(self, epoch: int) -> int:
        """The number of the view that training shows of each sample in an epoch."""
        return epoch if self.views is None else epoch % self.views

    @property
    def has_val(self) -> bool:
        """Whether there are validation samples."""
        return self.val is not None or self.val_fraction is not None

    @property
    def sets(self) -> dict[str, str]:
        """The data sets by the fields that name them: "train", "test", and "val" if there is one."""
        return {"train": self.train, "test": self.test} | ({} if self.val is None else {"val": self.val})

    @property
    def test_items(self) -> list[dict[str, Any]]:
        """The transforms of the test view."""
        return [transform.item() for transform in self.test_view]

    @model_validator(mode="after")
    def _one_validation_set(self) -> Data:
        if self.val is not None and self.val_fraction is not None:
            raise ValueError(
                f"val and val_fraction exclude each other (got {self.val!r} and {self.val_fraction}): set "
                "one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _a_step_is_mixed_once(self) -> Data:
        if self.mixup is None or self.cutmix is None:
            return self
        first, second = self.mixup.probability, self.cutmix.probability
        if first + second > 1 + 1e-9:
            raise ValueError(
                f"mixup.probability ({first}) and cutmix.probability ({second}) have a sum above 1: a step "
                "is mixed in one of the two ways, so give each its share of the steps"
            )
        return self
