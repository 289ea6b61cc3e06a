"""Configurations of detection, mmengine's own with a few keys of ours, and building what stands in them.

Ours are ``name`` (the file's by default), ``seed`` (``randomness.seed`` by default), ``output``, and the sections
``trainer`` and ``wandb`` as `dk_bench.config` has them; mmdet's runner does not look at them. ``data_name`` names the
data in records where their folder's name does not; ``other_classes`` allows annotations of classes that are not listed,
which mmdet leaves out.
"""

import copy
import dataclasses
import difflib
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mmengine
from mmengine.logging import MMLogger
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from dk_bench.config import RunConfig, to_dict
from dk_bench.detection.hook_names import check_hooks
from dk_bench.detection.loops import Loop
from dk_bench.errors import UserError, located, system_errors
from dk_bench.reading.overrides import joined, put, split_override, standing
from dk_bench.reading.schema import merged, read_value
from dk_bench.reading.sequences import check_sequences
from dk_bench.reading.values import annotation_of, read_text

OURS = tuple(field.name for field in dataclasses.fields(RunConfig))
NEEDED = ("model", "train_dataloader", "val_dataloader", "train_cfg", "optim_wrapper")
# Top-level keys that mean something to mmdet's runner or to us; a file may hold others, for its own use.
OF_THE_RUNNER = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
KNOWN = OF_THE_RUNNER.union(OURS, "data_name other_classes sync_bn find_unused_parameters custom_imports".split())
# Keys that take more than what stands there shows, or of which nothing may stand there.
TAKES = {
    "data_name": str | None,
    "other_classes": bool,
    "load_from": str | None,
    "work_dir": str | None,
    "resume": bool,
    "default_scope": str | None,
    "experiment_name": str | None,
    "sync_bn": Literal["torch", "mmcv"] | None,
    "randomness": dict[str, Any],
    "custom_imports": dict[str, Any] | None,
    "custom_hooks": list[dict[str, Any]] | None,
    "model.backbone.model_name": str,
    "model.backbone.checkpoint": str | None,
}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")

_FILES: dict[str, tuple[mmengine.Config, dict[str, int] | None]] = {}  # that were read, with their stamps


