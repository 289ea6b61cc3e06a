"""What a spec makes of each of a model's convolutions, and why the others stay: :func:`dk_bench.deform` in words."""

import copy
from typing import NamedTuple

from torch import nn

from dk_bench.models.blocks import ATTENTION, CLASSIFIER, SHORTCUT, STEM
from dk_bench.models.matching import Match, asked_of, match, needs_strides, takes_part
from dk_bench.models.probe import output_strides
from dk_bench.models.rules import is_depthwise_kernel
from dk_bench.models.spec import KernelSpec
from dk_bench.nn import RigidStart2d

_PLACES = {
    STEM: "in the stem",
    SHORTCUT: "of a shortcut or between stages",
    ATTENTION: "of squeeze-and-excitation or attention",
    CLASSIFIER: "of the classifier",
}


class Outcome(NamedTuple):
    """What becomes of a convolution."""

    name: str  # as in ``model.named_modules()``
    kernel: str  # "dense 3x3" or "depthwise 7x7"; grouped ones that are not depthwise are dense
    layer: str  # the class that takes its place; empty where it stays
    reason: str  # why it stays; empty where it does not

    def __str__(self) -> str:
        return f"{self.name}: {self.kernel}, " + (self.layer or f"stays: {self.reason}")


def outcomes_of(model: nn.Module, spec: KernelSpec) -> list[Outcome]:
    """Tells what :func:`dk_bench.deform` makes of each convolution of a rigid model; or what it made, of a model that
    it has deformed by this spec. The model stays as it is.

    Convolutions stand in the order of ``model.named_modules()``. A spec that ``deform`` refuses is none here: where a
    part of it matches nothing, the reasons say what there is instead, and a convolution of a kind that cannot change
    (timm's ``Conv2dSame``) has that for a reason.
    """
    strides = output_strides(model) if needs_strides(spec) else {}
    return [_outcome(each, spec) for each in match(model, spec, strides)]


def _outcome(of: Match, spec: KernelSpec) -> Outcome:
    kernel = f"{'depthwise' if is_depthwise_kernel(of.conv) else 'dense'} {'x'.join(map(str, of.conv.kernel_size))}"
    if isinstance(of.conv, RigidStart2d):
        return Outcome(of.name, kernel, type(of.conv).__name__, "")
    if of.rule is None:
        return Outcome(of.name, kernel, "", _reason(of, spec))
    try:
        return Outcome(of.name, kernel, type(of.rule.make(_without_values(of.conv), spec)).__name__, "")
    except ValueError as error:
        return Outcome(of.name, kernel, "", f"cannot be deformed: {error}")


def _reason(of: Match, spec: KernelSpec) -> str:
    """Returns why no rule changes a convolution."""
    if not takes_part(of.place, spec):
        return _PLACES[of.place]
    asked = asked_of(spec).values()
    if low := [each.stride for each in asked if each._replace(stride=0).include(of.conv, 0)]:
        return f"of output stride {of.output_stride}, below {min(low)}"
    kinds = dict.fromkeys(str(each._replace(stride=0)) for each in asked)
    return f"no {' or '.join(kinds)}" if kinds else "the spec asks for nothing"


def _without_values(conv: nn.Conv2d) -> nn.Conv2d:
    """Returns a copy of a convolution on the meta device, of which a layer is made at no cost."""
    made = copy.copy(conv)
    made._parameters = {key: None if held is None else held.to("meta") for key, held in conv._parameters.items()}
    return made
