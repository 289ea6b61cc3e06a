"""The claims of the paper's figures 3, 4 and 6 as differences by seed, from CSV files of `dk-bench dynamics` and `erf`.

Under figure 3: offsets tell an object's scale, CondConv's scores tell its class. Under figures 4 and 6: effective
receptive fields adapt to the object and follow its rotation and scale. Pictures say neither how much nor how sure;
linear probes and fields over many images do.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dk_bench.errors import UserError

DYNAMICS, ERF = "dynamics", "erf"  # the command whose CSV a claim is about: probe.csv, or summary.csv
HELD = ", offsets held at their mean"  # behind the name of a model that is so held, as a control, before its seed
ARMS = {"": "rigid", "_dk": "s4", "_scc": "scc"}  # by what a model's name adds to the base's
SEED = re.compile(r"(?P<kind>.*) \(seed (?P<seed>\d+)\)")


@dataclass(frozen=True)
class FigureClaim:
    """A claim of ``claims.yaml`` as a difference that is above zero where the claim holds.

    ``id``: what the file calls its figure. ``study``: `DYNAMICS` or `ERF`. ``number``: the column of the CSV. ``of``
    and ``over``: the rows whose difference it is, by values of columns; models by what they add to the base's name.
    """

    id: str
    study: str
    number: str
    of: Mapping[str, str]
    over: Mapping[str, str]

    @property
    def arms(self) -> set[str]:
        """Returns the arms that its models are."""
        return {ARMS[row["model"].removesuffix(HELD)] for row in (self.of, self.over)}


def _probe(model: str, target: str) -> dict[str, str]:
    kind = {"_dk": "kernel offsets", "_scc": "expert scores"}[model]
    return {"model": model, "kind": kind, "target": target, "features": "learned", "layer": "all"}


SCALE, CLASS, NOT_LEARNT = _probe("_dk", "log scale"), _probe("_scc", "class"), {"features": "random generator"}
FIELDS = {"adapt": "inside", "rotation": "agreement_rotated", "scale": "agreement_scaled"}
CLAIMS = (
    FigureClaim("fig3_scale", DYNAMICS, "value", SCALE, _probe("_scc", "log scale")),
    FigureClaim("fig3_class", DYNAMICS, "value", CLASS, _probe("_dk", "class")),
    FigureClaim("fig3_scale_learnt", DYNAMICS, "value", SCALE, SCALE | NOT_LEARNT),
    FigureClaim("fig3_class_learnt", DYNAMICS, "value", CLASS, CLASS | NOT_LEARNT),
    *(
        FigureClaim(f"fields_{name}{ending}", ERF, number, {"model": "_dk"}, {"model": over})
        for ending, over in (("", ""), ("_held", f"_dk{HELD}"))
        for name, number in FIELDS.items()
    ),
)


def differences(claim: FigureClaim, path: str | Path, base: str) -> dict[int, float]:
    """Returns ``{seed: difference}``, over the seeds that both rows have; empty where the file lacks a row.

    ``path``: probe.csv of `dk-bench dynamics` or summary.csv of `dk-bench erf`, under whatever name. ``base``: the
    rigid model's name. Units: R2, or points of percent of the class, of probes; a share of 1 of `inside`; a cosine of
    `agreement_*`. Raises UserError where the file cannot be read, or lacks a column that the claim names.
    """
    of, over = (by_seed(path, {**row, "model": base + row["model"]}, claim.number) for row in (claim.of, claim.over))
    return {seed: of[seed] - over[seed] for seed in sorted(of.keys() & over.keys())}


def measured_runs(path: str | Path) -> dict[int, set[str]]:
    """Returns the ids of the runs whose checkpoints a study measured, by seed, from the JSON file beside its CSV.
    Raises UserError where that cannot be read."""
    beside = Path(path).with_suffix(".json")
    found: dict[int, set[str]] = {}
    try:
        for checkpoint in json.loads(beside.read_text(encoding="utf-8"))["checkpoints"]:
            found.setdefault(checkpoint["seed"], set()).add(checkpoint["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "what the study's command left there, with the run and seed of each checkpoint"
        raise UserError(f"{beside}: cannot be read: {error!r}; expected {expected}") from error
    return found


def by_seed(path: str | Path, row: Mapping[str, str], number: str) -> dict[int, float]:
    """Returns ``{seed: value}`` of a column ``number`` in the rows whose columns are as ``row`` has them.

    Of fields a seed's row is the mean over its pictures. Raises UserError where the file cannot be read, for a column
    it lacks, and for two rows of one seed.
    """
    found: dict[int, float] = {}
    for values in _rows(path, {*row, number}):
        if values[number] and all(values[column] == value for column, value in row.items()):
            if (seed := int(values["seed"])) in found:
                raise UserError(f"{path}: two rows of seed {seed} are {', '.join(row.values())}; expected one")
            found[seed] = float(values[number])
    return found


def _rows(path: str | Path, needed: set[str]) -> Iterator[dict[str, str]]:
    """Yields rows of one checkpoint each; where the seed stands in the model's name it is taken out of it."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := sorted(needed - set(reader.fieldnames or ())):
                raise UserError(
                    f"{path}: no column {', '.join(missing)}; expected a CSV of `dk-bench dynamics` or `dk-bench erf`"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for values in rows:
        if match := SEED.fullmatch(values["model"]):
            values |= {"model": match["kind"], "seed": match["seed"]}
        if (values.get("seed") or "").isdigit() and values["model"] != "none":
            yield values
