"""Trains a Cellpose 3 network on images and labels; runs in Cellpose's environment.

    python -I training.py IMAGES.npy LABELS.npy WEIGHTS

Images (n, y, x), labels (n, y, x). Cellpose's own ``train_seg`` is many times slower on a CPU.
"""

import sys

import numpy as np
import torch
from cellpose import dynamics, models, transforms

N_STEPS, BATCH, EDGE, RATE = 110, 4, 96, 0.004


def main(images, labels, weights):
    torch.manual_seed(0)
    # Threads that wait for each other on a busy machine cost more than they bring.
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = np.stack([transforms.normalize99(image.astype(np.float32)) for image in images])
    y = np.stack([dynamics.masks_to_flows(one.astype(np.int32)) for one in labels])
    model = models.CellposeModel(gpu=False, pretrained_model=None, diam_mean=17.0, mkldnn=False)
    net = model.net.to(memory_format=torch.channels_last)
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=N_STEPS)
    for _ in range(N_STEPS):
        batch, target = draw(x, y, labels, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(batch)[0]
        logits = logits.float()
        loss = 0.5 * torch.nn.functional.mse_loss(logits[:, :2], 5 * target[:, 1:])
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 2], target[:, 0]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.diam_labels.data[:] = 17.0
    net.to(memory_format=torch.contiguous_format).save_model(weights)


def draw(x, y, labels, rng):
    batch = np.zeros((BATCH, 2, EDGE, EDGE), np.float32)
    target = np.zeros((BATCH, 3, EDGE, EDGE), np.float32)
    for at in range(BATCH):
        n = rng.integers(len(x))
        r, c = rng.integers(0, x.shape[1] - EDGE + 1, 2)
        box = np.s_[r : r + EDGE, c : c + EDGE]
        image, flow, is_cell = x[n][box], y[n][:, box[0], box[1]], labels[n][box] > 0
        if rng.random() < 0.5:
            image, is_cell = image[::-1], is_cell[::-1]
            flow = flow[:, ::-1] * np.array([-1, 1])[:, None, None]
        if rng.random() < 0.5:
            image, is_cell = image[:, ::-1], is_cell[:, ::-1]
            flow = flow[:, :, ::-1] * np.array([1, -1])[:, None, None]
        if rng.random() < 0.5:
            image, is_cell, flow = image.T, is_cell.T, flow[::-1].transpose(0, 2, 1)
        batch[at, 0], target[at, 0], target[at, 1:] = image, is_cell, flow
    channels_last = torch.from_numpy(batch).to(memory_format=torch.channels_last)
    return channels_last, torch.from_numpy(target)


if __name__ == "__main__":
    main(np.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3])
