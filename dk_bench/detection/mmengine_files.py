"""Checkpoints that mmengine reads and writes: ours say what it looks for, and its own can be read back.

mmengine's runner leaves, beside weights, the history of what it logged. From torch 2.6 on ``torch.load`` refuses that
unless it is told which classes are safe; `allow_what_mmengine_writes` names them, and nothing else.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

STATISTICS = ("min", "max", "current", "mean")  # the methods that a HistoryBuffer is saved with


def allow_what_mmengine_writes() -> None:
    """Lets ``torch.load`` read mmengine's histories and the numbers of numpy in them, with ``weights_only=True``.

    All with their names: what is allowed as an object alone, onedl's mmengine forbids again after its own loads.
    """
    classes = {HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd")}
    # numpy 1 and 2 have two names for the same functions; a file may come from either.
    named = [
        (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    named += [(each, f"{each.__module__}.{each.__qualname__}") for each in classes]
    named.append((_method_of_a_history, "builtins.getattr"))
    torch.serialization.add_safe_globals(named)


def _method_of_a_history(owner: Any, name: str) -> Callable:
    """Stands for ``getattr``, by which pickle writes down methods, and gives a history's statistics alone."""
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f"getattr of {name!r}, expected {', '.join(STATISTICS)} of a HistoryBuffer")
    return getattr(HistoryBuffer, name)


def add_for_mmengine(
    checkpoint: dict[str, Any], config: Mapping[str, Any], dataset_meta: Mapping[str, Any], done: Mapping[str, int]
) -> None:
    """Adds to a checkpoint of ours what mmengine looks for: so mmdet's tools load it, and its runner goes on from it.

    Args:
        checkpoint: as Lightning is about to write it, of a detector.
        config: the configuration as plain data.
        dataset_meta: ``classes``, the names in order of their labels, and ``palette``, a colour each, where known.
        done: ``epoch`` and ``iter`` as mmengine counts them; empty where its runner could not go on from there.
    """
    text = "".join(f"{key} = {value!r}\n" for key, value in config.items())
    meta = {"cfg": text, "seed": config.get("seed"), "dataset_meta": plain_meta(dataset_meta)}
    checkpoint["meta"] = {**done, **meta}
    checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}
    if "optimizer_states" in checkpoint:  # not where weights alone are saved; the same tensors, written once
        checkpoint["optimizer"] = checkpoint["optimizer_states"][0]
        checkpoint["param_schedulers"] = checkpoint["lr_schedulers"][0]["schedulers"]


def plain_meta(dataset_meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns names and colours of the classes as plain data. Where there is no colour for each, mmdet draws some."""
    plain, palette = {"classes": tuple(map(str, dataset_meta["classes"]))}, dataset_meta.get("palette")
    if isinstance(palette, Sequence) and not isinstance(palette, str):
        plain["palette"] = [tuple(map(int, colour)) for colour in palette]
    return plain
