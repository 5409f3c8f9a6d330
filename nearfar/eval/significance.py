"""Is one run really better than another? Paired tests, intervals and effect sizes over the same queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.intervals import bca_interval, bootstrap_means, jackknife_means, minimum_detectable_difference
from nearfar.eval.multiple_tests import benjamini_hochberg, holm
from nearfar.eval.paired_tests import paired_t_test, randomisation_test, sum_over_units
from nearfar.eval.ranking import RankingResult
from nearfar.eval.run_comparison import CORRECTIONS, Comparison, PairComparison

TESTS = ("randomisation", "mid-p", "t")
_FEWEST_PERMUTATIONS = 100
# Values that differ by no more than this come from the same ranking, summed in another order.
_SAME = 1e-12


def compare_runs(
    results: Mapping[str, RankingResult],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    test: str = "randomisation",
    permutations: int = 10_000,
    correction: str | None = "holm",
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare runs that were scored on the same queries, metric by metric.

    For each pair and metric: means, their difference with a bias-corrected and accelerated (BCa) bootstrap
    interval, p-values of the paired randomisation test and the paired t test, Cohen's d_z, wins and losses by
    query, and the difference that so many queries could show. P-values are adjusted over all pairs and metrics
    of the call; intervals hold each for itself.

    Both tests find a difference between equal runs in 5 % of simulated comparisons at the 5 % level, and 95 %
    intervals hold the true one in 94 to 95 % (benchmarks/results/significance.md). Where all differences are of
    one size, as with R@1, few p-values are possible, and the randomisation test is careful: it never finds more than
    its level, but 3.4 % at 200 queries, where the t test has 4.9 %. test="mid-p" is the same test with half of the
    chance of exactly what was observed: about 5 % with R@1 too, without the promise never to exceed it.

    Args:
        results: for each run's name what `evaluate_run` found. All must hold the same queries, in any order,
            scored with the same relevance level and tie rule.
        baseline: the run that all others are held against; None compares each run with every run before it.
        metrics: names to compare; None takes all that every run has.
        test: "randomisation" (Fisher; assumes nothing about the values' distribution), "mid-p" (the same, less
            careful with metrics of 0 and 1) or "t"; the one that decides. All are reported.
        permutations: random sign patterns of the randomisation test, and resamples of the bootstrap. Where
            there are no more sign patterns than this, all are gone through and the test is exact.
        correction: "holm" (chance of any false finding), "bh" (share of false findings) or None.
        groups: for each query id a group, such as a language: every comparison is repeated within each group.
            Queries that were not scored may be in it.
        clusters: for each query id a cluster of queries that are not independent, such as synonyms of one
            term. Signs are flipped and resamples drawn by whole clusters, and the t test is cluster-robust;
            taking such queries as independent finds differences that are not there.
        confidence: of the intervals; tests are at level 1 - confidence.
        seed: of all draws.

    Returns:
        Rows for each pair and metric, with `.table()`, `.verdict()` and `.to_json()`.

    Raises:
        InputError: fewer than two runs, runs scored on different queries or by different rules, no metric in
            common, values that are not finite, a query without group or cluster, one cluster only, or an
            option out of range.
        UnknownNameError: a baseline, metric, test or correction that does not exist.

    Example:
        >>> from nearfar.eval import evaluate_run
        >>> qrels = {f"q{i}": {"d": 1} for i in range(8)}
        >>> old = evaluate_run({q: {"x": 2.0, "d": 1.0} for q in qrels}, qrels, ["RR"])
        >>> new = evaluate_run({q: {"d": 2.0, "x": 1.0} for q in qrels}, qrels, ["RR"])
        >>> row = compare_runs({"old": old, "new": new}, baseline="old").rows[0]
        >>> row.difference, row.p_randomisation, len(row.wins), row.significant
        (0.5, 0.0078125, 8, True)

    Source: M. Smucker, J. Allan and B. Carterette, "A comparison of statistical significance tests for
        information retrieval evaluation", CIKM 2007; T. Sakai, "Laboratory Experiments in Information
        Retrieval", 2018.
    """
    _check_options(test, permutations, correction, confidence, seed)
    pairs = _pairs(results, baseline)
    chosen = _metric_names(results, metrics)
    query_ids = _common_queries(results)
    values = _aligned_values(results, chosen, query_ids)  # (Q, R * M)
    plan = _Plan(list(results), chosen, pairs, test, permutations, correction, confidence, seed)
    units = query_ids if clusters is None else _assigned(clusters, query_ids, "cluster")
    if clusters is not None and len(set(units)) < 2:
        raise InputError(f"all queries are in cluster {units[0]!r}; a comparison needs at least two clusters")
    rows = _compare(plan, _Part(None, query_ids, units, values))
    group_rows: list[PairComparison] = []
    if groups is not None:
        group_of = _assigned(groups, query_ids, "group")
        for group in dict.fromkeys(group_of):
            members = [i for i, name in enumerate(group_of) if name == group]
            ids, group_units = [query_ids[i] for i in members], [units[i] for i in members]
            group_rows += _compare(plan, _Part(group, ids, group_units, values[members]))
    return Comparison(
        rows=_adjusted(rows, plan),
        group_rows=_adjusted(group_rows, plan),
        test=test,
        correction=correction,
        confidence=confidence,
        permutations=permutations,
        seed=seed,
        clustered=clusters is not None,
    )


