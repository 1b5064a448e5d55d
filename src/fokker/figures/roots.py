"""Chapters 1 and 2: what a model is fitted by, variational autoencoders, and DDPM with the exact denoiser."""

from . import roots_chains as chains
from . import roots_divergences as divergences
from .sets import Figure

__all__ = ["FIGURES"]

FIGURES = (
    Figure(
        "model-fit",
        "Book Fig. 1.1: training makes a divergence from the data's law (grey) fall. The model (blue) is a mixture of "
        "three Gaussians, fitted to 400 samples (a quarter of them as ticks) by maximum likelihood (EM); what is left "
        "of the divergences is the samples' number, not the model's form.",
        divergences.fit,
    ),
    Figure(
        "mode-covering",
        "One Gaussian q for a law p of two modes (book Sec. 1.1.1). Forward KL has one best q, of p's own moments, "
        "which covers both modes and the gap between; reverse KL has a minimum at each mode. Contours on the right.",
        divergences.cover,
    ),
    Figure(
        "fisher-blindness",
        "The Fisher divergence is blind to the weights of distant modes (book Sec. 1.1.1): where there is mass the two "
        "scores agree, and it falls to 1e-13 while KL stays at .83. Noise joins the modes and makes it see again, "
        "which is why scores are learnt at many noise levels.",
        divergences.blindness,
    ),
    Figure(
        "families",
        "Book Fig. 1.2 and Table 1.1: the families as computation graphs. Boxes are variables, trapezoids networks, "
        "ovals scalars; the grey arrows of diffusion are its fixed forward process. Energy models are not in the "
        "book's table.",
        divergences.families,
    ),
    Figure(
        "autoencoders",
        "Book Figs. 2.1 and 2.2: a VAE, and a hierarchical one. Freeze the encoders to Gaussian noise and let every "
        "z_i be as large as x: that is DDPM.",
        chains.autoencoders,
    ),
    Figure(
        "blur",
        "Why VAEs blur (book Sec. 2.1.4): five pictures with codes -2, -1, 0, 1, 2 and an encoder of fixed width. The "
        "best decoder averages the pictures by their posterior weights, and the wider the encoder, the more of them. "
        "The book prints the prior in the denominator of these weights; their sum would be the dashed line, not 1.",
        chains.blur,
    ),
    Figure(
        "collapse",
        "Posterior collapse (book Sec. 2.1.5) of the best linear VAE in closed form: a dimension's KL from the prior "
        "is 1/2 log of the data's variance over the decoder's, and 0 once the decoder's is larger. Right: E KL = I(x; "
        "z) + KL(q(z) | p) for x ~ N(0, 1) and the encoder N(a x, 1/4).",
        chains.collapse,
    ),
    Figure(
        "ddpm-forward",
        "Book Figs. 2.3 and 2.4: DDPM's forward chain from three pictures, 1000 levels of the linear schedule.",
        chains.forward,
    ),
    Figure(
        "ddpm-reverse",
        "Book Fig. 2.5: the laws p_i of two moons under 1000 levels, by the forward chain from data (grey), and by the "
        "reverse chain from noise with the exact denoiser, 200 steps of ancestral sampling (blue).",
        chains.reverse,
    ),
    Figure(
        "clean-predictions",
        "Book Fig. 2.6: states of the reverse chain and the clean prediction at each, coarse to fine. The denoiser is "
        "the exact one of 200 pictures: an average of as many as the number below says (e to the entropy of the "
        "weights), and in the end one of them.",
        chains.clean,
    ),
    Figure(
        "reverse-kernel",
        "Why DDPM needs many steps (book Sec. 2.2.6): the true p(x_{i-1} | x_i) of a law of two modes, seen from "
        "between them, and two Gaussians of its mean: of its own variance (blue; KL in the titles) and of DDPM's "
        "sigma^2(i) (red). Their KL falls as the third and the second power of the step's variance beta^2.",
        chains.kernels,
    ),
)
