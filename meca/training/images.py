"""The images of a set: a tensor where they fit, else a file that batches are read from. The pixels are the same, and so are the bits of a training.

Whatever walks over a set takes both: indexing gives a batch, `split` the batches of neighbours, `chosen` some of the images. A streamed set has
nothing else, so that nobody copies it whole by mistake.
"""

import functools
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["AHEAD", "Images", "Streamed", "batches", "chosen", "let_go", "mapped", "mean_image"]

AHEAD = 2  # batches that are read, and sent to a GPU, while one is worked on
HELD = 64 << 20  # bytes that are read from a map, until its pages are let go; they stay in the page cache
SUMMED = 4 << 20  # bytes of pixels that are summed at once: far fewer than would not fit into int32

Fill = Callable[[Tensor, Tensor], None]  # from places int64 [b] to the images there, written into uint8 [b h w c]; both on the CPU


@dataclass(frozen=True)
class Streamed:
    """Images that are read when they are asked for, uint8 [n h w c]; batches come on `device`."""

    fill: Fill
    shape: torch.Size
    device: torch.device

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    @property
    def is_cuda(self) -> bool:
        """Whether batches come on a GPU."""
        return self.device.type == "cuda"

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return some images, uint8 [b h w c], in the order of the rows: a batch."""
        places = self._places(rows)
        return _arrived(*self._read(places, self._room(len(places)), None))

    def chosen(self, rows: Tensor | slice) -> "Streamed":
        """Return some images, still unread."""
        places = self._places(rows)
        return Streamed(lambda at, out: self.fill(places[at], out), torch.Size((len(places), *self.shape[1:])), self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the images in batches of neighbours, as `Tensor.split` gives them: of no images, one batch without any."""
        return self.batches(slice(i, i + size) for i in range(0, max(1, len(self)), size))

    def batches(self, parts: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Yield a batch for each part, in order, and read the next ones meanwhile.

        A batch lasts until the next one is asked for. Its room is used again: what is made anew each time, in turn with the scratch memory of
        whoever uses it, splits the heap, until that is as large as the set.
        """
        parts = list(parts)
        if len(parts) == 1:  # there is nothing to read meanwhile
            yield self[parts[0]]
            return
        reader = ThreadPoolExecutor(1)
        waiting: deque[Future[tuple[Tensor, Any]]] = deque()
        rooms = [self._room(0)] * (AHEAD + 1)
        sent: deque[Any] = deque([None] * len(rooms))  # by room, the next one first
        try:
            for number, part in enumerate(parts):
                places, at = self._places(part), number % len(rooms)
                if len(rooms[at]) < len(places):
                    rooms[at] = self._room(len(places))
                waiting.append(reader.submit(self._read, places, rooms[at][: len(places)], sent.popleft()))
                if len(waiting) == len(rooms):
                    batch, event = waiting.popleft().result()
                    sent.append(event)
                    yield _arrived(batch, event)
            while waiting:
                yield _arrived(*waiting.popleft().result())
        finally:
            reader.shutdown(cancel_futures=True)

    def _places(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return torch.arange(start, max(start, stop), step)
        rows = rows.cpu()
        return torch.nonzero(rows)[:, 0] if rows.dtype is torch.bool else rows

    def _room(self, count: int) -> Tensor:
        """Return room for some images; pinned where a GPU gets them, or sending them would wait for the copy."""
        with torch.inference_mode(False):  # it is filled by another thread, which is in no such mode
            return torch.empty((count, *self.shape[1:]), dtype=torch.uint8, pin_memory=self.is_cuda)

    def _read(self, places: Tensor, room: Tensor, before: Any) -> tuple[Tensor, Any]:
        """Return a batch, and for a GPU the event after which it is there; `before` is that after which the room is free."""
        if before is not None:
            before.synchronize()
        self.fill(places, room)
        if not self.is_cuda:
            return room, None
        with torch.cuda.stream(_beside(self.device)):
            sent, event = room.to(self.device, non_blocking=True), torch.cuda.Event()
            event.record()
        return sent, event


@functools.cache
def _beside(device: torch.device) -> Any:
    """Return the stream that batches are sent on: one, since torch keeps freed memory apart by stream."""
    return torch.cuda.Stream(device)


def _arrived(batch: Tensor, sent: Any) -> Tensor:
    if sent is not None:
        here = torch.cuda.current_stream(batch.device)
        here.wait_event(sent)
        batch.record_stream(here)  # the memory is that of the stream which sent it
    return batch


Images = Tensor | Streamed


def mapped(images: np.ndarray, device: str | torch.device) -> Streamed:
    """Return images that stay in their file.

    Args:
        images: uint8 [n h w c], a map of the file, or part of one.
        device: Where batches go.
    """
    read = 0

    def fill(places: Tensor, out: Tensor) -> None:
        nonlocal read
        where: NDArray[np.int64] = places.numpy()
        if where.size and not 0 <= where.min() <= where.max() < len(images):
            raise IndexError(f"Expected rows in 0..{len(images) - 1}, got {where.min()}..{where.max()}.")
        np.take(images, where, axis=0, out=out.numpy(), mode="clip")  # with mode `raise` numpy would copy the batch once more
        read += out.numel()
        if read > HELD:  # two threads may count less than they read: the pages go a little later
            read = 0
            let_go(images)

    return Streamed(fill, torch.Size(images.shape), torch.device(device))


def let_go(images: np.ndarray) -> None:
    """Take the pages of a read-only map out of this process, as far as the system can; they stay in the page cache."""
    pages: Any = images
    while pages is not None and not isinstance(pages, mmap.mmap):
        pages = getattr(pages, "base", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def chosen(images: Images, rows: Tensor) -> Images:
    """Return some images: those of a streamed set are still unread."""
    return images[rows] if isinstance(images, Tensor) else images.chosen(rows)


def batches(images: Images, parts: Iterable[Tensor | slice]) -> Iterator[Tensor]:
    """Yield a batch, uint8 [b h w c], for each part."""
    return (images[part] for part in parts) if isinstance(images, Tensor) else images.batches(parts)


def mean_image(images: Images, rows: Tensor) -> Tensor:
    """Return the mean of some images, float32 [h w c]: of integers, so that it does not depend on the batches.

    Args:
        images: uint8 [n h w c].
        rows: bool [n], one at least.
    """
    places = torch.nonzero(rows)[:, 0]
    places = places if isinstance(images, Tensor) else places.cpu()  # at once: later each part would wait for the work on the GPU
    total = torch.zeros(images.shape[1:], dtype=torch.int64, device=images.device)
    each = max(1, SUMMED // max(1, total.numel()))
    for batch in batches(images, places.split(each)):
        total += batch.sum(0, dtype=torch.int32)
    return total.float() / len(places)
