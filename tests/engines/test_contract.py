"""The list of engines and their options: data that is true without importing an engine."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, MissingDependencyError, UnknownEngineError
from lamella.engines import registry
from lamella.engines.engine import EngineDescriptor, OptionDescriptor
from lamella.engines.options import resolve_options
from lamella.engines.registry import check_engine, find_engine, list_engines, load_engine

ENGINES = list_engines()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.id)
class TestEveryDescriptor:
    def test_defaults_pass_the_engines_own_check(self, engine):
        given = {o.name: o.default for o in engine.options if o.default is not None}
        assert resolve_options(engine.id, engine.options, given) == {
            option.name: option.default for option in engine.options
        }

    def test_options_are_described_and_named_once(self, engine):
        names = [option.name for option in engine.options]
        assert len(set(names)) == len(names)
        for option in engine.options:
            assert option.description.endswith(".")
            assert bool(option.choices) == (option.kind == "choice")

    def test_its_module_builds_what_it_describes(self, engine):
        if not check_engine(engine).is_available:
            pytest.skip(check_engine(engine).reason)
        assert load_engine(engine.id).descriptor == engine


def test_listing_engines_imports_none_of_what_they_need():
    code = (
        "import sys; from lamella.engines.registry import list_engines; list_engines();"
        "print({'numpy', 'scipy', 'zarr', 'torch', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_engine_names_those_known():
    with pytest.raises(UnknownEngineError, match=r"known engines: .*classical"):
        find_engine("clasical")


def test_an_engine_without_its_packages_is_refused_with_what_to_install(monkeypatch):
    absent = EngineDescriptor(
        id="absent",
        title="Absent",
        description="Needs what is not there.",
        module="lamella.engines.absent",
        axes=("zyx",),
        produces=("semantic",),
        needs=("no_such_package_anywhere",),
        extra="absent",
    )
    monkeypatch.setattr(registry, "_OWN", (*registry._OWN, absent))
    with pytest.raises(MissingDependencyError, match="no_such_package_anywhere") as caught:
        load_engine("absent")
    assert caught.value.hint == 'pip install "lamella[absent]"'


KNOWN = (
    OptionDescriptor("size", "int", 3, "A size.", minimum=1, maximum=9),
    OptionDescriptor("width", "float", None, "A width.", minimum=0),
    OptionDescriptor("flag", "bool", False, "A flag."),
    OptionDescriptor("kind", "choice", "a", "A kind.", choices=("a", "b")),
    OptionDescriptor("note", "text", "", "A note."),
)


class TestOptions:
    @given(st.integers(1, 9), st.floats(0, 1e9), st.booleans(), st.sampled_from("ab"))
    def test_text_and_values_mean_the_same(self, size, width, flag, kind):
        values = {"size": size, "width": width, "flag": flag, "kind": kind}
        as_text = {name: str(value) for name, value in values.items()}
        assert resolve_options("x", KNOWN, values) == resolve_options("x", KNOWN, as_text)

    def test_what_is_not_given_keeps_its_default(self):
        resolved = resolve_options("x", KNOWN, {"size": 4, "width": None})
        assert resolved == {"size": 4, "width": None, "flag": False, "kind": "a", "note": ""}

    @pytest.mark.parametrize(
        ("given_options", "words"),
        [
            ({"sise": 1}, "no option 'sise'"),
            ({"size": 2.5}, "whole number"),
            ({"size": 10}, "from 1 to 9"),
            ({"size": True}, "expected a number"),
            ({"width": "inf"}, "finite"),
            ({"flag": "maybe"}, "true or false"),
            ({"kind": "c"}, "one of a, b"),
            ({"kind": ["a"]}, "one of a, b"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_words(self, given_options, words):
        with pytest.raises(InputError, match=words):
            resolve_options("x", KNOWN, given_options)

    def test_an_unknown_option_names_its_neighbours(self):
        with pytest.raises(InputError) as caught:
            resolve_options("x", KNOWN, {"sise": 1})
        assert "did you mean size" in caught.value.hint
