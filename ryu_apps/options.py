"""The controller's own options; `ryu-manager --help` lists them."""

from __future__ import annotations

from dataclasses import dataclass

from oslo_config.cfg import ArgsAlreadyParsedError
from ryu import cfg

from ryu_apps.errors import StartError

_OPTIONS = [
    cfg.FloatOpt("probe-rate", default=5.0, help="probes per second and link between switches (default 5)"),
    cfg.FloatOpt("echo-rate", default=8.0, help="echo requests per second and host (default 8)"),
    cfg.FloatOpt(
        "max-probe-rate", default=1000.0, help="most measuring packets per second, all together (1000)"
    ),
    cfg.FloatOpt(
        "cpu-share",
        default=0.25,
        help="share of a processor core beyond which the controller sends fewer probes (default 0.25)",
    ),
    cfg.FloatOpt(
        "poll-interval", default=0.9, help="seconds between counter requests to a switch (default 0.9)"
    ),
    cfg.FloatOpt(
        "train-interval",
        default=20.0,
        help="seconds between packet trains of a link; 0: no trains (default 20)",
    ),
    cfg.FloatOpt(
        "check-interval",
        default=1.5,
        help="seconds between short trains that check a link's estimate; 0: no checks (default 1.5)",
    ),
    cfg.FloatOpt(
        "check-share",
        default=0.03,
        help="most of a link's estimated capacity that checks take (default 0.03)",
    ),
    cfg.FloatOpt("host-timeout", default=60.0, help="seconds until a silent host is lost (default 60)"),
    cfg.BoolOpt(
        "realtime",
        default=True,
        help="ask for real-time scheduling, so that a busy machine does not look like slow links",
    ),
    cfg.StrOpt("capacities", default=None, help="JSON file that keeps configured capacities over a restart"),
    cfg.StrOpt("pins", default=None, help="JSON file that keeps pinned paths over a restart"),
    cfg.StrOpt(
        "northbound-token-file",
        default=None,
        help="file with the token that writes need, readable by its owner only; without it: no writes",
    ),
    cfg.BoolOpt(
        "northbound-open-reads", default=False, help="let other machines read without the token (default no)"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options, checked; rates per second, intervals in seconds."""

    probe_rate: float
    echo_rate: float
    max_probe_rate: float
    cpu_share: float
    poll_interval_s: float
    train_interval_s: float
    check_interval_s: float
    check_share: float
    host_timeout_s: float
    capacities_file: str | None
    pins_file: str | None = None
    token_file: str | None = None
    open_reads: bool = False
    northbound_host: str = "127.0.0.1"


def register() -> None:
    """Make the options known to Ryu; before its command line is read they are flags, later only defaults."""
    try:
        cfg.CONF.register_cli_opts(_OPTIONS)
    except ArgsAlreadyParsedError:
        cfg.CONF.register_opts(_OPTIONS)


def read() -> Options:
    """Return the options that the controller was started with.

    Raises:
        StartError: one of them is out of range.
    """
    conf = cfg.CONF
    for name, low, high in (
        ("probe_rate", 1, 100),
        ("echo_rate", 1, 100),
        ("max_probe_rate", 10, 5000),
        ("cpu_share", 0.02, 1),
        ("poll_interval", 0.2, 60),
        ("train_interval", 0, 3600),
        ("check_interval", 0, 3600),
        ("check_share", 0.001, 0.2),
        ("host_timeout", 5, 86400),
    ):
        value = getattr(conf, name)
        if not low <= value <= high:
            flag = "--" + name.replace("_", "-")
            raise StartError(f"{flag} is {value:g}, it must be between {low:g} and {high:g}")
    return Options(
        probe_rate=conf.probe_rate,
        echo_rate=conf.echo_rate,
        max_probe_rate=conf.max_probe_rate,
        cpu_share=conf.cpu_share,
        poll_interval_s=conf.poll_interval,
        train_interval_s=conf.train_interval,
        check_interval_s=conf.check_interval,
        check_share=conf.check_share,
        host_timeout_s=conf.host_timeout,
        capacities_file=conf.capacities,
        pins_file=conf.pins,
        token_file=conf.northbound_token_file,
        open_reads=conf.northbound_open_reads,
        northbound_host=conf.wsapi_host,
    )
