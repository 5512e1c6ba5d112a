"""Settings: which source wins, what is refused, and how."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, MissingPathError
from lamella.server.settings import Settings, flag_of, load_settings, masked


def test_a_later_source_wins(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text("port = 1\nworkers = 2\nrate_limit = 3\n")
    found = load_settings(
        path=path,
        environment={"LAMELLA_SERVER_PORT": "4", "LAMELLA_SERVER_WORKERS": "5", "OTHER": "x"},
        flags={"port": 6, "host": None},
    )
    assert (found.settings.port, found.settings.workers, found.settings.rate_limit) == (6, 5, 3)
    assert found.sources == {
        "rate_limit": f"file {path}",
        "workers": "environment LAMELLA_SERVER_WORKERS",
        "port": "flag --port",
    }


def test_the_file_of_the_data_folder_is_found(tmp_path):
    (tmp_path / "server.toml").write_text("workers = 7\n")
    assert load_settings(environment={}, flags={"data_dir": tmp_path}).settings.workers == 7
    variables = {"LAMELLA_SERVER_DATA_DIR": str(tmp_path)}
    assert load_settings(environment=variables).settings.workers == 7


def test_lists_and_tables_of_the_environment():
    found = load_settings(
        environment={
            "LAMELLA_SERVER_ALLOWED_ROOTS": "/data, s3://bucket/scans",
            "LAMELLA_SERVER_CLUSTER_OPTIONS": '{"queue": "gpu"}',
        }
    )
    assert found.settings.allowed_roots == ("/data", "s3://bucket/scans")
    assert found.settings.cluster_options == {"queue": "gpu"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("50GB", 50 * 10**9), ("2 GiB", 2 * 1024**3), ("1.5T", int(1.5 * 1024**4)), ("77", 77)],
)
def test_sizes_have_units(text, value):
    found = load_settings(environment={}, flags={"max_upload_bytes": text})
    assert found.settings.max_upload_bytes == value


@pytest.mark.parametrize(("text", "value"), [("7d", 604_800), ("90min", 5_400), ("12.5", 12.5)])
def test_times_have_units(text, value):
    assert load_settings(environment={}, flags={"retention_s": text}).settings.retention_s == value


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LAMELLA_SERVER_PROT": "1"}, "did you mean port"),
        ({"LAMELLA_SERVER_PORT": "many"}, "environment LAMELLA_SERVER_PORT"),
        ({"LAMELLA_SERVER_PORT": "70000"}, "less than or equal to 65535"),
        ({"LAMELLA_SERVER_RETENTION_S": "3y"}, "s, min, h, d"),
        ({"LAMELLA_SERVER_CLUSTER_OPTIONS": "{"}, "is not JSON"),
        ({"LAMELLA_SERVER_GPUS": "first"}, "auto, none or numbers"),
        ({"LAMELLA_SERVER_CORS_ORIGINS": "viewer.lab"}, "https://viewer.lab.org"),
        ({"LAMELLA_SERVER_PUBLIC_URL": "gpu.lab"}, "http://... or https://..."),
        ({"LAMELLA_SERVER_CONFIG": "/nowhere/server.toml"}, "there is no"),
    ],
)
def test_what_is_wrong_is_said_with_its_source(variables, told):
    with pytest.raises((InputError, MissingPathError)) as caught:
        load_settings(environment=variables)
    assert told in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("text", ["port = ", "nothing = 1\n", "[table]\nx = 1\n"])
def test_a_file_that_is_wrong_is_named(tmp_path, text):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"server\.toml"):
        load_settings(environment={}, path=path)


@given(st.text(alphabet="abcXYZ019_%.-", min_size=1, max_size=20))
def test_no_password_is_ever_shown(password):
    shown = masked("database_url", f"postgresql://lab:{password}@db.lab/lamella")
    assert shown == "postgresql://lab:***@db.lab/lamella"


def test_nor_one_that_stands_in_the_query():
    shown = masked("database_url", "postgresql://db.lab/x?user=lab&password=hush&sslmode=require")
    assert shown == "postgresql://db.lab/x?user=lab&password=***&sslmode=require"


def test_what_nothing_means_is_said():
    rows = {name: value for name, value, _ in load_settings(environment={}).rows()}
    for name in ("user_quota_bytes", "max_total_bytes", "max_running_per_user"):
        assert rows[name] == "no limit"
    assert rows["retention_s"] == "kept until they are deleted"
    assert rows["database_url"] == "SQLite in the data folder"
    assert "0" not in rows.values()


def test_no_option_of_a_cluster_shows_its_secret():
    assert masked("cluster_options", {"queue": "gpu", "api_token": "x"}) == (
        "queue=gpu, api_token=***"
    )


def test_every_setting_has_words_and_a_flag_of_its_own():
    flags = [flag_of(name) for name in Settings.model_fields]
    assert len(set(flags)) == len(flags)
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_setting_is_an_option_of_the_command():
    from lamella.cli.serve import command

    names = {parameter.name for parameter in command.params}
    assert set(Settings.model_fields) <= names


def test_the_reference_page_is_what_the_settings_say():
    path = Path(__file__).parents[2] / "docs/reference/write_settings.py"
    spec = importlib.util.spec_from_file_location("write_settings", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page(), "run: python docs/reference/write_settings.py"
    for name in Settings.model_fields:
        assert f"| `{name}` | `{flag_of(name)}` |" in page