@dataclass(frozen=True)
class DetectionConfig:
    """``cfg`` is the whole configuration as mmengine has it, ``run`` our keys."""

    cfg: mmengine.Config
    run: RunConfig

    @cached_property
    def loop(self) -> Loop:
        """Tells how long training lasts and when it validates."""
        return Loop.of(self.cfg.train_cfg)

    @property
    def batches_per_step(self) -> int:
        """Counts the batches whose gradients mmengine accumulates for a step."""
        return self.cfg.optim_wrapper.get("accumulative_counts", 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as `config_from_values` takes it: dicts, lists, tuples, texts, numbers, None."""
        return plain(self.cfg.to_dict()) | to_dict(self.run)


def load_detection_config(path: str | Path, overrides: Iterable[str] = ()) -> DetectionConfig:
    """Reads a file of configs/det, or any of mmdet's, and applies ``key=value`` overrides, read as `reading.values`
    says: mmdet's --cfg-options splits a text at its commas and drops its blanks.

    ``data_root=PATH`` moves all data sets and annotation files that lie in the file's own ``data_root``.

    Raises UserError for a file that is missing or no configuration, for an override of an unknown top-level key or of
    a variable (whose value was copied to where it is used when the file was read), and for what only mmdet's own runner
    can do: other loops than mmengine's two, hooks that change results and are not in `hook_names.ACTING`.
    """
    return checked(copy.deepcopy(_file(str(path))), overrides, str(path))


def _file(path: str) -> mmengine.Config:
    """Reads a file and gives it its ``name``; only once while it and the files below it stay as they are: mmengine
    takes a second for it, and the runs of a sweep differ by overrides alone. Raises UserError for an unreadable one."""
    if path in _FILES and (stamps := _stamps(_FILES[path][0])) and stamps == _FILES[path][1]:
        return _FILES[path][0]
    try:
        with system_errors(f"{path}: no configuration can be read there"):
            cfg = mmengine.Config.fromfile(path)
    except UserError:
        raise
    except Exception as error:  # whatever the file's own code, or mmengine reading it, may raise
        raise UserError(f"{path}: not a configuration: {type(error).__name__}: {error}") from error
    cfg.setdefault("name", Path(path).stem)
    _FILES[path] = cfg, _stamps(cfg)
    return cfg


def _stamps(cfg: mmengine.Config) -> dict[str, int] | None:
    """Tells when the files of a configuration were changed; None where mmengine, which puts a line with its path before
    the text of each, does not say so of all (it does not of those that are imported), or one is gone."""
    files = [line for line in cfg.text.splitlines() if line.endswith(".py") and os.path.isabs(line)]
    if os.path.abspath(cfg.filename) not in files:
        return None
    try:
        return {file: os.stat(file).st_mtime_ns for file in files}
    except OSError:
        return None


def config_from_values(
    values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration"
) -> DetectionConfig:
    """Returns the configuration that `DetectionConfig.to_dict` gave, as checkpoints hold it, with overrides."""
    return checked(mmengine.Config(dict(values)), overrides, source)


def use_scope(cfg: mmengine.Config) -> None:
    """Registers mmdet's modules and makes mmdet's registries, or what the configuration says, those searched first."""
    from mmdet.utils import register_all_modules

    if imports := cfg.get("custom_imports"):  # which mmengine heeds only where it reads a file
        try:
            import_modules_from_strings(**imports)
        except (ImportError, TypeError) as error:
            raise UserError(f"which cannot be imported: {error}", key="custom_imports", value=dict(imports)) from error
    register_all_modules(init_default_scope=False)
    with quiet(logging.ERROR):  # it warns of a scope that takes the place of another
        init_default_scope(cfg.get("default_scope") or "mmdet")


def build(registry: Registry, settings: Mapping[str, Any], key: str, **defaults: Any) -> Any:
    """Builds what ``settings`` describe by the registry. ``defaults`` stand where the settings say nothing. Raises
    UserError that names ``key`` where the type is unknown or does not take the settings, which stay as they are."""
    try:
        return registry.build(dict(settings), default_args=defaults or None)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        raise UserError(f"key '{key}' ({settings.get('type')}) cannot be built: {text[:600]}") from error


@contextmanager
def quiet(level: int = logging.WARNING, logger: logging.Logger | None = None) -> Iterator[None]:
    """Silences what is logged below a level, by default what mmengine logs: it has a line for every parameter."""
    logger = logger or MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def checked(cfg: mmengine.Config, overrides: Iterable[str], source: str) -> DetectionConfig:
    """Returns the configuration that a file's content makes with overrides, which change ``cfg``; raises as
    `load_detection_config` does. Overrides come first: what is not given, as ``seed``, other keys say."""
    for override in overrides:
        _override(cfg, override, source)
    if missing := [key for key in NEEDED if cfg.get(key) is None]:
        raise UserError(f"{source}: key '{missing[0]}' is missing, expected {', '.join(NEEDED)}")
    ours = {key: cfg[key] for key in OURS if key in cfg}
    ours.setdefault("seed", (cfg.get("randomness") or {}).get("seed") or 0)
    if isinstance(ours.setdefault("trainer", {}), Mapping):  # else the schema says what is wrong
        ours["trainer"] = _told_elsewhere(cfg) | dict(ours["trainer"])
    run = merged(RunConfig, [(source, plain(ours))], ())
    with located(source):
        check_sequences(cfg.to_dict())
        _check_supported(cfg, run)
    return DetectionConfig(cfg, run)


def _override(cfg: mmengine.Config, override: str, source: str) -> None:
    key, text = split_override(override)
    first, *rest = key
    if key == ("data_root",) and isinstance(cfg.get(first), str):
        return _move_data(cfg, text, source)
    if first not in KNOWN:
        raise UserError(f"{override}: {_no_key(cfg, first, source)}")
    with located(override):
        if first in OURS:
            value = read_value(RunConfig, key, text)
        else:  # no schema knows the key: what stands there says what it takes, but for a few
            takes = TAKES.get(joined(key)) or annotation_of(standing({first: cfg.get(first)}, key))
            value = read_text(text, takes, joined(key))
        cfg[first] = put(cfg.get(first), tuple(rest), value, (first,))


def _no_key(cfg: mmengine.Config, first: str, source: str) -> str:
    if first in cfg:
        held = f"'{first}' is a variable of {source}, and what it is used for holds its value already"
        return f"{held}; set that instead, for example train_dataloader.dataset..."
    keys = sorted(KNOWN & set(cfg.keys()))
    close = difflib.get_close_matches(first, sorted(KNOWN), n=1)
    hint = f", did you mean '{close[0]}'?" if close else f"; keys of {source}: {', '.join(keys)}"
    return f"unknown key '{first}'{hint}"


def _move_data(cfg: mmengine.Config, root: str, source: str) -> None:
    """Puts another folder in place of ``data_root`` wherever a path of the configuration begins with it."""
    old = cfg.data_root.rstrip("/")
    if not root or not old:
        raise UserError(f"data_root={root}: 'data_root' is {cfg.data_root!r} in {source}, expected a folder in both")

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(moved, value))
        inside = isinstance(value, str) and (value.rstrip("/") == old or value.startswith(old + "/"))
        return root.rstrip("/") + value[len(old) :] if inside else value

    parts = [key for key in cfg if key.endswith(("_dataloader", "_evaluator"))] + ["data_root"]
    cfg.merge_from_dict({key: moved(cfg[key]) for key in parts if cfg[key] is not None})


def _told_elsewhere(cfg: mmengine.Config) -> dict[str, Any]:
    """Returns what mmdet says elsewhere of section ``trainer``: mixed precision by the optimiser wrapper's type,
    synchronised batch normalisation by ``sync_bn``; memory is laid out as mmdet has it."""
    wrapper, told = cfg.optim_wrapper, {"channels_last": False}
    if "AmpOptimWrapper" in str(wrapper.get("type")):
        told["precision"] = "bf16-mixed" if wrapper.get("dtype") == "bfloat16" else "16-mixed"
    return told | ({"sync_batchnorm": True} if cfg.get("sync_bn") else {})


def _check_supported(cfg: mmengine.Config, run: RunConfig) -> None:
    """Raises UserError for what only mmdet's own runner can do, and for what detectors cannot be trained with."""
    loop, trainer = Loop.of(cfg.train_cfg), run.trainer
    check_hooks(cfg, loop)
    accumulated, here = cfg.optim_wrapper.get("accumulative_counts", 1), trainer.accumulate_grad_batches
    count = isinstance(accumulated, int) and accumulated >= 1
    clip, accumulates = "optim_wrapper.clip_grad", "optim_wrapper.accumulative_counts"
    rules = [
        ("trainer.precision", trainer.precision, trainer.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ("trainer.compile", trainer.compile, not trainer.compile, "false: detectors are not compiled"),
        (
            "trainer.gradient_clip_val",
            trainer.gradient_clip_val,
            trainer.gradient_clip_val is None,
            f"null: key '{clip}' clips",
        ),
        ("load_from", cfg.get("load_from"), cfg.get("load_from") != "", "a file, or null"),
        (accumulates, accumulated, count, "an integer of at least 1"),
        ("trainer.accumulate_grad_batches", here, 1 in (here, accumulated), f"1: key '{accumulates}' is {accumulated}"),
        (
            "trainer.accumulate_grad_batches",
            here,
            here == 1 or not loop.by_iterations,
            f"1: iterations of 'train_cfg' are batches, of which key '{accumulates}' makes steps",
        ),
    ]
    for key, value, holds, expected in rules:
        if not holds:
            raise UserError(f"expected {expected}", key=key, value=value)


def plain(value: Any, key: str = "") -> Any:
    """Returns mmengine's dictionaries as plain ones. Raises UserError for values that are no plain data."""
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item, key) for item in value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UserError("expected plain data: text, number, list or dict", key=key, value=value)
