"""Where each figure in the prose of README.md, of results/ and of some of docs/ comes from.

`SOURCED` has, of every file, the phrases whose figures are results: each is put together from a record, a study's file
or a test, and must stand in the text word for word (line breaks aside). `NO_RESULT` has what else has digits: names,
sizes, settings. What stands between the markers of a part that `make tables` writes is not prose, nor is code. A
figure that neither covers fails test_figures_in_text.py: to add one, add its phrase here, made from its source.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from beyond_in_text import beyond, fused
from operator_cases import FACTOR
from torch import bfloat16, float16, float32

from dk_bench.analysis.dynamics.differences import families
from dk_bench.analysis.dynamics.tables import read_tables
from dk_bench.analysis.erf.summary import SEEDS
from dk_bench.analysis.erf.tables import read_summary
from dk_bench.models import KernelSpec
from dk_bench.nn.scope import grid_offset
from dk_bench.reference import tap_weights
from dk_bench.tables.paper import load_paper
from dk_bench.tables.statistics import summarize

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
GENERATED = re.compile(r"<!-- [^>]*by `make tables` -->.*?<!-- end of [^>]*-->", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)  # and formulas
LINK = re.compile(r"\]\([^)]*\)")

# Digits that are no result wherever they stand: names, kernels' sizes, places in the paper, settings with their unit.
COMMON = [
    re.compile(pattern)
    for pattern in (
        r"\b\d+(?:x| x )\d+(?:(?:x| x )\d+)*\b",
        r"\b(?:figures?|tables?|scopes?|seeds|stride|section|footnote) "
        r"\d+(?:(?:,| and| or| to|, and|, or) \d+)*",
        r"\b[\d,]+ (?:epochs|pixels|images|classes|configs|GB|MB)\b(?!/)",
        r"\b(?:ResNet|MobileNet|ResNet-50|CIFAR|top|AVX)-?[V]?\d+\b",
        r"\bE[1-4]\b",  # experiments
        r"\bphotos(?:10|_layer\d\w*)\b",
        r"\bAVX2\b",
        r"\b(?:bfloat16|float16|float32|float64|TF32|sm_\d+|H200|H100|A100|R2|fp16)\b",
        r"\b95 % interval",
        r"\b(?:Python|GCC|torch|CUDA|mmcv|mmdet|driver|ICLR|COCO|ImageNet) \d[\d.]*\d\b|\bmmdet 3\b|\bGCC \d+\b",
        r"\b(?:torchvision|numpy|timm|onedl-\w+) \d[\d.]*\d\b",
        r"\bcommit [0-9a-f]{7,40}\b",
        r"\b\d+ (?:January|February|March|April|May|June|July|August|September|October|"
        r"November|December) \d{4}\b",
        r"\b(?:below|above|at) 0\.05\b",
    )
]


def prose(path: Path) -> str:
    """A text as one line without what is generated, code and links' targets."""
    text = GENERATED.sub(" ", path.read_text(encoding="utf-8"))
    return " ".join(LINK.sub("]", CODE.sub("`", text)).split())


def unexplained(text: str, sourced: list[str], no_result: list[str]) -> list[str]:
    """The surroundings of every figure that neither a source's phrase nor a name, size or setting covers."""
    for phrase in (*sourced, *no_result):
        text = text.replace(phrase, "¤")
    for pattern in COMMON:
        text = pattern.sub("¤", text)
    return [text[max(0, match.start() - 40) : match.end() + 25] for match in re.finditer(r"\d[\d.,]*", text)]


def field_difference(name: str, model: str, number: str, digits: int) -> str:
    """``+3.13 ± 0.06``, of a study of receptive fields, to its rigid model."""
    lines, *_ = read_summary(RESULTS / "erf" / f"{name}.csv")
    (line,) = [line for line in lines if line.model == f"test_resnetdw_{model} - test_resnetdw"]
    of = line.numbers[number]
    return f"{of.mean:+.{digits}f} ± {of.half_width:.{digits}f}"


