"""Tables of receptive fields and probes: one family a table, corrected; again from their files; where runs are from."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_cases import checkpoint, read_csv
from scipy import stats

from dk_bench.analysis.dynamics.differences import families
from dk_bench.analysis.dynamics.tables import read_tables
from dk_bench.analysis.erf.summary import SEEDS
from dk_bench.analysis.erf.tables import read_summary
from dk_bench.analysis.family import Difference, corrected, family_note
from dk_bench.analysis.held import held_accuracy, held_at_mean
from dk_bench.analysis.learned import load, sources
from dk_bench.analysis.learned import recorded as watched
from dk_bench.analysis.objects import procedural_objects
from dk_bench.analysis.origin import Origin, origin_of, read_about
from dk_bench.analysis.pictures import open_pictures
from dk_bench.analysis.subjects import open_model
from dk_bench.claims.studies import HELD
from dk_bench.cli import main
from dk_bench.cli.checkpoints import checkpoints_below
from dk_bench.config import load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.runs.record import new_record, write_record
from dk_bench.tables.statistics import Summary, summarize

RESULTS = Path(__file__).parents[2] / "results"
FIELDS = sorted([*RESULTS.glob("erf/*.csv"), *RESULTS.glob("erf/*/summary.csv")])


def test_p_is_scipys_and_corrected_over_the_family():
    samples = np.random.default_rng(0).normal(0.6, 1.0, (7, 5))
    given = [Difference(summarize(sample.tolist())) for sample in samples]
    found = corrected(given)
    expected = [stats.ttest_1samp(sample, 0).pvalue for sample in samples]
    np.testing.assert_allclose([each.p for each in found[:7]], expected, rtol=1e-4)
    order = np.argsort(expected)
    holm = np.minimum(1, np.maximum.accumulate((7 - np.arange(7)) * np.array(expected)[order]))
    np.testing.assert_allclose([found[index].p_holm for index in order], holm, rtol=1e-4)
    none = corrected([Difference(Summary(1, 0.3)), Difference(Summary(3, 0.3, 0.0, 0.0))])
    assert [(each.p, each.p_holm) for each in none] == [(None, None)] * 2  # one seed; no spread
    assert corrected([*given, *none])[order[0]].p_holm == pytest.approx(9 / 7 * found[order[0]].p_holm)
    assert "One family of 7 tests: these." in family_note(found, "these")
    assert family_note(none, "these") == "No p values: these are of one seed, or the same for all seeds."
    assert Difference(Summary(3, 0.25, half_width=0.5), 0.0123, 0.5).text(1) == "+0.2 ± 0.5, p 0.012 (0.500)"


def test_committed_differences_are_those_of_their_seeds():
    """Means and p values of the committed files, from the rows of single checkpoints by scipy's paired t test."""
    assert len(FIELDS) >= 4
    for path in FIELDS:
        lines, about, origins = read_summary(path)
        of = {line.model: line for line in lines}
        differences = [line for line in lines if line.over == SEEDS]
        measured = [line for line in lines if line.over == "pictures" and HELD not in line.model]
        assert len(differences) >= 2 and len(origins) == len(measured)
        assert about["pictures"] >= lines[0].count
        for line in differences:
            one, other = line.model.split(" - ")
            seeds = [n for n in range(99) if {f"{one} (seed {n})", f"{other} (seed {n})"} <= of.keys()]
            for name, test in line.tests.items():
                a, b = ([of[f"{kind} (seed {seed})"].numbers[name].mean for seed in seeds] for kind in (one, other))
                assert test.of.mean == pytest.approx(np.mean(a) - np.mean(b), abs=2e-5)
                if test.of.half_width > 1e-3 * abs(a[0]):  # differences of seven digits have digits left
                    assert test.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=0.02)


