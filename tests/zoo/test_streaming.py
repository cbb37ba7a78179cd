"""Images that stay on disk give what images in memory give; which of the two it is follows from their size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccf_plugin.errors import InputError
from ccf_plugin.zoo import streaming
from ccf_plugin.zoo.datasets import ImageData, load_data
from ccf_plugin.zoo.streaming import StreamedImages, on_device, read_ahead

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of seven and four images, 9×7, one of them grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, 7, 9, 3), dtype=np.uint8)
    images = iter(pixels)
    for split, count in (("train", 7), ("test", 4)):
        for label in "abc":
            place = tmp_path / split / label
            place.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(next(images))
                (image.convert("L") if (split, label, number) == ("train", "b", 2) else image).save(
                    place / f"{number}.png"
                )
    return tmp_path


def _load(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: float) -> ImageData:
    monkeypatch.setattr(streaming, "host_bytes", lambda: memory)
    return load_data(f"folder:{folder}", train_per_class=6)


def test_half_of_the_memory_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = (18 + 12) * 3 * 7 * 9
    for memory, expected in ((2 * needed, torch.Tensor), (2 * needed - 1, StreamedImages)):
        data = _load(folder, monkeypatch, memory)
        assert data.train is not None
        assert isinstance(data.train.images, expected)
        assert data.train.images.shape == (18, 3, 7, 9)


def test_a_streamed_split_gives_the_batches_of_one_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, streamed = (_load(folder, monkeypatch, size) for size in (1e9, 1))
    assert memory.classes == streamed.classes
    for one, other in ((memory.train, streamed.train), (memory.test, streamed.test)):
        assert one is not None
        assert other is not None
        for batch, same in zip(one.batches(5, CPU), other.batches(5, CPU), strict=True):
            torch.testing.assert_close(batch, same, rtol=0, atol=0)
        rows = torch.tensor([11, 2, 7])
        torch.testing.assert_close(one.subset(rows).images, other.subset(rows).images[torch.arange(3)], rtol=0, atol=0)


def test_what_differs_from_the_first_image_is_refused(tmp_path: Path) -> None:
    for name, image in (("0", Image.new("L", (4, 4))), ("1", Image.new("RGB", (4, 4))), ("2", Image.new("L", (4, 5)))):
        image.save(tmp_path / f"{name}.png")
    images = StreamedImages.of(sorted(tmp_path.iterdir()), None)
    assert images[torch.tensor([0])].shape == (1, 1, 4, 4)
    for row in (1, 2):
        with pytest.raises(InputError, match=rf"expected images of 1×4×4 as .*0.png is, found .* among .*{row}.png"):
            images[torch.tensor([row])]


def test_images_too_large_for_the_gpu_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * images.numel() - 1, 10**9))
    assert on_device(images, torch.device("cuda")) is images
    assert on_device(images, CPU) is images


def test_reading_ahead_is_one_item_ahead_in_order_and_tells_faults() -> None:
    read: list[int] = []
    second = threading.Event()

    def slow(item: int) -> int:
        read.append(item)
        if item == 1:
            second.set()
        if item == 3:
            raise ValueError("three")
        return item * 10

    results: Iterator[int] = read_ahead(slow, range(5))
    assert next(results) == 0
    assert second.wait(5)  # while the first is in use
    assert read == [0, 1]
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(read_ahead(slow, [])) == []
