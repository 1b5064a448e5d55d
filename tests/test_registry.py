"""Kinds: every one imports, every process reads back what it wrote, and wrong names are answered helpfully."""

import importlib
import json
import math
import re

import pytest
import torch
from torch import nn

from fokker import registry
from fokker.component import Array, component
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.prediction import Reading
from fokker.process import DDPM, EDM, OU, VE, VP, Cosine, Custom, Flow, Linear, Process, SubVP, Trig


@registry.register("test:shrink")
def shrink(t):
    return 1 - t


@registry.register("test:grow")
def grow(t):
    return t


@registry.register("test:drift")
def drift(t):
    return -0.5 - t


@registry.register("test:diffusion")
def diffusion(t):
    return (1 + 2 * t) ** 0.5


ALL_KINDS = [(family, kind) for family, kinds in registry.KINDS.items() for kind in kinds]
PROCESSES = [
    VP(beta_max=15.0),
    SubVP(beta_min=0.3),
    VE(published=True),
    EDM(sigma_max=50.0),
    Flow(t_min=1e-4),
    Trig(),
    Cosine(s=0.02),
    OU(horizon=3.0),
    DDPM(),
    DDPM(steps=3, betas=(0.1, 0.2, 0.3), zero_terminal_snr=True),
    DDPM(steps=50, betas="scaled_linear", beta_end=0.1),
    Linear(drift=drift, diffusion=diffusion, horizon=2.0),
    Custom(alpha_of=shrink, sigma_of=grow, unit_prior=True),
]


@pytest.mark.parametrize(("family", "kind"), ALL_KINDS)
def test_every_kind_imports(family, kind):
    module, name = registry.KINDS[family][kind].split(":")
    importlib.import_module("fokker")
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{module} is not written yet")
    cls = registry.lookup(family, kind)
    assert cls.__name__ == name or cls.__name__ == "DiscreteVP"
    assert name in importlib.import_module(module).__all__


def test_every_process_has_a_kind():
    listed = {registry.lookup("process", kind) for kind in registry.KINDS["process"]}
    defined = {c for c in vars(importlib.import_module("fokker.process")).values() if isinstance(c, type)}
    assert {c for c in defined if issubclass(c, Process) and c is not Process} == listed


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_build_reads_what_spec_wrote(process):
    written = registry.spec(process)
    through = json.loads(json.dumps(written))
    back = registry.build("process", through)
    assert back == process
    assert type(back) is type(process)
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert torch.equal(back.alpha(t), process.alpha(t))
    assert registry.kind_of(process) == ("process", written["kind"])


def test_build_takes_names_mappings_and_components():
    assert registry.build("process", "vp") == VP()
    assert registry.build("process", "DDPM") == DDPM()
    assert registry.build("process", "Sub_VP") == SubVP()
    assert registry.build("process", {"kind": "vp", "beta_max": 15}) == VP(beta_max=15.0)
    given = VP()
    assert registry.build("process", given) is given
    spec = {"kind": "vp", "beta_max": 15.0}
    registry.build("process", spec)
    assert spec == {"kind": "vp", "beta_max": 15.0}  # the caller's mapping is left alone


