"""Which images were told rightly: as bits in records, and what is made of two models' rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from table_cases import make_record
from training_cases import STEPS, PowerCut, tiny

from dk_bench.classification import hits as hits_module
from dk_bench.classification.hits import Hits
from dk_bench.errors import UserError
from dk_bench.runs.correct import correct_images, correct_together, crossed_interval, mcnemar, pack_correct
from dk_bench.runs.record import find_records, read_record, write_record
from dk_bench.training import evaluate, load_model, run_folder, train


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 10_000])
def test_bits_of_a_record(tmp_path, count):
    hits = np.random.default_rng(count).random(count) < 0.7
    record = make_record("m", 70.0)
    record.correct["val"] = pack_correct(hits, "abc")
    read = read_record(write_record(record, tmp_path / "record.json"))
    assert read.correct["val"]["images"] == count and np.array_equal(correct_images(read), hits)
    assert len(json.dumps(read.correct)) < 1800


def test_records_that_do_not_say(tmp_path):
    record = make_record("m", 70.0)
    with pytest.raises(UserError, match="record m-0 does not say which images of 'val' were told rightly"):
        correct_images(record)
    record.correct["val"] = pack_correct(np.ones(9), "abc")
    with pytest.raises(UserError, match="of 'test' were told rightly, it does of val"):
        correct_images(record, "test")
    for damage in ({"bits": "AA=="}, {"bits": "?"}, {"images": None}):
        damaged = make_record("m", 70.0)
        damaged.correct["val"] = record.correct["val"] | damage
        with pytest.raises(UserError, match="correct.val is damaged"):
            correct_images(damaged)
    content = json.loads(write_record(record, tmp_path / "record.json").read_text())
    del content["correct"]  # an older record
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "record.json").correct == {}


def test_records_of_other_images_are_not_put_together():
    records = [make_record("m", 70.0, seed=seed) for seed in range(3)]
    for record, order in zip(records, ("abc", "abc", "abd"), strict=True):
        record.correct["val"] = pack_correct(np.arange(10) % 3 > 0, order)
    assert correct_together(records[:2]).shape == (2, 10)
    for wrong in (records, [*records[:2], record]):
        with pytest.raises(UserError, match="not known to be of the same images 'val' in the same order"):
            correct_together(wrong)
    record.correct["val"]["order"] = None
    with pytest.raises(UserError, match="not known"):
        correct_together([record, record])


def test_mcnemar_is_the_exact_binomial_test():
    rng = np.random.default_rng(0)
    for count, other in ((1000, 0.75), (40, 0.4), (12, 0.9)):
        ours, theirs = rng.random(count) < 0.7, rng.random(count) < other
        more, less, p = mcnemar(ours, theirs)
        assert (more, less) == (np.sum(ours & ~theirs), np.sum(theirs & ~ours))
        assert p == pytest.approx(binomtest(more, more + less).pvalue, rel=1e-9)
    assert mcnemar(ours, ours) == (0, 0, 1.0)


def test_crossed_interval_holds_over_seeds_and_images():
    """Drawn from a crossed layout, 95 % of the intervals hold the true mean, or more; by images alone far fewer do."""
    rng, seeds, images, held, alone = np.random.default_rng(1), 6, 200, 0, 0
    for _ in range(400):
        of_seeds, of_images = rng.normal(0, 0.02, (seeds, 1)), rng.normal(0, 0.3, (1, images))
        found = crossed_interval(0.1 + of_seeds + of_images + rng.normal(0, 0.5, (seeds, images)))
        held += abs(found["mean"] - 0.1) <= found["half_width"]
        alone += abs(found["mean"] - 0.1) <= 1.96 * 0.5 / np.sqrt(seeds * images)
    assert 0.94 * 400 <= held and alone < 0.9 * 400
    exact = crossed_interval(np.array([[1.0, 2.0], [3.0, 4.0]]))  # no rest: variances 2 / 2 of seeds, 0.5 / 2 of images
    assert exact["seeds"] == pytest.approx(1.0) and exact["images"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 seeds and 5 images, expected two or more of both"):
        crossed_interval(np.zeros((1, 5)))


def test_hits_of_several_processes_are_in_order(monkeypatch):
    """Seven images on three processes, in batches of two: 3, 2 and 2 of them."""
    labels, told = torch.arange(7), torch.tensor([0, 1, 0, 3, 0, 0, 6])
    shares = []
    for rank in range(3):
        hits = Hits()
        for batch in torch.arange(7)[rank::3].split(2):
            hits.update(torch.eye(7)[told[batch]], labels[batch])
        shares.append(hits)
    parts = [torch.cat(share._batches) for share in shares]
    monkeypatch.setattr(hits_module, "processes", lambda: (0, 3))
    monkeypatch.setattr(hits_module, "gather_all_tensors", lambda own: parts if own is not None else None)
    assert shares[0].compute().tolist() == (told == labels).tolist()


def test_training_leaves_the_images_of_its_last_epoch(tmp_path):
    config = tiny(tmp_path, "optim.epochs=2")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS)])
    (path,) = find_records([tmp_path])
    first = read_record(path)
    assert 100 * correct_images(first).mean() == pytest.approx(first.metrics["epochs"][0]["val/top1"])
    record = train(config)
    hits = correct_images(record)
    assert len(hits) == 12 and 100 * hits.mean() == pytest.approx(record.metrics["final"]["val/top1"])
    assert record.correct["val"]["order"] == record.data["checksum"]["val"]
    checkpoint = run_folder(config) / "last.ckpt"
    assert evaluate(checkpoint).correct == record.correct
    from dk_bench.classification.data import ClassificationData

    model = load_model(checkpoint).eval()
    loader = ClassificationData(config.data, config.seed).val_dataloader()
    with torch.no_grad():
        right = [(model(images).argmax(1) == labels).numpy() for images, labels in loader]
    assert np.array_equal(np.concatenate(right), hits)


def test_resuming_with_no_steps_left_keeps_the_images(tmp_path):
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    before = train(config)
    path = run_folder(config) / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "running", "ended": None, "correct": {}}))
    assert train(config).correct == before.correct != {}
