"""Acclaim files: a strict reader of skeletons (ASF) and of motions (AMC).

Every error is a `ValueError` that names the file, the line, what came and what was expected.

Source: M. Schafer, "Acclaim Skeleton File Definition V1.10", 1995, and what the CMU Graphics Lab
Motion Capture Database makes of it.
"""

from __future__ import annotations

import codecs
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.datasets.files import shorten

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ROOT = "root"
VERSION = "1.10"
_LONGEST_NUMBER = 18  # digits of a frame's number; int() refuses thousands of them
_ROTATIONS = ("rx", "ry", "rz")
_TRANSLATIONS = ("tx", "ty", "tz")
_SECTIONS = ("version", "name", "units", "documentation", "root", "bonedata", "hierarchy", "skin")
_REQUIRED = ("version", "units", "root", "bonedata", "hierarchy")
_BONE_FIELDS = ("id", "name", "direction", "length", "axis")
_UNUSED_BONE_FIELDS = ("bodymass", "cofmass")
_RADIANS = {"deg": math.pi / 180, "rad": 1.0}
_FULLY_SPECIFIED = ":FULLY-SPECIFIED"
_ANGLE_FLAGS = {":DEGREES": _RADIANS["deg"], ":RADIANS": _RADIANS["rad"]}

Vector = tuple[float, float, float]


class Root(NamedTuple):
    """The joint that the skeleton hangs on.

    Attributes:
      order: the six values of the root in a motion, "tx", "ty", "tz", "rx", "ry" and "rz" in the
        file's own order, which is also the order of the rotations, about axes that stand still.
      axis_order: order of the rotations of `orientation`, such as "xyz".
      position: where the root is before any motion.
      orientation: how it is turned before any motion, angles about x, y and z in radians.
    """

    order: tuple[str, ...]
    axis_order: str
    position: Vector
    orientation: Vector


class Bone(NamedTuple):
    """A bone, and the joint at its far end.

    Attributes:
      name: of the bone and of the joint.
      parent: index of the joint at its near end; 0 is the root.
      direction: unit vector along the bone at rest, in the axes of the world.
      length: as written in the file.
      axis: how the bone's own axes are turned at rest, angles about x, y and z in radians.
      axis_order: order of the rotations of `axis`, such as "xyz".
      dofs: the bone's degrees of freedom, some of "rx", "ry" and "rz" in the file's own order,
        which is also the order of the rotations.
      limits: least and largest angle of each degree of freedom in radians; empty if not given.
    """

    name: str
    parent: int
    direction: Vector
    length: float
    axis: Vector
    axis_order: str
    dofs: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]


class Skeleton(NamedTuple):
    """What an ASF file says: joint 0 is the root, joint i + 1 is the far end of `bones[i]`.

    Attributes:
      root: the root.
      bones: depth first, children in the file's order.
      length_unit: the number that the header gives for the unit of length; lengths are as written,
        and not divided by it.
    """

    root: Root
    bones: tuple[Bone, ...]
    length_unit: float

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The names of the joints, the root first."""
        return (ROOT, *(bone.name for bone in self.bones))

    @property
    def bonds(self) -> Int[np.ndarray, "B 2"]:
        """`[B, 2]`, joint and parent of each bone, for `egno_jax.graph.bond_edges`."""
        pairs = [(index + 1, bone.parent) for index, bone in enumerate(self.bones)]
        return np.asarray(pairs, np.int32).reshape(-1, 2)


class Motion(NamedTuple):
    """What an AMC file says of one skeleton, T frames.

    Attributes:
      first_frame: the number of the first frame; the others follow without a gap.
      translations: `[T, 3]`, of the root along x, y and z.
      rotations: angles `[T, k]` in radians by the name of the bone, "root" included, one for each
        degree of freedom in the skeleton's order; bones without any are left out.
    """

    first_frame: int
    translations: Float[np.ndarray, "T 3"]
    rotations: Mapping[str, Float[np.ndarray, "T k"]]


class _Line(NamedTuple):
    """One line: its number in the file, counted from 1, and its words."""

    number: int
    words: list[str]


class _Problem(Exception):
    """What is wrong with a line; the public functions add the file to it."""

    def __init__(self, line: int, came: str, expected: str) -> None:
        super().__init__(f"line {line}: came {shorten(came)}, expected {expected}")


def read_skeleton(path: str | os.PathLike[str]) -> Skeleton:
    """Reads a skeleton from an ASF file.

    Args:
      path: the file.

    Returns:
      The skeleton, bones in depth-first order of the hierarchy.

    Raises:
      ValueError: the file cannot be read, is not whole, or is not an ASF file of version 1.10;
        names the file and the line.
    """
    text = _read_text(path)
    try:
        return _skeleton(_sections(text))
    except _Problem as problem:
        raise ValueError(f"{path}, {problem}") from None


def read_motion(path: str | os.PathLike[str], skeleton: Skeleton) -> Motion:
    """Reads a motion from an AMC file.

    Args:
      path: the file.
      skeleton: the skeleton that it moves.

    Returns:
      The motion, angles in radians.

    Raises:
      ValueError: the file cannot be read, is not whole, or does not fit the skeleton; names the
        file and the line.
    """
    text = _read_text(path)
    try:
        return _motion(text, skeleton)
    except _Problem as problem:
        raise ValueError(f"{path}, {problem}") from None


# Text


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data:
        raise ValueError(f"{path} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ValueError(
            f"{path}, line {line}: came the byte 0x{byte:02x}, which is not UTF-8, expected text"
        ) from error


def _lines(text: str) -> Iterator[_Line]:
    """Yields the lines that hold words; comments, commas and parentheses are none."""
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].translate(_BLANKS).split()
        if words:
            yield _Line(number, words)


_BLANKS = str.maketrans("(),", "   ")


def _end_of(text: str) -> int:
    """Returns the number of the last line that holds anything."""
    return max(text.rstrip().count("\n") + 1, 1)


def _number(word: str, line: int, what: str) -> float:
    """Returns a finite number."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in word:
        raise _Problem(line, f"{word!r}", f"a finite number for {what}")
    return number


