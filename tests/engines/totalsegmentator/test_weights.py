"""Weights as the model store sees them: recognised, described, imported, found, verified."""

import shutil
import zipfile

import pytest

from lamella.core.errors import InputError, LicenceError, ModelError, UnknownModelError
from lamella.core.progress import SilentSink
from lamella.engines.totalsegmentator import models
from lamella.engines.totalsegmentator.weights import find_weights, verified
from lamella.models.foreign import FILES_NAME
from lamella.workflows.model_store import add_model, engine_recognisers, find_wanted

NAME = "Dataset011_TotalSegmentator_a"
INNER = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture
def dataset(tmp_path):
    """A folder of weights, as far as names and small files go."""
    folder = tmp_path / "elsewhere" / NAME
    (folder / INNER / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / INNER / name).write_text("{}")
    (folder / INNER / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


class TestRecognising:
    def test_a_dataset_a_folder_of_them_and_a_zip(self, dataset, tmp_path):
        assert models.recognise(dataset)
        assert models.recognise(dataset.parent)
        assert models.recognise(zipped(dataset, tmp_path / "w.zip"))

    def test_a_model_of_somebody_elses_is_not_taken(self, dataset, tmp_path):
        other = dataset.rename(dataset.with_name("Dataset101_Mitochondria"))
        assert not models.recognise(other)
        assert not models.recognise(tmp_path)
        assert not models.recognise(tmp_path / "nothing")
        (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
        assert not models.recognise(tmp_path / "bad.zip")

    def test_it_is_asked_before_nnunet(self):
        order = [one.engine for one in engine_recognisers()]
        assert "totalsegmentator" in order
        if "nnunet" in order:
            assert order.index("totalsegmentator") < order.index("nnunet")

    def test_its_facts_name_the_dataset(self, dataset):
        facts = models.describe(dataset)
        assert facts["id"] == NAME.lower()
        assert facts["details"]["datasets"] == [11]


class TestInTheStore:
    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_imported_weights_are_found_and_verified(self, described, dataset, tmp_path, kind):
        source = dataset if kind == "folder" else zipped(dataset, tmp_path / "w.zip")
        found = add_model(source, described, SilentSink())
        assert found.engine == "totalsegmentator"
        shutil.rmtree(dataset.parent)
        weights = find_weights(described)[11]
        assert (weights.path / INNER / "plans.json").is_file()
        assert verified(weights, described).sha256 == weights.sha256 != ""

    def test_a_changed_byte_is_caught(self, described, dataset):
        add_model(dataset, described, SilentSink())
        weights = find_weights(described)[11]
        (weights.path / INNER / "fold_0" / "checkpoint_final.pth").write_bytes(b"other")
        with pytest.raises(ModelError, match="was changed"):
            verified(weights, described)

    def test_weights_decide_the_identity_of_the_model(self, described, dataset):
        before = models.find_model("total", described)
        assert before.sha256 is None
        add_model(dataset, described, SilentSink())
        after = models.find_model("total", described)
        assert len(after.sha256) == 64
        assert models.find_model("total:fast", described).sha256 is None

    def test_their_id_is_no_task_but_tells_which(self, described, dataset):
        found = add_model(dataset, described, SilentSink())
        assert (described.models / found.id / FILES_NAME).is_dir()
        with pytest.raises(InputError, match="not a task") as caught:
            models.find_model(found.id, described)
        assert "totalsegmentator:total" in caught.value.hint


class TestPulling:
    def test_a_task_names_its_zips_and_those_of_its_preview(self, described):
        entries = models.downloads("total", described)
        assert [entry.id for entry in entries] == [
            "dataset011_totalsegmentator_a",
            "dataset012_totalsegmentator_b",
            "dataset013_totalsegmentator_6mm",
        ]
        file = entries[0].files[0]
        assert file.urls == (f"https://example.org/releases/v1/{NAME}.zip",)
        assert file.unpack == "zip"

    def test_a_coarser_model_by_name(self, described):
        ids = [entry.id for entry in models.downloads("total:fast", described)]
        assert ids == ["dataset014_totalsegmentator_3mm", "dataset013_totalsegmentator_6mm"]

    def test_a_licensed_task_says_where_its_weights_come_from(self, described):
        with pytest.raises(LicenceError, match="not given away") as caught:
            models.downloads("face", described)
        assert "license-academic" in caught.value.hint

    def test_what_there_is_not(self, described):
        with pytest.raises(UnknownModelError):
            models.downloads("totl", described)
        with pytest.raises(InputError, match="has no fast model"):
            models.downloads("vessels:fast", described)

    def test_the_store_finds_them_by_the_engines_name(self, described):
        wanted = find_wanted("totalsegmentator:vessels", described)
        assert [one.id for one in wanted] == [
            "dataset013_totalsegmentator_6mm",
            "dataset030_vessels_3subj",
        ]


class TestShowing:
    def test_a_task_with_its_classes(self, described):
        document, text = models.show("total", described)
        assert document["classes"] == {"1": "spleen", "2": "liver", "3": "heart"}
        assert "fast      3 mm, datasets 14: weights missing" in text
        assert "   2  liver" in text

    def test_all_tasks(self, described):
        document, text = models.show("", described)
        assert len(document["models"]) == 4
        line = next(line for line in text.splitlines() if ":face" in line)
        assert line.split() == ["totalsegmentator:face", "CT", "1", "licensed"]
