"""Plans of sweeps: figures worked out by hand, every sweep of the package, what a record changes, bad input."""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.optim import create_optimizer_v2

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.models.workload import BOTH, DCN, DENSE, LOCAL_DK, Workload, count_workload
from dk_bench.nn import DeformConv2d, DeformKernel2d
from dk_bench.plan import estimate, printed, rates, roofline
from dk_bench.plan.decoding import LoaderSpeed, cores_for, read_loader_speeds
from dk_bench.plan.devices import DEVICES, HALF, SINGLE
from dk_bench.plan.measured import Speed, read_speeds
from dk_bench.plan.refit import refit
from dk_bench.tables.costs import load_costs
from dk_bench.training.outline import copies_kept

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
BENCHES = [ROOT / "results/bench", ROOT / "results/gpu"]


@functools.cache
def workload(name: str, side: int = 224) -> Workload:
    with torch.device("meta"):
        model = timm.create_model(name).train()
    return count_workload(model, model, (3, side, side))


def write_sweep(folder: Path, parameters: dict, config: str = "demo", name: str = "tried") -> Path:
    path = folder / f"{name}.yaml"
    command = ["dk-bench", "train", config, "${args_no_hyphens}"]
    values = {
        key: {"values": value} if isinstance(value, list) else {"value": value} for key, value in parameters.items()
    }
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": values}))
    return path


def plan(path: Path, folder: Path, *more: str) -> dict:
    """Returns the plan of a sweep file as the command writes it."""
    assert main(["plan", str(path), "--output", str(folder / "plan.json"), *more]) == 0
    return json.loads((folder / "plan.json").read_text())


