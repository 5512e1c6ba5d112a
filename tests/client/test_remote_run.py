"""``lamella segment X --server URL`` is ``lamella segment X``: option by option, input by input."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import MODEL, done, lamella, same
from PIL import Image

import lamella as lm
from lamella.cli import main
from lamella.cli.segment import command as segment_command
from lamella.cli.segmenting import build_request
from lamella.cli.submit import command as submit_command
from lamella.wire.job import JobSpec

OTSU = "classical:otsu"


def test_remote_is_local(server, home, quiet, tomogram, tmp_path):
    words = ("segment", tomogram, "--model", MODEL, "--server", server.url)
    places = ("--run-dir", tmp_path / "r.run", "-o", tmp_path / "labels.mrc")
    out, err = done(lamella(home, *words, *places))
    assert "tomo.mrc: finished" in out
    assert "preview.ome.zarr" in err
    same(lm.open_run(tmp_path / "r.run"), quiet)
    written = lm.open(tmp_path / "labels.mrc")
    assert np.array_equal(np.asarray(written.data[...]), quiet.labels.load())
    # The server's own word for it, and the same command again.
    out, _ = done(lamella(home, *words, "--run-dir", tmp_path / "r.run", "--json"))
    answer = json.loads(out)["runs"][0]
    assert answer["was_finished"]
    assert answer["labels_sha256"] == quiet.manifest.labels.sha256
    # A local command sees the same finished run.
    assert lm.segment(tomogram, MODEL, run_dir=tmp_path / "r.run").was_finished


# --- Every option travels -----------------------------------------------------------------------

VALUES = {
    "model": "classical:li", "engine": "classical", "options": "threshold=3", "tile": "16,32,32",
    "overlap_fraction": "0.3", "tta": None, "precision": "bf16", "device": "cpu",
    "deterministic": None, "modality": "CT", "instances": "hybrid", "min_overlap_ratio": "0.4",
    "max_distance_z": "3", "max_centroid_distance": "5nm", "seed_distance": "3nm",
    "min_size": "20nm3", "fill_holes": None, "keep_largest": None, "confidence": None,
    "restore": "deblur", "restore_method": "richardson_lucy", "restore_strength": "2",
    "psf_sigma": "2nm", "preview": False, "spacing": "2,1,1", "unit": "nm", "dataset": "a/b",
    "series": "1", "level": "1", "channel": "1", "time": "1", "axes": "zyx",
    "resample_irregular": None,
}  # fmt: skip
"""A value of every option of a request that is not its default; ``psf`` is tested with a file."""
SERVERS = {"server", "token", "pin", "insecure"}
HERE = {"inputs", "output", "run_dir", "resume", "overwrite", "as_json", "quiet"}
NOT_THERE = {"trust", "block", "block_workers", "scheduler", "cluster", "cluster_options"}
"""The server's own business: refused by name together with ``--server``."""


def flags(command, name):
    option = next(one for one in command.params if one.name == name)
    value = VALUES[name]
    if value is False:
        return [option.secondary_opts[0]]
    return [option.opts[0]] + ([] if value is None else [value])


def names_of(command):
    return {option.name for option in command.params}


