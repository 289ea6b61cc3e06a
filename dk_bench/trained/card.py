"""The model card of an export, README.md: what the model is, was trained on and reaches, and how to load it.

All of it comes from the run's record and the model itself; what is not known is said to be so.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from dk_bench import tasks
from dk_bench.models import KernelSpec
from dk_bench.runs.identity import flatten
from dk_bench.runs.record import RunRecord
from dk_bench.tables.cells import Cell, gather
from dk_bench.tables.entries import Figure
from dk_bench.trained.history import History
from dk_bench.trained.load import Trained
from dk_bench.trained.snippets import snippets

NAME = "README.md"
UNKNOWN = "unknown"  # also the hub's word for a licence that nobody has told
SPLITS = {"val": "validation", "test": "test"}
LIBRARIES = {"timm": "timm", "mmdet": "mmdetection", "onnx": "onnx", "pt2": "pytorch"}  # the hub's names
CITATION = """@inproceedings{gao2020deformable,
  title = {Deformable Kernels: Adapting Effective Receptive Fields for Object Deformation},
  author = {Gao, Hang and Zhu, Xizhou and Lin, Steve and Dai, Jifeng},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2020}
}"""


@dataclass(frozen=True)
class About:
    """Holds what a card tells of.

    ``written`` are the names of the files of each format, ``folder`` that of their folder, ``repository`` the one on
    the hub that they are for. ``licence`` is one of the hub's names for licences. ``records`` are those of further
    runs, among which the seeds of this one's cell count.
    """

    trained: Trained
    history: History
    written: Mapping[str, Sequence[str]]
    folder: str
    repository: str | None = None
    licence: str | None = None
    records: Iterable[RunRecord] = ()

    @property
    def record(self) -> RunRecord | None:
        return self.trained.record

    @property
    def kind(self) -> tasks.Kind:
        return tasks.KINDS[self.trained.task]

    @property
    def described(self) -> dict[str, Any]:
        """Tells what records say of a model: name, spec, input_size, of a detector its type; of an export less."""
        if self.record:
            return self.record.model
        if checkpoint := self.trained.checkpoint:
            return tasks.from_checkpoint(checkpoint, source=self.trained.path).describe_model(self.trained.classes)
        cfg = getattr(self.trained.model, "pretrained_cfg", {})
        return {"name": cfg.get("architecture", type(self.trained.model).__name__), "spec": None}

    @property
    def data(self) -> str:
        return self.record.data["name"] if self.record else UNKNOWN

    @property
    def title(self) -> str:
        detector = self.described.get("detector")
        return " ".join(filter(None, (detector and f"{detector} with", self.described["name"], f"on {self.data}")))

    @property
    def cell(self) -> Cell | None:
        """Returns the run with those that differ from it in the seed alone; None without a record."""
        if not (record := self.record):
            return None
        cells = gather([record, *self.records])
        return next((cell for cell in cells if record.run_id in {run.run_id for run in cell.runs}), None)


def text(about: About) -> str:
    """Returns the card, Markdown with the hub's metadata before it."""
    parts = [
        f"---\n{_metadata(about).to_yaml()}\n---",
        f"# {about.title}",
        _summary(about),
        "## Load",
        *snippets(about.trained.model, about.written, about.folder, about.repository),
        "## Figures",
        *_figures(about),
        "## Training",
        _list(_training(about)),
        "## Limits",
        _list(_limits(about)),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(about: About) -> ModelCardData:
    slug = re.sub(r"[^a-z0-9]+", "-", about.data.lower()).strip("-")
    results = [
        EvalResult(
            task_type=about.kind.hub_task,
            dataset_type=slug,
            dataset_name=about.data,
            dataset_split=SPLITS[name.partition("/")[0]],
            metric_type=about.kind.hub_metric,
            metric_name=about.kind.words,
            metric_value=round(value, 2),
        )
        for name, value in _measured(about)
        if about.data != UNKNOWN and name.partition("/")[2] == about.kind.metric.partition("/")[2]
    ]
    library = LIBRARIES[next(iter(about.written))]
    return ModelCardData(
        license=about.licence or UNKNOWN,
        library_name=library,
        pipeline_tag=about.kind.hub_task,
        tags=[*dict.fromkeys([about.kind.hub_task, library, *about.written, "dk_bench", "deformable-kernels"])],
        metrics=[about.kind.hub_metric],
        model_name=about.title if results else None,
        eval_results=results or None,
    )


def _measured(about: About) -> Iterator[tuple[str, float]]:
    """Yields the figures at the end of training that validation and test images gave, by their names in records."""
    for name, value in about.history.final.items():
        if name.partition("/")[0] in SPLITS and value is not None:
            yield name, value


def _summary(about: About) -> str:
    described, classes = about.described, about.trained.classes
    words = str(KernelSpec.from_dict(described["spec"]).words) if described.get("spec") else "rigid"
    if words == "rigid":
        kernels = "Its convolutions are rigid: a base to compare deformable kernels with."
    else:
        kernels = (
            f"Deformed: {words}. Deformable kernels (Gao et al., ICLR 2020) are read, at run time, at learned offsets, "
            "so that the receptive field follows the object."
        )
    named = ", ".join(f"`{name}`" for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
    names = " with ".join(f"`{part}`" for part in (described.get("detector"), described["name"]) if part)
    return f"{names}, trained on {about.data} by dk_bench. {kernels}\n\n{len(classes)} classes: {named}."


def _figures(about: About) -> Iterator[str]:
    measured = dict(_measured(about))
    if not measured:
        yield "None: the run's record is not at hand, or it was not evaluated."
        return
    cell = about.cell
    over_seeds = {name: cell.final(name) for name in measured} if cell else {}
    note = "Top-1, top-5 and average precision (mAP) are in percent."
    heads, rows = ["figure", "this model"], [[name, _digits(name, value)] for name, value in measured.items()]
    if any(figure.summary and figure.summary.n > 1 for figure in over_seeds.values()):
        heads.append("all seeds")
        rows = [[*row, _spread(row[0], over_seeds[row[0]])] for row in rows]
        note += (
            " All seeds: mean and 95 % interval, by Student's t distribution, of runs that differ in the seed alone."
        )
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *rows]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
    yield note


def _digits(name: str, value: float) -> str:
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2f}"


