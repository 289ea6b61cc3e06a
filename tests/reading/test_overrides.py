"""What is typed is what counts: texts, numbers and lists in overrides, in configuration files and in sweeps."""

import itertools
import json
from random import Random

import pytest
import yaml

from dk_bench.cli import main
from dk_bench.config import config_from_dict, load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override, standing
from dk_bench.runs.identity import run_folder
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.listing import make_jobs
from dk_bench.sweep.training_runs import task_in

TEXTS = [
    "try #1",
    "try #2",
    "#",
    "007",
    "010",
    "1e5",
    "1_000",
    "0x10",
    "12:30",
    ".inf",
    "nan",
    "2020-01-01",
    "3",
    "1.50",
    "no",
    "on",
    "true",
    "False",
    "~",
    "null",
    "None",
    "",
    " ",
    " a  b ",
    "a,b",
    "[a, b]",
    "[a",
    "{a: b}",
    "{",
    "(1)",
    "'a'",
    '"',
    "it's",
    "a: b",
    "a:",
    "- a",
    "&a",
    "*a",
    "!a",
    "?",
    "|",
    ">",
    "%",
    "@",
    "`",
    "${seed}",
    "${",
    "$",
    "${oc.env:HOME}",
    "???",
    "a=b",
    "=",
    "\\n",
    "a\nb",
    "é 漢",
    "<<",
]
PATHS = ["/data/run #2/train", "C:\\new\\table", "a, b/c", "./x: y", "~/x", "${HOME}/x", "2020", "1.0", "yes"]
NUMBERS = {"1e-4": 1e-4, "1E-4": 1e-4, "1e-05": 1e-5, "1.e2": 100.0, ".5": 0.5, "0.1": 0.1, "4": 4.0, "+3.0": 3.0}
NO_NUMBERS = [
    "0x10",
    "1_000",
    "010",
    "007",
    "12:30",
    ".inf",
    "inf",
    "-.inf",
    ".nan",
    "nan",
    "1e999",
    "1,5",
    "one",
    "",
    " 1",
    "'1'",
    "true",
    "null",
    "[1]",
    "{a: 1}",
    "${seed}",
    "1 # half",
    "１",
    "1e-999",
    "(1,)",
]


def test_text_is_taken_as_typed():
    for text in TEXTS:
        config = load_config(None, [f"data.name={text}", f"data.reader={text}", f"output={text}"])
        assert [config.data.name, config.data.reader, config.output] == [text] * 3
        assert config_from_dict(to_dict(config)) == config


def test_names_that_yaml_took_for_one_are_two_runs_and_ordinary_ones_keep_their_cells():
    words = [
        "optim.lr=0.05",
        "model.spec={depthwise: local, scope: 5}",
        "data.mean=[0,0,0]",
        "ema.decay=0.99",
        "trainer.precision=16-mixed",
        "model.kwargs.a=1",
        "data.augment.scale=null",
        "model.drop_path_rate=1e-1",
    ]
    configs = [load_config(None, ["name=try #1"]), load_config(None, ["name=try #2", *words])]
    assert [str(run_folder(config, to_dict(config))) for config in configs] == [
        "runs/try #1-44136fa355b3-s0",
        "runs/try #2-da727d298d4e-s0",
    ]


def test_text_that_may_be_null_is_taken_as_typed_but_for_null():
    for text in PATHS:
        assert load_config(None, [f"data.train={text}"]).data.train == text
    assert load_config(None, ["data.train=x", "data.train=null"]).data.train is None
    assert load_config(None, ["data.train=x", "data.train=None"]).data.train is None


def test_numbers_are_plain_decimals_and_all_else_is_refused():
    for text, number in NUMBERS.items():
        lr = load_config(None, [f"optim.lr={text}"]).optim.lr
        assert lr == number and type(lr) is float
    places = [("optim.lr", "a number"), ("seed", "an integer"), ("data.size", "an integer")]
    for text, (key, expected) in itertools.product(NO_NUMBERS, places):
        with pytest.raises(UserError) as error:
            load_config(None, [f"{key}={text}"])
        assert str(error.value) == f"{key}={text}: key '{key}' is {text!r}, expected {expected}"


