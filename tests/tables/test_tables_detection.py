"""Tables 3 and 4 and those of detectors on other data, from records made here."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest

from dk_bench.cli import main
from dk_bench.models import LARGE_MODELS, MODELS, KernelSpec
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import RunRecord, write_record
from dk_bench.tables.cells import gather
from dk_bench.tables.documents import build_documents
from dk_bench.tables.paper import load_paper, paper_models, row_name
from dk_bench.tables.render import csv_text, markdown
from dk_bench.tables.table import Document

COCO = {"name": "coco", "classes": [f"c{n}" for n in range(80)], "train_images": 117_266, "val_images": 5000}
SHAPES = {"name": "procedural_det", "classes": ["star", "ring"], "train_images": 400, "val_images": 100}
CONFIGS = Path(__file__).parents[2] / "configs" / "det"


def make_config(model):
    """What of an mmengine configuration the tables look at, as a record holds it."""
    loader = {"batch_size": 2, "num_workers": 2, "dataset": {"type": "CocoDataset", "data_root": "data/coco"}}
    loader["dataset"]["pipeline"] = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": [1333, 800]}]
    return {
        "name": "test",
        "seed": 0,
        "output": "runs",
        "work_dir": "w",
        "data_name": "coco",
        "model": {
            "type": "FasterRCNN",
            "neck": {"type": "FPN"},
            "backbone": {"type": "dk_bench.TimmBackbone", "model_name": model, "checkpoint": None, "spec": None},
        },
        "train_dataloader": loader,
        "val_dataloader": loader,
        "train_cfg": {"max_epochs": 12},
        "param_scheduler": [{"type": "LinearLR", "end": 500}, {"type": "MultiStepLR", "milestones": [8, 11]}],
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.02}, "paramwise_cfg": {"custom_keys": {}}},
        "trainer": {"accelerator": "auto", "devices": "auto"},
    }


def make_record(model, value=None, *, seed=0, status="finished", data=COCO, **change) -> RunRecord:
    """A record with mAP ``value`` and S, M, L 10 below, equal and 10 above; ``change``: keys with __ for dots."""
    config = make_config(model) | {"seed": seed}
    for keys, changed in change.items():
        *sections, last = keys.split("__")
        section = config
        for key in sections:
            section = section.setdefault(key, {})
        section[last] = changed
    steps = {"mAP": 0, "mAP_s": -10, "mAP_m": 0, "mAP_l": 10, "mAP_50": 20, "mAP_75": 2}
    final = {} if value is None else {f"val/{key}": value + step for key, step in steps.items()}
    return RunRecord(
        run_id=f"{model}-{seed}",
        name="test",
        config=config,
        config_hash=config_hash(config),
        model={"name": model, "detector": "FasterRCNN", "spec": None, "input_size": [3, 800, 1333]},
        data=data,
        seed=seed,
        status=status,
        task="detection",
        metrics={"epochs": [{}] * 12, "final": final},
        cost={"params": 41_500_000, "macs": None, "sampling_macs": None, "error": "depends on the image"},
        throughput={"train_images_per_second": 4.25, "eval_images_per_second": 10.0},
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-02T00:00:00+00:00",
    )


def row_of(document: Document, *start: str) -> list[str]:
    """The one row of a document's Markdown that begins with these cells."""
    rows = [line.strip("| ").split(" | ") for line in markdown(document).splitlines() if line.startswith("| ")]
    (row,) = [row for row in rows if tuple(row[: len(start)]) == start]
    return row


@cache
def empty_documents():
    return build_documents([])


def test_every_row_of_tables_3_and_4_has_its_model_and_configuration():
    """As do the models of the same size that are not in the paper."""
    paper = load_paper()
    names = {paper_models()[row_name(row)] for row in paper["table3"] + paper["table4"]}
    assert len(names) == 18
    bases = {MODELS[name].base for name in names | set(LARGE_MODELS)}
    assert {path.stem for path in CONFIGS.glob("*_fpn_1x.py")} == {f"faster_rcnn_{base}_fpn_1x" for base in bases}


