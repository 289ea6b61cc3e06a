"""Records of classifiers, shared by the tests of tables."""

from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import RunRecord
from dk_bench.tables.render import markdown
from dk_bench.tables.table import Document

PROCEDURAL = {"name": "procedural", "classes": ["a", "b"], "train_images": 3000, "val_images": 1000}
IMAGENET = {
    "name": "imagenet",
    "classes": [f"n{n:08}" for n in range(1000)],
    "train_images": 1_281_167,
    "val_images": 50_000,
}
COSTS = {"resnet50dw": {"params": 23_682_216, "macs": 4_024_105_984, "sampling_macs": 0}}


def make_record(model, top1=None, *, seed=0, status="finished", data=PROCEDURAL, epochs=2, **optim) -> RunRecord:
    config = {"seed": seed, "output": "runs", "model": {"name": model}, "optim": {"lr": 0.1, **optim}}
    return RunRecord(
        run_id=f"{model}-{seed}",
        name="test",
        config=config,
        config_hash=config_hash(config),
        model={"name": model},
        data=data,
        seed=seed,
        status=status,
        metrics={"epochs": [{}] * epochs, "final": {} if top1 is None else {"val/top1": top1}},
        cost={"params": 250_000, "macs": 12_345_000, "sampling_macs": 67_000},
        throughput={"train_images_per_second": 400.4, "eval_images_per_second": 1000.0},
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:00+00:00",
    )


def lines_of(document: Document, table: int = 0) -> dict[str, list[str]]:
    """Rows of one table in Markdown: the first cells joined -> all cells."""
    part = markdown(document).split("\n## ")[table + 1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {" ".join(row[:1]): row for row in rows[2:]}
