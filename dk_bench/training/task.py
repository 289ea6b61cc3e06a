"""The protocol of a task: what `dk_bench.training.run`, the loop that trains every task, asks of it.

A new task is a folder beside `dk_bench.classification` and a line in `dk_bench.tasks` (and a floor in tools/rooms.py):

- ``task.py`` with a `Task`, which imports what is heavy only inside its methods;
- ``module.py`` with a `dk_bench.training.own_trainer.ConfiguredModule`, the Lightning module;
- ``data.py`` with a `dk_bench.training.run_data.RunData`, the Lightning data module.

Resuming, records, devices, interrupts, W&B, sweeps and ``dk-bench train``, ``eval`` and ``replay`` are there for it.
"""

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dk_bench.config import RunConfig
from dk_bench.data.shifts import TEST
from dk_bench.errors import UserError
from dk_bench.runs.identity import run_folder

if TYPE_CHECKING:
    from PIL import Image
    from pytorch_lightning.callbacks import Callback
    from torch import nn

    from dk_bench.models.workload import Workload
    from dk_bench.training.graph import Graph
    from dk_bench.training.outline import Outline
    from dk_bench.training.own_trainer import ConfiguredModule
    from dk_bench.training.predicting import Predictor
    from dk_bench.training.run_data import RunData


