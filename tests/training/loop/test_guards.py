"""What stops a training, and what is left of it."""

import errno
import io
import json

import numpy as np
import pytest

from lamella.core.errors import (
    DeviceError,
    InputError,
    MissingDependencyError,
    RunError,
    StorageError,
)
from lamella.training import checkpoint
from lamella.training.checkpoint import read_checkpoint, write_checkpoint
from lamella.training.run import train_on


class FullDisk(io.RawIOBase):
    """A file on a disk that is full after some bytes."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return memoryview(data).nbytes


def test_a_loss_that_is_no_number_names_batch_and_file(
    make_config, make_source, make_task, tmp_path
):
    config = make_config(augmentation={"enabled": False})
    # Draws 8 to 15 are those of steps 5 to 8: a checkpoint at step 4 is there.
    with pytest.raises(RunError) as raised:
        train_on(config, make_source(poison=12), make_task(config), tmp_path / "run")
    text = str(raised.value)
    assert "the loss became nan at step 7" in text
    assert "patches 12, 13" in text
    assert "discs.tif" in text
    assert raised.value.details["patches"] == [12, 13]
    assert "last.ckpt" in raised.value.hint
    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert kept["state"]["step"] == 4
    assert all(value.isfinite().all() for value in kept["averaged"].values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert "nan" in summary["problem"]["message"]


def test_the_patch_with_nan_is_found_by_drawing_it_again(make_config, make_task):
    from lamella.training.augment import Sample
    from lamella.training.callbacks.guard import describe_patch
    from lamella.training.chunk_order import PatchOrder
    from lamella.training.patches import PatchDataset

    class Source:
        def draw(self, rng, shape):
            image = np.zeros((1, *shape), np.float32)
            image[0, 0, 0] = np.nan
            return Sample(image, np.zeros((1, *shape), int), np.ones((1, *shape), bool))

    dataset = PatchDataset(Source(), None, PatchOrder(seed=0, batch=1), (8, 8))
    assert describe_patch(dataset, 5) == "5 has NaN in 1 of 64 voxels"


def test_a_rate_that_explodes_stops(make_config, make_source, make_task, tmp_path):
    config = make_config(
        optimiser={"kind": "sgd", "learning_rate": 1e30, "max_gradient_norm": 0},
        schedule={"kind": "constant", "warmup_fraction": 0},
    )
    with pytest.raises(RunError, match=r"no number|became") as raised:
        train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert "learning_rate" in raised.value.hint


@pytest.mark.parametrize("room", [10, 5_000])
def test_a_full_disk_leaves_the_checkpoint_before(
    room, make_config, make_source, make_task, tmp_path, monkeypatch
):
    config, run = make_config(), tmp_path / "run"
    n_written = 0
    plain = checkpoint._Careful

    def careful(stream):
        nonlocal n_written
        n_written += 1
        return plain(stream) if n_written == 1 else plain(FullDisk(room))

    monkeypatch.setattr(checkpoint, "_Careful", careful)
    with pytest.raises(StorageError, match="disk is full") as raised:
        train_on(config, make_source(), make_task(config), run)
    assert "last.ckpt, is whole" in raised.value.hint
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["state"]["step"] == 4
    assert not list((run / "checkpoints").glob(".*"))


def test_a_full_disk_while_logging_keeps_the_checkpoint(
    make_config, make_source, make_task, tmp_path, monkeypatch
):
    def full(path, text):
        raise StorageError(f"the disk is full: {path} could not be written")

    config, run = make_config(), tmp_path / "run"
    monkeypatch.setattr("lamella.training.callbacks.pictures.write_text", full)
    with pytest.raises(StorageError, match=r"curves\.html"):
        train_on(config, make_source(), make_task(config), run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["state"]["step"] == 4


def test_checkpoints_execute_nothing(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="no readable checkpoint"):
        read_checkpoint(path)
    import torch

    torch.save({"format": 1, "state": Evil()}, path)
    with pytest.raises(InputError, match="no readable checkpoint"):
        read_checkpoint(path)


def test_checkpoints_of_another_format_are_refused(tmp_path):
    import torch

    path = tmp_path / "old.ckpt"
    torch.save({"format": 0}, path)
    with pytest.raises(InputError, match="no checkpoint of this version"):
        read_checkpoint(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_checkpoint(tmp_path / "file" / "last.ckpt", {})


def test_devices_that_are_not_there(make_config, make_source, make_task, tmp_path):
    for devices, error in (("64", DeviceError), ("tpu", InputError), ("0", InputError)):
        config = make_config(trainer={"devices": devices})
        with pytest.raises(error, match=r"trainer\.devices"):
            train_on(config, make_source(), make_task(config), tmp_path / "run")


def test_half_precision_needs_a_gpu(make_config, make_source, make_task, tmp_path):
    config = make_config(trainer={"precision": "fp16"})
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        train_on(config, make_source(), make_task(config), tmp_path / "run")


def test_a_logger_that_is_not_installed(make_config, make_source, make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lamella.training.callbacks.boards.is_importable", lambda name: name != "wandb"
    )
    config = make_config(trainer={"loggers": ["wandb"]})
    with pytest.raises(MissingDependencyError, match="wandb"):
        train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_patch_that_does_not_fit_names_one_that_does(
    make_config, make_source, make_task, tmp_path
):
    config = make_config(
        network={"id": "compact_unet2d", "arguments": {"widths": [4, 4, 4]}},
        trainer={"patch": [30, 32]},
    )
    with pytest.raises(InputError, match="does not fit") as raised:
        train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert "trainer.patch=[32,32]" in raised.value.hint


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"network": {"id": "compact_unet3d"}}, "takes axes 'zyx'"),
        ({"loss": {"deep_supervision": True}}, "no outputs at coarser scales"),
        ({"loss": {"class_weights": [1.0]}}, "class_weights has 1 numbers"),
        ({"loss": {"terms": [{"name": "dcie"}]}}, "no loss 'dcie'"),
        ({"network": {"id": "noisy", "pretrained": True}}, "no encoder with published"),
        ({"network": {"id": "noisy", "start": "no-such-model"}}, "no-such-model"),
    ],
)
def test_what_does_not_go_together(groups, message, make_config, make_source, make_task, tmp_path):
    config = make_config(**groups)
    with pytest.raises((InputError, LookupError), match=message):
        train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_worker_that_dies_is_one_clear_error():
    from lamella.training.patches import _next

    def batches():
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")
        yield

    with pytest.raises(RunError, match="died"):
        _next(batches())
