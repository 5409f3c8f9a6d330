"""What a comparison of runs found: numbers, a table, and a verdict in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

CORRECTIONS = {"holm": "Holm", "bh": "Benjamini-Hochberg"}


@dataclass(frozen=True)
class PairComparison:
    """One metric of two runs on the same queries.

    Attributes:
        metric: the metric's name.
        run: the run in question.
        baseline: the run it is held against.
        group: the group of queries, or None for all of them.
        queries: number of queries.
        units: number of clusters, or of queries where they are independent.
        mean: mean of `run`.
        baseline_mean: mean of `baseline`.
        difference: mean - baseline_mean.
        low: lower end of the BCa bootstrap interval of the difference; None for a single unit.
        high: its upper end.
        p_randomisation: two-sided p-value of the paired randomisation test.
        p_mid: its mid-p value: half of the chance of exactly what was observed is left out.
        smallest_p: the smallest value that `p_randomisation` (under test "mid-p": `p_mid`) could have taken: with few
            queries that differ, no difference whatever is significant.
        p_t: two-sided p-value of the paired t test; None for a single unit.
        p_value: that of the chosen test, adjusted by the chosen correction: the one to decide by.
        p_holm: p-value of the chosen test, adjusted by Holm's method.
        p_bh: the same by Benjamini and Hochberg's method.
        effect_size: Cohen's d_z, the mean difference in standard deviations of the queries' differences; None
            where they do not vary.
        win_share: wins / (wins + losses); None where all queries tie.
        wins: queries on which `run` scores higher, the largest gain first.
        losses: queries on which it scores lower, the largest loss first.
        ties: number of queries with the same value.
        minimum_detectable_difference: the true difference that one such test, before correction, finds in
            four of five repetitions; None for a single unit.
        significant: whether `p_value` is at most 1 - confidence.
    """

    metric: str
    run: str
    baseline: str
    group: str | None
    queries: int
    units: int
    mean: float
    baseline_mean: float
    difference: float
    low: float | None
    high: float | None
    p_randomisation: float
    p_mid: float
    smallest_p: float
    p_t: float | None
    p_value: float
    p_holm: float
    p_bh: float
    effect_size: float | None
    win_share: float | None
    wins: list[str]
    losses: list[str]
    ties: int
    minimum_detectable_difference: float | None
    significant: bool


@dataclass(frozen=True)
class Comparison:
    """All comparisons of one call.

    Attributes:
        rows: one for each metric and pair of runs, over all queries.
        group_rows: the same for each group of queries. They form a family of their own in the correction.
        test: "randomisation", "mid-p" or "t", the test that `p_value` comes from.
        correction: "holm", "bh" or None.
        confidence: of the intervals; 1 - confidence is the level of the tests.
        permutations: sign patterns drawn, and bootstrap resamples.
        seed: of the draws.
        clustered: whether clusters of queries were the unit.
    """

    rows: list[PairComparison]
    group_rows: list[PairComparison]
    test: str
    correction: str | None
    confidence: float
    permutations: int
    seed: int
    clustered: bool

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as column names and rows of text; rows of groups follow those over all queries."""
        named = bool(self.group_rows)
        p_name = "p" if self.correction is None else f"p ({CORRECTIONS[self.correction]})"
        columns = ["metric", *(["group"] if named else []), "run", "baseline", "mean", "base", "difference"]
        columns += [f"{_percent(self.confidence)} interval", p_name, "d_z", "win/tie/loss", "detectable"]
        return columns, [_cells(row, named) for row in self.rows + self.group_rows]

    def table(self) -> str:
        """The table as aligned text. A star marks differences that are significant after correction."""
        columns, rows = self.cells()
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = [columns, ["-" * width for width in widths], *rows]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def verdict(self) -> list[str]:
        """One sentence for each comparison over all queries, and one about the groups that stand out."""
        sentences = [self._sentence(row) for row in self.rows]
        if self.group_rows:
            clear = [row for row in self.group_rows if row.significant]
            named = "; ".join(
                f"{row.metric}, {row.group}: {row.run} {_better(row)} than {row.baseline} by {abs(row.difference):.4f}"
                for row in clear
            )
            found = f"{len(clear)} of {len(self.group_rows)} comparisons within groups are significant"
            sentences.append(f"{found}: {named}." if clear else f"{found}.")
        return sentences

    def to_json(self) -> str:
        """Everything as one strict JSON object; numbers that are not defined are null."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists and scalars, the verdict included."""
        return {**asdict(self), "verdict": self.verdict()}

    def _sentence(self, row: PairComparison) -> str:
        count = f"{row.queries:,} queries" + (f" in {row.units:,} clusters" if self.clustered else "")
        if not row.wins and not row.losses:
            return f"{row.metric}: {row.run} and {row.baseline} score the same on each of {count}."
        numbers = f"{row.mean:.4f} against {row.baseline_mean:.4f}, {_interval(row, self.confidence)}{self._p(row)}"
        if row.significant:
            return f"{row.metric}: {row.run} is {_better(row)} than {row.baseline} ({numbers})."
        sentence = f"{row.metric}: no clear difference between {row.run} and {row.baseline} ({numbers})"
        if self.test != "t" and row.smallest_p > 1 - self.confidence:
            return f"{sentence}; so few differ that p cannot fall below {row.smallest_p:.2g} on {count}."
        if row.minimum_detectable_difference is None:
            return f"{sentence}."
        found = f"a true difference of {row.minimum_detectable_difference:.4f}"
        return f"{sentence}; {count} would show {found} four times in five."

    def _p(self, row: PairComparison) -> str:
        if self.correction is None:
            return f"p {p_text(row.p_value)}"
        family = f"after {CORRECTIONS[self.correction]}'s correction for {len(self.rows)} tests"
        return f"p {p_text(row.p_value)}" + (f" {family}" if len(self.rows) > 1 else "")


def p_text(p: float) -> str:
    """A p-value with its sign of comparison.

    Example:
        >>> p_text(0.0312), p_text(0.0002)
        ('= 0.031', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _cells(row: PairComparison, named: bool) -> list[str]:
    return [
        row.metric,
        *([row.group or "all"] if named else []),
        row.run,
        row.baseline,
        f"{row.mean:.4f}",
        f"{row.baseline_mean:.4f}",
        f"{row.difference:+.4f}",
        "-" if row.low is None or row.high is None else f"{row.low:+.4f} to {row.high:+.4f}",
        p_text(row.p_value).removeprefix("= ") + ("*" if row.significant else ""),
        _number(row.effect_size, "+.2f"),
        f"{len(row.wins)}/{row.ties}/{len(row.losses)}",
        _number(row.minimum_detectable_difference, ".4f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _interval(row: PairComparison, confidence: float) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"difference {row.difference:+.4f}, {_percent(confidence)} interval {row.low:+.4f} to {row.high:+.4f}, "


def _better(row: PairComparison) -> str:
    return "better" if row.difference > 0 else "worse"
