"""Are the promises of calibrated thresholds kept? Many independent data sets whose true risks are known.

Run: ``OMP_NUM_THREADS=1 python benchmarks/calibration.py --draws 1000``. Writes ``benchmarks/results/calibration.json``
and ``calibration.md``. Each draw is a new data set, calibrated once for each risk; the true risk at the threshold is
then looked up. A promise is broken when it exceeds alpha (for class_far: when more than a share beta of new classes
exceeds alpha). Beside each, the threshold that a bound on pairs, taken as independent, would have given.

The generators: angles on the circle, where all true rates are Fourier series ("circle", with dense regions and classes
of different spread; "alike", where all classes are the same), and directions in 16 dimensions ("sphere", with hubs),
where they come from 20,000 simulated classes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr
from scipy.stats import binom

from nearfar.errors import InputError
from nearfar.eval import ThresholdCard, calibrate_no_answer, calibrate_threshold

if __package__:
    from benchmarks.class_generators import PRIOR, SAMPLES, Circle, Floats, Sphere, unit_rows
else:  # run as a script
    from class_generators import PRIOR, SAMPLES, Circle, Floats, Sphere, unit_rows

DELTA, BETA = 0.05, 0.05


@dataclass
class Tally:
    """Outcomes of one risk on one generator over the draws."""

    risk: str
    generator: str
    setting: str
    limit: float
    ideal: float | None
    certified: list[float]
    naive: list[float]
    thresholds: list[float]
    refused: int = 0

    def row(self) -> dict[str, object]:
        """The figures of the table."""
        true, naive = np.array(self.certified), np.array(self.naive)
        broken, naive_broken = int((true > self.limit).sum()), int((naive > self.limit).sum())
        return {
            "risk": self.risk,
            "generator": self.generator,
            "setting": self.setting,
            "draws": len(true),
            "refused": self.refused,
            "broken_share": broken / len(true),
            "p_value_broken_above_delta": float(binom.sf(broken - 1, len(true), DELTA)),
            "naive_broken_share": naive_broken / len(naive) if len(naive) else None,
            "true_risk_over_limit_median": float(np.median(true) / self.limit),
            "true_risk_over_limit_95": float(np.quantile(true, 0.95) / self.limit),
            "threshold_median": float(np.median(self.thresholds)),
            "ideal_threshold": self.ideal,
        }


def pair_case(generator: Circle | Sphere, risk: str, alpha: float, classes: int, method: str = "exact") -> Case:
    """One risk of pairs; the labels are 0, 0, 0, 0, 1, 1, ..."""
    truth = generator.truth()
    labels = np.repeat(np.arange(classes), SAMPLES)
    own = truth.own_thresholds(alpha) if risk == "class_far" else np.empty(0)
    true = {
        "far": truth.far,
        "miss": truth.miss,
        "precision": truth.wrong_share,
        "class_far": lambda t: float((own > t).mean()),
    }[risk]
    limit = BETA if risk == "class_far" else alpha
    grid = np.linspace(-1, 1, 4001)
    kept = [t for t in grid if true(t) <= limit]
    ideal = max(kept) if risk == "miss" else min(kept)
    options = {"prior": PRIOR} if risk == "precision" else {}

    def run(draw: int) -> tuple[float, float, float]:
        points = generator.draw(classes, np.random.default_rng([7, draw]))
        flat = points.reshape(-1, points.shape[-1])
        card = calibrate_threshold(
            flat, labels, risk=risk, alpha=alpha, delta=DELTA, method=method, seed=draw, **options
        )
        return card.threshold, true(card.threshold), true(NAIVE[risk](points, alpha))

    setting = f"alpha {alpha:g}, {classes} classes" + (", bootstrap" if method == "bootstrap" else "")
    return Case(Tally(risk, generator.name, setting, limit, ideal, [], [], []), run)


def reference_case(generator: Circle | Sphere, alpha: float, classes: int, reference: int) -> Case:
    """class_far against given samples: the truth is that of 1,000 new classes against those very samples."""
    labels = np.repeat(np.arange(classes), SAMPLES)

    def run(draw: int) -> tuple[float, float, float]:
        rng = np.random.default_rng([8, draw])
        points, others = generator.draw(classes, rng), generator.draw(reference, rng)[:, 0]
        flat = points.reshape(-1, points.shape[-1])
        card = calibrate_threshold(
            flat, labels, risk="class_far", alpha=alpha, delta=DELTA, beta=BETA, reference=others
        )
        new = generator.draw(1_000, rng)
        scores = (new @ others.T).reshape(len(new), -1)
        place = scores.shape[1] - math.floor(alpha * scores.shape[1]) - 1
        own = np.partition(scores, place, axis=1)[:, place]
        naive = -np.sort(-(points @ others.T).ravel())[math.floor(alpha * points.shape[0] * SAMPLES * reference)]
        return card.threshold, float((own >= card.threshold).mean()), float((own >= naive).mean())

    setting = f"alpha {alpha:g}, {classes} classes, {reference} reference samples"
    return Case(Tally("class_far", generator.name, setting, BETA, None, [], [], []), run)


def query_case(alpha: float, groups: int, wordings: int) -> Case:
    """Top scores around a level per need, several wordings of each; the true share is a normal tail."""
    spread = math.hypot(0.1, 0.03) if wordings > 1 else 0.1

    def true(threshold: float) -> float:
        return float(1.0 - ndtr((threshold - 0.3) / spread))

    def run(draw: int) -> tuple[float, float, float]:
        rng = np.random.default_rng([9, draw])
        scores = (
            0.3
            + 0.1 * rng.normal(size=(groups, 1))
            + (0.03 * rng.normal(size=(groups, wordings)) if wordings > 1 else 0)
        )
        names = np.repeat(np.arange(groups), wordings) if wordings > 1 else None
        card = calibrate_no_answer(
            scores.ravel(), alpha=alpha, delta=DELTA, corpus_size=1000, groups=names, metric="inner_product"
        )
        return card.threshold, true(card.threshold), true(naive_cut(scores.ravel(), alpha))

    setting = f"alpha {alpha:g}, {groups} " + (f"groups of {wordings} queries" if wordings > 1 else "queries")
    ideal = 0.3 + spread * float(np.sqrt(2) * _inverse_tail(alpha))
    return Case(Tally("no_answer", "normal", setting, alpha, ideal, [], [], []), run)


@dataclass
class Case:
    """A tally and what fills it."""

    tally: Tally
    run: Callable[[int], tuple[float, float, float]]


def naive_cut(scores: Floats, alpha: float) -> float:
    """The smallest threshold whose Clopper-Pearson bound is at most alpha, each score taken as independent."""
    allowed = int(binom.ppf(DELTA, len(scores), alpha))
    while binom.cdf(allowed, len(scores), alpha) > DELTA:
        allowed -= 1
    return float(np.partition(scores, len(scores) - 1 - allowed)[len(scores) - 1 - allowed]) + 1e-9


def _negatives(points: Floats) -> Floats:
    flat = points.reshape(-1, points.shape[-1])
    scores = (flat @ flat.T).reshape(len(points), SAMPLES, len(points), SAMPLES)
    first, second = np.triu_indices(len(points), 1)
    return scores[first, :, second, :].ravel()


def _positives(points: Floats) -> Floats:
    first, second = np.triu_indices(SAMPLES, 1)
    return (points[:, first] * points[:, second]).sum(axis=2).ravel()


def _naive_precision(points: Floats, alpha: float) -> float:
    negative, positive = _negatives(points), _positives(points)
    grid = np.linspace(0, 1, 2001)
    wrong, right = _reaching(negative), _reaching(positive)
    far = betaincinv(wrong + 1, np.maximum(len(negative) - wrong, 1e-9), 1 - DELTA / 2)
    hit = np.where(right > 0, betaincinv(np.maximum(right, 1e-9), len(positive) - right + 1, DELTA / 2), 0.0)
    kept = (1 - PRIOR) * far <= alpha * (PRIOR * hit + (1 - PRIOR) * far)
    return float(grid[kept].min())


def _reaching(scores: Floats) -> NDArray[np.int64]:
    """How many scores reach each of the thresholds 0, 1 / 2000, ..., 1."""
    steps = np.clip(np.floor(scores * 2000).astype(np.int64), -1, 2000) + 1
    return np.bincount(steps, minlength=2002)[::-1].cumsum()[::-1][1:]


def _naive_classes(points: Floats, alpha: float) -> float:
    """The plain tolerance bound on the classes' measured thresholds, as if those were the true ones."""
    flat = points.reshape(-1, points.shape[-1])
    scores = (points.reshape(len(points), SAMPLES, -1) @ flat.T).reshape(len(points), -1)
    for code in range(len(points)):
        scores[code].reshape(SAMPLES, -1)[:, code * SAMPLES : (code + 1) * SAMPLES] = -1.0
    place = scores.shape[1] - math.floor(alpha * (scores.shape[1] - SAMPLES**2)) - 1
    own = np.partition(scores, place, axis=1)[:, place]
    return naive_cut(own, BETA)


