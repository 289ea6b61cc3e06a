"""The models of the paper's tables 1 and 2, small ones like them, and ones beyond the paper: each is a rigid base and a
kernel spec."""

from collections.abc import Iterator
from dataclasses import dataclass

from dk_bench.models.spec import KernelSpec


@dataclass(frozen=True)
class Variant:
    """A rigid base and the spec that deforms it."""

    base: str  # timm name of the rigid model
    suffix: str  # what the deformed model's name adds to it; "" for the base itself
    spec: KernelSpec

    @property
    def name(self) -> str:
        """Returns the timm name, for example ``resnet50dw_dk``."""
        return self.base + self.suffix


def _variants(base: str, experts: int, dcn_min_stride: int = 8) -> Iterator[Variant]:
    """Yields a base's models in the order of the paper's rows. dk: local, gdk: global, sN: scope N, default 4."""
    dcn = {"dcn": True, "dcn_min_stride": dcn_min_stride}
    yield Variant(base, "", KernelSpec())
    yield Variant(base, "_dk_s3", KernelSpec(depthwise="local", scope=3))
    yield Variant(base, "_dk", KernelSpec(depthwise="local"))
    yield Variant(base, "_dk_s5", KernelSpec(depthwise="local", scope=5))
    yield Variant(base, "_dk_s9", KernelSpec(depthwise="local", scope=9))
    yield Variant(base, "_gdk", KernelSpec(depthwise="global"))
    yield Variant(base, "_gdk_pw", KernelSpec(depthwise="global", pointwise="global"))
    yield Variant(base, "_dk_pw", KernelSpec(depthwise="local", pointwise="global"))
    yield Variant(base, "_scc", KernelSpec(experts=experts))
    yield Variant(base, "_scc_dk", KernelSpec(experts=experts, depthwise="local"))
    yield Variant(base, "_dcn", KernelSpec(**dcn))
    yield Variant(base, "_dcn_dk", KernelSpec(depthwise="local", **dcn))


def _dense(base: str, dcn_min_stride: int = 8) -> Iterator[Variant]:
    """Yields models of an ordinary base whose dense convolutions are deformable, as the paper's depthwise ones are."""
    full = {"dense_dcn": "v1", "dense_dcn_min_stride": dcn_min_stride}
    yield Variant(base, "", KernelSpec())
    yield Variant(base, "_dk_s3", KernelSpec(dense="local", scope=3))
    yield Variant(base, "_dk", KernelSpec(dense="local"))
    yield Variant(base, "_dk_spread", KernelSpec(dense="local", grid="spread"))
    yield Variant(base, "_gdk", KernelSpec(dense="global"))
    yield Variant(base, "_dcn", KernelSpec(**full))
    yield Variant(base, "_dcn_dk", KernelSpec(dense="local", **full))


def _small(base: str, experts: int) -> Iterator[Variant]:
    """Yields a small base's models: those of the paper's, the other grid, and taps that may leave the scope."""
    yield from _variants(base, experts, dcn_min_stride=2)
    yield _spread(base)
    yield Variant(base, "_dk_unclipped", KernelSpec(depthwise="local", clip=False))
    yield _local_pointwise(base)


def _spread(base: str) -> Variant:
    return Variant(base, "_dk_spread", KernelSpec(depthwise="local", grid="spread"))


def _local_pointwise(base: str) -> Variant:
    return Variant(base, "_dk_lpw", KernelSpec(depthwise="local", pointwise="local"))


def _by_name(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


_RESNET_ONLY = ("_dk_s3", "_dk_s5", "_dk_s9")  # the paper ablates the scope on ResNet-50-DW alone
_LARGE_DENSE = ("_dk", "_gdk", "_dcn", "_dcn_dk")
_DEPTHWISE = ("resnet50dw", "mobilenetv2_100")

PAPER_MODELS = _by_name(
    Variant("resnet50", "", KernelSpec()),
    *_variants("resnet50dw", experts=2),
    *(each for each in _variants("mobilenetv2_100", experts=8) if each.suffix not in _RESNET_ONLY),
)
"""One model for every row of tables 1 and 2. ``resnet50`` and ``mobilenetv2_100`` are timm's own."""

LARGE_MODELS = _by_name(
    *(each for each in _dense("resnet50") if each.suffix in _LARGE_DENSE),
    *map(_spread, _DEPTHWISE),
    *map(_local_pointwise, _DEPTHWISE),
    # A variant of a large base that is no row of the paper goes here.
)
"""Models of the paper's bases that its tables do not have: local DK on dense 3x3 and on 1x1 convolutions, which its
footnote 4 leaves out, and what that is compared with; at scope 4 taps that start spread over it, as the paper's text
says, where those of the rows of the tables start centred in it, as in the authors' release."""

TEST_MODELS = _by_name(
    *_variants("test_resnetdw", experts=4),
    _spread("test_resnetdw"),
    _local_pointwise("test_resnetdw"),
    *(each for each in _dense("test_resnet") if each.suffix in ("_dk", "_gdk", "_dcn_dk")),
)
"""Tiny models for tests and the demo, with every suffix. ``test_resnet`` is timm's own."""

SMALL_MODELS = _by_name(
    *_small("small_resnetdw", experts=2),
    *_small("small_mobilenetv2", experts=8),
    *_dense("small_resnet", dcn_min_stride=2),
)
"""Small models for small images (:mod:`dk_bench.models.bases`), with the experts of the paper's.

DCN takes part from output stride 2 on, so in all stages but the first, in five of six 3x3 convolutions (ResNet-DW;
MobileNet-V2: also five of six; ordinary ResNet: six of eight). In the paper's models it is from stride 8 of 224 pixels
on, in 13 of 16 (14 of 17).
"""

MODELS = PAPER_MODELS | LARGE_MODELS | SMALL_MODELS | TEST_MODELS


def is_beyond_paper(base: str, spec: KernelSpec) -> bool:
    """Tells whether a base deformed by a spec is like no row of the paper, which has rigid ResNet-50 alone of ordinary
    ResNets, and neither DK on dense convolutions nor local DK on 1x1 ones."""
    ordinary = base in ("small_resnet", "test_resnet") or base == "resnet50" and not spec.is_rigid
    return ordinary or spec.dense is not None or spec.pointwise == "local"


BEYOND_MODELS = {name: model for name, model in MODELS.items() if is_beyond_paper(model.base, model.spec)}
"""Models of every size that are like no row of the paper: ordinary ResNets, and all with local DK on 1x1."""
