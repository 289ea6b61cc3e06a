"""What is written in a configuration file is what counts: texts, numbers, nulls and lists without YAML's readings."""

import pytest

from dk_bench.config import config_from_dict, load_config
from dk_bench.errors import UserError

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