def field_counts(name: str) -> tuple[int, int]:
    """How many differences a study of receptive fields has, and how many are told after the correction."""
    lines, *_ = read_summary(RESULTS / "erf" / f"{name}.csv")
    tests = [test for line in lines if line.over == SEEDS for test in line.tests.values()]
    return len(tests), sum(test.p_holm < 0.05 for test in tests)


def erf() -> list[str]:
    (at16, two), (at32, too) = map(field_counts, ("photos_layer3", "photos_layer4"))
    procedural, none = field_counts("procedural")
    assert (two, too, none) == (2, 2, 0)
    both, less = (field_difference("photos_layer3", *of) for of in (("dcn_dk", "sigma", 2), ("dcn", "inside", 3)))
    deep = [field_difference("photos_layer4", model, "sigma", 2) for model in ("dcn_dk", "gdk")]
    means = [field_difference(f"photos_layer{layer}", "dcn", "sigma", 2) for layer in (3, 4)]
    return [
        f"Of {at16} differences at stride 16, two: the field of DCN with local DK is wider than the rigid model's "
        f"(sigma {both} pixels), and DCN has a little less of its energy on the object (inside {less})",
        f"Of {at32} at stride 32, two: DCN with local DK ({deep[0]}) and global DK ({deep[1]})",
        f"({means[0]} and {means[1]}), and is not told",
        f"None of {procedural} differences",
    ]


def probe_score(model: str, features: str, target: str = "class") -> str:
    """``76.6 ± 2.9``, over the seeds of a committed model."""
    scores = read_tables(RESULTS / "dynamics" / "probe.csv").scores
    found = summarize(
        [
            line.value
            for line in scores
            if (line.model, line.kind, line.layer, line.features, line.target)
            == (f"test_resnetdw_{model}", "kernel offsets", "all", features, target)
        ]
    )
    return f"{found.mean:.1f} ± {found.half_width:.1f}"


def dynamics() -> list[str]:
    results = read_tables(RESULTS / "dynamics" / "probe.csv")
    counts = []
    for members in families(results.scores).values():
        found = [each.difference for each in members]
        assert not any(each.p_holm < 0.05 for each in found)
        counts.append((len(found), sum(each.p < 0.05 for each in found)))
    (offsets, told), (random, told_too) = counts
    learned, shuffled, unlearned = (
        probe_score("dk", features) for features in ("learned", "shuffled targets", "random generator")
    )
    return [
        f"Of {offsets} differences between offsets and CondConv's scores {told} are below 0.05 and none after",
        f"of {random} between learned generators and random ones {told_too} and none",
        f"tell the class of {learned} % of the objects, where chance is {results.chance:.1f} % and shuffled targets "
        f"stay at {shuffled} %",
        f"tells {unlearned} %, so most",
        *without_record(),
    ]


def without_record() -> list[str]:
    """The configurations of the study of probes whose runs have no record in results/, by name."""
    known = {json.loads(path.read_text(encoding="utf-8"))["run_id"] for path in RESULTS.rglob("record.json")}
    origins = read_tables(RESULTS / "dynamics" / "probe.csv").origins
    missing = [origin for origin in origins if origin.run not in known]
    assert len(origins) == 18 and len(missing) == 6 and {origin.seed for origin in missing} == {0, 1, 2}
    one, other = dict.fromkeys(origin.configuration for origin in missing)
    return [f"the six with CondConv (configurations {one} and {other}, seeds 0 to 2) have no record"]


def gpu_speeds() -> list[str]:
    """The lines that the log of the bench on a GPU ends its parts with."""
    log = (RESULTS / "gpu" / "bench.log").read_text(encoding="utf-8")
    operators = re.findall(r"^bfloat16 channels_last: .*\dx depthwise convolution.*$", log, re.MULTILINE)
    return operators + re.findall(r"'(\w+ at 224: [^']+)'", log)


