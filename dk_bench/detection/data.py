"""The Lightning data module of detection: mmdet's data sets, pipelines and samplers, in an order that can resume.

Samplers are the configuration's own, with the run's seed: an epoch has the batches it has under mmdet's runner. What is
random in the pipeline is a function of (seed, epoch, index), as in classification.
"""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from dk_bench.data.checksum import files_checksum
from dk_bench.data.coco import check_annotations
from dk_bench.data.order import InOrder, batches_done, mix_seed, processes
from dk_bench.data.scan import PathFiles
from dk_bench.data.splits import check_files_apart
from dk_bench.detection.batches import ENDLESS, Endless, KeyedBatches, KeyedIterations
from dk_bench.detection.image_loading import REMOTE, check_pipeline
from dk_bench.detection.metrics import GroundTruth, read_truth
from dk_bench.detection.mmengine_config import DetectionConfig, build, use_scope
from dk_bench.detection.stages import stages_of
from dk_bench.errors import UserError
from dk_bench.reading.sequences import check_names
from dk_bench.training.run_data import RunData

# Samplers of mmengine and mmdet whose order is that of (seed, epoch), and which end. Loops of iterations have another.
RESUMABLE = ("DefaultSampler", "ClassAwareSampler")
# Settings of mmengine's loaders that are heeded here, and those handed to torch's as they are.
LOADER_KEYS = "_scope_ batch_size collate_fn dataset drop_last num_workers persistent_workers sampler".split()
LOADER_OPTIONS = ("pin_memory", "prefetch_factor", "timeout")


