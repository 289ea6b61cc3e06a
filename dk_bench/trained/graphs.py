"""Graphs that run without this package's Python: ONNX, ``model.onnx``, and torch.export's, ``model.pt2``.

Both take any number of images, in float32, and are compared with the model before they are kept.
"""

import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import dk_bench
from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.files import open_atomically
from dk_bench.reference.checks import NotFinite
from dk_bench.trained.load import Trained
from dk_bench.training.graph import Graph

ONNX, PT2, ABOUT = "model.onnx", "model.pt2", "dk_bench.json"  # the last is an extra file inside the second
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")  # pyproject.toml's extra "onnx" says the same; a test compares them
ONNX_BYTES = 2**31 - 2**24  # of weights: a file of protobuf holds 2 GiB
IMAGES = "images"  # the name of a graph's input
EXAMPLE, OTHERS = 2, (1, 3)  # numbers of images: that a graph is made with, those that it is compared at
TOLERANCE = 1e-4  # of the largest output, or of 1 where that is less
STACK = "stack_trace"  # of a graph's nodes: paths of this machine

Run = Callable[[Tensor], Sequence[Tensor]]


def write_onnx(trained: Trained, folder: Path, *, free: bool | None = None) -> list[str]:
    """Writes ``model.onnx``, of standard operators alone, and returns its name.

    Its input is ``images`` (N, 3, H, W). What whoever runs it has to know stands in the file's metadata, each value in
    JSON: ``task``, ``classes``, ``input_size``, ``mean``, ``std`` and more. Height and width are those of the run's
    evaluation or, with ``free``, any; with None they are free for a detector alone, whose images have many sizes.

    Raises UserError where a package is missing, ONNX cannot say the model, or onnxruntime computes something else, and
    OSError where the folder cannot be written.
    """
    option = "--format onnx"
    if missing := [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"{option}: needs {', '.join(missing)}; `pip install 'dk_bench[onnx]'` installs what it needs")
    graph, free = _graph_of(trained, free)
    held = sum(value.nbytes for value in graph.module.state_dict().values())
    if held > ONNX_BYTES:
        raise UserError(f"{option}: a file holds 2 GiB, the weights are {held / 2**30:.1f}; expected --format pt2")
    with _one_sentence(option, trained):
        content = _onnx_of(graph, free, _about(trained, graph, free))
    _compare(graph, _by_onnxruntime(content, graph.outputs), free, option)
    return _keep(folder / ONNX, content, graph)


def write_pt2(trained: Trained, folder: Path, *, free: bool | None = None) -> list[str]:
    """Writes ``model.pt2`` and returns its name: ``torch.export.load`` reads it after ``import dk_bench``.

    Input and sizes are as those of `write_onnx`; what stands in ONNX's metadata is the extra file ``dk_bench.json``.

    Raises UserError where torch cannot export the model or the graph computes something else, and OSError where the
    folder cannot be written.
    """
    option = "--format pt2"
    graph, free = _graph_of(trained, free)
    about = json.dumps(_about(trained, graph, free), indent=1, ensure_ascii=False)
    with _one_sentence(option, trained):
        stream = io.BytesIO()
        torch.export.save(_program_of(graph, free), stream, extra_files={ABOUT: about})
        stream.seek(0)
        module = torch.export.load(stream).module()
    _compare(graph, lambda images: _tensors(module(images)), free, option)
    return _keep(folder / PT2, stream.getvalue(), graph)


def _graph_of(trained: Trained, free: bool | None) -> tuple[Graph, bool]:
    graph = tasks.KINDS[trained.task].task.graph(trained.model, trained.checkpoint)
    return graph, graph.free if free is None else free


def _about(trained: Trained, graph: Graph, free: bool) -> dict[str, Any]:
    """Tells what a graph alone does not: ``multiple_of`` is that of height and width, None where they are fixed."""
    sizes = {"outputs": graph.outputs, "multiple_of": graph.multiple if free else None}
    about = {"task": trained.task, "classes": trained.classes, **graph.about, **sizes, "note": graph.left_out}
    return {"dk_bench": dk_bench.__version__, **{name: value for name, value in about.items() if value != ""}}