def _numbers(words: Sequence[str], count: int, line: int, what: str) -> tuple[float, ...]:
    if len(words) != count:
        raise _Problem(line, f"{len(words)} value(s) for {what}", f"{count}")
    return tuple(_number(word, line, what) for word in words)


# Skeletons


class _Section(NamedTuple):
    """A part of an ASF file: where it begins, words behind its keyword, lines, where it ends."""

    number: int
    words: list[str]
    lines: list[_Line]
    end: int


def _sections(text: str) -> dict[str, _Section]:
    """Splits a file at its keywords."""
    found: dict[str, tuple[_Line, list[_Line]]] = {}
    for line in _lines(text):
        word, name = line.words[0], line.words[0][1:].lower()
        if not word.startswith(":"):
            if not found:
                raise _Problem(line.number, f"{word!r}", "a section, such as :version")
            found[next(reversed(found))][1].append(line)
        elif name not in _SECTIONS:
            raise _Problem(line.number, f"section {word!r}", f"one of {_choices(_SECTIONS, ':')}")
        elif name in found:
            first = found[name][0].number
            raise _Problem(line.number, f"section {word!r} again, after line {first}", "it once")
        else:
            found[name] = (line, [])
    end = _end_of(text)
    for name in _REQUIRED:
        if name not in found:
            raise _Problem(end, "the end of the file", f"a section :{name} before it")
    ends = [*(line.number for line, _ in found.values()), end][1:]
    return {
        name: _Section(line.number, line.words[1:], lines, stop)
        for (name, (line, lines)), stop in zip(found.items(), ends, strict=True)
    }


def _skeleton(sections: dict[str, _Section]) -> Skeleton:
    version = sections["version"]
    if version.words != [VERSION]:
        came = f"version {' '.join(version.words)!r}"
        raise _Problem(version.number, came, f"{VERSION!r}, which this reader knows")
    length_unit, radians = _units(sections["units"])
    bones = _bones(sections["bonedata"], radians)
    return Skeleton(
        root=_root(sections["root"], radians),
        bones=_depth_first(bones, _hierarchy(sections["hierarchy"], bones)),
        length_unit=length_unit,
    )


def _units(section: _Section) -> tuple[float, float]:
    """Returns the unit of length, and the unit of angles in radians."""
    fields = _fields(section, ("length", "angle"), optional=("mass",))
    for name in fields.keys() & {"mass", "length"}:
        (value,) = _numbers(fields[name].words, 1, fields[name].number, f"the unit of {name}")
        if value <= 0:
            raise _Problem(fields[name].number, f"{value:g} for the unit of {name}", "above 0")
    angle = " ".join(fields["angle"].words).lower()
    if angle not in _RADIANS:
        raise _Problem(fields["angle"].number, f"angle {angle!r}", "deg or rad")
    return float(fields["length"].words[0]), _RADIANS[angle]


