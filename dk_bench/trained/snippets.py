"""Code for model cards: how each format of an export is loaded."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from dk_bench.models import MODELS
from dk_bench.models.deform import GENERIC

OPENED = {"timm", "mmdet"}  # formats that `dk_bench.load` opens


def snippets(
    model: nn.Module, written: Mapping[str, Sequence[str]], folder: str, repository: str | None
) -> Iterator[str]:
    """Yields Markdown: where the files are had, then code by dk_bench and by what each format is for. ``written`` are
    the names of its files, in ``folder``; where there is a ``repository`` on the hub, they are fetched from there."""
    if repository:
        yield "From the hub:"
        yield _code(
            "from huggingface_hub import snapshot_download\n\n"
            f'snapshot_download("{repository}", local_dir="{folder}")  # timm needs no such copy'
        )
    if OPENED & set(written):
        yield "By dk_bench:"
        yield _code(f'import dk_bench\n\ntrained = dk_bench.load("{folder}")  # .model, .transform, .classes')
    for name, files in written.items():
        source = f"hf-hub:{repository}" if repository else f"local-dir:{folder}"
        yield from (_by_timm(model, source) if name == "timm" else BY_FILES[name](folder, files))


def _by_timm(model: nn.Module, source: str) -> Iterator[str]:
    architecture = model.pretrained_cfg["architecture"]
    ours = architecture == GENERIC or architecture in MODELS
    yield "By timm, also with `num_classes`, `in_chans` or `features_only=True`:"
    yield _code(
        "import timm\n"
        + "import dk_bench  # makes the architecture known to timm\n" * ours
        + f'\nmodel = timm.create_model("{source}", pretrained=True).eval()\n'
        + "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))\n"
        + "probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)  # image: PIL's, RGB"
    )


def _by_mmdet(folder: str, files: Sequence[str]) -> Iterator[str]:
    config, weights = _named(files, ".py"), _named(files, ".pth")
    yield "By mmdet:"
    yield _code(
        "import dk_bench.registry  # makes the backbone known to mmdet\n"
        "from mmdet.apis import inference_detector, init_detector\n\n"
        f'model = init_detector("{folder}/{config}", "{folder}/{weights}", device="cpu")\n'
        'found = inference_detector(model, "image.jpg")'
    )


def _by_onnx(folder: str, files: Sequence[str]) -> Iterator[str]:
    yield "By onnxruntime, for any number of images:"
    yield _code(
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{folder}/{_named(files, ".onnx")}")\n'
        "outputs = session.run(None, {session.get_inputs()[0].name: images})  # float32 (N, 3, height, width)"
    )


def _by_torch(folder: str, files: Sequence[str]) -> Iterator[str]:
    yield "By torch, for any number of images:"
    yield _code(
        "import dk_bench  # whose operators the program calls\nimport torch\n\n"
        f'model = torch.export.load("{folder}/{_named(files, ".pt2")}").module()\noutputs = model(images)'
    )


BY_FILES = {"mmdet": _by_mmdet, "onnx": _by_onnx, "pt2": _by_torch}


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _named(files: Sequence[str], ending: str) -> str:
    return next(name for name in files if name.endswith(ending))
