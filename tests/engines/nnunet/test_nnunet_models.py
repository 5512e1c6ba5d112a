"""What may be wrong with a model, and what is then said; no network is run."""

import importlib.util
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import (
    AxesError,
    InputError,
    LamellaError,
    MissingPathError,
    ModelError,
    UnknownModelError,
    UnreadableFileError,
)
from lamella.core.places import Places
from lamella.engines.engine import EngineJob
from lamella.engines.nnunet.checkpoint import KeepLargest, read_checkpoint, read_postprocessing
from lamella.engines.nnunet.classes import ClassRule
from lamella.engines.nnunet.folder import find_trained
from lamella.engines.nnunet.models import check_fit, describe, find_model, recognise
from lamella.engines.nnunet.postprocess import keep_largest
from lamella.engines.registry import load_engine
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.request import InputDoc, SegmentRequest

pytest.importorskip("nnunetv2")

_SPEC = importlib.util.spec_from_file_location("nn", Path(__file__).with_name("conftest.py"))
nn = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(nn)

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
FULL = nn.configuration_of((8, 16, 16), (2.0, 1.0, 1.0))
IMAGE = nn.image_of((8, 16, 16))[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "Dataset902_Random"
    nn.write_model(base / NAME, nn.plans_of({"3d_fullres": FULL}), nn.dataset_of())
    return base


@pytest.fixture
def model(original, tmp_path):
    shutil.copytree(original, tmp_path / original.name)
    return tmp_path / original.name / NAME


def volume_of(image=IMAGE, axes="zyx", unit="mm", spacing=(2.0, 1.0, 1.0)):
    return Volume.from_array(image, axes=axes, spacing=spacing, unit=unit)


def segment(model, run_dir, volume=None, *, is_trusted=False, options=None, **request):
    run_dir.mkdir(exist_ok=True)
    job = EngineJob(
        volume=volume or volume_of(),
        request=SegmentRequest(
            input=InputDoc(path="memory:x"),
            model="nnunet:x",
            options={"runtime": "torch", "threads": 1, **(options or {})},
            **request,
        ),
        model=find_model(str(model), Places()),
        run_dir=run_dir,
        is_trusted=is_trusted,
    )
    return load_engine("nnunet").segment(job, RecordingSink())


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


class TestFinding:
    def test_a_folder_its_parent_a_fold_and_a_zip_are_the_same_model(self, model, tmp_path):
        archive = Path(shutil.make_archive(str(tmp_path / "model"), "zip", model.parent.parent))
        for place in (model, model.parent, model / "fold_0", archive):
            assert recognise(place if place.name != "fold_0" else model)
            (found,) = find_trained(place)
            assert (found.configuration, found.folds("checkpoint_final.pth")) == (
                "3d_fullres",
                ("0",),
            )

    def test_a_zip_gives_the_labels_of_its_folder(self, model, tmp_path):
        archive = tmp_path / "exported.zip"
        with zipfile.ZipFile(archive, "w") as out:
            for path in model.parent.rglob("*"):
                out.write(path, path.relative_to(model.parent.parent))
        here, there = (
            segment(place, tmp_path / f"run{i}").labels.load()
            for i, place in enumerate((model, archive))
        )
        np.testing.assert_array_equal(here, there)

    def test_facts_for_the_store(self, model):
        facts = describe(model)
        assert facts["details"]["name"] == NAME
        assert facts["classes"] == {1: "one", 2: "two"}
        assert facts["files"] == ["dataset.json", "fold_0/checkpoint_final.pth", "plans.json"]
        from lamella.wire.record import ModelRecord

        assert ModelRecord.model_fields.keys() >= facts.keys() - {"files"}

    def test_names_in_the_folder_of_results(self, model):
        places = Places(nnunet_results=model.parent.parent)
        for name in ("Dataset902_Random", "902", f"Dataset902_Random/{NAME}"):
            assert find_model(name, places).sha256
        with pytest.raises(UnknownModelError, match="no nnU-Net model") as caught:
            find_model("Dataset902_Randon", places)
        assert "did you mean Dataset902_Random" in caught.value.hint

    def test_one_changed_byte_is_another_model(self, model):
        before = find_model(str(model), Places()).sha256
        edit(model / "dataset.json", description="changed")
        assert find_model(str(model), Places()).sha256 != before

    def test_anything_else_is_not_recognised(self, tmp_path):
        (tmp_path / "a.txt").write_text("no")
        assert not recognise(tmp_path)
        assert not recognise(tmp_path / "a.txt")
        assert not recognise(tmp_path / "absent")


class TestWrongFolders:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(MissingPathError, match="there is no nnU-Net model"):
            find_model(str(tmp_path / "absent"), Places())

    def test_nothing_of_nnunet_there(self, tmp_path):
        (tmp_path / "weights.bin").write_bytes(b"x")
        with pytest.raises(
            ModelError, match=r"holds no model of nnU-Net v2; it holds weights\.bin"
        ):
            find_model(str(tmp_path), Places())

    def test_version_1(self, tmp_path):
        fold = tmp_path / "nnUNetTrainerV2__nnUNetPlansv2.1" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "model_final_checkpoint.model").write_bytes(b"x")
        (fold.parent / "plans.pkl").write_bytes(b"x")
        with pytest.raises(ModelError, match="nnU-Net v1"):
            find_model(str(tmp_path), Places())

    @pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
    def test_missing_documents(self, model, name):
        (model / name).unlink()
        with pytest.raises(ModelError, match=f"{name} is missing"):
            find_model(str(model), Places())

    def test_cut_documents(self, model):
        text = (model / "plans.json").read_text()
        (model / "plans.json").write_text(text[: len(text) // 2])
        with pytest.raises(UnreadableFileError, match="no readable JSON"):
            find_model(str(model), Places())

    def test_missing_folds_are_listed_with_those_present(self, model, tmp_path):
        with pytest.raises(ModelError, match="fold 3; it has fold 0"):
            segment(model, tmp_path / "run", options={"folds": "0,3"})

    def test_no_checkpoint_at_all(self, model, tmp_path):
        path = model / "fold_0" / "checkpoint_final.pth"
        path.rename(path.with_name("checkpoint_best.pth"))
        with pytest.raises(ModelError, match="no fold_") as caught:
            segment(model, tmp_path / "run")
        assert "--option checkpoint=best" in caught.value.hint

    def test_a_cascade_without_its_first_stage(self, tmp_path):
        settings = nn.configuration_of((8, 16, 16), (2.0, 1.0, 1.0), previous_stage="3d_lowres")
        folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
        nn.write_model(folder, nn.plans_of({"3d_cascade_fullres": settings}), nn.dataset_of())
        with pytest.raises(ModelError, match="needs the labels of 3d_lowres"):
            segment(folder, tmp_path / "run")

    def test_a_folder_of_another_configuration(self, model):
        renamed = model.with_name("nnUNetTrainer__nnUNetPlans__2d")
        model.rename(renamed)
        with pytest.raises(ModelError, match="no configuration '2d'; it has 3d_fullres"):
            find_model(str(renamed), Places())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestWrongWeights:
    def test_truncated(self, model, tmp_path):
        path = model / "fold_0" / "checkpoint_final.pth"
        content = path.read_bytes()
        for share in (0.0, 0.3, 0.95):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(ModelError, match=r"truncated or damaged|more than weights"):
                segment(model, tmp_path / "run")

    def test_pickled_code_does_not_run_unless_trusted(self, model, tmp_path):
        import torch

        path, fuse = model / "fold_0" / "checkpoint_final.pth", tmp_path / "it-ran"
        content = torch.load(path, weights_only=False)
        torch.save({**content, "extra": Bomb(fuse)}, path)
        with pytest.raises(ModelError, match="holds more than weights") as caught:
            segment(model, tmp_path / "run")
        assert "--trust" in caught.value.hint
        assert not fuse.exists()
        segment(model, tmp_path / "run", is_trusted=True)
        assert fuse.exists()

    def test_weights_of_another_number_of_classes(self, model, tmp_path):
        edit(model / "dataset.json", labels={"background": 0, "one": 1})
        with pytest.raises(ModelError, match=r"does not fit its plans\.json and"):
            segment(model, tmp_path / "run")

    def test_weights_of_another_configuration(self, model, tmp_path):
        import torch

        path = model / "fold_0" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content["init_args"]["configuration"] = "3d_lowres"
        torch.save(content, path)
        with pytest.raises(ModelError, match="trained as '3d_lowres'"):
            segment(model, tmp_path / "run")

    def test_a_network_by_any_import_path_is_refused(self, model, tmp_path):
        plans = json.loads((model / "plans.json").read_text())
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = "os.system"
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ModelError, match=r"asks for 'os\.system'"):
            segment(model, tmp_path / "run")
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        )
        architecture["arch_kwargs"]["nonlin"] = "subprocess.Popen"
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ModelError, match=r"asks for 'subprocess\.Popen'"):
            segment(model, tmp_path / "run")

    def test_plans_of_an_unknown_version(self, model, tmp_path):
        plans = json.loads((model / "plans.json").read_text())
        del plans["configurations"]["3d_fullres"]["architecture"]
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ModelError, match="names no network that is known"):
            segment(model, tmp_path / "run")

    def test_no_checkpoint_of_nnunet(self, tmp_path):
        import torch

        torch.save({"state_dict": {}}, tmp_path / "x.pth")
        with pytest.raises(ModelError, match="it holds state_dict, not 'network_weights'"):
            read_checkpoint(tmp_path / "x.pth", is_trusted=False)

    def test_old_plans_build_the_same_network(self, model, tmp_path):
        expected = segment(model, tmp_path / "new").labels.load()
        plans = json.loads((model / "plans.json").read_text())
        settings = plans["configurations"]["3d_fullres"]
        arguments = settings.pop("architecture")["arch_kwargs"]
        settings |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 6,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }
        (model / "plans.json").write_text(json.dumps(plans))
        found = segment(model, tmp_path / "old").labels.load()
        np.testing.assert_array_equal(found, expected)


