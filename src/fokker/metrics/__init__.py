"""Measures of samples against data, each with its uncertainty and with what real data get."""

from .classifier import class_agreement, train_classifier
from .features import Features, classifier_features, efficientnet_lite0, identity
from .frechet import frechet_distance, frechet_gaussians
from .intervals import half_sample_interval
from .kernels import energy_distance, gaussian_kernel, kid, median_bandwidth, mmd2, polynomial_kernel
from .neighbours import Memorisation, Support, memorisation, support
from .nll import NllReport, NllRow, log_volume, nll
from .report import METRICS, Report, Row, evaluate
from .transport import sinkhorn_divergence, sliced_w2, wasserstein

__all__ = [
    "METRICS",
    "Features",
    "Memorisation",
    "NllReport",
    "NllRow",
    "Report",
    "Row",
    "Support",
    "class_agreement",
    "classifier_features",
    "efficientnet_lite0",
    "energy_distance",
    "evaluate",
    "frechet_distance",
    "frechet_gaussians",
    "gaussian_kernel",
    "half_sample_interval",
    "identity",
    "kid",
    "log_volume",
    "median_bandwidth",
    "memorisation",
    "mmd2",
    "nll",
    "polynomial_kernel",
    "sinkhorn_divergence",
    "sliced_w2",
    "support",
    "train_classifier",
    "wasserstein",
]
