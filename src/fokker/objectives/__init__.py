"""Objectives: what turns a model and a batch into a loss; each owns its weighting and its time sampler."""

from .denoising import Denoising, Terms
from .times import LogitNormal, LogNormal, TimeLaw, UniformTimes
from .weighting import SNR, EDMWeight, Likelihood, MinSNR, Sigma2, Uniform, Weight

__all__ = [
    "SNR",
    "Denoising",
    "EDMWeight",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Sigma2",
    "Terms",
    "TimeLaw",
    "Uniform",
    "UniformTimes",
    "Weight",
]
