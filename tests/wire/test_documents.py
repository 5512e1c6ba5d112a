"""Documents: unknown keys refused, every problem named, JSON there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lamella.core.errors import InputError, MissingPathError, ModelError
from lamella.wire import event as events
from lamella.wire.card import ClassDoc, ModelCard, NetworkDoc, TrainingDoc
from lamella.wire.problem import Problem
from lamella.wire.request import InputDoc, SegmentRequest, SizeDoc, SpacingDoc

spacings = st.builds(
    SpacingDoc,
    values=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=3).map(tuple),
    unit=st.sampled_from(["nm", "um", "mm", "voxel"]),
)
requests = st.builds(
    SegmentRequest,
    input=st.builds(InputDoc, path=st.text(min_size=1), spacing=st.none() | spacings),
    model=st.text(min_size=1),
    options=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
    tile=st.none() | st.tuples(*[st.integers(1, 512)] * 3),
    overlap_fraction=st.none() | st.floats(0, 0.9),
    min_size=st.none() | st.builds(SizeDoc, value=st.floats(0, 1e6)),
    tta=st.none() | st.booleans(),
)


@given(requests)
def test_a_request_survives_json(request):
    assert SegmentRequest.parse_json(request.to_json(), what="it") == request


def card(**changes):
    fields = {
        "id": "m",
        "title": "M",
        "description": "d",
        "task": "semantic",
        "axes": "zyx",
        "classes": (ClassDoc(value=0, name="background"), ClassDoc(value=1, name="a")),
        "network": NetworkDoc(id="unet3d"),
        "n_outputs": 2,
        "tile": (32, 32, 32),
        "licence": "Apache-2.0",
        "training": TrainingDoc(data="none", data_licence="none", recipe="none"),
    }
    return ModelCard(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tile": (32, 32)}, "does not fit axes"),
        ({"classes": (ClassDoc(value=1, name="a"), ClassDoc(value=1, name="b"))}, "repeat"),
        ({"id": "Has Spaces"}, "pattern"),
        ({"overlap_fraction": 1.0}, "less than 1"),
        ({"colour": "red"}, "Extra inputs"),
        ({"spacing": SpacingDoc(values=(1.0, 1.0), unit="nm")}, "does not fit axes"),
    ],
)
def test_a_contradictory_card_is_refused(changes, expected):
    with pytest.raises(ValidationError, match=expected):
        card(**changes)


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(ModelError) as caught:
        ModelCard.parse_json('{"id": "m", "axes": "xy"}', what="model.json", error=ModelError)
    problems = " ".join(caught.value.details["problems"])
    assert "model.json" in caught.value.message
    assert "axes" in problems
    assert "title" in problems


def test_a_missing_document_is_a_missing_path(tmp_path):
    with pytest.raises(MissingPathError):
        SegmentRequest.read(tmp_path / "request.json")


def test_broken_json_is_refused(tmp_path):
    (tmp_path / "request.json").write_text("{")
    with pytest.raises(InputError, match="is not a valid SegmentRequest"):
        SegmentRequest.read(tmp_path / "request.json")


@pytest.mark.parametrize(
    "event",
    [
        events.StartedEvent(run="r", model="m", shape=(1, 2, 3)),
        events.ProgressEvent(stage="tiles", done=1, total=8, unit="tiles", eta_s=2.5),
        events.PreviewEvent(
            path="p", factors=(4.0,) * 3, box_start=(0,) * 3, box_stop=(8,) * 3, is_final=False
        ),
        events.WarningEvent(code="no_objects", message="nothing found"),
        events.FinishedEvent(n_objects=3, elapsed_s=1.0),
        events.FailedEvent(problem=Problem(code="cancelled", message="stopped")),
        events.LogEvent(message="hello"),
    ],
)
def test_events_are_told_apart_by_type(event):
    assert events.parse_event(event.model_dump_json()) == event
