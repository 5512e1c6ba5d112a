"""``lamella train`` from outside: words in, exit codes and folders out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from lamella.cli import main
from lamella.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images with discs in two specimens, and their labels."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:48, :48]
    for name in ("a1", "b1", "c1", "d1"):
        labels = ((y - rng.integers(10, 38)) ** 2 + (x - rng.integers(10, 38)) ** 2 < 80) * 1
        image = rng.normal(100, 10, labels.shape) + 60 * labels
        for kind, array in (("images", image.astype(np.float32)), ("labels", labels.astype("u1"))):
            (folder / kind).mkdir(exist_ok=True)
            tifffile.imwrite(folder / kind / f"{name}.tif", array)
    return folder


def words(root, run, *more):
    return [
        "train", "em2d_semantic", f"data.root={root}", "task.classes=[disc]",
        "network=compact_unet2d", "network.arguments.widths=[4,8]", "trainer.patch=[32,32]",
        "trainer.batch_size=2", "trainer.steps=12", "trainer.validate_every=2",
        "trainer.devices=cpu", "trainer.threads=1", "trainer.workers=0", "model.tile=[32,32]",
        "trainer.loggers=[]", "trainer.precision=fp32", "--run-dir", str(run), *more,
    ]  # fmt: skip


def start(arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lamella", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(path: Path, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


def averaged(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["averaged"]


def test_trained_and_used_at_once(root, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("trainer.steps=60", "trainer.validate_every=30", "optimiser.learning_rate=0.02")
    assert main([*words(root, run, *more), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["state"] == "finished"
    assert document["result_scores"]["validation"]["disc"]["iou"] is not None
    assert err == ""
    code = main(
        ["segment", str(root / "images" / "a1.tif"), "--model", str(run),
         "--run-dir", str(tmp_path / "segmented"), "-q"]
    )  # fmt: skip
    assert code == 0


def test_killed_at_any_moment_it_goes_on_exactly(root, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words(root, whole), "-q"]) == 0
    process = start(words(root, cut))
    wait_for(cut / "checkpoints" / "last.ckpt")
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert main(["train", "--resume", str(cut), "-q"]) == 0
    for name, value in averaged(whole).items():
        assert torch.equal(value, averaged(cut)[name]), name
    assert (whole / "model" / "weights.safetensors").read_bytes() == (
        cut / "model" / "weights.safetensors"
    ).read_bytes()
    sessions = json.loads((cut / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 2
    capsys.readouterr()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(number, workers, root, tmp_path):
    run = tmp_path / "run"
    process = start(
        words(root, run, "trainer.steps=100000", f"trainer.workers={workers}"),
        start_new_session=True,
    )
    wait_for(run / "checkpoints" / "last.ckpt")
    # A terminal tells the whole group, workers too.
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"lamella train --resume {run}" in err
    assert json.loads((run / "summary.json").read_text())["state"] == "stopped"


def test_two_processes_learn_what_one_learns(tmp_path):
    """Instance norm, all voxels valid, SGD: then two devices are a batch of twice the size."""
    rng = np.random.default_rng(7)
    for name in "abcd":
        labels = np.zeros((24, 24, 24), "u1")
        labels[6:14, rng.integers(2, 10) : 18, 4:20] = 1
        image = (rng.normal(0, 1, labels.shape) + 3 * labels).astype(np.float32)
        for kind, array in (("images", image), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / kind / f"{name}.tif", array, metadata={"axes": "ZYX"},
                             imagej=True)  # fmt: skip

    def arguments(run, *more):
        return [
            "train", "volume_semantic", f"data.root={tmp_path}", "task.classes=[block]",
            "network=dynunet", "network.arguments.filters=[4,8,8]",
            "network.arguments.strides=[1,2,2]", "network.arguments.kernel_sizes=[3,3,3]",
            "loss=cross_entropy", "optimiser=sgd", "augmentation=none",
            "trainer.patch=[16,16,16]", "trainer.steps=4",
            "trainer.validate_every=2", "trainer.workers=0", "trainer.threads=1",
            "trainer.precision=fp32", "trainer.loggers=[]", "model.example=false",
            "--run-dir", str(run), "-q", *more,
        ]  # fmt: skip

    process = start(arguments(tmp_path / "two", "trainer.devices=cpu:2", "trainer.batch_size=1"))
    assert main(arguments(tmp_path / "one", "trainer.devices=cpu", "trainer.batch_size=2")) == 0
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("trained 4 steps") == 1
    one, two = averaged(tmp_path / "one"), averaged(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5)
    rows = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainer.step=3"], "did you mean trainer.steps"),
        (["lr=3"], "did you mean optimiser.learning_rate"),
        (["network=unet_resnet81"], "did you mean unet_resnet18"),
        (["trainer.steps=0"], "greater than or equal to 1, got 0"),
        (["trainer.precision=fp8"], "got 'fp8'"),
        (["network.arguments.widhts=[4]"], "did you mean widths"),
        (["nonsense"], "has no '='"),
        (["data.root=/no/such/folder"], "no/such/folder"),
    ],
)
def test_what_is_wrong_is_one_clear_error(changes, message, root, tmp_path, capsys):
    assert main(words(root, tmp_path / "run", *changes)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_does_not_exist(capsys):
    assert main(["train", "em2d_semantc"]) == 2
    assert "did you mean em2d_semantic" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "--list-configs" in capsys.readouterr().err
    assert main(["train", "em2d_semantic"]) == 2
    assert "must be given" in capsys.readouterr().err


def test_the_whole_configuration_is_printed(root, tmp_path, capsys):
    arguments = [*words(root, tmp_path / "run"), "--print-config"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "validate_every: 2" in text
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trainer"]["validate_every"] == 2


def test_configurations_are_listed(capsys):
    assert main(["train", "--list-configs", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "em2d_semantic" in document["configs"]
    assert "mednext_s" in document["pieces"]["network"]


def test_a_learning_rate_is_found(root, tmp_path, capsys):
    run = tmp_path / "run"
    code = main([*words(root, run), "--find-learning-rate", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (0 if document["suggestion"] else 3)
    assert (run / "learning_rate.png").is_file()
    # The picture does not stand in the way of the training.
    assert main([*words(root, run, "trainer.steps=2"), "-q"]) == 0


def test_one_batch(root, tmp_path, capsys):
    more = ("optimiser.learning_rate=0.02", "--overfit-one-batch")
    assert main(words(root, tmp_path / "run", *more)) == 0
    assert "the network can learn this" in capsys.readouterr().out
    assert main(words(root, tmp_path / "run", "optimiser.learning_rate=1e-9", *more[1:])) == 3
    assert "does not learn even one batch" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from lamella.cli import main; main(['train', '--help']);"
        "print([m for m in ('torch', 'lightning', 'hydra', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]")