class DetectionData(RunData):
    """Loaders of batches as mmdet's detectors take them: a dict of ``inputs`` and ``data_samples``.

    ``batch_size`` is that of one device, as under mmdet's runner. Training goes on from where the trainer is.
    Validation goes over all images once, spread over the devices. Nothing is opened before the first use; then
    UserError is raised for bad data, see `check_annotations` and `check_splits`; a batch raises it for a damaged image.
    """

    batch_key = "train_dataloader.batch_size"

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        self.config, self.seed = config, config.run.seed
        self.batch_size = config.cfg.train_dataloader.get("batch_size", 1)
        use_scope(config.cfg)

    @cached_property
    def train_images(self) -> Any:
        """Returns mmdet's training data set."""
        return _open(self.config.cfg, "train_dataloader")

    @cached_property
    def val_images(self) -> Any:
        """Returns mmdet's validation data set. Its annotation file is the ground truth."""
        images = _open(self.config.cfg, "val_dataloader")
        if not getattr(images, "ann_file", None):
            expected = "expected one data set in COCO's format, with an 'ann_file'"
            raise UserError(f"key 'val_dataloader.dataset' is a {type(images).__name__}, {expected}")
        return images

    @cached_property
    def ground_truth(self) -> GroundTruth:
        """Tells what the annotation file says of the validation images, in coordinates of the original images."""
        held = {self.val_images.get_data_info(index)["img_id"] for index in range(len(self.val_images))}
        truth = read_truth(self.val_images.ann_file, self.classes)
        return {image: target for image, target in truth.items() if image in held}

    @property
    def classes(self) -> list[str]:
        return list(self.val_images.metainfo["classes"])

    @property
    def name(self) -> str:
        """Tells what records and tables call the data: ``data_name`` of the configuration, or the folder's name."""
        if given := self.config.cfg.get("data_name"):
            return given
        if "Procedural" in type(self.val_images).__name__:
            return "procedural_det"
        return Path(self.val_images.data_root or self.val_images.ann_file).name

    @property
    def steps_per_epoch(self) -> int:
        """Counts the batches in an epoch, on as many devices as there are processes now; in the first epoch of a loop
        of iterations, see `loops`."""
        return self.config.loop.ends[0] if self.config.loop.by_iterations else self.batches_per_pass

    @property
    def batches_per_pass(self) -> int:
        """Counts the batches that the sampler makes of all images, as mmengine does."""
        return len(self._batches())

    def checksum(self, images: Any) -> str:
        """Tells a split's images, and the objects in them that are used, from others, see `dk_bench.data.checksum`."""
        infos = [leaf.get_data_info(index) for leaf in _leaves(images) for index in range(len(leaf))]
        kept = ("height", "width", "instances")
        described = [[info.get(key) for key in kept] for info in infos]
        return files_checksum(_files(images), self.classes, len(images), described)

    def compare_splits(self) -> None:
        keys = "train_dataloader.dataset and val_dataloader.dataset"
        check_files_apart(_files(self.train_images), _files(self.val_images), keys)

    def train_dataloader(self) -> DataLoader:
        """Returns batches of this process from where the trainer is. Under ``Trainer(overfit_batches=...)`` the images
        in order, with the same augmentation in every epoch."""
        self.check_splits()
        settings, size = self.config.cfg.train_dataloader, self.batch_size
        images = KeyedImages(self.train_images, self.seed, stages_of(self.config, self.train_images))
        if self.config.loop.by_iterations:
            return self._loader(settings, images, self._iterations(), batch_size=None, goes_on=True)
        batches = self._batches()
        done = partial(batches_done, self.trainer, len(batches)) if self.trainer else lambda: 0
        if self.trainer and self.trainer.overfit_batches > 0:
            step = size * processes()[1]
            in_order = InOrder(len(images) // step * step or len(images), done=lambda: done() * size)
            return self._loader(settings, images, in_order, batch_size=size, goes_on=True)
        return self._loader(settings, images, KeyedBatches(batches, done), batch_size=None, goes_on=True)

    def val_dataloader(self) -> DataLoader:
        """Returns all validation images in order, each once, spread over the devices."""
        settings, images = self.config.cfg.val_dataloader, KeyedImages(self.val_images, self.seed)
        sampler = self.in_order("val", len(images))
        return self._loader(settings, images, sampler, batch_size=settings.get("batch_size", 1))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch where it is: the detector's preprocessor moves it."""
        return batch

    def _iterations(self) -> KeyedIterations:
        """Returns the batches of a loop of iterations up to where it next validates."""
        loop = self.config.loop
        if not self.trainer:
            return KeyedIterations(self._endless, loop)
        epoch = min(self.trainer.current_epoch, loop.epochs - 1)  # of a training that has ended the last
        done = partial(batches_done, self.trainer, loop.ends[epoch] - loop.begins(epoch))
        return KeyedIterations(self._endless, loop, done, epoch)

    @cached_property
    def _endless(self) -> Endless:
        return Endless(self._batches)

    def _batches(self) -> BatchSampler:
        """Returns the configuration's batches of indices for this process."""
        settings = dict(self.config.cfg.train_dataloader)
        sampler = settings.get("sampler") or {"type": "DefaultSampler", "shuffle": True}
        known = (*RESUMABLE, ENDLESS) if self.config.loop.by_iterations else RESUMABLE
        if (kind := str(sampler.get("type")).rpartition(".")[2]) not in known:
            raise UserError(f"key 'train_dataloader.sampler' is {kind!r}, expected one of {', '.join(known)}")
        # mmengine passes the data set by name, and not every sampler takes the seed so.
        made = build(DATA_SAMPLERS, sampler, "train_dataloader.sampler", dataset=self.train_images, seed=self.seed)
        size = self.batch_size
        if grouping := settings.get("batch_sampler"):
            return build(DATA_SAMPLERS, grouping, "train_dataloader.batch_sampler", sampler=made, batch_size=size)
        return BatchSampler(made, size, drop_last=settings.get("drop_last", False))

    def _loader(self, settings: Mapping[str, Any], images: Dataset, sampler: Sampler, **more: Any) -> DataLoader:
        more |= {key: settings[key] for key in LOADER_OPTIONS if key in settings}
        collate = dict(settings.get("collate_fn") or {"type": "pseudo_collate"})
        collate.pop("_scope_", None)
        function = collate.pop("type")
        function = FUNCTIONS.get(function) if isinstance(function, str) else function
        more["collate_fn"] = partial(function, **collate)
        return self.loader(images, sampler, settings.get("num_workers", 0), **more)


class KeyedImages(Dataset):
    """An mmdet data set by (epoch, index), with random numbers that depend on these and the seed alone and leave those
    of the process as they were; by index, which is of epoch 0; or by a batch of either. In a loop of iterations their
    numbers stand for the epoch's.

    ``stages`` are pairs, rising, of an epoch and the data set as it is from then on. Raises UserError for an image that
    is missing or damaged.
    """

    def __init__(self, images: Any, seed: int, stages: Sequence[tuple[int, Any]] = ()) -> None:
        self.images, self.seed, self.stages = images, seed, [(0, images), *stages]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int] | int | list) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(key, list):
            return [self[one] for one in key]
        epoch, index = key if isinstance(key, tuple) else (0, key)
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                seed_all(mix_seed(self.seed, epoch, index))
                return next(images for begin, images in reversed(self.stages) if epoch >= begin)[index]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and the CPU's torch generator: mmdet draws from all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _open(cfg: Mapping[str, Any], key: str) -> Any:
    """Returns the data set of a loader, read after its annotation files have been checked."""
    settings = cfg[key]
    known = {*LOADER_KEYS, *LOADER_OPTIONS, *(["batch_sampler"] if key == "train_dataloader" else [])}
    if unknown := sorted(set(settings) - known):
        raise UserError(f"unknown key '{key}.{unknown[0]}', expected {', '.join(sorted(known - {'_scope_'}))}")
    if not settings.get("dataset"):
        raise UserError(f"key '{key}.dataset' is missing, expected a data set")
    with redirect_stdout(io.StringIO()):  # pycocotools tells what it does
        images = build(DATASETS, _lazy(settings["dataset"]), f"{key}.dataset")
        return _checked(images, key, bool(cfg.get("other_classes")))


