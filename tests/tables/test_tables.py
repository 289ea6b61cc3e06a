"""The paper's figures, and tables from records made here."""

import csv
import dataclasses
import json
import math

import pytest
import yaml
from rich.console import Console
from table_cases import COSTS, IMAGENET, PROCEDURAL, lines_of, make_record

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.models import LARGE_MODELS, PAPER_MODELS, KernelSpec
from dk_bench.report.readme import BEGIN, END
from dk_bench.runs.record import new_record, write_record
from dk_bench.tables.cells import gather
from dk_bench.tables.classification import DEMO_MODELS
from dk_bench.tables.costs import count_costs, load_costs
from dk_bench.tables.documents import build_documents
from dk_bench.tables.entries import Number
from dk_bench.tables.paper import PAPER_FILE, load_paper, paper_models, row_name
from dk_bench.tables.render import csv_text, latex, markdown
from dk_bench.tables.table import Document, Table
from dk_bench.tables.terminal import show

# The paper's figures


def test_paper_figures_are_whole():
    paper = load_paper()
    assert [len(rows) for rows in paper.values()] == [14, 8, 10, 8]
    assert paper["table1"][3]["conv3x3"] == "local 4x4"


def test_every_row_of_tables_1_and_2_has_its_model():
    paper = load_paper()
    rows = {row_name(row) for row in paper["table1"] + paper["table2"]}
    assert paper_models().keys() == rows and set(paper_models().values()) == PAPER_MODELS.keys()
    assert len(PAPER_MODELS) == len(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("source"), "source"),
        (lambda c: c.pop("table2"), "table2 is not a list"),
        (lambda c: c["table1"][0].pop("top1"), "table1, row 1: missing top1"),
        (lambda c: c["table1"][1].update(top5=1), "table1, row 2: unknown top5"),
        (lambda c: c["table3"][2].update(map="high"), "table3, row 3: map is 'high'"),
        (lambda c: c["table4"].append(c["table4"][0]), "table4, row 9: there twice"),
        (lambda c: c["table1"][0].update(pw=2), "table1, row 1: pw is 2"),
        (lambda c: c["table1"].insert(0, "row"), "table1, row 1: expected a mapping"),
    ],
)
def test_faulty_paper_file_is_named(tmp_path, change, message):
    content = yaml.safe_load(PAPER_FILE.read_text())
    change(content)
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as error:
        load_paper(path)
    assert str(path) in str(error.value)


# Cells


def test_seeds_of_a_cell_come_together_once():
    again = dataclasses.replace(make_record("a", 60.0, seed=1), ended="2026-01-02T00:00:00+00:00")
    died = dataclasses.replace(make_record("a", seed=0, status="failed"), ended="2026-01-03T00:00:00+00:00")
    records = [make_record("a", 50.0), died, make_record("a", 55.0, seed=1), again]
    (cell,) = gather(records)
    assert [run.seed for run in cell.runs] == [0, 1]
    summary = cell.final("val/top1").summary
    assert (summary.n, summary.mean) == (2, 55.0)  # seed 0: the finished run; seed 1: the later one


def test_cells_of_one_model_are_told_apart():
    cells = gather([make_record("a", 1.0, lr=0.2), make_record("a", 2.0), make_record("b", 3.0)])
    assert [(cell.model, cell.label) for cell in cells] == [("a", "optim.lr=0.1"), ("a", "optim.lr=0.2"), ("b", "")]


@pytest.mark.parametrize(
    ("records", "shown"),
    [
        ([make_record("a", 70.0)], "70.0 (n=1)"),
        ([make_record("a", 70.0 + s, seed=s) for s in range(3)], "71.0 ± 2.5 (n=3)"),
        ([make_record("a", 70.0), make_record("a", 99.0, seed=1, status="failed")], "70.0 (n=1), 1 failed"),
        ([make_record("a", 99.0, status="failed")], "failed"),
        ([make_record("a", 99.0, status="running")], "running"),
        (
            [make_record("a", 99.0, status=s, seed=n) for n, s in enumerate(["failed", "running"])],
            "1 failed, 1 running",
        ),
        ([make_record("a")], "no figure"),
        ([make_record("a", math.nan), make_record("a", 70.0, seed=1)], "70.0 (n=1), 1 without figure"),
    ],
)
def test_only_finished_runs_give_figures(records, shown):
    assert lines_of(build_documents(records)["other"])["a"][4] == shown


