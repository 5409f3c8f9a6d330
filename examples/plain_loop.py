"""A training loop of one's own, with parts of nearfar and of pytorch-metric-learning (PML) side by side.

The task is that of ``images_digits.py``: learn from digits 0-4, search among 5-9. Nothing here is hidden in a trainer:

- which samples share a batch: nearfar's ``GlobalProxyMiner``;
- which pairs of the batch count: nearfar's ``MultiSimilarityMiner``, which gives what PML's gives;
- the loss: PML's ``MultiSimilarityLoss``, with nearfar's threshold-consistent margin as a regulariser;
- more negatives than a batch holds: nearfar's ``EmbeddingMemory`` around its own multi-similarity loss.

    python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from images_digits import digits, network  # the example next door
from pytorch_metric_learning import losses as pml_losses

from nearfar.losses import MultiSimilarityLoss, ThresholdConsistentMarginLoss
from nearfar.miners import EmbeddingMemory, GlobalProxyMiner, MultiSimilarityMiner
from nearfar.retrieval import ClassEvaluator

EPOCHS, BATCH, MEMORY, WARM_UP = 4, 64, 512, 50


def main(seed: int = 0) -> dict[str, dict[str, float]]:
    """Train; print and return the figures on the unseen digits before and after."""
    train, unseen = digits()
    evaluate = ClassEvaluator(unseen, "unseen", ks=[1])
    model = network(seed)
    figures = {"untrained": evaluate(model)}

    batches = GlobalProxyMiner(group_size=4, samples_per_class=4, proxy_dim=None, seed=seed)
    batches.fit(train.labels, batch_size=BATCH)
    pairs = MultiSimilarityMiner(epsilon=0.1)
    base, margin = pml_losses.MultiSimilarityLoss(), ThresholdConsistentMarginLoss()
    memory = EmbeddingMemory(MultiSimilarityLoss(), size=MEMORY, warm_up=WARM_UP)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for epoch in range(EPOCHS):
        losses = []
        for rows in batches.batches():
            labels = train.labels[rows]
            embeddings = model(train.inputs[rows])  # (B, 32)
            batches.update(embeddings, labels)  # what the next epoch's batches are made of
            loss = base(embeddings, labels, pairs(embeddings, labels))
            loss = loss + 0.1 * margin(embeddings, labels) + memory(embeddings, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

    figures["trained"] = evaluate(model)
    print(f"{'digits 5-9':10} {'hit@1':>8} {'MAP@R':>8} {'OPIS':>8}")
    for name, found in figures.items():
        print(f"{name:10}" + "".join(f" {found[f'unseen_{metric}']:8.4f}" for metric in ("hit@1", "MAP@R", "OPIS")))
    return figures


if __name__ == "__main__":
    main()
