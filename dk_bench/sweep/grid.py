"""A W&B sweep file: read, checked, and its grid laid out as W&B's own grid search and agent would. The
points of method random are drawn in sampling.py.

W&B's package ``sweeps``, which enumerates grids, asks for numpy 1, so its order is followed here: parameters by name,
the last one fastest; the tests compare. The arguments come from W&B's client.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dk_bench.errors import UserError, located
from dk_bench.reading.shipped import find_shipped
from dk_bench.reading.yaml_words import read_as_written
from dk_bench.sweep.faults import check_parameters, check_value, check_values, is_number, need
from dk_bench.sweep.hyperband import Hyperband
from dk_bench.sweep.sampling import check_drawn, draw

# Top-level keys of W&B's schema; those that only a server can honour are refused below.
KEYS = (
    "apiVersion command controller description early_terminate entity image_uri job kind method metric metrics name "
    "parameters program project run_cap scheduler"
).split()
SERVER_KEYS = ("image_uri", "job", "scheduler")
# What a parameter of a grid may look like: the keys it must have -> those it may have.
PARAMETER_KINDS = {
    ("value",): {"value", "distribution"},
    ("values",): {"values", "distribution"},
    ("min", "max"): {"min", "max", "q", "distribution"},
}
DISTRIBUTIONS = {"value": "constant", "values": "categorical"}
# The client knows environment variables in capitals alone; of any other it would leave nothing.
MACRO = re.compile(r"\$\{(?!envvar:[A-Z0-9_]*\})(.*)\}")
MACROS = (
    "env interpreter program args args_no_equals args_no_hyphens args_no_boolean_flags args_json args_append_hydra "
    "args_override_hydra"
).split()
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str
    program: str | None
    command: list[str]
    parameters: dict[str, Any]
    run_cap: int | None = None
    method: str = "grid"
    seed: int = 0  # of method random
    early: Hyperband | None = None  # which runs are stopped early
    metric: str = ""  # the figure that it is about

    def points(self) -> list[dict[str, Any]]:
        """Returns the points: parameter name -> value, names in alphabetical order. Those of a grid come in W&B's
        order; those of method random in that of their numbers, each once: equal points would be one run."""
        if self.method == "grid":
            return list(itertools.islice(_points(self.parameters), self.run_cap))
        drawn = (as_sent(draw(self.parameters, self.seed, number)) for number in range(1, self.run_cap + 1))
        return list({json.dumps(point): point for point in drawn}.values())

    def argv(self, point: Mapping[str, Any]) -> list[str]:
        """Returns the command line the W&B agent would start for a point."""
        from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # takes seconds

        expanded = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
        expanded |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [self.program]}
        argv: list[str] = []
        for part in create_sweep_command(list(self.command)):
            macro = MACRO.fullmatch(part)
            argv += expanded[macro[1]] if macro else [part]
        return argv


def read_sweep(path: str | Path, *, runs: int | None = None, seed: int = 0) -> Sweep:
    """Reads a sweep file, or one that comes with the package, see `find_shipped`. ``runs`` takes the place of its
    ``run_cap``; ``seed`` is that of method random, for which W&B's files have no key. Raises UserError that names the
    file, the key and what was expected there."""
    path = find_shipped(path, "sweeps")
    content = read_as_written(path, "sweep")
    with located(path):
        sweep = _checked(content, default_name=Path(path).stem)
        sweep = dataclasses.replace(sweep, run_cap=runs or sweep.run_cap, seed=seed)
        if sweep.method == "random" and sweep.run_cap is None:
            raise UserError("method random has no last run; expected run_cap: N in the file, or --runs N")
        return sweep


def _points(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the points of a grid in W&B's order: parameters by name, the last one fastest, nested ones as dicts."""
    if not parameters:
        yield {}
        return
    name, *others = sorted(parameters)
    for value in _values(parameters[name]):
        for point in _points({other: parameters[other] for other in others}):
            yield {name: value, **point}


def _values(parameter: Mapping[str, Any]) -> Iterable[Any]:
    if "parameters" in parameter:
        return _points(parameter["parameters"])
    if "value" in parameter:
        values = [parameter["value"]]
    elif "values" in parameter:
        values = parameter["values"]
    elif parameter.get("distribution") == "q_uniform":
        values = np.arange(parameter["min"], parameter["max"], parameter.get("q", 1.0)).tolist()
    else:
        values = range(parameter["min"], parameter["max"] + 1)
    # A value named twice is one value; JSON text tells 1, true and "1" apart.
    return {json.dumps(v, sort_keys=True): v for v in map(as_sent, values)}.values()