@pytest.mark.parametrize("text", ["4.0", "1e3", "1.5"])
def test_integers_have_no_point(text):
    with pytest.raises(UserError, match=f"key 'optim.epochs' is '{text}', expected an integer"):
        load_config(None, [f"optim.epochs={text}"])


VALUES = [
    ("trainer.compile=true", True),
    ("trainer.compile=True", True),
    ("trainer.compile=False", False),
    ("trainer.devices=2", 2),
    ("trainer.devices=auto", "auto"),
    ("trainer.devices=0,1", "0,1"),
    ("trainer.devices=-1", -1),
    ("ema.decay=null", None),
    ("ema.decay=0.9", 0.9),
    ("optim.offset_lr_multiplier=1", 1),
    ("optim.offset_lr_multiplier=1e-2", 0.01),
    ("optim.offset_lr_multiplier=auto", "auto"),
    ("data.augment.scale=null", None),
    ("data.augment.scale=[0.5, 1]", [0.5, 1.0]),
    ("data.mean=(0,0.5,1e-1)", [0.0, 0.5, 0.1]),
    ("data.mean[1]=0.25", [0.485, 0.25, 0.406]),
    ("data.mean.2=0", [0.485, 0.456, 0.0]),
    ("model.spec={'depthwise': 'local', 'scope': 5}", {"depthwise": "local", "scope": 5}),
    ("model.spec={depthwise: local, clip: false,}", {"depthwise": "local", "clip": False}),
    ("model.kwargs.a=1", 1),
    ("model.kwargs.a=1e-4", 1e-4),
    ("model.kwargs.a=007", "007"),
    ("model.kwargs.a='no'", "no"),
    ("model.kwargs.a=node", "node"),
    ("model.kwargs.a=12:30", "12:30"),
    ("model.kwargs.a=None", None),
    ("model.kwargs.a=true", True),
    ("model.kwargs.a='1'", "1"),
    ("model.kwargs.a=a, b #c", "a, b #c"),
    ("model.kwargs.a=${b}", "${b}"),
    ('model.kwargs.a="a\\u00e9\\"b"', 'aé"b'),
    ("model.kwargs.a=[]", []),
    ("model.kwargs.a={}", {}),
    ("model.kwargs.a=[1, 'x, y', [null, \"2\"], {k: v:w}]", [1, "x, y", [None, "2"], {"k": "v:w"}]),
    ("model.kwargs.a=('b',)", ("b",)),
    ("optim.momentum=0e-9", 0.0),
    ("model.kwargs.a.b.c=1", {"b": {"c": 1}}),
    ("model.kwargs.a={'it\\'s': \"it's\", \"b\": 'a\\\\b\\n'}", {"it's": "it's", "b": "a\\b\n"}),
    (
        'model.kwargs.a={"x": null, "y": [true, 1.5e3], "z": "\\ud83d\\ude00"}',
        {"x": None, "y": [True, 1500.0], "z": "\U0001f600"},
    ),
]