def test_no_option_is_forgotten():
    assert names_of(segment_command) == SERVERS | HERE | NOT_THERE | set(VALUES) | {"psf"}
    assert names_of(submit_command) >= set(VALUES) | {"psf"} | SERVERS


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_option_reaches_the_server(name, fake, live, image_path, monkeypatch, tmp_path):
    """The request that is posted is the one that would have been run here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    needed = {
        "unit": ["spacing"], "psf_sigma": ["restore"], "restore_method": ["restore"],
        "restore_strength": ["restore"],
    }  # fmt: skip
    words = [] if name == "model" else ["--model", OTSU]
    for one in [*needed.get(name, []), name]:
        words += flags(submit_command, one)
    parsed = submit_command.make_context("submit", [str(image_path), *words]).params
    wanted = build_request(image_path, dict(parsed))
    default = build_request(
        image_path,
        dict(submit_command.make_context("submit", [str(image_path), "--model", OTSU]).params),
    )
    assert wanted != default, "the value is the default one: nothing is tested"
    if name not in ("series", "level", "channel", "time", "dataset", "axes"):
        assert main(["submit", str(image_path), *words, "--server", live, "--json"]) == 0
        (job,) = fake.jobs.values()
        posted = JobSpec.model_validate(job.spec).request
    else:
        # The image has no series: what would be posted, then.
        posted = JobSpec(request=wanted).request
    own = posted.model_copy(update={"input": wanted.input})
    assert own == wanted
    assert posted.input.model_copy(update={"path": ""}) == wanted.input.model_copy(
        update={"path": ""}
    )


@pytest.mark.parametrize(
    "words", [["--trust"], ["--block-workers", "2"], ["--scheduler", "tcp://x:1"]]
)
def test_what_is_the_servers_business_is_refused(words, image_path, capsys, live, tmp_path):
    run = ["segment", str(image_path), "--model", OTSU, "--run-dir", str(tmp_path / "r.run")]
    assert main([*run, "--server", live, *words]) == 2
    assert "server" in capsys.readouterr().err
    assert not (tmp_path / "r.run").exists()


# --- The same result ----------------------------------------------------------------------------


def both(server, tmp_path, capsys, *words):
    """Runs of one command here and there; both wrote what ``-o`` says."""
    runs = []
    for name, where in (("local", ()), ("remote", ("--server", server.url))):
        folder = tmp_path / name
        folder.mkdir()
        place = ["--run-dir", str(folder / "a.run")]
        own = [str(word).replace("OUT", str(folder)) for word in words]
        code = main(["segment", *own, *place, *where])
        assert code == 0, capsys.readouterr().err
        runs.append(lm.open_run(folder / "a.run"))
    local, remote = runs
    # They differ in where they were written, and in nothing else.
    outputs = remote.manifest.outputs.get("export"), local.manifest.outputs.get("export")
    assert (outputs[0] is None) == (outputs[1] is None)
    if outputs[0] is not None:
        written = [lm.open(path) for path in outputs]
        assert written[0].same_grid(written[1])
        assert np.array_equal(*(np.asarray(one.data[...]) for one in written))
    same(remote, local)
    return remote


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Blobs, float32, 12 x 40 x 40."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(1).normal(0, 1, (12, 40, 40))
    values = gaussian_filter(noise, 2).astype(np.float32)
    volume = lm.Volume.from_array(values / values.std(), spacing=(2.0, 1.0, 1.0), unit="nm")
    return lm.save(volume, tmp_path_factory.mktemp("small") / "small.mrc")


@pytest.mark.parametrize(
    "words",
    [
        ("--model", OTSU, "--instances", "components", "--min-size", "30nm3", "--spacing", "2,1,1",
         "--unit", "nm", "--fill-holes", "-o", "OUT/labels.nii.gz"),
        ("--model", MODEL, "--tile", "16,32,32", "--overlap-fraction", "0.3", "--tta",
         "--instances", "watershed", "--seed-distance", "3nm", "--keep-largest", "--no-preview"),
        ("--model", MODEL, "--confidence", "--precision", "bf16", "-o", "OUT/labels.ome.zarr"),
        ("--model", OTSU, "--restore", "denoise", "--restore-method", "non_local_means",
         "-o", "OUT/labels.nrrd"),
        ("--model", "nuclei-2d", "--instances", "hybrid", "--max-distance-z", "2",
         "-o", "OUT/labels.tif"),
    ],
    ids=["objects", "tiles", "confidence", "denoise", "linked"],
)  # fmt: skip
def test_options_give_the_same(server, as_user, small, words, tmp_path, capsys):
    both(server, tmp_path, capsys, small, *words)


def test_a_measured_point_spread_function_travels(server, as_user, small, tmp_path, capsys):
    grid = np.indices((7, 7, 7)) - 3
    psf = np.exp(-0.5 * (grid**2).sum(0) / 1.5**2).astype(np.float32)
    path = lm.save(lm.Volume.from_array(psf, spacing=(2.0, 1.0, 1.0), unit="nm"),
                   tmp_path / "psf.mrc")  # fmt: skip
    run = both(server, tmp_path, capsys, small, "--model", OTSU, "--restore", "deblur",
               "--restore-method", "richardson_lucy", "--psf", path)  # fmt: skip
    assert run.manifest.request.restore.psf == str(path)


def inputs_of(kind, small, folder, data_dir):
    """An input of a kind, and the options to read it."""
    volume = lm.open(small)
    values = volume.load() if hasattr(volume, "load") else np.asarray(volume.data[...])
    if kind == "dicom folder":
        series = folder / "ct"
        shutil.copytree(data_dir / "medical/totalsegmentator/example_ct_dicom", series)
        return series, ("--modality", "CT", "-o", "OUT/seg.dcm")
    if kind == "ome-zarr folder":
        return lm.save(volume, folder / "small.ome.zarr"), ("-o", "OUT/x.ome.zarr")
    if kind == "ome-zarr zip":
        lm.save(volume, folder / "small.ome.zarr")
        return Path(shutil.make_archive(str(folder / "small.zarr"), "zip", folder,
                                        "small.ome.zarr")), ()  # fmt: skip
    if kind == "hdf5 dataset":
        import h5py

        with h5py.File(folder / "small.h5", "w") as file:
            file["a/raw"], file["b"] = values, values[::-1]
        return folder / "small.h5", ("--dataset", "a/raw", "--axes", "zyx")
    if kind == "detached nrrd":
        header = "NRRD0004\ntype: float\ndimension: 3\nsizes: 40 40 12\nencoding: raw\n"
        header += "endian: little\nspacings: 1 1 2\ndata file: small.raw\n\n"
        (folder / "small.nhdr").write_text(header)
        values.astype("<f4").tofile(folder / "small.raw")
        return folder / "small.nhdr", ()
    if kind == "picture":
        picture = np.clip(128 + 40 * values[6], 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "picture.png")
        return folder / "picture.png", ()
    assert kind == "odd name"
    return shutil.copy(small, folder / "ein Tomogramm, größer, 2 %.mrc"), ()


@pytest.mark.parametrize(
    "kind",
    ["dicom folder", "ome-zarr folder", "ome-zarr zip", "hdf5 dataset", "detached nrrd", "picture",
     "odd name"],
)  # fmt: skip
def test_inputs_of_every_kind(server, as_user, small, kind, tmp_path, data_dir, capsys):
    path, words = inputs_of(kind, small, tmp_path, data_dir)
    both(server, tmp_path, capsys, path, "--model", OTSU, *words)


def test_a_model_of_another_engine(server, as_user, allowed, tmp_path, capsys):
    """nnU-Net's, of random weights, in a folder that the server may read."""
    path = Path(__file__).parents[1] / "engines" / "nnunet" / "conftest.py"
    spec = importlib.util.spec_from_file_location("nnunet_models", path)
    nnunet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nnunet)
    folder = allowed / "nnunet" / "Dataset902_Random" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    plans = nnunet.plans_of({"3d_fullres": nnunet.configuration_of((8, 16, 16), (2.0, 1.0, 1.0))})
    nnunet.write_model(folder, plans, nnunet.dataset_of(), seed=3)
    values = np.random.default_rng(0).normal(100, 30, (12, 24, 24)).astype(np.float32)
    image = lm.save(lm.Volume.from_array(values, spacing=(2.0, 1.0, 1.0), unit="mm"),
                    tmp_path / "mr.nii.gz")  # fmt: skip
    run = both(server, tmp_path, capsys, image, "--model", f"nnunet:{folder}")
    assert run.manifest.labels is not None


