"""One fine-tuning job on the virtual clock: carries out what the engine decides, as the live driver does.

Only time is simulated. The engine, its policy and its records are those of live jobs; each request becomes
the transfers and the computing that it causes, and its answer an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from random import Random

from orchestrator.core.decisions import Decision
from orchestrator.core.errors import CoreError
from orchestrator.finetune import messages as m
from orchestrator.finetune.engine import Engine
from orchestrator.simulation.clock import Clock
from orchestrator.simulation.loss import LossModel
from orchestrator.simulation.measuring import Controller, Observer
from orchestrator.simulation.node_run import NodeRun, NodeUse
from orchestrator.simulation.simulated_work import train_s, workload
from orchestrator.simulation.transport import Transport
from orchestrator.simulation.world import Fault, Measuring, Orchestrator, Work, World

_SOON_S = 1e-3


class SimulationError(CoreError):
    """A job that cannot be simulated to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A simulated job: `summary` if it completed, else `failure`; epochs in order; what each node did."""

    summary: m.Summary | None
    failure: str | None
    epochs: tuple[m.EpochReport, ...]
    decisions: tuple[Decision, ...]
    uses: dict[str, NodeUse]
    ended_s: float
    loss_source: str


def simulate(
    spec: m.JobSpec,
    *,
    world: World,
    work: Work,
    loss: LossModel,
    seed: int,
    orchestrator: Orchestrator | None = None,
    measuring: Measuring | None = None,
    observer: Observer | None = None,
    faults: Sequence[Fault] = (),
    coalesce_s: float = 0.0,
) -> Result:
    """Run the job of `spec` to its end; the same arguments give the same result.

    `seed` is that of the policy's draws, as in live jobs, and of the measurements' errors; an `observer` of
    one's own measures instead. `coalesce_s`: see `FlowNetwork`.

    Raises:
        SimulationError: a node of the job is not in the world or has no task, or nothing is left to happen
            and the job has not ended.
    """
    run = _Run(
        spec=spec,
        world=world,
        work=work,
        loss=loss,
        seed=seed,
        orchestrator=orchestrator or Orchestrator(),
        measuring=measuring or Measuring(),
        observer=observer,
        coalesce_s=coalesce_s,
    )
    return run.run(faults)


class _Run:
    """See `simulate`."""

    def __init__(
        self,
        *,
        spec: m.JobSpec,
        world: World,
        work: Work,
        loss: LossModel,
        seed: int,
        orchestrator: Orchestrator,
        measuring: Measuring,
        observer: Observer | None,
        coalesce_s: float,
    ) -> None:
        self._spec = spec
        self._work = work
        self._workload = workload(spec, work, world)
        self._loss = loss
        self._costs = orchestrator
        self._clock = Clock()
        self._transport = Transport(world, self._clock, coalesce_s=coalesce_s)
        self._engine = Engine(spec, Random(seed))
        by_name = {node.name: node for node in world.nodes}
        missing = [name for name in spec.nodes if name not in by_name or name not in work.tasks]
        if missing:
            raise SimulationError(
                f"node {missing[0]} is not in the world, or the workload has no task for it"
            )
        self._nodes = {
            name: NodeRun(
                by_name[name],
                train_s(by_name[name], work, name),
                clock=self._clock,
                transport=self._transport,
            )
            for name in spec.nodes
        }
        nodes = tuple(run.node for run in self._nodes.values())
        shapes = {pair: shape for pair, shape in self._transport.shapes.items() if self._concerns(pair)}
        self._observer = observer or Controller(nodes, shapes, measuring, seed)
        self._evaluator_free_s = 0.0
        self._ticks: set[int] = set()
        self._wakes_at_s = -1.0
        self._reports: dict[int, m.EpochReport] = {}
        self._decisions: list[Decision] = []
        self._summary: m.Summary | None = None
        self._failure: str | None = None

    def _concerns(self, pair: tuple[str, str]) -> bool:
        return pair[0] in self._nodes or pair[1] in self._nodes

    def run(self, faults: Sequence[Fault]) -> Result:
        for fault in faults:
            self._clock.at(fault.at_s, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
        self._tell(m.JobStarted(now_s=0.0, workload=self._workload))
        while not self._engine.ended:
            clock_s, transport_s = self._clock.next_s, self._transport.next_s
            if clock_s == inf and transport_s == inf:
                raise SimulationError(
                    f"job {self._spec.job} waits in epoch {self._engine.epoch} for something that will not "
                    "happen: a timeout of the job is too long or a node hangs"
                )
            if clock_s <= transport_s:
                self._clock.step()
            else:
                self._transport.advance()
        return self._result()

    def _result(self) -> Result:
        return Result(
            summary=self._summary,
            failure=self._failure,
            epochs=tuple(self._reports[epoch] for epoch in sorted(self._reports)),
            decisions=tuple(self._decisions),
            uses={name: run.use for name, run in self._nodes.items()},
            ended_s=self._clock.now_s,
            loss_source=self._loss.source,
        )

    def _tell(self, event: m.Event) -> None:
        for instruction in self._engine.handle(event):
            self._carry_out(instruction)
        self._wake()

    def _wake(self) -> None:
        """Have the engine look again when the passing of time alone could close its round."""
        at_s = self._engine.wakes_at_s
        if at_s is None or self._clock.now_s < self._wakes_at_s <= at_s:
            return
        self._wakes_at_s = max(at_s, self._clock.now_s + _SOON_S)
        self._clock.at(self._wakes_at_s, lambda: self._tell(m.Tick(now_s=self._clock.now_s)))

    def _tell_soon(self, delay_s: float, make: Callable[[float], m.Event]) -> None:
        self._clock.after(delay_s, lambda: self._tell(make(self._clock.now_s)))

    def _carry_out(self, instruction: m.Instruction) -> None:
        match instruction:
            case m.LoadNode():
                self._load(self._nodes[instruction.node], instruction)
            case m.StartRound():
                self._round(self._nodes[instruction.node], instruction)
            case m.SyncNode(node=node, version=version):
                self._sync(self._nodes[node], version)
            case m.Aggregate():
                self._aggregate(instruction)
            case m.Evaluate(version=version):
                self._evaluate(version)
            case m.TakeMetrics(epoch=epoch):
                self._take_metrics(epoch)
            case m.Record(decision=decision):
                self._decisions.append(decision)
            case m.ReportEpoch(report=report):
                self._reports[report.epoch] = report
            case m.Finish(summary=summary):
                self._summary = summary
            case m.Fail(reason=reason):
                self._failure = reason
            case m.Accept() | m.Discard() | m.Announce():
                pass  # updates have no content here, and nobody watches
            case _:
                raise TypeError(f"the simulation does not know the instruction {type(instruction).__name__}")

    # Requests

    def _load(self, run: NodeRun, order: m.LoadNode) -> None:
        """Send the model and then, if asked, the data, each confirmed."""
        self._tick_after(self._spec.load_timeout_s)
        name = run.node.name

        def loaded() -> None:
            run.holds = order.version
            self._tell(m.NodeLoaded(now_s=self._clock.now_s, node=name, version=order.version))

        def send_data() -> None:
            if order.data:
                run.down(self._work.tasks[name].data_bytes, lambda: run.confirm(loaded))
            else:
                loaded()

        whole_bytes = self._work.base_bytes + self._work.model_bytes
        run.down(whole_bytes, lambda: run.confirm(send_data))

    def _round(self, run: NodeRun, order: m.StartRound) -> None:
        """Send the parameters unless the node holds them; it trains and sends its update."""
        self._tick_after(self._spec.round_timeout_s)
        started_s, name = self._clock.now_s, run.node.name

        training_loss: float | None = None

        def arrived() -> None:
            run.holds = order.version
            valid, run.spoils_next = not run.spoils_next, False
            self._tell(
                m.UpdateArrived(
                    now_s=self._clock.now_s,
                    node=name,
                    epoch=order.epoch,
                    valid=valid,
                    reason=None if valid else "a value is not finite",
                    train_s=run.train_s,
                    round_s=self._clock.now_s - started_s,
                    real_s=run.train_s,
                    late_s=0.0,
                    samples=self._work.tasks[name].samples,
                    loss=training_loss,
                )
            )

        def trained() -> None:
            nonlocal training_loss
            training_loss = self._loss.train(name, order.epoch, order.version)
            run.up(self._work.update_bytes, arrived)

        def train() -> None:
            run.train(trained)

        if run.holds == order.version:
            run.ask(train)
        else:
            run.down(self._work.model_bytes, train)

    def _sync(self, run: NodeRun, version: int) -> None:
        self._tick_after(self._spec.sync_timeout_s)

        def synced() -> None:
            run.holds = version
            self._tell(m.NodeSynced(now_s=self._clock.now_s, node=run.node.name, version=version))

        run.down(self._work.model_bytes, lambda: run.confirm(synced))

    def _tick_after(self, timeout_s: float) -> None:
        """Have the engine look at its deadlines when a request made now has run out of time."""
        if timeout_s == inf:
            return
        at_s = ceil(self._clock.now_s + timeout_s) + 1
        if at_s not in self._ticks:
            self._ticks.add(at_s)
            self._clock.at(at_s, lambda: self._tell(m.Tick(now_s=self._clock.now_s)))

    # The orchestrator's own work

    def _aggregate(self, order: m.Aggregate) -> None:
        self._loss.aggregate(order)
        self._tell_soon(
            self._costs.aggregate_s, lambda now_s: m.Aggregated(now_s=now_s, version=order.new_version)
        )

    def _evaluate(self, version: int) -> None:
        """Evaluate after what is being evaluated: there is one evaluator."""
        begins_s = max(self._clock.now_s, self._evaluator_free_s)
        self._evaluator_free_s = begins_s + self._costs.evaluate_s
        self._tell_soon(
            self._evaluator_free_s - self._clock.now_s,
            lambda now_s: m.Evaluated(now_s=now_s, version=version, loss=self._loss.loss(version)),
        )

    def _take_metrics(self, epoch: int) -> None:
        gone = {name for name, run in self._nodes.items() if run.gone}
        nodes = self._observer.states(gone)
        network = self._observer.measure(self._clock.now_s, self._transport.delays_s)
        self._tell_soon(
            self._costs.metrics_s,
            lambda now_s: m.MetricsTaken(now_s=now_s, epoch=epoch, nodes=nodes, network=network),
        )

    # Faults

    def _strike(self, fault: Fault) -> None:
        run = self._nodes[fault.node]
        if fault.kind == "garbage":
            run.spoils_next = True
        elif fault.kind == "hung":
            run.hang()
        elif fault.kind == "lost":
            run.lose()
            reason = "its connection closed" if fault.noticed_s == 0 else "its heartbeats stopped"
            self._tell_soon(
                fault.noticed_s, lambda now_s: m.NodeLost(now_s=now_s, node=fault.node, reason=reason)
            )
        else:
            run.come_back()
            self._transport.forget(fault.node)
            self._tell(m.NodeBack(now_s=self._clock.now_s, node=fault.node))
