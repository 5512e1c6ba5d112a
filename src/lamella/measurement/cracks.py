"""Compiled surface areas (numba: import it inside functions only). The method: see ``surface``.

Volumes here hold a row number per voxel (0 = no object) and are flat: a position is an index, a
direction is an index step. Indices are unsigned, with wrap-around for steps back, because numba
guards every signed index against negative values at twice the cost.

A *face* is the side of a voxel of the object towards a voxel outside it; ``out`` is the step across
it. Cut along a plane that contains ``out`` and ``ahead``, the surface is a curve of *cracks* (the
faces' traces). From a crack the curve goes on in one of three ways::

      p = inside, # = inside                         0 convex     1 straight     2 concave
                                                      . .          . .            . #
                                                      p .          p #            p #
"""

import math

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)
CONVEX, STRAIGHT, CONCAVE = 0, 1, 2
# Steps each way in the tabulated case: 2.5 spacings are at most four steps on an isotropic grid.
N_STEPS = 4
N_CODES = 3**N_STEPS
# Weights are added up as integers in this unit: sums do not depend on order, slabs or threads.
WEIGHT_UNIT = 2**24
# Kinds of slices that have no table.
FOLLOW, SKIP = -1, -2
# Codes of long arms: 28 turns of two bits, the end, and the slice from bit 60 on.
_LAST_PLACE, _KIND_PLACE = np.uint64(56), np.uint64(60)
# Arms that were worked out are remembered: a curve has few shapes.
_MEMORY_BITS = 14
_MIX = np.uint64(0x9E3779B97F4A7C15)
# Share of an arm's length that counts as none.
_NOTHING = 1e-6
# 60°, and a hair more: steps of one grid often meet at exactly that angle.
_COS_CORNER = 0.5 - 1e-9
_ZERO, _TWO, _THREE, _N_CODES = np.uint64(0), np.uint64(2), np.uint64(3), np.uint64(N_CODES)


@_jit
def _follow(rows, at, out, ahead, key):
    """The next :data:`N_STEPS` turns of the curve, as digits of a number to the base 3."""
    code, place = _ZERO, np.uint64(1)
    for _ in range(N_STEPS):
        beside = at + ahead
        if rows[beside + out] == key:
            code += np.uint64(CONCAVE) * place
            at = beside + out
            out, ahead = _ZERO - ahead, out
        elif rows[beside] == key:
            code += np.uint64(STRAIGHT) * place
            at = beside
        else:
            out, ahead = ahead, _ZERO - out
        place *= _THREE
    return code


@_jit
def _follow_far(rows, at, out, ahead, key, lengths):
    """The turns of the curve until it is long enough: two bits each, the first lowest, then 3.

    Args:
        rows: flat volume.
        at: position of the voxel the face belongs to.
        out: step across the face.
        ahead: step along the curve.
        key: the object.
        lengths: spacing along ``out`` and ``ahead``, length to follow, length of a turn.
    """
    across, along, limit, half = lengths
    length, code, place = 0.0, _ZERO, _ZERO
    while length < limit and place < _LAST_PLACE:
        beside = at + ahead
        if rows[beside] == key and rows[beside + out] != key:
            code |= np.uint64(STRAIGHT) << place
            at = beside
            length += along
        else:
            if rows[beside + out] == key:
                code |= np.uint64(CONCAVE) << place
                at = beside + out
                out, ahead = _ZERO - ahead, out
            else:
                out, ahead = ahead, _ZERO - out
            length += half
            along, across = across, along
        place += _TWO
    return code | _THREE << place


@_jit
def _arm(code, lengths):
    """Where an arm of the curve leads: displacement along ``out`` and ``ahead`` from the crack.

    The arm ends where it is long enough, or at a corner, which no digital straight line has: two
    neighbouring runs of two or more cracks, or a single crack between two turns of one sense (the
    rim of a thin sheet).
    """
    across, along, limit, half = lengths
    out, ahead, length = 0.0, 0.0, 0.0
    corner_out, corner_ahead = 0.0, 0.0
    heading, run, run_before, last_turn = 0, 1, 0, STRAIGHT
    while code & _THREE != _THREE and length < limit:
        turn = np.int64(code & _THREE)
        code >>= _TWO
        old_out, old_ahead = _unit(heading)
        if turn == STRAIGHT:
            run += 1
            if run == 2 and run_before >= 2:
                return corner_out, corner_ahead
            length += along if heading % 2 == 0 else across
        else:
            if run == 1 and turn == last_turn:
                return corner_out, corner_ahead
            last_turn = turn
            corner_out = out + 0.5 * across * old_out
            corner_ahead = ahead + 0.5 * along * old_ahead
            run_before, run = run, 1
            heading = (heading + (1 if turn == CONVEX else 3)) % 4
            length += half
        new_out, new_ahead = _unit(heading)
        out += 0.5 * across * (old_out + new_out)
        ahead += 0.5 * along * (old_ahead + new_ahead)
    return out, ahead


@_jit
def _unit(heading):
    """Heading 0 ahead, 1 inwards, 2 back, 3 outwards, as components along out and ahead."""
    if heading == 0:
        return 0.0, 1.0
    if heading == 1:
        return -1.0, 0.0
    if heading == 2:
        return 0.0, -1.0
    return 1.0, 0.0


