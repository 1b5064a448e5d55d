"""Started by tests as a process of its own: an exact mixture's samples into a folder of shards.

python shard_worker.py FOLDER N [STEPS]
"""

import sys

import torch

import fokker as fk
from fokker.launch import place, together
from fokker.process import VP
from fokker.shards import sample_to
from fokker.solvers import DDIM

OPTIONS = {"batch_size": 8, "shard": 16, "seed": 5, "solver": DDIM(eta=0.5)}


def mixture() -> fk.Denoiser:
    law = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.5, 1.0]], [0.16, 0.36])
    return law.denoiser(VP())


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = place()
    with together(here) as barrier:
        sample_to(
            sys.argv[1],
            mixture(),
            n=int(sys.argv[2]),
            steps=int((*sys.argv, 10)[3]),
            rank=here.rank,
            world=here.world,
            barrier=barrier,
            **OPTIONS,
        )
    print(f"rank {here.rank} of {here.world} on {here.device}")
