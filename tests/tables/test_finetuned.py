"""The table of models that started from trained weights: by test images where there are some, apart from all others."""

import dataclasses

import pytest
from table_cases import PROCEDURAL, lines_of, make_record

from dk_bench.runs.identity import config_hash
from dk_bench.tables.documents import build_documents
from dk_bench.tables.render import markdown

PHOTOS = PROCEDURAL | {"name": "photos"}
LOCAL = {"depthwise": "local"}


def started(name, val, test=None, *, spec=None, seed=0, data=PHOTOS, **model):
    record = make_record(name, val, seed=seed, data=data)
    settings = {"checkpoint": "data/weights.safetensors", "spec": spec, **model}
    config = record.config | {"model": record.config["model"] | settings}
    final = {"val/top1": val} | ({} if test is None else {"test/top1": test})
    changes = {"config": config, "config_hash": config_hash(config), "model": record.model | {"spec": spec}}
    return dataclasses.replace(record, metrics=record.metrics | {"final": final}, run_id=f"{spec}-{seed}", **changes)


def test_differences_are_of_test_images_paired_by_seed():
    records = [started("efficientnet_lite0", 80.0, 70.0 + seed, seed=seed) for seed in range(3)]
    records += [started("efficientnet_lite0", 81.0, 72.5 + 0.9 * seed, spec=LOCAL, seed=seed) for seed in range(3)]
    documents = build_documents(records)
    assert "other" not in documents
    (table,) = documents["finetuned"].tables
    rigid, local = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert table.heading.startswith("photos (2 classes")
    assert (rigid["test top-1"].summary.mean, local["val top-1"].summary.mean) == (71.0, 81.0)
    assert local["Δ rigid"].summary.mean == pytest.approx(2.4) and local["Δ rigid"].summary.n == 3
    assert local["3x3"] == "local 4x4, centred" and "depthwise=local" in local["setting"].replace("'", "")
    assert "Family: 1 difference" in table.note
    assert "Every row started from trained weights" in markdown(documents["finetuned"])


def test_without_test_images_validation_images_count():
    records = [
        started("efficientnet_lite0", 80.0 + seed, spec=spec, seed=seed) for spec in (None, LOCAL) for seed in (0, 1)
    ]
    (table,) = build_documents(records)["finetuned"].tables
    assert "top-1" in table.columns and "test top-1" not in table.columns and "val top-1" not in table.columns


@pytest.mark.parametrize("settings", [{}, {"checkpoint": None, "pretrained": True}], ids=["file", "timm's"])
def test_fine_tuned_models_stand_apart_from_models_trained_anew(settings):
    anew = make_record("efficientnet_lite0", 40.0, data=PHOTOS)
    documents = build_documents([anew, started("efficientnet_lite0", 60.0, **settings)])
    tops = {name: lines_of(documents[name])["efficientnet_lite0"][4] for name in ("other", "finetuned")}
    assert tops == {"other": "40.0 (n=1)", "finetuned": "60.0 (n=1)"}
    assert "finetuned" not in build_documents([anew])
    tiny = build_documents(
        [make_record("test_resnetdw", 50.0, data=PHOTOS), started("test_resnetdw", 60.0, **settings)]
    )
    assert "finetuned" not in tiny and "60.0 (n=1)" in markdown(tiny["demo"])  # which has all of its base
