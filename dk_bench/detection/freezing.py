"""Freezes parts of a timm network in training: the stem and the first stages of feature pyramids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dk_bench.errors import UserError
from dk_bench.models.features import flat, outer_name

FIRST_STRIDE = 4  # of feature pyramids; what comes before a stage of this stride is the stem


def bad_argument(name: str, value: Any, reason: str) -> UserError:
    """Returns the error of an argument that cannot be used."""
    error = UserError(reason, key=name, value=value, noun="argument")
    error.places.append("TimmBackbone")
    return error


def last_of_each_stride(maps: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the positions of the maps after which the resolution changes, from `FIRST_STRIDE` on."""
    last = {one["reduction"]: i for i, one in enumerate(maps) if one["reduction"] >= FIRST_STRIDE}
    return sorted(last.values())


def frozen_names(net: nn.Module, stages: int) -> list[str]:
    """Names the modules in the stem and the first ``stages``, in the order of their making, which timm's models keep.

    A stage ends with the module that makes the last map of its stride. What is before the first is the stem: all up to
    the last map of a smaller stride or, where there is none, up to the module of stage 1.
    """
    if type(stages) is not int or stages < -1:
        raise bad_argument("frozen_stages", stages, "expected an integer of at least -1")
    if stages < 0:
        return []
    info = net.feature_info.info if hasattr(net.feature_info, "info") else list(net.feature_info)
    ends = [info[i]["module"] for i in last_of_each_stride(info)]
    if stages > len(ends):
        raise bad_argument("frozen_stages", stages, f"expected at most {len(ends)}, the number of stages")
    if stages:
        return _names_until(net, ends[stages - 1], inclusive=True)
    before = [one["module"] for one in info if one["reduction"] < FIRST_STRIDE]
    return _names_until(net, before[-1] if before else ends[0], inclusive=bool(before))


def without_open_ones(net: nn.Module, frozen: list[str]) -> list[str]:
    """Returns the frozen modules that hold nothing else: not the network, nor what contains all of its blocks."""
    rest = [name for name, _ in net.named_modules() if name not in set(frozen)]
    return [name for name in frozen if name and not any(other.startswith(name + ".") for other in rest)]


def _names_until(net: nn.Module, module: str, *, inclusive: bool) -> list[str]:
    """Returns the names of all modules before one, or up to its end."""
    names = [name for name, _ in net.named_modules()]
    outer = outer_name(net)
    inside = [i for i, name in enumerate(names) if f"{flat(name.removeprefix(outer))}_".startswith(f"{flat(module)}_")]
    if not inside:
        fault = f"cannot be followed: the network has no module {module}, with which a stage ends; set it to -1"
        raise UserError(f"TimmBackbone: argument 'frozen_stages' {fault}")
    return names[: inside[-1] + 1 if inclusive else inside[0]]