def test_other_values():
    for override, value in VALUES:
        key, _ = split_override(override)
        place = key[:3] if key[:2] == ("model", "kwargs") else key[:2]
        read = standing(to_dict(load_config(None, [override])), place if override[:12] != "data.augment" else key)
        assert (override, read, type(read)) == (override, value, type(value))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.mean=0.1,0.2,0.3", "key 'data.mean' is '0.1,0.2,0.3', expected a list in brackets (each item a number)"),
        ("data.mean=[1, 2", "key 'data.mean' is '[1, 2', which cannot be read: a bracket is not closed"),
        ("data.mean=[1, 2] 3", "key 'data.mean' is '[1, 2] 3', which cannot be read: after its end comes ' 3'"),
        ("data.mean=[1,,2]", "key 'data.mean' is '[1,,2]', which cannot be read: expected a value before ',2]'"),
        ("data.mean=[1, 0x2, 3]", "key 'data.mean[1]' is '0x2', expected a number"),
        ("data.mean[3]=1", "key 'data.mean' has no item 3, expected 0 to 2"),
        ("data.mean.3=1", "key 'data.mean' has no item 3, expected 0 to 2"),
        ("data.mean[-1]=1", "'data.mean[-1]=1': expected a key as a.b, or a.b[0] for an item of a list, before '='"),
        ("data[mean]=1", "'data[mean]=1': expected a key as a.b, or a.b[0] for an item of a list, before '='"),
        ("seed[0]=1", "unknown key 'seed[0]'"),
        ("seed.x=1", "unknown key 'seed.x'"),
        ("model.kwargs={a: 1, a: 2}", "'model.kwargs' is '{a: 1, a: 2}', which cannot be read: 'a' stands there twice"),
        ("model.kwargs={a}", "key 'model.kwargs' is '{a}', which cannot be read: expected ':' after 'a'"),
        ("model.kwargs.a=['\\d']", "which cannot be read: '\\d' is no text in quotes"),
        ("model.kwargs=3", "key 'model.kwargs' is '3', expected keys and values in braces"),
        (
            "model={spec: {depthwise: 007}}",
            "key 'model.spec' is {'depthwise': '007'}, which makes no spec: depthwise: expected one of",
        ),
        ("trainer.compile=yes", "key 'trainer.compile' is 'yes', expected true or false"),
        (
            "model.kwargs.a=no",
            "key 'model.kwargs.a' is 'no', expected true or false, or quotes around it if it is a text",
        ),
        ("model.kwargs={a: [1, On]}", "key 'model.kwargs.a[1]' is 'On', expected true or false, or quotes around it"),
        ("trainer.compile=1", "key 'trainer.compile' is '1', expected true or false"),
        ("trainer.devices=12:30", "key 'trainer.devices' is '12:30', expected auto, a number of devices"),
        ("trainer.devices=010", "key 'trainer.devices' is '010', expected auto, a number of devices"),
        ("optim.offset_lr_multiplier=0x1", "'optim.offset_lr_multiplier' is '0x1', expected auto or a number from 0"),
        ("name=/tmp/x", "key 'name' is '/tmp/x', expected a name that leaves a run's folder below output"),
        (f"name={'x' * 201}", "expected a name that leaves a run's folder below output"),
        ("model.kwargs.a=('b')", "which cannot be read: expected a comma after the only item of a tuple, or brackets"),
        (
            "wandb.project=a/b",
            "key 'wandb.project' is 'a/b', expected up to 128 characters, none of / \\ # ? % :, as W&B",
        ),
        ("name=../x", "key 'name' is '../x', expected a name that leaves a run's folder below output"),
        ("+seed=1", "'+seed=1': expected KEY=VALUE without plus signs before the key, for example optim.epochs=10"),
        ("++seed=1", "'++seed=1': expected KEY=VALUE without plus signs before the key"),
        ("~seed", "'~seed': expected KEY=VALUE without a tilde before the key"),
        ("--seed=1", "'--seed=1': expected KEY=VALUE without dashes before the key"),
        (
            '{"seed": 1}',
            "expected KEY=VALUE, for example optim.epochs=10; in a sweep's command write ${args_no_hyphens}",
        ),
        ("optim..lr=1", "'optim..lr=1': expected a key as a.b"),
    ],
)
def test_what_cannot_be_is_named(override, sentence):
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert sentence in str(error.value)


@pytest.mark.parametrize("key", ["data.augment.scale[0]", "data.augment.scale.0"])
def test_there_is_no_item_of_null(key):
    with pytest.raises(UserError, match="key 'data.augment.scale' is None, expected a list in brackets that has '0'"):
        load_config(None, ["data.augment.scale=null", f"{key}=0.5"])


