"""A W&B sweep file: read, checked, and its grid laid out as W&B's own grid search and agent would.

W&B's package ``sweeps``, which enumerates grids, asks for numpy 1, so its order is followed here: parameters by name,
the last one fastest; the tests compare. The arguments come from W&B's client.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dk_bench.errors import UserError
from dk_bench.reading.yaml_words import read_as_written

# Top-level keys of W&B's schema; those that only a server can honour are refused below.
KEYS = (
    "apiVersion command controller description early_terminate entity image_uri job kind method metric metrics name "
    "parameters program project run_cap scheduler"
).split()
SERVER_KEYS = ("early_terminate", "image_uri", "job", "scheduler")
PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# What a parameter of a grid may look like: the keys it must have -> those it may have.
PARAMETER_KINDS = {
    ("value",): {"value", "distribution"},
    ("values",): {"values", "distribution"},
    ("parameters",): {"parameters"},
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

Names = tuple[str, ...]  # of nested parameters, outermost first


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str
    program: str | None
    command: list[str]
    parameters: dict[str, Any]
    run_cap: int | None = None

    def points(self) -> list[dict[str, Any]]:
        """Returns the grid's points in W&B's order: parameter name -> value, names in alphabetical order."""
        return list(itertools.islice(_points(self.parameters), self.run_cap))

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


def read_sweep(path: str | Path) -> Sweep:
    """Reads a sweep file. Raises UserError that names the file, the key and what was expected there."""
    path = Path(path)
    try:
        return _checked(read_as_written(path, "sweep"), default_name=path.stem)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _points(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the points of a grid in W&B's order, nested parameters as nested dicts."""
    axes = list(_axes(parameters))
    for values in itertools.product(*(values for _, values in axes)):
        point: dict[str, Any] = {}
        for (names, _), value in zip(axes, values, strict=True):
            inner = point
            for name in names[:-1]:
                inner = inner.setdefault(name, {})
            inner[names[-1]] = value
        yield point


def _axes(parameters: Mapping[str, Any], outer: Names = ()) -> Iterator[tuple[Names, list[Any]]]:
    for name, parameter in sorted(parameters.items()):
        if "parameters" in parameter:
            yield from _axes(parameter["parameters"], (*outer, name))
            continue
        if "value" in parameter:
            values = [parameter["value"]]
        elif "values" in parameter:
            values = parameter["values"]
        elif parameter.get("distribution") == "q_uniform":
            values = np.arange(parameter["min"], parameter["max"], parameter.get("q", 1.0)).tolist()
        else:
            values = range(parameter["min"], parameter["max"] + 1)
        # A value named twice is one value; JSON text tells 1, true and "1" apart.
        yield (*outer, name), list({json.dumps(v, sort_keys=True): v for v in map(_as_sent, values)}.values())


def _as_sent(value: Any) -> Any:
    """Returns a value as it arrives at the agent: W&B's server sends 4.0 as 4, and from 1e21 on, 1e+21."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _as_sent(item) for key, item in sorted(value.items())}
    return [_as_sent(item) for item in value] if isinstance(value, list) else value


def _checked(content: Any, default_name: str) -> Sweep:
    """Returns the sweep that a file's content describes. Raises ValueError for the first fault."""
    if not isinstance(content, dict):
        raise ValueError("expected keys and values, such as method and parameters")
    if unknown := sorted(map(str, content.keys() - set(KEYS))):
        raise ValueError(f"unknown key '{unknown[0]}'; keys here: {', '.join(KEYS)}")
    if needs := [key for key in SERVER_KEYS if key in content]:
        raise ValueError(f"key '{needs[0]}' needs W&B's server; use wandb sweep and wandb agent")
    method = content.get("method")
    if method in ("bayes", "random", "custom"):
        raise ValueError(f"key 'method' is {method!r}, which needs W&B's server; here only grid runs")
    if method != "grid":
        raise ValueError(f"key 'method' is {method!r}, expected grid")
    program, command = content.get("program"), content.get("command", DEFAULT_COMMAND)
    _check_command(command, program)
    metrics = content.get("metrics")
    for metric in (content.get("metric"), *(metrics if isinstance(metrics, list) else [metrics])):
        _check_metric(metric)
    run_cap, name = content.get("run_cap"), content.get("name", default_name)
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise ValueError(f"key 'run_cap' is {run_cap!r}, expected a positive integer")
    if not isinstance(name, str):
        raise ValueError(f"key 'name' is {name!r}, expected a text")
    _check_parameters(content.get("parameters"), "parameters")
    return Sweep(name, program, [str(part) for part in command], content["parameters"], run_cap)


