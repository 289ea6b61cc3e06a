"""What is typed is what counts: texts, numbers and lists in overrides, in configuration files and in sweeps."""

import itertools
import json
from random import Random

import pytest

from dk_bench.cli import main
from dk_bench.config import config_from_dict, load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override, standing
from dk_bench.runs.identity import run_folder

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


def test_dashes_before_a_key_are_explained(capsys):
    with pytest.raises(SystemExit):
        main(["train", "configs/demo.yaml", "--seed=1"])
    assert "unrecognized arguments: --seed=1; key=value has no dashes before it" in capsys.readouterr().err
