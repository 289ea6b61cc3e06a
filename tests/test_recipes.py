"""The recipes of docs/extending.md and docs/extending_operator.md: their code does what is said of it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import textwrap
import types
from pathlib import Path

import pytest
import timm
import torch
from emulation import run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import dk_bench
from dk_bench import functional, tasks
from dk_bench.claims.file import load_claims
from dk_bench.cli import main
from dk_bench.config import load_config
from dk_bench.functional import fallback, flops, registration
from dk_bench.models import KernelSpec, Variant, rules
from dk_bench.runs.record import find_records, read_record
from dk_bench.tables.cells import gather

ROOT = Path(__file__).parents[1]
TRIED = "tried"  # in place of "mine", which somebody may have added


def blocks_of(recipe: str, language: str) -> list[str]:
    """Returns the blocks of a language in a recipe, without the indent of their step, by a name of our own."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/extending*.md")))
    (section,) = (s for s in re.split(r"^##? ", text, flags=re.MULTILINE) if s.startswith(f"{recipe}\n"))
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    return [re.sub("(?<![a-z])mine(?![a-z])", TRIED, textwrap.dedent(block)) for block in found]


def test_the_recipe_of_a_variant():
    (line,) = blocks_of("A variant", "python")
    names: dict = {"Variant": Variant, "KernelSpec": KernelSpec}
    exec(f"def variants(base):\n    {line}", names)
    (variant,) = names["variants"]("test_resnetdw")
    assert variant.name == f"test_resnetdw_dk_{TRIED}"


def test_the_recipe_of_a_layer():
    layer, rule = blocks_of("A layer", "python")
    names: dict = vars(rules).copy()
    exec(layer, names)
    conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    (mine,) = eval(f"({rule})", names)
    made, images = mine.make(conv, KernelSpec()), torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(made(images), conv(images))
    assert mine.matches(KernelSpec()).include(conv, 1) and mine.words(KernelSpec())["combined"] == "scaled"


@pytest.fixture
def lent_library(monkeypatch):
    """Takes what is registered as ours, and gives it back: other tests count our operators."""
    library, before = torch.library.Library("dk_bench", "FRAGMENT"), len(torch.library._keep_alive)
    for module in (registration, fallback):
        monkeypatch.setattr(module, "library", library)
    yield library
    for each in (library, *torch.library._keep_alive[before:]):
        each._destroy()
    del torch.library._keep_alive[before:]