def random_text(random):
    return "".join(random.choices("ab '\"\\\n\t,:[]{}()#&*%~$=-+.01eE漢", k=random.randrange(7)))


def random_data(random, depth=0):
    """Plain data as JSON has it, of texts that look like something else."""
    kind = random.randrange(5 if depth == 3 else 7)
    if kind == 5:
        return [random_data(random, depth + 1) for _ in range(random.randrange(3))]
    if kind == 6:
        return {random_text(random): random_data(random, depth + 1) for _ in range(random.randrange(3))}
    return [None, True, random.randrange(-99, 99), random.uniform(-1, 1) * 1e-5, random_text(random)][kind]


def test_what_python_and_json_write_comes_back():
    """As the agent of W&B and its server do."""
    random = Random(0)
    for _ in range(100):
        data = {"a": random_data(random)}
        for text in (repr(data), json.dumps(data), json.dumps(data, ensure_ascii=False, indent=1)):
            assert load_config(None, [f"model.kwargs={text}"]).model.kwargs == data


def test_sections_are_laid_over_and_the_last_counts():
    words = ["model.kwargs={a: {b: 1, c: 2}}", "model.kwargs.a={b: 3}", "optim={lr: 1}", "seed=1", "seed=2"]
    config = load_config(None, words)
    assert config.model.kwargs == {"a": {"b": 3, "c": 2}} and config.seed == 2
    assert (config.optim.lr, config.optim.momentum) == (1.0, 0.9)
    assert load_config(None, [*words, "model.kwargs={}", "optim={}"]).model.kwargs == {}
    for deletion in (["model.kwargs={_delete_: true, b: 2}"], ["model.kwargs._delete_=true", "model.kwargs.b=2"]):
        assert load_config(None, [*words, *deletion]).model.kwargs == {"b": 2}


WRITTEN = [
    "007",
    "010",
    "12:30",
    "1e5",
    "no",
    "on",
    "2020-01-01",
    "0x10",
    "1_000",
    "1.50",
    "true",
    "try",
    "${x}",
    "???",
    "a#b",
    "None",
]
IN_QUOTES = {
    "'# 1'": "# 1",
    "'~'": "~",
    "'null'": "null",
    "'${x}'": "${x}",
    "!!str 12:30": "12:30",
    "|-\n  a: b": "a: b",
    '"a\\tb"': "a\tb",
}


def test_text_in_a_file_is_as_written(tmp_path):
    path = tmp_path / "a.yaml"
    for written in [*WRITTEN, *IN_QUOTES]:
        path.write_text(f"name: {written}\nmodel: {{spec: null}}\n")
        assert load_config(path).name == IN_QUOTES.get(written, written)


NO_CONTENT = [
    ("name:", "key 'name' is None, expected a text"),
    ("name: ~", "key 'name' is None, expected a text"),
    ("name: [a]", "key 'name' is ['a'], expected a text"),
    ("optim: {lr: 0x10}", "key 'optim.lr' is '0x10', expected a number"),
    ("seed: 010", "key 'seed' is '010', expected an integer"),
    ("seed: 1_0", "key 'seed' is '1_0', expected an integer"),
    ("data: {size: 12:30}", "key 'data.size' is '12:30', expected an integer"),
    ("model: {kwargs: {a: yes}}", "key 'model.kwargs.a' is 'yes', expected true or false, or quotes around it"),
    ("trainer: {compile: yes}", "key 'trainer.compile' is 'yes', expected true or false"),
    ("optim: {lr: .inf}", "key 'optim.lr' is '.inf', expected a number"),
    ("seed: 1\noptim: {lr: 1}\nseed: 2", "line 3: key 'seed' stands there twice"),
    ("optim: {lr: 1, lr: 2}", "line 1: key 'lr' stands there twice"),
    ("seed: !!float 1", "line 1: tag !!float is not read"),
    ("model: {kwargs: !set {a}}", "line 1: tag !set is not read"),
    ("model: &m {kwargs: *m}", "line 1: holds itself"),
    ("? [a]\n: 1", "line 1: expected a text as a key"),
    ("a: 1\n---\nb: 2", "not YAML: expected a single document"),
]


