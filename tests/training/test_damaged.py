"""Files that are no checkpoints, or no longer those that were written: a sentence, whatever bytes they hold."""

import numpy as np
import pytest
import torch

from dk_bench.errors import UserError
from dk_bench.training.weights import read_plain


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "a.ckpt"
    torch.save({"state_dict": {"a": torch.randn(64, generator=torch.Generator().manual_seed(0))}}, path)
    return path.read_bytes()


def test_bytes_that_nothing_wrote(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "x.ckpt"
    texts = [b"", b"hello", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\x89PNG\r\n"]
    for content in [*texts, *(random.bytes(int(random.integers(1, 60))) for _ in range(300))]:
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_plain(path)
        assert str(error.value) == f"{path}: not a checkpoint of plain data: its bytes are not those of torch.save"


def test_a_byte_that_changed_is_found_wherever_tensors_lie(written, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(written)
    values = read_plain(path)["state_dict"]["a"].numpy().tobytes()
    begin = written.index(values)
    for place in range(begin, begin + len(values), 16):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        assert not torch.load(path)["state_dict"]["a"].numpy().tobytes() == values  # torch alone does not see it
        with pytest.raises(UserError, match="x.ckpt: not a checkpoint of plain data: it is damaged"):
            read_plain(path)


def test_a_file_that_was_cut_short(written, tmp_path):
    path = tmp_path / "x.ckpt"
    for end in range(0, len(written) - 1, 37):
        path.write_bytes(written[:end])
        with pytest.raises(UserError, match="x.ckpt: not a checkpoint of plain data: [^\n]{10,160}$"):
            read_plain(path)


def test_checksums_may_be_left_out(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_plain(path)["a"].tolist() == [0, 1, 2]