def refused(capsys, *argv: object) -> str:
    """Returns the one line with which the command refuses its arguments."""
    assert main(["plan", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


GRIDS = [path for path in SWEEPS if path.name.removeprefix("dense_").startswith(("imagenet_", "coco_"))]


@pytest.mark.parametrize("paths", [GRIDS, [path for path in SWEEPS if path not in GRIDS]], ids=["grids", "others"])
def test_every_sweep_has_a_plan_without_its_data(paths, tmp_path, monkeypatch, capsys):
    """The page on clusters has the table of the grids: `make tables` writes it."""
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)  # where no data lie
    page = ROOT / "docs/cluster.md"
    begin, end = page.read_text().split(printed.BEGIN)[0], page.read_text().split(printed.END)[1]
    Path("page.md").write_text(f"{begin}{printed.BEGIN}\nold\n{printed.END}{end}")
    argv = ["plan", *map(str, paths), "--gpu", "H100", "--count", "8", "--output", "plan.json", "--readme", "page.md"]
    assert main([*argv, "--bench", *map(str, BENCHES)]) == 0
    cells = json.loads(Path("plan.json").read_text())["cells"]
    assert {cell["sweep"] for cell in cells} == {yaml.safe_load(path.read_text())["name"] for path in paths}
    assert all(cell["run_hours"] > 0 and cell["params"] > 0 and cell["memory"] > 0 for cell in cells)
    assert capsys.readouterr().out.count("│ total") == len(paths)
    if paths == GRIDS:
        assert Path("page.md").read_text() == page.read_text(), "run `make tables`"


def test_hours_are_images_over_images_a_second():
    """90 epochs of 1,281,167 images at 1000 a second, and 90 of 50,000 at 4000: 116,430 seconds on one device."""
    outline = timed_outline(epochs=90, evaluations=90, images={"train": 1_281_167, "val": 50_000})
    rate = rates.Rate(1000.0, 4000.0, rates.MEASURED)
    evaluated = 90 * 50_000
    assert estimate.run_hours(outline, rate, 1, evaluated) == pytest.approx(116_430.03 / 3600)
    assert estimate.run_hours(outline, rate, 8, evaluated) == pytest.approx(116_430.03 / 8 / 3600)


def timed_outline(**fields):
    from dk_bench.classification.outlining import outline_of
    from dk_bench.config import Config

    return estimate.replace(outline_of(Config()), **fields)


def test_a_plan_adds_up(tmp_path, capsys):
    """Device-hours are hours by devices by runs, the price is theirs at the rate; seeds are one cell."""
    path = write_sweep(tmp_path, {"model.name": ["test_resnetdw", "test_resnetdw_dk"], "seed": [0, 1, 2]})
    told = plan(path, tmp_path, "--gpu", "H100", "--count", "2", "--price", "3")
    assert [cell["name"] for cell in told["cells"]] == ["test_resnetdw", "test_resnetdw_dk"]
    for cell in told["cells"]:
        assert cell["runs"] == 3 and cell["train_images"] == 2400 and cell["epochs"] == 8
        assert cell["device_hours"] == pytest.approx(cell["run_hours"] * 2 * 3)
        assert cell["price"] == pytest.approx(3 * cell["device_hours"])
        seconds = 8 * 2400 / cell["train_rate"] + 8 * 1000 / cell["evaluation_rate"]
        assert cell["run_hours"] == pytest.approx(seconds / 3600)
    capsys.readouterr()


def test_test_images_are_evaluated_once(tmp_path, capsys):
    shapes = {"data.procedural.test_images": 500, "data.procedural.shifts.bend": 1.5, "optim.epochs": 2}
    (cell,) = plan(write_sweep(tmp_path, shapes), tmp_path)["cells"]
    assert cell["evaluated_images"] == 2 * 1000 + 2 * 500
    capsys.readouterr()


@pytest.mark.parametrize(
    "name", ["resnet50dw_dk", "resnet50dw_dcn_dk", "resnet50_dcn_dk", "mobilenetv2_100_scc", "mobilenetv2_100_gdk_pw"]
)
def test_multiply_adds_are_those_of_the_tables(name):
    counted, known = workload(name), load_costs()[name]
    held = {"params": counted.params, "macs": counted.macs, "sampling_macs": counted.sampling_macs}
    assert held == known


def test_operators_are_told_apart():
    kinds = {
        name: {operation.kind for operation in workload(f"test_resnet{name}", 32).operations} - {"plain"}
        for name in ("dw", "dw_dk", "dw_dcn", "dw_dcn_dk", "dw_dk_lpw", "_dk", "_dcn_dk")
    }
    assert kinds == {
        "dw": set(),
        "dw_dk": {LOCAL_DK},
        "dw_dcn": {DCN},
        "dw_dcn_dk": {LOCAL_DK, BOTH},
        "dw_dk_lpw": {LOCAL_DK, "1x1 local DK"},
        "_dk": {"dense local DK"},
        "_dcn_dk": {"dense local DK", "dense DK+DCN"},
    }
    for module, kind in ((DeformConv2d(2, 4, 3), "dense DCN"), (DeformConv2d(2, 4, 1, modulated=True), DENSE[-1])):
        convolution = module.to("meta")
        assert kind in {each.kind for each in count_workload(convolution, convolution, (2, 8, 8)).operations}


def test_saved_values_are_those_that_autograd_keeps_of_real_ones():
    """Of a chain of which it is known: a convolution keeps its input, a ReLU in place its result, once each."""
    chain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(8, 2, 1)
    )
    counted = count_workload(chain.to("meta"), chain, (3, 10, 10))
    assert counted.saved == 3 * 100 + 8 * 100
    assert counted.macs == 100 * (8 * 3 * 9 + 2 * 8)
    assert [operation.moved for operation in counted.operations][0] * 2 == 2 * 300 + 2 * 800 + 8 * 27 + 8


def test_what_is_unfolded_is_written_and_read_but_not_kept():
    """The scope's 16 values of every channel and position; kept are the input and the 18 channels of offsets."""
    module = DeformKernel2d(4, 6, 10, 3, padding=1, groups=2, bias=False).to("meta")
    counted = count_workload(module, module, (6, 10, 10))
    assert counted.saved == 6 * 100 + 18 * 100
    (product,) = [each for each in counted.operations if each.macs == 16 * 3 * 10 * 100]
    assert product.moved == (6 + 18 + 10) * 100 + 16 * 3 * 10 / 2 + 2 * 16 * 6 * 100