@pytest.fixture
def operator(tmp_path, monkeypatch, lent_library):
    """Returns the function of the recipe of an operator; what is compiled computes on the CPU."""
    specification, function, schemas, formulas = blocks_of("An operator", "python")
    (source,) = blocks_of("An operator", "cpp")
    said = re.findall(r"m\.def\(\s*(.*?)\);", source, re.DOTALL)
    schemas = eval(f"({schemas})")
    assert [eval(f"({text})") for text in said] == list(schemas)
    compiled = compile_operator(source, tmp_path)
    for schema in schemas:
        lent_library.define(schema)
        name = schema.partition("(")[0]
        lent_library.impl(name, getattr(compiled, name).default, "CPU")
    for folder, lines in (("reference", specification), ("functional", function)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{TRIED}.py").write_text(lines)
        package = importlib.import_module(f"dk_bench.{folder}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
        module = importlib.import_module(f"dk_bench.{folder}.{TRIED}")
        monkeypatch.setattr(package, TRIED, getattr(module, TRIED), raising=False)
    monkeypatch.setattr(flop_counter, "flop_registry", dict(flop_counter.flop_registry))
    exec(formulas, vars(flops).copy())
    return getattr(functional, TRIED)


def compile_operator(source: str, folder: Path):
    """Compiles and loads the source, with a namespace of its own: a library stays loaded."""
    (folder / "cpu.cpp").write_text(source.replace("(dk_bench,", "(dk_bench_tried,").replace("../common", "common"))
    target, torch_folder = folder / "tried.so", Path(torch.__file__).parent
    flags = ["-std=c++17", "-O0", "-Wall", "-Werror", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    headers = [f"-I{ROOT / 'ops'}", f"-I{torch_folder / 'include'}"]
    link = ["-shared", "-o", str(target), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    run([os.environ.get("CXX", "c++"), *flags, *headers, str(folder / "cpu.cpp"), *link])
    torch.ops.load_library(str(target))
    return torch.ops.dk_bench_tried


def test_the_recipe_of_an_operator(operator):
    """Derivatives, vmap, fake tensors' strides, what is refused, and cost."""
    images, factor = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    operands = (images.requires_grad_(), factor.requires_grad_())
    assert torch.autograd.gradcheck(operator, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(operator, operands)
    same = torch.func.vmap(operator)(*(t[None].expand(2, *t.shape) for t in operands))
    torch.testing.assert_close(same[1], images * factor[..., None, None])
    forward, backward = (getattr(torch.ops.dk_bench, name) for name in (TRIED, f"{TRIED}_backward"))
    for layout in (torch.contiguous_format, torch.channels_last):
        given = (images.detach().contiguous(memory_format=layout), torch.randn(2, 5).double()[:, 1:4])
        torch.library.opcheck(forward, tuple(t.clone().requires_grad_() for t in given))
        torch.library.opcheck(backward, (given[0], *given, False))
        check_strides(forward, given)
        check_strides(backward, (given[0], *given, False))
    refuses(operator, (images, factor[:, :2]), r"factor: expected \(N, C\) = \(2, 3\), got shape \(2, 2\)")
    narrow = (images.bfloat16(), factor.bfloat16())
    refuses(operator, narrow, "input: expected float32 or float64, got (torch.)?bfloat16")
    refuses(backward, (images[:, :, :1], *operands, False), r"grad: expected shape \(2, 3, 2, 2\), got \(2, 3, 1, 2\)")
    with FlopCounterMode(display=False) as counter:
        operator(*operands).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * images.numel()


def check_strides(op, arguments):
    """Fails where the fake operator tells other sizes or strides than the results have."""
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments))
    real = op(*arguments)
    pairs = zip(*(([r] if isinstance(r, torch.Tensor) else r) for r in (real, fake)), strict=True)
    assert all((r.shape, r.stride()) == (f.shape, f.stride()) for r, f in pairs)


def refuses(function, arguments, message):
    """Fails where what is compiled and the fake operator do not refuse the arguments in the same words."""
    with pytest.raises(RuntimeError, match=message):
        function(*arguments)
    if function is getattr(functional, TRIED):  # a fake backward operator checks nothing
        with FakeTensorMode() as mode, pytest.raises((RuntimeError, ValueError), match=message):
            function(*map(mode.from_tensor, arguments))


def test_the_recipe_of_an_ablation(tmp_path, capsys):
    text, quick = blocks_of("An ablation", "yaml")
    for name, lines in ((TRIED, text), (f"{TRIED}_quick", text + textwrap.indent(quick, "  "))):
        (tmp_path / f"{name}.yaml").write_text(lines)
        assert main(["sweep", str(tmp_path / f"{name}.yaml"), "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert out.count("model.spec.scope=7") == 3
        assert out.count("optim.epochs=1 ") == (9 if "quick" in name else 0), out


def test_the_recipe_of_a_claim(tmp_path):
    (text,) = blocks_of("A claim", "yaml")
    claims = (ROOT / "dk_bench" / "claims" / "claims.yaml").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(claims + textwrap.indent(text.replace("- id: ", f"- id: {TRIED}-"), "  "))
    assert len(load_claims(tmp_path / "claims.yaml").claims) == len(load_claims().claims) + 1


def test_the_recipe_of_a_table():
    (lines,) = blocks_of("A table", "python")
    names: dict = {}
    exec(lines, names)
    cells = gather(read_record(path) for path in find_records([ROOT / "results" / "e2"]))
    (table,) = names[f"{TRIED}_document"](cells).tables
    assert table.columns == ("data", "model", "top-1", "epochs") and len(table.rows) == len(cells) > 10


def test_the_recipe_of_a_study(tmp_path):
    names: dict = {}
    for lines in blocks_of("A study", "python"):
        exec(lines, names)
    model, config = timm.create_model("test_resnetdw_dk").eval(), load_config(ROOT / "configs" / "demo.yaml")
    names["load_classifier"] = lambda path: types.SimpleNamespace(model=model, config=config)
    rows = names["study_offsets"]("last.ckpt", 2)
    assert [row["kind"] for row in rows] == ["kernel offsets"] * 4 and all(row["mean"] == 0 for row in rows)
    assert [path.name for path in names["write_figure"](rows, tmp_path)] == [f"{TRIED}.png", f"{TRIED}.pdf"]


def test_the_recipe_of_a_task(tmp_path, monkeypatch):
    task, module, kind = blocks_of("A task", "python")
    (tmp_path / TRIED).mkdir()
    for name, lines in (("__init__", ""), ("task", task), ("module", module)):
        (tmp_path / TRIED / f"{name}.py").write_text(lines)
    monkeypatch.setattr("dk_bench.__path__", [*dk_bench.__path__, str(tmp_path)])
    monkeypatch.setattr("dk_bench.tasks.KINDS", tasks.KINDS | {TRIED: eval(kind, vars(tasks))})
    path = shutil.copy(ROOT / "configs" / "demo.yaml", tmp_path / f"{TRIED}.yaml")
    few = [f"data.procedural.{split}_images=32" for split in ("train", "val")]
    command = ["train", str(path), *few, "optim.epochs=1", "optim.warmup_epochs=0", "data.size=32"]
    assert main([*command, f"output={tmp_path}"]) == 0
    (record,) = (read_record(path) for path in find_records([tmp_path]))
    assert (record.task, record.status) == (TRIED, "finished") and "val/near" in record.metrics["final"]
    for name in [name for name in sys.modules if name.startswith(f"dk_bench.{TRIED}")]:
        monkeypatch.delitem(sys.modules, name)