def test_what_a_file_cannot_hold_is_named(tmp_path):
    for content, sentence in NO_CONTENT:
        (tmp_path / "a.yaml").write_text(content)
        with pytest.raises(UserError) as error:
            load_config(tmp_path / "a.yaml")
        assert sentence in str(error.value) and "a.yaml" in str(error.value)


def test_file_has_numbers_nulls_anchors_and_free_words(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "optim: {lr: 1e-4, weight_decay: 5}\n"
        "model: {checkpoint: ~, kwargs: {a: 1e-4, b: 'no', c: '1', d: 007, e: , f: [1, x]}}\n"
        "data: {augment: {scale: null}, train: 010}\nema: {decay: 0.5}\ntrainer: {devices: 2}\n"
    )
    config = load_config(tmp_path / "a.yaml")
    assert (config.optim.lr, config.optim.weight_decay, config.model.checkpoint) == (1e-4, 5.0, None)
    assert config.model.kwargs == {"a": 1e-4, "b": "no", "c": "1", "d": "007", "e": None, "f": [1, "x"]}
    assert (config.data.train, config.data.augment.scale, config.trainer.devices) == ("010", None, 2)
    (tmp_path / "b.yaml").write_text("ema: &e {decay: 0.5}\nmodel: {kwargs: {<<: *e, a: 'yes'}}\n")
    assert load_config(tmp_path / "b.yaml").model.kwargs == {"decay": 0.5, "a": "yes"}


OF_ANOTHER_KIND = [
    {"name": 7},
    {"name": True},
    {"seed": 1.0},
    {"seed": True},
    {"trainer": {"compile": 1}},
    {"seed": "010"},
    {"optim": {"lr": float("nan")}},
    {"data": {"mean": "[1, 2, 3]"}},
]


def test_values_of_another_kind_are_refused():
    for values in OF_ANOTHER_KIND:
        with pytest.raises(UserError, match="configuration: key '.*' is .*, expected"):
            config_from_dict(values)


def sweep_file(folder, parameters, **more):
    (folder / "c.yaml").write_text("name: swept\n")
    path = folder / "try.yaml"
    command = ["dk-bench", "train", str(folder / "c.yaml"), "${args_no_hyphens}"]
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters} | more))
    return path


NAMES = ["007", "7", "1e5", "no", "try #1", "try #2", " a", "None", "a=b"]
FREE = ["1", 1, "it's", None, True, "x, y"]
SOUND = [
    {"name": {"values": NAMES}},
    {"optim.lr": {"values": ["1e-4", 1e-05, 4.0]}, "ema.decay": {"values": [None, 0.5]}},
    {"model": {"parameters": {"kwargs": {"parameters": {"a": {"values": FREE}}}}}},
    {"data.train": {"value": "/data/run #2/train"}, "data.augment.scale": {"values": [[0.5, 1.0], None]}},
]


def test_points_are_what_the_file_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    read = []
    for parameters in SOUND:
        path = sweep_file(tmp_path, parameters)
        assert main(["sweep", str(path), "--dry-run"]) == 0
        jobs = make_jobs(read_sweep(path), None)
        assert len(capsys.readouterr().out.splitlines()) == len(jobs)
        read.append([task_in(job.argv).run for job in jobs])
    assert [config.name for config in read[0]] == NAMES
    assert {config.optim.lr for config in read[1]} == {1e-4, 1e-5, 4.0}
    assert [config.model.kwargs["a"] for config in read[2]] == FREE
    assert {config.data.train for config in read[3]} == {"/data/run #2/train"}