class TestClasses:
    @pytest.mark.parametrize(
        ("dataset", "says"),
        [
            ({"labels": {"0": "background", "1": "x"}}, "no label 'background'"),
            ({"labels": {"background": 0, "a": 1, "b": 3}}, r"the labels are \[0, 1, 3\]"),
            ({"labels": {"background": 0, "a": 1, "ignore": 7}}, "the ignore label is 7"),
            ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order is None"),
        ],
    )
    def test_contradictory_class_maps(self, dataset, says):
        with pytest.raises(ModelError, match=says):
            ClassRule.parse(dataset)

    def test_configurations_of_different_classes_are_not_averaged(self, model, tmp_path):
        other = nn.dataset_of({"background": 0, "one": 1})
        second = "nnUNetTrainer__otherPlans__3d_fullres"
        nn.write_model(model.with_name(second), nn.plans_of({"3d_fullres": FULL}), other)
        with pytest.raises(ModelError, match="different classes"):
            segment(model.parent, tmp_path / "run", options={"configuration": f"{NAME}+{second}"})


class TestWrongInputs:
    def test_another_number_of_channels(self, model, tmp_path):
        volume = volume_of(np.stack([IMAGE, IMAGE]), axes="czyx")
        with pytest.raises(AxesError, match=r"takes 1 channel\(s\) \(MRI\); the input has 2"):
            segment(model, tmp_path / "run", volume)
        with pytest.raises(AxesError, match="takes 1 channel"):
            check_fit(volume, None, find_model(str(model), Places()))

    def test_a_3d_model_and_an_image(self, model, tmp_path):
        volume = volume_of(IMAGE[0], axes="yx", spacing=(1.0, 1.0))
        with pytest.raises(AxesError, match="segments volumes"):
            segment(model, tmp_path / "run", volume)
        with pytest.raises(AxesError, match="segments volumes"):
            check_fit(volume, None, find_model(str(model), Places()))

    def test_a_spacing_that_is_not_known(self, model, tmp_path):
        volume = Volume.from_array(IMAGE)
        with pytest.raises(InputError, match="no known spacing") as caught:
            segment(model, tmp_path / "run", volume)
        assert "--spacing" in caught.value.hint
        segment(model, tmp_path / "run", volume, options={"unit": "voxel"})

    def test_a_spacing_in_another_unit(self, model, tmp_path):
        with pytest.raises(InputError, match="a factor of 1e\\+06 apart") as caught:
            segment(model, tmp_path / "run", volume_of(unit="nm"))
        assert "unit=nm" in caught.value.hint
        segment(model, tmp_path / "run", volume_of(unit="nm"), options={"unit": "nm"})
        edit(model / "dataset.json", lamella_spacing_unit="nm")
        result = segment(model, tmp_path / "run2", volume_of(unit="nm"))
        assert result.options_resolved["unit"] == "nm"

    def test_a_patch_is_part_of_the_model(self, model, tmp_path):
        with pytest.raises(InputError, match="the patch of an nnU-Net model is part of it"):
            segment(model, tmp_path / "run", tile=(8, 8, 8))

    def test_two_words_for_the_step(self, model, tmp_path):
        with pytest.raises(InputError, match="both --overlap-fraction"):
            segment(model, tmp_path / "run", overlap_fraction=0.3, options={"step_size": 0.5})

    def test_an_unknown_configuration_names_those_there(self, model, tmp_path):
        with pytest.raises(InputError, match="no configuration '3d_fulres'; it has 3d_fullres"):
            segment(model, tmp_path / "run", options={"configuration": "3d_fulres"})

    @pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN or infinite"), (None, "nothing to")])
    def test_voxels_that_are_no_image(self, model, tmp_path, value, says):
        image = IMAGE.copy()
        image[...] = 3 if value is None else image
        image[0, 0, 0] = 3 if value is None else value
        with pytest.raises(InputError, match=says):
            segment(model, tmp_path / "run", volume_of(image))

    def test_a_device_without_memory_is_retried_once_aloud(self, model, tmp_path, monkeypatch):
        from lamella.core.errors import DeviceMemoryError
        from lamella.engines.nnunet.opening import _Cautious

        class Full:
            name, device, precision, batch_shape, n_outputs = "t", "cuda", "fp16", (1, 1, 1), 1

            def __call__(self, batch):
                raise DeviceMemoryError("cuda has too little memory")

        class Small(Full):
            def __call__(self, batch):
                return batch + 1

        said = []
        runtime = _Cautious(Full(), Small)
        runtime.on_retry = said.append
        assert runtime(np.zeros((1, 1, 1), np.float32)).max() == 1
        assert "one mirrored copy at a time" in said[0]
        assert runtime(np.zeros((1, 1, 1), np.float32)).max() == 1
        assert len(said) == 1
        with pytest.raises(DeviceMemoryError):
            _Cautious(Full(), Full)(np.zeros((1, 1, 1), np.float32))