def _check_command(command: Any, program: Any) -> None:
    if program is not None and not isinstance(program, str):
        raise ValueError(f"key 'program' is {program!r}, expected a text")
    if not isinstance(command, list) or not command:
        raise ValueError(f"key 'command' is {command!r}, expected a list of arguments")
    for part in map(str, command):
        macro = MACRO.fullmatch(part)
        if macro and macro[1] not in MACROS:
            raise ValueError(f"key 'command' has {part}, expected one of {', '.join(f'${{{m}}}' for m in MACROS)}")
        if macro and macro[1] == "program" and not program:
            raise ValueError("key 'program' is missing, and 'command' uses it")


def _check_metric(metric: Any) -> None:
    if metric is None:
        return
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise ValueError(f"key 'metric' is {metric!r}, expected a name and a goal")
    if metric["name"].startswith("test/"):
        raise ValueError(
            f"key 'metric.name' is {metric['name']!r}, expected a figure of validation, as val/top1: settings that are "
            "chosen by test images leave nothing to test them on"
        )
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ValueError(f"key 'metric.goal' is {metric['goal']!r}, expected minimize or maximize")


def _check_parameters(parameters: Any, where: str) -> None:
    if not isinstance(parameters, dict) or not parameters:
        raise ValueError(f"key '{where}' is {parameters!r}, expected parameters by name")
    for name, parameter in parameters.items():
        key = f"{where}.{name}"
        if not isinstance(name, str) or not PARAMETER_NAME.fullmatch(name):
            raise ValueError(f"key '{key}': {name!r} is no name for a parameter")
        kind = _kind(parameter, key)
        if kind == ("parameters",):
            _check_parameters(parameter["parameters"], f"{key}.parameters")
        elif kind == ("min", "max"):
            _check_range(parameter, key)
        else:
            distribution = DISTRIBUTIONS[kind[0]]
            if parameter.get("distribution", distribution) != distribution:
                raise ValueError(f"key '{key}.distribution' is {parameter['distribution']!r}, expected {distribution}")
            if kind == ("values",) and not (isinstance(parameter["values"], list) and parameter["values"]):
                raise ValueError(f"key '{key}.values' is {parameter['values']!r}, expected a list of values")
            _check_value(parameter[kind[0]], f"{key}.{kind[0]}")


def _check_value(value: Any, key: str) -> None:
    """Raises ValueError for what YAML has and JSON, which W&B's server speaks, has not: dates, sets, keys that are no
    text."""
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:  # ValueError: NaN, infinity, a list that holds itself
        raise ValueError(f"key '{key}' is {value!r}, expected what JSON can hold: {error}") from error


def _kind(parameter: Any, key: str) -> tuple[str, ...]:
    """Returns the one of `PARAMETER_KINDS` that a parameter is of. Raises ValueError where it is of none."""
    expected = "expected value, values, parameters, or min and max"
    if not isinstance(parameter, dict):
        raise ValueError(f"key '{key}' is {parameter!r}, {expected}")
    kind = next((kind for kind in PARAMETER_KINDS if set(kind) <= parameter.keys()), None)
    if kind is None:
        raise ValueError(f"key '{key}' has {', '.join(map(str, parameter)) or 'nothing'}; for a grid {expected}")
    if extra := sorted(map(str, parameter.keys() - PARAMETER_KINDS[kind])):
        raise ValueError(f"key '{key}.{extra[0]}' does not go with {' and '.join(kind)} in a grid")
    return kind


def _check_range(parameter: dict[str, Any], key: str) -> None:
    low, high, distribution = parameter["min"], parameter["max"], parameter.get("distribution", "int_uniform")
    if distribution not in ("int_uniform", "q_uniform"):
        raise ValueError(f"key '{key}.distribution' is {distribution!r}, expected int_uniform or q_uniform")
    number = (int, float) if distribution == "q_uniform" else int
    for name in ("min", "max", "q"):
        if name in parameter and (isinstance(parameter[name], bool) or not isinstance(parameter[name], number)):
            raise ValueError(f"key '{key}.{name}' is {parameter[name]!r}, not a number that {distribution} takes")
    if not all(math.isfinite(parameter.get(name, 0)) for name in ("min", "max", "q")):
        raise ValueError(f"key '{key}': expected finite numbers")
    if distribution == "int_uniform" and "q" in parameter:
        raise ValueError(f"key '{key}.q' does not go with {distribution}")
    if low >= high or parameter.get("q", 1) <= 0:
        raise ValueError(f"key '{key}': expected min below max and q above zero")