def test_records_of_older_rules_and_other_machines_are_one_cell():
    old, new = make_record("a", 50.0), make_record("a", 52.0, seed=1)
    old.config_hash = "made by old rules"
    old.config |= {"data": {"workers": 1, "train": "here/train"}, "trainer": {"accelerator": "cpu"}}
    new.config |= {"data": {"workers": 8, "train": "there/train"}, "trainer": {"devices": 1, "channels_last": True}}
    (cell,) = gather([old, new])
    assert cell.final("val/top1").summary.n == 2 and old.config_hash == "made by old rules"


def test_cells_are_labelled_by_defaults_too():
    plain, decayed = make_record("a", 1.0), make_record("a", 2.0)
    decayed.config["ema"] = {"decay": 0.9}
    assert [cell.label for cell in gather([plain, decayed])] == ["ema.decay=0.9", "ema.decay=None"]


def test_evaluations_are_no_cells():
    evaluated = dataclasses.replace(make_record("a", 50.0), task="evaluation")
    assert "other" not in build_documents([evaluated])


# Tables


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("config", {"data": {"size": 192}}),
        ("config", {"data": {"crop_pct": 1.0}}),
        ("model", {"input_size": [3, 160, 160]}),
    ],
)
def test_imagenet_evaluated_otherwise_does_not_stand_beside_the_paper(section, change):
    record = make_record("resnet50dw_dk", 79.0, data=IMAGENET)
    record.model["input_size"] = [3, 224, 224]
    assert "| 78.1 | 79.0 (n=1) |" in markdown(build_documents([record], COSTS)["table1"])
    getattr(record, section).update(change)
    imagenet, _, other = build_documents([record], COSTS)["table1"].tables
    shown = {table.heading: csv_text(Document("t", "", [], [table])) for table in (imagenet, other)}
    assert ",79," in shown[other.heading] and ",79," not in shown["ImageNet"]
    assert "not evaluated as in the paper" in other.heading
    assert not any("paper" in column for column in other.columns)


def test_cost_that_could_not_be_counted_is_unknown():
    record = make_record("my_net", 50.0)
    record.cost = {"params": 3000, "macs": None, "sampling_macs": None, "error": "no formula"}
    assert lines_of(build_documents([record])["other"])["my_net"][11:14] == ["3.0", "unknown", "unknown"]


def test_imagenet_stands_beside_the_paper():
    records = [make_record("resnet50dw_dk", top1, seed=s, data=IMAGENET) for s, top1 in enumerate((77.0, 78.0))]
    document = build_documents(records, COSTS)["table1"]
    assert [table.heading for table in document.tables] == ["ImageNet", "ImageNet: not in the paper"]
    text = markdown(dataclasses.replace(document, tables=document.tables[:1]))
    ours = "77.5 ± 6.4 (n=2) | +1.8 | - | - | not run | 25.0 | 0.25 | 4.32 | 0.01 | 0.000 | 2"
    assert f"| rigid | local 4x4, centred | 78.1 | {ours} |" in text
    rigid = "76.3 | not run | - | - | - |  | 23.7 | 23.68 | 3.82 | 4.02 | 0.000 | -"
    assert f"| ResNet-50-DW | rigid | rigid | {rigid} |" in text
    assert text.count("| not run |") == 13 + 11  # figures, and verdicts on all but the three bases


def test_other_data_never_stand_beside_the_paper():
    small = IMAGENET | {"val_images": 1000, "classes": 1000}  # names or number
    documents = build_documents([make_record("resnet50dw_scc", 70.0, data=data) for data in (PROCEDURAL, small)], COSTS)
    imagenet, *others = documents["table2"].tables
    assert imagenet.heading == "ImageNet"
    assert all(row[imagenet.columns.index("top-1")].state == "not run" for row in imagenet.rows)
    assert len(others) == 2
    for table in others:
        assert table.heading.endswith("images): not comparable with the paper")
        assert not any("paper" in column for column in table.columns)
        assert len(table.rows) == len(imagenet.rows)
    assert "70.0 (n=1)" in markdown(documents["table2"])


