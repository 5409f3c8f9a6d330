"""Texts of unseen classes: find the clinical term that a layman's words mean.

Terms and synonyms come from the Human Phenotype Ontology; no synonym of a queried term is seen in training. A static
embedding model (wordllama) learns from a third of the training pairs with the Multi-Similarity loss, and the best
epoch on the development terms is kept. Needs ``pip install 'nearfar[demo]'``.

    python examples/text_hpo.py
"""

from __future__ import annotations

import tempfile

from nearfar.data import RetrievalDataset, TrainingPairs, demo_dataset, demo_model
from nearfar.retrieval import RetrievalEvaluator, fine_tune

METRICS = ["R@1", "R@10", "nDCG@10"]
PAIRS, QUERIES = 6_000, 1_000  # a part of the data, to take seconds


def part(dataset: RetrievalDataset, queries: int) -> RetrievalDataset:
    """The first queries, over the whole corpus."""
    kept = dict(list(dataset.queries.items())[:queries])
    return RetrievalDataset(dataset.corpus, kept, {query: dataset.qrels[query] for query in kept}, dataset.name)


def main(seed: int = 0) -> dict[str, dict[str, float]]:
    """Train; print and return the figures on the unseen terms before and after."""
    data = demo_dataset()
    train = TrainingPairs(data.train.queries[:PAIRS], data.train.documents[:PAIRS], data.train.labels[:PAIRS])
    evaluate = RetrievalEvaluator(part(data.test, QUERIES), METRICS)
    model = demo_model()
    figures = {"untrained": evaluate(model)}
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            model,
            train,
            loss="multi-similarity",
            output_dir=folder,
            evaluator=RetrievalEvaluator(data.dev, METRICS),
            epochs=2,
            batch_size=256,
            learning_rate=5e-2,  # static embeddings want a high rate
            seed=seed,
        )
    figures["trained"] = evaluate(model)
    print(f"{'HPO terms':10}" + "".join(f" {metric:>8}" for metric in METRICS))
    for name, found in figures.items():
        print(f"{name:10}" + "".join(f" {found[f'hpo-test_{metric}']:8.4f}" for metric in METRICS))
    print(data.source.acknowledgement)
    return figures


if __name__ == "__main__":
    main()
