"""The engines' eyes in the model store: what each recognises, and what it would have pulled."""

import json

import pytest

from lamella.core.errors import InputError, ModelError, UnknownModelError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.models.adopt import ImportOptions
from lamella.models.foreign import find_foreign
from lamella.models.offer import read_offers
from lamella.workflows.model_store import add_model, engine_recognisers, find_wanted

SINK = SilentSink()
PLANS = {
    "dataset_name": "Dataset999_thing",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {
            "patch_size": [8, 8, 8],
            "spacing": [1, 1, 1],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
        }
    },
}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "thing": 1}}


def trained(parent, dataset="Dataset999_thing"):
    folder = parent / dataset / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0" / "validation").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    (folder / "fold_0" / "validation" / "case.nii.gz").write_bytes(b"predictions")
    return folder.parent


@pytest.fixture
def places(tmp_path):
    return Places(models=tmp_path / "models")


def test_special_engines_are_asked_before_general_ones():
    engines = [one.engine for one in engine_recognisers()]
    assert engines[-1] == "nnunet"
    assert all(one.expected for one in engine_recognisers())


def test_an_nnunet_folder_is_taken_in_without_its_validation(tmp_path, places):
    result = add_model(trained(tmp_path), places, SINK)
    assert result.engine == "nnunet"
    model = find_foreign(result.id, places)
    names = {path.name for path in model.path.rglob("*") if path.is_file()}
    assert names == {"plans.json", "dataset.json", "checkpoint_final.pth"}


def test_a_named_engine_says_what_is_wrong_with_a_model_of_its_own(tmp_path, places):
    source = trained(tmp_path)
    next(source.rglob("plans.json")).write_text("{}")
    with pytest.raises(ModelError, match="no model that can be run here") as caught:
        add_model(source, places, SINK)
    assert "--engine" in caught.value.hint
    with pytest.raises(ModelError, match="lists no configurations"):
        add_model(source, places, SINK, ImportOptions(engine="nnunet"))


def test_weights_of_totalsegmentator_are_not_nnunets(tmp_path, places):
    source = trained(tmp_path, "Dataset297_TotalSegmentator_total_3mm_1559subj")
    assert add_model(source, places, SINK).engine == "totalsegmentator"
    options = ImportOptions(engine="nnunet", id="as-nnunet")
    assert add_model(source, places, SINK, options).engine == "nnunet"


def test_what_nobody_knows_names_every_engine(tmp_path, places):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "readme").write_text("")
    with pytest.raises(ModelError) as caught:
        add_model(tmp_path / "thing", places, SINK)
    for one in engine_recognisers():
        assert one.expected in caught.value.hint


def test_references(places):
    offers = read_offers(places)
    assert find_wanted("cellpose4-cpsam", places, offers=offers)[0].entry is not None
    assert find_wanted("nuclei-2d", places, offers=offers)[0].here is not None
    for reference, model_id in (
        ("cellpose3:cyto3", "cellpose3-cyto3"),
        ("cellpose4:cpsam_v2", "cellpose4-cpsam-v2"),
        ("monai:spleen_ct_segmentation", "monai-spleen-ct-segmentation"),
    ):
        assert find_wanted(reference, places, offers=offers)[0].id == model_id
    with pytest.raises(UnknownModelError):
        find_wanted("none", places, offers=offers)
    with pytest.raises(InputError, match="pulls nothing by name"):
        find_wanted("classical:otsu", places, offers=offers)


def test_shipped_totalsegmentator_entries_are_those_its_engine_asks_for():
    """Ids and files agree, so that what one route brought is here for the other."""
    for offer in read_offers(Places()).offers:
        entry = offer.entry
        if entry.engine == "totalsegmentator":
            folder = entry.files[0].name.removesuffix(".zip")
            assert entry.id == folder.lower()
            assert f"/{entry.version}/{folder}.zip" in entry.files[0].urls[0]


def test_a_bundle_pulled_as_a_zip_is_found_by_its_engine(tmp_path, places):
    from lamella.models.archive import write_zip
    from lamella.workflows.model_store import pull_models, wanted_address

    metadata = {"version": "0.1.0", "monai_version": "1.4.0", "name": "A thing"}
    members = {
        "thing/configs/metadata.json": json.dumps(metadata).encode(),
        "thing/configs/inference.json": b'{"network_def": {"_target_": "UNet"}}',
        "thing/models/model.pt": b"weights",
    }
    write_zip(tmp_path / "thing_v0.1.0.zip", members.items())
    wanted = wanted_address((tmp_path / "thing_v0.1.0.zip").as_uri())
    result = pull_models((wanted,), places, SINK)[0]
    model = find_foreign(result.id, places)
    assert (model.engine, model.version) == ("monai", "0.1.0")
    assert (model.path / "configs" / "metadata.json").is_file()
    assert add_model(tmp_path / "thing_v0.1.0.zip", places, SINK).engine == "monai"
