"""What is refused, and what a request comes down to: without starting the package."""

import json

import numpy as np
import pytest

from lamella.core.errors import (
    AxesError,
    GeometryError,
    InputError,
    LicenceError,
    MissingDependencyError,
    UnknownModelError,
)
from lamella.core.places import Places
from lamella.engines.totalsegmentator.licence import find_licence
from lamella.engines.totalsegmentator.listing import list_models
from lamella.engines.totalsegmentator.models import check_fit, find_model
from lamella.engines.totalsegmentator.package import describe_package
from lamella.engines.totalsegmentator.settings import resolve
from lamella.engines.totalsegmentator.weights import find_weights
from lamella.volume import Affine, Volume
from lamella.wire.request import InputDoc, SegmentRequest


def make_weights(places, *numbers):
    """Empty plans where the weights of some datasets would be."""
    folders = describe_package(places).folders
    for number in numbers:
        folder = places.totalsegmentator_home / "nnunet" / "results" / folders[number]
        inner = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        inner.mkdir(parents=True)
        (inner / "plans.json").write_text("{}")


def settle(places, task="total", mode=None, **fields):
    request = SegmentRequest(
        input=InputDoc(path="ct"), model=f"totalsegmentator:{task}", modality="CT", **fields
    )
    package = describe_package(places)
    return resolve(request, package.find_task(task), mode, package, places)


@pytest.fixture
def ready(described):
    make_weights(described, 11, 12, 13, 14, 30)
    return described


class TestWhatIsRun:
    def test_the_parts_of_a_task_in_order(self, ready):
        assert settle(ready).datasets == (11, 12)

    def test_a_coarser_model_by_option_or_by_name(self, ready):
        by_option = settle(ready, options={"fast": "true"})
        by_name = settle(ready, mode="fast")
        assert by_option.datasets == by_name.datasets == (14,)
        assert by_option.arguments == by_name.arguments == {"task": "total", "fast": True}

    def test_roi_subset_runs_the_crop_and_only_the_parts_that_know_a_class(self, ready):
        found = settle(ready, options={"roi_subset": "heart"})
        assert found.datasets == (13, 12)
        assert found.classes == {3: "heart"}
        assert found.arguments["roi_subset"] == ["heart"]

    def test_a_list_of_classes_is_as_good_as_names_with_commas(self, ready):
        listed = settle(ready, options={"roi_subset": ["liver", "spleen"]})
        assert listed.roi == settle(ready, options={"roi_subset": "spleen,liver"}).roi

    def test_the_preview_is_of_the_coarsest_model_that_is_here(self, ready):
        plan = settle(ready).preview
        assert plan.arguments == {"task": "total", "fastest": True}
        assert not plan.is_coarse

    def test_without_a_coarser_model_the_same_one_previews(self, ready):
        plan = settle(ready, task="vessels").preview
        assert plan.is_coarse
        assert "every second voxel" in plan.how

    def test_the_licence_number_is_in_no_option_that_is_written_down(self, described):
        make_weights(described, 40)
        found = settle(described, task="face", options={"licence": "aca_SECRET"})
        assert found.licence == "aca_SECRET"
        assert "SECRET" not in json.dumps(dict(found.options))


class TestRefusals:
    def test_an_unknown_task_names_the_nearest(self, described):
        with pytest.raises(UnknownModelError, match="no task 'totl'") as caught:
            find_model("totl", described)
        assert "did you mean total" in caught.value.hint

    def test_an_unknown_class_names_the_nearest(self, ready):
        with pytest.raises(InputError, match="no class 'spleeen'") as caught:
            settle(ready, options={"roi_subset": "spleeen"})
        assert "did you mean spleen" in caught.value.hint

    def test_missing_weights_are_one_error_with_the_command(self, described):
        make_weights(described, 11)
        with pytest.raises(UnknownModelError, match=r"12 \(Dataset012") as caught:
            settle(described, preview=False)
        assert "lamella models pull totalsegmentator:total" in caught.value.hint
        assert "lamella models import" in caught.value.hint
        assert caught.value.details["missing"] == [12]

    def test_a_licensed_task_needs_a_licence_before_its_weights(self, described):
        with pytest.raises(LicenceError, match="licensed") as caught:
            settle(described, task="face")
        assert "backend.totalsegmentator.com" in caught.value.hint

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"tta": True}, "left from right"),
            ({"tile": (64, 64, 64)}, "fixed by their plans"),
            ({"overlap_fraction": 0.25}, "fixed by their plans"),
            ({"precision": "bf16"}, "chooses its precision"),
            ({"options": {"fast": True, "fastest": True}}, "two different models"),
            ({"options": {"roi_subset": " , "}}, "names no class"),
            ({"options": {"remove_small_blobs": True}}, "has no option"),
            ({"options": {"spacing": 3}}, "no option 'spacing'"),
            ({"options": {"weights": "nowhere"}}, "holds no Dataset"),
        ],
    )
    def test_what_the_package_does_not_do_is_said(self, ready, fields, words):
        with pytest.raises(InputError, match=words) as caught:
            settle(ready, **fields)
        assert caught.value.hint

    def test_options_a_task_does_not_take(self, ready):
        with pytest.raises(InputError, match="has no fast model"):
            settle(ready, task="vessels", options={"fast": True})
        with pytest.raises(InputError, match="takes no roi_subset, only total"):
            settle(ready, task="vessels", options={"roi_subset": "artery"})

    def test_weights_are_no_task(self, described):
        with pytest.raises(InputError, match="not a task") as caught:
            find_model("Dataset030_vessels_3subj", described)
        assert "totalsegmentator:vessels" in caught.value.hint

    def test_no_environment_names_the_command_that_makes_it(self, tmp_path):
        with pytest.raises(MissingDependencyError) as caught:
            find_model("total", Places(environments=tmp_path))
        assert "lamella engines install totalsegmentator" in caught.value.hint
        assert list_models(Places(environments=tmp_path)) == ()


