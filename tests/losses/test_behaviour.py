"""What every loss promises about its inputs: who may call it with what, and what it never does."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch

from nearfar.errors import InputError
from tests.losses.cases import CASES, able, each, each_scenario, of_kind
from tests.losses.inputs import (
    CLASSES,
    DIM,
    LABELS,
    DocumentInputs,
    LabelInputs,
    all_distinct,
    empty,
    mined_pairs,
    multi_hot,
    no_pairs,
    nothing_relevant,
    one_class,
    plain,
    points,
    references,
    single,
    typical,
)
from tests.losses.outcome import assert_same, outcome

LABEL_CASES = of_kind("labels")
ANY_LABELS = [case for case in LABEL_CASES if not case.has_classes]
MINED = [case for case in LABEL_CASES if case.capabilities.mined_pairs]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Order


@each(LABEL_CASES)
def test_permuting_the_batch_permutes_the_gradient(case):
    inputs = plain(generator())
    order = torch.randperm(len(inputs.labels), generator=generator(1))
    shuffled = LabelInputs(inputs.embeddings[order], inputs.labels[order])
    one, other = outcome(case.build(), inputs), outcome(case.build(), shuffled)
    torch.testing.assert_close(other.value, one.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.gradients["embeddings"], one.gradients["embeddings"][order], rtol=1e-9, atol=1e-9)


@each([case for case in able("unreduced") if case in LABEL_CASES])
def test_permuting_the_batch_permutes_the_values(case):
    inputs, loss = plain(generator()), case.build(reduction="none")
    order = torch.randperm(len(inputs.labels), generator=generator(1))
    shuffled = LabelInputs(inputs.embeddings[order], inputs.labels[order])
    torch.testing.assert_close(shuffled.call(loss), inputs.call(loss)[order], rtol=1e-10, atol=1e-10)


@each(of_kind("documents"))
def test_permuting_documents_with_their_relevance_changes_nothing(case):
    inputs = typical(case.capabilities)
    rows = torch.randperm(len(inputs.queries), generator=generator(1))
    columns = torch.randperm(len(inputs.documents), generator=generator(2))
    shuffled = DocumentInputs(inputs.queries[rows], inputs.documents[columns], inputs.relevance[rows][:, columns])
    one, other = outcome(case.build(), inputs), outcome(case.build(), shuffled)
    torch.testing.assert_close(other.value, one.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.gradients["queries"], one.gradients["queries"][rows], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.gradients["documents"], one.gradients["documents"][columns], rtol=1e-9, atol=1e-9)


# Reference sets and mined pairs


@each([case for case in LABEL_CASES if case.capabilities.reference_set])
def test_the_batch_as_its_own_reference_set_leaves_self_pairs_out(case):
    inputs = plain(generator())
    alone = outcome(case.build(), inputs)
    for ref_labels in (inputs.labels, None):
        same = replace(inputs, ref_emb=inputs.embeddings, ref_labels=ref_labels)
        assert_same(outcome(case.build(), same), alone)


@each([case for case in LABEL_CASES if case.capabilities.reference_set])
def test_reference_labels_may_have_another_integer_type(case):
    inputs = references(generator())
    other = replace(inputs, labels=inputs.labels.to(torch.int32), ref_labels=inputs.ref_labels.to(torch.uint8))
    assert_same(outcome(case.build(), other), outcome(case.build(), inputs))


@each(LABEL_CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integer_type_of_labels(case, dtype):
    inputs = plain(generator())
    narrow = replace(inputs, labels=inputs.labels.to(dtype))
    assert_same(outcome(case.build(), narrow), outcome(case.build(), inputs))


@each(LABEL_CASES)
def test_boolean_labels_are_two_classes(case):
    inputs = plain(generator())
    two = inputs.labels % 2
    assert_same(
        outcome(case.build(), replace(inputs, labels=two.bool())), outcome(case.build(), replace(inputs, labels=two))
    )


@each(MINED)
def test_duplicates_among_mined_pairs_count_once(case):
    inputs = mined_pairs(generator())
    a1, p, a2, n = inputs.indices_tuple
    twice = replace(inputs, indices_tuple=tuple(torch.cat([part, part]) for part in (a1, p, a2, n)))
    assert_same(outcome(case.build(), twice), outcome(case.build(), inputs))


@each(MINED)
def test_all_pairs_mined_equals_no_mining(case):
    inputs = plain(generator())
    same = inputs.labels[:, None] == inputs.labels
    other_than_self = ~torch.eye(len(same), dtype=torch.bool)
    a1, p = (same & other_than_self).nonzero(as_tuple=True)
    a2, n = (~same).nonzero(as_tuple=True)
    everything = LabelInputs(inputs.embeddings, None, (a1, p, a2, n))
    assert_same(outcome(case.build(), everything), outcome(case.build(), inputs))


@each(MINED)
@pytest.mark.parametrize(
    "damage",
    [
        lambda a1, p, a2, n: (a1, p),
        lambda a1, p, a2, n: (a1, p[:-1], a2, n),
        lambda a1, p, a2, n: (a1, p, a2, n + 100),
        lambda a1, p, a2, n: (a1 - 5, p, a2, n),
        lambda a1, p, a2, n: (a1, p.double(), a2, n),
    ],
    ids=["two tensors", "lengths differ", "beyond the references", "negative", "floating point"],
)
def test_unusable_mined_pairs_are_refused(case, damage):
    inputs = mined_pairs(generator())
    with pytest.raises(InputError, match="indices_tuple"):
        replace(inputs, indices_tuple=damage(*inputs.indices_tuple)).call(case.build())


# Degenerate batches


@each(LABEL_CASES)
@pytest.mark.parametrize("scenario", [one_class, all_distinct, single, empty], ids=lambda s: s.__name__)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_degenerate_label_batches_stay_on_the_graph(case, scenario, path):
    _check_connected(case, scenario(generator()), path)


@each(of_kind("documents"))
@pytest.mark.parametrize("scenario", [no_pairs, nothing_relevant], ids=lambda s: s.__name__)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_degenerate_document_batches_stay_on_the_graph(case, scenario, path):
    _check_connected(case, scenario(generator()), path)


def _check_connected(case, inputs, path):
    inputs = inputs.fresh()
    value = inputs.call(case.build(path=path))
    assert value.requires_grad
    assert torch.isfinite(value)
    value.backward()
    for leaf in inputs.leaves().values():
        assert torch.isfinite(leaf.grad).all()
        if value == 0:
            assert not leaf.grad.any()


@each()
def test_reduction_none_of_an_empty_batch_is_empty(case):
    if not case.capabilities.unreduced:
        with pytest.raises(InputError, match="reduction"):
            case.build(reduction="none")
        return
    inputs = (empty if case.capabilities.inputs == "labels" else no_pairs)(generator())
    assert inputs.call(case.build(reduction="none")).shape == (0,)


# Labels


@each(ANY_LABELS)
def test_labels_are_compared_exactly(case):
    inputs = plain(generator())
    huge = replace(inputs, labels=inputs.labels + 2**60)  # neighbours are one in float64
    negative = replace(inputs, labels=inputs.labels - 4)
    expected = outcome(case.build(), inputs)
    assert_same(outcome(case.build(), huge), expected)
    assert_same(outcome(case.build(), negative), expected)


@each([case for case in LABEL_CASES if case.has_classes])
@pytest.mark.parametrize("label", [-2, CLASSES])
def test_labels_without_a_class_are_refused(case, label):
    inputs = plain(generator())
    inputs.labels[3] = label
    with pytest.raises(InputError, match="num_classes"):
        inputs.call(case.build())


@each([case for case in LABEL_CASES if case.capabilities.multi_label])
def test_one_hot_labels_equal_integer_labels(case):
    inputs = plain(generator())
    hot = torch.nn.functional.one_hot(inputs.labels, CLASSES)
    expected = outcome(case.build(), inputs)
    for labels in (hot, hot.bool(), hot.float()):
        assert_same(outcome(case.build(), replace(inputs, labels=labels)), expected)


# Refusals


@each(LABEL_CASES)
def test_what_a_label_loss_cannot_honour_it_refuses(case):
    able_to, loss = case.capabilities, case.build()
    attempts = [
        (able_to.reference_set, references, "ref_emb"),
        (able_to.mined_pairs, mined_pairs, "indices_tuple"),
        (able_to.multi_label, multi_hot, "label"),
    ]
    for honoured, scenario, word in attempts:
        inputs = scenario(generator())
        if honoured:
            assert torch.isfinite(inputs.call(loss))
        else:
            with pytest.raises(InputError, match=word):
                inputs.call(loss)


@each(LABEL_CASES)
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": None}, "labels"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels"),
        ({"labels": torch.zeros(len(LABELS))}, "labels"),
        ({"labels": torch.zeros(len(LABELS), 1, 1, dtype=torch.long)}, "labels"),
        ({"embeddings": torch.zeros(len(LABELS), DIM, dtype=torch.long)}, "embeddings"),
        ({"embeddings": torch.zeros(len(LABELS), DIM, 1)}, "embeddings"),
        ({"ref_labels": torch.zeros(4, dtype=torch.long)}, "ref_"),
    ],
    ids=["none", "too few", "floats", "3-D", "integer embeddings", "3-D embeddings", "ref_labels alone"],
)
def test_misfitting_label_inputs_are_refused(case, changes, word):
    with pytest.raises(InputError, match=word):
        replace(plain(generator()), **changes).call(case.build())


@each([case for case in LABEL_CASES if case.capabilities.reference_set])
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ref_labels": None}, "ref_labels"),
        ({"ref_labels": torch.zeros(3, dtype=torch.long)}, "ref_labels"),
        ({"ref_emb": torch.zeros(11, DIM + 1, dtype=torch.float64)}, "ref_emb"),
        ({"ref_labels": torch.zeros(11, 4, dtype=torch.long)}, "label"),
    ],
    ids=["no labels", "too few labels", "other width", "multi-hot against integers"],
)
def test_misfitting_references_are_refused(case, changes, word):
    with pytest.raises(InputError, match=word):
        replace(references(generator()), **changes).call(case.build())


@each([case for case in LABEL_CASES if case.has_classes])
def test_embeddings_wider_than_the_class_weights_are_refused(case):
    with pytest.raises(InputError, match="embedding_size"):
        plain(generator(), DIM + 2).call(case.build())


@each(of_kind("documents"))
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"documents": torch.zeros(7, DIM, dtype=torch.float64), "relevance": None}, "documents"),
        ({"documents": torch.zeros(11, DIM + 1, dtype=torch.float64)}, "documents"),
        ({"relevance": torch.zeros(8, 10)}, "relevance"),
        ({"relevance": torch.full((8, 11), 2.0)}, "relevance"),
        ({"relevance": torch.full((8, 11), -0.5)}, "relevance"),
        ({"relevance": torch.full((8, 11), float("nan"))}, "relevance"),
        ({"relevance": torch.full((8, 11), 3.0).to_sparse_coo()}, "relevance"),
        ({"mask": torch.zeros(11, 8)}, "mask"),
        ({"query_ids": torch.arange(7)}, "query_ids"),
        ({"query_ids": torch.rand(8)}, "query_ids"),
        ({"document_ids": torch.arange(8)}, "document_ids"),
        ({"queries": torch.zeros(8, DIM, dtype=torch.long)}, "queries"),
    ],
)
def test_misfitting_document_inputs_are_refused(case, changes, word):
    with pytest.raises(InputError, match=word):
        replace(typical(case.capabilities), **changes).call(case.build())


@each(of_kind("documents"))
@pytest.mark.parametrize(
    "options", [{"temperature": 0.1, "scale": 10}, {"temperature": 0.0}, {"temperature": -1.0}, {"scale": 0.0}]
)
def test_one_positive_temperature_or_scale(case, options):
    with pytest.raises(InputError, match=r"temperature|scale"):
        case.build(**{"temperature": None, "scale": None, **options})


@each()
@pytest.mark.parametrize("option", ["reduction", "path"])
def test_unknown_choices_are_refused(case, option):
    with pytest.raises(InputError, match="sum"):
        case.build(**{option: "sum"})


# What a loss never does


@each_scenario()
def test_inputs_and_parameters_are_never_modified(case, scenario):
    inputs = scenario(generator()).fresh()
    loss = case.build()
    watched = [t for t in [*inputs.tensors(), *loss.parameters()] if t.layout == torch.strided]
    before = [(tensor._version, tensor.detach().clone()) for tensor in watched]
    inputs.call(loss).backward()
    for tensor, (version, values) in zip(watched, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor, values)


@each()
def test_the_same_call_gives_the_same_bits(case):
    inputs = typical(case.capabilities)
    one, other = outcome(case.build(), inputs), outcome(case.build(), inputs)
    assert torch.equal(one.value, other.value)
    assert all(torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients)


@each()
def test_strided_inputs(case):
    inputs = typical(case.capabilities)
    expected = outcome(case.build(), inputs)
    transposed = inputs.fresh()
    for name, leaf in inputs.leaves().items():
        setattr(transposed, name, leaf.T.contiguous().T.requires_grad_())
    value = transposed.call(case.build())
    torch.testing.assert_close(value, expected.value, rtol=1e-12, atol=1e-12)


# Degenerate points


@each()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("what", ["zero vectors", "duplicates", "all equal"])
def test_degenerate_points_have_finite_gradients(case, dtype, what):
    inputs = typical(case.capabilities).fresh(dtype)
    with torch.no_grad():
        for leaf in inputs.leaves().values():
            if what == "zero vectors":
                leaf[:2] = 0
            elif what == "duplicates":
                leaf[3:6] = leaf[:3]
            else:
                leaf[:] = leaf[0]
    found = outcome(case.build(dtype=torch.float32 if dtype != torch.float64 else dtype), inputs)
    assert torch.isfinite(found.value)
    for name, gradient in found.gradients.items():
        assert torch.isfinite(gradient).all(), name


# State


@each()
def test_pickle_copy_and_state_dict(case):
    inputs, loss = typical(case.capabilities), case.build()
    expected = outcome(loss, inputs)
    stored = io.BytesIO()
    torch.save(loss.state_dict(), stored)
    stored.seek(0)
    restored = case.build()
    for parameter in restored.parameters():
        torch.nn.init.zeros_(parameter)
    restored.load_state_dict(torch.load(stored, weights_only=True))
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), restored):
        assert_same(outcome(other, inputs), expected)


@each()
def test_repr_shows_the_settings(case):
    loss = case.build()
    text = repr(loss)
    assert text.startswith(type(loss).__name__)
    for name, value in loss.settings().items():
        assert f"{name}={value!r}" in text


@each()
def test_settings_rebuild_the_loss(case):
    for variant in range(len(case.options)):
        loss = case.build(variant)
        again = type(loss)(**loss.settings())
        assert again.settings() == loss.settings()


def test_flags_are_declared_where_they_matter():
    assert {case.capabilities.inputs for case in CASES} == {"labels", "documents"}
    assert MINED
    assert ANY_LABELS
    assert points(3, generator()).shape == (3, DIM)
