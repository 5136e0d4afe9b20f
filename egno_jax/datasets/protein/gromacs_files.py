"""Checks of GROMACS' trajectories, XTC and TRR, whose readers trust every number in them.

The decoder of XTC even trusts the packed coordinates: bits that say more atoms than there are, or a
size that its table does not have, make it write outside its memory. So the packing is followed
here before it sees a file.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

BROKEN = "the file is damaged or cut short"
# The sizes in bits that a small displacement can have: the indices of the decoder's table.
_SMALLEST, _LARGEST = 9, 72


class _Packing(NamedTuple):
    """How the coordinates of a frame are packed.

    Attributes:
      full: bits of a coordinate.
      small: bits of a displacement at first.
      length: bytes of all.
    """

    full: int
    small: int
    length: int


class _Frame(NamedTuple):
    """What a frame's header says.

    Attributes:
      num_atoms: N.
      length: the bytes from the end of the header to the next frame.
      packing: how the coordinates are packed; None: they are not.
    """

    num_atoms: int
    length: int
    packing: _Packing | None = None


def check_xtc(path: pathlib.Path) -> None:
    """Checks that the frames of an XTC file are whole, and can be unpacked.

    Takes a few times as long as unpacking them.

    Raises:
      ValueError: they are not; names the file and the place.
    """
    for number, frame, file in _frames(path, _xtc_frame):
        packing = frame.packing
        if packing and not _is_packed(frame.num_atoms, packing, file.read(frame.length)):
            raise ValueError(
                f"{path}: frame {number} cannot be unpacked, expected packed coordinates of "
                f"{frame.num_atoms} atoms; {BROKEN}"
            )


def check_trr(path: pathlib.Path) -> None:
    """Checks that the frames of a TRR file are whole.

    Raises:
      ValueError: they are not; names the file and the place.
    """
    for _ in _frames(path, _trr_frame):
        pass


def _frames(
    path: pathlib.Path, read: Callable[[BinaryIO], _Frame]
) -> Iterator[tuple[int, _Frame, BinaryIO]]:
    """Yields the number of each frame, its header, which `read` reads, and the file after it."""
    size, first = path.stat().st_size, None
    with path.open("rb") as file:
        for number in itertools.count():
            if (place := file.tell()) == size:
                return
            try:
                frame = read(file)
            except (ValueError, struct.error) as error:
                what = f"{path}: got {error} at byte {place}, expected a frame"
                raise ValueError(f"{what}; {BROKEN}, or not a {path.suffix} file") from error
            first = first or frame
            end = file.tell() + frame.length
            if end > size or frame.num_atoms != first.num_atoms:
                raise ValueError(
                    f"{path}: got frame {number} of {frame.num_atoms} atoms that ends at byte "
                    f"{end}, expected {first.num_atoms} atoms in {size} bytes; {BROKEN}"
                )
            yield number, frame, file
            file.seek(end)


def _xtc_frame(file: BinaryIO) -> _Frame:
    magic, num_atoms = _integers(file, 2)
    _expect(magic in (1995, 2023) and num_atoms > 0, f"a header {magic}, {num_atoms}")
    file.seek(44, os.SEEK_CUR)
    (count,) = _integers(file, 1)
    _expect(count == num_atoms, f"coordinates of {count} atoms, expected {num_atoms}")
    if num_atoms <= 9:
        return _Frame(num_atoms, 12 * num_atoms)
    _, *corners, exponent = _integers(file, 8)
    sizes = [high - low + 1 for low, high in zip(corners[:3], corners[3:], strict=True)]
    is_valid = min(sizes) > 0 and max(sizes) < 2**31 and _SMALLEST <= exponent <= _LARGEST + 1
    _expect(is_valid, f"packing from and to {corners}, with {exponent}")
    (length,) = _integers(file, 1) if magic == 1995 else struct.unpack(">q", file.read(8))
    # The decoder's buffer.
    _expect(0 < length <= 4 * (int(3.6 * num_atoms) - 3), f"coordinates of {length} bytes")
    if max(sizes) < 2**24:
        bits = (sizes[0] * sizes[1] * sizes[2]).bit_length()
    else:
        bits = sum(size.bit_length() for size in sizes)
    return _Frame(num_atoms, (length + 3) // 4 * 4, _Packing(bits, exponent, length))


def _is_packed(num_atoms: int, packing: _Packing, data: bytes) -> bool:
    """Returns whether bytes are packed coordinates, which it follows as the decoder does.

    After each coordinate comes a bit. If it is set, five more give a code for this and the next
    coordinates: how many displacements, of an atom each, follow the coordinate, and whether those
    of the next are a bit longer or shorter.
    """
    place = count = run = 0
    small, data = packing.small, data + b"\0\0"
    end = 8 * packing.length
    while count < num_atoms:
        place += packing.full
        if place >= end:
            return False
        first, shift = place >> 3, 10 - (place & 7)
        bits = ((data[first] << 8 | data[first + 1]) >> shift) & 63
        is_new = bits > 31
        if is_new:
            run, change = divmod(bits - 32, 3)
        if run and small > _LARGEST:
            return False
        place += (6 if is_new else 1) + run * small
        count += 1 + run
        if is_new:
            small += change - 1
            if not _SMALLEST <= small <= _LARGEST + 1:
                return False
    return count == num_atoms and place <= end


def _trr_frame(file: BinaryIO) -> _Frame:
    start = file.read(24)
    _expect(start == struct.pack(">iii12s", 1993, 13, 12, b"GMX_trn_file"), f"{start[:24]!r}")
    *sizes, num_atoms, _, _ = _integers(file, 13)
    unused, (box, virial, pressure) = [*sizes[:2], *sizes[5:7]], sizes[2:5]
    vectors = sizes[7:]
    width = (box // 9) or (max(vectors) // (3 * max(num_atoms, 1)))
    is_valid = width in (4, 8) and num_atoms > 0 and not any(unused)
    is_valid &= {box, virial, pressure} <= {0, 9 * width}
    is_valid &= set(vectors) <= {0, 3 * num_atoms * width}
    _expect(is_valid, f"sizes {sizes} for {num_atoms} atoms")
    _expect(len(file.read(2 * width)) == 2 * width, "the end of the file")
    return _Frame(num_atoms, sum(sizes))


def _integers(file: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f">{count}i", file.read(4 * count))


def _expect(is_valid: bool, found: str) -> None:
    if not is_valid:
        raise ValueError(found)
