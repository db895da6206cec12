"""The schema of a scenario file.

A scenario is the one description that everything starts from: the testbed reads the topology, the links
and the devices, the controller its addresses, the orchestrator its workload. What the core decides by
(weights, options of policies, thresholds) are the core's own values, with their defaults and limits. Unknown
keys are refused, units stand in the names, and every error names the field, the value and the way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.core.cost import CostWeights
from orchestrator.core.energy import PowerProfile
from orchestrator.core.scoring import Weights
from orchestrator.core.selection import DeadlineOptions, EliminationOptions, OortOptions, PlanOptions
from orchestrator.core.triggers import Thresholds

EMBEDDED = "embedded"
"""The built-in small model, made on first use."""


class ScenarioError(Exception):
    """A scenario that cannot be used; the text names field, value and way out."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Topology(_Section):
    """Which network: `edge_cloud` (Pekel 2025, Fig. 1, with a redundant core)."""

    name: Literal["edge_cloud"] = "edge_cloud"
    hosts: Annotated[int, Field(ge=2, le=1000)] = 12
    domains: Annotated[int, Field(ge=1, le=100)] = 3
    cores: Annotated[int, Field(ge=2, le=20)] = 2

    @model_validator(mode="after")
    def _every_domain_has_a_host(self) -> Self:
        if self.domains > self.hosts:
            raise ValueError(
                f"domains is {self.domains} but there are only {self.hosts} hosts; "
                "use at most one domain per host"
            )
        return self


class CoreLinks(_Section):
    """Links between switches and of the orchestrator: not drawn, the same for all."""

    rate_bps: Annotated[float, Field(gt=0)] = 1e9
    delay_s: Annotated[float, Field(ge=0)] = 0.004


class Links(_Section):
    """End-to-end values between orchestrator and edge hosts, drawn from a seeded spec."""

    setup: Literal[1, 2, 3] = 1
    core: CoreLinks = CoreLinks()
    emulator: Literal["auto", "netem", "nfqueue"] = "auto"
    rate_floor_bps: Annotated[float, Field(gt=0)] = 2e6
    delay_floor_s: Annotated[float, Field(gt=0)] = 0.014
    loss_ceiling_ratio: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    queue_packets: Annotated[int, Field(ge=10, le=20000)] = 1000


class Devices(_Section):
    """Emulated devices: power is drawn from normal(mean, std) and clipped at power_min (Pekel 2025)."""

    power_mean: Annotated[float, Field(gt=0)] = 30.0
    power_std: Annotated[float, Field(ge=0)] = 15.0
    power_min: Annotated[float, Field(gt=0)] = 5.0
    flops_per_power: Annotated[float, Field(gt=0)] = 4e7
    """Slow enough for two cores to keep up with a dozen devices that fine-tune the built-in model."""
    layer_overhead_s: Annotated[float, Field(ge=0)] = 0.001
    """Fixed cost of running one layer once on a device of mean power; scales with power_mean / power."""
    shard_memory_bytes: Annotated[int, Field(gt=0)] = 1_000_000
    """What a node may hold of a model's parameters and caches."""
    training_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """What fine-tuning may take of a node; left out: what is free on this machine."""
    pacing: bool = True
    trusted: tuple[str, ...] = ("h1", "h2")
    """Where embedding, head and prompts may be; a model can be served only with one of these alive."""


class Network(_Section):
    """Names, ports and addresses on this machine."""

    prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,3}$")] = "ut"
    openflow_port: Annotated[int, Field(ge=1, le=65535)] = 6653
    northbound_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    api_port: Annotated[int, Field(ge=1, le=65535)] = 8181
    data_port: Annotated[int, Field(ge=1, le=65535)] = 7000
    datapath: Literal["auto", "kernel", "user"] = "auto"


