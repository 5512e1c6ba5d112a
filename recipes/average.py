"""Average the weights of two model folders of one network: ``average.py FIRST SECOND -o FOLDER``.

Training on from a model makes it better at what the new stage shows and worse at what it shows no
longer; the mean of the weights before and after is often nearly as good as each at its own
(Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

from pathlib import Path

import click
import torch

from lamella.models.folder import ModelFolder, write_model_folder

FOLDER = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--share", default=0.5, help="weight of the second model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(first: Path, second: Path, share: float, output: Path) -> None:
    """Write the average of FIRST and SECOND; its card is SECOND's, without scores."""
    model = ModelFolder.open(second)
    network = model.load_network()
    a, b = ModelFolder.open(first).load_network().state_dict(), network.state_dict()
    mixed = {k: torch.lerp(a[k], b[k], share) if a[k].is_floating_point() else b[k] for k in b}
    network.load_state_dict(mixed)
    card = model.card.model_copy(update={"calibration": None, "metrics": ()})
    write_model_folder(output, card, network, overwrite=True)


if __name__ == "__main__":
    main()