def test_what_survives_the_correction():
    """What the texts in results/ may say: of fields four of 84 differences on photographs, of probes none of 70."""
    told = {}
    for path in FIELDS:
        lines, *_ = read_summary(path)
        told[path.stem] = {
            (line.model.split(" - ")[0], name)
            for line in lines
            for name, test in line.tests.items()
            if test.p_holm is not None and test.p_holm < 0.05
        }
    model = "test_resnetdw_"
    assert told["photos_layer3"] == {(f"{model}dcn", "inside"), (f"{model}dcn_dk", "sigma")}
    assert told["photos_layer4"] == {(f"{model}gdk", "sigma"), (f"{model}dcn_dk", "sigma")}
    assert told["photos_layer3_fixed_offsets"] == told["photos_layer3"] and told["procedural"] == set()
    assert told["summary"] == {("small_resnetdw_dk", "agreement_rotated")}  # E1's, which turns less than the rigid's
    found = families(read_tables(RESULTS / "dynamics" / "probe.csv").scores)
    assert [len(members) for members in found.values()] == [30, 40]
    assert min(each.difference.p_holm for members in found.values() for each in members) > 0.09


def test_tables_come_again_from_their_files(tmp_path, capsys):
    """The committed CSV, Markdown and JSON files are what `make tables` writes from them, to the byte."""
    for folder, command in (("erf", "erf"), ("dynamics", "dynamics")):
        copy = shutil.copytree(RESULTS / folder, tmp_path / folder)
        patterns = ("*.csv", "*/summary.csv") if folder == "erf" else ("probe.csv", "*/probe.csv")
        files = [str(path) for pattern in patterns for path in sorted(copy.glob(pattern))]
        for path in copy.rglob("*"):
            if path.suffix == ".md" and path.name != "README.md" or path.name == "probe_differences.csv":
                path.unlink()
        assert main([command, "--tables-from", *files]) == 0
        for path in (path for path in (RESULTS / folder).rglob("*") if path.is_file()):
            again = copy / path.relative_to(RESULTS / folder)
            assert again.read_bytes() == path.read_bytes(), f"{path.name}: run `make tables`"
    makefile = (RESULTS.parent / "Makefile").read_text()
    assert "dk-bench erf --tables-from $(wildcard results/erf/*.csv results/erf/*/summary.csv)" in makefile
    assert "dk-bench dynamics --tables-from $(wildcard results/dynamics/probe.csv" in makefile


def test_files_that_are_no_studies(tmp_path, capsys):
    bad = tmp_path / "summary.csv"
    bad.write_text("model,over\na,b\n")
    for command in ("erf", "dynamics"):
        assert main([command, "--tables-from", str(bad)]) == 2
        assert "summary.json: cannot be read" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text('{"checkpoints": []}')
    with pytest.raises(UserError, match=r"summary.json: no objects, chance; expected what a study's command"):
        read_about(tmp_path / "summary.json", ("objects", "chance"))
    (tmp_path / "summary.json").write_text(json.dumps({"checkpoints": [], "objects": "", "chance": 10}))
    with pytest.raises(UserError, match=r"summary.csv: cannot be read: .* expected a CSV of `dk-bench dynamics`"):
        read_tables(bad)
    assert main(["erf"]) == 2 and "expected models, or --tables-from CSV" in capsys.readouterr().err


# Where checkpoints are from


def recorded(folder: Path, name: str, seed: int) -> str:
    """A checkpoint that has its run's record beside it."""
    folder.mkdir()
    path = checkpoint(folder / "last.ckpt", name, seed=seed, plant=False)
    held = torch.load(path)
    for key, value in held["state_dict"].items():
        if key.endswith("bn3.weight"):
            value.fill_(1.0)  # zero in a new network, where blocks then add nothing
    torch.save(held, path)
    config = to_dict(
        load_config(
            None, [f"model.name={name}", f"seed={seed}", "data.size=32", "data.crop_pct=1", "data.procedural.classes=4"]
        )
    )
    record = new_record(
        name=name, config=config, model={"name": name}, data={"name": "procedural"}, seed=seed, run_id=f"{name}-s{seed}"
    )
    record.git = {"commit": "0123456789abcdef", "dirty": bool(seed)}
    record.metrics["final"]["val/top1"] = 61.5
    write_record(record, folder / "record.json")
    return str(path)


