"""Weights in files: what a file holds, ours or another tool's, and by which names our checkpoints call them.

Lightning puts the module's attribute before every name (``model.conv1.weight``), so that neither timm nor mmdet finds
a tensor. Ours have the model's own names in ``state_dict``, what else the module keeps in ``module_state``.
"""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor

from dk_bench.errors import UserError
from dk_bench.files import read_json

MODEL_PREFIX = "model."  # the Lightning modules' attribute that holds the model
MODULE_STATE = "module_state"  # of checkpoints with the model's own names; older ones have no such key
IN_FOLDERS = ("last.ckpt", "model.safetensors", "pytorch_model.bin")  # of a run, of timm's hub layout
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")  # of weights in a file, the average first, as for timm


def to_own_names(checkpoint: dict[str, Any]) -> None:
    """Gives the weights that Lightning is about to write the model's own names; for ``on_save_checkpoint``."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = _of_the_model(state)
    checkpoint[MODULE_STATE] = {name: value for name, value in state.items() if not name.startswith(MODEL_PREFIX)}


def to_lightning_names(checkpoint: dict[str, Any]) -> None:
    """Undoes `to_own_names`, for ``on_load_checkpoint``; an older checkpoint has Lightning's names already."""
    if MODULE_STATE in checkpoint:
        state = {MODEL_PREFIX + name: value for name, value in checkpoint["state_dict"].items()}
        checkpoint["state_dict"] = state | checkpoint[MODULE_STATE]


def weights_in(content: Any) -> dict[str, Tensor]:
    """Returns the model's weights by its own names, nothing where there are none.

    ``content`` is a checkpoint of ours, also an older one, or of timm's or mmengine's training, or a bare dict of
    tensors. Of a run with averaged weights it is the average.
    """
    if not isinstance(content, Mapping):
        return {}
    if is_ours(content):
        state = content.get("state_dict") or {}
        return dict(state) if MODULE_STATE in content else _of_the_model(state)
    held = [content[place] for place in PLACES if isinstance(content.get(place), Mapping)]
    state = clean_state_dict(held[0] if held else content)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_ours(content: Any) -> bool:
    """Tells whether a file's content is a checkpoint that `train` left, which says what model it is of."""
    held = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return isinstance(held, Mapping) and {"config", "classes"} <= set(held)


def _of_the_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(MODEL_PREFIX): v for name, v in state.items() if name.startswith(MODEL_PREFIX)}


def exported_as(path: str | Path) -> dict[str, Any] | None:
    """Tells what timm's hub layout says of the weights at ``path``, a folder or the file in it: timm's name of the
    ``architecture``, its ``model_args``, ``num_classes``. None where no such ``config.json`` goes with them. Raises
    UserError for a damaged one."""
    path = Path(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if (not path.is_dir() and path.name not in IN_FOLDERS[1:]) or not config.is_file():
        return None
    content = read_json(config)
    return content if isinstance(content, dict) and isinstance(content.get("architecture"), str) else None


def _file_of(path: str | Path) -> str | Path:
    """Returns the file of weights in a folder, of others the path itself. Raises UserError for a folder without any."""
    if not Path(path).is_dir():
        return path
    if not (found := [file for name in IN_FOLDERS if (file := Path(path, name)).is_file()]):
        raise UserError(f"{path}: holds no weights, expected {' or '.join(IN_FOLDERS[:2])} in it")
    return found[0]


def read_plain(path: str | Path) -> Any:
    """Tells what torch.save or safetensors wrote, its tensors on the CPU; nothing in it can run code. Of a run's folder
    and of one in timm's hub layout it is the file of weights.

    Raises UserError for a file that is missing, was not written so, is damaged, or holds more than plain data.
    """
    path = _file_of(path)
    try:
        _check_whole(path)
        if str(path).endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py keeps its arguments so
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint can be read there: {error.strerror or error}") from error
    except Exception as error:  # whatever bytes that torch did not write make its reader raise
        raise UserError(f"{path}: not a checkpoint of plain data{_more_in(path, error)}") from error


def write_plain(content: Any, stream: BinaryIO) -> None:
    """Writes what `read_plain` reads. Raises OSError where the stream does: torch has other words for a full disk."""
    try:
        torch.save(content, stream)
    except RuntimeError as error:  # torch's "unexpected pos", while it handles what the stream raised
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _check_whole(path: str | Path) -> None:
    """Raises zipfile.BadZipFile for a file of torch.save's of which a part is not what was written: torch does not look
    at the checksums, and would give other weights."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        for part in (part for part in file.infolist() if part.CRC):  # torch can be told to write none
            with file.open(part) as stream:
                while stream.read(2**20):
                    pass


def _more_in(path: str | Path, error: Exception) -> str:
    """Tells what else than plain data is in a file, and how its weights are had all the same."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # noqa: BLE001  whatever a file that torch did not write makes its reader raise
        names = []
    if not names:
        if isinstance(error, zipfile.BadZipFile):
            return f": it is damaged ({error})"
        known = isinstance(error, RuntimeError | safetensors.SafetensorError)  # others speak of torch's insides
        return (
            f": {str(error).splitlines()[0].partition('. ')[0] if known else 'its bytes are not those of torch.save'}"
        )
    # A module that was saved whole holds the classes of its parts, which all hold their parameters in ordered dicts.
    weights = ".state_dict()" if any(name.startswith("torch.nn.modules.") for name in names) else "['state_dict']"
    return (
        f", it holds {', '.join(names[:3])}. If you trust it: torch.save({{'state_dict': "
        f"torch.load({str(path)!r}, weights_only=False){weights}}}, NEW), and give NEW"
    )
