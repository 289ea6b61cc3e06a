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
    conv3x3: str = "rigid"  # of larger ones, 3x3 in the paper: depthwise "local 4x4", others "dense local 4x4"
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
    """A choice among a model's convolutions."""

    depthwise: bool | None = None  # whether they are; None for both
    size: int | None = None  # K of a K x K kernel; None for any
    stride: int = 0  # the lowest output stride
    pointwise: bool = True  # whether 1x1 kernels are of any size

    def include(self, conv: nn.Module, output_stride: int) -> bool:
        """Tells whether a convolution of this output stride is one of them."""
        any_size = self.size is None and (self.pointwise or conv.kernel_size != (1, 1))
        of_size = any_size or conv.kernel_size == (self.size, self.size)
        return of_size and self.depthwise in (None, is_depthwise_kernel(conv)) and output_stride >= self.stride

    @property
    def kind(self) -> str:
        """Returns "depthwise ", "dense " or nothing: to stand before a noun."""
        return {True: "depthwise ", False: "dense ", None: ""}[self.depthwise]

    def __str__(self) -> str:
        size = f"{self.size}x{self.size} " if self.size else ""
        larger = " larger than 1x1" if self.size is None and not self.pointwise else ""
        stride = f" of output stride {self.stride} or more" if self.stride else ""
        return f"{self.kind}{size}convolution{larger}{stride}"


def is_depthwise_kernel(conv: nn.Module) -> bool:
    """Tells whether a convolution is depthwise for a spec: one channel alone counts as dense."""
    return conv.groups > 1 and is_depthwise(conv)


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


def _larger(depthwise: bool, spec: "KernelSpec", stride: int = 0) -> Convolutions:
    return Convolutions(depthwise, spec.kernel_size, stride, pointwise=False)


def _scope(conv: nn.Conv2d, spec: "KernelSpec") -> dict[str, Any]:
    return {"scope": tuple(size + spec.margin for size in conv.kernel_size), "clip": spec.clip, "grid": spec.grid}


def _scope_words(kind: str, spec: "KernelSpec") -> dict[str, str]:
    taps = [spec.grid] * (spec.margin > 0) + ["unclipped"] * (not spec.clip)
    any_size = "K" + f"+{spec.margin}" * (spec.margin > 0)
    scope = f"{spec.scope}x{spec.scope}" if spec.kernel_size else f"{any_size} for every K"
    return {"conv3x3": f"{kind} {scope}", "taps": ", ".join(taps)}


def _pointwise_words(spec: "KernelSpec") -> dict[str, str]:
    alone = not (spec.depthwise or spec.dense)  # whose words say it of all kernels
    unclipped = ", unclipped" * (alone and not spec.clip)
    return {"pw": f"{spec.pointwise} {spec.pointwise_scope}x{spec.pointwise_scope}{unclipped}"}


def _dense_dcn_words(spec: "KernelSpec") -> dict[str, str]:
    groups = f", {spec.dense_dcn_groups} groups" if spec.dense_dcn_groups > 1 else ""
    return {"combined": f"full DCN {spec.dense_dcn} from stride {spec.dense_dcn_min_stride}{groups}"}


_KERNELS = {"local": DeformKernel2d, "global": GlobalDeformKernel2d}

RULES = (
    Rule(
        ("depthwise", "dcn"),
        lambda spec: _larger(True, spec, spec.dcn_min_stride),
        lambda conv, spec: DeformKernelConv2d.from_rigid(conv, **_scope(conv, spec)),
    ),
    Rule(
        ("depthwise",),
        lambda spec: _larger(True, spec),
        lambda conv, spec: _KERNELS[spec.depthwise].from_rigid(conv, **_scope(conv, spec)),
        lambda spec: _scope_words(spec.depthwise, spec),
    ),
    Rule(
        ("dcn",),
        lambda spec: _larger(True, spec, spec.dcn_min_stride),
        lambda conv, spec: DeformConv2d.from_rigid(conv),
        lambda spec: {"combined": "DCN"},
    ),
    Rule(
        ("dense", "dense_dcn"),
        lambda spec: _larger(False, spec, spec.dense_dcn_min_stride),
        lambda conv, spec: DeformKernelConv2d.from_rigid(conv, **_scope(conv, spec)),
    ),
    Rule(
        ("dense",),
        lambda spec: _larger(False, spec),
        lambda conv, spec: _KERNELS[spec.dense].from_rigid(conv, **_scope(conv, spec)),
        lambda spec: _scope_words(f"dense {spec.dense}", spec),
    ),
    Rule(
        ("dense_dcn",),
        lambda spec: _larger(False, spec, spec.dense_dcn_min_stride),
        lambda conv, spec: DeformConv2d.from_rigid(
            conv, deform_groups=spec.dense_dcn_groups, modulated=spec.dense_dcn == "v2"
        ),
        _dense_dcn_words,
    ),
    Rule(
        ("pointwise",),
        lambda spec: Convolutions(size=1),
        lambda conv, spec: _KERNELS[spec.pointwise].from_rigid(conv, scope=spec.pointwise_scope, clip=spec.clip),
        _pointwise_words,
    ),
    Rule(
        ("experts",),
        lambda spec: Convolutions(),
        lambda conv, spec: CondConv2d.from_rigid(conv, experts=spec.experts),
        lambda spec: {"combined": "SCC"},
    ),
)
