"""Every loss trains a real model through sentence-transformers' own trainer."""

from __future__ import annotations

import math

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, DecoupledSoftmaxLoss, ForSentenceTransformer, NBCSoftmaxLoss
from tests.losses.cases import CASES, each, of_kind
from tests.losses.inputs import points

ROWS = 64
CLASSES = 8
SUBJECTS = {
    "heart": "cardiac",
    "kidney": "renal",
    "bone": "osseous",
    "skin": "cutaneous",
    "eye": "ocular",
    "lung": "pulmonary",
    "nerve": "neural",
    "blood": "haematic",
}
THINGS = {
    "pain": "ache",
    "failure": "collapse",
    "growth": "enlargement",
    "swelling": "oedema",
    "disease": "illness",
    "weakness": "debility",
    "defect": "malformation",
    "infection": "sepsis",
}
COLOURS = ["red", "green", "blue", "yellow", "black", "white", "brown", "purple"]
VEHICLES = ["car", "train", "boat", "bicycle", "plane", "truck", "tram", "ship"]


def embeddings(columns: int, rows: int = 6) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(columns)
    return [points(rows, g).float().requires_grad_() for _ in range(columns)]


def host(loss) -> ForSentenceTransformer:
    return ForSentenceTransformer(torch.nn.Identity(), loss)


# How columns are read, without a model


@each(of_kind("labels"))
def test_texts_with_classes(case):
    loss = case.build(dtype=torch.float32)
    (x,) = embeddings(1)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    found = host(loss).compute_loss_from_embeddings([x], labels)
    torch.testing.assert_close(found, loss(x, labels))


def test_two_columns_are_classes_of_their_own_or_of_their_label():
    loss = CircleLoss()
    x, y = embeddings(2)
    both = torch.cat([x, y])
    rows = torch.arange(6)
    found = host(loss).compute_loss_from_embeddings([x, y])
    torch.testing.assert_close(found, loss(both, torch.cat([rows, rows])))
    labels = torch.tensor([4, 4, 1, 0, 1, 2])
    found = host(loss).compute_loss_from_embeddings([x, y], labels)
    torch.testing.assert_close(found, loss(both, torch.cat([labels, labels])))


def test_further_columns_of_a_label_loss_are_negatives():
    loss = CircleLoss()
    columns = embeddings(4)
    rows = torch.arange(6)
    labels = torch.cat([rows, rows, torch.arange(100, 112)])
    found = host(loss).compute_loss_from_embeddings(columns)
    torch.testing.assert_close(found, loss(torch.cat(columns), labels))


def test_multi_hot_labels():
    loss = CircleLoss()
    (x,) = embeddings(1)
    hot = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 1], [1, 0], [0, 0]])
    torch.testing.assert_close(host(loss).compute_loss_from_embeddings([x], hot), loss(x, hot))


def test_documents_and_hard_negatives():
    loss = DecoupledSoftmaxLoss()
    q, d, n, m = embeddings(4)
    found = host(loss).compute_loss_from_embeddings([q, d, n, m])
    torch.testing.assert_close(found, loss(q, torch.cat([d, n, m])))


def test_integer_labels_keep_rows_of_one_answer_from_being_negatives():
    loss = DecoupledSoftmaxLoss()
    q, d, n = embeddings(3)
    labels = torch.tensor([3, 3, 0, -1, 0, 7])
    found = host(loss).compute_loss_from_embeddings([q, d, n], labels)
    logits = torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(torch.cat([d, n])).T / 0.05
    same = torch.zeros(6, 12, dtype=torch.bool)
    same[:, :6] = (labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(6))
    torch.testing.assert_close(found, expected)


def test_graded_labels_are_the_relevance_of_each_rows_documents():
    loss = DecoupledSoftmaxLoss()
    q, d, n = embeddings(3)
    grades = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    relevance = torch.zeros(6, 12)
    for row in range(6):
        relevance[row, row], relevance[row, 6 + row] = grades[row]
    found = host(loss).compute_loss_from_embeddings([q, d, n], grades)
    torch.testing.assert_close(found, loss(q, torch.cat([d, n]), relevance))
    relevance[:, 6:] = 0
    found = host(loss).compute_loss_from_embeddings([q, d, n], grades[:, 0])
    torch.testing.assert_close(found, loss(q, torch.cat([d, n]), relevance))