def _root(section: _Section, radians: float) -> Root:
    fields = _fields(section, ("order", "axis", "position", "orientation"))
    order = tuple(word.lower() for word in fields["order"].words)
    if sorted(order) != sorted(_TRANSLATIONS + _ROTATIONS):
        came = f"order {' '.join(order)!r}"
        raise _Problem(fields["order"].number, came, "TX, TY, TZ, RX, RY and RZ, each once")
    position, orientation = (
        _numbers(fields[name].words, 3, fields[name].number, name)
        for name in ("position", "orientation")
    )
    return Root(
        order=order,
        axis_order=_axis_order(fields["axis"].words, fields["axis"].number),
        position=position,
        orientation=tuple(radians * angle for angle in orientation),
    )


def _fields(
    section: _Section, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, _Line]:
    """Returns the lines of a section by their first word, which is left out."""
    fields: dict[str, _Line] = {}
    for number, (name, *words) in section.lines:
        name = name.lower()
        if name not in (*required, *optional):
            raise _Problem(number, f"{name!r}", f"one of {_choices((*required, *optional))}")
        if name in fields:
            raise _Problem(number, f"{name!r} again, after line {fields[name].number}", "it once")
        fields[name] = _Line(number, words)
    for name in required:
        if name not in fields:
            raise _Problem(section.end, "the end of the section", f"{name!r} before it")
    return fields


def _axis_order(words: Sequence[str], line: int) -> str:
    order = "".join(words).lower()
    if sorted(order) != ["x", "y", "z"]:
        raise _Problem(line, f"axis order {' '.join(words)!r}", "X, Y and Z, each once")
    return order


class _BoneData(NamedTuple):
    """A bone that has no place in the hierarchy yet, and the line where it begins."""

    number: int
    bone: Bone


def _bones(section: _Section, radians: float) -> dict[str, _BoneData]:
    """Reads the blocks `begin ... end`; returns the bones by name."""
    bones: dict[str, _BoneData] = {}
    ids: dict[str, int] = {}
    lines = iter(section.lines)
    for number, words in lines:
        if words != ["begin"]:
            raise _Problem(number, f"{' '.join(words)!r}", "'begin' of a bone")
        block = list(itertools.takewhile(lambda line: line.words != ["end"], lines))
        end = block[-1].number + 1 if block else number + 1
        bone_id, bone = _bone(_Section(number, [], block, end), radians)
        for what, key, seen in (
            ("id", bone_id, ids),
            ("bone", bone.name, {name: data.number for name, data in bones.items()}),
        ):
            if key in seen:
                came = f"{what} {key!r} again, after the bone of line {seen[key]}"
                raise _Problem(number, came, "each once")
        ids[bone_id] = number
        bones[bone.name] = _BoneData(number, bone)
    if not bones:
        raise _Problem(section.end, "the end of the section", "at least one bone")
    _check_ended(section, "end")
    return bones


def _check_ended(section: _Section, word: str) -> None:
    """Checks the last line of a section, since the loops above stop at its end in any case."""
    if section.lines[-1].words != [word]:
        last = section.lines[-1]
        raise _Problem(last.number, f"{' '.join(last.words)!r} and nothing more", f"{word!r}")


def _bone(block: _Section, radians: float) -> tuple[str, Bone]:
    """Returns the id and the bone of one block."""
    for line in block.lines:
        if line.words == ["begin"]:
            raise _Problem(line.number, "'begin' inside of a bone", f"'end' of line {block.number}")
    block, limits = _without_limits(block)
    fields = _fields(block, _BONE_FIELDS, ("dof", *_UNUSED_BONE_FIELDS))
    for name in ("id", "name"):
        if len(fields[name].words) != 1:
            raise _Problem(fields[name].number, f"{len(fields[name].words)} words", f"one {name}")
    (name,), number = fields["name"].words, fields["name"].number
    if name == ROOT:
        raise _Problem(number, f"a bone named {name!r}", "another name: the root is no bone")
    direction = _numbers(fields["direction"].words, 3, fields["direction"].number, "direction")
    size = math.hypot(*direction)
    if abs(size - 1) > 1e-3:
        raise _Problem(fields["direction"].number, f"a direction of length {size:g}", "length 1")
    (length,) = _numbers(fields["length"].words, 1, fields["length"].number, "length")
    if length < 0:
        raise _Problem(fields["length"].number, f"length {length:g}", "0 or more")
    number, words = fields["axis"]
    axis = _numbers(words[:3], 3, number, "axis")
    dofs = _dofs(fields.get("dof"))
    return fields["id"].words[0], Bone(
        name=name,
        parent=-1,
        direction=direction,
        length=length,
        axis=tuple(radians * angle for angle in axis),
        axis_order=_axis_order(words[3:], number),
        dofs=dofs,
        limits=_limits(limits, dofs, radians),
    )


