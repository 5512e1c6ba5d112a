"""A large job of a server on a cluster: cut into blocks for idle workers, with the same result."""

import io
import tarfile

import pytest
from starlette.testclient import TestClient

import lamella as lm
from lamella.core.places import Places
from lamella.io.format import save_volume
from lamella.server.app import create_app
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.volume import Volume
from lamella.wire.access import TokenSpec


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_path):
    """The tiny model as an installed one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "bright").symlink_to(model_path, target_is_directory=True)
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory, scattered_balls):
    image = scattered_balls((96, 64, 64))
    volume = Volume.from_array(image, spacing=(4.0, 2.0, 2.0), unit="nm")
    return save_volume(volume, tmp_path_factory.mktemp("inputs") / "big.mrc")


@pytest.fixture
def serve(tmp_path, path, models, dask_site):
    def make(**settings):
        return Settings(
            data_dir=tmp_path / "data",
            port=0,
            min_free_bytes=0,
            allowed_roots=(str(path.parent),),
            shutdown_grace_s=2.0,
            **settings,
        )

    return make


def run_job(settings, models, path):
    services = open_services(settings, places=Places(models=models))
    spec = TokenSpec.model_validate({"user": "maria", "role": "annotator"})
    headers = {"Authorization": f"Bearer {services.tokens.add(spec).secret}"}
    with TestClient(create_app(settings, services)) as client:
        request = {
            "input": {"path": str(path)},
            "model": "bright",
            "instances": "components",
            "preview": False,
        }
        sent = client.post("/api/v1/jobs", json={"request": request}, headers=headers)
        assert sent.status_code == 201, sent.text
        job = sent.json()["id"]
        asked = {**headers, "Accept": "text/event-stream"}
        client.get(f"/api/v1/jobs/{job}/events", headers=asked)
        found = client.get(f"/api/v1/jobs/{job}", headers=headers).json()
        assert found["state"] == "finished", found
        archive = client.get(f"/api/v1/jobs/{job}/artifacts/run.tar", headers=headers)
    return job, archive.content


def test_idle_workers_help_with_a_large_job(serve, dask_site, models, path, tmp_path):
    settings = serve(
        scheduler=dask_site.address,
        cluster_options={**dask_site.certificates.options, "grace_s": 2.0},
        block_min_voxels=1000,
    )
    job, content = run_job(settings, models, path)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="data")
    remote = lm.open_run(tmp_path / f"{job}.run")
    local = lm.segment(
        path,
        str(models / "bright"),
        instances="components",
        preview=False,
        run_dir=tmp_path / "local.run",
    )
    assert remote.manifest.labels == local.manifest.labels
    table = "objects.csv"
    assert (remote.folder / table).read_bytes() == (local.folder / table).read_bytes()
    facts = remote.manifest.options_resolved["blocks"]
    assert facts["n"] > 1
    assert facts["workers"] == 2


def test_only_jobs_on_a_cluster_are_cut(settings):
    assert settings.block_min_voxels == 2**27
    assert not settings.is_on_cluster
    assert settings.model_copy(update={"cluster": "slurm"}).is_on_cluster