def test_studies_name_run_seed_configuration_and_commit(tmp_path):
    """Of fields with the control of held offsets, and of probes; what a table shows is what the JSON file holds."""
    paths = [
        recorded(tmp_path / f"{name}{seed}", f"test_resnetdw{name}", seed) for name in ("", "_dk") for seed in (0, 1)
    ]
    out = tmp_path / "erf"
    command = ["erf", *paths, "--count", "2", "--layer", "layer2", "--held-offsets", "--output", str(out)]
    assert main(command) == 0
    about, origins = read_about(out / "summary.json", ("layer", "pictures"))
    assert (about["layer"], about["pictures"], about["images"]) == ("layer2", 2, "procedural")
    assert [(each.run, each.seed, each.dirty) for each in origins] == [
        (f"test_resnetdw{name}-s{seed}", seed, bool(seed)) for name in ("", "_dk") for seed in (0, 1)
    ]
    text = (out / "summary.md").read_text()
    row = f"| test_resnetdw_dk (seed 1) | test_resnetdw_dk-s1 | {origins[3].configuration} | 1 | 61.5 | 0123456789ab "
    assert row + "with changes |" in text
    rows = [(line["model"], line["over"]) for line in read_csv(out / "summary.csv")]
    held = "test_resnetdw_dk, offsets held at their mean"
    assert [model for model, over in rows if over == "seeds"] == [
        "test_resnetdw_dk - test_resnetdw",
        f"test_resnetdw_dk - {held}",
    ]
    assert (f"{held} (seed 1)", "pictures") in rows and "One family of 14 tests" in text
    before = (out / "summary.csv").read_bytes()
    assert main(["erf", "--tables-from", str(out / "summary.csv")]) == 0
    assert (out / "summary.csv").read_bytes() == before  # p values come out the same from the file