def test_demo_table():
    values = {"test_resnetdw": (70, 71, 72), "test_resnetdw_dk": (74, 75, 76), "test_resnetdw_dk_s5": (73,)}
    records = [make_record(model, v, seed=s) for model, tops in values.items() for s, v in enumerate(tops)]
    records.append(make_record("test_resnetdw_dcn", status="failed"))
    rows = lines_of(build_documents(records)["demo"])
    assert tuple(rows) == DEMO_MODELS
    costs = ["250.0", "12.35", "0.07", "2"]
    judged = ["-", "-", ""]
    assert rows["test_resnetdw"] == ["test_resnetdw", "rigid", "rigid", "", "71.0 ± 2.5 (n=3)", *judged * 2, *costs]
    assert rows["test_resnetdw_dk"][2:6] == ["local 4x4, centred", "", "75.0 ± 2.5 (n=3)", "+4.0 ± 0.0 (n=3)"]
    assert rows["test_resnetdw_dk_s5"][2:6] == ["local 5x5, centred", "", "73.0 (n=1)", "+3.0 (n=1)"]  # to seed 0's 70
    assert rows["test_resnetdw_dcn"][2:6] == ["rigid", "DCN", "failed", "-"]
    assert rows["test_resnetdw_dcn_dk"][2:6] == ["local 4x4, centred", "DCN", "not run", "-"]
    assert rows["test_resnetdw_gdk"][2] == "global 4x4, centred"


def test_images_per_second_of_ordinary_runs_stand_nowhere():
    """They are load as much as speed."""
    records = [make_record(m, 70.0) for m in ("resnet50dw", "test_resnetdw", "my_net")]
    shown = "".join(markdown(document) + csv_text(document) for document in build_documents(records).values())
    assert records[0].throughput["train_images_per_second"] == 400.4 and "400" not in shown
    assert "images/s" not in shown and "per second" not in shown


def test_each_data_set_has_its_own_demo_table():
    photos = {"name": "photos10", "classes": list("abcdefghij"), "train_images": 5000, "val_images": 1000}
    records = [make_record("test_resnetdw", 50.0), make_record("test_resnetdw", 60.0, data=photos)]
    document = build_documents([*records, make_record("test_resnetdw_dk", 64.0, data=photos)])["demo"]
    photos_table, procedural_table = document.tables
    assert photos_table.heading.startswith("photos10 (10 classes, 5,000 training and 1,000 validation images)")
    assert procedural_table.heading.startswith("procedural (2 classes")
    assert lines_of(document, 0)["test_resnetdw_dk"][4:6] == ["64.0 (n=1)", "+4.0 (n=1)"]
    assert lines_of(document, 1)["test_resnetdw_dk"][4:6] == ["not run", "-"]


def test_gain_is_over_the_rigid_base_with_the_same_settings():
    records = [
        make_record("test_resnetdw", 50.0, lr=0.1, offset_lr_multiplier="auto"),
        make_record("test_resnetdw", 60.0, lr=0.2, offset_lr_multiplier="auto"),
        make_record("test_resnetdw_dk", 61.0, lr=0.2, offset_lr_multiplier=1.0),  # nothing to a rigid model
        make_record("test_resnetdw_gdk", 61.0, lr=0.3, offset_lr_multiplier="auto"),
    ]
    rows = lines_of(build_documents(records)["demo"])
    assert rows["test_resnetdw_dk"][5] == "+1.0 (n=1)"
    assert rows["test_resnetdw_gdk"][5] == "-"


def test_gain_is_paired_over_the_seeds_both_finished():
    rigid, ours = {0: 60.0, 1: 70.0, 2: 50.0, 3: 10.0}, {0: 61.0, 1: 72.0, 2: 53.0, 4: 90.0}
    records = [make_record("test_resnetdw", top1, seed=seed) for seed, top1 in rigid.items()]
    records += [make_record("test_resnetdw_dk", top1, seed=seed) for seed, top1 in ours.items()]
    records += [make_record("test_resnetdw", seed=5, status="failed"), make_record("test_resnetdw_dk", 80.0, seed=5)]
    records += [make_record("test_resnetdw_gdk", 99.0, seed=7)]  # no seed in common
    document = build_documents(records)["demo"]
    # Differences 1, 2, 3: deviation 1, half width 4.302653 / sqrt(3).
    assert lines_of(document)["test_resnetdw_dk"][5] == "+2.0 ± 2.5 (n=3)"
    assert lines_of(document)["test_resnetdw_gdk"][5] == "-"
    assert "Δ rigid ±95%" in csv_text(document).splitlines()[0]


