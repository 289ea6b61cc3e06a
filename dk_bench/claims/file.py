"""The paper's claims and the experiments that test them, read from ``claims.yaml`` beside this file and checked."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dk_bench.claims.studies import CLAIMS as FIGURE_CLAIMS
from dk_bench.errors import UserError, located
from dk_bench.models import KernelSpec
from dk_bench.nn.scope import GRIDS
from dk_bench.reading.yaml_words import check_keys, read_as_written
from dk_bench.tables.paper import paper_figures, paper_row

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")  # package data
BACKBONES = ("ResNet-50-DW", "MobileNet-V2", "ResNet-50")  # of the paper's tables; the last it has rigid alone
FIGURES_OF_PAPER = ("top1", "map")
ON_BOTH_GRIDS = ("s4", "dense_s4")  # arms, of which the names of those with spread taps say so
LEAST_MARGIN = 0.3  # points; the paper prints one digit, so that its own differences are known to 0.1
FIGURES = {claim.id: claim for claim in FIGURE_CLAIMS}


@dataclass(frozen=True)
class Arm:
    """Holds what a run trains. ``spec``: with experts for CondConv of any number. ``multiplier``: of the offsets'
    learning rate, None for the experiment's. ``backbone``: another of the paper's bases, None for the row's own."""

    name: str
    spec: KernelSpec
    multiplier: float | None = None
    backbone: str | None = None

    def trains(self, spec: KernelSpec) -> bool:
        """Tells whether a model of this spec is this arm's, whatever the number of experts and where DCN begins."""
        return (spec.kernel_size, spec.words) == (self.spec.kernel_size, self.spec.words)


@dataclass(frozen=True)
class Base:
    """A rigid model of an experiment, standing for one of the paper's, and the names of the arms trained on it."""

    model: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """Runs that test claims: those of the name ``runs``. ``seeds``: as planned. ``bases``: by the paper's names.
    ``beyond``: asks what the paper does not, so that none of its claims is tested there."""

    name: str
    title: str
    runs: str
    metric: str
    seeds: int
    bases: Mapping[str, Base]
    beyond: bool = False


@dataclass(frozen=True)
class Study:
    """Measurements of an experiment's checkpoints that test claims of the paper's figures: files as seen from the
    folder of results. ``bases``: the model that stands for each of the paper's."""

    name: str
    title: str
    experiment: Experiment
    bases: Mapping[str, str]
    dynamics: str | None = None
    erf: str | None = None


@dataclass(frozen=True)
class Term:
    """A summand of a contrast: the metric of an arm (None: the experiment's), times a weight."""

    arm: str
    metric: str | None
    weight: float


@dataclass(frozen=True)
class Claim:
    """A claim, in our words: that a contrast is above zero; or, ``as_good``, not below it by more than the margin.

    ``figure``: for a claim of one of the paper's figures, the name that `dk_bench.claims.studies` has for its
    contrast; then ``contrast`` is empty, and it is tested by studies. ``paper``: the figure of the paper's tables, None
    where it prints none. ``family``: p values are corrected over the claims of one family that an experiment tests at a
    base. ``bases``: the paper's, of which it is claimed. ``margin``: None for half of the paper's difference.
    """

    id: str
    text: str
    source: str
    contrast: tuple[Term, ...]
    tested: tuple[str, ...]
    figure: str | None = None
    paper: str | None = None
    grids: tuple[str, ...] = ("centred",)
    bases: tuple[str, ...] = BACKBONES
    margin: float | None = None
    as_good: bool = False
    family: str = "main"
    unit: str = "points"

    def arms(self, grid: str) -> list[str]:
        """Returns the arms compared, where taps of scope 4 start as ``grid`` says."""
        return list(dict.fromkeys(on_grid(term.arm, grid) for term in self.contrast))


