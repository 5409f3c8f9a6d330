"""The worst error of every loss: against a naive loop over its pairs, published numbers, and pytorch-metric-learning.

The naive loops, worked numbers and inputs are those of the tests. Errors are relative to max(1, largest entry), in
float64. Gradients are those of the embeddings and of the loss's own parameters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from pytorch_metric_learning import losses as pml

from nearfar.eval.report import library_versions
from tests.losses.cases import BY_NAME, CASES
from tests.losses.inputs import plain, scenarios_for, typical
from tests.losses.outcome import oracle_outcome, outcome
from tests.losses.test_worked_numbers import NUMBERS

RESULTS = Path(__file__).parent / "results"
SEEDS = 5
# nearfar's name -> the same loss there; heads take their weights from ours.
PEERS = {
    "arcface": pml.ArcFaceLoss,
    "circle": pml.CircleLoss,
    "contrastive": pml.ContrastiveLoss,
    "cosface": pml.CosFaceLoss,
    "multi-similarity": pml.MultiSimilarityLoss,
    "normalized-softmax": pml.NormalizedSoftmaxLoss,
    "ntxent": pml.NTXentLoss,
    "proxy-anchor": pml.ProxyAnchorLoss,
    "supcon": pml.SupConLoss,
    "threshold-consistent-margin": pml.ThresholdConsistentMarginLoss,
    "triplet-margin": pml.TripletMarginLoss,
}


def error(found, expected):
    """Largest difference relative to max(1, the largest entry)."""
    if expected.numel() == 0:
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def worst(pairs):
    """Worst value error and worst gradient error over (ours, expected) outcomes."""
    value = gradient = 0.0
    for found, expected in pairs:
        value = max(value, error(found.value, expected.value))
        for name, wanted in expected.gradients.items():
            gradient = max(gradient, error(found.gradients[name], wanted))
    return value, gradient


def naive(case):
    """Every variant in every scenario, and typical inputs from several seeds."""
    for variant in range(len(case.options)):
        loss = case.build(variant)
        inputs = [scenario(torch.Generator().manual_seed(7)) for scenario in scenarios_for(case.capabilities)]
        inputs += [typical(case.capabilities, seed) for seed in range(SEEDS)]
        for one in inputs:
            yield outcome(loss, one), oracle_outcome(case, variant, loss, one)


def published(name):
    """Worst difference from the worked numbers, which are printed to six digits or so; None without any."""
    errors = []
    for loss, options, inputs, expected, _ in NUMBERS:
        if loss == name:
            torch.manual_seed(0)
            value = inputs.call(type(BY_NAME[name].build())(**options).double())
            errors.append(abs(float(value) - expected))
    return (len(errors), max(errors)) if errors else None


def peer(case):
    """Value and gradient of the embeddings beside pytorch-metric-learning's; None where it lacks the loss."""
    make = PEERS.get(case.name)
    if make is None:
        return None
    pairs = []
    for seed in range(SEEDS):
        inputs, loss = plain(torch.Generator().manual_seed(seed)), case.build(0)
        theirs = make(**sizes(loss)).double()
        copy_weights(loss, theirs)
        found, expected = outcome(loss, inputs), outcome(theirs, inputs)
        kept = {name: g for name, g in expected.gradients.items() if name in ("embeddings", "ref_emb")}
        expected.gradients = kept
        pairs.append((found, expected))
    return worst(pairs)


def sizes(loss):
    if not hasattr(loss, "num_classes"):
        return {}
    return {"num_classes": loss.num_classes, "embedding_size": loss.embedding_size}


def copy_weights(ours, theirs):
    with torch.no_grad():
        if hasattr(theirs, "W"):
            theirs.W.copy_(ours.weight.T)
        elif hasattr(theirs, "proxies"):
            theirs.proxies.copy_(ours.proxies)


def main():
    rows = {}
    for case in CASES:
        value, gradient = worst(naive(case))
        rows[case.name] = {"naive": [value, gradient], "published": published(case.name), "pml": peer(case)}
        print(case.name, rows[case.name], file=sys.stderr, flush=True)
    lines = [
        "| loss | naive loop: value | gradient | published numbers | PML: value | gradient |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        numbers = "–" if row["published"] is None else f"{row['published'][0]} numbers, {row['published'][1]:.1e}"
        theirs = ["–", "–"] if row["pml"] is None else [f"{e:.1e}" for e in row["pml"]]
        cells = [name, *[f"{e:.1e}" for e in row["naive"]], numbers, *theirs]
        lines.append(f"| {' | '.join(cells)} |")
    command = "python benchmarks/parity.py"
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command, "versions": library_versions(), "rows": rows}
    (RESULTS / "parity.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    text = f"# Parity of all losses\n\n`{command}`\n\n{__doc__}\n" + "\n".join(lines) + "\n"
    (RESULTS / "parity.md").write_text(text, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