NAIVE: dict[str, Callable[[Floats, float], float]] = {
    "far": lambda points, alpha: naive_cut(_negatives(points), alpha),
    "miss": lambda points, alpha: -naive_cut(-_positives(points), alpha),
    "precision": _naive_precision,
    "class_far": _naive_classes,
}


def _inverse_tail(alpha: float) -> float:
    from scipy.special import erfcinv

    return float(erfcinv(2 * alpha))


def cases() -> list[Case]:
    circle, sphere = Circle(), Sphere()
    alike = Circle("alike", crowded=0.0, spread_sigma=0.0)
    return [
        *(pair_case(one, "far", 0.05, 300) for one in (circle, alike, sphere)),
        *(pair_case(one, "miss", 0.1, 200) for one in (circle, sphere)),
        *(pair_case(one, "precision", 0.1, 300) for one in (Circle("tight circle", spread=0.03), sphere)),
        *(pair_case(one, "class_far", 0.1, 200) for one in (circle, alike, sphere)),
        *(reference_case(one, 0.05, 100, 300) for one in (circle, alike, sphere)),
        query_case(0.05, 300, 1),
        query_case(0.05, 300, 5),
    ]


def measure(case: Case, draws: int) -> dict[str, object]:
    start = time.perf_counter()
    for draw in range(draws):
        try:
            threshold, certified, naive = case.run(draw)
        except InputError:
            case.tally.refused += 1  # no promise, none broken
            continue
        case.tally.thresholds.append(threshold)
        case.tally.certified.append(certified)
        case.tally.naive.append(naive)
    return {**case.tally.row(), "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows = []
    for case in cases():
        rows.append(measure(case, arguments.draws))
        print(line(rows[-1]), flush=True)
    few = max(1, arguments.draws // 10)
    for risk, alpha, classes in (("far", 0.05, 200), ("miss", 0.1, 200)):
        rows.append(measure(pair_case(Circle(), risk, alpha, classes, "bootstrap"), few))
        print(line(rows[-1]), flush=True)
    report = {
        "hpo": hpo(),
        "command": f"OMP_NUM_THREADS=1 python benchmarks/calibration.py --draws {arguments.draws}",
        "delta": DELTA,
        "beta": BETA,
        "prior": PRIOR,
        "samples_per_class": SAMPLES,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("numpy", "scipy")}},
        "results": rows,
    }
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / "calibration.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.output / "calibration.md").write_text(markdown(report))