def test_tables_without_records_hold_the_papers_figures():
    documents = empty_documents()
    assert "detection" not in documents
    for number, rows, judged in ((3, 10, 8), (4, 8, 4)):
        table, *more = documents[f"table{number}"].tables
        assert len(table.rows) == rows and len(more) == (number == 3)
        shown = markdown(dataclasses.replace(documents[f"table{number}"], tables=[table]))
        assert shown.count(" not run |") == 4 * rows + judged
        for row, paper in zip(table.rows, load_paper()[f"table{number}"], strict=True):
            shown = [row[table.columns.index(f"{name}, paper")].value for name in ("mAP", "mAP_S", "mAP_M", "mAP_L")]
            assert shown == [paper["map"], paper["map_s"], paper["map_m"], paper["map_l"]]
        assert any("test-dev" in note and "val2017" in note for note in documents[f"table{number}"].notes)


def test_records_stand_beside_the_papers_figures():
    records = [make_record("resnet50dw", v, seed=s) for s, v in enumerate((36.0, 36.0, 37.0))]
    records += [make_record("resnet50dw_dk", v, seed=s) for s, v in enumerate((37.0, 38.0, 40.0))]
    records += [make_record("resnet50dw_dcn", 39.0), make_record("resnet50dw_dcn_dk", 40.5)]
    records += [make_record("resnet50dw_dcn_dk", status="failed", seed=1)]
    records += [make_record("resnet50dw_gdk", status="running")]
    documents = build_documents(records)
    assert "detection" not in documents
    row = row_of(documents["table3"], "ResNet-50-DW", "rigid", "local 4x4, centred")
    # Differences 1, 2, 3: deviation 1, half width 4.302653 / sqrt(3), p 0.0742 times 8.
    figures = ["37.8", "38.3 ± 3.8 (n=3)", "23.4", "28.3 ± 3.8 (n=3)", "41.6", "38.3 ± 3.8 (n=3)", "48.2"]
    assert row[3:-2] == [*figures, "48.3 ± 3.8 (n=3)", "+1.2", "+2.0 ± 2.5 (n=3)", "0.593"]
    assert row[-2:] == ["undecided (61 seeds)", "12"]
    assert row_of(documents["table3"], "ResNet-50-DW", "rigid", "rigid")[-5:] == ["-", "-", "-", "", "12"]
    row = row_of(documents["table3"], "ResNet-50-DW", "rigid", "global 4x4, centred")
    assert row[4] == "running" and row[-5:-1] == ["+0.1", "-", "-", "not run"]
    row = row_of(documents["table4"], "ResNet-50-DW", "DCN", "local 4x4, centred")
    assert row[3:5] == ["40.6", "40.5 (n=1), 1 failed"]
    assert row[-6:] == ["+4.5 (n=1)", "+0.7", "+1.5 (n=1)", "-", "undecided", "12"]
    row = row_of(documents["table4"], "ResNet-50-DW", "DCN", "rigid")
    assert row[-6:-1] == ["+3.0 (n=1)", "-", "-", "-", ""]
    line = next(t for t in csv_text(documents["table3"]).splitlines() if '"local 4x4, centred",37.8' in t)
    assert line.startswith('"COCO, Faster R-CNN with FPN, 1x",ResNet-50-DW,rigid,"local 4x4, centred",37.8,38.333333,')
    assert documents["table3"].tables[0].note == "Family: 8 differences (8 Δ rigid), 1 of them run."


def test_backbones_that_the_paper_has_not_stand_below_table_3():
    records = [make_record("resnet50", 37.0), make_record("resnet50_dk", 38.0)]
    records += [make_record(name, 20.0 + place, data=SHAPES) for place, name in enumerate(("resnet50", "resnet50_dk"))]
    documents = build_documents(records)
    _, section = documents["table3"].tables
    assert section.heading == "COCO, Faster R-CNN with FPN, 1x: not in the paper"
    assert [row[0] for row in section.rows] == list(LARGE_MODELS)
    assert row_of(documents["table3"], "resnet50_dk")[1:6] == [
        *("rigid", "dense local 4x4, centred", "", "38.0 (n=1)", "+1.0 (n=1)")
    ]
    assert [table.heading.rpartition(": ")[2] for table in documents["detection"].tables] == [
        "not comparable with the paper",
        "not in the paper",
    ]
    assert row_of(documents["detection"], "FasterRCNN", "resnet50_dk")[5:7] == ["21.0 (n=1)", "+1.0 (n=1)"]