def _spread(name: str, figure: Figure) -> str:
    """Returns mean and interval of a figure over the seeds, as `Figure` prints it, with the digits of `_digits`."""
    if (summary := figure.summary) is None:
        return str(figure)
    half = "" if summary.half_width is None else f" ± {_digits(name, summary.half_width)}"
    return f"{_digits(name, summary.mean)}{half} (n={summary.n})" + (f", {figure.state}" if figure.state else "")


def _training(about: About) -> Iterator[str]:
    """Yields what the record tells of data and training."""
    record = about.record
    yield f"How far: {about.history.progress}." if about.history.done else "How far: unknown."
    if record is None:
        yield "No record of the run lies beside the checkpoint: data, seed, commit and versions are unknown."
        return
    counts = {split: record.data.get(f"{split}_images") for split in ("train", "val", "test")}
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
    yield f"Data: {record.data['name']}; images: {images or UNKNOWN}."
    yield f"Seed: {record.seed}; run: {record.name}, `{record.run_id}`."
    commit, changed = record.git.get("commit"), record.git.get("dirty")
    yield f"Commit of dk_bench: {commit or UNKNOWN}" + (", with changes that were not committed." if changed else ".")
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in record.versions.items()) + "."
    device = record.device
    yield f"Device: {device.get('count') or 1} x {device.get('name') or device.get('type') or UNKNOWN}."
    if (params := record.cost.get("params")) is not None:
        part = "" if record.cost.get("backbone_macs") is None else "backbone_"  # all that is counted of a detector
        counted = record.cost.get(f"{part}macs")
        counted = UNKNOWN if counted is None else f"{counted:,}"
        size = " x ".join(map(str, record.cost.get("input_size") or ())) or UNKNOWN
        of = "the backbone for one image" if part else "one image"
        yield f"Parameters: {params:,}; multiply-adds of {of} ({size}): {counted}."
    yield from (f"Started from: {text}." for text in _started_from(record))
    if record.command:
        yield f"Command: `{' '.join(record.command)}`"


def _started_from(record: RunRecord) -> Iterator[str]:
    """Yields the weights that training began with, of any task's configuration."""
    for key, value in flatten(record.config):
        name = key.rpartition(".")[2]
        if name == "pretrained" and value is True:
            yield f"weights that timm has of the rigid model (`{key}`)"
        elif name in ("checkpoint", "load_from") and isinstance(value, str):
            yield f"`{value}` (`{key}`)"


def _limits(about: About) -> Iterator[str]:
    """Yields what a user should not take for granted."""
    if about.history.finished is False:
        yield f"**The run is not finished**: training got to {about.history.progress}."
    cell = about.cell
    runs = cell.final(about.kind.metric).summary if cell else None
    if runs is None or runs.n < 2:
        yield "The figures are of one run: what another seed gives is not known."
    yield f"It was evaluated on {about.data} alone; how it does on other images is not known."
    yield "It was made for research on deformable kernels, not for a product: no bias or robustness was looked into."
    if about.licence is None:
        yield "Nobody has said under which licence the weights are; that of dk_bench, MIT, is of its code."


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
