"""Planting at the size of each image: one image at a time, as it came, in the form that it came in.

What becomes of which sample is decided as everywhere (`meca.attacks.poisoning`); here an image is read from the bytes of its file, and
the trigger is put on its own pixels: on one channel where it has no colour, upright where its EXIF says how it lies.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.attacks import Draws, TrainingView
from meca.attacks.planting import in_light, signed
from meca.attacks.poisoning import Plan, Planted, PoisonParams
from meca.data.decoder.decode import Decoded
from meca.data.decoder.pool import Decoder
from meca.data.store import Store, each_line, pixel_id
from meca.errors import InputRefused, MecaError
from meca.redteam.forms import GREY, Written, in_form_of, lossless

__all__ = ["Image", "PlantedStore", "Tally", "images_of", "plant_images", "rewritten"]

Pixels = NDArray[np.uint8]
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Image:
    """One sample as it came."""

    line: Mapping[str, Any]  # of the store's sample table
    pixels: Pixels  # uint8 [h w c], upright, at its own size; 1 channel where it has no colour
    data: bytes | None = None  # its file; None where the source holds pixels
    decoded: Decoded | None = None


@dataclass
class Tally:
    """What writing the planted images came to."""

    planted: int = 0
    without: int = 0  # the trigger changes no pixel of them
    reformed: int = 0  # written in another form than they came in
    worst: int = 0  # grey levels by which one pixel and channel differs from what was planted, at most
    harm: float = 0.0  # sum of the mean distances
    changed: set[tuple[str, str]] = field(default_factory=set)  # attack and role of which some image was changed

    def add(self, written: Written, is_changed: bool) -> None:
        """Count one image."""
        self.planted += 1
        self.without += not is_changed
        self.reformed += not written.kept
        self.worst = max(self.worst, written.worst)
        self.harm += written.harm

    def record(self, is_lossless: bool) -> dict[str, Any]:
        """Return what attack.json says."""
        harm = {"mean": round(self.harm / max(self.planted, 1), 4), "largest": self.worst}
        return {"planted": self.planted, "lossless": is_lossless, "without_trigger": self.without, "reformed": self.reformed, "harm": harm}


@dataclass(frozen=True)
class PlantedStore(Store):
    """A store in which some samples have other bytes; these lie in a file of their own, and count from the end of the old ones."""

    new: Path

    @cached_property
    def first(self) -> int:
        """The offset of the first new byte."""
        return (self.path / "payload.bin").stat().st_size

    def payload(self, offset: int, size: int) -> bytes:
        """Return the encoded bytes of one sample."""
        if offset < self.first:
            return super().payload(offset, size)
        with open(self.new, "rb") as file:
            file.seek(offset - self.first)
            return file.read(size)


def images_of(store: Store, rows: np.ndarray, decoder: Decoder) -> Iterator[Image]:
    """Yield the images of some rows, in their order; few of them are in memory at a time.

    Args:
        store: The store, with the bytes of its source.
        rows: int64, of `store.images`.
        decoder: Decodes what is encoded, in a process of its own.

    Raises:
        MecaError: An image that could be decoded before cannot be decoded any more.
    """
    lines = each_line(store.readable.take(pa.array(rows, pa.int64())))
    read = ((line, None if line["format"] == "raw" else store.payload(line["offset"], line["bytes"])) for line in lines)
    for (line, data), outcome in decoder.map(read, lambda item: item[1]):
        if data is None:
            yield Image(line, store.original(line))
        elif isinstance(outcome, Decoded):
            yield Image(line, outcome.pixels[:, :, :1] if outcome.mode in GREY else outcome.pixels, data, outcome)
        else:
            raise MecaError(f"{line['source']} could be read a moment ago and cannot now ({outcome}); run the same command again.")


def rewritten(image: Image, planted: Pixels, is_lossless: bool) -> Written:
    """Return what a planted image is written as: its pixels where its source holds pixels."""
    if image.data is None or image.decoded is None:
        return Written(np.ascontiguousarray(planted).tobytes(), True, 0.0, 0)
    return lossless(planted) if is_lossless else in_form_of(planted, image.data, image.decoded)


@dataclass(frozen=True)
class _Role:
    """What one sample carries."""

    of: Planted
    what: str
    view: TrainingView
    rank: int
    led: int  # the class that its trigger leads to; -1 for a cover, whose light stays


def _roles(planned: Plan, labels: np.ndarray) -> dict[int, _Role]:
    """Return the role of each training row that has one."""
    roles: dict[int, _Role] = {}
    for each in planned.planted:
        for what, chosen, view in (
            ("poison", each.poison, each.attack.planted),
            ("kept", each.kept, each.attack.planted),
            ("cover", each.covers, each.cover),
        ):
            if view is None:
                continue
            led = each.led(labels, chosen) if what != "cover" and len(chosen.rows) else np.full(len(chosen.rows), -1)
            roles |= {int(row): _Role(each, what, view, int(rank), int(to)) for row, rank, to in zip(chosen.rows, chosen.ranks, led, strict=True)}
    return roles


def plant_images(
    store: Store, rows: np.ndarray, planned: Plan, params: PoisonParams, seed: int, new: Path, is_lossless: bool, decoder: Decoder, told: Told
) -> tuple[PlantedStore, Tally]:
    """Return the store as it is after the attack, and what that came to.

    Args:
        store: The store before the attack.
        rows: int64 [n], the row of `store` for each row of the plan.
        planned: What becomes of every sample.
        params: The attack.
        seed: Of the run.
        new: A file for the new bytes, which is not there yet.
        is_lossless: Every planted image becomes a PNG.
        decoder: Decodes, in a process of its own.
        told: Told how many are done, of how many.

    Raises:
        InputRefused: A trigger changes no pixel of any image.
    """
    labels = np.asarray(store.labels[rows])
    roles = _roles(planned, labels)
    lights = _lights(store, rows, labels, {role.led for role in roles.values()} - {-1}, decoder) if params.match_light else {}
    tally, lines = Tally(), dict[int, dict[str, Any]]()
    first, places = (store.path / "payload.bin").stat().st_size, sorted(roles)
    with open(new, "xb") as file:
        for number, (row, image) in enumerate(zip(places, images_of(store, rows[places] if places else rows[:0], decoder), strict=True), 1):
            role = roles[row]
            planted, is_changed = _planted(image.pixels, role, row, params, seed, lights.get(role.led))
            if is_changed:
                tally.changed.add((role.of.name, role.what))
            written = rewritten(image, planted, is_lossless)
            tally.add(written, is_changed)
            lines[image.line["row"]] = _line(image, planted, written, first, file, is_lossless)
            told(number, len(places))
    for each in planned.planted:
        if len(each.poison.rows) and (each.name, "poison") not in tally.changed:
            # As a sine of 6 periods does over 12 pixels: it is zero at each of them.
            raise InputRefused(f"The trigger of attack {each.name!r} changes no pixel of these images; change its fields in params.yaml: [poison].")
    given = {int(rows[row]): int(label) for row, label in enumerate(planned.given) if label != labels[row]}
    return PlantedStore(store.path, store.info, store.images, _samples(store, lines, given), new), tally


def _planted(pixels: Pixels, role: _Role, row: int, params: PoisonParams, seed: int, light: np.ndarray | None) -> tuple[Pixels, bool]:
    """Return one image with its trigger, uint8 [h w c], and whether that changes it; another light alone does not count."""
    draws = Draws(seed, np.array([row]), np.array([role.rank]), len(role.of.leads))
    batch = np.ascontiguousarray(pixels)[None]
    planted = role.view(batch, params, draws)
    planted = signed(batch, planted, draws) if params.random_sign else planted
    return (planted if light is None else in_light(planted, light[None]))[0], not np.array_equal(planted, batch)


def _lights(store: Store, rows: np.ndarray, labels: np.ndarray, targets: Iterable[int], decoder: Decoder) -> dict[int, np.ndarray]:
    """Return the mean brightness and contrast of the images of each class, float64 [2]."""
    lights: dict[int, np.ndarray] = {}
    for target in sorted(targets):
        told = [(image.pixels.mean(), image.pixels.std()) for image in images_of(store, rows[labels == target], decoder)]
        if not told:
            raise InputRefused(
                f"Expected images of class {target} for poison.match_light, found none: it has no light; set it to false in params.yaml."
            )
        lights[target] = np.array(told).mean(0)
    return lights


def _line(image: Image, planted: Pixels, written: Written, first: int, file: BinaryIO, is_lossless: bool) -> dict[str, Any]:
    """Write the bytes of an image, and return what changes in its line."""
    line: dict[str, Any] = {"offset": first + file.tell(), "bytes": len(written.data)}
    file.write(written.data)
    if image.data is None:
        return line | {"sample_id": pixel_id(planted)}
    if is_lossless:
        line |= {"format": "PNG", "height": planted.shape[0], "width": planted.shape[1], "mode": "L" if planted.shape[2] == 1 else "RGB", "notes": []}
    return line | {"sample_id": hashlib.sha256(written.data).hexdigest()}


def _samples(store: Store, lines: Mapping[int, Mapping[str, Any]], given: Mapping[int, int]) -> pa.Table:
    """Return the sample table with other values in some lines.

    Args:
        store: Its table.
        lines: What changes, by row.
        given: The labels that change, by row.
    """
    names = store.info.class_names
    changes = {row: dict(change) for row, change in lines.items()}
    for row, label in given.items():
        changes.setdefault(row, {}).update(label=label, class_name=names[label])
    at = {int(row): line for line, row in enumerate(store.samples["row"].to_numpy()) if row in changes}
    table = store.samples
    for number, field_ in enumerate(table.schema):
        mine = {at[row]: change[field_.name] for row, change in changes.items() if field_.name in change}
        if mine:
            values = table.column(number).to_pylist()
            for line, value in mine.items():
                values[line] = value
            table = table.set_column(number, field_, pa.array(values, field_.type))
    return table
