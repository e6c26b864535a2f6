"""Everything that is set, refused or taken away in a Faust app on this transport, and why. There are no others.

Set through Faust's own extension settings: `Stream`, `Topic`, `Monitor`, `Table`, `TableManager`.

Patched, as Faust has no setting for it:

- the `pickle` codec is removed, for the whole process: it runs code that a message brings;
- Python's cyclic garbage collector looks at new objects after 50,000 of them and not after 700, for the whole process:
  messages die by reference count, and looking for cycles among those in flight took 5 % of the time;
- the web server stays off, unless the program itself sets `web_enabled=True`: it binds 0.0.0.0 and serves what tables
  hold, and `faust worker` turns it on by default.

Refused, as it could not be kept in silence: standby replicas, exactly-once, other stream classes, credentials in
Faust's settings.
"""

from __future__ import annotations

import gc
from typing import Any

from faust.serializers import codecs
from faust.types.enums import ProcessingGuarantee
from mode.utils.imports import symbol_by_name

from llmagentos.streams.errors import SettingsError
from llmagentos.streams.transport.stream import Monitor, Stream, Topic
from llmagentos.streams.transport.tables import GlobalTable, Table, TableManager

__all__ = ["set_up"]

#: Objects between two looks of the garbage collector at the youngest: two seconds' messages at 1,000 in flight.
GC_YOUNG = 50_000


def set_up(app: Any) -> None:
    """Set *app* up for this transport.

    Raises:
        SettingsError: it asks for what this transport refuses.
    """
    conf = app.conf
    given = _given(app)
    _refuse(conf, given)
    codecs.codecs.pop("pickle", None)
    young, middle, old = gc.get_threshold()
    if 0 < young < GC_YOUNG:  # a program that set its own, or turned it off, keeps it
        gc.set_threshold(GC_YOUNG, middle, old)

    stream = given.get("Stream")
    if stream is not None and not issubclass(symbol_by_name(stream), Stream):
        raise SettingsError(
            f"the app's Stream class {stream} is not made for this transport: Faust's own drops what it has queued"
            " in a rebalance, as it counts on reading it again",
            fix="derive it from llmagentos.streams.transport.stream.Stream",
        )
    for name, ours in (
        ("Stream", Stream),
        ("Topic", Topic),
        ("Monitor", Monitor),
        ("Table", Table),
        ("GlobalTable", GlobalTable),
        ("SetGlobalTable", GlobalTable),
        ("TableManager", TableManager),
    ):
        if given.get(name) is None:
            setattr(conf, name, ours)
    conf.table_standby_replicas = 0
    if not given.get("web_enabled"):
        conf.web_enabled = False
        app.boot_strategy.enable_web = False


def _given(app: Any) -> dict[str, Any]:
    """The settings that the program itself gives, without Faust's defaults."""
    _, options = app._default_options
    source = app._load_settings_from_source(app._config_source, silent=True) if app._config_source else {}
    given = {**options, **source}
    env = app.conf.getenv("TABLE_STANDBY_REPLICAS")
    if env is not None:
        given["table_standby_replicas"] = env
    return given


def _refuse(conf: Any, given: dict[str, Any]) -> None:
    if int(given.get("table_standby_replicas") or given.get("num_standby_replicas") or 0) > 0:
        raise SettingsError(
            "table_standby_replicas is set, and this transport keeps no standbys: they are placed by Faust's own"
            " assignor, which librdkafka can't run",
            fix="set it to 0: a table is then read from its changelog when its partition moves",
        )
    if conf.processing_guarantee is ProcessingGuarantee.EXACTLY_ONCE:
        raise SettingsError(
            "processing_guarantee='exactly_once' is not supported by this transport",
            fix="leave it at 'at_least_once'; finished work isn't run again after a clean stop or a rebalance",
        )
    if given.get("broker_credentials") is not None:
        raise SettingsError(
            "broker_credentials are not read by this transport",
            fix="set LLMAGENTOS_SECURITY_PROTOCOL, LLMAGENTOS_SASL_USERNAME and so on, or llmagentos.toml",
        )