@pytest.mark.parametrize(
    ("loss", "columns", "labels", "message"),
    [
        (CircleLoss(), 1, None, "no label"),
        (CircleLoss(), 2, torch.rand(6), "floating-point"),
        (CircleLoss(), 3, torch.ones(6, 4, dtype=torch.long), "multi-hot"),
        (DecoupledSoftmaxLoss(), 1, torch.zeros(6, dtype=torch.long), "document column"),
        (DecoupledSoftmaxLoss(), 2, torch.zeros(6, 3, dtype=torch.long), "one per row"),
        (DecoupledSoftmaxLoss(), 2, torch.rand(6, 3), "3 grades"),
        (DecoupledSoftmaxLoss(), 2, torch.rand(6) + 2, r"\[0, 1\]"),
    ],
)
def test_unusable_columns_are_refused_with_a_way_out(loss, columns, labels, message):
    with pytest.raises(InputError, match=message):
        host(loss).compute_loss_from_embeddings(embeddings(columns), labels)


def test_unreduced_losses_cannot_train():
    with pytest.raises(InputError, match="reduction='mean'"):
        host(CircleLoss(reduction="none"))


@each()
def test_model_card(case):
    loss = case.build()
    wrapped = host(loss)
    assert wrapped.get_config_dict() == {"loss": type(loss).__name__, **loss.settings()}
    assert wrapped.citation == loss.citation


# Training


def rows_of_text() -> tuple[list[str], list[str], list[int]]:
    names = [f"{subject} {thing}" for subject in SUBJECTS for thing in THINGS]
    synonyms = [f"{subject} {thing}" for subject in SUBJECTS.values() for thing in THINGS.values()]
    return names, synonyms, [i // 8 for i in range(ROWS)]


def data_of(kind: str) -> dict[str, list]:
    names, others, classes = rows_of_text()
    grades = [0.25 + 0.75 * (i % 4) / 3 for i in range(ROWS)]
    return {
        "labels": {"text": names, "label": classes},
        "pairs": {"anchor": names, "positive": others},
        "labelled pairs": {"anchor": names, "positive": others, "label": classes},
        "graded pairs": {"anchor": names, "positive": others, "label": grades},
        "negatives": {
            "anchor": names,
            "positive": others,
            "negative_1": [f"{colour} {vehicle}" for colour in COLOURS for vehicle in VEHICLES],
            "negative_2": [f"{vehicle} painted {colour}" for colour in COLOURS for vehicle in VEHICLES],
        },
    }[kind]


def train(loss_of, kind: str, folder):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from nearfar.data import demo_model

    model = demo_model()
    model.model_card_data.generate_widget_examples = False
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = loss_of(model)
    own_before = {name: value.detach().clone() for name, value in loss.named_parameters()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=32,
        learning_rate=0.02,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(data_of(kind)), loss=loss
    )
    trainer.train()
    values = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(value) for value in values)
    moved = {name: (value - before[name]).abs().max() for name, value in model.named_parameters()}
    assert all(torch.isfinite(change) for change in moved.values())
    assert any(change > 0 for change in moved.values())
    assert all(torch.isfinite(value).all() for value in loss.parameters())
    own = {name: value for name, value in loss.named_parameters() if not name.startswith("model.")}
    assert all((value.detach() - own_before[name]).abs().max() > 0 for name, value in own.items())
    return values


@pytest.fixture(scope="module")
def width():
    from nearfar.data import demo_model

    return demo_model().get_embedding_dimension()


def falls(values: list[float]) -> bool:
    return sum(values[-2:]) < sum(values[:2])


KINDS = {
    "labels": ("labels", "pairs", "labelled pairs", "negatives"),
    "documents": ("pairs", "labelled pairs", "graded pairs", "negatives"),
}
# Every loss trains on the plainest columns; how other columns are read does not depend on the loss.
TRAINED = [
    (case, kind)
    for case in CASES
    for number, kind in enumerate(KINDS[case.capabilities.inputs])
    if number == 0 or case.name in ("circle", "decoupled-softmax")
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kind"), TRAINED, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_loss_trains(case, kind, tmp_path, width):
    loss = case.build(dim=width, dtype=torch.float32)
    values = train(lambda model: ForSentenceTransformer(model, loss), kind, tmp_path)
    assert len(values) == 6
    assert falls(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["circle", "nbc-softmax"])
def test_matryoshka(name, tmp_path, width):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    inner = {"circle": CircleLoss(), "nbc-softmax": NBCSoftmaxLoss(CLASSES, width)}[name]
    dims = [width, width // 2, width // 4]
    values = train(
        lambda model: MatryoshkaLoss(model, ForSentenceTransformer(model, inner), matryoshka_dims=dims),
        "labels",
        tmp_path,
    )
    assert falls(values)