def _without_limits(block: _Section) -> tuple[_Section, list[_Line]]:
    """Takes the limits out of a bone: one line a degree of freedom, the first with the keyword."""
    is_limits, others, limits = False, [], []
    for line in block.lines:
        is_first = line.words[0].lower() == "limits"
        if is_first and limits:
            raise _Problem(line.number, "'limits' again", "it once")
        is_limits = is_first or (is_limits and _is_number(line.words[0]))
        if not is_limits:
            others.append(line)
        else:
            limits.append(line._replace(words=line.words[1:]) if is_first else line)
    return block._replace(lines=others), limits


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _limits(
    lines: list[_Line], dofs: tuple[str, ...], radians: float
) -> tuple[tuple[float, float], ...]:
    """Returns least and largest angle of each degree of freedom; they may be infinite."""
    if not lines:
        return ()
    words = [(line.number, word) for line in lines for word in line.words]
    if len(words) != 2 * len(dofs):
        came = f"limits of {len(words)} value(s)"
        raise _Problem(lines[-1].number, came, f"2 for each of the {len(dofs)} dof")
    values = [
        radians * (float(word) if word.lstrip("+-") == "inf" else _number(word, number, "a limit"))
        for number, word in words
    ]
    pairs = tuple(zip(values[::2], values[1::2], strict=True))
    for (low, high), (number, word) in zip(pairs, words[::2], strict=True):
        if low > high:
            raise _Problem(number, f"the limit {word} above the one behind it", "least, largest")
    return pairs


def _dofs(line: _Line | None) -> tuple[str, ...]:
    if line is None:
        return ()
    dofs = tuple(word.lower() for word in line.words)
    for dof in dofs:
        if dof not in _ROTATIONS:
            raise _Problem(line.number, f"dof {dof!r}", "rx, ry or rz: bones only turn here")
    if len(set(dofs)) != len(dofs) or not dofs:
        raise _Problem(line.number, f"dof {' '.join(dofs)!r}", "some of rx, ry, rz, each once")
    return dofs


def _hierarchy(section: _Section, bones: dict[str, _BoneData]) -> dict[str, list[_Line]]:
    """Returns the children by the name of their parent, each as its line and its name."""
    lines = section.lines
    if not lines or lines[0].words != ["begin"]:
        number = lines[0].number if lines else section.end
        came = f"{' '.join(lines[0].words)!r}" if lines else "the end of the section"
        raise _Problem(number, came, "'begin' of the hierarchy")
    end = next((i for i, line in enumerate(lines) if line.words == ["end"]), None)
    if end is None:
        _check_ended(section, "end")
    if lines[end + 1 :]:
        extra = lines[end + 1]
        raise _Problem(extra.number, f"{' '.join(extra.words)!r}", "nothing behind 'end'")
    children: dict[str, list[_Line]] = {}
    seen: dict[str, int] = {}
    for number, (parent, *names) in lines[1:end]:
        for name in (parent, *names):
            if name != ROOT and name not in bones:
                raise _Problem(number, f"the unknown bone {name!r}", "bones of :bonedata")
        if not names:
            raise _Problem(number, f"{parent!r} alone", "a bone and its children")
        for name in names:
            if name == ROOT:
                raise _Problem(number, "the root as a child", "bones, the root comes first")
            if name in seen:
                raise _Problem(number, f"{name!r} again, after line {seen[name]}", "one parent")
            seen[name] = number
            children.setdefault(parent, []).append(_Line(number, [name]))
    return children


def _depth_first(bones: dict[str, _BoneData], children: dict[str, list[_Line]]) -> tuple[Bone, ...]:
    """Orders the bones and gives each the index of its parent."""
    ordered: list[Bone] = []
    waiting = [(0, line.words[0]) for line in reversed(children.get(ROOT, []))]
    while waiting:
        parent, name = waiting.pop()
        ordered.append(bones[name].bone._replace(parent=parent))
        below = reversed(children.get(name, []))
        waiting += [(len(ordered), line.words[0]) for line in below]
    reached = {bone.name for bone in ordered}
    for number, (name,) in itertools.chain.from_iterable(children.values()):
        if name not in reached:
            raise _Problem(number, f"{name!r} in a cycle", "a way from the root to every bone")
    for name, data in bones.items():
        if name not in reached:
            came = f"bone {name!r}, which the hierarchy leaves out"
            raise _Problem(data.number, came, "a place for every bone")
    return tuple(ordered)


def _choices(names: Sequence[str], prefix: str = "") -> str:
    return ", ".join(prefix + name for name in names)


# Motions


