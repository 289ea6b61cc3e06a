"""KernelSpec: which convolutions of a rigid model change, and into what. Plain data."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from dk_bench.models.rules import RULES, Words
from dk_bench.nn.scope import GRIDS


def _one_of(*choices: str | None) -> Any:
    """Returns a field that takes one of the choices, the first if nothing is said."""
    return field(default=choices[0], metadata={"choices": choices})


def _at_least(low: int, default: int, none: bool = False) -> Any:
    """Returns a field that takes an int of at least ``low``; or, with ``none``, None."""
    return field(default=default, metadata={"low": low, "none": none})


@dataclass(frozen=True)
class KernelSpec:
    """Says what :func:`dk_bench.deform` makes of a rigid model's convolutions (Gao et al., ICLR 2020, section 4).

    Attributes:
        depthwise: deformable kernel of the depthwise convolutions: None (they stay rigid), "local" or "global".
        dense: deformable kernel of the K x K convolutions in the residual blocks that are not depthwise (grouped ones
            as ResNeXt's are among them): None, "local" or "global".
        kernel_size: size K of the depthwise and dense kernels that change, K x K, and others stay as they are; None for
            those of any size but 1x1, square or not.
        scope: size S of the kernel stored for each K x K one; at least K. With kernel_size None it is that of a 3x3
            one, and others are stored as much larger than themselves: K + S - 3 along each axis.
        pointwise: deformable kernel of the 1x1 convolutions in the residual blocks: None, "global" or "local".
        pointwise_scope: size of the kernel stored for each 1x1 one.
        experts: number of experts of conditional convolutions (SCC, Yang et al., NeurIPS 2019) on the convolutions in
            the residual blocks that none of the other fields changes; 0 for none.
        dcn: learn data offsets too (Dai et al., ICCV 2017) on the depthwise convolutions that change.
        dcn_min_stride: the lowest output stride at which a convolution gets data offsets.
        clip: keep sampling locations inside the scope.
        grid: where taps of K x K kernels start: "centred" in the scope, one sample apart, or "spread" over it.
        dense_dcn: full deformable convolution, on the K x K convolutions in the residual blocks that are not depthwise:
            None, "v1" (offsets; Dai et al., ICCV 2017) or "v2" (and a factor a tap; Zhu et al., CVPR 2019). With
            dense = "local", "v1" gives both, and convolutions of a lower output stride have deformable kernels alone.
        dense_dcn_min_stride: the lowest output stride at which a convolution takes part; 32 is ResNet's last stage
            (three convolutions of ResNet-50, as in the first paper), 8 are its last three (as in the second).
        dense_dcn_groups: groups of input channels with offsets of their own; the first paper has 1 and 4.
        dilate_last: give the last stage the stride 1, and its convolutions the dilation 2 (res5 of the first paper).
            This alone changes what the rigid model computes. Output strides above are those before it.
        everywhere: take convolutions outside of the residual blocks too: the stem's, those of shortcuts, and those that
            halve the map between two stages; not the classifier's, nor those of squeeze-and-excitation and attention.
            Does not go with experts.

    Raises:
        ValueError: a field has the wrong type or value, or two fields contradict each other.
    """

    depthwise: str | None = _one_of(None, "local", "global")
    dense: str | None = _one_of(None, "local", "global")
    kernel_size: int | None = _at_least(2, default=3, none=True)
    scope: int = _at_least(1, default=4)
    pointwise: str | None = _one_of(None, "global", "local")
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
    everywhere: bool = False

    # Which parts read a field; the others ask for changes themselves.
    READ_BY: ClassVar = {
        **dict.fromkeys(("scope", "grid"), ("depthwise", "dense")),
        "kernel_size": ("depthwise", "dense", "dcn", "dense_dcn"),
        "clip": ("depthwise", "dense", "pointwise"),
        "pointwise_scope": ("pointwise",),
        "dcn_min_stride": ("dcn",),
        **dict.fromkeys(("dense_dcn_min_stride", "dense_dcn_groups"), ("dense_dcn",)),
        "everywhere": ("depthwise", "dense", "pointwise", "dcn", "dense_dcn"),
    }
    PARTS: ClassVar = (*dict.fromkeys(part for rule in RULES for part in rule.parts), "dilate_last")  # ask for changes

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))
        if (self.depthwise or self.dense) and self.margin < 0:
            least = f"kernel_size = {self.kernel_size}" if self.kernel_size else "3, as that of a 3x3 kernel"
            raise ValueError(
                f"scope: expected at least {least}, so that the scope can hold the rigid kernel, got {self.scope}"
            )
        if self.experts == 1:
            raise ValueError("experts: expected 0 (none) or at least 2, got 1")
        if self.experts and self.pointwise:
            raise ValueError("experts and pointwise: both change the 1x1 convolutions; set one")
        if self.experts and self.everywhere:
            raise ValueError("experts and everywhere: conditional convolutions are for the blocks alone; set one")
        if self.dcn and self.depthwise == "global":
            raise ValueError('dcn: combines with depthwise None or "local", got depthwise = "global"')
        if self.dense and self.dense_dcn:
            self._check_both_on_dense()

    def _check_both_on_dense(self) -> None:
        """Raises ValueError unless kernels and data of dense convolutions can be deformed together."""
        if self.dense == "global":
            raise ValueError('dense_dcn: combines with dense None or "local", got dense = "global"')
        if self.dense_dcn != "v1":
            raise ValueError(
                'dense_dcn: combines with dense as "v1" alone, for deformable kernels have no factors on taps, got '
                f"{self.dense_dcn!r}"
            )
        if self.dense_dcn_groups > 1:
            raise ValueError(
                "dense_dcn_groups: expected 1 where dense is set, as its kernels have the same offsets for all "
                f"channels, got {self.dense_dcn_groups}"
            )

    @property
    def margin(self) -> int:
        """Returns by how much the scope is larger than the K x K kernel."""
        return self.scope - (self.kernel_size or 3)

    @property
    def is_rigid(self) -> bool:
        """Tells whether the spec changes nothing."""
        return not any(getattr(self, part) for part in self.PARTS)

    @property
    def words(self) -> Words:
        """Returns what tables, figures and messages say of the spec."""
        said = [rule.words(self) for rule in RULES if rule.is_asked(self)]
        said += [{"combined": "dilated"}] * self.dilate_last
        said += [{"combined": "everywhere"}] * (self.everywhere and not self.is_rigid)
        names = dict.fromkeys(name for words in said for name in words)
        joined = {name: dict.fromkeys(words[name] for words in said if name in words) for name in names}
        return Words(**{name: ", ".join(parts) for name, parts in joined.items()})

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain data (str, int, bool, None), as run records keep them."""
        return dataclasses.asdict(self)

    def changed(self) -> dict[str, Any]:
        """Returns the fields that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    def unread(self) -> dict[str, Any]:
        """Returns the fields that differ from their defaults without effect, as no part that reads them is set."""
        asked = [part for part in self.PARTS if getattr(self, part)]
        read = {name for name, parts in self.READ_BY.items() if not set(parts).isdisjoint(asked)}
        return {name: value for name, value in self.changed().items() if name in self.READ_BY.keys() - read}

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
        none = of.metadata["none"]
        fits = type(value) is int and value >= low or none and value is None
        expected = f"an int of at least {low}" + ", or None" * none
    else:
        fits, expected = type(value) is bool, "a bool"
    if not fits:
        raise ValueError(f"{of.name}: expected {expected}, got {value!r}")
