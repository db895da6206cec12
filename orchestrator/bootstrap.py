"""Put the process together: the only place that knows which adapter is behind which port."""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters import counter_reports, goodput_reports, own_traffic, sockets
from orchestrator.adapters.certificates import Authority
from orchestrator.adapters.checkpoints import CheckpointFolder
from orchestrator.adapters.models import FolderModels
from orchestrator.adapters.northbound import NorthboundClient, read_token
from orchestrator.adapters.store import SqlStore
from orchestrator.adapters.telling import Telling
from orchestrator.adapters.worker_pool import LiveWorkerPool
from orchestrator.api.app import ApiServer, create_app
from orchestrator.api.services import Services
from orchestrator.clock import SystemClock, random_id
from orchestrator.config import Config, cache_directory
from orchestrator.core.model import ORCHESTRATOR
from orchestrator.errors import ConfigError
from orchestrator.events import EventLog
from orchestrator.finetune.driver import FinetuneJobs
from orchestrator.inference.driver import SplitDeployments
from orchestrator.ports import Ports

log = logging.getLogger(__name__)

_STOP_JOBS_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The running orchestrator."""

    config: Config
    store: SqlStore
    events: EventLog
    pool: LiveWorkerPool
    northbound: NorthboundClient
    tellings: tuple[Telling, ...]
    jobs: FinetuneJobs
    deployments: SplitDeployments
    api: ApiServer

    def stop(self) -> None:
        """End everything, what users see first; each part is given a bounded time."""
        self.jobs.stop(timeout_s=_STOP_JOBS_S)
        self.deployments.stop(timeout_s=_STOP_JOBS_S)
        self.events.close()
        self.api.stop()
        for telling in self.tellings:
            telling.stop()
        self.northbound.stop()
        self.pool.stop()
        self.store.close()


def start(config: Config, *, resume: bool = True) -> Process:
    """Build every part, then start them; the API comes last, so that what it shows is there.

    The job and the deployments that an earlier process left go on, unless `resume` is false: then they end.

    Raises:
        OrchestratorError: something cannot be had (a port, the namespace, the state directory).
    """
    state_dir = _private_directory(config.state_dir)
    clock = SystemClock()
    store = SqlStore(f"sqlite:///{state_dir / 'records.sqlite3'}")
    events = EventLog(store=store, clock=clock)
    authority = Authority(
        state_dir / "authority",
        address=config.data_address,
        now=lambda: datetime.datetime.now(datetime.UTC),
    )
    transfers = goodput_reports.Transfers(own_address=config.data_address, clock=clock)
    pool = LiveWorkerPool(authority=authority, clock=clock, transfers=transfers)
    token = None if config.northbound_token_file is None else read_token(config.northbound_token_file)
    northbound = NorthboundClient(
        url=str(config.northbound_url),
        token=token,
        names=lambda: {**pool.addresses(), config.data_address: ORCHESTRATOR},
        clock=clock,
    )
    tellings = () if token is None else _tellings(config, token, pool, transfers)
    models = FolderModels(
        cache_dir=config.cache_dir or cache_directory(), tuned_dir=state_dir / "models", seed=config.seed
    )
    ports = Ports(
        pool=pool,
        northbound=northbound,
        store=store,
        models=models,
        events=events,
        clock=clock,
        ids=random_id,
    )
    checkpoints = CheckpointFolder(state_dir / "checkpoints")
    jobs = FinetuneJobs(ports, seed=config.seed, checkpoints=checkpoints)
    deployments = SplitDeployments(ports)
    services = Services(
        config=config,
        clock=clock,
        pool=pool,
        northbound=northbound,
        store=store,
        events=events,
        jobs=jobs,
        deployments=deployments,
    )
    api = ApiServer(create_app(services), host=config.api_host, port=config.api_port)
    listening = sockets.listen(config.data_address, config.data_port, netns=config.data_netns)
    pool.start(listening)
    northbound.start()
    for telling in tellings:
        telling.start()
    if resume:
        jobs.resume()
        deployments.resume()
    else:
        jobs.abandon()
        deployments.abandon()
    api.start()
    log.info("REST on http://%s:%d", config.api_host, api.port)
    log.info("workers attach at %s port %d", config.data_address, config.data_port)
    return Process(
        config=config,
        store=store,
        events=events,
        pool=pool,
        northbound=northbound,
        tellings=tellings,
        jobs=jobs,
        deployments=deployments,
        api=api,
    )


def _tellings(
    config: Config, token: str, pool: LiveWorkerPool, transfers: goodput_reports.Transfers
) -> tuple[Telling, ...]:
    """Make what tells the controller of hosts and transfers; it takes that from who has its token."""
    url = str(config.northbound_url)
    own = own_traffic.OwnTraffic(own=(config.data_address, config.data_port), others=pool.serving_ends)
    return (
        Telling(
            url=url,
            token=token,
            what=counter_reports.WHAT,
            tell=counter_reports.counter_reports(pool.packet_counters),
            interval_s=counter_reports.INTERVAL_S,
        ),
        Telling(
            url=url,
            token=token,
            what=own_traffic.WHAT,
            tell=own.tell,
            at_end=own.withdraw,
            interval_s=own_traffic.INTERVAL_S,
            longest_pause_s=own_traffic.LONGEST_PAUSE_S,
        ),
        Telling(
            url=url,
            token=token,
            what=goodput_reports.WHAT,
            tell=transfers.tell,
            interval_s=goodput_reports.INTERVAL_S,
        ),
    )


def _private_directory(path: Path) -> Path:
    """Make the state directory; it holds keys, so only this user may read it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"state_dir {path} cannot be used: {error.strerror}; name a writable one"
        ) from error
    return path.resolve()
