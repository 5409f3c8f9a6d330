"""Losses for metric learning and retrieval: one paper, one file; all streamed where their maths allows."""

from nearfar.losses.circle import CircleLoss
from nearfar.losses.contract import Capabilities, LabelLoss, Loss, QueryDocumentLoss
from nearfar.losses.decoupled_softmax import DecoupledSoftmaxLoss
from nearfar.losses.hosts.sentence_transformers import ForSentenceTransformer
from nearfar.losses.icnn import ICNNLoss
from nearfar.losses.linear_softmax import LinearSoftmaxLoss
from nearfar.losses.multi_similarity import MultiSimilarityLoss
from nearfar.losses.nbc_softmax import NBCSoftmaxLoss
from nearfar.losses.registry import LossEntry, get_loss, list_losses
from nearfar.losses.threshold_consistent_margin import ThresholdConsistentMarginLoss

__all__ = [
    "Capabilities",
    "CircleLoss",
    "DecoupledSoftmaxLoss",
    "ForSentenceTransformer",
    "ICNNLoss",
    "LabelLoss",
    "LinearSoftmaxLoss",
    "Loss",
    "LossEntry",
    "MultiSimilarityLoss",
    "NBCSoftmaxLoss",
    "QueryDocumentLoss",
    "ThresholdConsistentMarginLoss",
    "get_loss",
    "list_losses",
]