@dataclass(frozen=True)
class Claims:
    """The file's content, by name."""

    experiments: Mapping[str, Experiment]
    studies: Mapping[str, Study]
    arms: Mapping[str, Arm]
    claims: Mapping[str, Claim]

    def paper_difference(self, claim: Claim, backbone: str) -> float | None:
        """Returns the contrast of the paper's own figures, in percentage points; None where one is not printed."""
        if claim.paper is None or backbone not in claim.bases:
            return None
        total = 0.0
        for term in claim.contrast:
            arm = self.arms[term.arm]
            figure = paper_figures().get(paper_row(arm.backbone or backbone, arm.spec), {}).get(claim.paper)
            if figure is None or not arm.spec.clip or arm.multiplier is not None:
                return None
            total += term.weight * figure
        return round(total, 6)

    def margin(self, claim: Claim, backbone: str) -> float:
        """Returns the smallest difference that counts: the claim's own, or half of the paper's, then at least 0.3."""
        if claim.margin is not None:
            return claim.margin
        difference = self.paper_difference(claim, backbone)
        return max(LEAST_MARGIN, round(abs(difference or 0) / 2, 6))


def on_grid(arm: str, grid: str) -> str:
    """Returns the arm's name with its taps where ``grid`` says: the local arms of scope 4 exist on both grids."""
    return f"{arm}_spread" if arm in ON_BOTH_GRIDS and grid == "spread" else arm


def load_claims(path: str | Path = CLAIMS_FILE) -> Claims:
    """Reads and checks the file.

    Raises UserError that names the file, the entry and what is wrong with it: a key that is missing, unknown or of the
    wrong kind, an arm, experiment or base that is not declared, weights that do not sum to zero, a claim without a
    margin, an experiment that has not all arms of a claim it is to test.
    """
    content = read_as_written(path, "claims")
    with located(path):
        check_keys(content, {"experiments": dict, "studies": dict, "arms": dict, "claims": list})
        arms = _each("arm", content["arms"].items(), _arm)
        experiments = _each("experiment", content["experiments"].items(), partial(_experiment, arms=arms))
        studies = _each("study", content["studies"].items(), partial(_study, known=experiments))
        numbered = enumerate(content["claims"], start=1)
        claims = ((isinstance(value, dict) and value.get("id") or number, value) for number, value in numbered)
        found = Claims(experiments, studies, arms, _each("claim", claims, _claim))
        for name, claim in found.claims.items():
            with located(f"claim {name}"):
                _check_claim(claim, found)
    return found


def _each(kind: str, entries: Iterable[tuple[Any, Any]], read: Callable[[str, Any], Any]) -> dict[str, Any]:
    found = {}
    for name, value in entries:
        with located(f"{kind} {name}"):
            entry = read(name, value)
            if name in found:
                raise UserError("there twice")
            found[name] = entry
    return found


def _arm(name: str, value: Any) -> Arm:
    fields = {field.name for field in dataclasses.fields(KernelSpec)} - {"experts"}
    if not isinstance(value, dict):
        raise UserError(f"expected what its kernel spec changes, got {value!r}")
    own = {key: value[key] for key in value.keys() - fields}
    check_keys(own, {}, {"scc": bool, "offset_lr_multiplier": int | float, "backbone": str}, also=fields)
    experts = 2 * own.get("scc", False)
    try:
        spec = KernelSpec.from_dict({key: value[key] for key in value.keys() & fields} | {"experts": experts})
    except ValueError as error:
        raise UserError(str(error)) from error
    return Arm(name, spec, own.get("offset_lr_multiplier"), own.get("backbone"))


def _experiment(name: str, value: Any, arms: Mapping[str, Arm]) -> Experiment:
    check_keys(value, {"title": str, "runs": str, "metric": str, "seeds": int, "bases": dict}, {"beyond": bool})
    if value["seeds"] < 2:
        raise UserError(f"seeds is {value['seeds']}, expected 2 at least, as one has no spread")
    _check_known("base", value["bases"], BACKBONES)
    return Experiment(name, **value | {"bases": _each("base", value["bases"].items(), partial(_base, known=arms))})


def _base(name: str, value: Any, known: Mapping[str, Arm]) -> Base:
    check_keys(value, {"model": str, "arms": list})
    _check_known("arm", value["arms"], known)
    if twice := [arm for arm in value["arms"] if value["arms"].count(arm) > 1]:
        raise UserError(f"arm {twice[0]} is there twice")
    return Base(value["model"], tuple(value["arms"]))


