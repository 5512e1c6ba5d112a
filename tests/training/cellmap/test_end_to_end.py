"""From crops to a submission on the command line, with a tiny network and a few steps."""

import json
import zipfile

import numpy as np
import pytest

from lamella.cli.app import main
from lamella.training.compose import compose

pytest.importorskip("lightning")

SMALL = [
    "data.spacing=[50,18.4,18.4]", "data.split.by=file", "network=compact_unet3d",
    "network.arguments.widths=[4,8]", "trainer.patch=[8,32,32]", "trainer.steps=4",
    "trainer.validate_every=2", "trainer.batch_size=2", "trainer.precision=fp32",
    "trainer.workers=0", "trainer.devices=cpu", "trainer.loggers=[]",
]  # fmt: skip


@pytest.fixture
def mini(data_dir):
    return str(data_dir / "em" / "cellmap_mini")


def answer(capsys, *words):
    """The JSON answer of a command that has to succeed."""
    code = main([*words, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def test_train_predict_score_and_pack(mini, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.zarr"
    words = ["cellmap", "train", f"data.root={mini}", *SMALL, "data.crops=[crop101,crop103]"]
    summary = answer(capsys, *words, "--run-dir", str(run))
    assert summary["state"] == "finished"
    card = json.loads((run / "model" / "model.json").read_text())
    assert card["spacing"]["values"] == [50.0, 18.4, 18.4]
    assert card["normalisation"]["kind"] == "fixed"
    assert card["normalisation"]["mean"] == 127.5
    assert card["decoder"]["kind"] == "threshold"
    predict = ["cellmap", "predict", str(run), mini, "-o", str(out), "--crops", "crop103,crop9"]
    made = answer(capsys, *predict)
    assert {one["class"]: one["was_there"] for one in made["labels"]} == {
        "mito": False,
        "pm": False,
    }
    assert all(one["was_there"] for one in answer(capsys, *predict)["labels"])
    score = answer(capsys, "cellmap", "score", str(out), mini, "--crop", "crop103")
    assert set(score["official"]["classes"]) == {"mito", "perox"}
    assert {c["class"]: c["is_missing"] for c in score["crops"]} == {"mito": False, "perox": True}
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "103,jrc_vnc-a,pm,[50.0;2.3;2.3],[250.0;274.85;2942.85],[10;200;280]\n"
        "103,jrc_vnc-a,mito,[50.0;4.6;4.6],[250.0;276.0;2944.0],[10;100;140]\n"
    )
    zipped = str(tmp_path / "submission.zip")
    packed = answer(capsys, "cellmap", "pack", str(out), zipped, "--manifest", str(manifest))
    assert packed["n_labels"] == 2
    names = zipfile.ZipFile(zipped).namelist()
    assert "submission.zarr/crop103/mito/.zattrs" in names
    assert main([*predict[:-1], "crop9*"]) != 0


def test_segment_sees_what_the_training_saw(mini, tmp_path):
    """Raw data that `lamella segment` opens give the network the numbers of a patch."""
    from lamella.inference.normalise import NormalisedSlabs, Normaliser
    from lamella.inference.resample import ResampledSlabs, target_shape
    from lamella.inference.slab import VolumeSlabs
    from lamella.inference.statistics import Statistics
    from lamella.io.format import OpenOptions, open_volume
    from lamella.training.sources import build_source
    from lamella.volume.box import Box

    config = compose(
        "cellmap_base", [f"data.root={mini}", *SMALL, "data.spacing=[50,11.776,11.776]"]
    )
    source = build_source(config)
    region = source.regions("validation")[0]
    place = region._place
    view = source.view(place)
    raw = f"{mini}/jrc_vnc-a/jrc_vnc-a.zarr/recon-1/em/fibsem-uint8"
    volume = open_volume(raw, OpenOptions(level=int(view.raw.path[-1])))
    slabs = VolumeSlabs(volume)
    shape = target_shape(
        slabs.shape, volume.spacing.to("nm").values, (50, 11.776, 11.776), tolerance=0.1
    )
    numbers = Statistics(None, None, None, None)
    normaliser = Normaliser.resolve(source.info.normalisation, numbers)
    seen = ResampledSlabs(NormalisedSlabs(slabs, normaliser), (shape[0], shape[1], shape[2]))
    found = region.read(Box.from_shape(region.shape)).image
    expected = seen.read(view.reach)
    # 512 voxels of 9.2 nm are 400 of 11.776: the whole volume has these, and so has a part of it.
    assert shape[1:] == (400, 400)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["cellmap_base", "cellmap_cos7", "cellmap_mito"])
def test_configurations_are_whole(name):
    config = compose(name, ["data.root=somewhere"])
    assert config.normalisation.kind == "fixed"
    assert config.network.id.startswith("mednext")
    assert all(n % 32 == 0 for n in config.trainer.patch)
    small = compose(name, ["data.root=somewhere", "network=compact_unet3d"])
    assert small.network.id == "compact_unet3d"
    # Classes of the challenge overlap: no softmax.
    assert config.task.kind in ("multilabel", "boundary")


def test_objects_from_crops(mini, tmp_path, capsys):
    """The configuration of single mitochondria, to ids on disk."""
    run, out = tmp_path / "run", tmp_path / "out.zarr"
    words = ["train", "cellmap_mito", f"data.root={mini}", *SMALL, "data.crops=[crop101,crop103]"]
    answer(capsys, *words, "trainer.steps=2", "model.example=false", "--run-dir", str(run))
    made = answer(
        capsys, "cellmap", "predict", str(run), mini, "-o", str(out), "--crop", "crop103",
        "--min-size", "100000nm3",
    )  # fmt: skip
    assert [one["class"] for one in made["labels"]] == ["mito"]
    assert made["labels"][0]["n_objects"] is not None


def test_train_takes_the_words_of_train(capsys, tmp_path):
    for words, name in (
        (["data.root=x", "--print-config"], "cellmap-base"),
        (["--run-dir", str(tmp_path), "data.root=x", "--print-config"], "cellmap-base"),
        (["cellmap_mito", "--print-config", "data.root=x"], "cellmap-mito"),
        (["--print-config", "cellmap_cos7", "data.root=x"], "cellmap-cos7"),
    ):
        assert answer(capsys, "cellmap", "train", *words)["model"]["id"] == name
    assert main(["cellmap", "train", "data.root=x", "data.spaceing=[1,1,1]", "--print-config"]) == 2
    assert "data.spacing" in capsys.readouterr().err
    assert main(["cellmap", "train", "data.root=x", "data.spacing=[8,8,0]", "--print-config"]) == 2
