"""Objectives: what turns a model and a batch into a loss; each owns its weighting and its time sampler."""

from .denoising import Denoising, Terms
from .times import Adaptive, LearnedTimes, Levels, LogitNormal, LogNormal, TimeLaw, UniformTimes
from .weighting import (
    SNR,
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
    "Adaptive",
    "Denoising",
    "EDMMonotone",
    "EDMWeight",
    "LearnedTimes",
    "Levels",
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
