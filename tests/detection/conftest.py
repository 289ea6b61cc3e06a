"""What several files of this folder train with."""

import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run from beginning to end, in the folder that its data are in: (configuration, record)."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from detection_cases import tiny_detection

    from dk_bench.training import train

    config = tiny_detection(tmp_path_factory.mktemp("whole"))
    return config, train(config)
