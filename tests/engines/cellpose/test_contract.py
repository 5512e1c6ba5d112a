"""Cellpose 3 under the contract of every engine, with a model trained here."""

import pytest

from lamella.engines.cellpose.cellpose3 import find_model
from lamella.testing.isolated import IsolatedEngineContract
from lamella.wire.request import InputDoc, SegmentRequest


class TestCellpose3(IsolatedEngineContract):
    engine_id = "cellpose3"
    worker = "lamella.engines.cellpose.session:WORKER"

    @pytest.fixture(autouse=True)
    def _setting(self, trained, places):
        self.trained, self.places = trained, places

    def make_request(self):
        return SegmentRequest(
            input=InputDoc(path="image"),
            model="cellpose3:nuclei",
            instances="slices",
            confidence=True,
            options={"diameter": 14, "threads": 1},
        )

    def make_model(self):
        return find_model(str(self.trained), self.places)

    def changes_for_nothing(self):
        options = {**self.make_request().options, "cellprob_threshold": 20}
        return {"options": options}
