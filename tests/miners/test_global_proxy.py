"""GlobalProxyMiner in a loop of one's own and in sentence-transformers' trainer."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from nearfar.errors import InputError
from nearfar.losses import (
    BiXSELoss,
    CircleLoss,
    DecoupledSoftmaxLoss,
    ForSentenceTransformer,
    NormalizedSoftmaxLoss,
    ThresholdConsistentMarginLoss,
    WeightedSum,
)
from nearfar.miners import GlobalProxyMiner
from nearfar.miners.proxy_plan import group_hardness

WORDS = 120
TERMS = 40


def tiny_model(seed=0, dimension=8):
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"[UNK]": WORDS}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    table = np.random.default_rng(seed).standard_normal((WORDS + 1, dimension)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def pair_data(seed=0, labels=True):
    """Three queries a term, each with the term's one document."""
    random = np.random.default_rng(seed)
    terms = np.repeat(np.arange(TERMS), 3)
    columns = {
        "query": [f"w{random.integers(WORDS)} w{term}" for term in terms],
        "document": [f"w{term} w{term + TERMS}" for term in terms],
    }
    return Dataset.from_dict({**columns, "label": terms.tolist()} if labels else columns)


def text_data():
    terms = np.repeat(np.arange(10), 6)
    texts = [f"w{term} w{40 + i}" for i, term in enumerate(terms)]
    return Dataset.from_dict({"text": texts, "label": terms.tolist()})


def trainer_of(model, dataset, loss, folder, **arguments):
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = SentenceTransformerTrainingArguments(**{**settings, **arguments})
    model.model_card_data.widget = [{"text": ""}]
    return SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss)


def train(model, dataset, loss, folder, miner, **arguments):
    trainer = trainer_of(model, dataset, miner.wrap(loss, model), folder, **arguments)
    miner.attach(trainer)
    trainer.train()
    return trainer


# A loop of one's own


def test_an_epoch_covers_all_rows_and_the_next_groups_what_lies_close():
    labels = torch.arange(64).repeat_interleave(2)
    angle = torch.linspace(0, 3, 64)
    places = torch.stack([angle.cos(), angle.sin()], 1)[labels]
    miner = GlobalProxyMiner(group_size=8, samples_per_class=2, seed=0)
    miner.fit(labels, batch_size=16)
    first = list(miner.batches())
    assert sorted(chain.from_iterable(first)) == list(range(128))
    for rows in first:
        miner.update(places[rows], labels[rows])
    second = list(miner.batches())
    assert sorted(chain.from_iterable(second)) == list(range(128))
    proxies = miner.proxies
    assert hardness(proxies, second, labels) > 0.9 > hardness(proxies, first, labels)


def hardness(proxies, batches, labels):
    return group_hardness(proxies, [np.unique(labels[rows].numpy()) for rows in batches])


def test_the_same_seed_gives_the_same_plan_and_another_one_another():
    plans = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)  # global state must not matter
        miner = GlobalProxyMiner(group_size=4, samples_per_class=1, seed=seed)
        miner.fit(list(range(32)), batch_size=8)
        plans.append(list(miner.batches()))
    assert plans[0] == plans[1] != plans[2]


def test_asking_twice_for_an_epoch_uses_the_bank_once():
    """The trainer may ask for an epoch's batches twice; proxies of the epoch before must not be consumed by it."""
    miner = GlobalProxyMiner(group_size=4, samples_per_class=1)
    miner.fit(list(range(16)), batch_size=4)
    miner.begin_epoch(0)
    miner.update(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), list(range(16)))
    miner.begin_epoch(1)
    plan, proxies = miner.plan, miner.proxies.clone()
    miner.begin_epoch(1)
    assert miner.plan == plan
    assert torch.equal(miner.proxies, proxies)


def test_embeddings_seen_before_the_first_epoch_make_it_a_mined_one():
    labels = list(range(32))
    angle = torch.linspace(0, 3, 32)
    miner = GlobalProxyMiner(group_size=8, samples_per_class=1)
    miner.fit(labels, batch_size=8)
    at_random = list(miner.batches())
    miner.fit(labels, batch_size=8)
    places = torch.stack([angle.cos(), angle.sin()], 1)
    miner.update(places, labels)
    mined = list(miner.batches())
    assert hardness(places, mined, torch.tensor(labels)) > 0.7 > hardness(places, at_random, torch.tensor(labels))