def hpo() -> dict:
    """What the test split of the demo data can certify, with the untrained demo model."""
    from nearfar.data import demo_dataset, demo_model

    data, model = demo_dataset(), demo_model()
    texts, labels = data.test_texts.texts, data.test_texts.labels
    vectors = model.encode(texts, batch_size=1024)
    training = sorted(set(data.train.queries))[::20]
    reference = model.encode(training, batch_size=1024)
    held_out = set(labels)
    corpus = [document.content for name, document in data.corpus.items() if name not in held_out]
    documents = unit_rows(model.encode(corpus, batch_size=1024))
    names, queries = zip(*data.test.queries.items(), strict=True)
    asked = unit_rows(model.encode(list(queries), batch_size=1024))
    top = np.concatenate([(block @ documents.T).max(axis=1) for block in np.array_split(asked, 20)])
    terms = [next(iter(data.test.qrels[name])) for name in names]

    def outcome(call: Callable[[], ThresholdCard]) -> str:
        try:
            card = call()
        except InputError as error:
            return f"refused: {error}"
        return f"threshold {card.threshold:.4f}, estimated risk {card.estimated_risk:.2g}, {card.units} {card.unit}" + (
            f", miss rate {card.rates['miss']:.2f}, {len(card.failing_classes)} classes above alpha"
            if card.kind == "pair"
            else ""
        )

    rows = []
    for risk, alpha, options in (
        ("far", 0.01, {}),
        ("far", 0.001, {}),
        ("far", 0.01, {"method": "bootstrap"}),
        ("miss", 0.5, {}),
        ("miss", 0.1, {}),
        ("precision", 0.05, {"prior": 0.5}),
        ("precision", 0.05, {"prior": 0.01}),
        ("class_far", 0.01, {}),
        ("class_far", 0.001, {}),
        ("class_far", 0.001, {"reference": reference}),
    ):
        extra = "".join(f", {k} {v if k != 'reference' else 'of training synonyms'}" for k, v in options.items())
        found = outcome(lambda r=risk, a=alpha, o=options: calibrate_threshold(vectors, labels, risk=r, alpha=a, **o))
        rows.append({"risk": risk + extra, "alpha": alpha, "outcome": found})
    for alpha in (0.05, 0.001):
        found = outcome(
            lambda a=alpha: calibrate_no_answer(top.astype(float), alpha=a, corpus_size=len(corpus), groups=terms)
        )
        rows.append({"risk": "no_answer", "alpha": alpha, "outcome": found})
    about = (
        f"{len(texts)} names and synonyms of {len(held_out)} test terms, untrained demo model; "
        f"reference {len(training)} training synonyms; for no_answer {len(queries)} synonyms of test terms, "
        f"grouped by term, over the {len(corpus)} other terms. {data.source.acknowledgement}"
    )
    return {"data": about, "rows": rows}