@_jit
def _slope_squared(forth, back, first_turns, nothing):
    """Square of the curve's slope at the crack, from its two arms.

    Arms that disagree by more than 60° have a corner of the body between them; then the arm counts
    that agrees with the face itself.

    Args:
        forth: displacement of the arm ahead, (out, ahead).
        back: displacement of the arm behind, (out, back).
        first_turns: of both arms.
        nothing: length that is none.
    """
    if first_turns[0] != STRAIGHT and first_turns[0] == first_turns[1]:
        # The crack itself is the rim of a thin sheet.
        return 0.0
    # Not hypot, which guards against overflow at four times the cost.
    norm_a = math.sqrt(forth[0] * forth[0] + forth[1] * forth[1])
    norm_b = math.sqrt(back[0] * back[0] + back[1] * back[1])
    if norm_a < nothing or norm_b < nothing:
        # All the way round a speck: it has no orientation but that of its faces.
        return 0.0
    out, ahead = forth[0] - back[0], forth[1] + back[1]
    if forth[1] * back[1] - forth[0] * back[0] < _COS_CORNER * norm_a * norm_b:
        if forth[1] / norm_a >= back[1] / norm_b:
            out, ahead = forth
        else:
            out, ahead = -back[0], back[1]
    # A curve that turns back has no slope: the face lies in a notch and counts nothing.
    return (out / ahead) ** 2 if ahead > nothing else np.inf


@_jit
def tabulate_slopes(lengths):
    """Squared slopes of all pairs of codes forth and back, float32, flat."""
    known = (lengths[0], lengths[1], lengths[2], lengths[3])
    table = np.empty(N_CODES * N_CODES, np.float32)
    arms = np.empty((N_CODES, 2))
    for number in range(N_CODES):
        code = _THREE
        for step in range(N_STEPS - 1, -1, -1):
            code = code << _TWO | np.uint64(number // 3**step % 3)
        arms[number] = _arm(code, known)
    nothing = _NOTHING * lengths[2]
    for i in range(N_CODES):
        for j in range(N_CODES):
            forth, back = (arms[i, 0], arms[i, 1]), (arms[j, 0], arms[j, 1])
            table[i * N_CODES + j] = _slope_squared(forth, back, (i % 3, j % 3), nothing)
    return table


@_jit
def add_faces(rows, planes, slices, numbers, tables, weights):
    """Add the faces of some planes to the objects' areas.

    Args:
        rows: int32, (z, y, x), C-contiguous, with a rim of zeros in y and x and enough planes on
            both sides of ``planes``; row + 1 of the object of every voxel.
        planes: first plane and the one after the last.
        slices: float64, (3, 3, 4); for the slice along axes [out, ahead]: spacing along out,
            spacing along ahead, length to follow, length of a turn.
        numbers: int64, (3, 3); number of the table of every slice, :data:`FOLLOW` without one,
            :data:`SKIP` for no slice; on the diagonal, SKIP leaves out the faces across that axis.
        tables: float32, (n, codes²), from :func:`tabulate_slopes`.
        weights: int64, (objects + 1, 3); faces across every axis, in :data:`WEIGHT_UNIT`.
    """
    _, ny, nx = rows.shape
    flat = rows.ravel()
    steps = np.array([ny * nx, nx, 1]).astype(np.uint64)
    keys, arms = np.zeros(1 << _MEMORY_BITS, np.uint64), np.empty((1 << _MEMORY_BITS, 2))
    unit = np.float32(WEIGHT_UNIT)
    # One loop over positions: the rim is zero, so lines need no bounds.
    for position in range(planes[0] * ny * nx, planes[1] * ny * nx):
        key = flat[position]
        if key == 0:
            continue
        at = np.uint64(position)
        for face in range(6):
            axis = face >> 1
            out = steps[axis]
            if face & 1:
                out = _ZERO - out
            if numbers[axis, axis] == SKIP or flat[at + out] == key:
                continue
            stretch = np.float32(1)
            for turn in range(1, 3):
                other = axis + turn - 3 * (axis + turn > 2)
                ahead, number = steps[other], numbers[axis, other]
                if number >= 0:
                    code = _follow(flat, at, out, ahead, key) * _N_CODES
                    code += _follow(flat, at, out, _ZERO - ahead, key)
                    stretch += tables[number, code]
                elif number == FOLLOW:
                    # Numbers, not a view: references to arrays are counted, at a cost.
                    known = (
                        slices[axis, other, 0],
                        slices[axis, other, 1],
                        slices[axis, other, 2],
                        slices[axis, other, 3],
                    )
                    where = (at, out, ahead, np.uint64(3 * axis + other))
                    stretch += _far_slope(flat, key, where, known, keys, arms)
            weights[key, axis] += np.int64(unit / np.sqrt(stretch))


@_jit
def _far_slope(flat, key, where, lengths, keys, arms):
    """Squared slope at a face along one slice, without a table."""
    at, out, ahead, kind = where
    there = _follow_far(flat, at, out, ahead, key, lengths)
    here = _follow_far(flat, at, out, _ZERO - ahead, key, lengths)
    first_turns = (there & _THREE, here & _THREE)
    forth = _recall(there, kind, lengths, keys, arms)
    back = _recall(here, kind, lengths, keys, arms)
    return np.float32(_slope_squared(forth, back, first_turns, _NOTHING * lengths[2]))


@_jit
def _recall(code, kind, lengths, keys, arms):
    """The arm of a code of :func:`_follow_far`; worked out when it is not the last at its place."""
    key = code | kind << _KIND_PLACE
    slot = (key * _MIX) >> np.uint64(64 - _MEMORY_BITS)
    if keys[slot] != key:
        arms[slot, 0], arms[slot, 1] = _arm(code, lengths)
        keys[slot] = key
    return arms[slot, 0], arms[slot, 1]
