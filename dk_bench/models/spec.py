"""KernelSpec: which convolutions of a rigid model change, and into what. Plain data."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from dk_bench.models.rules import RULES, Words
from dk_bench.nn.scope import GRIDS


def _one_of(*choices: str | None) -> Any:
    """Returns a field that takes one of the choices, the first if nothing is said."""
    return field(default=choices[0], metadata={"choices": choices})


def _at_least(low: int, default: int) -> Any:
    """Returns a field that takes an int of at least ``low``."""
    return field(default=default, metadata={"low": low})


@dataclass(frozen=True)
class KernelSpec:
    """Says what :func:`dk_bench.deform` makes of a rigid model's convolutions (Gao et al., ICLR 2020, section 4).

    Attributes:
        depthwise: deformable kernel of the depthwise convolutions: None (they stay rigid), "local" or "global".
        kernel_size: size K of the depthwise kernels that change, K x K; others stay as they are.
        scope: size S of the kernel stored for each K x K depthwise one; at least K.
        pointwise: deformable kernel of the 1x1 convolutions in the residual blocks: None or "global".
        pointwise_scope: size of the kernel stored for each 1x1 one.
        experts: number of experts of conditional convolutions (SCC, Yang et al., NeurIPS 2019) on the convolutions in
            the residual blocks that none of the other fields changes; 0 for none.
        dcn: learn data offsets too (Dai et al., ICCV 2017) on the depthwise convolutions that change.
        dcn_min_stride: the lowest output stride at which a convolution gets data offsets.
        clip: keep sampling locations inside the scope.
        grid: where taps of depthwise kernels start: "centred" in the scope, one sample apart, or "spread" over it.
        dense_dcn: full deformable convolution, on the K x K convolutions in the residual blocks that are not depthwise:
            None, "v1" (offsets; Dai et al., ICCV 2017) or "v2" (and a factor a tap; Zhu et al., CVPR 2019).
        dense_dcn_min_stride: the lowest output stride at which a convolution takes part; 32 is ResNet's last stage
            (three convolutions of ResNet-50, as in the first paper), 8 are its last three (as in the second).
        dense_dcn_groups: groups of input channels with offsets of their own; the first paper has 1 and 4.
        dilate_last: give the last stage the stride 1, and its convolutions the dilation 2 (res5 of the first paper).
            This alone changes what the rigid model computes. Output strides above are those before it.

    Raises:
        ValueError: a field has the wrong type or value, or two fields contradict each other.
    """

    depthwise: str | None = _one_of(None, "local", "global")
    kernel_size: int = _at_least(2, default=3)
    scope: int = _at_least(1, default=4)
    pointwise: str | None = _one_of(None, "global")
    pointwise_scope: int = _at_least(1, default=2)
    experts: int = _at_least(0, default=0)
    dcn: bool = False
    dcn_min_stride: int = _at_least(1, default=8)
    clip: bool = True
    grid: str = _one_of(*GRIDS)
    dense_dcn: str | None = _one_of(None, "v1", "v2")
    dense_dcn_min_stride: int = _at_least(1, default=32)
    dense_dcn_groups: int = _at_least(1, default=1)
    dilate_last: bool = False

    PARTS: ClassVar = (*dict.fromkeys(part for rule in RULES for part in rule.parts), "dilate_last")  # ask for changes

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))
        if self.depthwise and self.scope < self.kernel_size:
            raise ValueError(
                f"scope: expected at least kernel_size = {self.kernel_size}, so that the scope can hold the rigid "
                f"kernel, got {self.scope}"
            )
        if self.experts == 1:
            raise ValueError("experts: expected 0 (none) or at least 2, got 1")
        if self.experts and self.pointwise:
            raise ValueError("experts and pointwise: both change the 1x1 convolutions; set one")
        if self.dcn and self.depthwise == "global":
            raise ValueError('dcn: combines with depthwise None or "local", got depthwise = "global"')

    @property
    def is_rigid(self) -> bool:
        """Tells whether the spec changes nothing."""
        return not any(getattr(self, part) for part in self.PARTS)

    @property
    def words(self) -> Words:
        """Returns what tables, figures and messages say of the spec."""
        said = [rule.words(self) for rule in RULES if rule.is_asked(self)]
        said += [{"combined": "dilated"}] * self.dilate_last
        names = dict.fromkeys(name for words in said for name in words)
        return Words(**{name: ", ".join(words[name] for words in said if name in words) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain data (str, int, bool, None), as run records keep them."""
        return dataclasses.asdict(self)

    def changed(self) -> dict[str, Any]:
        """Returns the fields that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Returns the inverse of :meth:`to_dict`; fields left out have their defaults. Raises ValueError for an unknown
        key, and as the constructor does."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(fields)):
            keys = ", ".join(map(repr, unknown))
            raise ValueError(f"KernelSpec: unknown key {keys}, expected some of {', '.join(fields)}")
        return cls(**data)


def _check(of: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError for what a field does not take."""
    if choices := of.metadata.get("choices"):
        fits, expected = value in choices, f"one of {choices}"
    elif (low := of.metadata.get("low")) is not None:
        fits, expected = type(value) is int and value >= low, f"an int of at least {low}"
    else:
        fits, expected = type(value) is bool, "a bool"
    if not fits:
        raise ValueError(f"{of.name}: expected {expected}, got {value!r}")