@dataclass(frozen=True)
class _Plan:
    """What to compare and how; `pairs` holds positions (run, baseline) in `names`."""

    names: list[str]
    metrics: list[str]
    pairs: list[tuple[int, int]]
    test: str
    permutations: int
    correction: str | None
    confidence: float
    seed: int

    @property
    def columns(self) -> list[tuple[int, int]]:
        """For each pair and metric the columns of both runs' values."""
        width = len(self.metrics)
        return [(run * width + m, base * width + m) for run, base in self.pairs for m in range(width)]


@dataclass(frozen=True)
class _Part:
    """All queries, or those of one group: ids (q,), the unit of each (q,), values (q, R * M)."""

    group: str | None
    query_ids: list[str]
    units: list[str]
    values: NDArray[np.float64]


def _compare(plan: _Plan, part: _Part) -> list[PairComparison]:
    """Compare all pairs on one part of the queries; p-values are not adjusted yet."""
    number = {name: code for code, name in enumerate(dict.fromkeys(part.units))}
    units = sum_over_units(part.values, np.array([number[name] for name in part.units], dtype=np.int64))
    left, right = np.array(plan.columns, dtype=np.int64).T  # (P,) each
    flips = randomisation_test(units, left, right, plan.permutations, plan.seed)
    # A single unit has no spread to measure: only the randomisation test is defined, and it finds nothing.
    several = len(number) > 1
    t_test = paired_t_test(units, left, right) if several else None
    replicates = bootstrap_means(units, plan.permutations, plan.seed) if several else None
    rows = []
    for pair, (a, b) in enumerate(plan.columns):
        row = _plain_row(plan, part, pair, len(number))
        row = replace(row, p_randomisation=float(flips.p[pair]), p_mid=float(flips.mid_p[pair]))
        row = replace(row, smallest_p=float(flips.smallest[pair]) / (2 if plan.test == "mid-p" else 1))
        if t_test is not None and replicates is not None:
            jackknife = jackknife_means(units.sums[:, a] - units.sums[:, b], units.sizes)
            resampled = replicates[:, a] - replicates[:, b]  # (permutations,)
            low, high = bca_interval(row.difference, resampled, jackknife, plan.confidence)
            error, level = float(t_test.standard_error[pair]), 1 - plan.confidence
            detectable = minimum_detectable_difference(error, t_test.df, level)
            p_t = float(t_test.p[pair])
            row = replace(row, low=low, high=high, p_t=p_t, minimum_detectable_difference=detectable)
        rows.append(row)
    return rows


