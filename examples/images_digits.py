"""Images of unseen classes: learn from handwritten digits 0-4, then search among 5-9.

Every digit lies at a random place of a larger canvas, so raw pixels say little. A small convolutional network learns
with the circle loss; quarter turns of a digit count as classes of their own, since five classes are few. The
threshold-consistent margin (TCM) is added as a regulariser, and ``GlobalProxyMiner`` composes the batches of classes
that look alike.

    python examples/images_digits.py
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nearfar.losses import CircleLoss, ThresholdConsistentMarginLoss, WeightedSum
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval import ClassEvaluator, TensorData, fine_tune

CANVAS, SIZE = 12, 8


def digits() -> tuple[TensorData, TensorData]:
    """Digits 0-4 in four turns, 20 classes to learn from, and digits 5-9 to search among: (N, 1, 12, 12)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8), in [0, 1]
    labels = torch.tensor(data.target)
    seen = labels < 5
    turned = torch.cat([images[seen].rot90(turns, (2, 3)) for turns in range(4)])
    classes = torch.cat([4 * labels[seen] + turns for turns in range(4)])
    generator = torch.Generator().manual_seed(0)
    train, unseen = (placed(part, generator) for part in (turned, images[~seen]))
    return TensorData(train, classes), TensorData(unseen, labels[~seen])


def placed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image at a random place of an empty canvas."""
    canvas = torch.zeros(len(images), 1, CANVAS, CANVAS)
    corners = torch.randint(CANVAS - SIZE + 1, (len(images), 2), generator=generator).tolist()
    for image, target, (row, column) in zip(images, canvas, corners, strict=True):
        target[:, row : row + SIZE, column : column + SIZE] = image
    return canvas


def network(seed: int) -> nn.Module:
    """Images (B, 1, 12, 12) to embeddings (B, 32)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 32),
        )


def main(seed: int = 0) -> dict[str, dict[str, float]]:
    """Train; print and return the figures on the unseen digits before and after."""
    train, unseen = digits()
    evaluate = ClassEvaluator(unseen, "unseen", ks=[1])
    model = network(seed)
    figures = {"untrained": evaluate(model)}
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            model,
            train,
            loss=WeightedSum({CircleLoss(gamma=32): 1.0, ThresholdConsistentMarginLoss(): 1.0}),
            output_dir=folder,
            epochs=4,
            batch_size=64,
            learning_rate=3e-3,
            miner=GlobalProxyMiner(group_size=4, samples_per_class=4, seed=seed),
            seed=seed,
        )
    figures["trained"] = evaluate(model)
    print(f"{'digits 5-9':10} {'hit@1':>8} {'MAP@R':>8} {'OPIS':>8}")
    for name, found in figures.items():
        print(f"{name:10}" + "".join(f" {found[f'unseen_{metric}']:8.4f}" for metric in ("hit@1", "MAP@R", "OPIS")))
    return figures


if __name__ == "__main__":
    main()
