"""Method random: what W&B's own sampler draws from its distributions, by seed and number alone."""

import copy
import itertools
import json
import random
import warnings

import numpy as np
import pytest
import yaml

with warnings.catch_warnings(action="ignore"):  # pydantic's, of how the package is written
    from sweeps.params import HyperParameter
    from sweeps.random_search import random_search_next_runs

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.sampling import DISTRIBUTIONS, _draw, draw

LIMITS, VALUES = {"min": -1.5, "max": 2.25}, {"min": 0.001, "max": 40}
EVERY = {  # of each distribution at least one; a parameter without a name is one that W&B finds by its other settings
    "constant": [{"value": 3.0}, {"value": [1, {"b": None}], "distribution": "constant"}],
    "categorical": [{"values": [3, "a", None, 0.5, True, [1, 2]]}, {"values": [1], "distribution": "categorical"}],
    "categorical_w_probabilities": [
        {"values": ["a", "b", "c"], "probabilities": [0.1, 0, 0.9]},
        {"values": ["a", "b"], "probabilities": [0.3, 0.699999999], "distribution": "categorical_w_probabilities"},
    ],
    "int_uniform": [{"min": -2, "max": 7}, {"min": 1, "max": 2, "distribution": "int_uniform"}],
    "uniform": [{"min": 0, "max": 1.0}, {"min": 1, "max": 3, "distribution": "uniform"}, LIMITS],
    "q_uniform": [LIMITS, {"min": -9, "max": 9, "q": 2}, {"min": 0, "max": 1, "q": 0.1}],
    "log_uniform": [LIMITS],
    "log_uniform_values": [VALUES],
    "q_log_uniform": [LIMITS, LIMITS | {"q": 1}],
    "q_log_uniform_values": [VALUES, VALUES | {"q": 3}, VALUES | {"q": 0.5}],
    "inv_log_uniform": [LIMITS],
    "inv_log_uniform_values": [VALUES],
    "normal": [{}, {"mu": 3, "sigma": 0.1}],
    "q_normal": [{}, {"mu": 10, "sigma": 5.5, "q": 2}],
    "log_normal": [{}, {"mu": -1, "sigma": 2}],
    "q_log_normal": [{}, {"mu": 2.5, "q": 1}],
    "beta": [{}, {"a": 2, "b": 0.5}],
    "q_beta": [{"q": 0.25}, {"a": 9, "b": 3, "q": 0.01}],
}
NAMED = {kind for kind in EVERY if kind.split("_")[0] in ("q", "log", "inv", "normal", "beta")}
PARAMETERS = {
    f"{kind}.{number}": settings | ({"distribution": kind} if kind in NAMED else {})
    for kind, several in EVERY.items()
    for number, settings in enumerate(several)
}


def in_json(value):
    """What a value is once it has gone over a wire; W&B's values are numpy's."""
    return json.dumps(value, default=lambda number: number.item(), sort_keys=True)


def test_every_distribution_of_wandbs_schema_is_there():
    from sweeps.config.schema import dereferenced_sweep_config_jsonschema as schema

    kinds = [kind for name, kind in schema["definitions"].items() if name.startswith("param_")]
    forms = [form for kind in kinds for form in kind.get("anyOf", [kind])]
    names = {form["properties"]["distribution"]["enum"][0] for form in forms if "distribution" in form["properties"]}
    assert names == set(DISTRIBUTIONS) == set(EVERY)
    for form in (form for form in forms if "distribution" in form["properties"]):
        ours = DISTRIBUTIONS[form["properties"]["distribution"]["enum"][0]]
        assert {*ours.needs, *ours.defaults} == form["properties"].keys() - {"distribution"}
        defaults = {key: each["default"] for key, each in form["properties"].items() if "default" in each}
        assert ours.defaults == {key: value for key, value in defaults.items() if key != "distribution"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_quantiles_are_wandbs(name):
    """The values at any share, to the last bit and of the same kind."""
    theirs = HyperParameter(name, copy.deepcopy(PARAMETERS[name]))

    class Shares:
        def uniform(self, low, high):
            return self.share

    generator = Shares()
    for generator.share in [1e-9, 0.5, 1 - 2.0**-53, *np.random.default_rng(0).uniform(size=100).tolist()]:
        expected = in_json(theirs.ppf(generator.share))
        assert in_json(_draw({"a": PARAMETERS[name]}, generator)["a"]) == expected


def test_points_are_those_of_wandbs_sampler():
    """Of nested parameters too, under one state of Python's generator, of which each parameter takes one number."""
    parameters = PARAMETERS | {"nested": {"parameters": {"b": {"value": 1}, "a": {"parameters": PARAMETERS}}}}
    for seed, number in itertools.product((0, 7), (1, 2, 50)):
        random.seed(f"{seed}/{number}")
        (run,) = random_search_next_runs({"method": "random", "parameters": copy.deepcopy(parameters)})
        ours = draw(parameters, seed, number)
        assert in_json({name: item["value"] for name, item in run.config.items()}) == in_json(ours)
        assert list(ours) == sorted(ours)


def write_sweep(folder, parameters, **more):
    (folder / "c.yaml").write_text("name: swept\n")
    command = ["dk-bench", "train", str(folder / "c.yaml"), "${args_no_hyphens}"]
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({"method": "random", "command": command, "parameters": parameters} | more))
    return path


