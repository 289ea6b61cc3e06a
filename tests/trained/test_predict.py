"""dk-bench predict of classifiers: what eval counts, in every form of output, of files, folders and tars."""

import csv
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from image_files import add, pack, picture
from PIL import Image

import dk_bench
from dk_bench.cli import main
from dk_bench.config import load_config
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError
from dk_bench.runs.correct import correct_images
from dk_bench.tasks import evaluate, run_folder, train
from dk_bench.trained.export import export
from dk_bench.trained.images import find_images
from dk_bench.trained.predict import predictor_of

ROOT = Path(__file__).parents[2]
PHOTOS10 = ROOT.parent / "shared/data/photos10/val.tar"  # no licence to come with the repository


@pytest.fixture(scope="module")
def folder(run):
    return str(run_folder(run))


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def classes_by_name(answers):
    """The first class of each image, by its own folder and name."""
    return {"/".join(Path(answer["file"]).parts[-2:]): answer["predictions"][0]["class"] for answer in answers}


def test_the_first_class_is_the_one_that_eval_counts(run, folder, photos, tmp_path, capsys):
    """Image by image, of a folder and of a tar, with processes that read and without."""
    record = evaluate(f"{folder}/last.ckpt")
    hits, names = correct_images(record), open_images(run.data, "val").files.names
    assert 0 < hits.sum() < len(hits) == 12
    tar = pack(Path(shutil.copytree(photos / "val", tmp_path / "val")))
    for place, more in ((photos / "val", ()), (tar, ("--workers", "2"))):
        output = tmp_path / "found.jsonl"
        assert main(["predict", folder, str(place), "--batch-size", "4", "--output", str(output), *more]) == 0
        assert capsys.readouterr().out == f"{output}: what the model says of 12 images\n"
        answers = lines(output)
        assert [answer["file"] for answer in answers] == sorted(answer["file"] for answer in answers)
        assert all(answer["file"].startswith(str(place)) for answer in answers)
        first = classes_by_name(answers)
        assert [first[name] == name.partition("/")[0] for name in names] == hits.tolist()
        top1 = 100 * sum(first[name] == name.partition("/")[0] for name in names) / len(names)
        assert top1 == pytest.approx(record.metrics["final"]["val/top1"])


def test_probabilities_are_the_softmax_of_the_models_outputs(folder, photos):
    trained = dk_bench.load(folder)
    for answer in trained.predict(photos / "val" / "ant", photos / "val" / "bee" / "7.jpg", batch_size=3):
        with Image.open(answer.image.name) as image:
            assert answer.size == image.size and answer.error is None
            outputs = trained.model(trained.transform(image.convert("RGB"))[None])[0].detach()
        expected = outputs.softmax(0)
        assert sum(one["probability"] for one in answer.predictions) == pytest.approx(1, abs=1e-6)
        assert [one["index"] for one in answer.predictions] == outputs.argsort(descending=True).tolist()
        for one in answer.predictions:
            assert one["class"] == trained.classes[one["index"]]
            assert one["probability"] == pytest.approx(float(expected[one["index"]]), abs=1e-6)


def test_an_export_says_the_same_as_the_run(folder, photos, tmp_path):
    """From the same pixels; it brings the run's record along."""
    export(folder, tmp_path / "exported")
    exported, trained = dk_bench.load(tmp_path / "exported"), dk_bench.load(folder)
    assert exported.classes == trained.classes and exported.record == trained.record
    found, expected = (list(each.predict(photos / "val")) for each in (exported, trained))
    assert [answer.predictions for answer in found] == [answer.predictions for answer in expected]


