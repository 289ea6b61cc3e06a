"""Which device's peaks a plan takes for a card: by its product's whole name, and by no other."""

import pytest
import yaml

from dk_bench.cli import main
from dk_bench.plan.devices import CPU, DEVICES, device_called, device_named

#: As torch.cuda.get_device_name gives them.
KNOWN = {
    "NVIDIA B200": "B200",
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "A100-SXM4-40GB": "A100-40GB",  # by an older driver
    "NVIDIA L40S": "L40S",
    "NVIDIA A10": "A10",
    "NVIDIA L4": "L4",
    "NVIDIA GeForce RTX 4090": "RTX-4090",
    "NVIDIA GeForce RTX 3090": "RTX-3090",
    "Tesla V100-SXM2-32GB": "V100",
    "Tesla T4": "T4",
}
UNKNOWN = (
    *("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM-64GB", "NVIDIA A100X"),
    *("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA A10G", "NVIDIA A16", "NVIDIA A2", "NVIDIA A30", "NVIDIA A40"),
    *("NVIDIA L40", "NVIDIA L40G", "NVIDIA L20", "NVIDIA L2"),
    *("NVIDIA H100 NVL", "NVIDIA H100 64GB HBM2", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H800"),
    *("NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb", "NVIDIA H20", "NVIDIA GH200 480GB"),
    *("NVIDIA GB200", "NVIDIA B200 MIG 1g.23gb", "NVIDIA B300 SXM6 AC"),
    *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti"),
    *("NVIDIA RTX A6000", "NVIDIA RTX A4000", "NVIDIA TITAN RTX", "NVIDIA T400", "NVIDIA T4G"),
    *("Tesla V100-PCIE-16GB", "Tesla V100-SXM2-16GB", "Tesla V100-SXM3-32GB", "Tesla V100S-PCIE-32GB"),
    *("Tesla P100-PCIE-16GB", "Voodoo 2", ""),
)


@pytest.mark.parametrize(("product", "name"), KNOWN.items())
def test_devices_are_found_by_their_products_names(product, name):
    assert device_called("cuda", product) is device_named(name)


def test_each_device_has_a_product():
    assert {*KNOWN.values(), CPU} == {*DEVICES} and device_called("cpu", "AMD EPYC") is DEVICES[CPU]


@pytest.mark.parametrize("product", UNKNOWN)
def test_no_device_serves_for_another(product):
    assert device_called("cuda", product) is None


def test_a_card_that_is_here_and_not_known_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA A100-PCIE-40GB")
    command = ["dk-bench", "train", "demo", "${args_no_hyphens}"]
    path = tmp_path / "tried.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": {"seed": {"value": 0}}}))
    assert main(["plan", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no peaks are known of NVIDIA A100-PCIE-40GB: expected --gpu with one of B200, H200" in line