def _checked(images: Any, key: str, other_classes: bool) -> Any:
    for leaf in _leaves(images):
        if path := getattr(leaf, "ann_file", None):
            classes = check_names(leaf.metainfo["classes"], f"key '{key}.dataset.metainfo.classes'")
            check_annotations(path, leaf.data_prefix.get("img", ""), classes, other_classes=other_classes)
        check_pipeline(leaf, f"{key}.dataset")
    nothing = f"key '{key}.dataset': no images to use, after what 'filter_cfg' leaves out"
    try:
        images.full_init()
    except ValueError as error:  # mmengine packs the images it has, and fails where there are none
        raise UserError(f"{nothing} ({error})") from error
    if len(images) == 0:
        raise UserError(nothing)
    return images


def _lazy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a data set's settings, those of wrapped ones included, by which nothing is read when it is built."""
    settings = {**settings, "lazy_init": True}
    if isinstance(settings.get("dataset"), Mapping):
        settings["dataset"] = _lazy(settings["dataset"])
    if settings.get("datasets"):
        settings["datasets"] = [_lazy(inner) for inner in settings["datasets"]]
    return settings


def _leaves(images: Any) -> Iterator[Any]:
    """Returns the data sets inside wrappers, or the one that is none."""
    inner = getattr(images, "datasets", None) or [i for i in [getattr(images, "dataset", None)] if i is not None]
    if not inner:
        yield images
    for wrapped in inner:
        yield from _leaves(wrapped)


def _files(images: Any) -> PathFiles:
    """Returns the image files of a data set, those of wrapped ones included; none where they are not local files."""
    leaves = [leaf for leaf in _leaves(images) if not getattr(leaf, "backend_args", None)]
    items = (leaf.get_data_info(index) for leaf in leaves for index in range(len(leaf)))
    paths = (item.get("img_path") for item in items)
    return PathFiles([path for path in paths if isinstance(path, str) and REMOTE not in path])