@pytest.mark.parametrize(
    ("parameters", "status", "sentence"),
    [
        (
            {"name": {"values": ["1", 1]}},
            2,
            "parameter 'name' has '1' and 1, which are one argument, name=1; expected one",
        ),
        ({"name": {"values": [True, "a"]}}, 2, "'name' is True in the sweep file, and 'True' to the configuration"),
        ({"name": {"value": None}}, 2, "parameter 'name' is None in the sweep file, and 'None' to the configuration"),
        ({"name": {"value": 1.5}}, 2, "parameter 'name' is 1.5 in the sweep file, and '1.5' to the configuration"),
        ({"data.train": {"value": "null"}}, 2, "parameter 'data.train' is 'null' in the sweep file, and None to the"),
        ({"model.kwargs.a": {"values": ["1", "b"]}}, 2, "'model.kwargs.a' is '1' in the sweep file, and 1 to the"),
        ({"model.kwargs.a": {"values": ["true"]}}, 2, "'model.kwargs.a' is 'true' in the sweep file, and True to"),
        ({"optim.lr": {"values": ["0.10", "1e-1"]}}, 2, "is '0.10' in the sweep file, and 0.1 to the"),
        ({"optim.lr": {"values": ["1e-1", 0.1]}}, 2, "points 'optim.lr=1e-1' and 'optim.lr=0.1' are one run"),
        ({"output": {"values": ["a", "b/../a"]}}, 2, "points 'output=a' and 'output=b/../a' are one run"),
        ({"wandb.project": {"values": ["a", "b"]}}, 2, "are one run, runs/swept-44136fa355b3-s0: they differ in what"),
        ({"optim.lr": {"values": [0.1, "fast"]}}, 1, "run 'optim.lr=fast' will fail: optim.lr=fast: key 'optim.lr' is"),
        ({"optim.lrr": {"value": 1}}, 1, "unknown key 'optim.lrr', did you mean 'optim.lr'?"),
    ],
)
def test_dry_run_refuses_what_the_sweep_refuses(tmp_path, monkeypatch, capsys, parameters, status, sentence):
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, parameters)
    assert main(["sweep", str(path), "--dry-run"]) == status
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    if status == 2:
        monkeypatch.setattr("dk_bench.cli.sweep.run_jobs", lambda *_, **__: pytest.fail("the sweep started"))
        assert main(["sweep", str(path)]) == 2
        assert sentence in capsys.readouterr().err


def test_dry_run_names_every_run_that_will_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, {"optim.lr": {"values": [0.1, "fast", -1]}})
    assert main(["sweep", str(path), "--dry-run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "run 'optim.lr=-1' will fail: key 'optim.lr' is -1.0, expected a positive" in lines[1]
    path = sweep_file(tmp_path, {"seed": {"value": 1}}, command=["dk-bench", "train", "none.yaml", "${args}"])
    assert main(["sweep", str(path), "--dry-run"]) == 1
    assert "none.yaml: no configuration can be read there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a: {values: [007, 8]}", "line 3: 007 is 7 to YAML, expected '007' or what is meant"),
        ("a: {values: [12:30]}", "line 3: 12:30 is 750 to YAML"),
        ("a: {value: no}", "line 3: no is false to YAML"),
        ("a: {value: 0x10}", "line 3: 0x10 is 16 to YAML"),
        ("a: {value: 1_000}", "line 3: 1_000 is 1000 to YAML"),
        ("a: {value: 2020-01-01}", "line 3: 2020-01-01 is a date to YAML"),
        ("a: {value: 0b_}", "line 3: 0b_ is no text but of tag !!int to YAML"),
        ("a: {value: 1}\n  a: {value: 2}", "line 4: key 'a' stands there twice"),
    ],
)
def test_sweep_files_hold_what_is_written(tmp_path, line, sentence):
    path = tmp_path / "try.yaml"
    path.write_text(f"method: grid\nparameters:\n  {line}\nprogram: t.py\n")
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert str(error.value).startswith(f"{path}: {sentence}")


def test_dashes_before_a_key_are_explained(capsys):
    with pytest.raises(SystemExit):
        main(["train", "configs/demo.yaml", "--seed=1"])
    assert "unrecognized arguments: --seed=1; key=value has no dashes before it" in capsys.readouterr().err