@pytest.mark.parametrize("leftovers", ["drop", "keep"])
def test_the_number_of_batches_never_changes(leftovers):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(37), random.integers(1, 6, 37))
    miner = GlobalProxyMiner(group_size=5, samples_per_class=1, leftovers=leftovers)
    miner.fit(labels, batch_size=16)
    for _ in range(4):
        batches = list(miner.batches())
        assert len(batches) == miner.batches_per_epoch
        used = Counter(list(chain.from_iterable(batches)))
        assert max(used.values()) == 1
        if leftovers == "keep":
            assert len(used) == len(labels)
        for rows in batches:
            miner.update(torch.tensor(random.standard_normal((len(rows), 4))), labels[rows])


def test_a_batch_holds_whole_groups_and_is_as_full_as_can_be():
    miner = GlobalProxyMiner(group_size=4, samples_per_class=2)
    miner.fit(np.repeat(np.arange(100), 2), batch_size=27)  # 13 classes: three groups, of four
    assert {len(rows) for rows in miner.batches()} == {24}
    assert miner.constant_batch_size == 24


def test_a_wrapped_loss_in_a_loop_trains_its_head_and_feeds_the_miner():
    labels = torch.arange(16).repeat_interleave(2)
    miner = GlobalProxyMiner(group_size=4, samples_per_class=2, proxy_dim=3)
    miner.fit(labels, batch_size=8)
    loss = miner.wrap(CircleLoss(), embedding_size=6)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for rows in miner.batches():
        loss(x[rows], labels[rows]).backward()
    assert loss.head.weight.grad.abs().sum() > 0
    list(miner.batches())
    with torch.no_grad():
        z = torch.nn.functional.normalize(loss.head(x), dim=1)
    means = torch.nn.functional.normalize(torch.stack([z[labels == c].mean(0) for c in range(16)]), dim=1)
    torch.testing.assert_close(miner.proxies, means, atol=1e-5, rtol=0)


def test_the_head_may_be_kept_from_the_encoder():
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) // 2
    gradients = []
    for detach in (True, False):
        miner = GlobalProxyMiner(group_size=2, samples_per_class=2, proxy_dim=2, detach_proxy_input=detach)
        miner.fit(labels, batch_size=4)
        torch.manual_seed(0)
        loss = miner.wrap(CircleLoss(), embedding_size=4)
        leaf = x.clone().requires_grad_()
        loss(leaf, labels).backward()
        gradients.append(leaf.grad)
    plain = x.clone().requires_grad_()
    CircleLoss()(plain, labels).backward()
    torch.testing.assert_close(gradients[0], plain.grad)
    assert not torch.allclose(gradients[1], plain.grad)


def test_a_loss_with_class_weights_gets_multi_similarity_for_its_head():
    miner = GlobalProxyMiner(proxy_dim=2)
    loss = miner.wrap(NormalizedSoftmaxLoss(5, 4), embedding_size=4)
    assert type(loss.proxy_loss).__name__ == "MultiSimilarityLoss"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size=0"),
        ({"random_share": 1.5}, "random_share=1.5"),
        ({"visits": "twice"}, "visits='twice'"),
        ({"leftovers": "sell"}, "leftovers='sell'"),
        ({"first_epoch": "lost"}, "first_epoch='lost'"),
        ({"proxy_weight": float("nan")}, "proxy_weight=nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        GlobalProxyMiner(**options)


def test_bad_data_is_named():
    miner = GlobalProxyMiner(samples_per_class=1)
    with pytest.raises(InputError, match="knows no training set"):
        miner.batches()
    with pytest.raises(InputError, match="batch_size=8 takes 8 classes"):
        miner.fit([0, 1, 2], batch_size=8)
    miner.fit(list(range(8)), batch_size=4)
    with pytest.raises(InputError, match="label 9 is not among"):
        miner.update(torch.ones(1, 2), [9])
    with pytest.raises(InputError, match="NaN"):
        miner.update(torch.tensor([[float("nan"), 1.0]]), [1])
    with pytest.raises(InputError, match="length of the embeddings"):
        miner.wrap(CircleLoss())


def test_state_goes_on_exactly(tmp_path):
    labels = list(range(24))
    vectors = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))

    def fresh():
        miner = GlobalProxyMiner(group_size=4, samples_per_class=1, seed=3)
        miner.fit(labels, batch_size=8)
        return miner

    whole = fresh()
    plans = []
    for _ in range(3):
        plans.append([])
        for step, rows in enumerate(whole.batches()):
            whole.update(vectors[rows], [labels[row] for row in rows])
            plans[-1].append(rows)
            if len(plans) == 2 and step == 1:
                whole.save(tmp_path)
    resumed = fresh()
    resumed.load(tmp_path)
    assert resumed.epoch == 1
    rest = list(resumed.batches(1))
    assert rest == plans[1]
    for rows in rest[2:]:
        resumed.update(vectors[rows], [labels[row] for row in rows])
    assert list(resumed.batches()) == plans[2]
    assert torch.equal(resumed.proxies, whole.proxies)