def test_points_are_a_function_of_seed_and_number(tmp_path):
    path = write_sweep(tmp_path, {"optim.lr": {"min": 0.1, "max": 1.0}, "seed": {"min": 0, "max": 9}}, run_cap=8)
    eight, twenty = read_sweep(path).points(), read_sweep(path, runs=20).points()
    assert len(eight) == 8 and len(twenty) == 20 and twenty[:8] == eight == read_sweep(path, seed=0).points()
    others = read_sweep(path, seed=1).points()
    assert not {point["optim.lr"] for point in others} & {point["optim.lr"] for point in twenty}
    assert len({point["optim.lr"] for point in twenty}) == 20 and len({point["seed"] for point in twenty}) > 5


def test_equal_points_are_one_run_and_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path, {"seed": {"values": [0, 1, 2]}, "optim.epochs": {"value": 9.0}})
    assert main(["sweep", str(path), "--dry-run", "--runs", "40", "--random-seed", "4"]) == 0
    out, err = capsys.readouterr()
    assert sorted(line[-6:] for line in out.splitlines()) == ["seed=0", "seed=1", "seed=2"]
    assert err == "try: 40 points of random seed 4, 37 of them others again, which are no further runs\n"
    assert "optim.epochs=9 " in out  # as W&B's server sends it


def test_log_tells_the_seed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path, {"a": {"min": 0.0, "max": 1.0}}, command=["echo", "${args}"])
    assert main(["sweep", str(path), "--runs", "2", "--random-seed", "4", "--output", "out"]) == 0
    logs = [log.read_text().splitlines() for log in (tmp_path / "out" / "logs").iterdir()]
    assert [log[0] for log in logs] == ["# method random with seed 4"] * 2
    drawn = [draw({"a": {"min": 0.0, "max": 1.0}}, 4, number)["a"] for number in (1, 2)]
    assert {log[1] for log in logs} == {f"$ echo --a={value} --output=out" for value in drawn}


def test_grid_takes_a_cap_from_the_command(tmp_path, capsys):
    path = write_sweep(tmp_path, {"seed": {"values": [0, 1, 2]}}, method="grid", run_cap=1)
    assert main(["sweep", str(path), "--dry-run", "--runs", "2"]) == 0
    assert [line[-6:] for line in capsys.readouterr().out.splitlines()] == ["seed=0", "seed=1"]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (3, "'parameters.a' is 3, expected a distribution, value"),
        ({}, "'parameters.a' has nothing; to be drawn expected"),
        ({"min": 1}, "'parameters.a' has min; to be drawn"),
        ({"distribution": "gauss"}, "'parameters.a.distribution' is 'gauss', expected one of constant, categorical"),
        ({"distribution": ["normal"]}, r"'parameters.a.distribution' is \['normal'\], expected one of"),
        ({"distribution": "uniform", "min": 1}, "'parameters.a.max' is missing, which uniform needs"),
        ({"min": 1.0, "max": 2, "q": 1}, "'parameters.a.q' does not go with uniform"),
        ({"values": [1], "probabilities": [1], "distribution": "categorical"}, "a.probabilities' does not go with"),
        ({"values": []}, r"'parameters.a.values' is \[\], expected a list of values"),
        ({"values": [1, 2], "probabilities": [1]}, "expected one for each of parameters.a.values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "expected that they add up to 1"),
        ({"values": [1, 2], "probabilities": [2, -1]}, "expected a list of numbers from 0 to 1"),
        ({"distribution": "int_uniform", "min": 1.0, "max": 2}, "a.min' is 1.0, not a number that int_uniform takes"),
        ({"distribution": "normal", "mu": True}, "a.mu' is True, not a number that normal takes"),
        ({"distribution": "normal", "sigma": 0}, "a.sigma' is 0, expected a number above zero"),
        ({"distribution": "q_beta", "q": 0}, "a.q' is 0, expected a number above zero"),
        ({"min": float("-inf"), "max": 1.0}, "a.min' is -inf, expected a finite number"),
        ({"min": 2, "max": 1}, "'parameters.a': expected min below max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "'parameters.a.min': expected min above zero"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "settings whose log_uniform gives finite numbers"),
        ({"parameters": {"b": {"min": 2, "max": 1}}}, "'parameters.a.parameters.b': expected min below max"),
        ({"parameters": {"b": {"value": 1}}, "value": 2}, "'parameters.a.value' does not go with parameters"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_fault_names_file_and_key(tmp_path, parameter, message):
    path = write_sweep(tmp_path, {"a": parameter}, run_cap=1)
    with pytest.raises(UserError, match=message) as error:
        read_sweep(path)
    assert str(path) in str(error.value)


def test_random_without_an_end_is_refused(tmp_path, capsys):
    path = write_sweep(tmp_path, {"seed": {"min": 0, "max": 9}})
    assert main(["sweep", str(path), "--dry-run"]) == 2
    assert "try.yaml: method random has no last run; expected run_cap: N in the file, or --runs N" in (
        capsys.readouterr().err
    )
