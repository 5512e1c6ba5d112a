"""The public names: one list, kept in three places, held together here."""

import ast
from pathlib import Path

import numpy as np
import pytest

import lamella as lm


def test_the_list_is_the_same_for_people_programs_and_type_checkers():
    tree = ast.parse(Path(lm.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        name.asname or name.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    seen |= {node.target.id for node in block.body if isinstance(node, ast.AnnAssign)}
    assert seen == set(lm.__all__) == set(lm._HOMES)


def test_every_name_resolves():
    for name in lm.__all__:
        assert getattr(lm, name) is not None
        assert name in dir(lm)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmant'"):
        _ = lm.segmant


def test_from_file_to_score(image_path, tmp_path):
    volume = lm.open(image_path)
    run = lm.segment(volume, "classical:otsu", run_dir=tmp_path / "a.run", min_size="100nm3")
    lm.save(run.labels, tmp_path / "labels.nrrd")
    comparison = lm.evaluate(run.labels, tmp_path / "labels.nrrd")
    assert comparison.to_dict()["classes"][0]["dice"] == 1.0
    table = lm.measure(run.object_labels, volume)
    assert len(table) == len(run.objects)
    assert lm.open_run(run.folder).manifest == run.manifest
    assert run.report.exists()
    assert run.preview.spatial_shape[0] <= volume.spatial_shape[0]


def test_options_are_checked_by_name(image_path):
    with pytest.raises(lm.LamellaError, match="unknown option channell"):
        lm.open(image_path, channell=1)
    with pytest.raises(lm.LamellaError, match="unknown option overwriet"):
        lm.save(lm.Volume.from_array(np.zeros((2, 3, 4))), "a.mrc", overwriet=True)


def test_spacing_as_text(image_path):
    assert str(lm.open(image_path, spacing="3,1,1um").spacing) == "3 x 1 x 1 um"
