"""Objectives: what turns a model and a batch into a loss; each owns its weighting and its time sampler."""

from .denoising import Denoising, Terms
from .times import Adaptive, LearnedTimes, LogitNormal, LogNormal, TimeLaw, UniformTimes
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
    "Denoising",
    "EDMMonotone",
    "EDMWeight",
    "LearnedTimes",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Sigma2",
    "Sigmoid",
    "Terms",
    "TimeLaw",
    "Uncertainty",
    "Uniform",
    "UniformTimes",
    "Weight",
]
