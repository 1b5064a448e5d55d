"""Objectives: what turns a model and a batch into a loss; each owns its weighting and its time sampler."""

from .denoising import Denoising, Terms
from .matching import ScoreMatching
from .regularisers import FokkerPlanckPenalty, MartingalePenalty, Regulariser
from .score import (
    Curvature,
    FirstOrder,
    Operator,
    denoising_matching,
    explicit_matching,
    generalised_matching,
    implicit_matching,
    second_order_matching,
    sliced_matching,
)
from .times import Adaptive, LearnedTimes, Levels, LogitNormal, LogNormal, TimeLaw, UniformTimes
from .tweedie import Cumulants, cumulants, sure, tweedie
from .weighting import (
    SNR,
    VLB,
    EDMMonotone,
    EDMWeight,
    Likelihood,
    MinSNR,
    Sigma2,
    Sigmoid,
    Uncertainty,
    Uniform,
    Weight,
)

__all__ = [
    "SNR",
    "VLB",
    "Adaptive",
    "Cumulants",
    "Curvature",
    "Denoising",
    "EDMMonotone",
    "EDMWeight",
    "FirstOrder",
    "FokkerPlanckPenalty",
    "LearnedTimes",
    "Levels",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "MartingalePenalty",
    "MinSNR",
    "Operator",
    "Regulariser",
    "ScoreMatching",
    "Sigma2",
    "Sigmoid",
    "Terms",
    "TimeLaw",
    "Uncertainty",
    "Uniform",
    "UniformTimes",
    "Weight",
    "cumulants",
    "denoising_matching",
    "explicit_matching",
    "generalised_matching",
    "implicit_matching",
    "second_order_matching",
    "sliced_matching",
    "sure",
    "tweedie",
]
