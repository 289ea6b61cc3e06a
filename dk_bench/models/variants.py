"""The models of the paper's tables 1 and 2, and small ones like them: each is a rigid base and a kernel spec."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dk_bench.models.spec import KernelSpec


@dataclass(frozen=True)
class BenchModel:
    """A rigid base and the spec that deforms it.

    Attributes:
        base: timm name of the rigid model.
        suffix: what the deformed model's name adds to it ("" for the base itself).
        spec: what changes.
        backbone: the base's name in the paper's tables; None for bases that are not in the paper.
    """

    base: str
    suffix: str
    spec: KernelSpec
    backbone: str | None = None

    @property
    def name(self) -> str:
        """timm name, for example ``resnet50dw_dk``."""
        return self.base + self.suffix

    @property
    def table(self) -> int | None:
        """Returns the paper's table that has this model: 1 (scopes), 2 (strong baselines) or None."""
        if self.backbone is None:
            return None
        return 2 if self.spec.experts or self.spec.dcn else 1

    @property
    def row(self) -> dict[str, str] | None:
        """Returns the keys that identify the model's row in that table, in the paper's words."""
        if self.backbone is None:
            return None
        conv3x3 = _words(self.spec.depthwise, self.spec.scope)
        if self.table == 2:
            return {"backbone": self.backbone, "with": "DCN" if self.spec.dcn else "SCC", "conv3x3": conv3x3}
        pw = _words(self.spec.pointwise, self.spec.pointwise_scope)
        return {"backbone": self.backbone, "pw": pw, "conv3x3": conv3x3}


def _words(kind: str | None, scope: int) -> str:
    return f"{kind} {scope}x{scope}" if kind else "rigid"


def _suffixes(experts: int) -> dict[str, KernelSpec]:
    """Returns every suffix with its spec, in the order of the paper's rows. dk: local, gdk: global, sN: scope N,
    default 4.
    """
    return {
        "": KernelSpec(),
        "_dk_s3": KernelSpec(depthwise="local", scope=3),
        "_dk": KernelSpec(depthwise="local"),
        "_dk_s5": KernelSpec(depthwise="local", scope=5),
        "_dk_s9": KernelSpec(depthwise="local", scope=9),
        "_gdk": KernelSpec(depthwise="global"),
        "_gdk_pw": KernelSpec(depthwise="global", pointwise="global"),
        "_dk_pw": KernelSpec(depthwise="local", pointwise="global"),
        "_scc": KernelSpec(experts=experts),
        "_scc_dk": KernelSpec(experts=experts, depthwise="local"),
        "_dcn": KernelSpec(dcn=True),
        "_dcn_dk": KernelSpec(dcn=True, depthwise="local"),
    }


_RESNET_ONLY = ("_dk_s3", "_dk_s5", "_dk_s9")  # the paper ablates the scope on ResNet-50-DW alone

PAPER_MODELS: dict[str, BenchModel] = {
    model.name: model
    for model in (
        BenchModel("resnet50", "", KernelSpec(), "ResNet-50"),
        *(BenchModel("resnet50dw", suffix, spec, "ResNet-50-DW") for suffix, spec in _suffixes(2).items()),
        *(
            BenchModel("mobilenetv2_100", suffix, spec, "MobileNet-V2")
            for suffix, spec in _suffixes(8).items()
            if suffix not in _RESNET_ONLY
        ),
    )
}
"""One model for every row of tables 1 and 2. ``resnet50`` and ``mobilenetv2_100`` are timm's own."""

TEST_MODELS: dict[str, BenchModel] = {
    "test_resnetdw" + suffix: BenchModel("test_resnetdw", suffix, spec) for suffix, spec in _suffixes(4).items()
}
"""Tiny models for tests and the demo, with every suffix."""


def _small(base: str, experts: int) -> Iterator[BenchModel]:
    """Returns a small base's models: every suffix, the other grid at scope 4, and taps that may leave the scope."""
    arms = {
        "_dk_spread": KernelSpec(depthwise="local", grid="spread"),
        "_dk_unclipped": KernelSpec(depthwise="local", clip=False),
    }
    for suffix, spec in (_suffixes(experts) | arms).items():
        yield BenchModel(base, suffix, replace(spec, dcn_min_stride=2) if spec.dcn else spec)


SMALL_MODELS: dict[str, BenchModel] = {
    model.name: model for model in (*_small("small_resnetdw", 2), *_small("small_mobilenetv2", 8))
}
"""Small models for small images (:mod:`dk_bench.models.small`), with the experts of the paper's.

DCN takes part from output stride 2 on, so in all stages but the first, in five of six 3x3 convolutions (ResNet-DW;
MobileNet-V2: also five of six). In the paper's models it is from stride 8 of 224 pixels on, in 13 of 16 (14 of 17).
"""

MODELS: dict[str, BenchModel] = {**PAPER_MODELS, **SMALL_MODELS, **TEST_MODELS}