def test_memory_is_near_what_a_gpu_was_seen_to_take():
    """The record of an H200: batches of 128 under bfloat16 autocast."""
    seen = next(speed for speed in read_speeds(BENCHES) if speed.model == "resnet50dw" and speed.memory)
    guess = estimate.training_memory(workload("resnet50dw"), seen.batch, seen.precision, copies=1, weight=4)
    assert guess == pytest.approx(seen.memory, rel=0.05)


def test_the_efficiency_is_that_of_the_records(tmp_path):
    assert refit(BENCHES, tmp_path / "it.json").read_text() == roofline.FILE.read_text()
    with pytest.raises(UserError, match="no records of CPU"):
        refit([ROOT / "results/gpu"], tmp_path / "it.json")


def speed(model: str, **fields) -> Speed:
    about = {"base": "resnet50dw", "batch": 128, "size": 224, "device": DEVICES["H200"], "precision": HALF}
    return Speed(
        **{"model": model, **about, "train": 3000.0, "evaluate": 9000.0, "memory": None, "file": "it", **fields}
    )


def rate_of(speeds: list[Speed], side: int = 224, batch: int = 128) -> rates.Rate:
    own, base = workload("resnet50dw_dk", side), workload("resnet50dw", side)
    asked = rates.Question("resnet50dw_dk", "resnet50dw", (3, side, side), own, base)
    return rates.find_rate(asked, DEVICES["H200"], HALF, batch, speeds)


def test_a_record_goes_before_a_guess():
    """The model's own as it is; at another size by its pixels; its base's by the guesses' ratio; none is a guess."""
    own = rate_of([speed("resnet50dw_dk")])
    assert (own.train, own.evaluate, own.source) == (pytest.approx(3000), pytest.approx(9000), "record")
    larger = rate_of([speed("resnet50dw_dk", size=112)])
    assert (larger.train, larger.source) == (pytest.approx(3000 / 4), "record, scaled")
    guess, of_base = rate_of([]), rate_of([speed("resnet50dw")])
    assert (guess.source, of_base.source) == ("guess", "record, scaled")
    efficiency = roofline.efficiency_of(DEVICES["H200"], HALF)
    base = 1 / roofline.seconds_an_image(workload("resnet50dw"), DEVICES["H200"], HALF, "train", efficiency)
    assert of_base.train == pytest.approx(3000 * guess.train / base)
    for other in (speed("resnet50dw_dk", precision=SINGLE), speed("resnet50dw_dk", device=DEVICES["T4"])):
        assert rate_of([other]) == guess


def test_the_guess_of_local_kernels_is_near_the_record():
    """Fitted to rigid models and single operators, it is compared with a model that took no part in that."""
    seen = next(s for s in read_speeds(BENCHES) if s.model == "resnet50dw_dk" and s.device.name == "H200")
    guess = rate_of([], batch=seen.batch)
    assert guess.train == pytest.approx(seen.train, rel=0.15) and guess.evaluate == pytest.approx(
        seen.evaluate, rel=0.15
    )


def test_small_batches_wait_for_operators_to_start():
    assert rate_of([speed("resnet50dw_dk")], batch=1).train < 300
    assert rate_of([speed("resnet50dw_dk")], batch=64).train == pytest.approx(3000)


def test_cores_are_one_process(tmp_path, capsys):
    """They hold its whole batch, need not divide it, and train no images of their own."""
    path = write_sweep(tmp_path, {"model.name": "test_resnetdw"})
    one, three = (plan(path, tmp_path, "--gpu", "CPU", "--count", n)["cells"][0] for n in ("1", "3"))
    assert three["memory"] == one["memory"]
    assert three["run_hours"] == pytest.approx(one["run_hours"] / 3)
    assert three["device_hours"] == pytest.approx(one["device_hours"])
    outline = timed_outline(iterations=100, per_device=True, batch=4)
    rate, cpu = rates.Rate(1.0, 1.0, rates.MEASURED), estimate.Machine(DEVICES["CPU"], 4)
    assert 3600 * estimate.run_hours(outline, rate, 4, 0, cpu.processes) == pytest.approx(100)
    capsys.readouterr()