def _motion(text: str, skeleton: Skeleton) -> Motion:
    sizes = {ROOT: len(skeleton.root.order)}
    sizes |= {bone.name: len(bone.dofs) for bone in skeleton.bones if bone.dofs}
    lines = list(_lines(text))
    radians, start = _header(lines, _end_of(text))
    first_frame, values, numbers = _frames(lines[start:], sizes, text)
    arrays = {name: np.asarray(rows, np.float64) for name, rows in values.items()}
    for name, array in arrays.items():
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            frame, column = bad[0]
            came = f"{array[frame, column]} for {name!r}"
            raise _Problem(numbers[name][frame], came, "finite numbers")
    order = skeleton.root.order
    root = arrays.pop(ROOT)
    translations = root[:, [order.index(name) for name in _TRANSLATIONS]]
    turns = root[:, [column for column, name in enumerate(order) if name in _ROTATIONS]]
    rotations = {name: radians * array for name, array in {ROOT: turns, **arrays}.items()}
    return Motion(first_frame, translations, rotations)


def _header(lines: list[_Line], end: int) -> tuple[float, int]:
    """Returns the unit of angles in radians, and the index of the first line behind the header."""
    flags: dict[str, int] = {}
    for number, words in itertools.takewhile(lambda line: line.words[0][0] == ":", lines):
        flag = " ".join(words).upper()
        if flag not in (_FULLY_SPECIFIED, *_ANGLE_FLAGS):
            known = (_FULLY_SPECIFIED, *_ANGLE_FLAGS)
            raise _Problem(number, f"the flag {' '.join(words)!r}", f"one of {_choices(known)}")
        if flag in flags:
            raise _Problem(number, f"{flag!r} again, after line {flags[flag]}", "it once")
        flags[flag] = number
    next_line = lines[len(flags)].number if len(lines) > len(flags) else end
    if _FULLY_SPECIFIED not in flags:
        came = "a header without it"
        raise _Problem(next_line, came, f"{_FULLY_SPECIFIED}: every frame gives every bone")
    angles = [flag for flag in _ANGLE_FLAGS if flag in flags]
    if len(angles) != 1:
        came = " and ".join(angles) or "a header without a unit of angles"
        raise _Problem(next_line, came, f"either {' or '.join(_ANGLE_FLAGS)}")
    return _ANGLE_FLAGS[angles[0]], len(flags)


def _frames(
    lines: list[_Line], sizes: Mapping[str, int], text: str
) -> tuple[int, dict[str, list[list[float]]], dict[str, list[int]]]:
    """Returns the first frame's number, and by bone the values and the line of every frame."""
    values: dict[str, list[list[float]]] = {name: [] for name in sizes}
    numbers: dict[str, list[int]] = {name: [] for name in sizes}
    end = _end_of(text)
    if not lines:
        raise _Problem(end, "the end of the file", "the number of the first frame")
    first, count = None, 0
    has_underscores = "_" in text  # float() skips those between digits
    for number, words in lines:
        if len(words) == 1 and words[0].isdecimal():
            if len(words[0]) > _LONGEST_NUMBER:
                raise _Problem(number, f"frame {words[0]}", "a number of fewer digits")
            _check_complete(values, count, number)
            first = int(words[0]) if first is None else first
            if int(words[0]) != first + count:
                raise _Problem(number, f"frame {words[0]}", f"frame {first + count}, the next one")
            count += 1
            continue
        name, *words = words
        if first is None:
            raise _Problem(number, f"{name!r}", "the number of the first frame")
        if name not in sizes:
            came = f"the unknown bone {name!r}"
            raise _Problem(number, came, "the root or a bone of the skeleton that has dof")
        if len(values[name]) == count:
            raise _Problem(number, f"{name!r} again", f"it once in frame {first + count - 1}")
        if len(words) != sizes[name]:
            raise _Problem(number, f"{len(words)} value(s) for {name!r}", f"{sizes[name]}")
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = None
        if row is None or has_underscores:
            row = [_number(word, number, repr(name)) for word in words]
        values[name].append(row)
        numbers[name].append(number)
    _check_complete(values, count, end)
    if not text.endswith("\n"):
        came = "the end of the file in the middle of a line"
        raise _Problem(end, came, "a line break: the last number may be cut short")
    return first, values, numbers


def _check_complete(values: Mapping[str, list], count: int, line: int) -> None:
    """Checks that the frame that ends before `line` has given every bone."""
    missing = [name for name, rows in values.items() if len(rows) != count]
    if missing:
        came = f"the end of a frame without {_choices(missing[:3])}"
        more = f" ({len(missing)} of {len(values)} are missing)" if len(missing) > 3 else ""
        raise _Problem(line, came + more, "all bones that have dof")