def test_lines_and_rows_say_the_same(folder, photos, capsys):
    """On standard output; as many classes, and as sure ones, as are asked for."""
    place = str(photos / "val" / "cow")
    assert main(["predict", folder, place, "--top", "2"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(answer["predictions"]) for answer in answers] == [2] * 4
    assert list(answers[0]) == ["file", "width", "height", "predictions"]
    with Image.open(answers[0]["file"]) as image:
        assert image.size == (answers[0]["width"], answers[0]["height"])
    assert main(["predict", folder, place, "--top", "2", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0]) == ["file", "class", "index", "probability"]
    flat = [{"file": answer["file"]} | one for answer in answers for one in answer["predictions"]]
    assert rows == [{name: str(value) for name, value in one.items()} for one in flat]

    sure = str(sorted(answer["predictions"][0]["probability"] for answer in answers)[-1])
    assert main(["predict", folder, place, "--threshold", sure, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["probability"] for row in rows if row["probability"]] == [sure] and len(rows) == 4


def test_pictures_have_the_classes_on_them(folder, photos, tmp_path):
    drawn, output = tmp_path / "drawn", tmp_path / "found.csv"
    arguments = [str(photos / "val"), str(photos / "train"), "--output", str(output), "--pictures", str(drawn)]
    assert main(["predict", folder, *arguments]) == 0
    pictures = {path.relative_to(drawn): path for path in drawn.rglob("*") if path.is_file()}
    assert len(pictures) == 24 and Path("val/ant/14.bmp.png") in pictures and Path("train/bee/7.jpg") in pictures
    with Image.open(pictures[Path("val/ant/0.png")]) as found, Image.open(photos / "val/ant/0.png") as before:
        assert found.size == before.size and found.tobytes() != before.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "found.csv"]
    assert sum(1 for _ in csv.DictReader(output.open())) == 24 * 3


def test_a_name_of_two_lines_is_drawn_as_one(folder):
    image = Image.new("RGB", (80, 60))
    found = ({"class": name, "index": 0, "probability": 0.5} for name in ("ant\nhill", "ant hill"))
    broken, plain = (predictor_of(dk_bench.load(folder)).draw(image.copy(), [one]).tobytes() for one in found)
    assert broken == plain != image.tobytes()


def test_which_images_are_found(tmp_path):
    """At any depth, in order of paths, links once; what has no image's name is passed over, and service files too."""
    for name in ("b/2.png", "b/10.JPG", "a.png", "b/c/x.webp", ".git/a.png", "._a.png"):
        picture(tmp_path / "all" / name)
    (tmp_path / "all" / "notes.txt").write_text("no image")
    (tmp_path / "all" / "around").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "gone.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(tmp_path / "all" / "pipe.png")
    found = find_images([tmp_path / "all", tmp_path / "all" / "a.png"])
    names = ["a.png", "b/10.JPG", "b/2.png", "b/c/x.webp", "gone.png"]
    assert [image.name for image in found] == [str(tmp_path / "all" / name) for name in names]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in ("top/b/2.png", "top/b/10.JPG", "top/a.png", "top/b/c/x.webp"):
            add(tar, name, (tmp_path / "all" / name.removeprefix("top/")).read_bytes())
        add(tar, "top/notes.txt", b"no image")
    packed = find_images([tmp_path / "all.tar"])
    assert [image.name for image in packed] == [str(tmp_path / "all.tar" / "top" / name) for name in names[:-1]]
    for ours, theirs in zip(found, packed, strict=False):
        assert ours.open().tobytes() == theirs.open().tobytes()
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        found[-1].open()


def test_unreadable_images_end_it_or_are_skipped(folder, photos, tmp_path, capsys):
    images, output, drawn = tmp_path / "images", tmp_path / "found.jsonl", tmp_path / "drawn"
    shutil.copytree(photos / "val" / "ant", images)
    (images / "3.png").write_bytes(b"no picture")
    arguments = ["predict", folder, str(images), "--output", str(output), "--pictures", str(drawn), "--batch-size", "1"]
    output.write_text("from before\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error == f"dk-bench predict: image {images}/3.png cannot be read: not an image\n"
    assert output.read_text() == "from before\n" and sorted(os.listdir(tmp_path)) == ["found.jsonl", "images"]

    assert main([*arguments, "--skip-unreadable"]) == 1
    assert capsys.readouterr().err == "dk-bench predict: 1 of 5 images could not be read\n"
    answers = lines(output)
    assert [list(answer) for answer in answers if "error" in answer] == [["file", "error"]]
    assert len(answers) == 5 and answers[3] == {"file": f"{images}/3.png", "error": error[18:-1]}
    assert len(list(drawn.iterdir())) == 4
    assert main(["predict", folder, str(images), "--skip-unreadable", "--format", "csv", "--top", "1"]) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, False]
    assert main(["predict", folder, str(images / "3.png"), "--skip-unreadable"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "none.png: does not exist, expected an image, a folder or a tar of images"),
        (["empty"], "empty: no images in it"),
        (["empty.tar"], "empty.tar: no images in it"),
        (["cut.tar"], "cut.tar cannot be read as a tar"),
        (["a.png", "--output", "x.txt"], "--output x.txt: expected a name that ends in .jsonl or .csv, or --format"),
        (["a.png", "--output", "x.csv", "--format", "jsonl"], "--format jsonl: does not go with --output x.csv"),
        (["a.png", "--threshold", "1.5"], "--threshold: expected 0 to 1, got 1.5"),
        (["a.png", "--threshold", "nan"], "--threshold: expected 0 to 1, got nan"),
        (["a.png", "--top", "0"], "--top: expected at least 1, got 0"),
        (["a.png", "--pictures", "a.png"], "--pictures a.png: a.png is a file, expected a folder"),
        (["a.png", "a/empty/../a.png", "--pictures", "x"], "would be one picture, a.png"),
        (["a", "--pictures", "a/../a"], "--pictures a/../a: a.png there is one of the images; expected another one"),
        (["a", "--output", "a/a.png", "--format", "csv"], "--output a/a.png: is one of the images; expected another"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a/a.png"):
        picture(Path(name))
    Path("empty").mkdir()
    Path("a/empty").mkdir()
    pack(Path("empty"))
    Path("cut.tar").write_bytes(b"x" * 700)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert main(["predict", folder, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dk-bench predict: ") and message in error and error.count("\n") == 1
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_outputs_that_are_not_finite_name_the_images(folder, photos):
    trained = dk_bench.load(folder)
    with torch.no_grad():
        trained.model.fc.bias.fill_(float("inf"))
    with pytest.raises(UserError, match=r"0\.png and the 3 after it: the model gives outputs that are not finite"):
        list(trained.predict(photos / "val" / "ant"))


@pytest.mark.skipif(not PHOTOS10.exists(), reason="photos10 is not beside the checkout")
def test_photographs_are_told_as_eval_tells_them(tmp_path):
    """On the thousand of photos10's validation, from the tar that they come in."""
    data = {"train": PHOTOS10.with_name("train.tar"), "val": PHOTOS10, "workers": 0, "size": 48}
    settings = {"model.name": "test_resnetdw_dk", "optim.epochs": 1, "optim.warmup_epochs": 0, "output": tmp_path}
    settings |= {f"data.{key}": value for key, value in data.items()} | {"trainer.accelerator": "cpu", "logger": "none"}
    config = load_config(ROOT / "configs/photos10.yaml", [f"{key}={value}" for key, value in settings.items()])
    hits = correct_images(train(config))
    names = open_images(config.data, "val").files.names
    output = tmp_path / "found.jsonl"
    options = ["--top", "1", "--batch-size", "64", "--output", str(output)]
    assert main(["predict", str(run_folder(config)), str(PHOTOS10), *options]) == 0
    first = classes_by_name(lines(output))
    assert len(hits) == 1000 and 100 < hits.sum() < 900
    assert [first[name] == name.partition("/")[0] for name in names] == hits.tolist()
