"""The worker that runs Cellpose 3's restoration models; lives in the environment ``cellpose3``.

Started as ``python -I cellpose3_worker.py FOLDER`` by :mod:`lamella.isolation.process`. It asks for
one slice after the other, brought to 0..1 by the host, and leaves the restored slice.
"""

import sys


def main(channel):
    """Load the model once, then restore slice by slice."""
    import numpy as np
    from cellpose import denoise  # type: ignore[import-not-found]

    request = channel.request
    model = _load(channel, denoise)
    n_slices = int(request["n_slices"])
    for z in range(n_slices):
        channel.check()
        answer = channel.ask("slice", z=z)
        plane = np.array(channel.load(answer["array"]), np.float32)
        found = model.eval(
            plane,
            channels=[0, 0],
            normalize=False,
            diameter=request.get("diameter"),
            rescale=None if request.get("diameter") else 1.0,
        )
        found = np.asarray(found, np.float32).reshape(plane.shape)
        name = channel.save("restored.npy", found)
        # The host has the slice when it answers; the next may take its place.
        channel.ask("restored", z=z, array=name)
        channel.progress(request["stage"], z + 1, n_slices, "slices")
    channel.result(model=str(request["model"]))


def _load(channel, denoise):
    import torch

    path = str(channel.request["model"])
    use_gpu = str(channel.request["device"]).startswith("cuda")
    device = torch.device(channel.request["device"] if use_gpu else "cpu")
    try:
        return denoise.DenoiseModel(gpu=use_gpu, pretrained_model=path, device=device, nchan=1)
    except Exception as error:  # noqa: BLE001 - whatever a file that is no model does
        return channel.fail(
            "invalid_model",
            f"{path} is no restoration model of Cellpose 3: {type(error).__name__}: {error}",
            "give the weights of a model such as denoise_cyto3 with --model PATH",
        )


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import child  # type: ignore[import-not-found]  # found in the folder the host names

    child.serve(main)
