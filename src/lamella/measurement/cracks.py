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
_MAX_STEPS = 64
# 60°, and a hair more: steps of one grid often meet at exactly that angle.
_COS_CORNER = 0.5 - 1e-9
_THREE, _ZERO, _N_CODES = np.uint64(3), np.uint64(0), np.uint64(N_CODES)


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
def _follow_far(rows, at, out, ahead, key, lengths, turns):
    """The turns of the curve until it is long enough; returns how many.

    Args:
        rows: flat volume.
        at: position of the voxel the face belongs to.
        out: step across the face.
        ahead: step along the curve.
        key: the object.
        lengths: spacing along ``out``, spacing along ``ahead``, length to follow.
        turns: uint8 buffer.
    """
    along, across, limit = lengths[1], lengths[0], lengths[2]
    half = 0.5 * math.hypot(along, across)
    length, n = 0.0, 0
    while length < limit and n < turns.size:
        beside = at + ahead
        if rows[beside + out] == key:
            turns[n] = CONCAVE
            at = beside + out
            out, ahead = _ZERO - ahead, out
        elif rows[beside] == key:
            turns[n] = STRAIGHT
            at = beside
        else:
            turns[n] = CONVEX
            out, ahead = ahead, _ZERO - out
        if turns[n] == STRAIGHT:
            length += along
        else:
            length += half
            along, across = across, along
        n += 1
    return n


@_jit
def _arm(turns, n, lengths):
    """Where an arm of the curve leads: displacement along ``out`` and ``ahead`` from the crack.

    The arm ends where it is long enough, or at a corner, which no digital straight line has: two
    neighbouring runs of two or more cracks, or a single crack between two turns of one sense (the
    rim of a thin sheet).
    """
    along, across, limit = lengths[1], lengths[0], lengths[2]
    half = 0.5 * math.hypot(along, across)
    out, ahead, length = 0.0, 0.0, 0.0
    corner_out, corner_ahead = 0.0, 0.0
    heading, run, run_before, last_turn = 0, 1, 0, STRAIGHT
    for i in range(n):
        if length >= limit:
            break
        old_out, old_ahead = _unit(heading)
        if turns[i] == STRAIGHT:
            run += 1
            if run == 2 and run_before >= 2:
                return corner_out, corner_ahead
            length += along if heading % 2 == 0 else across
        else:
            if i > 0 and run == 1 and turns[i] == last_turn:
                return corner_out, corner_ahead
            last_turn = turns[i]
            corner_out = out + 0.5 * across * old_out
            corner_ahead = ahead + 0.5 * along * old_ahead
            run_before, run = run, 1
            heading = (heading + (1 if turns[i] == CONVEX else 3)) % 4
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
def _slope_squared(forth, n_forth, back, n_back, lengths):
    """Square of the curve's slope at the crack, from its two arms.

    Arms that disagree by more than 60° have a corner of the body between them; then the arm counts
    that agrees with the face itself.
    """
    if n_forth and n_back and forth[0] != STRAIGHT and forth[0] == back[0]:
        # The crack itself is the rim of a thin sheet.
        return 0.0
    out_a, ahead_a = _arm(forth, n_forth, lengths)
    out_b, ahead_b = _arm(back, n_back, lengths)
    norm_a, norm_b = math.hypot(out_a, ahead_a), math.hypot(out_b, ahead_b)
    nothing = 1e-6 * lengths[2]
    if norm_a < nothing or norm_b < nothing:
        # All the way round a speck: it has no orientation but that of its faces.
        return 0.0
    out, ahead = out_a - out_b, ahead_a + ahead_b
    if ahead_a * ahead_b - out_a * out_b < _COS_CORNER * norm_a * norm_b:
        if ahead_a / norm_a >= ahead_b / norm_b:
            out, ahead = out_a, ahead_a
        else:
            out, ahead = -out_b, ahead_b
    # A curve that turns back has no slope: the face lies in a notch and counts nothing.
    return (out / ahead) ** 2 if ahead > nothing else np.inf


@_jit
def tabulate_slopes(lengths):
    """Squared slopes of all pairs of codes forth and back, float32, flat."""
    table = np.empty(N_CODES * N_CODES, np.float32)
    forth, back = np.empty(N_STEPS, np.uint8), np.empty(N_STEPS, np.uint8)
    for i in range(N_CODES):
        for j in range(N_CODES):
            for step in range(N_STEPS):
                forth[step] = i // 3**step % 3
                back[step] = j // 3**step % 3
            table[i * N_CODES + j] = _slope_squared(forth, N_STEPS, back, N_STEPS, lengths)
    return table


@_jit
def add_faces(rows, planes, slices, numbers, tables, weights):
    """Add the faces of some planes to the objects' areas.

    Args:
        rows: int32, (z, y, x), C-contiguous, with a rim of zeros in y and x and enough planes on
            both sides of ``planes``; row + 1 of the object of every voxel.
        planes: first plane and the one after the last.
        slices: float64, (3, 3, 3); for the slice along axes [out, ahead]: spacing along out,
            spacing along ahead, length to follow.
        numbers: int64, (3, 3); number of the table of every slice, :data:`FOLLOW` without one,
            :data:`SKIP` for no slice; on the diagonal, SKIP leaves out the faces across that axis.
        tables: float32, (n, codes²), from :func:`tabulate_slopes`.
        weights: int64, (objects + 1, 3); faces across every axis, in :data:`WEIGHT_UNIT`.
    """
    _, ny, nx = rows.shape
    flat = rows.ravel()
    steps = np.array([ny * nx, nx, 1]).astype(np.uint64)
    buffer = np.empty((2, _MAX_STEPS), np.uint8)
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
                    piece = slices[axis, other]
                    stretch += _far_slope(flat, at, out, ahead, key, piece, buffer)
            weights[key, axis] += np.int64(unit / np.sqrt(stretch))


@_jit
def _far_slope(flat, at, out, ahead, key, lengths, buffer):
    """Squared slope at a face along one slice, without a table."""
    forth, back = buffer[0], buffer[1]
    n_forth = _follow_far(flat, at, out, ahead, key, lengths, forth)
    n_back = _follow_far(flat, at, out, _ZERO - ahead, key, lengths, back)
    return np.float32(_slope_squared(forth, n_forth, back, n_back, lengths))
