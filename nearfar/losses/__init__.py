"""Losses for metric learning and retrieval: one paper, one file; all streamed where their maths allows."""

from nearfar.losses.adaface import AdaFaceLoss
from nearfar.losses.arcface import ArcFaceLoss
from nearfar.losses.bixse import BiXSELoss
from nearfar.losses.circle import CircleLoss
from nearfar.losses.circle_head import CircleHeadLoss
from nearfar.losses.combine import WeightedSum
from nearfar.losses.contract import Capabilities, LabelLoss, Loss, QueryDocumentLoss
from nearfar.losses.contrastive import ContrastiveLoss
from nearfar.losses.cosface import CosFaceLoss
from nearfar.losses.decoupled_softmax import DecoupledSoftmaxLoss
from nearfar.losses.elasticface import ElasticFaceLoss
from nearfar.losses.hard_negative_mixing import HardNegativeMixing
from nearfar.losses.hosts.pytorch_metric_learning import as_pml
from nearfar.losses.hosts.sentence_transformers import ForSentenceTransformer
from nearfar.losses.icnn import ICNNLoss
from nearfar.losses.info_nce import InfoNCELoss
from nearfar.losses.linear_softmax import LinearSoftmaxLoss
from nearfar.losses.mann_whitney import MannWhitneyLoss
from nearfar.losses.metrix import Metrix
from nearfar.losses.multi_similarity import MultiSimilarityLoss
from nearfar.losses.nbc_softmax import NBCSoftmaxLoss
from nearfar.losses.normalized_softmax import NormalizedSoftmaxLoss
from nearfar.losses.ntxent import NTXentLoss
from nearfar.losses.proto_triplet import ProtoTripletLoss
from nearfar.losses.proxy_anchor import ProxyAnchorLoss
from nearfar.losses.registry import LossEntry, get_loss, list_losses
from nearfar.losses.siglip import SigLIPLoss
from nearfar.losses.soft_top_k import SoftTopKLoss
from nearfar.losses.sub_center_arcface import SubCenterArcFaceLoss
from nearfar.losses.supcon import SupConLoss
from nearfar.losses.threshold_consistent_margin import ThresholdConsistentMarginLoss
from nearfar.losses.triplet_margin import TripletMarginLoss
from nearfar.losses.with_options import WithOptions

__all__ = [
    "AdaFaceLoss",
    "ArcFaceLoss",
    "BiXSELoss",
    "Capabilities",
    "CircleHeadLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "DecoupledSoftmaxLoss",
    "ElasticFaceLoss",
    "ForSentenceTransformer",
    "HardNegativeMixing",
    "ICNNLoss",
    "InfoNCELoss",
    "LabelLoss",
    "LinearSoftmaxLoss",
    "Loss",
    "LossEntry",
    "MannWhitneyLoss",
    "Metrix",
    "MultiSimilarityLoss",
    "NBCSoftmaxLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "ProtoTripletLoss",
    "ProxyAnchorLoss",
    "QueryDocumentLoss",
    "SigLIPLoss",
    "SoftTopKLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "ThresholdConsistentMarginLoss",
    "TripletMarginLoss",
    "WeightedSum",
    "WithOptions",
    "as_pml",
    "get_loss",
    "list_losses",
]
