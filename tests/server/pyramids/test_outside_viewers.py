"""Readers that know nothing of us, over HTTP from a real server: zarr-python by fsspec, zarrita.

zarrita is what NiiVue's and other viewers of the web read OME-Zarr with; it comes from npm, as it
is, and knows nothing but the signed address.
"""

import json
import subprocess
import time

import httpx2
import numpy as np
import pytest

import lamella as lm
from lamella.io.format import SaveOptions, save_volume
from lamella.testing.server import run_server
from lamella.volume import Volume

SCRIPT = """
const zarr = await import("zarrita");
const url = process.argv[2];
const group = await zarr.open(new zarr.FetchStore(url), { kind: "group" });
const attributes = group.attrs.ome ?? group.attrs;
const levels = attributes.multiscales[0].datasets;
const found = [];
for (const level of levels) {
  const array = await zarr.open(group.resolve(level.path), { kind: "array" });
  const data = (await zarr.get(array)).data;
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += Number(data[i]) * ((i % 7) + 1);
  found.push({ shape: array.shape, scale: level.coordinateTransformations[0].scale, sum });
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def image():
    """Large enough for levels; much of it nothing, so that chunks are missing."""
    data = np.zeros((40, 300, 280), np.uint8)
    data[10:30, 150:290, 20:200] = np.random.default_rng(1).integers(1, 255, (20, 140, 180))
    return Volume.from_array(data, spacing=(3.0, 1.5, 1.5), unit="nm")


@pytest.fixture(scope="module")
def site(tmp_path_factory, image):
    folder = tmp_path_factory.mktemp("viewers")
    save_volume(image, folder / "scan.mrc")
    save_volume(image, folder / "own.ome.zarr", SaveOptions(pyramid=True))
    save_volume(image, folder / "old.zarr", SaveOptions(format="ome-zarr-0.4", pyramid=True))
    with (
        run_server(folder / "data", "--allow-root", str(folder), "--gpus", "none") as server,
        httpx2.Client(base_url=f"{server.url}/api/v1", headers=server.headers) as client,
    ):
        yield client, folder


def view_of(site, name):
    client, folder = site
    volume = client.post("/volumes", json={"path": str(folder / name)}).json()["id"]
    deadline = time.monotonic() + 60
    while True:
        view = client.get(f"/volumes/{volume}/view-url").json()
        if view["state"] == "ready":
            return view
        assert view["state"] == "preparing", view
        assert time.monotonic() < deadline
        time.sleep(0.1)


def sum_of(array):
    """As the script sums, so that neither order nor values can be wrong."""
    flat = np.ascontiguousarray(array).ravel().astype(np.int64)
    return int((flat * (np.arange(flat.size) % 7 + 1)).sum())


@pytest.mark.parametrize(
    ("name", "version"), [("scan.mrc", "0.5"), ("own.ome.zarr", "0.5"), ("old.zarr", "0.4")]
)
def test_zarr_python_reads_every_level(site, image, name, version):
    import zarr

    view = view_of(site, name)
    assert view["version"] == version
    group = zarr.open_group(view["url"], mode="r", zarr_format=3 if version == "0.5" else 2)
    attributes = group.attrs.get("ome", group.attrs)
    levels = attributes["multiscales"][0]["datasets"]
    assert len(levels) >= 2
    assert levels[0]["coordinateTransformations"][0]["scale"] == [3.0, 1.5, 1.5]
    assert np.array_equal(group[levels[0]["path"]][...], image.load())
    coarsest = group[levels[-1]["path"]]
    assert max(coarsest.shape) <= 512
    assert coarsest[...].any()


@pytest.mark.parametrize("name", ["scan.mrc", "own.ome.zarr", "old.zarr"])
def test_images_are_ome_zarr_by_the_letter(site, name):
    import zarr
    from ome_zarr_models import v04, v05

    view = view_of(site, name)
    is_new = view["version"] == "0.5"
    group = zarr.open_group(view["url"], mode="r", zarr_format=3 if is_new else 2)
    checked = (v05 if is_new else v04).Image.from_zarr(group)
    # The second look of the models: axes, transformations and arrays fit each other.
    assert len(checked.datasets[0]) >= 2


@pytest.mark.parametrize("name", ["own.ome.zarr", "old.zarr"])
def test_an_image_with_levels_is_served_as_it_is(site, name):
    _, folder = site
    view = view_of(site, name)
    document = "zarr.json" if name == "own.ome.zarr" else ".zattrs"
    answer = httpx2.get(f"{view['url']}/{document}")
    assert answer.content == (folder / name / document).read_bytes()
    assert answer.headers["content-type"] == "application/json"
    volume = view["url"].split("/volumes/")[1].split("/")[0]
    assert not (folder / "data" / "cache" / "pyramids" / f"{volume}.ome.zarr").exists()


def test_labels_of_a_job_are_read_as_they_lie(site):
    import zarr

    client, folder = site
    request = {"input": {"path": str(folder / "scan.mrc")}, "model": "classical:otsu"}
    job = client.post("/jobs", json={"request": request}).json()["id"]
    with client.stream(
        "GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}, timeout=120
    ) as stream:
        stream.read()
    document = client.get(f"/jobs/{job}").json()
    assert document["state"] == "finished", document
    from ome_zarr_models import v05

    for labels in ("labels", "objects", "preview"):
        view = client.get(f"/jobs/{job}/view-url", params={"labels": labels}).json()
        assert view["state"] == "ready"
        remote = zarr.open_group(view["url"], mode="r", zarr_format=3)
        local = lm.open(folder / "data" / "jobs" / job / "run" / f"{labels}.ome.zarr")
        assert np.array_equal(remote["0"][...], local.load())
        assert remote["0"][...].any()
        checked = v05.ImageLabel.from_zarr(remote)
        assert checked.attributes.ome.multiscales[0].axes[0].name == "z"
    # What is never shown: whatever else lies in the run folder.
    assert client.get(f"/jobs/{job}/view-url", params={"labels": "secret"}).status_code == 422


@pytest.fixture(scope="session")
def zarrita(node_packages):
    """A folder with zarrita, and what reads with it."""
    folder = node_packages
    (folder / "read.mjs").write_text(SCRIPT)
    return folder


@pytest.mark.parametrize("name", ["scan.mrc", "old.zarr"])
def test_zarrita_reads_every_level(site, image, zarrita, name):
    view = view_of(site, name)
    done = subprocess.run(
        ["node", zarrita / "read.mjs", view["url"]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    levels = json.loads(done.stdout)
    assert levels[0] == {
        "shape": [40, 300, 280],
        "scale": [3, 1.5, 1.5],
        "sum": sum_of(image.load()),
    }
    assert len(levels) >= 2
