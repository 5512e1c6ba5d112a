"""Blocks: the labels are those of a run in one piece, whoever runs what, cut however and when."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import EngineError, InputError, RunCancelledError, RunError
from lamella.core.progress import SilentSink
from lamella.engines.lamella.blocks import check_same, runtime_text
from lamella.inference.decode import Argmax
from lamella.inference.execute import Execution, count_tiles, execute, execute_block
from lamella.inference.layers import GridMap
from lamella.inference.plan import make_plan
from lamella.inference.slab import VolumeSlabs
from lamella.io.format import save_volume
from lamella.volume import Volume
from lamella.volume.box import Box
from lamella.wire.card import DecoderDoc
from lamella.wire.event import ProgressEvent
from lamella.wire.request import InputDoc, SegmentRequest
from lamella.workflows import blocks
from lamella.workflows.blocks import BlockOptions, run_block
from lamella.workflows.segment import RunOptions, segment


class Here:
    """Runs blocks in this process, in any order; answers what it is told to for some."""

    def __init__(self, *, n_workers=2, order=1, broken=None):
        self.n_workers = n_workers
        self.order = order
        self.broken = broken or {}
        self.ran = []

    def run(self, function, documents):
        assert function == blocks.FUNCTION
        for number in list(documents)[:: self.order]:
            # What goes to a worker is JSON.
            document = json.loads(json.dumps(documents[number]))
            yield None
            if number in self.broken:
                yield number, self.broken[number]
            else:
                yield number, run_block(document)
            self.ran.append(number)


@pytest.fixture(scope="module")
def path(tmp_path_factory, scattered_balls):
    image = scattered_balls((80, 72, 64), n_balls=30, seed=0)
    volume = Volume.from_array(image, spacing=(4.0, 2.0, 2.0), unit="nm")
    return save_volume(volume, tmp_path_factory.mktemp("blocks") / "big.mrc")


def request_for(path, model, **values):
    return SegmentRequest(input=InputDoc(path=str(path)), model=str(model), preview=False, **values)


@pytest.fixture
def make_model(lamella_models):
    def make(folder, **values):
        lamella_models.make_folder(folder, **values)
        return folder

    return make


def run(request, folder, runner=None, *, extent=(16, 128, 128), sink=None, **options):
    cut = None if runner is None else BlockOptions(runner, extent)
    return segment(request, RunOptions(folder, blocks=cut, **options), sink=sink)


def everything(result):
    """What a run says of the volume."""
    return (
        result.manifest.labels.sha256,
        result.manifest.labels.n_objects,
        (result.folder / "objects.csv").read_text(),
    )


# --- The loop: any cut --------------------------------------------------------------------------


class Blur:
    """A "network" whose output depends on everything in a tile."""

    name, version, device, precision, n_outputs = "blur", "1", "cpu", "fp32", 2

    def __init__(self, tile):
        self.batch_shape = (1, 1, *tile)

    def __call__(self, batch):
        values = batch[0, 0]
        smooth = sum(np.roll(values, n, axis) for axis in range(3) for n in (-1, 0, 1))
        return np.stack([np.zeros_like(smooth), smooth - values.mean()])[None]


class Memory:
    """Labels in memory; every storage unit is written once."""

    unit = (4, 8, 8)

    def __init__(self, shape):
        self.array = np.full(shape, 255, np.uint8)

    def write(self, box, values):
        assert (self.array[box.slices()] == 255).all(), "written twice"
        assert all(
            a % u == 0 and (b % u == 0 or b == n)
            for a, b, u, n in zip(box.start, box.stop, self.unit, self.array.shape, strict=True)
        )
        self.array[box.slices()] = values

    def sync(self):
        pass


class Quiet:
    def check(self):
        pass

    def tiles(self, done, total, eta_s):
        self.counted = (done, total)

    def finished(self, box):
        pass


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(5, 40), st.integers(5, 30), st.integers(5, 30)),
    depth=st.sampled_from([4, 8, 12, 40]),
    edge=st.sampled_from([8, 16, 32]),
    tile=st.sampled_from([(8, 8, 8), (16, 8, 16)]),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    blend=st.sampled_from(["gaussian", "crop"]),
    network=st.sampled_from([1.0, 0.5, 1.7]),
)
def test_blocks_together_are_the_whole(shape, depth, edge, tile, overlap, blend, network):
    grid_shape = tuple(max(2, round(n * network)) for n in shape)
    image = np.random.default_rng(1).normal(size=grid_shape).astype(np.float32)
    execution = Execution(
        plan=make_plan(grid_shape, tile=tile, overlap_fraction=overlap, blend=blend),
        source=VolumeSlabs(Volume.from_array(image)),
        runtime=Blur(tile),
        decoder=Argmax(2),
        grid=GridMap.make(shape, grid_shape),
        labels=None,
    )
    whole, parts = Memory(shape), Memory(shape)
    execute(
        replace(
            execution,
            labels=whole,
            plan=replace(
                execution.plan,
                columns=(replace(execution.plan.columns[0], output=Box((0, 0), shape[1:])),),
            ),
        ),
        Quiet(),
    )
    cut = [
        Box(
            (z, y, x),
            tuple(min(a, n) for a, n in zip((z + depth, y + edge, x + edge), shape, strict=True)),
        )
        for z in range(0, shape[0], depth)
        for y in range(0, shape[1], edge)
        for x in range(0, shape[2], edge)
    ]
    part = replace(execution, labels=parts)
    for box in reversed(cut):
        listener = Quiet()
        count = execute_block(part, box, listener)
        assert count.done == count.planned == count_tiles(part, box)
        assert listener.counted == (count.done, count.planned)
    np.testing.assert_array_equal(parts.array, whole.array)


# --- Whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", ["none", "components"])
def test_a_run_in_blocks_is_the_run(path, model_path, tmp_path, instances):
    request = request_for(path, model_path, instances=instances)
    whole = run(request, tmp_path / "whole.run")
    for name, extent, order in (("a", (16, 128, 128), 1), ("b", (32, 64, 64), -1), ("c", None, 1)):
        runner = Here(order=order)
        result = run(request, tmp_path / f"{name}.run", runner, extent=extent)
        assert everything(result) == everything(whole)
        assert len(runner.ran) > 1
        assert result.manifest.tiles_done == result.manifest.tiles_planned
        assert result.manifest.tiles_planned >= whole.manifest.tiles_planned


def test_confidence_comes_in_blocks_too(path, model_path, tmp_path):
    import zarr

    request = request_for(path, model_path, instances="components", confidence=True)
    whole, parts = run(request, tmp_path / "a.run"), run(request, tmp_path / "b.run", Here())
    maps = [zarr.open_array(str(each.folder / "confidence.zarr"))[:] for each in (whole, parts)]
    np.testing.assert_array_equal(*maps)
    assert everything(parts) == everything(whole)


@pytest.fixture
def nuclei(tmp_path, make_model):
    weights = np.zeros((2, 1, 3, 3, 3))
    weights[:, :, 1, 1, 1] = 4.0
    return make_model(
        tmp_path / "model",
        weights=weights,
        bias=(-8.0, -12.0),
        decoder=DecoderDoc(kind="boundary_watershed"),
    )


IN_BLOCKS = {"object_block": 32, "object_halo": 24}


def test_instances_of_a_network_come_in_blocks_too(path, tmp_path, nuclei):
    asked = request_for(path, nuclei, instances="watershed")
    whole, parts = run(asked, tmp_path / "a.run"), run(asked, tmp_path / "b.run", Here())
    assert everything(parts) == everything(whole)
    assert whole.manifest.options_resolved["object_block"] is None


def test_objects_found_in_blocks_are_those_of_the_whole(path, tmp_path, nuclei):
    whole = run(request_for(path, nuclei), tmp_path / "a.run")
    asked = request_for(path, nuclei, options=IN_BLOCKS)
    alone, runner = run(asked, tmp_path / "b.run"), Here(order=-1)
    parts = run(asked, tmp_path / "c.run", runner)
    assert everything(alone) == everything(whole)
    assert everything(parts) == everything(whole)
    assert whole.manifest.labels.n_objects > 10
    assert alone.manifest.options_resolved["object_block"] == [32, 72, 64]
    # The network's blocks, then the objects'.
    assert len(runner.ran) == 5 + 3
    assert not (parts.folder / "objects.blocks").exists()


def test_finding_objects_goes_on_block_by_block(path, tmp_path, nuclei):
    asked = request_for(path, nuclei, options=IN_BLOCKS)

    class SecondStage(Here):
        def run(self, function, documents):
            self.broken = {}
            if "objects" in next(iter(documents.values()))["plan"]:
                self.broken = {1: RunError("no memory")}
            return super().run(function, documents)

    with pytest.raises(
        RunError, match=r"block 2 of 3 of the stage 'instances' \(voxels 32-64 .*no memory"
    ) as failed:
        run(asked, tmp_path / "a.run", SecondStage())
    assert failed.value.details["stage"] == "instances"
    runner = Here()
    result = run(asked, tmp_path / "a.run", runner)
    assert runner.ran == [1, 2]
    assert everything(result) == everything(run(asked, tmp_path / "b.run"))


def test_what_was_found_in_blocks_stays_when_a_run_in_one_piece_stops(path, tmp_path, nuclei):
    asked = request_for(path, nuclei, options=IN_BLOCKS)

    found = tmp_path / "a.run" / "objects.blocks" / "0" / "zarr.json"

    class StopAtSecond(SilentSink):
        def check(self):
            if found.exists():
                raise RunCancelledError("stopped")

    with pytest.raises(RunCancelledError):
        run(asked, tmp_path / "a.run", sink=StopAtSecond())
    assert found.exists()
    result = run(asked, tmp_path / "a.run")
    assert everything(result) == everything(run(asked, tmp_path / "b.run"))


def test_a_halo_wider_than_a_block_is_refused(path, tmp_path, nuclei):
    options = {"object_block": 32, "object_halo": 33}
    with pytest.raises(InputError, match="object_halo=33 is wider than blocks of 32 x"):
        run(request_for(path, nuclei, options=options), tmp_path / "a.run")


def test_the_manifest_says_how_the_volume_was_cut(path, model_path, tmp_path):
    result = run(request_for(path, model_path), tmp_path / "a.run", Here(), extent=(32, 128, 128))
    facts = {"n": 3, "extent": [32, 72, 64], "workers": 2}
    assert result.manifest.options_resolved["blocks"] == facts


def test_progress_counts_tiles_of_blocks_that_run(path, model_path, tmp_path):
    seen = []

    class Ear(SilentSink):
        def emit(self, event):
            if getattr(event, "stage", "") == "tiles":
                seen.append((event.done, event.total))

    class Slow(Here):
        def run(self, function, documents):
            run_dir = Path(documents[0]["run_dir"])
            worker = blocks._WorkerSink(run_dir, "", 0)
            worker._told = 0.0
            worker.emit(ProgressEvent(stage="tiles", done=2, total=9, unit="tiles"))
            (run_dir / "blocks.progress" / "1").write_text("")
            time.sleep(1.1)
            yield None
            yield from super().run(function, documents)

    run(request_for(path, model_path), tmp_path / "a.run", Slow(), sink=Ear())
    assert seen[0][0] == 0
    assert seen[1] == (2, seen[0][1])
    assert seen[-1] == (seen[0][1], seen[0][1])
    assert not (tmp_path / "a.run" / "blocks.progress").exists()


# --- Stopping, failing, going on ----------------------------------------------------------------


def test_a_failed_block_is_a_failed_run_that_names_it(path, model_path, tmp_path):
    request = request_for(path, model_path)
    broken = {2: {"problem": {"code": "engine_failed", "message": "no memory", "hint": "buy some"}}}
    with pytest.raises(
        RunError, match=r"block 3 of 3 \(voxels 64-80 x 0-72 x 0-64, z y x\) failed: no memory"
    ) as failed:
        run(request, tmp_path / "a.run", Here(broken=broken), extent=(32, 128, 128))
    assert failed.value.hint == "buy some"
    assert failed.value.details["block"] == 2
    manifest = json.loads((tmp_path / "a.run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "block 3" in manifest["problem"]["message"]
    # The others are kept.
    runner = Here()
    result = run(request, tmp_path / "a.run", runner, extent=(32, 128, 128))
    assert runner.ran == [2]
    assert everything(result) == everything(run(request, tmp_path / "whole.run"))


def test_a_worker_that_is_gone_is_a_failed_block(path, model_path, tmp_path):
    with pytest.raises(RunError, match=r"block 1 of 3 .* the worker died"):
        run(
            request_for(path, model_path),
            tmp_path / "a.run",
            Here(broken={0: RunError("the worker died", hint="more memory")}),
            extent=(32, 128, 128),
        )


class StopAfter(SilentSink):
    def __init__(self, n):
        self.n = n

    def check(self):
        self.n -= 1
        if self.n < 0:
            raise RunCancelledError("stopped")


def test_a_stopped_run_goes_on_block_by_block(path, model_path, tmp_path):
    request = request_for(path, model_path)
    whole = run(request, tmp_path / "whole.run")
    total = 0
    for n in range(1, 200, 6):
        runner = Here()
        try:
            result = run(request, tmp_path / "a.run", runner, sink=StopAfter(n))
        except RunCancelledError:
            total += len(runner.ran)
            continue
        total += len(runner.ran)
        break
    assert everything(result) == everything(whole)
    # A block is run again only if the stop came between its answer and the journal.
    assert total <= 5 + 2


def test_a_journal_that_was_cut_counts_what_is_whole(path, model_path, tmp_path):
    request = request_for(path, model_path)
    broken = {4: RunError("no")}
    with pytest.raises(RunError):
        run(request, tmp_path / "a.run", Here(broken=broken))
    journal = tmp_path / "a.run" / "blocks.jsonl"
    journal.write_bytes(journal.read_bytes()[:-4])
    runner = Here()
    result = run(request, tmp_path / "a.run", runner)
    assert runner.ran == [3, 4]
    assert everything(result) == everything(run(request, tmp_path / "whole.run"))


def test_another_cut_begins_anew(path, model_path, tmp_path):
    request = request_for(path, model_path)
    with pytest.raises(RunError):
        run(request, tmp_path / "a.run", Here(broken={4: RunError("no")}))
    runner = Here()
    result = run(request, tmp_path / "a.run", runner, extent=(32, 128, 128))
    assert runner.ran == [0, 1, 2]
    assert everything(result) == everything(run(request, tmp_path / "whole.run"))


def test_what_was_begun_in_blocks_goes_on_without_workers(path, model_path, tmp_path):
    """As `lamella resume` does: nothing that is finished is run again."""
    request = request_for(path, model_path)
    with pytest.raises(RunError):
        run(request, tmp_path / "a.run", Here(broken={4: RunError("no")}))
    result = run(request, tmp_path / "a.run")
    assert everything(result) == everything(run(request, tmp_path / "whole.run"))
    said = (tmp_path / "a.run" / "events.jsonl").read_text()
    assert "going on: 4 of 5 blocks are on disk already" in said
    assert result.manifest.options_resolved["blocks"]["workers"] == 1


@pytest.mark.parametrize("text", ["", "{}\n{}\n", "[1]\n", '{"blocks": []}\n{"block": 0}\n'])
def test_a_journal_that_says_nothing_is_no_run_in_blocks(tmp_path, text):
    (tmp_path / "blocks.jsonl").write_text(text)
    assert blocks.left_in_blocks(tmp_path) is None


def test_what_was_begun_in_one_piece_goes_on_in_blocks(path, model_path, tmp_path):
    request = request_for(path, model_path)
    with pytest.raises(RunCancelledError):
        run(request, tmp_path / "a.run", sink=StopAfter(20))
    result = run(request, tmp_path / "a.run", Here())
    assert everything(result) == everything(run(request, tmp_path / "whole.run"))


def test_workers_stop_when_the_run_does(tmp_path):
    sink = blocks._WorkerSink(tmp_path, "mine", 0)
    sink.check()
    (tmp_path / "blocks.stop").write_text("of an earlier session")
    sink._next = 0.0
    sink.check()
    (tmp_path / "blocks.stop").write_text("mine")
    sink._next = 0.0
    with pytest.raises(RunCancelledError):
        sink.check()


# --- What cannot be -----------------------------------------------------------------------------


def test_an_array_in_memory_is_refused(model_path, volume, tmp_path):
    with pytest.raises(InputError, match="in memory cannot be cut") as refused:
        segment(
            request_for("memory:a", model_path),
            RunOptions(tmp_path / "a.run", blocks=BlockOptions(Here())),
            volume=volume,
        )
    assert "save it first" in refused.value.hint
    assert not (tmp_path / "a.run").exists()


def test_an_engine_that_cannot_is_refused(path, tmp_path):
    with pytest.raises(InputError, match="'classical' cannot cut a volume into blocks"):
        run(request_for(path, "classical:otsu"), tmp_path / "a.run", Here())


def test_other_libraries_on_a_worker_are_refused():
    class Opened:
        runtime = Blur((1, 1, 1))
        version = "2025.1"

    assert runtime_text(Opened()) == "blur 2025.1 cpu fp32"
    with pytest.raises(EngineError, match=r"blur 2025.1 cpu fp32, the others with blur 2024"):
        check_same({"runtime": "blur 2024.6 cpu fp32"}, Opened())


def test_another_model_on_a_worker_is_a_failed_block(path, model_path, tmp_path):
    class OtherModel(Here):
        def run(self, function, documents):
            for document in documents.values():
                document["plan"] = {**document["plan"], "model": "0" * 64}
            return super().run(function, documents)

    with pytest.raises(RunError, match=r"block 1 of .* is another one"):
        run(request_for(path, model_path), tmp_path / "a.run", OtherModel())


def test_run_folders_are_named_absolutely(path, model_path, tmp_path):
    seen = []

    class Look(Here):
        def run(self, function, documents):
            seen.extend(documents.values())
            return super().run(function, documents)

    run(request_for(path, model_path), tmp_path / "a.run", Look())
    assert all(Path(document["run_dir"]).is_absolute() for document in seen)
