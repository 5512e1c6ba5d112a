"""``lamella labelme convert`` at the command line."""

import json

from lamella.cli.app import main


def test_convert_answers_with_counts(data_dir, tmp_path, capsys):
    source = data_dir / "labelme" / "examples" / "semantic_segmentation"
    words = ["labelme", "convert", str(source / "data_annotated"), str(tmp_path / "out")]
    assert main([*words, "--labels", str(source / "labels.txt"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["n_images"] == 3
    assert answer["n_pixels"]["person"] > 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "person" in capsys.readouterr().out


def test_a_missing_list_of_classes(tmp_path, capsys):
    code = main(["labelme", "convert", str(tmp_path), str(tmp_path / "o"), "--labels", "no.txt"])
    assert code == 2
    assert "no.txt" in capsys.readouterr().err