class Training(_Section):
    """What a worker does in one epoch."""

    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 8
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    sequence_length: Annotated[int, Field(ge=8, le=65536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.5e-3
    optimiser: Literal["adamw", "sgd"] = "adamw"
    synchronisation: Literal["local_steps", "gradient"] = "local_steps"
    """`gradient`: nodes send the mean gradient over `local_steps` batches (Pekel 2025, Algorithm 1); the
    outer optimiser makes the step, and `learning_rate` and `optimiser` are not used."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the nodes' learning rate over all the job's steps; with `gradient`, of the outer one."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps over which the rate rises from nothing."""
    final_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the rate that a falling schedule ends at."""
    outer_optimiser: Literal["sgd", "nesterov", "adam"] = "sgd"
    outer_learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of nesterov; of adam it is beta 1."""
    outer_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    outer_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """FedAdam's tau: how small a mean update still counts."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Train low-rank adapters of this rank in place of all parameters; 0: all parameters."""
    lora_alpha: Annotated[float, Field(gt=0, le=10_000)] = 16.0
    """What the adapters add is scaled by alpha / rank."""
    update_encoding: Literal["fp32", "fp16", "int8", "topk"] = "fp32"
    """How updates cross the network; the parameters are always sent as fp32."""
    topk_ratio: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the values that `topk` sends; the rest is added to the node's next update."""


class Finetune(_Section):
    """The fine-tuning job (Pekel 2025, Algorithm 1)."""

    policies: tuple[Literal["all", "eliminate", "random", "deadline", "oort", "plan"], ...] = (
        "all",
        "eliminate",
    )
    epochs: Annotated[int, Field(ge=2, le=10_000)] = 6
    score: Literal["projection", "euclidean", "printed"] = "euclidean"
    weights: Weights = Weights()
    time_criterion: Literal["train_s", "round_s"] = "round_s"
    eliminate: EliminationOptions = EliminationOptions()
    deadline: DeadlineOptions = DeadlineOptions()
    oort: OortOptions = OortOptions()
    plan: PlanOptions = PlanOptions()
    power: PowerProfile = PowerProfile()
    orchestrator_bps: Annotated[float, Field(gt=0)] | None = None
    """Rate of the link that all transfers share; left out: it is no bottleneck."""
    training: Training = Training()
    data: str = "found"
    """`found`: text found on every Python installation; else a path to a text or JSONL file."""
    partition: Literal["equal", "capacity", "dirichlet"] = "equal"
    """How data are dealt to the nodes: equally, by compute, or unlike one another (docs/fine_tuning.md)."""
    dirichlet_alpha: Annotated[float, Field(gt=0, le=1000)] = 0.3
    """The smaller, the more the nodes' data differ."""
    local_data: bool = False
    """Nodes that have data of their own (`utopia-worker --local-data`) train on it, too; it stays there."""
    data_bytes: Annotated[int, Field(ge=10_000)] = 450_000
    held_out_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    round_timeout_s: Annotated[float, Field(gt=0)] = 180.0


class Degrade(_Section):
    """How the demo degrades a link on the route while text is generated."""

    after_tokens: Annotated[int, Field(ge=1)] = 24
    delay_s: Annotated[float, Field(ge=0)] = 0.3


class Inference(_Section):
    """The split deployment."""

    min_nodes: Annotated[int, Field(ge=1, le=1000)] = 3
    context_tokens: Annotated[int, Field(ge=16, le=1_000_000)] = 256
    """Prompt and answer together; every node of the route reserves memory for the caches of that many."""
    prompt: Annotated[str, Field(min_length=1)] = "The network "
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 96
    monitor_interval_s: Annotated[float, Field(gt=0)] = 1.0
    thresholds: Thresholds = Thresholds()
    cost: CostWeights = CostWeights()
    degrade: Degrade = Degrade()


class Scenario(_Section):
    """One scenario file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7
    topology: Topology = Topology()
    links: Links = Links()
    devices: Devices = Devices()
    network: Network = Network()
    model: str = EMBEDDED
    """`embedded`, or a Hugging Face folder."""
    finetune: Finetune = Finetune()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _more_nodes_than_epochs(self) -> Self:
        if {"eliminate", "random"} & set(
            self.finetune.policies
        ) and self.topology.hosts <= self.finetune.epochs:
            raise ValueError(
                f"finetune.epochs is {self.finetune.epochs} but there are only {self.topology.hosts} nodes; "
                "elimination needs N > T > 1 (Pekel 2025, Eq. 1): use fewer epochs or more hosts"
            )
        return self

    @model_validator(mode="after")
    def _trusted_nodes_exist(self) -> Self:
        names = {f"h{i}" for i in range(1, self.topology.hosts + 1)}
        unknown = [node for node in self.devices.trusted if node not in names]
        if unknown:
            raise ValueError(
                f"devices.trusted names {', '.join(unknown)}, which the topology does not have; "
                f"its hosts are h1 to h{self.topology.hosts}"
            )
        return self


def load(path: Path | str) -> Scenario:
    """Read and check the scenario file at `path`.

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or breaks the schema.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"scenario {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"scenario {path}: is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ScenarioError(f"scenario {path}: must be a map with a name, is {type(document).__name__}")
    return parse(document, source=str(path))


def parse(document: object, *, source: str) -> Scenario:
    """Check an already parsed scenario; `source` names it in errors."""
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ScenarioError(f"scenario {source}:\n{lines}") from error


def _explain(item: object) -> str:
    """One line for one pydantic error: field, value, way out."""
    assert isinstance(item, dict)
    field = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{field}: unknown key; known keys here: {', '.join(_siblings(item['loc']))}"
    if item["type"] == "value_error":
        return f"{field}: {item['ctx']['error']}"
    return f"{field}: {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _siblings(location: tuple[object, ...]) -> list[str]:
    section: type = Scenario
    for part in location[:-1]:
        section = _keys(section)[str(part)]
    return sorted(_keys(section))


def _keys(section: type) -> dict[str, Any]:
    """Return the type of each key of a section, which is a model of ours or a value of the core."""
    if issubclass(section, BaseModel):
        return {name: info.annotation for name, info in section.model_fields.items()}
    return get_type_hints(section)