def gpu() -> list[str]:
    parts = json.loads((RESULTS / "gpu" / "summary.json").read_text(encoding="utf-8"))
    dots = re.search(r"== tests-other: [^\n]*\n(\.+)", (RESULTS / "gpu" / "tests.log").read_text(encoding="utf-8"))
    driver = parts["gpu"].split(", ")[1]
    return [
        *gpu_speeds(),
        f"(driver {driver}, ",
        f"ended in a crash ({parts['tests-other']['status']})",
        f"and {len(dots[1])} of the other tests",
    ]


def earlier() -> list[str]:
    """What results/README.md says in words of the signs of the earlier runs' differences."""
    with open(RESULTS / "demo.csv", encoding="utf-8") as demo, open(RESULTS / "detection.csv", encoding="utf-8") as det:
        rows = [row for row in csv.DictReader(demo) if row["table"].startswith("photos10")]
        detectors = [
            float(row["Δ rigid"])
            for row in csv.DictReader(det)
            if row["Δ rigid"] and row["table"].startswith("photos_det")
        ]
    gains = {row["model"].removeprefix("test_resnetdw_"): float(row["Δ rigid"]) for row in rows if row["Δ rigid"]}
    assert len(gains) == 8 and min(gains.values()) > 0 and max(detectors) < 0
    assert min(gains[name] for name in ("dcn", "scc", "dk_s3", "dk_s5")) > gains["dk"]
    over_rivals = {row["model"]: float(row["Δ DK"]) for row in rows if row["Δ DK"]}
    assert len(over_rivals) == 2 and max(over_rivals.values()) < 0
    return [
        "one base's low mean as much as eight gains",
        "deformable convolution and CondConv gain more than local DK at scope 4 (centred), which is below scopes 3 and "
        "5",
        "is below the rival alone",
        "The detector's sign is the other way",
    ]