def test_several_inputs_and_a_bad_one(server, as_user, small, tmp_path, capsys):
    other = shutil.copy(small, tmp_path / "other.mrc")
    bad = tmp_path / "bad.mrc"
    bad.write_bytes(b"nothing")
    answers = []
    for name, where in (("local", ()), ("remote", ("--server", server.url))):
        capsys.readouterr()
        words = ["segment", str(small), str(bad), str(other), "--model", OTSU, "--run-dir",
                 str(tmp_path / name), "-o", f"{tmp_path / name}-out/", "--json"]  # fmt: skip
        assert main([*words, *where]) == 2
        answers.append(json.loads(capsys.readouterr().out))
    local, remote = answers
    assert [one["code"] for one in remote["problems"]] == [one["code"] for one in local["problems"]]
    assert len(remote["runs"]) == len(local["runs"]) == 2
    for a, b in zip(remote["runs"], local["runs"], strict=True):
        assert a["labels_sha256"] == b["labels_sha256"]
        assert a["input"] == b["input"]
        assert Path(a["export"]).is_file()


def test_inputs_that_lie_there(server, as_user, allowed, small, tmp_path, capsys):
    there = shutil.copy(small, allowed / "there.mrc")
    local = lm.segment(there, OTSU, run_dir=tmp_path / "a.run")
    words = ["segment", f"server:{there}", "--model", OTSU, "--server", server.url]
    assert main([*words, "--run-dir", str(tmp_path / "b.run")]) == 0, capsys.readouterr().err
    remote = lm.open_run(tmp_path / "b.run")
    assert remote.manifest.labels == local.manifest.labels
    assert main([*words[:1], "server:/etc/passwd", *words[2:], "--run-dir", str(tmp_path / "c")])
    assert "--allow-root" in capsys.readouterr().err


def test_the_same_awaited_in_parts(server, tomogram, quiet, tmp_path):
    import asyncio
    from dataclasses import replace

    from lamella.core.places import ClientPlaces

    async def work():
        places = ClientPlaces(None, tmp_path / "cache", server.token)
        async with lm.AsyncClient(server.url, places=places, n_parts=3) as client:
            options = replace(client.context.upload, part_bytes=200_000, can_skip=False)
            client.context = replace(client.context, upload=options)
            remote = await client.segment(tomogram, MODEL, run_dir=tmp_path / "r.run")
            return await remote.run

    same(asyncio.run(work()), quiet)
