"""Rules that say which layer takes a convolution's place: of those of a spec, the first that the convolution matches.

A new kind of layer is a field of :class:`dk_bench.KernelSpec`, which asks for it, and a rule here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from dk_bench.nn import CondConv2d, DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d, RigidStart2d
from dk_bench.nn.convolution import is_depthwise

if TYPE_CHECKING:
    from dk_bench.models.spec import KernelSpec


class Words(NamedTuple):
    """Holds what tables, figures and messages say of a spec, in the words of the paper's tables."""

    pw: str = "rigid"  # kernels of the 1x1 convolutions, as "global 2x2"
    conv3x3: str = "rigid"  # of the depthwise convolutions, 3x3 in the paper, as "local 4x4"
    taps: str = ""  # where those start and may go, of which the paper's tables say nothing: "centred, unclipped"
    combined: str = ""  # what else changes, as "DCN" or "SCC"

    @property
    def columns(self) -> tuple[str, str, str]:
        """Returns the cells of tables: 1x1, 3x3, combined with."""
        return self.pw, ", ".join(filter(None, (self.conv3x3, self.taps))), self.combined

    def __str__(self) -> str:
        """Returns all in one line, without the rigid, as "DCN + local 4x4, centred + 1x1 global 2x2"."""
        pw, conv3x3, combined = self.columns
        said = [combined, conv3x3 * (conv3x3 != "rigid"), f"1x1 {pw}" * (pw != "rigid")]
        return " + ".join(filter(None, said)) or "rigid"


class Convolutions(NamedTuple):
    """A choice among the convolutions in a model's blocks."""

    depthwise: bool | None = None  # whether they are; None for both
    size: int | None = None  # K of a K x K kernel; None for any
    stride: int = 0  # the lowest output stride

    def include(self, conv: nn.Conv2d, output_stride: int) -> bool:
        """Tells whether a convolution of a block, of this output stride, is one of them."""
        of_size = self.size is None or conv.kernel_size == (self.size, self.size)
        depthwise = conv.groups > 1 and is_depthwise(conv)  # one channel alone counts as dense
        return of_size and self.depthwise in (None, depthwise) and output_stride >= self.stride

    @property
    def kind(self) -> str:
        """Returns "depthwise ", "dense " or nothing: to stand before a noun."""
        return {True: "depthwise ", False: "dense ", None: ""}[self.depthwise]

    def __str__(self) -> str:
        size = "" if self.size is None else f"{self.size}x{self.size} "
        stride = f" of output stride {self.stride} or more" if self.stride else ""
        return f"{self.kind}{size}convolution{stride} in a block"


@dataclass(frozen=True)
class Rule:
    """One kind of layer."""

    parts: tuple[str, ...]  # fields of the spec that ask for it, all of them together
    matches: Callable[["KernelSpec"], Convolutions]  # the convolutions it takes the place of
    make: Callable[[nn.Conv2d, "KernelSpec"], RigidStart2d]  # the layer, from a rigid convolution
    # What to say of it, by the fields of `Words`; nothing where the rules of its parts alone say it.
    words: Callable[["KernelSpec"], dict[str, str]] = lambda spec: {}

    def is_asked(self, spec: "KernelSpec") -> bool:
        """Tells whether a spec asks for it."""
        return all(getattr(spec, part) for part in self.parts)


def _scope(spec: "KernelSpec") -> dict[str, Any]:
    return {"scope": spec.scope, "clip": spec.clip, "grid": spec.grid}


def _depthwise_words(spec: "KernelSpec") -> dict[str, str]:
    taps = [spec.grid] * (spec.scope > spec.kernel_size) + ["unclipped"] * (not spec.clip)
    return {"conv3x3": f"{spec.depthwise} {spec.scope}x{spec.scope}", "taps": ", ".join(taps)}


def _dense_dcn_words(spec: "KernelSpec") -> dict[str, str]:
    groups = f", {spec.dense_dcn_groups} groups" if spec.dense_dcn_groups > 1 else ""
    return {"combined": f"full DCN {spec.dense_dcn} from stride {spec.dense_dcn_min_stride}{groups}"}


_DEPTHWISE = {"local": DeformKernel2d, "global": GlobalDeformKernel2d}

RULES = (
    Rule(
        ("depthwise", "dcn"),
        lambda spec: Convolutions(True, spec.kernel_size, spec.dcn_min_stride),
        lambda conv, spec: DeformKernelConv2d.from_rigid(conv, **_scope(spec)),
    ),
    Rule(
        ("depthwise",),
        lambda spec: Convolutions(True, spec.kernel_size),
        lambda conv, spec: _DEPTHWISE[spec.depthwise].from_rigid(conv, **_scope(spec)),
        _depthwise_words,
    ),
    Rule(
        ("dcn",),
        lambda spec: Convolutions(True, spec.kernel_size, spec.dcn_min_stride),
        lambda conv, spec: DeformConv2d.from_rigid(conv),
        lambda spec: {"combined": "DCN"},
    ),
    Rule(
        ("dense_dcn",),
        lambda spec: Convolutions(False, spec.kernel_size, spec.dense_dcn_min_stride),
        lambda conv, spec: DeformConv2d.from_rigid(
            conv, deform_groups=spec.dense_dcn_groups, modulated=spec.dense_dcn == "v2"
        ),
        _dense_dcn_words,
    ),
    Rule(
        ("pointwise",),
        lambda spec: Convolutions(size=1),
        lambda conv, spec: GlobalDeformKernel2d.from_rigid(conv, scope=spec.pointwise_scope, clip=spec.clip),
        lambda spec: {"pw": f"{spec.pointwise} {spec.pointwise_scope}x{spec.pointwise_scope}"},
    ),
    Rule(
        ("experts",),
        lambda spec: Convolutions(),
        lambda conv, spec: CondConv2d.from_rigid(conv, experts=spec.experts),
        lambda spec: {"combined": "SCC"},
    ),
)
