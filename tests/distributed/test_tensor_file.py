"""Files written block by block are those of the library, and a full disk lets no rank wait."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptmrec_dist.distributed.tensor_file import Piece, save_tensors, write_pieces

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.arange(7),
    "half": torch.randn(5).bfloat16(),
    "scalar": torch.tensor(4.0),
    "turned": torch.randn(4, 3).T,
    "none": torch.empty(0, 8),
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(3, dtype=torch.uint8),
}


def _pieces(tensors: dict[str, Tensor], seen: list[str] | None = None) -> list[Piece]:
    """Tensors that come two rows at a time."""

    def blocks(name: str) -> Iterator[Tensor]:
        if seen is not None:
            seen.append(name)
        yield from tensors[name].split(2) if tensors[name].dim() else (tensors[name],)

    return [Piece(name, tuple(tensor.shape), tensor.dtype, partial(blocks, name)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("tensors", [TENSORS, {}], ids=["many", "none"])
def test_the_library_reads_what_it_would_have_written(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_pieces(tmp_path / "ours", _pieces(tensors))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    found, expected = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert found.keys() == expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {"method": "lora", "settings": '{"rank": 8}', "objectives": "itc"}
    written = set()
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        save_tensors(tmp_path / "file", TENSORS, {name: metadata[name] for name in order(metadata)})
        written.add((tmp_path / "file").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in TENSORS.items())


def test_a_rank_that_cannot_write_or_only_helps_puts_every_tensor_together(tmp_path: Path) -> None:
    helped: list[str] = []
    write_pieces(None, _pieces(TENSORS, helped))
    tried: list[str] = []
    with pytest.raises(OSError, match="No such file"):
        write_pieces(tmp_path / "absent" / "file", _pieces(TENSORS, tried))
    assert tried == helped
    assert sorted(helped) == sorted(TENSORS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_after_the_last_tensor() -> None:
    tried: list[str] = []
    large = {str(number): torch.zeros(10_000) for number in range(3)}
    with pytest.raises(OSError, match="No space left"):
        write_pieces(Path("/dev/full"), _pieces(large, tried))
    assert tried == ["0", "1", "2"]
