"""What devices can do at most, as their makers say it."""

from dataclasses import dataclass

from dk_bench.errors import UserError

HALF, SINGLE = "half", "float32"  # precision of products and stored activations
#: Lightning's names of precision that plans know.
PRECISIONS = {"32-true": SINGLE, "32": SINGLE} | dict.fromkeys(
    ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "16", "bf16"), HALF
)
TRUE_HALF = ("16-true", "bf16-true")  # of which weights have half precision as well; autocast leaves them
CPU = "CPU"


@dataclass(frozen=True)
class Device:
    """Peaks of one device. ``teraflops`` by precision, of matrix products without sparsity (float32: as cuDNN convolves
    by default, in TF32 where the device has it), ``bandwidth`` of its memory in GB/s, ``memory`` in GB (10^9 bytes);
    ``called``: its product's names in full, as ``torch.cuda.get_device_name`` gives them, by which it is found in
    records."""

    name: str
    teraflops: dict[str, float]
    bandwidth: float
    memory: float
    called: tuple[str, ...]
    source: str


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: float, source: str, *called: str) -> Device:
    return Device(name, {HALF: half, SINGLE: single}, bandwidth, memory, called or (f"NVIDIA {name}",), source)


#: By the names that ``--gpu`` takes. Where NVIDIA tells figures with sparsity, these are half of them.
DEVICES = {
    device.name: device
    for device in (
        _gpu("B200", 2250, 1100, 8000, 180, "NVIDIA DGX B200 datasheet, an eighth of it"),
        _gpu("H200", 989.5, 494.5, 4800, 141, "NVIDIA H200 datasheet, SXM"),
        _gpu("H100", 989.5, 494.5, 3350, 80, "NVIDIA H100 datasheet, SXM", "NVIDIA H100 80GB HBM3"),
        _gpu("H100-PCIe", 756, 378, 2000, 80, "NVIDIA H100 PCIe product brief", "NVIDIA H100 PCIe"),
        _gpu("A100-80GB", 312, 156, 2039, 80, "NVIDIA A100 datasheet, SXM", "NVIDIA A100-SXM4-80GB"),
        _gpu("A100-40GB", 312, 156, 1555, 40, "NVIDIA A100 datasheet, SXM", "NVIDIA A100-SXM4-40GB"),
        _gpu("L40S", 362, 183, 864, 48, "NVIDIA L40S datasheet"),
        _gpu("A10", 125, 62.5, 600, 24, "NVIDIA A10 datasheet"),
        _gpu("L4", 121, 60, 300, 24, "NVIDIA L4 datasheet"),
        _gpu("RTX-4090", 165.2, 82.6, 1008, 24, "NVIDIA Ada whitepaper", "NVIDIA GeForce RTX 4090"),
        _gpu("RTX-3090", 71, 35.6, 936, 24, "NVIDIA GA102 whitepaper", "NVIDIA GeForce RTX 3090"),
        _gpu("V100", 125, 15.7, 900, 32, "NVIDIA V100 datasheet, SXM2", "Tesla V100-SXM2-32GB"),
        _gpu("T4", 65, 8.1, 320, 16, "NVIDIA T4 datasheet", "Tesla T4", "NVIDIA T4"),
        # One core with two AVX-512 units at 3.5 GHz; efficiency is fitted to records on one.
        Device(CPU, {SINGLE: 0.224, HALF: 0.224}, 20, float("inf"), (), "one core, as an assumption"),
    )
}
WITHOUT_BFLOAT16 = ("V100", "T4")


def device_named(name: str) -> Device:
    """Returns a device by its name, in capitals or not. Raises UserError for one that is not in the table."""
    by_name = {key.lower(): device for key, device in DEVICES.items()}
    if (device := by_name.get(name.lower())) is None:
        raise UserError(f"--gpu {name}: expected one of {', '.join(DEVICES)}")
    return device


def device_called(kind: str, product: str) -> Device | None:
    """Returns the device of a record, by its type in torch and its product's name; None for one that is not known, as
    a card by PCIe, NVL, a laptop's or a part of one, which are slower than those whose names theirs begin with."""
    if kind == "cpu":
        return DEVICES[CPU]
    names = {_bare(called): device for device in DEVICES.values() for called in device.called}
    return names.get(_bare(product))


def _bare(product: str) -> str:
    """Returns a product's name as older drivers give it."""
    return product.strip().removeprefix("NVIDIA ")


def precision_of(name: str, device: Device) -> str:
    """Returns the kind of a precision by Lightning's name. Raises UserError for one that plans do not know, or that the
    device does not have."""
    if name not in PRECISIONS:
        raise UserError(f"no plan for it; expected one of {', '.join(PRECISIONS)}", key="trainer.precision", value=name)
    if name.startswith("bf16") and device.name in WITHOUT_BFLOAT16:
        raise UserError(f"{device.name} has no bfloat16; expected 16-mixed", key="trainer.precision", value=name)
    return PRECISIONS[name]