def line(row: dict) -> str:
    ideal = "" if row["ideal_threshold"] is None else f"{row['ideal_threshold']:.3f}"
    return (
        f"| {row['risk']} | {row['generator']} | {row['setting']} | {row['draws']} | {row['broken_share']:.1%} "
        f"| {row['p_value_broken_above_delta']:.2g} | {row['naive_broken_share']:.1%} "
        f"| {row['true_risk_over_limit_median']:.2f} ({row['true_risk_over_limit_95']:.2f}) "
        f"| {row['threshold_median']:.3f} | {ideal} | {row['seconds']:.0f} |"
    )


def markdown(report: dict) -> str:
    lines = [
        f"`{report['command']}`: independent data sets with a known true risk, {report['samples_per_class']} samples a "
        f"class, delta {report['delta']}, beta {report['beta']}, prior {report['prior']}. A promise is kept when the "
        "true risk is at most the limit (alpha; for class_far, beta), and at most a share delta may be broken; p tests "
        "that no more are. Naive: every pair taken as independent (Clopper-Pearson); for class_far, the plain "
        "tolerance bound with measured rates taken as true, or all classes' pairs pooled (against a reference); for "
        "groups, every query as independent. Bootstrap rows certify nothing; they show what the approximation costs.",
        "",
        "| risk | generator | setting | draws | broken | p | broken, naive | true risk / limit: median (95 %) "
        "| threshold, median | ideal | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(line, report["results"]),
        "",
        f"Illustration: {report['hpo']['data']}",
        "",
        "| risk | alpha asked for | outcome |",
        "|---|---|---|",
        *(f"| {row['risk']} | {row['alpha']} | {row['outcome']} |" for row in report["hpo"]["rows"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