def _study(name: str, value: Any, known: Mapping[str, Experiment]) -> Study:
    check_keys(value, {"title": str, "experiment": str, "bases": dict}, {"dynamics": str, "erf": str})
    _check_known("base", value["bases"], BACKBONES)
    _check_known("experiment", [value["experiment"]], known)
    experiment = known[value["experiment"]]
    for backbone, model in value["bases"].items():
        if (trained := experiment.bases.get(backbone)) is None or trained.model != model:
            expected = trained.model if trained else "none"
            raise UserError(f"base {backbone} is {model}, expected that of experiment {experiment.name}: {expected}")
    return Study(name, **value | {"experiment": experiment})


def _claim(_: Any, value: Any) -> Claim:
    optional = {"contrast": dict, "figure": str, "paper": str, "margin": int | float, "as_good": bool}
    optional |= {"family": str, "unit": str, "grids": list, "bases": list}
    check_keys(value, {"id": str, "claim": str, "source": str, "tested": list}, optional)
    if ("figure" in value) == ("contrast" in value):
        raise UserError("expected a contrast, or a figure of the paper")
    given = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
    given["contrast"] = _contrast(value["contrast"]) if "contrast" in value else ()
    return Claim(text=given.pop("claim"), **given)


def _contrast(value: dict[str, Any]) -> tuple[Term, ...]:
    terms = []
    for arm, weights in value.items():
        for metric, weight in (weights if isinstance(weights, dict) else {None: weights}).items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            if not is_number or weight == 0:
                raise UserError(f"contrast: weight of {arm} is {weight!r}, expected a number other than zero")
            if not isinstance(metric, str | None):
                raise UserError(f"contrast: metric {metric!r} of {arm}, expected text")
            terms.append(Term(arm, metric, weight))
    total = sum(term.weight for term in terms)
    if len(terms) < 2 or abs(total) > 1e-9:
        raise UserError(f"contrast: weights sum to {total:g}, expected zero over two terms or more")
    return tuple(terms)


def _check_claim(claim: Claim, claims: Claims) -> None:
    """Checks what a claim says against the rest of the file."""
    _check_known("arm", [term.arm for term in claim.contrast], claims.arms)
    _check_known("figure", [claim.figure] if claim.figure else [], FIGURES)
    _check_known("grid", claim.grids, GRIDS)
    _check_known("base", claim.bases, BACKBONES)
    _check_known("paper", [claim.paper] if claim.paper else [], FIGURES_OF_PAPER)
    places, kind = (claims.studies, "study") if claim.figure else (claims.experiments, "experiment")
    _check_known(kind, claim.tested, places)
    if claim.paper and all(claims.paper_difference(claim, backbone) is None for backbone in BACKBONES):
        raise UserError(f"paper: its tables have no figures of {claim.paper} for these arms")
    if claim.margin is not None and not 0 < claim.margin < math.inf:
        raise UserError(f"margin is {claim.margin!r}, expected a number above zero")
    if claim.margin is None and not claim.paper:
        raise UserError("margin is missing, and the paper has no figures to take half of its difference")
    if not claim.figure:
        _check_arms(claim, claims)
    for study in (claims.studies[name] for name in claim.tested if claim.figure):
        for backbone in study.bases:
            if missing := FIGURES[claim.figure].arms - set(study.experiment.bases[backbone].arms):
                raise UserError(f"tested: experiment {study.experiment.name} has no arm {min(missing)} at {backbone}")


def _check_arms(claim: Claim, claims: Claims) -> None:
    if not claim.grids or len({tuple(claim.arms(grid)) for grid in claim.grids}) < len(claim.grids):
        grids = ", ".join(claim.grids) or "none"
        raise UserError(f"grids: expected one, or several that have other arms each, got {grids}")
    for name in claim.tested:
        for arms in map(claim.arms, claim.grids):
            if not any(set(arms) <= set(base.arms) for base in claims.experiments[name].bases.values()):
                raise UserError(f"tested: no base of experiment {name} has all of its arms ({', '.join(arms)})")


def _check_known(kind: str, names: Iterable[Any], known: Iterable[str]) -> None:
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"unknown {kind} {unknown[0]!r}, expected one of {', '.join(known)}")