class TestPostprocessing:
    def write(self, model, steps):
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation as keep,
        )

        path = model / "crossval_results_folds_0" / "postprocessing.pkl"
        path.parent.mkdir()
        functions = [keep if step is not Bomb else Path.touch for step in steps]
        path.write_bytes(
            pickle.dumps(
                (functions, [{} if s is Bomb else {"labels_or_regions": s} for s in steps])
            )
        )
        return path

    def test_steps_of_nnunet_are_known_without_running_the_pickle(self, model):
        path = self.write(model, [[1, 2], 2, [(1, 2)]])
        assert read_postprocessing(path, is_trusted=False) == (
            KeepLargest((1, 2)),
            KeepLargest((2,)),
            KeepLargest((1, 2)),
        )

    def test_other_functions_are_refused(self, model, tmp_path):
        self.write(model, [Bomb])
        with pytest.raises(ModelError, match=r"pathlib\.Path.* which is not run|getattr"):
            segment(model, tmp_path / "run", options={"postprocess": True})

    def test_it_does_what_nnunet_does(self):
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation as theirs,
        )

        labels = np.random.default_rng(0).choice(3, (9, 10, 11), p=(0.8, 0.1, 0.1)).astype(np.uint8)
        for groups in ([1], [1, 2], [2]):
            expected = theirs(labels, [*groups])
            np.testing.assert_array_equal(keep_largest(labels, KeepLargest((*groups,))), expected)

    def test_a_run_applies_it_where_asked(self, model, tmp_path):
        plain = segment(model, tmp_path / "plain").labels.load()
        self.write(model, [[1, 2]])
        kept = segment(model, tmp_path / "kept", options={"postprocess": True}).labels.load()
        np.testing.assert_array_equal(kept, keep_largest(plain, KeepLargest((1, 2))))

    def test_a_model_without_it_says_so(self, model, tmp_path):
        with pytest.raises(ModelError, match="has no crossval_results"):
            segment(model, tmp_path / "run", options={"postprocess": True})


def test_every_error_teaches(model, tmp_path):
    shutil.rmtree(model / "fold_0")
    with pytest.raises(LamellaError) as caught:
        segment(model, tmp_path / "run")
    assert caught.value.hint
