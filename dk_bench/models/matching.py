"""Which of a model's convolutions a spec asks for, and by which of the rules."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from dk_bench.models.blocks import BLOCK, SHORTCUT, STEM, placed_convolutions
from dk_bench.models.rules import RULES, Convolutions, Rule
from dk_bench.models.spec import KernelSpec


class Match(NamedTuple):
    """A convolution of a model, and what a spec asks of it."""

    name: str
    conv: nn.Module  # rigid or ours
    place: str  # as `dk_bench.models.blocks` calls it
    output_stride: int  # 0 where nobody asked for it
    rule: Rule | None  # by which it changes; None where it stays


def asked_of(spec: KernelSpec) -> dict[Rule, Convolutions]:
    """Returns the rules that a spec asks for, in their order, and the convolutions that each wants."""
    return {rule: rule.matches(spec) for rule in RULES if rule.is_asked(spec)}


def needs_strides(spec: KernelSpec) -> bool:
    """Tells whether what a spec changes depends on output strides."""
    return spec.dilate_last or any(wanted.stride for wanted in asked_of(spec).values())


def takes_part(place: str, spec: KernelSpec) -> bool:
    """Tells whether convolutions at a place change, if they are of a kind that the spec asks for."""
    return place == BLOCK or spec.everywhere and place in (STEM, SHORTCUT)


def match(model: nn.Module, spec: KernelSpec, strides: dict[str, int]) -> list[Match]:
    """Returns all of a model's convolutions. ``strides``: their output strides, where a rule looks at them."""
    asked, found = asked_of(spec), []
    for name, conv, place in placed_convolutions(model):
        stride = strides.get(name, 0)
        fitting = (rule for rule, wanted in asked.items() if wanted.include(conv, stride))
        found.append(Match(name, conv, place, stride, next(fitting, None) if takes_part(place, spec) else None))
    return found


def check_all_parts_match(model: nn.Module, spec: KernelSpec, found: list[Match]) -> None:
    """Raises ValueError, with the kernels that there are, where a part of the spec changes no convolution."""
    changed = {part for each in found if each.rule for part in each.rule.parts}
    missing = {part: wanted for rule, wanted in asked_of(spec).items() for part in rule.parts if part not in changed}
    for part, wanted in missing.items():
        fits = [each for each in found if wanted.include(each.conv, each.output_stride)]
        where = "outside of the classifier and attention" if spec.everywhere else "in a block"
        if any(takes_part(each.place, spec) for each in fits):
            raise ValueError(f"{part}: other parts of the spec change every {wanted} {where} of {type(model).__name__}")
        there = _sizes(wanted, (each for each in found if takes_part(each.place, spec)))
        beside = _sizes(wanted, (each for each in found if each.place in (STEM, SHORTCUT)))
        hint = f", and those that everywhere=True adds {beside}" if beside and not spec.everywhere else ""
        raise ValueError(
            f"{part}: {type(model).__name__} has no {wanted} {where}; its {wanted.kind}kernels there have the sizes "
            f"{there or 'none'}{hint}"
        )


def _sizes(wanted: Convolutions, among: Iterable[Match]) -> list[tuple[int, int]]:
    """Returns the sizes of the kernels that would be wanted if they were of the right size and stride."""
    alike = wanted._replace(size=None, stride=0)
    return sorted({each.conv.kernel_size for each in among if alike.include(each.conv, 0)})
