"""NiiVue itself, in a browser, on a page of another origin: a volume and its labels, as addresses.

NiiVue comes from npm as it is; the page knows nothing but the two signed addresses. It tells what
it has read and drawn to the small server that gave it.
"""

import base64
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
import time

import httpx2
import numpy as np
import pytest

import lamella as lm
from lamella.io.format import save_volume
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.testing.outside import need_programs
from lamella.testing.server import run_server
from lamella.volume import Volume

PAGE = """<!doctype html><body style="margin:0;background:#000">
<div style="width:600px;height:400px"><canvas id="view"></canvas></div>
<script type="module">
import { Niivue } from "./niivue.js";
const told = (values) => fetch("/told", { method: "POST", body: JSON.stringify(values) });
try {
  const [image, labels] = IMAGES;
  const nv = new Niivue({ backColor: [0, 0, 0, 1] });
  await nv.attachTo("view");
  nv.setSliceType(nv.sliceTypeAxial);
  const whole = { zarrLevel: 0, zarrMaxVolumeSize: 256, zarrConvertUnits: false };
  await nv.loadVolumes([
    { ...whole, url: image, name: "image.ome.zarr", colormap: "gray" },
    { ...whole, url: labels, name: "labels.ome.zarr", colormap: "random", opacity: 0.7 },
  ]);
  const sum = (data) => { let n = 0; for (const one of data) n += one; return n; };
  // Chunks come one by one, and a missing one is all background.
  for (let n = 0, before = -1; n < 40; n++) {
    const now = sum(nv.volumes[0].img) + sum(nv.volumes[1].img);
    if (now === before && sum(nv.volumes[1].img) > 0) break;
    before = now;
    await new Promise((done) => setTimeout(done, 250));
  }
  const read = nv.volumes.map((one) => ({
    dims: [...one.hdr.dims].slice(1, 4), spacing: [...one.hdr.pixDims].slice(1, 4),
    sum: sum(one.img), max: one.img.reduce((a, b) => Math.max(a, b), 0),
  }));
  // Labels of 32 bits are drawn as floats: NiiVue has no shader for them.
  const drawn = nv.volumes[1];
  drawn.img = Float32Array.from(drawn.img);
  drawn.hdr.datatypeCode = 16;
  drawn.hdr.numBitsPerVoxel = 32;
  drawn.cal_min = 0.5;
  drawn.cal_max = read[1].max;
  nv.updateGLVolume();
  nv.drawScene();
  told({ read, picture: nv.canvas.toDataURL("image/png") });
} catch (error) { told({ error: String(error) + (error.stack ?? "") }); }
</script>"""
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def niivue(node_packages, tmp_path_factory):
    """A folder with NiiVue as one file."""
    need_programs("chromium|google-chrome")
    folder = tmp_path_factory.mktemp("niivue")
    built = node_packages / "node_modules/@niivue/niivue/dist/index.js"
    shutil.copy(built, folder / "niivue.js")
    return folder


class Told(http.server.ThreadingHTTPServer):
    """Gives the page, and hears what it has to say."""

    daemon_threads = True

    def __init__(self, page, script):
        self.files = {"/": (page, "text/html"), "/niivue.js": (script, "text/javascript")}
        self.heard = {}
        self.has_heard = threading.Event()
        super().__init__(("127.0.0.1", 0), Answers)


class Answers(http.server.BaseHTTPRequestHandler):
    server: Told

    def do_GET(self):
        body, kind = self.server.files.get(self.path, (b"", "text/plain"))
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.server.heard = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.has_heard.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


def browse(niivue, urls, profile):
    """What the page told."""
    page = PAGE.replace("IMAGES", json.dumps(urls)).encode()
    with Told(page, (niivue / "niivue.js").read_bytes()) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
             "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
             f"--user-data-dir={profile}", f"http://127.0.0.1:{site.server_address[1]}/"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert site.has_heard.wait(90), "the page said nothing"
        finally:
            os.killpg(browser.pid, 9)
            browser.wait()
            site.shutdown()
        return site.heard


def wait_for(client, path, done):
    deadline = time.monotonic() + 90
    while not done(answer := client.get(path).json()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer


def test_niivue_shows_a_volume_and_its_labels(niivue, tmp_path):
    from PIL import Image

    nuclei = draw_nuclei(NucleiOptions(shape=(24, 128, 128)), seed=3)
    volume = Volume.from_array(nuclei.image, spacing=(2.0, 1.0, 1.0), unit="um")
    save_volume(volume, tmp_path / "nuclei.mrc")
    flags = ("--allow-root", str(tmp_path), "--gpus", "none", "--worker-threads", "1")
    with (
        run_server(tmp_path / "data", *flags) as server,
        httpx2.Client(base_url=f"{server.url}/api/v1", headers=server.headers) as client,
    ):
        made = client.post("/volumes", json={"path": str(tmp_path / "nuclei.mrc")}).json()
        volume_id = made["id"]
        wait_for(client, f"/volumes/{volume_id}", lambda told: told["state"] == "ready")
        request = {"input": {"path": f"volume:{volume_id}"}, "model": "classical:otsu",
                   "instances": "components"}  # fmt: skip
        job = client.post("/jobs", json={"request": request}).json()["id"]
        ended = wait_for(client, f"/jobs/{job}", lambda told: told["finished"] is not None)
        assert ended["state"] == "finished", ended
        views = [
            wait_for(client, f"/{path}/view-url", lambda told: told["state"] == "ready")["url"]
            for path in (f"volumes/{volume_id}", f"jobs/{job}")
        ]
        heard = browse(niivue, views, tmp_path / "profile")
        labels = lm.open(tmp_path / "data" / "jobs" / job / "run" / "labels.ome.zarr").load()
    assert "error" not in heard, heard["error"]
    for told, array in zip(heard["read"], (nuclei.image, labels), strict=True):
        assert told["dims"] == [128, 128, 24]
        assert told["spacing"] == [1.0, 1.0, 2.0]
        assert told["sum"] == int(array.sum(dtype=np.int64))
        assert told["max"] == int(array.max())
    picture = base64.b64decode(heard["picture"].partition(",")[2])
    (tmp_path / "picture.png").write_bytes(picture)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 40
    assert (pixels.max(axis=2) > 30).mean() > 0.02, "nothing was drawn"
    assert colourful.mean() > 0.002, "no labels were drawn"
