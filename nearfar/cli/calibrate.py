"""``nearfar calibrate``: one threshold with a stated risk, for pairs of texts or for searches."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.cli.output import AsJson, Output

if TYPE_CHECKING:
    from nearfar.eval import ThresholdCard

EXAMPLE = (
    "Examples: nearfar calibrate texts.jsonl --model run/model --risk far --alpha 0.01 --save run/model | "
    "nearfar calibrate --index my-index --unanswerable queries.txt --alpha 0.05"
)
_SHOWN_CLASSES = 10


class Risk(str, Enum):
    """What is promised about pairs of texts."""

    far = "far"
    miss = "miss"
    precision = "precision"
    class_far = "class_far"


def calibrate(
    texts: Annotated[Path | None, typer.Argument(help="Labelled texts (text, label) of unseen classes.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model.")] = None,
    risk: Annotated[Risk | None, typer.Option(help="Of pairs of texts: what shall rarely happen.")] = None,
    index: Annotated[Path | None, typer.Option(help="An index to search, for the risk of searches.")] = None,
    unanswerable: Annotated[
        Path | None,
        typer.Option(help="Queries that the index has no answer to: a text a line, or JSON lines (text, group)."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Level that the risk must stay below.")] = None,
    delta: Annotated[float, typer.Option(help="Chance that the promise is broken.")] = 0.05,
    beta: Annotated[float | None, typer.Option(help="For class_far: classes that may exceed alpha; 0.05.")] = None,
    prior: Annotated[float | None, typer.Option(help="For precision: judged pairs that truly match.")] = None,
    reference: Annotated[Path | None, typer.Option(help="For class_far: labelled texts of other classes.")] = None,
    save: Annotated[Path | None, typer.Option(help="Model folder that keeps the threshold of pairs.")] = None,
    name: Annotated[str, typer.Option(help="What the index calls its threshold.")] = "default",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find one threshold with a stated risk, say what it promises, and keep it where it is used."""
    from nearfar.errors import InputError

    out = Output(as_json)
    if alpha is None:
        raise InputError("give --alpha, the level that the risk must stay below, such as 0.01")
    of_pairs = {"--risk": risk, "--beta": beta, "--prior": prior, "--reference": reference, "--save": save}
    if index is not None and unanswerable is not None and texts is None:
        if given := [option for option, value in of_pairs.items() if value is not None]:
            raise InputError(f"{given[0]} belongs to labelled texts; leave it out for the risk of searches")
        card = _calibrate_index(index, model, unanswerable, alpha, delta, name)
        kept = f"Kept in {index} as {name!r}: nearfar search {index} ... --matches-only"
    elif texts is not None and model is not None and risk is not None and index is None and unanswerable is None:
        card = _calibrate_texts(texts, model, risk, alpha, delta, beta, prior, reference, save, seed)
        kept = "" if save is None else f"Kept in {save}: nearfar.retrieval.load_threshold({str(save)!r})"
    else:
        raise InputError("give either labelled texts with --model and --risk, or --index with --unanswerable")
    _show(out, card, kept)
    where = index if index is not None else save
    out.result({"card": card.model_dump(mode="json"), "kept_in": None if where is None else str(where)})


def _calibrate_texts(
    texts: Path,
    model: str,
    risk: Risk,
    alpha: float,
    delta: float,
    beta: float | None,
    prior: float | None,
    reference: Path | None,
    save: Path | None,
    seed: int,
) -> ThresholdCard:
    from nearfar.data import load_labelled
    from nearfar.retrieval import calibrate_texts, load_encoder, save_threshold

    labelled = load_labelled(texts)
    others = None if reference is None else load_labelled(reference)
    card = calibrate_texts(
        load_encoder(model),
        labelled,
        risk=risk.value,
        alpha=alpha,
        delta=delta,
        beta=beta,
        prior=prior,
        reference=others,
        seed=seed,
    )
    if save is not None:
        save_threshold(save, card)
    return card


def _calibrate_index(
    index: Path, model: str | None, unanswerable: Path, alpha: float, delta: float, name: str
) -> ThresholdCard:
    from nearfar.retrieval import Retriever, calibrate_search

    queries, groups = _read_queries(unanswerable)
    with Retriever.open(index, model, writable=True) as retriever:
        card = calibrate_search(retriever, queries, alpha=alpha, delta=delta, groups=groups)
        retriever.index.set_threshold(name, card)
    return card


def _read_queries(path: Path) -> tuple[list[str], list[str] | None]:
    """Queries, one a line, or JSON lines with ``text`` and, in all lines or in none, a ``group``."""
    from nearfar.data.fields import as_key, as_text, json_records, take
    from nearfar.data.files import content_lines
    from nearfar.errors import DataFileError

    queries: list[str] = []
    groups: list[str] = []
    if ".jsonl" not in path.suffixes:
        queries = [as_text(line.strip(), "query", place) for place, line in content_lines(path)]
    else:
        for place, record in json_records(path):
            if queries and ("group" in record) != bool(groups):
                raise place.error(f"the group is {'missing' if groups else 'new'} here; give all queries one, or none")
            queries.append(as_text(take(record, "text", place), "text", place))
            if "group" in record:
                groups.append(as_key(record["group"], "group", place))
    if not queries:
        raise DataFileError(path, "holds no query; give one unanswerable query a line")
    return queries, groups or None


def _show(out: Output, card: ThresholdCard, kept: str) -> None:
    what = "search may answer with a document" if card.kind == "query" else "pair of texts is a match"
    out.line(f"A {what} from a score ({card.metric}) of {card.threshold:.6f} on.\n")
    out.line(card.promise)
    rates = ", ".join(f"{name.replace('_', ' ')} {rate:.3g}" for name, rate in card.rates.items())
    drawn = f"{card.units:,} independent {card.unit.replace('_', ' ')}"
    data = (
        f"{card.samples:,} queries" if card.classes is None else f"{card.samples:,} texts of {card.classes:,} classes"
    )
    searched = "" if card.corpus_size is None else f" on {card.corpus_size:,} documents"
    out.line(f"Measured at the threshold: {rates}; {data}{searched}, {drawn}.\n")
    out.line("It rests on this:")
    for sentence in card.assumptions:
        out.line(f"- {sentence}")
    out.line()
    if card.classes is not None:
        _show_failures(out, card)
    if kept:
        out.line(kept)


def _show_failures(out: Output, card: ThresholdCard) -> None:
    rate = "miss rate" if card.risk == "miss" else "false-accept rate"
    failing = card.failing_classes
    found = f"{len(failing):,} of {card.classes:,} classes have an own {rate} above {card.alpha:.4g}"
    out.line(f"{found}{':' if failing else '.'}")
    if failing:
        out.table(["class", rate], [[str(one.label), f"{one.rate:.4f}"] for one in failing[:_SHOWN_CLASSES]])
        if len(failing) > _SHOWN_CLASSES:
            out.line(f"... and {len(failing) - _SHOWN_CLASSES:,} more, in the card (--json)")
    out.line()