def test_probes_name_their_runs(tmp_path):
    paths = [recorded(tmp_path / str(seed), "test_resnetdw_dk", seed) for seed in (0, 1)]
    out = tmp_path / "out"
    assert main(["dynamics", *paths, "--objects", "20", "--tsne", "0", "--output", str(out)]) == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    _, origins = read_about(out / "probe.json", ("objects", "chance"))
    assert [each.run for each in origins] == ["test_resnetdw_dk-s0", "test_resnetdw_dk-s1"]
    with open(out / "probe_differences.csv", encoding="utf-8", newline="") as stream:
        assert {(row["table"], row["seeds"]) for row in csv.DictReader(stream)} == {
            ("Learned minus random generator", "2")
        }
    assert (
        "top1_held" in (out / "probe_held.csv").read_text()
        and "## Top-1 with offsets held" in (out / "probe.md").read_text()
    )
    assert main(["dynamics", "--tables-from", str(out / "probe.csv")]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_record_of_another_run_is_not_taken(tmp_path):
    path = recorded(tmp_path / "run", "test_resnetdw_dk", 0)
    config = load_config(None, ["model.name=test_resnetdw_dk"])
    assert origin_of(path, "dk", config, "another").commit is None
    assert origin_of(path, "dk", config, "test_resnetdw_dk-s0").top1 == 61.5
    assert origin_of(tmp_path / "last.ckpt", "dk", config, "") == Origin(
        "dk", 0, None, origin_of(path, "dk", config, "x").configuration
    )


@pytest.mark.parametrize("name", ["test_resnetdw_gdk", "test_resnetdw_dcn_dk", "test_resnetdw_scc"])
def test_held_offsets_are_the_mean_of_the_models_own(tmp_path, name):
    """Over pictures and positions; the model itself stays as it was."""
    subject = open_model(checkpoint(tmp_path / "last.ckpt", name, plant=False))
    pictures = open_pictures("procedural", 32, 3)
    with torch.no_grad():
        for module in subject.model.modules():
            if hasattr(module, "routing"):
                module.routing.weight.normal_()
    given = []

    def keep(source, read, out):
        return out.reshape(*out.shape[:2], -1)

    for model in (subject.model, held_at_mean(subject, pictures).model, subject.model):
        with torch.no_grad(), watched(sources(model), keep) as seen:
            for picture in pictures:
                model(subject.tensor(picture)[None])
        given.append([torch.cat(outputs) for outputs in seen.values()])
    for own, held, after in zip(*given, strict=True):
        assert own.std(0).max() > 1e-4 and torch.equal(own, after)
        mean = own.mean((0, 2), keepdim=True)
        torch.testing.assert_close(held, mean.expand_as(held), rtol=1e-4, atol=1e-6)


def test_accuracy_with_offsets_held(tmp_path):
    """It is that of the copy that fields are measured on; without labels of the model's classes there is none."""
    path = checkpoint(tmp_path / "last.ckpt", "test_resnetdw_dk", plant=False)
    held_state = torch.load(path)
    for key, value in held_state["state_dict"].items():
        if key.endswith("bn3.weight"):
            value.fill_(1.0)
        if key.endswith("kernel_offset.weight"):
            value.mul_(10)  # far from their mean
    torch.save(held_state, path)
    loaded, subject = load(path), open_model(path)
    objects = procedural_objects(loaded.config.data, 40)
    found = held_accuracy(loaded, objects)
    pictures = open_pictures("own", 32, 40, data=subject.data)
    images = torch.stack([subject.tensor(picture) for picture in pictures])
    label = torch.as_tensor(objects.label)
    with torch.no_grad():
        expected = [
            100 * float((model.eval()(images).argmax(1) == label).double().mean())
            for model in (subject.model, held_at_mean(subject, pictures).model)
        ]
    assert [found.top1, found.top1_held] == pytest.approx(expected, abs=2.6) and found.images == 40
    assert held_accuracy(loaded, dataclasses.replace(objects, classes=["a", "b", "c", "d"])) is None


def test_every_committed_study_names_runs_that_have_records():
    """But for those of which results/erf/README.md and results/dynamics/README.md say that they do not."""
    known = {json.loads(path.read_text(encoding="utf-8"))["run_id"] for path in RESULTS.rglob("*record.json")}
    without = {}
    for path in [*RESULTS.rglob("erf/**/*.json"), *RESULTS.rglob("dynamics/**/*.json")]:
        _, origins = read_about(path, ())
        without[path.relative_to(RESULTS).as_posix()] = sum(origin.run not in known for origin in origins)
    lacking = {name: count for name, count in without.items() if count}
    assert lacking == {
        "erf/photos_layer3.json": 15,
        "erf/photos_layer3_fixed_offsets.json": 15,
        "erf/photos_layer4.json": 15,
        "erf/procedural.json": 12,
        "dynamics/probe.json": 6,
    }


def test_nothing_to_hold_in_rigid_models(tmp_path, capsys):
    assert (
        main(["erf", "test_resnetdw", "--count", "1", "--held-offsets", "--side", "32", "--output", str(tmp_path)]) == 2
    )
    assert "--held-offsets: nothing adapts in test_resnetdw (random weights)" in capsys.readouterr().err


def test_own_images_are_those_of_the_models_validation(tmp_path, capsys):
    first = recorded(tmp_path / "a", "test_resnetdw", 0)
    (own,) = open_pictures("own", 32, 1, data=open_model(first).data)
    assert (
        own.name == "triangle-0"
        and len({p.name.split("-")[0] for p in open_pictures("own", 32, 6, data=open_model(first).data)}) == 4
    )  # classes of its configuration
    other = recorded(tmp_path / "b", "test_resnetdw", 1)
    held = torch.load(other)
    held["hyper_parameters"]["config"]["data"]["procedural"]["bend"] = 0.1
    torch.save(held, other)
    out = ["--count", "1", "--images", "own", "--output", str(tmp_path / "out")]
    assert main(["erf", first, other, *out]) == 2
    assert "--images own: test_resnetdw (seed 1) has other images than test_resnetdw" in capsys.readouterr().err
    assert main(["erf", "test_resnetdw", *out]) == 2
    assert "--images own: expected checkpoints of models trained on procedural images" in capsys.readouterr().err


def test_folders_of_runs_stand_for_their_checkpoints(tmp_path):
    for name, seed in (("_dk", 1), ("_dk", 0), ("", 0), ("_gdk", 0)):
        recorded(tmp_path / f"{name}-{seed}", f"test_resnetdw{name}", seed)
    for run, status in (("_dk-1", "finished"), ("_dk-0", "finished"), ("-0", "finished"), ("_gdk-0", "running")):
        path = tmp_path / run / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
    found = checkpoints_below(["other.ckpt", str(tmp_path)], None)
    assert found == ["other.ckpt", *(str(tmp_path / run / "last.ckpt") for run in ("-0", "_dk-0", "_dk-1"))]
    assert checkpoints_below([str(tmp_path)], "test_resnetdw_dk, test_resnetdw") == [*found[2:], found[1]]
    with pytest.raises(UserError, match=r"no finished run of test_resnetdw_gdk with its last.ckpt"):
        checkpoints_below([str(tmp_path)], "test_resnetdw,test_resnetdw_gdk")
    with pytest.raises(UserError, match="--only a: goes with a folder of runs"):
        checkpoints_below(["last.ckpt"], "a")
    with pytest.raises(UserError, match=r"--only a,,b: expected models, with settings where several have a name"):
        checkpoints_below([str(tmp_path)], "a,,b")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no finished run with its last.ckpt"):
        checkpoints_below([str(tmp_path / "none")], None)


def test_settings_tell_runs_of_one_model_apart(tmp_path, capsys):
    """As an ablation of E1 has local DK twice, at two learning rates of offsets."""
    paths = [recorded(tmp_path / str(seed), "test_resnetdw_dk", seed) for seed in range(2)]
    slow = recorded(tmp_path / "slow", "test_resnetdw_dk", 0)
    for file in tmp_path.glob("*/record.json"):
        record = json.loads(file.read_text()) | {"status": "finished"}
        record["config"]["optim"]["offset_lr_multiplier"] = 0.01 if file.parent.name == "slow" else 0.1
        file.write_text(json.dumps(record))
    chosen = {
        "test_resnetdw_dk": [paths[0], slow, paths[1]],
        "test_resnetdw_dk[optim.offset_lr_multiplier=0.01]": [slow],
        "test_resnetdw_dk[optim.offset_lr_multiplier=1e-1, seed=1]": [paths[1]],
        "test_resnetdw_dk[seed=1],test_resnetdw_dk[seed=0,optim.offset_lr_multiplier=0.01]": [paths[1], slow],
    }
    for only, expected in chosen.items():
        assert checkpoints_below([str(tmp_path)], only) == expected
    with pytest.raises(UserError, match=r"no finished run of test_resnetdw_dk\[seed=7\] with its last.ckpt"):
        checkpoints_below([str(tmp_path)], "test_resnetdw_dk[seed=1],test_resnetdw_dk[seed=7]")
    assert checkpoints_below([str(tmp_path)], "test_resnetdw_dk[trainer.compile=false,seed=1]") == [paths[1]]  # default
    with pytest.raises(UserError, match=r"--only test_resnetdw_dk\[seed=x\]: .*seed"):
        checkpoints_below([str(tmp_path)], "test_resnetdw_dk[seed=x]")
    for only in ("a,", "a, ", "a[]", "a[optim.betas=[1,2]]"):
        with pytest.raises(UserError, match=r"expected models, with settings where several have a name"):
            checkpoints_below([str(tmp_path)], only)
    with pytest.raises(UserError, match=r"offset_lr_multiplier"):  # did you mean
        checkpoints_below([str(tmp_path)], "test_resnetdw_dk[optim.offset_lr_multiplyer=1]")
    assert main(["erf", str(tmp_path), "--count", "1", "--output", str(tmp_path / "out")]) == 2
    assert (
        "several models of that name, kernels and seed; expected one (of folders, by --only)" in capsys.readouterr().err
    )
