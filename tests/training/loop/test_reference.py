"""The reference of training configurations is complete."""

import importlib.util
from pathlib import Path

from lamella.training.configuration_keys import known_keys

SCRIPT = Path(__file__).parents[3] / "docs/reference/write_training_configuration.py"


def test_the_page_is_what_the_documents_say():
    spec = importlib.util.spec_from_file_location("write_training_configuration", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page(), f"run: python {SCRIPT.relative_to(SCRIPT.parents[2])}"
    # What is in the parts of a mixture is described beside it.
    names = [name for name in known_keys() if not name.startswith("data.parts.")]
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    assert not [name for name in leaves if f"`{name}`" not in page]