@pytest.mark.parametrize("key", ["drop_path_rate", "checkpoint"])
def test_gain_is_not_over_a_base_with_another_model_setting(key):
    rigid, ours = make_record("test_resnetdw", 50.0), make_record("test_resnetdw_dk", 60.0)
    ours.config["model"][key] = {"drop_path_rate": 0.1, "checkpoint": "base.ckpt"}[key]
    assert lines_of(build_documents([rigid, ours])["demo"])["test_resnetdw_dk"][5] == "-"
    rigid.config["model"][key] = ours.config["model"][key]
    assert lines_of(build_documents([rigid, ours])["demo"])["test_resnetdw_dk"][5] == "+10.0 (n=1)"


def test_model_that_the_configuration_deforms_is_not_its_rigid_base():
    spec = KernelSpec(depthwise="local", scope=5)
    records = [make_record("resnet50dw", 70.0, data=IMAGENET), make_record("resnet50dw", 72.0, data=IMAGENET)]
    records[1].config["model"]["spec"] = {"depthwise": "local", "scope": 5}
    records[1].model["spec"] = spec.to_dict()
    documents = build_documents(records, COSTS)
    assert "72.0" not in markdown(documents["table1"]) and "70.0 (n=1)" in markdown(documents["table1"])
    lines = markdown(documents["other"]).splitlines()
    (deformed,) = [line for line in lines if "72.0 (n=1)" in line]
    assert "| local 5x5, centred |  | 72.0 (n=1) | +2.0 (n=1) |" in deformed
    assert any("| rigid |  | 70.0 (n=1) | - |" in line for line in lines)


def test_models_of_ones_own_are_described_by_their_record():
    record = make_record("my_net", 50.0)
    record.model["spec"] = KernelSpec(depthwise="local", scope=5, grid="spread", dcn=True).to_dict()
    assert lines_of(build_documents([record])["other"])["my_net"][1:4] == ["rigid", "local 5x5, spread", "DCN"]
    record.model["spec"] = {"scoop": 5}
    with pytest.raises(UserError, match=r"my_net: model\.spec: .*'scoop'"):
        build_documents([record])


