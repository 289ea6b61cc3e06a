"""The models whose receptive fields are looked at: checkpoints of ours, and timm's by name."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as F

from dk_bench.analysis.learned import load_classifier
from dk_bench.analysis.origin import Origin, origin_of
from dk_bench.analysis.pictures import OWN, Picture
from dk_bench.config import DataConfig
from dk_bench.errors import UserError
from dk_bench.models.deform import GENERIC
from dk_bench.models.probe import default_input_size


@dataclass(frozen=True)
class Subject:
    """A model, the names of its kind and checkpoint, which say where weights are random, and the images it expects."""

    kind: str
    name: str
    model: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained: bool
    origin: Origin | None = None  # of a checkpoint, and the images of its run
    data: DataConfig | None = None

    def tensor(self, picture: Picture) -> Tensor:
        """Returns a picture as the model takes it: (3, side, side), normalised."""
        return F.normalize(F.to_tensor(picture.image), self.mean, self.std)


def open_model(text: str, side: int | None = None, seed: int = 0) -> Subject:
    """Returns a checkpoint of a classification run of ours, or a timm name (random weights of that seed). Raises
    UserError where it is neither."""
    if Path(text).is_file():
        loaded = load_classifier(text)
        config, data = loaded.config, loaded.config.data
        name = f"{loaded.name} (seed {config.seed})"
        origin = origin_of(text, name, config, loaded.run_id)
        expected = (side or data.size, tuple(data.mean), tuple(data.std))
        return Subject(loaded.name, name, loaded.model, *expected, True, origin, data)
    if text not in timm.list_models() or text == GENERIC:  # which is made with arguments alone
        raise UserError(f"{text}: neither a checkpoint's file nor a model of timm's")
    torch.manual_seed(seed)
    model = timm.create_model(text).eval()
    known = model.pretrained_cfg
    name = f"{text} (random weights)"
    return Subject(name, name, model, side or default_input_size(model)[1], known["mean"], known["std"], trained=False)


def open_models(texts: Iterable[str], side: int | None = None, images: str = "") -> list[Subject]:
    """Returns models, see :func:`open_model`, that can be compared on the same ``images``. Raises UserError where they
    expect images of different sizes, one is there twice, or they are to be looked at with their own, which differ."""
    subjects = [open_model(text, side) for text in texts]
    sides = {subject.side for subject in subjects}
    if len(sides) > 1:
        raise UserError(f"the models were made for images of {', '.join(map(str, sorted(sides)))} pixels; give --side")
    names = [subject.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{twice[0]}: several models of that name, kernels and seed; expected one (of folders, by --only)"
        )
    for other in subjects[1:] if images == OWN else ():
        own = (subjects[0].data, other.data)
        if None in own or own[0].procedural != own[1].procedural:
            raise UserError(f"--images {OWN}: {other.name} has other images than {names[0]}; compare them apart")
    return subjects
