"""Pictures and tables of trainings."""

import io
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lamella.core.errors import UnreadableFileError
from lamella.training.curves import Heading, curves_html, draw_curves
from lamella.training.history import History, Row
from lamella.training.sparkline import chart, sparkline


def history(n_classes=2, n=30):
    names = tuple(f"class <{i}>" for i in range(n_classes))
    made = History(names)
    for i in range(1, n + 1):
        made.add(Row(10 * i, 2.0 * i, 1 / i, 1e-3, 0.5, 0.02))
        if i % 10 == 0:
            scores = {name: 0.1 * k + i / n / 2 for k, name in enumerate(names)}
            made.complete(validation_loss=1.2 / i, score=i / n, classes=scores)
    return made


@pytest.mark.parametrize("made", [history(), history(1), history(12), history(2, 1), history(0)])
def test_any_training_can_be_drawn(made):
    heading = Heading("a model", 300, best_step=300)
    image = Image.open(io.BytesIO(draw_curves(made, heading)))
    assert image.size[0] > 1200
    assert np.asarray(image.convert("L")).std() > 5
    assert "<svg" not in curves_html(made, heading)


def test_the_page_loads_nothing_and_carries_its_numbers():
    made = history()
    page = curves_html(made, Heading("a </script> model", 300, best_step=300))
    assert not re.search(r"(src|href)\s*=", page)
    assert "http-equiv" in page
    assert page.count("</script>") == 1
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert data["title"] == "a </script> model"
    assert [row["step"] for row in data["rows"]] == [row.step for row in made.rows]
    assert "http-equiv" not in curves_html(made, Heading("done", 300, state="finished"))


numbers = st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=20))
def test_the_table_reads_back(tmp_path_factory, values):
    made = History(("mito", "er"))
    for i, (loss, rate, is_judged) in enumerate(values, start=1):
        made.add(Row(i, float(i), loss, rate))
        if is_judged:
            made.complete(validation_loss=loss, score=0.5, classes={"mito": 0.25, "er": math.nan})
    path = tmp_path_factory.mktemp("table") / "metrics.csv"
    path.write_text(made.csv())
    last = max(1, len(values) // 2)
    read = History.read(path, ("mito", "er"), last_step=last)
    assert [row.step for row in read.rows] == list(range(1, last + 1))
    for a, b in zip(read.rows, made.rows, strict=False):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.is_validation == b.is_validation


def test_a_damaged_table(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,time_s\nx,y\n")
    with pytest.raises(UnreadableFileError, match="damaged"):
        History.read(path, (), last_step=9)
    assert not History.read(tmp_path / "none.csv", (), last_step=9).rows


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=200), st.integers(1, 80))
def test_sparklines_fit_their_width(values, width):
    assert len(sparkline(values, width)) <= width
    assert all(len(line) < width + 400 for line in chart(values, width=width))