class TestVolumes:
    def fit(self, places, volume, modality="auto", task="total", **options):
        request = SegmentRequest(
            input=InputDoc(path="x"),
            model=f"totalsegmentator:{task}",
            modality=modality,
            options=options,
        )
        check_fit(volume, request, find_model(task, places))

    def make(self, unit="mm", low=-1000, high=1500, **fields):
        values = np.linspace(low, high, 4096).reshape(16, 16, 16).astype(np.int16)
        return Volume.from_array(values, spacing=(3, 3, 3), unit=unit, frame="RAS", **fields)

    def test_a_ct_that_is_stated_or_looks_like_one_passes(self, ready):
        self.fit(ready, self.make(), "CT")
        self.fit(ready, self.make())

    @pytest.mark.parametrize("tag", ["CR", "DX", "RF", "XA", "MG", "US"])
    def test_projections_and_echoes_are_refused_whatever_is_stated(self, ready, tag):
        with pytest.raises(InputError, match=tag) as caught:
            self.fit(ready, self.make(metadata={"modality": tag}), "CT")
        assert caught.value.hint

    def test_micrographs_are_refused(self, ready):
        with pytest.raises(InputError, match="finer than any scanner"):
            self.fit(ready, self.make(unit="nm"), "CT")

    def test_mr_is_not_for_a_model_of_ct(self, ready):
        with pytest.raises(InputError, match="needs CT"):
            self.fit(ready, self.make(metadata={"modality": "MR"}))

    def test_voxels_of_unknown_size_are_refused(self, ready):
        with pytest.raises(GeometryError, match="how large the voxels are"):
            self.fit(ready, self.make(unit="voxel"), "CT")

    def test_a_single_plane_is_refused(self, ready):
        plane = Volume.from_array(
            np.full((1, 16, 16), -1000, np.int16), spacing=(3, 3, 3), unit="mm", frame="RAS"
        )
        with pytest.raises(AxesError, match="single plane"):
            self.fit(ready, plane, "CT")

    def test_sheared_axes_are_refused(self, ready):
        tilted = self.make()
        lean = np.array([0.3, 0.0, 1.0]) / np.linalg.norm([0.3, 0.0, 1.0])
        direction = np.eye(3)
        direction[:, 2] = lean
        affine = Affine((3.0,) * 3, (0.0,) * 3, tuple(map(tuple, direction.tolist())), "RAS")
        volume = Volume(data=tilted.data, axes=tilted.axes, affine=affine, unit="mm")
        with pytest.raises(GeometryError, match="right angles"):
            self.fit(ready, volume, "CT")

    def test_a_short_image_is_not_cut_into_thirds(self, ready):
        with pytest.raises(InputError, match="60 planes"):
            self.fit(ready, self.make(), "CT", force_split=True)


class TestLicence:
    def task(self, places, name="face"):
        return describe_package(places).find_task(name)

    def test_open_tasks_need_none(self, described):
        assert find_licence(self.task(described, "total"), None, described) == ""

    @pytest.mark.parametrize(
        "text", ["aca_123456789012\n", '{"license_number": "aca_123456789012"}']
    )
    def test_a_number_comes_out_of_a_file(self, described, tmp_path, text):
        path = tmp_path / "licence.txt"
        path.write_text(text)
        assert find_licence(self.task(described), str(path), described) == "aca_123456789012"

    def test_the_packages_own_file_is_read_and_left_alone(self, described):
        path = described.totalsegmentator_home / "config.json"
        path.write_text('{"license_number": "aca_123456789012", "prediction_counter": 3}')
        before = path.read_bytes()
        assert find_licence(self.task(described), None, described) == "aca_123456789012"
        assert path.read_bytes() == before

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"totalseg_id": "x"}'])
    def test_a_config_without_a_number_is_none(self, described, text):
        (described.totalsegmentator_home / "config.json").write_text(text)
        with pytest.raises(LicenceError):
            find_licence(self.task(described), None, described)

    def test_a_file_that_is_not_there_is_said(self, described):
        with pytest.raises(LicenceError, match="is not there"):
            find_licence(self.task(described), "keys/licence.txt", described)


def test_a_named_folder_of_weights_comes_before_the_others(ready, tmp_path):
    own = tmp_path / "own" / "Dataset011_TotalSegmentator_a" / "T__nnUNetPlans__3d_fullres"
    own.mkdir(parents=True)
    (own / "plans.json").write_text("{}")
    found = find_weights(ready, str(tmp_path / "own"))
    assert found[11].path == own.parent
    assert found[12].path.is_relative_to(ready.totalsegmentator_home)