def _plain_row(plan: _Plan, part: _Part, pair: int, units: int) -> PairComparison:
    """What needs neither test nor resampling; the rest is left undefined."""
    a, b = plan.columns[pair]
    run, base = plan.pairs[pair // len(plan.metrics)]
    change = part.values[:, a] - part.values[:, b]  # (q,)
    wins = [part.query_ids[i] for i in np.argsort(-change, kind="stable") if change[i] > _SAME]
    losses = [part.query_ids[i] for i in np.argsort(change, kind="stable") if change[i] < -_SAME]
    spread = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    return PairComparison(
        metric=plan.metrics[pair % len(plan.metrics)],
        run=plan.names[run],
        baseline=plan.names[base],
        group=part.group,
        queries=len(change),
        units=units,
        mean=float(part.values[:, a].mean()),
        baseline_mean=float(part.values[:, b].mean()),
        difference=float(change.mean()),
        low=None,
        high=None,
        p_randomisation=1.0,
        p_mid=1.0,
        smallest_p=1.0,
        p_t=None,
        p_value=1.0,
        p_holm=1.0,
        p_bh=1.0,
        effect_size=float(change.mean()) / spread if spread > _SAME else None,
        win_share=len(wins) / (len(wins) + len(losses)) if wins or losses else None,
        wins=wins,
        losses=losses,
        ties=len(change) - len(wins) - len(losses),
        minimum_detectable_difference=None,
        significant=False,
    )


def _adjusted(rows: list[PairComparison], plan: _Plan) -> list[PairComparison]:
    """Adjust the p-values of one family of tests, and decide."""
    raw = np.array([_decisive(row, plan.test) for row in rows])
    adjusted = {"holm": holm(raw), "bh": benjamini_hochberg(raw)}
    decisive = raw if plan.correction is None else adjusted[plan.correction]
    return [
        replace(
            row,
            p_value=float(decisive[i]),
            p_holm=float(adjusted["holm"][i]),
            p_bh=float(adjusted["bh"][i]),
            significant=bool(decisive[i] <= 1 - plan.confidence),
        )
        for i, row in enumerate(rows)
    ]


def _decisive(row: PairComparison, test: str) -> float:
    p = {"randomisation": row.p_randomisation, "mid-p": row.p_mid, "t": row.p_t}[test]
    return 1.0 if p is None else p


def _check_options(test: str, permutations: int, correction: str | None, confidence: float, seed: int) -> None:
    if test not in TESTS:
        raise UnknownNameError("test", test, TESTS)
    if correction is not None and correction not in CORRECTIONS:
        raise UnknownNameError("correction", correction, CORRECTIONS)
    if int(permutations) != permutations or permutations < _FEWEST_PERMUTATIONS:
        raise InputError(f"permutations is {permutations!r}; give a whole number of at least {_FEWEST_PERMUTATIONS}")
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence is {confidence!r}; give a number from 0.5 to below 1, such as 0.95")
    if int(seed) != seed or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number of at least 0")


def _pairs(results: Mapping[str, RankingResult], baseline: str | None) -> list[tuple[int, int]]:
    names = list(results)
    if len(names) < 2:
        raise InputError(f"a comparison needs at least two runs, got {len(names)}")
    if baseline is None:
        return [(later, earlier) for earlier, later in combinations(range(len(names)), 2)]
    if baseline not in names:
        raise UnknownNameError("baseline run", baseline, names)
    return [(run, names.index(baseline)) for run, name in enumerate(names) if name != baseline]


def _metric_names(results: Mapping[str, RankingResult], metrics: Sequence[str] | None) -> list[str]:
    common = [
        name
        for name in next(iter(results.values())).per_query
        if all(name in result.per_query for result in results.values())
    ]
    if not common:
        raise InputError(f"the runs {', '.join(map(repr, results))} have no metric in common; score them alike")
    if metrics is None:
        return common
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"metrics must be a list of names such as ['nDCG@10'], got {metrics!r}")
    for name in metrics:
        if name not in common:
            raise UnknownNameError("metric of all runs", name, common)
    return list(dict.fromkeys(metrics))


def _common_queries(results: Mapping[str, RankingResult]) -> list[str]:
    (first_name, first), *others = results.items()
    wanted = set(first.query_ids)
    for name, result in others:
        for rule in ("relevance_level", "ties"):
            one, other = getattr(first, rule), getattr(result, rule)
            if one != other:
                raise InputError(f"run {first_name!r} was scored with {rule}={one!r}, run {name!r} with {other!r}")
        odd = sorted(wanted.symmetric_difference(result.query_ids))
        if odd:
            holder = first_name if odd[0] in wanted else name
            raise InputError(
                f"runs {first_name!r} and {name!r} were scored on different queries: {len(odd)} are in one only, such "
                f"as {odd[0]!r} in {holder!r}; score both against the same qrels"
            )
    if not first.query_ids:
        raise InputError(f"run {first_name!r} was scored on no query")
    return list(first.query_ids)


def _aligned_values(
    results: Mapping[str, RankingResult], metrics: list[str], query_ids: list[str]
) -> NDArray[np.float64]:
    """Values of each run and metric, (Q, R * M), in the order of `query_ids`."""
    columns = []
    for name, result in results.items():
        place = {query: i for i, query in enumerate(result.query_ids)}
        rows = np.array([place[query] for query in query_ids], dtype=np.int64)
        for metric in metrics:
            values = np.asarray(result.per_query[metric], dtype=np.float64)[rows]  # (Q,)
            if not np.isfinite(values).all():
                bad = query_ids[int(np.argmin(np.isfinite(values)))]
                raise InputError(f"run {name!r}: {metric} of query {bad!r} is not a finite number")
            columns.append(values)
    return np.stack(columns, axis=1)


def _assigned(mapping: Mapping[str, str], query_ids: list[str], kind: str) -> list[str]:
    missing = [query for query in query_ids if query not in mapping]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(query_ids)} queries have no {kind}, such as {missing[0]!r}; give each query one"
        )
    return [mapping[query] for query in query_ids]