def test_a_loop_of_iterations_has_no_epochs():
    record = make_record("resnet50dw_dk", 37.0, data=SHAPES, train_cfg={"type": "IterBasedTrainLoop", "max_iters": 90})
    record.metrics["epochs"] = [{"epoch": 0, "iteration": 50}, {"epoch": 1, "iteration": 90}]
    assert row_of(build_documents([record])["detection"], "FasterRCNN", "resnet50dw_dk")[-1] == "90 iterations"


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (SHAPES, {}),
        (COCO | {"name": "photos_det"}, {}),
        (COCO | {"val_images": 100}, {}),
        (COCO | {"train_images": 1000}, {}),
        (COCO, {"train_cfg__max_epochs": 24}),
        (COCO, {"model__type": "RetinaNet"}),
        (COCO, {"model__neck__type": "BFP"}),
        (COCO, {"input_size": [3, 256, 256]}),
    ],
)
def test_all_else_stands_in_tables_of_its_own(data, change):
    record = make_record("resnet50dw_dk", 37.0, data=data, **change)
    record.model["input_size"] = record.config.pop("input_size", record.model["input_size"])
    documents = build_documents([record])
    assert markdown(documents["table3"]) == markdown(empty_documents()["table3"])
    (table,) = documents["detection"].tables
    assert table.heading.startswith(data["name"]) and "not comparable with the paper" in table.heading
    assert not any("paper" in column for column in table.columns)
    row = row_of(documents["detection"], "FasterRCNN", "resnet50dw_dk", "rigid", "local 4x4, centred")
    assert row[5:12] == ["37.0 (n=1)", "-", "-", "not run", "-", "-", ""]
    assert row[12:] == ["57.0 (n=1)", "39.0 (n=1)", "27.0 (n=1)", "37.0 (n=1)", "47.0 (n=1)", "41500.0", "12"]


def test_each_data_set_has_its_own_table_and_differences():
    photos = SHAPES | {"name": "photos_det"}
    values = [("test_resnetdw", 10.0, SHAPES), ("test_resnetdw_dk", 14.0, SHAPES), ("test_resnetdw_dk", 22.0, photos)]
    document = build_documents([make_record(model, value, data=data) for model, value, data in values])["detection"]
    assert [table.heading.partition(" ")[0] for table in document.tables] == ["photos_det", "procedural_det"]
    alone, beside = (row for row in markdown(document).splitlines() if "| test_resnetdw_dk |" in row)
    assert "| 22.0 (n=1) | - |" in alone and "| 14.0 (n=1) | +4.0 (n=1) |" in beside


def test_precision_of_a_size_that_no_object_has_is_no_figure():
    record = make_record("test_resnetdw", 10.0, data=SHAPES)
    record.metrics["final"]["val/mAP_l"] = None
    assert row_of(build_documents([record])["detection"], "FasterRCNN", "test_resnetdw")[16] == "no figure"


def test_differences_are_between_runs_that_differ_in_the_backbone_alone():
    rates = {"optim_wrapper__paramwise_cfg__custom_keys": {"kernel_offset": {"lr_mult": 0.1}}}
    start = {"model__backbone__checkpoint": "runs/rigid/last.ckpt"}

    def shown(base, ours):
        documents = build_documents(
            [make_record("resnet50dw", 36.0, **base), make_record("resnet50dw_dk", 38.0, **ours)]
        )
        return row_of(documents["table3"], "ResNet-50-DW", "rigid", "local 4x4, centred")[12]

    assert shown({}, rates) == "+2.0 (n=1)"  # a rigid backbone has no offsets
    assert shown(start, {"model__backbone__checkpoint": "runs/dk/last.ckpt"}) == "+2.0 (n=1)"
    assert shown(start, {}) == "-"  # one starts from ImageNet, the other from nothing
    assert shown({"optim_wrapper__optimizer__lr": 0.01}, {}) == "-"
    assert shown({"train_dataloader__batch_size": 4, "val_dataloader__batch_size": 4}, {}) == "-"


