"""The learned dynamics of a model: offsets of its deformable kernels and convolutions, scores of its experts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dk_bench.classification.timm_models import kernel_spec, load_model, read_classifier
from dk_bench.config import Config, config_from_dict, to_dict
from dk_bench.errors import UserError
from dk_bench.nn import RigidStart2d
from dk_bench.runs.identity import config_hash
from dk_bench.training.callbacks import RunKeeper

KERNEL, DATA, FACTORS, EXPERTS = "kernel offsets", "data offsets", "tap factors", "expert scores"
_KINDS = {"kernel_offset": KERNEL, "data_offset": DATA, "data_mask": FACTORS, "routing": EXPERTS}


@dataclass(frozen=True)
class Source:
    """A generator of learned dynamics, in a convolution."""

    layer: str  # name of the convolution in the model
    kind: str  # what it gives: kernel offsets, data offsets, tap factors (DCN v2) or expert scores
    conv: RigidStart2d
    generator: nn.Module  # part of the convolution that makes them from its input

    def read(self, output: Tensor) -> Tensor:
        """Tells what the generator's output stands for: scores of experts are its sigmoid, all else is as it is."""
        return torch.sigmoid(output) if self.kind == EXPERTS else output


@dataclass(frozen=True)
class Loaded:
    """A trained classifier and what its checkpoint says of it."""

    path: Path
    model: nn.Module = field(repr=False)
    config: Config
    run_id: str
    classes: list[str]
    epochs: str = ""  # ", after 3 of 12 epochs", of a run that has not come to its end

    @property
    def name(self) -> str:
        """Returns the timm name, the kernel spec if there is one, and how far training came if not to its end."""
        spec = self.config.model.spec
        return self.config.model.name + (f" {spec}" if spec else "") + self.epochs

    @property
    def words(self) -> str:
        """Tells what adapts in it, as tables say it."""
        return str(kernel_spec(self.config.model).words)

    @property
    def cell(self) -> str:
        """Names the configuration: the same for every seed."""
        return config_hash(to_dict(self.config))


def load(path: str | Path) -> Loaded:
    """Returns a classifier's checkpoint, for looking at what adapts in it. Raises UserError as :func:`load_classifier`,
    and for a model in which nothing adapts."""
    loaded = load_classifier(path)
    if not sources(loaded.model):
        expected = "deformable kernels, deformable convolutions or experts"
        raise UserError(f"{path}: {loaded.name} is rigid: nothing is deformable in it, expected {expected}")
    return loaded


def load_classifier(path: str | Path) -> Loaded:
    """Returns a classifier's checkpoint, rigid ones included. Raises UserError for a file that is no checkpoint of
    ours, a detector's, and for weights that are not finite."""
    checkpoint = read_classifier(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_dict(held["config"], source=str(path))
    done, whole = RunKeeper.state_in(checkpoint).get("epochs"), config.optim.epochs
    epochs = "" if done is None or len(done) >= whole else f", after {len(done)} of {whole} epochs"
    loaded = Loaded(Path(path), load_model(path), config, held.get("run_id", ""), list(held["classes"]), epochs)
    # A diverged run leaves weights that are no numbers; what is made of them looks like some.
    for name, value in loaded.model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: weights {name} are not finite, expected those of a run that did not diverge")
    return loaded


def sources(model: nn.Module) -> list[Source]:
    """Returns all generators of a model, in the order of its modules."""
    return [
        Source(layer, _KINDS[part], conv, generator)
        for layer, conv in model.named_modules()
        if isinstance(conv, RigidStart2d)
        for part, generator in conv.named_children()
        if part in _KINDS
    ]


@contextmanager
def recorded(found: list[Source], keep: Callable[[Source, Tensor, Tensor], Any]) -> Iterator[dict[Source, list[Any]]]:
    """Collects ``keep(source, generator's input, what it gives)`` of every forward pass in the block, by source."""
    seen: dict[Source, list[Any]] = {source: [] for source in found}

    def watch(source: Source, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[source].append(keep(source, args[0], source.read(output)))

    with ExitStack() as hooks:
        for source in found:
            hooks.enter_context(source.generator.register_forward_hook(partial(watch, source)))
        yield seen
