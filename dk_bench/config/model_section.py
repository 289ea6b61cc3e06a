"""Section ``model``: the network, what deforms it, and the weights it starts from."""

from dataclasses import dataclass, field
from typing import Any

from dk_bench.config.fields import place
from dk_bench.errors import UserError
from dk_bench.models.spec import KernelSpec
from dk_bench.reading.schema import checked


@dataclass
class ModelConfig:
    """The model: a timm name, dk_bench's own included. The data decide the number of classes.

    Weights to start from are put into the rigid model, which is then deformed. A classifier of another number of
    classes starts anew. ``checkpoint`` tells cells apart as it is written: name one file one way, relative to the
    folder of the project, and a cell is the same on every machine.
    """

    name: str = "resnet50dw"
    spec: dict[str, Any] | None = None  # fields of dk_bench.KernelSpec that deform the rigid model named above
    # Start from timm's weights of the rigid model; timm downloads them.
    pretrained: bool = checked(
        False,
        "false where model.checkpoint is set: the weights come from one of them",
        lambda model: not (model.pretrained and model.checkpoint),
        of_section=True,
    )
    drop_path_rate: float = checked(
        0.0,
        "0 to below 1, and 0 where model.kwargs.drop_path_rate says it",
        lambda model: 0 <= model.drop_path_rate < 1 and not (model.drop_path_rate and "drop_path_rate" in model.kwargs),
        of_section=True,
    )
    # Weights to start from, of this model or its rigid base: what `train` left, an export, another tool's file.
    checkpoint: str | None = place("a file or a folder")
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model


def spec_of(model: ModelConfig) -> KernelSpec:
    """Returns ``model.spec``, which is not None, as a KernelSpec. Raises UserError for fields that make none."""
    try:
        return KernelSpec.from_dict(model.spec)
    except (ValueError, TypeError) as error:
        raise UserError(f"which makes no spec: {error}", key="model.spec", value=model.spec) from error