def test_backbone_that_the_configuration_deforms_is_not_its_rigid_base():
    spec = {"depthwise": "local", "scope": 5}
    rigid = make_record("resnet50dw", 36.0)
    ours = make_record("resnet50dw", 38.0, model__backbone__spec=spec)
    ours.model["spec"] = KernelSpec(**spec).to_dict()
    documents = build_documents([rigid, ours])
    assert row_of(documents["table3"], "ResNet-50-DW", "rigid", "rigid")[4] == "36.0 (n=1)"
    lines = [line for line in markdown(documents["detection"]).splitlines() if "| resnet50dw |" in line]
    assert len(lines) == 2
    assert "| rigid | local 5x5, centred |  | 38.0 (n=1) | +2.0 (n=1) |" in " ".join(lines)


def test_full_deformable_convolution_has_its_words():
    spec = KernelSpec(dense_dcn="v2", dense_dcn_groups=4, dilate_last=True)
    record = make_record("resnet50", 40.0, data=SHAPES, model__backbone__spec=spec.changed())
    record.model["spec"] = spec.to_dict()
    assert row_of(build_documents([record])["detection"], "FasterRCNN", "resnet50")[4] == (
        "full DCN v2 from stride 32, 4 groups, dilated"
    )


def test_cells_of_one_backbone_are_told_apart_by_the_key_they_differ_in():
    cells = gather(
        [
            make_record("a", 1.0),
            make_record(
                "a",
                2.0,
                param_scheduler=[{"type": "LinearLR", "end": 500}, {"type": "MultiStepLR", "milestones": [16, 22]}],
            ),
        ]
    )
    assert [cell.label for cell in cells] == [
        f"param_scheduler.1.milestones={steps}" for steps in ("[16, 22]", "[8, 11]")
    ]


def test_where_images_and_runs_lie_makes_no_cell():
    records = [make_record("a", 1.0), make_record("a", 3.0, seed=1, work_dir="elsewhere", output="there")]
    for loader in ("train_dataloader", "val_dataloader"):
        records[1].config[loader]["dataset"] |= {"data_root": "/mnt/coco"}
        records[1].config[loader]["num_workers"] = 8
    (cell,) = gather(records)
    assert cell.final("val/mAP").summary.mean == 2.0


def test_evaluations_and_classifiers_are_no_detectors():
    evaluation = dataclasses.replace(make_record("resnet50dw", 36.0), task="evaluation")
    classifier = dataclasses.replace(make_record("resnet50dw", 36.0, data=SHAPES), task="classification")
    documents = build_documents([evaluation, classifier])
    assert "detection" not in documents
    assert markdown(documents["table3"]) == markdown(empty_documents()["table3"])


def test_command_writes_the_tables(tmp_path, capsys):
    for number, record in enumerate([make_record("resnet50dw", 36.0), make_record("resnet50dw", 9.0, data=SHAPES)]):
        write_record(record, tmp_path / str(number) / "record.json")
    assert main(["tables", str(tmp_path), "--table", "3", "--output", str(tmp_path / "three")]) == 0
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == ["table3.csv", "table3.md", "table3.tex"]
    assert main(["tables", str(tmp_path), "--table", "detection"]) == 0
    names = {path.stem for path in tmp_path.glob("*.tex")}
    assert names == {"table3", "table4", "detection"}
    assert "36.0 (n=1)" in (tmp_path / "table3.md").read_text()
    assert "9.0 (n=1)" in (tmp_path / "detection.md").read_text() and "36.6" in capsys.readouterr().out