def test_formats():
    table = Table("data_1", ("model", "top-1", "Δ", "setting"), [["a|b_[c]", Number(1.234, 1, signed=True), "", "50%"]])
    document = Document("try", "Title", ["A note."], [table])
    assert markdown(document) == (
        "# Title\n\n## data_1\n\n| model | top-1 | Δ | setting |\n| :-- | --: | :-- | :-- |\n"
        "| a\\|b_[c] | +1.2 |  | 50% |\n\nA note.\n"
    )
    assert csv_text(document) == "table,model,top-1,Δ,setting\ndata_1,a|b_[c],1.234,,50%\n"
    assert latex(document) == (
        "% Title\n\n\\begin{table}\n\\caption{Title data\\_1.}\n\\begin{tabular}{lrll}\n\\toprule\n"
        "model & top-1 & $\\Delta$ & setting \\\\\n\\midrule\na$|$b\\_[c] & +1.2 &  & 50\\% \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    console = Console(width=100)
    with console.capture() as capture:
        show(document, console)
    assert "a|b_[c]" in capture.get() and "A note." in capture.get()


def test_csv_has_spread_and_state_in_columns_of_their_own():
    records = [make_record("a", 70.0 + s, seed=s) for s in range(3)] + [make_record("a", seed=3, status="failed")]
    (row,) = csv.DictReader(csv_text(build_documents(records)["other"]).splitlines())
    assert (row["top-1"], row["top-1 n"], row["top-1 state"]) == ("71", "3", "1 failed")
    assert float(row["top-1 ±95%"]) == pytest.approx(2.484138)


# The command


def test_command_writes_the_same_bytes_for_the_same_records(tmp_path, capsys):
    records = [make_record("test_resnetdw", 70.0, seed=s) for s in range(2)] + [make_record("resnet50dw", 70.0)]
    for order, name in ((records, "one"), (reversed(records), "two")):
        for number, record in enumerate(order):
            write_record(record, tmp_path / name / str(number) / "record.json")
    assert main(["tables", str(tmp_path / "one")]) == 0
    assert "70.0 ± 0.0 (n=2)" in capsys.readouterr().out
    assert main(["tables", str(tmp_path / "two"), "--output", str(tmp_path / "out")]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(f"{t}.{s}" for t in ("demo", *load_paper()) for s in ("md", "csv", "tex"))
    for name in written:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_command_writes_the_table_asked_for(tmp_path):
    write_record(make_record("test_resnetdw", 70.0), tmp_path / "record.json")
    assert main(["tables", str(tmp_path / "record.json"), "--table", "demo"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.csv", "demo.md", "demo.tex", "record.json"]


def test_command_shows_a_run_whose_process_is_gone_as_failed(tmp_path, capsys):
    model, data = {"name": "test_resnetdw"}, PROCEDURAL
    record = new_record(name="t", config={"model": model}, model=model, data=data, seed=0, device="cpu")
    write_record(record, tmp_path / "record.json")
    assert main(["tables", str(tmp_path), "--table", "demo"]) == 0
    assert "running" in capsys.readouterr().out
    record.attempts[-1]["process"] |= {"boot": "before the power cut"}
    write_record(record, tmp_path / "record.json")
    assert main(["tables", str(tmp_path), "--table", "demo"]) == 0
    assert "running" not in capsys.readouterr().out and "| failed" in (tmp_path / "demo.md").read_text()


def test_command_puts_the_differences_into_a_readme(tmp_path, capsys):
    tops = {"test_resnetdw": 70.0, "test_resnetdw_dk": 71.0, "resnet50dw": 60.0, "resnet50dw_dk": 62.0, "my_net": 3.0}
    for model, top1 in tops.items():
        write_record(make_record(model, top1), tmp_path / "results" / model / "record.json")
    write_record(make_record("test_resnetdw_gdk", status="failed"), tmp_path / "results" / "gdk" / "record.json")
    readme = tmp_path / "docs" / "README.md"
    readme.parent.mkdir()
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["tables", str(tmp_path / "results"), "--readme", str(readme), "--table", "1"]) == 0
    assert (
        readme.read_text()
        == f"""before
{BEGIN}

| data, table | model | top-1 or mAP | Δ rigid | p (Holm) | verdict |
| :-- | :-- | --: | --: | --: | :-- |
| [procedural](../results/table1.md) | ResNet-50-DW | 60.0 (n=1) | - | - |  |
|  | ResNet-50-DW local 4x4, centred | 62.0 (n=1) | +2.0 (n=1) | - | undecided |
| [procedural](../results/demo.md) | test_resnetdw | 70.0 (n=1) | - | - |  |
|  | test_resnetdw_dk local 4x4, centred | 71.0 (n=1) | +1.0 (n=1) | - | undecided |

{END}
after
"""
    )
    readme.write_text(END + BEGIN)
    assert main(["tables", str(tmp_path / "results"), "--readme", str(readme)]) == 2
    assert "README.md: expected the line <!-- from the records" in capsys.readouterr().err
    assert main(["tables", str(tmp_path / "results"), "--readme", str(tmp_path / "none.md")]) == 2


def test_command_names_a_bad_record(tmp_path, capsys):
    (tmp_path / "record.json").write_text("{")
    assert main(["tables", str(tmp_path)]) == 2
    assert "record.json: not a JSON file" in capsys.readouterr().err
    assert main(["tables", str(tmp_path / "nowhere")]) == 2


def test_bad_costs_file_is_named(tmp_path):
    path = tmp_path / "costs.json"
    assert load_costs(path) == {}
    path.write_text(json.dumps({"resnet50dw": [1]}))
    with pytest.raises(UserError, match=r"costs\.json: no counts"):
        load_costs(path)


def test_committed_costs_cover_the_large_models():
    costs = load_costs()
    assert costs.keys() == (PAPER_MODELS | LARGE_MODELS).keys()
    assert all(cost.keys() == {"params", "macs", "sampling_macs"} for cost in costs.values())
    assert count_costs(["mobilenetv2_100_dk", "mobilenetv2_100_dk_lpw"]).items() <= costs.items()
