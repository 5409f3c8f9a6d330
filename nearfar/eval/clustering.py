"""Do clusters of the embeddings agree with their labels? NMI and AMI of a k-means clustering."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.errors import MissingDependencyError
from nearfar.eval.inputs import ArrayLike, class_labels, unit_rows


@dataclass(frozen=True)
class ClusterAgreement:
    """How far a clustering agrees with the labels.

    Attributes:
        nmi: normalised mutual information (arithmetic mean of the entropies), in [0, 1]. It rises with the number of
            clusters even for random embeddings.
        ami: mutual information adjusted for chance, 0 on average for random embeddings and 1 for perfect clusters.
        clusters: number of clusters, which is that of the classes.
    """

    nmi: float
    ami: float
    clusters: int


def cluster_agreement(embeddings: ArrayLike, labels: ArrayLike, seed: int = 0) -> ClusterAgreement:
    """Cluster the embeddings by k-means, with as many clusters as classes, and compare with the labels.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one here.
        labels: N integers of any size, or N strings.
        seed: of the k-means start. The figures move with it; compare models over several.

    Raises:
        InputError: malformed embeddings, a wrong number of labels, one class only, or no class with two samples.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> cluster_agreement([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], ["a", "a", "b", "b"]).ami
        1.0

    Source: scikit-learn's KMeans, normalized_mutual_info_score and adjusted_mutual_info_score.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import (
            adjusted_mutual_info_score,
            normalized_mutual_info_score,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "NMI and AMI need scikit-learn; install it with: pip install scikit-learn"
        ) from error
    unit = unit_rows(embeddings)
    classes = class_labels(labels, len(unit))
    clusters = KMeans(n_clusters=len(classes.names), n_init=1, random_state=seed).fit_predict(unit)
    return ClusterAgreement(
        nmi=float(normalized_mutual_info_score(classes.codes, clusters)),
        ami=float(adjusted_mutual_info_score(classes.codes, clusters)),
        clusters=len(classes.names),
    )
