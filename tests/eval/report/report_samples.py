from __future__ import annotations

from dataclasses import replace

import numpy as np

from nearfar.eval import ClassFailure, OPISResult, RankingResult, ScoreHistogram, ThresholdCard, opis
from nearfar.eval.report import FrontierPoint, ModelSection, worst_queries
from nearfar.eval.thresholds.class_bootstrap import class_interval
from nearfar.eval.thresholds.curves import PairCurves, pair_curves


def make_ranking(ranks: np.ndarray, ids: list[str] | None = None) -> RankingResult:
    """Metrics of queries whose one relevant document stands at the given ranks."""
    ids = ids or [f"q{i}" for i in range(len(ranks))]
    per_query = {f"R@{k}": (ranks <= k).astype(float) for k in (1, 10)}
    per_query["RR@10"] = np.where(ranks <= 10, 1.0 / ranks, 0.0)
    mean = {name: float(values.mean()) for name, values in per_query.items()}
    return RankingResult(ids, per_query, mean, [], [], 0.0, 100 * len(ids))


def make_opis(classes: int = 12, steps: int = 21, seed: int = 0, prefix: str = "class ") -> OPISResult:
    rng = np.random.default_rng(seed)
    similarities = np.linspace(0.7, 0.3, steps)
    middle = rng.normal(0.6, 0.1, classes)
    utilities = 1 / (1 + np.exp((similarities[None] - middle[:, None]) / 0.08))
    measured = opis(np.eye(4).repeat(2, axis=0), ["a", "a", "b", "b", "c", "c", "d", "d"], distances=[1.0, 1.1])
    value = float(utilities.var(axis=0).mean())
    return replace(
        measured,
        opis=value,
        epsilon_opis=4 * value,
        noise_floor=value / 4,
        corrected=value * 3 / 4,
        interval=class_interval(utilities, seed),
        warning=None,
        thresholds=np.sqrt(2 - 2 * similarities),
        similarities=similarities,
        utilities=utilities,
        mean_utility=utilities.mean(axis=0),
        class_labels=[f"{prefix}{i}" for i in range(classes)],
        class_sizes=rng.integers(2, 9, classes),
        excluded_classes=["alone"],
        far_range=(1e-2, 1e-1),
    )


def make_histogram(mean: float = 0.6, bins: int = 40, seed: int = 0) -> ScoreHistogram:
    rng = np.random.default_rng(seed)
    edges = np.linspace(-1, 1, bins + 1)
    positive, negative = (
        np.histogram(rng.normal(centre, 0.15, 2000).clip(-1, 1), edges, density=True)[0] for centre in (mean, 0.1)
    )
    return ScoreHistogram(edges, positive, negative, 2000, 2000, False)


def make_curves(noise: float = 0.8, seed: int = 0) -> PairCurves:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, 200)
    return pair_curves(rng.normal(size=(20, 16))[labels] + noise * rng.normal(size=(200, 16)), labels)


def make_card(threshold: float = 0.512, failing: int = 12, prefix: str = "class ") -> ThresholdCard:
    return ThresholdCard(
        kind="pair",
        threshold=threshold,
        risk="far",
        alpha=0.01,
        delta=0.05,
        unit="class_pairs",
        units=150,
        classes=300,
        samples=1200,
        estimated_risk=0.004,
        certified_risk=0.01,
        rates={"miss": 0.25},
        promise="With confidence 0.95, few pairs are accepted wrongly.",
        assumptions=("Classes are independent draws.", "Nothing drifts."),
        failing_classes=tuple(ClassFailure(label=f"{prefix}{i}", rate=0.5 - 0.01 * i) for i in range(failing)),
        seed=0,
        created="2026-01-09T07:05:00+00:00",
        versions={},
    )


def make_frontier() -> list[FrontierPoint]:
    return [
        FrontierPoint(f"nprobe={n}", 1 - 0.4 / n, 0.02 * n, p95=0.03 * n, interval=(1 - 0.5 / n, 1 - 0.35 / n))
        for n in (1, 4, 16)
    ]


def make_section(name: str, seed: int, queries: int = 40, worst: int = 3, text: str = "text of") -> ModelSection:
    """A model whose answers lie at seeded ranks, with all parts of a section."""
    ranks = np.random.default_rng(seed).integers(1, 25, queries)
    ranking = make_ranking(ranks)
    run, qrels = {}, {}
    for query, rank in zip(ranking.query_ids, ranks, strict=True):
        others = [f"{query}-{i}" for i in range(20)]
        ordered = [*others[: rank - 1], f"{query}-answer", *others[rank - 1 :]][:20]
        run[query] = {document: 1.0 - 0.01 * i for i, document in enumerate(ordered)}
        qrels[query] = {f"{query}-answer": 1}
    documents = {d: f"{text} {d}" for q in run for d in [*run[q], f"{q}-answer"]}
    queries_ = {query: f"question {query}" for query in run}
    return ModelSection(
        name=name,
        ranking=ranking,
        recall_curve={k: float((ranks <= k).mean()) for k in (1, 5, 10, 20)},
        opis=make_opis(seed=seed),
        histogram=make_histogram(seed=seed),
        worst_queries=worst_queries(ranking, run, queries_, documents, qrels, "RR@10", limit=worst),
        answers=worst_queries(ranking, run, queries_, documents, qrels, "RR@10", limit=queries),
        curves=make_curves(seed=seed),
    )
