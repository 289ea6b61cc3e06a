"""Models that are not in the paper: sections of their own in tables of classifiers, from records made here."""

from dataclasses import replace

from table_cases import COSTS, IMAGENET, lines_of, make_record

from dk_bench.models import LARGE_MODELS
from dk_bench.tables.columns import BEYOND
from dk_bench.tables.documents import build_documents


def test_models_that_the_paper_has_not_stand_below_its_table():
    tops = {"resnet50": 76.0, "resnet50_dcn": 77.0, "resnet50_dcn_dk": 78.0, "resnet50dw": 75.0}
    records = [make_record(model, top1, data=IMAGENET) for model, top1 in tops.items()]
    documents = build_documents(records, COSTS)
    assert "other" not in documents and len(documents["table2"].tables) == 1
    rows = lines_of(documents["table1"], 1)
    assert list(rows) == list(LARGE_MODELS)
    assert rows["resnet50_dcn"][1:6] == ["rigid", "rigid", "full DCN v1 from stride 8", "77.0 (n=1)", "+1.0 (n=1)"]
    both = rows["resnet50_dcn_dk"]
    assert both[1:6] == ["rigid", "dense local 4x4, centred", "full DCN v1 from stride 8", "78.0 (n=1)", "+2.0 (n=1)"]
    assert both[8] == "+1.0 (n=1)"  # above DCN alone
    assert rows["resnet50dw_dk_spread"][1:6] == ["rigid", "local 4x4, spread", "", "not run", "-"]
    assert rows["resnet50dw_dk_lpw"][1:6] == ["local 2x2", "local 4x4, centred", "", "not run", "-"]
    section = documents["table1"].tables[1]
    assert not any("paper" in column for column in section.columns)
    assert section.note == f"{BEYOND} Family: 9 differences (8 Δ rigid, 1 Δ DK), 3 of them run."


def test_models_beyond_the_paper_have_a_section_on_every_data_set():
    """Beside the same rigid bases, and in a family of their own."""
    names = ["small_resnetdw", "small_resnetdw_dk", "small_resnetdw_dk_lpw", "small_resnet", "small_resnet_dk"]
    records = [make_record(name, 50.0 + place) for place, name in enumerate(names)]
    records += [make_record("resnet50", 60.0), make_record("resnet50_gdk", 61.0)]
    document = build_documents(records)["other"]
    like, beyond = document.tables
    assert [table.heading.rpartition(": ")[2] for table in document.tables] == [
        "not comparable with the paper",
        "not in the paper",
    ]
    assert set(lines_of(document, 0)) == {"small_resnetdw", "small_resnetdw_dk", "resnet50"}
    rows = lines_of(document, 1)
    gains = {"small_resnetdw_dk_lpw": "+2.0 (n=1)", "small_resnet_dk": "+1.0 (n=1)", "resnet50_gdk": "+1.0 (n=1)"}
    assert {name: row[5] for name, row in rows.items()} == gains | {"small_resnet": "-"}
    assert [table.note for table in (like, beyond)] == [
        "Family: 1 difference (1 Δ rigid), 1 of them run.",
        "Family: 3 differences (3 Δ rigid), 3 of them run.",
    ]
    tiny = build_documents([make_record("test_resnetdw", 1.0), make_record("test_resnetdw_dk_lpw", 2.0)])["demo"]
    assert lines_of(tiny, 1)["test_resnetdw_dk_lpw"][5] == "+1.0 (n=1)" and len(lines_of(tiny, 1)) == 1


def test_a_spec_is_beyond_the_paper_as_the_model_of_its_name_is():
    """The rigid base is not, where the paper has it, and stands above."""
    names = ("resnet50", "regnetx_002", "small_resnetdw")
    local = ({"dense": "local"}, {"dense": "global"}, {"depthwise": "local", "pointwise": "local"})
    records = [make_record(name, 50.0) for name in names]
    for name, spec in zip(names, local, strict=True):
        record = make_record(name, 51.0)
        config = record.config | {"model": {"name": name, "spec": spec}}
        records.append(replace(record, run_id=f"{name}-spec", config=config, model={"name": name, "spec": spec}))
    document = build_documents([*records, make_record("resnet50_dk", 52.0)])["other"]
    assert lines_of(document, 0).keys() == set(names)
    assert {name: row[5] for name, row in lines_of(document, 1).items()} == {
        "resnet50_dk": "+2.0 (n=1)",
        **dict.fromkeys(names, "+1.0 (n=1)"),
    }