def as_sent(value: Any) -> Any:
    """Returns a value as it arrives at the agent: W&B's server sends 4.0 as 4, and from 1e21 on, 1e+21."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, Mapping):
        return {key: as_sent(item) for key, item in sorted(value.items())}
    return [as_sent(item) for item in value] if isinstance(value, list) else value


def _checked(content: Any, default_name: str) -> Sweep:
    """Returns the sweep that a file's content describes. Raises UserError for the first fault."""
    if not isinstance(content, dict):
        raise UserError("expected keys and values, such as method and parameters")
    if unknown := sorted(map(str, content.keys() - set(KEYS))):
        raise UserError(f"unknown key '{unknown[0]}'; keys here: {', '.join(KEYS)}")
    if needs := [key for key in SERVER_KEYS if key in content]:
        raise UserError(f"key '{needs[0]}' needs W&B's server; use wandb sweep and wandb agent")
    method, run_cap, name = content.get("method"), content.get("run_cap"), content.get("name", default_name)
    on_server = method in ("bayes", "custom")
    expected = "which needs W&B's server; here grid and random run" if on_server else "expected grid or random"
    need(method in ("grid", "random"), expected, "method", method)
    command = _checked_command(content.get("command", DEFAULT_COMMAND), content.get("program"))
    metrics = content.get("metrics")
    for metric in (content.get("metric"), *(metrics if isinstance(metrics, list) else [metrics])):
        if metric is not None:
            _check_metric(metric)
    need(run_cap is None or type(run_cap) is int and run_cap > 0, "expected a positive integer", "run_cap", run_cap)
    need(isinstance(name, str), "expected a text", "name", name)
    check_parameters(content.get("parameters"), "parameters", _check_parameter if method == "grid" else check_drawn)
    settings = content.get("early_terminate")
    early = None if settings is None else Hyperband.read(settings, content.get("metric"))
    rest = {"early": early, "metric": (content.get("metric") or {}).get("name", "")}
    return Sweep(name, content.get("program"), command, content["parameters"], run_cap, method, **rest)


def _checked_command(command: Any, program: Any) -> list[str]:
    need(program is None or isinstance(program, str), "expected a text", "program", program)
    need(isinstance(command, list) and bool(command), "expected a list of arguments", "command", command)
    for part in map(str, command):
        macro = MACRO.fullmatch(part)
        if macro and macro[1] not in MACROS:
            raise UserError(f"key 'command' has {part}, expected one of {', '.join(f'${{{m}}}' for m in MACROS)}")
        if macro and macro[1] == "program" and not program:
            raise UserError("key 'program' is missing, and 'command' uses it")
    return [str(part) for part in command]


def _check_metric(metric: Any) -> None:
    has_name = isinstance(metric, dict) and isinstance(metric.get("name"), str)
    need(has_name, "expected a name and a goal", "metric", metric)
    expected = (
        "expected a figure of validation, as val/top1: settings that are chosen by test images leave nothing to test "
        "them on"
    )
    need(not metric["name"].startswith("test/"), expected, "metric.name", metric["name"])
    if "target" in metric:
        raise UserError("key 'metric.target' needs W&B's server; here a sweep ends with its last run")
    goal = metric.get("goal", "minimize")
    need(goal in ("minimize", "maximize"), "expected minimize or maximize", "metric.goal", goal)


def _check_parameter(parameter: Any, key: str) -> None:
    """Raises UserError for a parameter that is none of a grid."""
    kind = _kind(parameter, key)
    if kind == ("min", "max"):
        _check_range(parameter, key)
        return
    named, value = DISTRIBUTIONS[kind[0]], parameter[kind[0]]
    given = parameter.get("distribution", named)
    need(given == named, f"expected {named}", f"{key}.distribution", given)
    (check_value if kind == ("value",) else check_values)(value, f"{key}.{kind[0]}")


def _kind(parameter: Any, key: str) -> tuple[str, ...]:
    """Returns the one of `PARAMETER_KINDS` that a parameter is of. Raises UserError where it is of none."""
    expected = "expected value, values, parameters, or min and max"
    need(isinstance(parameter, dict), expected, key, parameter)
    kind = next((kind for kind in PARAMETER_KINDS if set(kind) <= parameter.keys()), None)
    if kind is None:
        raise UserError(f"key '{key}' has {', '.join(map(str, parameter)) or 'nothing'}; for a grid {expected}")
    if extra := sorted(map(str, parameter.keys() - PARAMETER_KINDS[kind])):
        raise UserError(f"key '{key}.{extra[0]}' does not go with {' and '.join(kind)} in a grid")
    return kind


def _check_range(parameter: dict[str, Any], key: str) -> None:
    distribution = parameter.get("distribution", "int_uniform")
    kinds = {"int_uniform": int, "q_uniform": int | float}
    need(distribution in list(kinds), f"expected {' or '.join(kinds)}", f"{key}.distribution", distribution)
    given = {name: parameter[name] for name in ("min", "max", "q") if name in parameter}
    for name, value in given.items():
        fits = is_number(value) and isinstance(value, kinds[distribution])
        need(fits, f"not a number that {distribution} takes", f"{key}.{name}", value)
    need(all(map(math.isfinite, given.values())), "expected finite numbers", key)
    if distribution == "int_uniform" and "q" in given:
        raise UserError(f"key '{key}.q' does not go with {distribution}")
    need(given["min"] < given["max"] and given.get("q", 1) > 0, "expected min below max and q above zero", key)
