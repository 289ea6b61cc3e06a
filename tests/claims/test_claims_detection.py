"""The claims of detection find the runs of their experiment: its sweep's configurations, as records hold them."""

import json
from pathlib import Path

from claims_cases import CLAIMS

from dk_bench.claims.findings import families
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.task import Detection
from dk_bench.runs.record import DETECTION, new_record
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.listing import make_jobs

ROOT = Path(__file__).parents[2]
SCENES = {"name": "procedural_scenes", "classes": ["triangle", "star"], "train_images": 540, "val_images": 1000}
MAP = {"test_resnetdw": 20.0, "test_resnetdw_dk": 21.0, "test_resnetdw_dcn": 23.0, "test_resnetdw_dcn_dk": 22.5}


def record_of(argv):
    """What the run of a cell would leave, had it ended at `MAP`."""
    config = load_detection_config(argv[2], argv[3:])
    record = new_record(
        name=config.run.name,
        config=json.loads(json.dumps(config.to_dict())),
        model=Detection(config).describe_model([]),
        data=SCENES,
        seed=config.run.seed,
        command=argv,
        task=DETECTION,
    )
    record.metrics["final"] = {"val/mAP": MAP[record.model["name"]]}
    record.status = "finished"
    return record


def test_the_experiments_runs_are_the_arms_that_its_claims_compare(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = make_jobs(read_sweep(Path("sweeps/e3_detection.yaml")), None)
    records = [record_of(job.argv) for job in jobs if job.point["seed"] == 3]
    found = families(CLAIMS, records, Path("none"))
    here = [family for family in found if family.place.name == "detection"]
    assert {len(family.blocks.runs) for family in here} == {4} and not any(family.blocks.missing for family in here)
    findings = [finding for family in here for finding in family.findings]
    means = {finding.claim.id: round(finding.judgement.mean, 6) for finding in findings}
    assert means == {"detection-local-over-rigid": 1.0, "detection-dcn-over-local": 2.0, "detection-dk-with-dcn": -0.5}


def test_the_runs_that_chose_the_recipe_are_no_evidence(monkeypatch):
    monkeypatch.chdir(ROOT)
    records = [record_of(job.argv) for job in make_jobs(read_sweep(Path("sweeps/e3_recipe.yaml")), None)[:2]]
    found = families(CLAIMS, records, Path("none"))
    assert not any(family.blocks.runs for family in found if family.place.name == "detection")