def test_spec_by_value():
    assert registry.spec(VP()) == {"kind": "vp", "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-3}
    assert registry.spec(PROCESSES[-1])["alpha_of"] == {"function": "test:shrink"}
    assert registry.spec(PROCESSES[9])["betas"] == [0.1, 0.2, 0.3]
    assert registry.spec((1, (2.5, "a"), None)) == [1, [2.5, "a"], None]


def test_large_arrays_go_beside_the_weights():
    betas = torch.linspace(1e-3, 0.02, 65, dtype=torch.float64)
    process = DDPM(steps=65, betas=betas)
    with pytest.raises(ConfigError, match="betas: an array of 65 numbers needs a tensor file"):
        registry.spec(process)
    tensors: dict[str, torch.Tensor] = {}
    written = registry.spec(process, tensors)
    assert written["betas"] == {"tensor": "array:betas"}
    assert torch.equal(tensors["array:betas"], betas)
    assert registry.build("process", json.loads(json.dumps(written)), tensors) == process
    for lost in (None, {}):
        with pytest.raises(ConfigError, match="the array 'array:betas' is not in this file"):
            registry.build("process", written, lost)
    assert isinstance(registry.spec(Array(torch.zeros(64))), list)


def test_nested_tensor_names_do_not_collide():
    process = DDPM(steps=65, betas=torch.full((65,), 0.01))
    tensors: dict[str, torch.Tensor] = {}
    written = registry.spec([process, DDPM(steps=65, betas=torch.full((65,), 0.02))], tensors, "pair")
    assert len(tensors) == 2
    assert [w["betas"]["tensor"] for w in written] == ["array:pair.0.betas", "array:pair.1.betas"]


def test_functions_are_known_by_name_only():
    unnamed = Custom(alpha_of=lambda t: 1 - t, sigma_of=grow)
    with pytest.raises(ConfigError, match=r"alpha_of: .* cannot be saved: name it with @fk\.register"):
        registry.spec(unnamed)
    with pytest.raises(ConfigError, match="the function 'test:lost' is not registered"):
        registry.build("process", {"kind": "custom", "alpha_of": {"function": "test:lost"}, "sigma_of": grow})
    with pytest.raises(ConfigError, match="'test:shrink' is already registered"):
        registry.register("test:shrink")(lambda t: t)
    assert registry.register("test:shrink")(shrink) is shrink
    # A dotted path from a file is a string, and a string is no function.
    with pytest.raises(ConfigError, match="alpha_of"):
        registry.build("process", {"kind": "custom", "alpha_of": "os.system", "sigma_of": {"function": "test:grow"}})


@pytest.mark.parametrize(
    ("family", "kind", "parts"),
    [
        ("process", "vpp", ["unknown process 'vpp'", "did you mean 'vp'", "allowed: cosine, custom, ddpm"]),
        ("process", "flw", ["did you mean 'flow'"]),
        ("solver", "ddpm", ["unknown solver 'ddpm'", "DDPM is a process", "its sampler is 'ancestral'"]),
        ("solver", "DDPM", ["unknown solver 'DDPM'", "DDPM is a process"]),
        ("process", "ancestral", ["Ancestral is a solver"]),
        ("process", "ddim", ["DDIM is a solver of any process"]),
        ("process", "fm", ["flow matching is the process 'flow'", "Denoising.cfm()"]),
        ("process", "rectified_flow", ["rectified flow's path is the process 'flow'"]),
        ("process", "discrete-vp", ["DiscreteVP is the process of kind 'ddpm'"]),
        ("solver", "vp", ["'vp' is a process"]),
        ("grid", "edm", ["EDM is a process ('edm'), a weight ('edm') and a solver ('edm-stochastic')"]),
        ("process", "heun", ["'heun' is a solver"]),
    ],
)
def test_a_name_of_another_family_is_answered(family, kind, parts):
    with pytest.raises(ConfigError) as caught:
        registry.lookup(family, kind)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_name_kinds_that_exist():
    kinds = {kind for table in registry.KINDS.values() for kind in table}
    for note in registry.ALIASES.values():
        assert set(re.findall(r"(?<!\w)'([a-z-]+)'", note)) <= kinds, note


def test_a_mapping_without_a_kind_and_a_class_without_one():
    with pytest.raises(ConfigError, match=r"process: given .*beta_max.* without a kind"):
        registry.build("process", {"beta_max": 3.0})
    with pytest.raises(ConfigError, match="without a kind"):
        registry.build("process", {"kind": 3})

    @component
    class VP:  # the name of a kind, from another module
        beta: float = 1.0

    with pytest.raises(ConfigError, match="VP has no kind"):
        registry.kind_of(VP())
    with pytest.raises(ConfigError, match="has no kind"):
        registry.spec(VP())
    with pytest.raises(ConfigError, match="here: set cannot be written"):
        registry.spec({1, 2}, path="here")


def test_a_field_that_resolves_names():
    from typing import Annotated, Any

    @component
    class Holder:
        process: Annotated[Any, registry.resolves("process")]

    assert Holder(process="flow").process == Flow()
    assert Holder(process={"kind": "vp", "beta_max": 9.0}).process == VP(beta_max=9.0)
    assert Holder(process=EDM()).process == EDM()
    with pytest.raises(ConfigError, match="did you mean 'flow'"):
        Holder(process="flo")


def test_a_net_denoiser_round_trips_through_json():
    nets = pytest.importorskip("fokker.nets")
    net = nets.MLP(2)
    d = NetDenoiser(net, DDPM(steps=3, betas=(0.1, 0.2, 0.3)), "edm", "edm", "index", 0.7, (2,), (-3.0, 2.0))
    written = json.loads(json.dumps(registry.spec(d)))
    assert written["kind"] == "net"
    assert written["process"]["kind"] == "ddpm"
    back = registry.build("denoiser", written)
    back.net.load_state_dict(net.state_dict())
    assert back.process == d.process
    assert (back.shape, back.lam_range, back.sigma_data) == ((2,), (-3.0, 2.0), 0.7)
    x = torch.randn(4, 2)
    with torch.no_grad():
        assert torch.equal(back(x, 0.5).x0, d(x, 0.5).x0)


def test_a_denoiser_with_a_reading_of_ones_own_cannot_be_saved():
    mine = Reading("mine", lambda process, t: (t, t, t))

    class Local(nn.Module):
        config = {}

    with pytest.raises(ConfigError, match="has no kind"):
        registry.spec(NetDenoiser(Local(), VP(), mine))
    nets = pytest.importorskip("fokker.nets")
    with pytest.raises(ConfigError, match="Reading has no kind"):
        registry.spec(NetDenoiser(nets.MLP(2), VP(), mine))


def test_default_kinds_are_the_papers():
    # EDM's, DDPM's and Song's published constants are what a bare name builds.
    edm = registry.build("process", "edm")
    assert (edm.sigma_min, edm.sigma_max) == (0.002, 80.0)
    vp = registry.build("process", "vp")
    assert (vp.beta_min, vp.beta_max) == (0.1, 20.0)
    ve = registry.build("process", "ve")
    assert (ve.sigma_min, ve.sigma_max) == (0.01, 50.0)
    assert registry.build("process", "ddpm").steps == 1000
    assert math.isclose(registry.build("process", "cosine").s, 0.008)
