"""Laws of the loop: tiled = untiled, columns and interruptions leave no trace, memory is flat."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import RunCancelledError
from lamella.inference.band import Band, gaussian_weights
from lamella.inference.decode import Argmax
from lamella.inference.execute import Execution, execute
from lamella.inference.journal import Journal
from lamella.inference.layers import GridMap
from lamella.inference.plan import Column, make_plan
from lamella.inference.slab import VolumeSlabs
from lamella.volume import Box, FunctionArray, Volume


def run(kit, source, plan, *, radius=1, batch=1, unit=(4, 64, 64), grid=None, **options):
    """Labels and confidence of a plan with the local runtime."""
    grid = grid or GridMap.make(plan.shape, plan.shape)
    labels = kit.MemoryStore(grid.shape, unit)
    confidence = kit.MemoryStore((1, *grid.shape), unit)
    hearing = options.pop("listener", None) or kit.Hearing()
    count = execute(
        Execution(
            plan=plan,
            source=source,
            runtime=kit.LocalRuntime(plan.tile, radius=radius, batch=batch),
            decoder=Argmax(3, measures=("probability",)),
            grid=grid,
            labels=options.pop("labels", labels),
            probabilities=options.pop("probabilities", confidence),
            **options,
        ),
        hearing,
    )
    assert count.done == count.planned == plan.n_tiles
    return labels.array, confidence.array[0]


@settings(max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 16)] * 3),
    tile=st.tuples(*[st.integers(4, 9)] * 3),
    fraction=st.sampled_from([0.5, 0.6, 0.75]),
    batch=st.integers(1, 3),
    depth=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_tiled_equals_untiled_for_a_local_operator(
    kit, noise, shape, tile, fraction, batch, depth, seed
):
    source, data = noise(shape, seed)
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction, blend="crop")
    assert all(overlap >= 2 for overlap in plan.overlap), "reaches half the overlap at least"
    labels, _ = run(kit, source, plan, batch=batch, unit=(depth, 64, 64))
    untiled = kit.LocalRuntime(shape).logits(data).argmax(axis=0)
    np.testing.assert_array_equal(labels, untiled)


@settings(max_examples=10)
@given(
    shape=st.tuples(*[st.integers(1, 16)] * 3),
    tile=st.tuples(*[st.integers(1, 9)] * 3),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    seed=st.integers(0, 99),
)
def test_blended_equals_untiled_for_a_pointwise_operator(kit, noise, shape, tile, fraction, seed):
    source, data = noise(shape, seed)
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction)
    labels, _ = run(kit, source, plan, radius=0)
    untiled = kit.LocalRuntime(shape, radius=0).logits(data).argmax(axis=0)
    np.testing.assert_array_equal(labels, untiled)


@settings(max_examples=8)
@given(
    shape=st.tuples(st.integers(1, 14), st.integers(8, 24), st.integers(8, 24)),
    blend=st.sampled_from(["gaussian", "crop"]),
    cut=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 99),
)
def test_columns_leave_no_seam(kit, noise, shape, blend, cut, seed):
    # The operator reaches beyond the overlap, so a tile too few or in another order would show.
    source, _ = noise(shape, seed)
    tile = (4, 6, 5)
    whole = make_plan(shape, tile=tile, blend=blend)
    _, height, width = shape
    boxes = [
        Box((y0, x0), (y1, x1))
        for y0, y1 in ((0, cut[0]), (cut[0], height))
        for x0, x1 in ((0, cut[1]), (cut[1], width))
    ]
    columns = make_plan(
        shape, tile=tile, blend=blend, columns=tuple(Column(box, box) for box in boxes)
    )
    for one, other in zip(run(kit, source, whole), run(kit, source, columns), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("blend", ["gaussian", "crop"])
@pytest.mark.parametrize("stretch", [(1, 1, 1), (0.6, 1.5, 1)])
def test_interrupted_equals_uninterrupted_at_every_tile(kit, noise, tmp_path, blend, stretch):
    shape = (21, 9, 8)
    source, _ = noise(shape)
    output = tuple(round(n * s) for n, s in zip(shape, stretch, strict=True))
    grid = GridMap.make(output, shape)
    cut = output[2] // 2
    halves = (
        Box((0, 0), (output[1], cut)),
        Box((0, cut), (output[1], output[2])),
    )
    plan = make_plan(
        shape,
        tile=(5, 6, 4),
        blend=blend,
        columns=tuple(Column(grid.region(half), half) for half in halves),
    )
    unit = (3, output[1], cut)
    expected = run(kit, source, plan, unit=unit, grid=grid)
    for stop_after in range(0, plan.n_tiles, 5):
        labels = kit.MemoryStore(output, unit)
        confidence = kit.MemoryStore((1, *output), unit)
        path = tmp_path / f"{stop_after}.jsonl"
        with Journal.start(path, {"run": "1"}) as journal, pytest.raises(RunCancelledError):
            run(
                kit,
                source,
                plan,
                unit=unit,
                grid=grid,
                labels=labels,
                probabilities=confidence,
                journal=journal,
                listener=kit.Hearing(stop_after),
            )
        state = Journal.read(path)
        for number, column in enumerate(plan.columns):
            z, (y0, x0) = state.finished(number), column.output.start
            y1, x1 = column.output.stop
            at = (slice(None, z), slice(y0, y1), slice(x0, x1))
            np.testing.assert_array_equal(labels.array[at], expected[0][at])
            labels.array[z:, y0:y1, x0:x1] = 99  # a crash may leave anything behind
        hearing = kit.Hearing()
        with Journal.go_on(path, state) as journal:
            run(
                kit,
                source,
                plan,
                unit=unit,
                grid=grid,
                labels=labels,
                probabilities=confidence,
                journal=journal,
                done=state,
                listener=hearing,
            )
        np.testing.assert_array_equal(labels.array, expected[0])
        np.testing.assert_array_equal(confidence.array[0], expected[1])
        if state.finished(0) >= plan.tile[0] * 2:
            assert len(hearing.counts) < plan.n_tiles, "finished rows are not run again"


def test_layers_are_written_once_in_whole_units_and_journaled_after_sync(kit, noise, tmp_path):
    shape, unit = (22, 12, 10), (8, 12, 10)
    source, _ = noise(shape)
    plan = make_plan(shape, tile=(6, 6, 6))
    store, path = kit.MemoryStore(shape, unit), tmp_path / "journal.jsonl"
    hearing = kit.Hearing()
    with Journal.start(path, {}) as journal:
        run(kit, source, plan, unit=unit, labels=store, journal=journal, listener=hearing)
    assert [(b.start[0], b.stop[0]) for b in store.boxes] == [(0, 8), (8, 16), (16, 22)]
    assert hearing.boxes == store.boxes
    assert store.n_synced == 3
    assert Journal.read(path).finished(0) == 22
    assert hearing.counts[-1] == (plan.n_tiles, plan.n_tiles)


def test_a_full_disk_ends_the_run_with_its_error(kit, noise):
    source, _ = noise((40, 8, 8))
    plan = make_plan((40, 8, 8), tile=(4, 4, 4))
    store = kit.MemoryStore((40, 8, 8), (4, 8, 8), fail_after=1)
    with pytest.raises(OSError, match="No space left"):
        run(kit, source, plan, labels=store)


def test_an_unreadable_input_ends_the_run_with_its_error(kit):
    def read(slices):
        if slices[0].stop > 10:
            raise OSError("the file ends here")
        return np.zeros(tuple(s.stop - s.start for s in slices), np.float32)

    source = VolumeSlabs(Volume.from_array(FunctionArray((40, 8, 8), np.float32, read)))
    with pytest.raises(OSError, match="the file ends here"):
        run(kit, source, make_plan((40, 8, 8), tile=(4, 4, 4)))


def test_memory_does_not_grow_with_z(kit):
    """Peak of what numpy allocates; everything else is constant by construction."""

    class Flat:
        """A source and a store that keep nothing."""

        unit = (8, 64, 64)

        def __init__(self, z):
            self.shape, self.n_channels = (z, 64, 64), 1

        def read(self, box):
            return np.ones((1, *box.shape), np.float32)

        def write(self, box, values):
            pass

        def sync(self):
            pass

    class Pointwise(kit.LocalRuntime):
        def __call__(self, batch):
            return np.concatenate([batch, -batch, batch], axis=1)

    def peak(z):
        flat, plan = Flat(z), make_plan((z, 64, 64), tile=(16, 32, 32))
        tracemalloc.start()
        try:
            execute(
                Execution(
                    plan=plan,
                    source=flat,
                    runtime=Pointwise(plan.tile),
                    decoder=Argmax(3),
                    grid=GridMap.make(plan.shape, plan.shape),
                    labels=flat,
                ),
                kit.Hearing(),
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(32)
    # How far reading is ahead of the network differs from run to run: the least of three counts.
    assert min(peak(640) for _ in range(3)) <= 1.1 * min(peak(64) for _ in range(3))


@pytest.mark.parametrize("shape", [(40, 33, 50), (10, 40, 40), (16, 16, 16), (7, 5, 9)])
def test_blended_logits_equal_monai(shape):
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1),
        torch.nn.InstanceNorm3d(8),
        torch.nn.LeakyReLU(),
        torch.nn.Conv3d(8, 4, 3, padding=1),
    ).eval()
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tile = (16, 16, 16)
    with torch.inference_mode():
        expected = inferers.sliding_window_inference(
            torch.from_numpy(data)[None, None], tile, 1, network, overlap=0.5, mode="gaussian"
        )[0].numpy()

    means = np.zeros((4, *shape), np.float32)
    plan = make_plan(shape, tile=tile, overlap_fraction=0.5)
    (column,) = plan.columns

    class Keeping(Argmax):
        needs_weight, n_probabilities = True, 0

        def decode(self, total, weight, labels, probabilities):
            kept.append(total / weight)
            labels[...] = total.argmax(axis=0)

    band = Band(Keeping(4), depth=tile[0], region=column.region, n_layers=shape[0])
    band._weight = np.zeros((band._depth, *column.region.shape), np.float32)
    weights = gaussian_weights(tile)
    padded = np.zeros(tile, np.float32)
    labels = []
    for row in plan.rows:
        for one in plan.tiles(column, row):
            inside = one.read.clamp(shape)
            padded[...] = 0
            padded[inside.relative_to(one.read).slices()] = data[inside.slices()]
            with torch.inference_mode():
                logits = network(torch.from_numpy(padded)[None, None])[0].numpy()
            band.add(logits, weights, one.read)
        kept = []
        labels.append(band.leave(*row.leave).labels)
        means[:, row.leave[0] : row.leave[1]] = np.stack(kept, axis=1)
    assert np.abs(means - expected).max() < 1e-4
    agreement = (np.concatenate(labels) == expected.argmax(axis=0)).mean()
    assert agreement >= 0.9999
