"""Readers and writers: BEIR folders, TREC runs and qrels, labelled tables, and the demo data and models."""

from __future__ import annotations

from nearfar.data.beir import iter_corpus, load_beir, write_beir
from nearfar.data.demo import DataSource, DemoDataset, demo_dataset, demo_model, minilm_model
from nearfar.data.documents import (
    Document,
    LabelledTexts,
    RetrievalDataset,
    TrainingPairs,
    pairs_from_dataset,
)
from nearfar.data.labelled import load_labelled, load_pairs, write_labelled, write_pairs
from nearfar.data.mined import is_mined, load_mined
from nearfar.data.run_tables import load_parquet_qrels, load_parquet_run
from nearfar.data.trec import load_trec_qrels, load_trec_run, write_trec_qrels, write_trec_run

__all__ = [
    "DataSource",
    "DemoDataset",
    "Document",
    "LabelledTexts",
    "RetrievalDataset",
    "TrainingPairs",
    "demo_dataset",
    "demo_model",
    "is_mined",
    "iter_corpus",
    "load_beir",
    "load_labelled",
    "load_mined",
    "load_pairs",
    "load_parquet_qrels",
    "load_parquet_run",
    "load_trec_qrels",
    "load_trec_run",
    "minilm_model",
    "pairs_from_dataset",
    "write_beir",
    "write_labelled",
    "write_pairs",
    "write_trec_qrels",
    "write_trec_run",
]
