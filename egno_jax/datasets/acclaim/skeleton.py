"""Skeletons (ASF files): the root, the bones and their hierarchy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.datasets.acclaim.lines import (
    RADIANS,
    ROOT,
    ROTATIONS,
    TRANSLATIONS,
    Line,
    Problem,
    check_new,
    end_of,
    lines_of,
    parse_file,
    to_number,
    to_numbers,
)
from egno_jax.datasets.npz import PathLike

if TYPE_CHECKING:
    from jaxtyping import Int

VERSION = "1.10"
_SECTIONS = ("version", "name", "units", "documentation", "root", "bonedata", "hierarchy", "skin")
_REQUIRED = ("version", "units", "root", "bonedata", "hierarchy")
_BONE_FIELDS = ("id", "name", "direction", "length", "axis")
_OPTIONAL_BONE_FIELDS = ("dof", "bodymass", "cofmass")
_INFINITE = ("inf", "+inf", "-inf")

Vector = tuple[float, float, float]


class Root(NamedTuple):
    """The root joint.

    Attributes:
      order: "tx", "ty", "tz", "rx", "ry" and "rz" in the file's order, which is that of the root's
        values in a motion and of the rotations, about fixed axes.
      axis_order: order of the rotations of `orientation`, such as "xyz".
      position: the position before any motion.
      orientation: the orientation before any motion, angles about x, y and z in radians.
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
      direction: unit vector along the bone at rest, in world axes.
      length: as written in the file.
      axis: orientation of the bone's local axes at rest, angles about x, y and z in radians.
      axis_order: order of the rotations of `axis`, such as "xyz".
      dofs: some of "rx", "ry" and "rz", in the file's order, which is that of the rotations.
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
    """The contents of an ASF file: joint 0 is the root, joint i + 1 is the far end of `bones[i]`.

    Attributes:
      root: the root.
      bones: depth first, children in the file's order.
      length_unit: the unit of length in the header; lengths are as written, not divided by it.
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


def read_skeleton(path: PathLike) -> Skeleton:
    """Reads a skeleton from an ASF file, bones in depth-first order of the hierarchy.

    Raises:
      ValueError: the file cannot be read, or is not ASF 1.10; names the file and the line.
    """
    return parse_file(path, _skeleton)


class _Section(NamedTuple):
    """A part of a file: its first line, the words after its keyword, its lines, its last line."""

    number: int
    words: list[str]
    lines: list[Line]
    end: int


def _skeleton(text: str) -> Skeleton:
    sections = _sections(text)
    version = sections["version"]
    if version.words != [VERSION]:
        raise Problem(version.number, f"version {' '.join(version.words)!r}", f"{VERSION!r}")
    length_unit, radians = _units(sections["units"])
    bones = _bones(sections["bonedata"], radians)
    return Skeleton(
        root=_root(sections["root"], radians),
        bones=_depth_first(bones, _hierarchy(sections["hierarchy"], set(bones))),
        length_unit=length_unit,
    )


def _sections(text: str) -> dict[str, _Section]:
    """Splits a file at its keywords."""
    found, seen, end = {}, {}, end_of(text)
    for number, words in lines_of(text):
        word, name = words[0], words[0][1:].lower()
        if word.startswith(":"):
            if name not in _SECTIONS:
                raise Problem(number, f"section {word!r}", f"one of :{', :'.join(_SECTIONS)}")
            check_new(seen, f":{name}", number, "section ")
            if found:
                last = next(reversed(found))
                found[last] = found[last]._replace(end=number)
            found[name] = _Section(number, words[1:], [], end)
        elif not found:
            raise Problem(number, f"{word!r}", "a section, such as :version")
        else:
            found[next(reversed(found))].lines.append(Line(number, words))
    for name in _REQUIRED:
        if name not in found:
            raise Problem(end, "the end of the file", f"a section :{name} before it")
    return found


def _fields(
    section: _Section, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Line]:
    """Returns the lines of a section by their first word, which is removed."""
    known, fields, seen = (*required, *optional), {}, {}
    for number, (name, *words) in section.lines:
        name = name.lower()
        if name not in known:
            raise Problem(number, f"{name!r}", f"one of {', '.join(known)}")
        check_new(seen, name, number)
        fields[name] = Line(number, words)
    for name in required:
        if name not in fields:
            raise Problem(section.end, "the end of the section", f"{name!r} before it")
    return fields


def _values(fields: dict[str, Line], name: str, count: int) -> tuple[float, ...]:
    number, words = fields[name]
    return to_numbers(words, count, number, name)


def _units(section: _Section) -> tuple[float, float]:
    """Returns the unit of length, and the unit of angles in radians."""
    fields = _fields(section, ("length", "angle"), optional=("mass",))
    for name in fields.keys() & {"mass", "length"}:
        (value,) = _values(fields, name, 1)
        if value <= 0:
            raise Problem(fields[name].number, f"{name} {value:g}", "a unit above 0")
    angle = " ".join(fields["angle"].words).lower()
    if angle not in RADIANS:
        raise Problem(fields["angle"].number, f"angle {angle!r}", "deg or rad")
    return float(fields["length"].words[0]), RADIANS[angle]


def _root(section: _Section, radians: float) -> Root:
    fields = _fields(section, ("order", "axis", "position", "orientation"))
    order = tuple(word.lower() for word in fields["order"].words)
    if sorted(order) != sorted(TRANSLATIONS + ROTATIONS):
        got = f"order {' '.join(order)!r}"
        raise Problem(fields["order"].number, got, "TX, TY, TZ, RX, RY and RZ, each once")
    return Root(
        order=order,
        axis_order=_axis_order(fields["axis"].words, fields["axis"].number),
        position=_values(fields, "position", 3),
        orientation=tuple(radians * angle for angle in _values(fields, "orientation", 3)),
    )


def _axis_order(words: Sequence[str], line: int) -> str:
    order = "".join(words).lower()
    if sorted(order) != ["x", "y", "z"]:
        raise Problem(line, f"axis order {' '.join(words)!r}", "X, Y and Z, each once")
    return order


def _bones(section: _Section, radians: float) -> dict[str, tuple[int, Bone]]:
    """Reads the blocks `begin ... end`; returns their first lines and bones by name."""
    bones, ids, names = {}, {}, {}
    lines = iter(section.lines)
    for number, words in lines:
        if words != ["begin"]:
            raise Problem(number, f"{' '.join(words)!r}", "'begin' of a bone")
        block = list(itertools.takewhile(lambda line: line.words != ["end"], lines))
        end = block[-1].number + 1 if block else number + 1
        bone_id, bone = _bone(_Section(number, [], block, end), radians)
        check_new(ids, bone_id, number, "id ")
        check_new(names, bone.name, number, "bone ")
        bones[bone.name] = (number, bone)
    if not bones:
        raise Problem(section.end, "the end of the section", "at least one bone")
    _check_ended(section)
    return bones


def _check_ended(section: _Section) -> None:
    """Checks the last line of a section, which the loops over blocks do not require."""
    number, words = section.lines[-1]
    if words != ["end"]:
        raise Problem(number, f"{' '.join(words)!r} and nothing more", "'end'")


def _bone(block: _Section, radians: float) -> tuple[str, Bone]:
    """Returns the id and the bone of one block; the parent is not known yet."""
    for line in block.lines:
        if line.words == ["begin"]:
            raise Problem(line.number, "'begin' inside of a bone", f"'end' of line {block.number}")
    block, limits = _without_limits(block)
    fields = _fields(block, _BONE_FIELDS, _OPTIONAL_BONE_FIELDS)
    for name in ("id", "name"):
        if len(fields[name].words) != 1:
            raise Problem(fields[name].number, f"{len(fields[name].words)} words", f"one {name}")
    name = fields["name"].words[0]
    if name == ROOT:
        got = f"a bone named {name!r}"
        raise Problem(fields["name"].number, got, "another name, the root is not a bone")
    direction, (length,) = _values(fields, "direction", 3), _values(fields, "length", 1)
    if abs((size := math.hypot(*direction)) - 1) > 1e-3:
        raise Problem(fields["direction"].number, f"a direction of length {size:g}", "length 1")
    if length < 0:
        raise Problem(fields["length"].number, f"length {length:g}", "0 or more")
    number, words = fields["axis"]
    axis = to_numbers(words[:3], 3, number, "axis")
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


def _without_limits(block: _Section) -> tuple[_Section, list[Line]]:
    """Separates the limits of a bone: one line for each dof, the first with the keyword."""
    is_limits, others, limits = False, [], []
    for number, words in block.lines:
        is_first = words[0].lower() == "limits"
        if is_first and limits:
            raise Problem(number, "'limits' again", "it once")
        is_limits = is_first or (is_limits and not words[0].isidentifier())
        (limits if is_limits else others).append(Line(number, words[is_first:]))
    return block._replace(lines=others), limits


def _limits(
    lines: list[Line], dofs: tuple[str, ...], radians: float
) -> tuple[tuple[float, float], ...]:
    """Returns least and largest angle of each degree of freedom; they may be infinite."""
    if not lines:
        return ()
    words = [(line.number, word) for line in lines for word in line.words]
    if len(words) != 2 * len(dofs):
        got = f"limits of {len(words)} value(s)"
        raise Problem(lines[-1].number, got, f"2 for each of the {len(dofs)} dof")
    values = [
        radians * (float(word) if word in _INFINITE else to_number(word, line, "a limit"))
        for line, word in words
    ]
    pairs = tuple(zip(values[::2], values[1::2], strict=True))
    for (low, high), (number, word) in zip(pairs, words[::2], strict=True):
        if low > high:
            raise Problem(number, f"the limit {word} above the next one", "least, largest")
    return pairs


def _dofs(line: Line | None) -> tuple[str, ...]:
    if line is None:
        return ()
    dofs = tuple(word.lower() for word in line.words)
    for dof in dofs:
        if dof not in ROTATIONS:
            raise Problem(line.number, f"dof {dof!r}", "rx, ry or rz, bones only rotate")
    if len(set(dofs)) != len(dofs) or not dofs:
        raise Problem(line.number, f"dof {' '.join(dofs)!r}", "some of rx, ry, rz, each once")
    return dofs


def _hierarchy(section: _Section, bones: set[str]) -> dict[str, list[tuple[str, int]]]:
    """Returns the children of each parent, and their lines."""
    lines = section.lines
    if not lines or lines[0].words != ["begin"]:
        number = lines[0].number if lines else section.end
        got = f"{' '.join(lines[0].words)!r}" if lines else "the end of the section"
        raise Problem(number, got, "'begin' of the hierarchy")
    end = next((i for i, line in enumerate(lines) if line.words == ["end"]), None)
    if end is None:
        _check_ended(section)
    if lines[end + 1 :]:
        extra = lines[end + 1]
        raise Problem(extra.number, f"{' '.join(extra.words)!r}", "nothing after 'end'")
    children, seen = {}, {}
    for number, (parent, *names) in lines[1:end]:
        for name in (parent, *names):
            if name != ROOT and name not in bones:
                raise Problem(number, f"the unknown bone {name!r}", "bones of :bonedata")
        if not names:
            raise Problem(number, f"{parent!r} alone", "a bone and its children")
        for name in names:
            if name == ROOT:
                raise Problem(number, "the root as a child", "bones")
            check_new(seen, name, number)
            children.setdefault(parent, []).append((name, number))
    return children


def _depth_first(
    bones: dict[str, tuple[int, Bone]], children: dict[str, list[tuple[str, int]]]
) -> tuple[Bone, ...]:
    """Orders the bones and gives each the index of its parent."""
    ordered: list[Bone] = []
    waiting = [(0, name) for name, _ in reversed(children.get(ROOT, []))]
    while waiting:
        parent, name = waiting.pop()
        ordered.append(bones[name][1]._replace(parent=parent))
        waiting += [(len(ordered), child) for child, _ in reversed(children.get(name, []))]
    reached = {bone.name for bone in ordered}
    for name, number in itertools.chain.from_iterable(children.values()):
        if name not in reached:
            raise Problem(number, f"{name!r} in a cycle", "a path from the root to every bone")
    for name, (number, _) in bones.items():
        if name not in reached:
            got = f"bone {name!r}, which the hierarchy omits"
            raise Problem(number, got, "every bone in the hierarchy")
    return tuple(ordered)