def finetuned() -> list[str]:
    """What results/README.md says of the model that began with ImageNet's weights."""
    top1: dict[tuple[str, float], dict[int, float]] = {}  # of test images by seed, of each arm and rate of its offsets
    for path in (RESULTS / "pretrained").glob("*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        words = KernelSpec.from_dict(record["config"]["model"]["spec"] or {}).words
        arm = words.combined or words.conv3x3, record["config"]["optim"]["offset_lr_multiplier"]
        top1.setdefault(arm, {})[record["seed"]] = record["metrics"]["final"]["test/top1"]
    assert len(top1) == 5 and all(seeds.keys() == {0, 1, 2} for seeds in top1.values())
    rigid, mean = top1["rigid", 0.1], {arm: summarize(list(of.values())).mean for arm, of in top1.items()}
    local, dcn = (f"{mean[arm, 0.1]:.1f} %" for arm in ("local 4x4", "DCN"))
    off = {arm: summarize([of[seed] - rigid[seed] for seed in rigid]) for arm, of in top1.items()}
    slow = [
        f"{mean[arm, 0.001]:.1f} % ({off[arm, 0.001].mean:+.1f} ± {off[arm, 0.001].half_width:.1f} points)"
        for arm in ("local 4x4", "DCN")
    ]
    untrained = json.loads((RESULTS / "pretrained" / "imagenet.json").read_text(encoding="utf-8"))["top1"]
    share = mean["rigid", 0.1] / 100
    with open(RESULTS / "finetuned.csv", encoding="utf-8") as file:
        rows = {(row["with"] or row["3x3"][:9], row["setting"][-3:]): row for row in csv.DictReader(file)}
    verdicts = {arm: row["Δ rigid, verdict"] for arm, row in rows.items()}
    assert verdicts["local 4x4", "0.1"] == verdicts["DCN", "0.1"] == "contradicted"
    assert verdicts["local 4x4", "001"].startswith("undecided")
    seeds = re.search(r"\((\d+) seeds\)", verdicts["DCN", "001"])[1]
    return [
        f"top-1 is {100 * share:.1f} % rigid, {local} with local DK and {dcn} with DCN",
        f"local DK is at {slow[0]} and DCN at {slow[1]}",
        f"at the thousandth (corrected p {float(rows['local 4x4', '001']['Δ rigid, p (Holm)']):.3f})",
        f"it would take {seeds} seeds to find it within half a point",
        f"a standard error of {100 * (share * (1 - share) / 1000) ** 0.5:.1f} points",
        f"enlarged ({untrained['efficientnet_lite0']['of_own']:.1f} %)",
    ]


def pilot() -> list[str]:
    """The rows of the runs that recipes were chosen by, in order of their files' names."""
    rows = []
    for path in sorted((RESULTS / "pilot").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["status"] == "finished" and KernelSpec.from_dict(record["model"]["spec"] or {}).is_rigid
        rows.append(pilot_detector(record) if record["task"] == "detection" else pilot_classifier(record))
    return rows


def pilot_classifier(record: dict) -> str:
    data, optim = record["config"]["data"], record["config"]["optim"]
    share = data["augment"]["scale"]
    (low, high), clutter = data["procedural"]["scale"], data["procedural"]["clutter"]
    seen = f"crops of {share[0]:g} to {share[1]:g}" if share else f"scale {low:g} to {high:g}, clutter {clutter}"
    settings = f"{optim['lr']:g} | {optim['weight_decay']:g} | {seen} | {data['batch_size']} | {optim['epochs']}"
    where, top1 = record["device"]["name"], record["metrics"]["final"]["val/top1"]
    layers = record["config"]["model"]["kwargs"].get("layers")
    name = record["model"]["name"] + (f", layers {layers}" if layers else "")
    return f"| {data['name']} | {name} | {settings} | {where} | {top1:.1f} |"


def pilot_detector(record: dict) -> str:
    config, final = record["config"], record["metrics"]["final"]
    strides = config["model"]["rpn_head"]["anchor_generator"]["strides"]
    settings = f"{config['train_dataloader']['batch_size']} | {config['optim_wrapper']['optimizer']['lr']:g}"
    epochs, images = config["train_cfg"]["max_epochs"], record["data"]["val_images"]
    return (
        f"| {record['data']['name']} | {strides[0]} to {strides[-1]} | {settings} | {epochs} | {images:,} | "
        f"{final['val/mAP']:.1f} | {final['val/mAP_50']:.1f} |"
    )


def readme() -> list[str]:
    return [gpu_summary()]


def gpu_summary() -> str:
    """What a GPU's bench found, in a sentence."""
    ratio = {
        line.partition(": ")[2].partition(":")[0]: re.search(r"([\d.]+)x depthwise", line)[1]
        for line in gpu_speeds()
        if "depthwise convolution" in line
    }
    speed = {line.split()[0]: re.search(r"(\d+) images/s", line)[1] for line in gpu_speeds() if "images/s" in line}
    return (
        f"local DK takes {ratio['local DK forward']} times PyTorch's depthwise convolution forward and "
        f"{ratio['local DK forward+backward']} with backward, depthwise DCN {ratio['depthwise DCN forward']} and "
        f"{ratio['depthwise DCN forward+backward']}; ResNet-50-DW trains at {speed['resnet50dw']} images/s, with local "
        f"DK at {speed['resnet50dw_dk']}"
    )


def models() -> list[str]:
    """The paper's parameters and multiply-adds beside ours."""
    paper = {
        row["conv3x3"]: row
        for row in load_paper()["table1"]
        if row["backbone"] == "ResNet-50-DW" and row["pw"] == "rigid"
    }
    costs = json.loads((ROOT / "dk_bench" / "tables" / "costs.json").read_text(encoding="utf-8"))
    return [
        f"(9x9: {costs['resnet50dw_dk_s9']['params'] / 1e6:.2f} M where it prints {paper['local 9x9']['params']})",
        f"ResNet-50-DW counts {costs['resnet50dw']['macs'] / 1e9:.2f} G (stride on the 3x3) where the paper prints "
        f"{paper['rigid']['flops']}",
    ]


def untrained() -> list[str]:
    """What ImageNet's weights tell of photographs before any fine-tuning, by either padding."""
    found = json.loads((RESULTS / "pretrained" / "imagenet.json").read_text(encoding="utf-8"))
    tf, alike = (found["top1"][name] for name in ("tf_efficientnet_lite0", "efficientnet_lite0"))
    assert len(found["classes"]) == 10 and alike["of_1000"] > tf["of_1000"] and found["git"]["dirty"] is False
    among = "among ImageNet's 1000 classes"
    return [
        f"enlarged to {found['input']['size']}) ` tells {tf['of_1000']:.1f} % {among} and {tf['of_own']:.1f} % among "
        f"the ten that are there, ` {alike['of_1000']:.1f} % and {alike['of_own']:.1f} %",
        f"that {found['data']['images']:,} images show",
    ]


def mathematics() -> list[str]:
    """How fast kernels learn from where taps start."""
    slow, mean, fast = learning_rates("centred")
    least, _, most = learning_rates("spread")
    return [
        f"{slow:.2f} to {fast:.2f} times, {mean:.2f} in the mean, so that some of the kernel learns "
        f"{1 / slow:.0f} times slower",
        f"spread, {least:.2f} to {most:.0f} times",
    ]


def learning_rates(grid: str) -> list[float]:
    """Returns how fast the kernel that 3x3 taps read from scope 4 learns beside a rigid one: least, mean, most."""
    start = grid_offset((3, 3), (4, 4), grid)[None]
    sampling = tap_weights(start, (3, 3), (4, 4), clip=True)[0]
    rates = torch.linalg.eigvalsh(sampling @ sampling.T)
    return [rates.min().item(), rates.mean().item(), rates.max().item()]


def checked() -> list[str]:
    assert FACTOR[float16] == FACTOR[bfloat16]
    paper = load_paper()
    return [
        f"all {len(paper['table3'] + paper['table4'])} models of tables 3 and 4",
        f"no more than {FACTOR[float16]} times PyTorch's depthwise convolution's in float16 and bfloat16, "
        f"{FACTOR[float32]:g} times in float32",
        gpu_summary(),
    ]


SOURCED: dict[str, Callable[[], list[str]]] = {
    "README.md": readme,
    "docs/checked.md": checked,
    "docs/deform.md": untrained,
    "docs/mathematics.md": mathematics,
    "docs/models.md": models,
    "results/erf/README.md": erf,
    "results/dynamics/README.md": dynamics,
    "results/README.md": lambda: earlier() + finetuned() + beyond(),
    "results/gpu/README.md": lambda: gpu() + fused(),
    "results/pilot/README.md": pilot,
}
NO_RESULT: dict[str, list[str]] = {
    "README.md": ["Python 3.11, GCC 12 or clang, torch 2.11, or later ones"],
    "docs/checked.md": ["the same losses for 20 steps", "weights to 1e-7 when read back"],
    "docs/deform.md": [
        "EfficientNet-Lite0 with ImageNet's weights",
        "(96 pixels, ",
        "19 MB, Apache 2.0",
        "to a relative 1e-4",
        "Mean and deviation are 0.5",
    ],
    "docs/mathematics.md": ["start in scopes of 3, 4, 5 and 9", "At scopes 5 and 9 a tap"],
    "docs/models.md": [
        "scope 4, 3, 5, 9",
        "where the output stride is 8 or more (small models: 2)",
        "for images of 32 to 64 pixels",
    ],
    "results/gpu/README.md": [
        "exit status and seconds of each part; 0 is passed",
        "at 224 pixels, batch 128",
        "backward for 16-bit values",
        "hit its limit of 70 seconds",
    ],
    "results/README.md": [
        "(394 of 256 pixels",
        "(5,000 of 96 pixels",
        "Rows of cifar10,",
        "photos10_dev",
        "EfficientNet-Lite0 began",
        "250 steps on 4,000 photographs",
        "of 1,000 test images",
        "250 steps at 96 pixels",
    ],
    "results/erf/README.md": ["units of stride 16 and 32"],
    "results/pilot/README.md": [
        "which passes the 80 % that were asked for",
        "a little above the 75 to 92 % that were meant",
        "| mAP | AP50 |",
    ],
}