def test_bad_input_gets_one_sentence(tmp_path, capsys):
    path = write_sweep(tmp_path, {"model.name": ["test_resnetdw", "test_resnetdw_dk"]})
    assert "--gpu H1000: expected one of B200, H200" in refused(capsys, path, "--gpu", "H1000")
    assert "--price: expected a number above 0, got -2.0" in refused(capsys, path, "--price", "-2")
    assert "--count 3: the batch of 32 is not a multiple of it" in refused(capsys, path, "--gpu=H100", "--count=3")
    assert "no such file" in refused(capsys, path, "--bench", tmp_path / "nothing")
    own = {"data.source": "timm", "data.name": "mine", "data.train": "a", "data.val": "b"}
    path = write_sweep(tmp_path, own)
    assert "how many train images mine has is not known here; expected --images TRAIN,VAL" in refused(capsys, path)
    assert main(["plan", str(path), "--images", "100,50"]) == 0
    path = write_sweep(tmp_path, {"trainer.precision": "bf16-mixed"})
    assert "V100 has no bfloat16; expected 16-mixed" in refused(capsys, path, "--gpu", "V100")
    other = tmp_path / "other.yaml"
    other.write_text("{method: grid, program: a.py, parameters: {lr: {value: 1}}}")
    assert "expected dk-bench train CONFIG, which can be planned" in refused(capsys, other)
    assert "unknown key 'model.nme'" in refused(capsys, write_sweep(tmp_path, {"model.nme": "x"}))


def test_a_loop_of_iterations_trains_so_many_batches(tmp_path, monkeypatch, capsys):
    """100 iterations of 4 images on each of two devices, validated after 40, 80 and the last."""
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)
    settings = {"type": "IterBasedTrainLoop", "max_iters": 100, "val_interval": 40, "_delete_": True}
    path = write_sweep(tmp_path, {"train_cfg": settings}, config="configs/det/tiny_procedural.py")
    (cell,) = plan(path, tmp_path, "--gpu", "A100-80GB", "--count", "2")["cells"]
    assert cell["evaluated_images"] == 3 * 100
    seconds = 100 * 4 * 2 / cell["train_rate"] + 300 / cell["evaluation_rate"]
    assert cell["run_hours"] == pytest.approx(seconds / 3600)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("optimiser", "averaged", "copies"),
    [("momentum", False, 1), ("SGD", True, 2), ("adamw", False, 2), ("lookahead_adamw", False, 3), ("lion", False, 1)],
)
def test_copies_are_those_that_the_optimiser_keeps(optimiser, averaged, copies):
    assert copies_kept(optimiser, averaged=averaged) == copies
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    made = create_optimizer_v2([parameter], opt=optimiser, lr=0.1, momentum=0.9)
    parameter.sum().backward()
    for _ in range(6):  # after which a slow copy is made
        made.step()
    state = getattr(made, "_base_optimizer", made).state[parameter]
    held = {key: value for key, value in state.items() if torch.is_tensor(value) and value.shape == parameter.shape}
    assert len(held) + averaged == copies


def test_cores_are_those_that_load_as_fast():
    """ImageNet's images are of 470 x 390 pixels: those of a record with half of them are decoded twice as fast."""
    outline = timed_outline(every_time=True, pixels=(470, 390))
    far, near = LoaderSpeed(32 * 32, 224, 3000.0), LoaderSpeed(470 * 390 / 2, 224, 300.0)
    assert cores_for(outline, 3000.0, [far, near]) == pytest.approx(20)
    assert cores_for(outline, 3000.0, [far]) is None
    assert cores_for(timed_outline(pixels=(470, 390)), 3000.0, [near]) is None  # decoded once


def test_records_of_loading_say_what_one_core_does():
    speeds = read_loader_speeds(BENCHES)
    assert {speed.size for speed in speeds} >= {32, 64, 96} and all(speed.rate > 0 for speed in speeds)
    outline = timed_outline(every_time=True, pixels=(32, 32), input_size=(3, 32, 32))
    best = max(speed.rate for speed in speeds if (speed.pixels, speed.size) == (32 * 32, 32))
    assert cores_for(outline, 10 * best, speeds) >= 10