@torch.no_grad()
def _onnx_of(graph: Graph, free: bool, about: dict[str, Any]) -> bytes:
    """Returns a file's content. Nothing checks sizes in ONNX, so that height and width are plain names there."""
    sizes = {0: Dim("batch")}
    if free:
        sizes |= {axis: Dim(name, min=graph.multiple) for axis, name in ((2, "height"), (3, "width"))}
    options = {"input_names": [IMAGES], "output_names": list(graph.outputs)}
    made = torch.onnx.export(
        graph.module, (_images(graph, EXAMPLE),), dynamo=True, verbose=False, dynamic_shapes=(sizes,), **options
    )
    for node in made.model.graph.all_nodes():
        node.metadata_props.pop(f"pkg.torch.onnx.{STACK}", None)
    made.model.metadata_props.update({name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
    return made.model_proto.SerializeToString()


@torch.no_grad()
def _program_of(graph: Graph, free: bool) -> ExportedProgram:
    """Returns torch's program of the model. It checks sizes, which have to be multiples where maps of several strides
    are added."""
    sizes = {0: Dim("batch")}
    if free:
        sizes |= {axis: graph.multiple * Dim(name) for axis, name in ((2, "rows"), (3, "columns"))}
    program = torch.export.export(graph.module, (_images(graph, EXAMPLE),), dynamic_shapes=(sizes,))
    for part in program.graph_module.modules():  # graphs inside the graph too
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop(STACK, None)
    return program


def _by_onnxruntime(content: bytes, outputs: Sequence[str]) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(out) for out in session.run(list(outputs), {IMAGES: images.numpy()})]


@torch.no_grad()
def _compare(graph: Graph, run: Run, free: bool, option: str) -> None:
    """Raises UserError unless a graph computes what the model does, for other numbers and, where free, sizes of images
    than it was made with."""
    for step, number in enumerate(OTHERS):
        images = _images(graph, number, further=step * graph.multiple if free else 0)
        computed = _finite(graph, images, option)
        try:
            outputs = run(images)
        except Exception as error:  # onnxruntime's, or a guard of torch's on sizes
            reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise UserError(f"{option}: the graph does not take images {tuple(images.shape)}: {reason}") from error
        for name, found, expected in zip(graph.outputs, outputs, computed, strict=True):
            off = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
            if not off <= TOLERANCE * max(1.0, expected.abs().max().item()):  # nor if it is NaN
                least = f"expected {TOLERANCE} of the largest output at most"
                raise UserError(f"{option}: the graph computes something else: {name} are off by {off:.2g}, {least}")


def _finite(graph: Graph, images: Tensor, option: str) -> Sequence[Tensor]:
    """Returns what the model computes. Raises UserError where that is not finite, with which nothing can be compared;
    our operators themselves refuse such offsets."""
    try:
        computed = _tensors(graph.compute(images))
    except NotFinite:
        computed = ()
    if not computed or not all(torch.isfinite(one).all() for one in computed):
        raise UserError(f"{option}: the model's outputs are not finite, expected a model of a run that did not diverge")
    return computed


def _images(graph: Graph, number: int, further: int = 0) -> Tensor:
    """Draws images (N, 3, H, W), the same ones every time, ``further`` pixels higher and wider than the graph's own."""
    channels, height, width = graph.size
    generator = torch.Generator().manual_seed(number)
    return torch.randn(number, channels, height + further, width + further, generator=generator)


def _tensors(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _keep(path: Path, content: bytes, graph: Graph) -> list[str]:
    with open_atomically(path) as stream:
        stream.write(content)
    if graph.left_out:
        print(f"{path.name}: {graph.left_out}", file=sys.stderr)
    return [path.name]


@contextmanager
def _one_sentence(option: str, trained: Trained) -> Iterator[None]:
    """Makes a UserError of whatever torch raises of a model that it cannot export, and silences what it logs and
    prints besides: the whole graph."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # of a dozen types, and each may come from anywhere in a model
        cause: BaseException = error
        while following := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
            cause = following
        reason = (" ".join(str(cause).split()) or type(cause).__name__)[:300]
        raise UserError(f"{option}: torch cannot export a {type(trained.model).__name__}: {reason}") from error
    finally:
        logging.disable(before)