def test_a_state_of_other_data_is_refused(tmp_path):
    miner = GlobalProxyMiner(samples_per_class=1)
    miner.fit(list(range(8)), batch_size=4)
    miner.save(tmp_path)
    miner.fit(list(range(9)), batch_size=4)
    with pytest.raises(InputError, match="8 classes and the training set 9"):
        miner.load(tmp_path)
    with pytest.raises(InputError, match="is missing"):
        miner.load(tmp_path / "nowhere")


def test_a_pickled_miner_leaves_the_data_behind():
    miner = GlobalProxyMiner(group_size=4, samples_per_class=1, seed=5)
    miner.fit(list(range(100_000)), batch_size=64)
    assert len(pickle.dumps(miner)) < 2_000
    assert copy.deepcopy(miner).settings() == miner.settings()


# sentence-transformers' trainer


@pytest.mark.parametrize("with_labels", [True, False])
def test_row_numbers_reach_the_miner_with_their_own_embeddings(tmp_path, with_labels):
    """Without learning, the proxies must be the class means of what the model encodes."""
    model, data = tiny_model(), pair_data(labels=with_labels)
    miner = GlobalProxyMiner(group_size=8, proxy_dim=None, leftovers="keep")
    train(model, data, DecoupledSoftmaxLoss(), tmp_path, miner, learning_rate=0.0, num_train_epochs=1)
    miner.begin_epoch(1)
    vectors = model.encode([*data["query"], *data["document"]], normalize_embeddings=True)
    terms = np.tile(np.repeat(np.arange(TERMS), 3), 2)
    means = np.stack([vectors[terms == term].mean(0) for term in range(TERMS)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = miner.proxies.numpy()
    order = np.argsort(np.unique([f"w{t} w{t + TERMS}" for t in range(TERMS)], return_index=True)[1])
    np.testing.assert_allclose(found if with_labels else found[order], means, atol=1e-5)


@pytest.mark.parametrize("proxy_dim", [None, 4])
def test_the_first_epoch_can_be_mined_too(tmp_path, proxy_dim):
    model, data = tiny_model(), pair_data()
    miner = GlobalProxyMiner(group_size=8, proxy_dim=proxy_dim, first_epoch="mined")
    train(model, data, DecoupledSoftmaxLoss(), tmp_path, miner, learning_rate=0.0, num_train_epochs=1)
    assert model.training
    planned = miner.proxies
    labels = np.array(data["label"])
    at_random = GlobalProxyMiner(group_size=8, samples_per_class=1)
    at_random.fit(labels, batch_size=16)
    groups = [np.unique(labels[rows[i : i + 8]]) for rows in miner.plan for i in (0, 8)]
    by_chance = [np.unique(labels[rows[i : i + 8]]) for rows in at_random.batches() for i in (0, 8)]
    assert group_hardness(planned, groups) > group_hardness(planned, by_chance) + 0.05
    miner.begin_epoch(1)  # at a rate of 0 the epoch has seen what the first look saw
    torch.testing.assert_close(miner.proxies[: TERMS // 2], planned[: TERMS // 2], atol=0.3, rtol=0)


def test_labelled_texts_come_several_of_a_class(tmp_path):
    miner = GlobalProxyMiner(group_size=2)
    train(tiny_model(), text_data(), CircleLoss(), tmp_path, miner)
    labels = np.array(text_data()["label"])
    for rows in miner.plan:
        assert set(Counter(labels[rows]).values()) == {4}


@pytest.mark.parametrize(
    "loss",
    [
        CircleLoss(),
        DecoupledSoftmaxLoss(),
        BiXSELoss(),
        NormalizedSoftmaxLoss(TERMS, 8),
        WeightedSum({CircleLoss(): 1, ThresholdConsistentMarginLoss(): 0.5}),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_kind_of_loss_trains(tmp_path, loss):
    model = tiny_model()
    before = model[0].embedding.weight.detach().clone()
    miner = GlobalProxyMiner(group_size=8, proxy_dim=4)
    trainer = train(model, pair_data(), loss, tmp_path, miner)
    assert trainer.state.global_step == 2 * miner.batches_per_epoch
    assert not torch.equal(model[0].embedding.weight, before)
    assert miner.proxies.shape == (TERMS, 4)


def test_the_trainer_logs_both_losses(tmp_path):
    miner = GlobalProxyMiner(group_size=8, proxy_dim=4)
    trainer = train(tiny_model(), pair_data(), CircleLoss(), tmp_path, miner, logging_strategy="epoch")
    assert {"embedding_loss", "proxy_loss"} <= set(trainer.state.log_history[0])


def test_matryoshka_lengths_train_and_only_whole_embeddings_are_counted(tmp_path):
    model = tiny_model()
    miner = GlobalProxyMiner(group_size=8, proxy_dim=4)
    loss = MatryoshkaLoss(model, miner.wrap(DecoupledSoftmaxLoss(), model), [8, 4])
    trainer = trainer_of(model, pair_data(), loss, tmp_path, num_train_epochs=1, learning_rate=0.0)
    miner.attach(trainer)
    trainer.train()
    counts = miner.state()["counts"]
    assert counts.sum() == 2 * sum(len(rows) for rows in miner.plan)


def test_hard_negatives_are_of_no_class(tmp_path):
    data = pair_data()
    data = data.add_column("negative", ["w119"] * len(data)).select_columns(["query", "document", "negative", "label"])
    miner = GlobalProxyMiner(group_size=8, proxy_dim=None, leftovers="keep")
    train(tiny_model(), data, DecoupledSoftmaxLoss(), tmp_path, miner, num_train_epochs=1)
    assert miner.state()["counts"].tolist() == [6.0] * TERMS


def test_evaluation_data_is_read_in_order(tmp_path):
    model, data = tiny_model(), pair_data()
    miner = GlobalProxyMiner(group_size=8)
    loss = miner.wrap(CircleLoss(), model)
    trainer = trainer_of(model, data, loss, tmp_path, num_train_epochs=1)
    trainer.eval_dataset = data.select(range(20))
    miner.attach(trainer)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """sentence-transformers' own trainer, without a head: it does not save a loss's parameters."""

    def run(folder, **arguments):
        model = tiny_model()
        miner = GlobalProxyMiner(group_size=4, proxy_dim=None, seed=1)
        trainer = trainer_of(
            model, pair_data(), miner.wrap(CircleLoss(), model), folder, save_strategy="steps", save_steps=5, seed=3
        )
        miner.attach(trainer)
        trainer.train(**arguments)
        return model[0].embedding.weight.detach(), miner

    straight, first = run(tmp_path / "a")
    resumed, second = run(tmp_path / "a", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert torch.equal(straight, resumed)
    assert first.plan == second.plan
    assert torch.equal(first.proxies, second.proxies)


def test_a_loss_that_does_not_know_the_miner_is_refused(tmp_path):
    model = tiny_model()
    trainer = trainer_of(model, pair_data(), ForSentenceTransformer(model, CircleLoss()), tmp_path)
    with pytest.raises(InputError, match=r"miner\.wrap"):
        GlobalProxyMiner().attach(trainer)


def test_a_mined_loss_without_row_numbers_is_refused(tmp_path):
    model = tiny_model()
    trainer = trainer_of(model, pair_data(), GlobalProxyMiner().wrap(CircleLoss(), model), tmp_path)
    with pytest.raises(InputError, match="attach"):
        trainer.train()


def test_single_texts_without_classes_are_refused(tmp_path):
    model = tiny_model()
    data = text_data().remove_columns("label")
    miner = GlobalProxyMiner()
    trainer = trainer_of(model, data, miner.wrap(CircleLoss(), model), tmp_path)
    miner.attach(trainer)
    with pytest.raises(InputError, match="'text' stands alone"):
        trainer.train()