class Task(ABC):
    """One configuration of one task: everything that the training loop has to ask about it.

    Attributes:
        config: the configuration, as ``read`` made it.
        run: its keys that every task has: name, seed, output, trainer, wandb.
        values: the whole of it as plain data, as checkpoints hold it and ``parse`` takes it.
        epochs: how long it trains.
        tests: names of the sets that the trained model is evaluated on once; empty where there are none.
    """

    name: ClassVar[str]  # in records, checkpoints and `dk_bench.tasks`
    metrics: ClassVar[Sequence[str]]  # figures of a validation as the module logs them (val/...), in the records' order
    # Make a configuration of a file, or of plain data, and key=value overrides; errors say where plain data is from.
    read: ClassVar[Callable[[str | Path | None, Iterable[str]], Any]]
    parse: ClassVar[Callable[[Mapping[str, Any], Iterable[str], str], Any]]

    def __init__(
        self, config: Any, run: RunConfig, values: dict[str, Any], epochs: int, tests: Sequence[str] = ()
    ) -> None:
        self.config, self.run, self.values, self.epochs, self.tests = config, run, values, epochs, tests

    @abstractmethod
    def data(self, *, once: bool = False) -> "RunData":
        """Returns the data module; ``once``: every image will be seen once, so that none need be kept."""

    @abstractmethod
    def module(self, classes: list[str], run_id: str = "", *, initial_weights: bool = True) -> "ConfiguredModule":
        """Returns the Lightning module. Without ``initial_weights`` it reads none from files: a checkpoint's follow."""

    @abstractmethod
    def describe_model(self, classes: list[str]) -> dict[str, Any]:
        """Tells what a record says of the model: at least name, spec and input_size, [3, height, width] or None."""

    @abstractmethod
    def summary(self, figures: Mapping[str, float | None], classes: int, split: str = "val") -> str:
        """Returns a split's figures in a few words, as ``dk-bench train`` ends with them."""

    def epoch_line(self, figures: Mapping[str, float | None], classes: int) -> str:
        """Returns the figures of an epoch in a line."""
        return f"loss {figures['train/loss']:.3f}  {self.summary(figures, classes)}"

    def details(self, figures: Mapping[str, float | None], classes: int, split: str = "val") -> str:
        """Returns a split's figures as ``dk-bench eval`` prints them."""
        return self.summary(figures, classes, split)

    def place(self, epoch: int) -> dict[str, int]:
        """Tells where an epoch, counted from 0, ends, as the first figures of its row in the record."""
        return {"epoch": epoch}

    @property
    def folder(self) -> Path:
        """Tells where the run keeps record, checkpoint and lock, see `dk_bench.runs.identity.run_folder`."""
        return run_folder(self.run, self.values)

    def callbacks(self, *, logged: bool) -> "list[Callback]":
        """Returns what the configuration wants done in training besides; ``logged``: there is a logger."""
        return []

    def trainer_options(self) -> dict[str, Any]:
        """Returns further arguments of ``pl.Trainer``."""
        return {}

    def quiet(self) -> AbstractContextManager:
        """Silences what the task's own libraries say of every run."""
        return nullcontext()

    def images_in(self, batch: Any) -> int:
        """Returns the number of images of a batch (images, labels)."""
        return len(batch[1])

    def outline(self) -> "Outline":
        """Tells what decides how long a run takes, without data and weights."""
        raise UserError(f"runs of {self.name} cannot be planned")

    def workload(self, outline: "Outline", *, rigid: bool = False) -> "Workload":
        """Counts what training does for one image, on weights that take no memory; ``rigid``: with the rigid base."""
        raise UserError(f"runs of {self.name} cannot be planned")

    def sheet(self, rows: int, split: str = "train") -> "Image.Image":
        """Draws ``rows`` rows of a split's images. Raises UserError where there is nothing to draw."""
        raise UserError(f"images of {self.name} cannot be drawn")

    def for_use(
        self, model: "nn.Module", checkpoint: Mapping[str, Any]
    ) -> "tuple[nn.Module, Callable[[Image.Image], Any]]":
        """Returns the model of a checkpoint of this configuration, which has its weights and is in evaluation mode, as
        the task's own libraries have it, and what makes its input of an image (RGB) as evaluation does."""
        raise UserError(f"models of {self.name} cannot be used outside of training")

    @classmethod
    def open_export(cls, path: Path) -> "tuple[nn.Module, Callable[[Image.Image], Any], Sequence[str]]":
        """Opens what other programs read, by its file that `dk_bench.tasks.Kind.exports` names: as `for_use`, and the
        names of the classes. Raises UserError for what is damaged or no such file."""
        raise UserError(f"{path}: {cls.name} has no exports")

    @classmethod
    def predictor(cls) -> "type[Predictor]":
        """Imports what asks a model that `for_use` or `open_export` gave about images."""
        raise UserError(f"models of {cls.name} cannot be used outside of training")

    @classmethod
    def graph(cls, model: "nn.Module", checkpoint: Mapping[str, Any] | None) -> "Graph":
        """Returns what of a trained model goes into graphs for other programs. ``checkpoint`` is what the run's holds;
        None for the model of an export. Raises UserError where that is nothing."""
        raise UserError(f"models of {cls.name} have no graph")

    @classmethod
    def for_mmdet(cls, model: "nn.Module", path: Path) -> tuple[dict[str, Any], str]:
        """Returns a trained detector as mmdet has it: what its file of weights holds, and its configuration's text.
        ``path`` is where the model was opened. Raises UserError for what is no detector."""
        raise UserError(f"{path}: a model of {cls.name}, expected a detector")

    def check_split(self, split: str) -> None:
        """Raises UserError where the configuration has no images of a split."""
        if split == TEST and not self.tests:
            raise UserError(f"there are no test images: {self.name} has none of its own")

    def check_own(self, held: str) -> None:
        """Raises UserError where what lies in the run's folder is of another task, by its name: runs of two tasks have
        one folder if their configurations are equal."""
        if held != self.name:
            raise UserError(
                f"{self.folder}: holds a run of {held}, this one is of {self.name}; expected another name or output"
            )

    def check_checkpoint(self, checkpoint: Mapping[str, Any], classes: list[str], path: str | Path) -> None:
        """Raises UserError where a checkpoint is not of this task, or of other classes than the data has."""
        held = list(checkpoint["hyper_parameters"]["classes"])
        if task_of(checkpoint) != self.name:
            raise UserError(f"{path}: a checkpoint of {task_of(checkpoint)}, expected one of {self.name}")
        if held != list(classes):
            raise UserError(f"{path}: its model tells {some_of(held)} apart, the images are of {some_of(classes)}")

    def cost(self, model: "nn.Module", input_size: Sequence[int] | None) -> dict[str, Any]:
        """Tells what one image costs, as records hold it. Counting must not keep a model from training: where it fails,
        at an operator without a formula or one that cannot run without data, only the parameters are known, and why."""
        params = sum(parameter.numel() for parameter in model.parameters())
        cost = {"params": params, "macs": None, "sampling_macs": None, "input_size": input_size and list(input_size)}
        try:
            return cost | self.count(model, tuple(input_size or (3, 224, 224)))
        except (AttributeError, NotImplementedError, RuntimeError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"multiply-adds are not known: {reason}", file=sys.stderr)
            return cost | {"error": reason}

    def count(self, model: "nn.Module", input_size: tuple[int, ...]) -> dict[str, Any]:
        """Counts multiply-adds of one image. May raise what `cost` tells as the reason that they are not known."""
        from dk_bench.models.cost import count_cost

        return dataclasses.asdict(count_cost(model, input_size))


def task_of(checkpoint: Mapping[str, Any]) -> str:
    """Tells the name of the task that a checkpoint is of. Older ones of classification do not say."""
    return checkpoint.get("task", "classification")


def some_of(names: Sequence[str]) -> str:
    """Returns the number of classes and the first of their names."""
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
