"""Records of experiments that test claims, made up, shared by the tests of claims."""

import copy

from table_cases import make_record

from dk_bench.claims.file import load_claims
from dk_bench.runs.record import DETECTION

CIFAR10 = {"name": "cifar10", "classes": 10, "train_images": 45_000, "val_images": 5000, "test_images": 10_000}
CLAIMS = load_claims()


def run_of(arm, figure, seed=0, *, experiment="photographs", backbone="ResNet-50-DW", status="finished", **metrics):
    """A run of an arm as the experiment trains it, with its metric."""
    place, trained = CLAIMS.experiments[experiment], CLAIMS.arms[arm]
    model = place.bases[backbone].model
    record = make_record(model, seed=seed, status=status, data=CIFAR10)
    record.run_id, record.name = f"{experiment}-{model}-{arm}-s{seed}", place.runs
    record.task = DETECTION if experiment == "detection" else record.task
    experts = {"experts": 8} if trained.spec.experts else {}
    record.model |= {"spec": trained.spec.to_dict() | experts, "input_size": [3, 32, 32]}
    record.config = copy.deepcopy(record.config)
    record.config["model"]["spec"] = trained.spec.changed() | experts
    if trained.multiplier is not None:
        record.config["optim"]["offset_lr_multiplier"] = trained.multiplier
    record.metrics["final"] = {} if figure is None else {place.metric: figure, **metrics}
    record.device = {"type": "cpu"}
    return record


def runs_of(figures, **settings):
    """Runs of arms, each with its figures by seed from 0 on."""
    return [run_of(arm, figure, seed, **settings) for arm, row in figures.items() for seed, figure in enumerate(row)]
