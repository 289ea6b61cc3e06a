"""Exports on a stand-in for the Hugging Face Hub: pushed by the command, read by timm."""

import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
import timm
import torch
from hub_server import TOKEN, running_hub
from huggingface_hub import ModelCard
from trained_cases import run_of

import dk_bench
from dk_bench.classification.timm_models import build_model
from dk_bench.cli import main
from dk_bench.config import ModelConfig
from dk_bench.errors import UserError
from dk_bench.trained.push import check_repository

NAMES = {"config.json", "model.safetensors", "README.md", "record.json", "export.json"}
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client, of its own way
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that the client, which is imported already, talks to; with its own cache, and the token."""
    with running_hub() as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield running


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"), "model.name=test_resnetdw", "model.spec={depthwise: local, scope: 6}")


def exported(run, folder, *more):
    return main(["export", str(run), "--to", str(folder), "--push", "some-one/a.model", *more])


@torch.no_grad()
def test_what_is_pushed_is_made_again_by_timm(hub, run, tmp_path, capsys):
    assert exported(run, tmp_path / "out", "--license", "mit") == 0
    assert capsys.readouterr().out.endswith(f"pushed: {hub.url}/some-one/a.model\n")
    held = hub.repositories["some-one/a.model"]
    assert held.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert not held.private and len(held.commits) == 1 and "exported by dk_bench" in held.commits[0]
    expected = dk_bench.load(run).model(IMAGES)
    model = timm.create_model("hf-hub:some-one/a.model", pretrained=True).eval()
    torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=1e-6)
    maps = timm.create_model("hf-hub:some-one/a.model", pretrained=True, features_only=True, in_chans=1)
    assert maps.eval()(IMAGES[:, :1])[-1].shape == (2, 256, 1, 1)
    text = ModelCard.load("some-one/a.model")
    assert text.data.license == "mit" and text.data.library_name == "timm"
    assert 'timm.create_model("hf-hub:some-one/a.model", pretrained=True)' in text.content


@torch.no_grad()
def test_pretrained_takes_weights_from_the_hub_and_from_an_address(hub, run, tmp_path):
    """Of a deformed name: what ``hf_hub_id`` and ``url`` name, also with another number of classes."""
    assert exported(run, tmp_path / "out") == 0
    expected = dk_bench.load(run).model
    arguments = {"base": "test_resnetdw", "spec": {"depthwise": "local", "scope": 6}, "pretrained": True}
    torch.save(expected.state_dict(), tmp_path / "weights.pth")  # timm reads nothing else from an address
    hub.repositories["some-one/a.model"].files["weights.pth"] = (tmp_path / "weights.pth").read_bytes()
    address = f"{hub.url}/some-one/a.model/resolve/main/weights.pth"
    for source in ({"hf_hub_id": "some-one/a.model"}, {"url": address}):
        model = timm.create_model("dk_deformed", **arguments, num_classes=5, pretrained_cfg_overlay=source).eval()
        torch.testing.assert_close(model(IMAGES), expected(IMAGES), rtol=0, atol=1e-6)
        other = timm.create_model("dk_deformed", **arguments, num_classes=3, pretrained_cfg_overlay=source).eval()
        assert torch.equal(other.forward_features(IMAGES), expected.forward_features(IMAGES))
        with pytest.raises(RuntimeError, match="test_resnetdw_gdk_pw: the weights are of another model"):
            timm.create_model("test_resnetdw_gdk_pw", pretrained=True, pretrained_cfg_overlay=source)
    config = ModelConfig("test_resnetdw_dk", pretrained=True, kwargs={"pretrained_cfg_overlay": {"url": address}})
    with pytest.raises(UserError, match="'model.pretrained' is True, expected false unless"):
        build_model(config, 5)


def test_a_second_push_replaces_the_first_and_removes_what_it_has_not(hub, run, tmp_path):
    assert exported(run, tmp_path / "one", "--private") == 0
    held = hub.repositories["some-one/a.model"]
    held.files |= {"model.onnx": b"of the first weights", "notes.txt": b"somebody's own"}
    assert exported(run_of(tmp_path / "run", "model.name=test_resnetdw"), tmp_path / "one") == 0
    assert held.private and len(held.commits) == 2
    assert held.files.keys() == NAMES | {"notes.txt"}
    assert json.loads(held.files["config.json"])["architecture"] == "test_resnetdw"


def test_without_a_token_nothing_is_begun(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert exported(run, tmp_path / "out") == 2
    said = "no token for the hub; run `hf auth login`, or set HF_TOKEN"
    assert capsys.readouterr().err == f"dk-bench export: --push some-one/a.model: {said}\n"
    assert not (tmp_path / "out").exists() and not hub.repositories


@pytest.mark.parametrize("name", ["model", "a/b/c", "/model", "some one/model", "some-one/", "x/" + "y" * 100, ""])
def test_names_that_no_repository_can_have(name):
    with pytest.raises(UserError, match=r"^--push .*: expected OWNER/NAME, as the hub has it: "):
        check_repository(name)


def test_nothing_is_pushed_where_the_export_failed(hub, run, tmp_path, capsys):
    (run_of(tmp_path / "run", "model.name=test_resnetdw") / "last.ckpt").write_bytes(b"damaged")
    assert exported(tmp_path / "run", tmp_path / "out") == 2
    assert "run" in capsys.readouterr().err and not hub.repositories and not (tmp_path / "out").exists()


def test_what_the_hub_answers_is_told_and_the_same_command_tries_again(hub, run, tmp_path, capsys, monkeypatch):
    hub.refuse = 403
    assert exported(run, tmp_path / "out") == 2
    again = f"see {tmp_path / 'out'}, which is whole: the same command tries again"
    expected = f"dk-bench export: --push some-one/a.model: the hub answers 403 (no room for this commit); {again}"
    assert capsys.readouterr().err.splitlines()[-1] == expected  # after the bar of the upload
    assert not hub.repositories["some-one/a.model"].files
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    hub.refuse = None
    assert exported(run, tmp_path / "out") == 2
    assert "the hub answers 401 (Invalid credentials in Authorization header)" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert exported(run, tmp_path / "out") == 0
    assert hub.repositories["some-one/a.model"].files.keys() == NAMES


def test_a_hub_that_cannot_be_reached(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert exported(run, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith("dk-bench export: --push some-one/a.model: the hub cannot be reached: ")
    assert said.count("\n") == 1 and (tmp_path / "out").is_dir()


USE = """
import sys
import dk_bench, timm, torch
model = timm.create_model("hf-hub:some-one/a.model", pretrained=True).eval()
images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
with torch.no_grad():
    print((model(images) - dk_bench.load(sys.argv[1]).model(images)).abs().max().item() <= 1e-6)
"""


def test_the_client_is_told_of_a_hub_by_its_variable(run, tmp_path):
    """In a process of its own, which knows the hub, its token and the cache by the environment alone."""
    with running_hub() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        export = ["-m", "dk_bench", "export", str(run), "--to", str(tmp_path / "out"), "--push", "some-one/a.model"]
        for arguments, expected in ((export, f"pushed: {hub.url}/some-one/a.model"), (["-c", USE, str(run)], "True")):
            done = subprocess.run(
                [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == expected
