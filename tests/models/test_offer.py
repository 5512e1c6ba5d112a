"""Catalogues: shipped, the user's, servers'; a bad one is told and hides no other."""

import json

import pytest

from lamella.core.places import Places
from lamella.engines.registry import list_engines
from lamella.models.offer import list_kept_catalogues, read_offers, shipped_catalogue
from lamella.wire.catalogue import CatalogueDoc


def catalogue(model_id="mine", url="weights.bin", **changes):
    entry = {
        "id": model_id,
        "engine": "nnunet",
        "title": "Mine",
        "licence": "CC0",
        "files": [{"name": "weights.bin", "urls": [url]}],
    }
    return {"format_version": 1, "title": "the lab's", "models": [entry | changes]}


def write(path, document):
    path.write_text(json.dumps(document))
    return path


SHIPPED = read_offers(Places())


def test_the_shipped_catalogue_is_sound():
    assert SHIPPED.problems == ()
    assert len(SHIPPED.offers) >= 15


@pytest.mark.parametrize("offer", SHIPPED.offers, ids=lambda offer: offer.entry.id)
def test_every_shipped_entry(offer):
    entry = offer.entry
    assert entry.title
    assert entry.licence
    assert entry.homepage.startswith("https://")
    for file in entry.files:
        assert all(url.startswith("https://") for url in file.urls)
        assert file.urls


def test_shipped_entries_are_of_engines_that_exist():
    known = {engine.id for engine in list_engines()} | {"cellpose3", "cellpose4"}
    known |= {"totalsegmentator", "monai", "nnunet"}
    assert {offer.entry.engine for offer in SHIPPED.offers} <= known


def test_the_shipped_files_are_as_they_are_written():
    for path in shipped_catalogue().glob("*.json"):
        document = CatalogueDoc.read(path)
        assert [entry.id for entry in document.models]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_users_catalogue_comes_first_and_addresses_count_from_it(tmp_path, is_folder):
    first = SHIPPED.offers[0].entry.id
    path = write(tmp_path / "lab.json", catalogue(first))
    offers = read_offers(Places(catalogues=(str(tmp_path if is_folder else path),)))
    offer = offers.find(first)
    assert offer.catalogue == "the lab's"
    assert offer.entry.files[0].urls == ((tmp_path.resolve() / "weights.bin").as_uri(),)
    assert len(offers.offers) == len(SHIPPED.offers)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"models": [{}]},
        catalogue("Not An Id"),
        catalogue(files=[]),
        catalogue(files=[{"name": "../x", "urls": []}]),
        catalogue(files=[{"name": "x", "urls": [], "sha256": "abc"}]),
        catalogue(files=[{"name": "x", "urls": []}, {"name": "x", "urls": []}]),
        catalogue(files=[{"name": "x", "urls": [], "folder": "../up"}]),
        catalogue(surprise=1),
    ],
)
def test_a_broken_catalogue_is_told_and_hides_no_other(tmp_path, document):
    path = write(tmp_path / "lab.json", document)
    offers = read_offers(Places(catalogues=(str(path), str(tmp_path / "gone.json"))))
    assert len(offers.problems) == 2
    assert "not a valid" in offers.problems[0]
    assert "cannot be read" in offers.problems[1]
    assert len(offers.offers) == len(SHIPPED.offers)


def test_ids_that_repeat_are_told(tmp_path):
    document = catalogue()
    document["models"] *= 2
    path = write(tmp_path / "lab.json", document)
    assert "ids repeat" in read_offers(Places(catalogues=(str(path),))).problems[0]


# --- servers ------------------------------------------------------------------------------------


@pytest.fixture
def lab(server, places):
    server.files["lab/models.json"] = json.dumps(catalogue()).encode()
    address = server.url("lab/models.json")
    return server, Places(models=places.models, catalogues=(address,))


def test_a_servers_catalogue_is_read_kept_and_readable_offline(lab):
    server, places = lab
    offer = read_offers(places).find("mine")
    assert offer.entry.files[0].urls == (server.url("lab/weights.bin"),)
    offline = Places(models=places.models, catalogues=places.catalogues, is_offline=True)
    assert read_offers(offline) == read_offers(places, asks_servers=False)
    assert read_offers(offline).find("mine") is not None
    assert len(server.log) == 1
    assert [address for address, _ in list_kept_catalogues(places)] == list(places.catalogues)


def test_an_unchanged_catalogue_is_not_sent_again(lab):
    server, places = lab
    read_offers(places)
    assert read_offers(places).find("mine") is not None
    assert [one.status for one in server.log] == [200, 304]


def test_a_server_that_is_gone_leaves_its_copy_and_a_note(lab, wild_server):
    server, places = lab
    read_offers(places)
    server.always = wild_server.Fault("status", status=503)
    offers = read_offers(places)
    assert offers.find("mine") is not None
    assert "503" in offers.problems[0]
    assert "its copy is used" in offers.problems[0]


def test_never_read_and_offline(places):
    offline = Places(models=places.models, catalogues=("http://no.invalid/x",), is_offline=True)
    assert "was never read here" in read_offers(offline).problems[0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "data:,x"])
def test_a_server_may_not_name_files_of_this_machine(lab, url):
    server, places = lab
    server.files["lab/models.json"] = json.dumps(catalogue(url=url)).encode()
    offers = read_offers(places)
    assert offers.find("mine") is None
    assert "no web address" in offers.problems[0]


def test_a_catalogue_without_end_is_left(lab):
    server, places = lab
    server.files["lab/models.json"] = b" " * 17_000_000
    server.piece = 1 << 20
    assert "too large" in read_offers(places).problems[0]
