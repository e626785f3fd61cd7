"""Every key of the configuration, in one table: what it takes, its default, what it is for.

The reader, the JSON Schema and the documentation all come from here. Defaults stand as the file would write them; a
test holds them against the records of `agent.config.types`. None: there is no default value, the text says what holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from agent.config.kinds import (
    AvoidText,
    Bool,
    Choice,
    Duration,
    Either,
    Field,
    Items,
    Kind,
    Names,
    Number,
    Pair,
    Section,
    Size,
    Span,
    Text,
    Whole,
)
from agent.config.types import REGISTERS

TABLES = ("holding", "input", "coil", "discrete")
PLACES = (*TABLES, "modicon", "sunspec")
"""Keys that say where a tag is; each has one of them."""
ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
TYPES = (*REGISTERS, "string")
LEVELS = ("error", "warning", "info", "debug")
MODES = ("off", "shadow", "manual", "auto")

NOT_BUILT: Mapping[str, Any] = MappingProxyType(
    {
        "mqtt.sparkplug": False,
        "mqtt.homeassistant": False,
    }
)
"""Keys of features that are not built yet -> the value that is fine all the same; `run` refuses any other."""

NOT_BUILT_SCHEMES = ("udp",)
"""Device URLs of these are valid, and refused by `run`."""

ADDRESS = Whole(0, 65535)
COUNTING = Duration()
WAITING = Duration(zero=True)
TAG_PATH = Text("device/tag", r"[^/\s]+/[^/\s]+")
TEXT = Text()
FILE = Text("a path")


def _section(fields: dict[str, Field], what: str = "a mapping") -> Section:
    return Section(MappingProxyType(fields), what)


def _key(kind: Kind, default: Any, doc: str, *, required: bool = False) -> Field:
    return Field(kind, default, doc, required)


SECRET = Either(
    TEXT,
    _section(
        {
            "credential": _key(TEXT, None, "name of a systemd credential"),
            "env": _key(TEXT, None, "name of an environment variable"),
            "file": _key(FILE, None, "path of a file"),
        },
        "{credential: NAME}, {env: NAME} or {file: PATH}",
    ),
)

OUTBOX = _section(
    {
        "max_size": _key(
            Size(), "256MiB", "most that it takes on disk; then the oldest batches go, named by a gap"
        ),
        "max_age": _key(COUNTING, "7d", "older batches go, named by a gap"),
        "batch": _key(COUNTING, "20s", "batches are committed to disk this often"),
        "rate": _key(
            Whole(0, 10_000_000),
            "20000",
            "readings per second of backfill; 0: as fast as the broker takes them",
        ),
        "durable": _key(Bool(), "false", "commit every batch before it is sent"),
        "keep": _key(WAITING, "0s", "how long acknowledged batches are kept for resend"),
        "min_free": _key(Size(), "100MiB", "free space on disk that is left alone"),
    }
)

MQTT = _section(
    {
        "url": _key(
            Text("mqtt://, mqtts://, ws://, wss:// or unix://"),
            "mqtt://127.0.0.1:1883",
            "where the broker is",
        ),
        "root": _key(
            Text("one level of a topic", r"[^+#/\s$][^+#/\s]*"), "edgetwin", "first level of every topic"
        ),
        "client_id": _key(TEXT, None, "MQTT client id; the gateway's name without it"),
        "username": _key(TEXT, None, "user name at the broker"),
        "password": _key(SECRET, None, "password at the broker; a plain string is warned about"),
        "ca": _key(FILE, None, "certificates that sign the broker's (PEM); the system's without it"),
        "cert": _key(FILE, None, "the agent's own certificate (PEM)"),
        "key": _key(FILE, None, "the key of cert (PEM)"),
        "keepalive": _key(COUNTING, "15s", "MQTT keep alive"),
        "batch": _key(
            COUNTING, "1s", "readings per message; 10s halves the messages; compress: all saves the bytes"
        ),
        "twin_every": _key(COUNTING, "5s", "the retained twin at most this often"),
        "forecast_every": _key(COUNTING, "30s", "the retained forecast at most this often"),
        "full_every": _key(COUNTING, "60s", "state and twins at least this often"),
        "compress": _key(Choice(("never", "backfill", "all")), "backfill", "bodies over 512 B, with zlib"),
        "flat": _key(Bool(), "false", "also one flat object a batch on flat/<device>"),
        "outbox": _key(OUTBOX, None, "what waits on disk for the broker"),
        "sparkplug": _key(Bool(), "false", "not built yet"),
        "homeassistant": _key(Bool(), "false", "not built yet"),
    }
)

LIMITS = _section(
    {
        "registers": _key(Whole(1, 125), "125", "most registers in one request"),
        "bits": _key(Whole(1, 2000), "2000", "most coils or discretes in one request"),
        "gap": _key(
            Text("auto or a whole number", r"auto|[0-9][0-9_]*|0x[0-9a-fA-F]+"),
            "auto",
            "longest hole that a request bridges; auto: where it costs less than a request more",
        ),
        "pause": _key(WAITING, "0ms", "between a reply and the next request to this device"),
        "pause_after_connect": _key(WAITING, "0ms", "between connecting and the first request"),
        "close_after_poll": _key(Bool(), "false", "close the connection after every poll"),
    }
)

RETRY = _section(
    {
        "first": _key(COUNTING, "30s", "of a unit silent for 30 s: until it is tried again"),
        "max": _key(COUNTING, "5m", "the delay grows up to this"),
    }
)

WRITE = _section(
    {
        "range": _key(Pair(), None, "values that may be written, inclusive"),
        "function": _key(Whole(), None, "5, 6, 15, 16 or 22; the shortest that fits without it"),
        "verify": _key(Bool(), "true", "read back at once, for up to 2 s while it differs"),
        "min_interval": _key(WAITING, "1s", "between two writes"),
        "nonvolatile": _key(Bool(), "false", "the register is kept in flash: loops never write it"),
        "daily": _key(Whole(1), "20000", "most writes a day"),
    },
    "true or a mapping",
)

TAG = _section(
    {
        "holding": _key(ADDRESS, None, "address of a holding register, from 0"),
        "input": _key(ADDRESS, None, "address of an input register, from 0"),
        "coil": _key(ADDRESS, None, "address of a coil, from 0"),
        "discrete": _key(ADDRESS, None, "address of a discrete input, from 0"),
        "modicon": _key(
            Text("a printed number of 5 or 6 digits", r"[0-9]{5,6}"),
            None,
            "printed number: 40131 is holding 130",
        ),
        "sunspec": _key(
            Text("a model and an offset, as 103+14 or 101-103+14", r"[0-9]{1,5}(-[0-9]{1,5})?\+[0-9]{1,4}"),
            None,
            "holding register of a SunSpec model, counted from its ID; the device's chain says where it is",
        ),
        "type": _key(
            Choice(TYPES), "uint16", "what the registers hold; bool where they are coils or discretes"
        ),
        "order": _key(Choice(ORDERS), None, "order of bytes and words; the device's without it"),
        "scale": _key(Number(exact=True), "1", "value = raw × scale + offset"),
        "offset": _key(Number(exact=True), "0", "value = raw × scale + offset"),
        "scale_from": _key(TEXT, None, "tag of this device that holds a power of ten to scale with"),
        "unit": _key(TEXT, None, "unit of the value"),
        "range": _key(Pair(), None, "of the scaled value; outside it is uncertain"),
        "missing": _key(Items(Whole(), one=True), None, "raw values that mean: not available"),
        "states": _key(Names(TEXT, "text", key="whole"), None, "names of raw values"),
        "bit": _key(Whole(0, 63), None, "one bit of the registers, 0 the lowest: true or false"),
        "bits": _key(Span(63), None, "some bits of the registers, as 8-11"),
        "length": _key(Whole(1, 250), None, "bytes of a string"),
        "every": _key(COUNTING, None, "period; the device's without it"),
        "counter": _key(Bool(), "false", "it only grows: total is published beside it"),
        "loop_current": _key(Bool(), "false", "a 4-20 mA signal in mA, judged as in NAMUR NE 43"),
        "alone": _key(Bool(), "false", "read in a request of its own"),
        "deadband": _key(Number(least=0), "0", "a smaller change is no change of the twin"),
        "write": _key(Either(Bool(), WRITE), "false", "whether it may be written, and how"),
    }
)

TLS = _section(
    {
        "ca": _key(FILE, None, "certificates that sign the device's (PEM); the system's without it"),
        "cert": _key(FILE, None, "the agent's own certificate (PEM), where the device wants one"),
        "key": _key(FILE, None, "the key of cert (PEM), without a passphrase"),
        "name": _key(
            Text("a host name or address", r"[A-Za-z0-9_.:-]+"),
            None,
            "the name in the device's certificate; the host of the url without it",
        ),
    }
)

DEVICE = _section(
    {
        "url": _key(
            Text("tcp://, tls://, rtu+tcp://, udp:// or rtu://"),
            None,
            "where the device is, as tcp://HOST:502",
            required=True,
        ),
        "unit": _key(Whole(0, 255), "1", "unit id; devices with the same url share one line"),
        "every": _key(COUNTING, "1s", "period of its tags"),
        "timeout": _key(COUNTING, "500ms", "how long a reply may take"),
        "order": _key(Choice(ORDERS), "ABCD", "order of bytes and words"),
        "limits": _key(LIMITS, None, "what the device bears"),
        "retry": _key(RETRY, None, "how a silent unit is tried again"),
        "tls": _key(TLS, None, "certificates for tls://"),
        "avoid": _key(Items(AvoidText()), None, "addresses that are never touched"),
        "accept": _key(
            Items(Choice(("transaction", "unit"))),
            None,
            "wrong ones in replies that are let pass (tcp alone)",
        ),
        "on_loss": _key(
            Choice(("hold", "zero", "stops", "unknown")),
            "unknown",
            "what its outputs do when nobody talks to it",
        ),
        "profile": _key(
            Text("./FILE.yaml, or the name of a shipped one"),
            None,
            "tags and defaults of this make; what stands here wins",
        ),
        "tags": _key(Names(TAG, "tag"), None, "its values"),
    }
)

PROFILE = Section(
    {key: field for key, field in DEVICE.fields.items() if key not in ("url", "unit", "tls", "profile")},
    "the keys of a device, without url and unit",
)
"""A file that `profile` names."""

PREDICT = Either(
    Choice(("off", "on")),
    _section(
        {
            "tags": _key(Items(Text("a pattern device/tag"), one=True), None, "every numeric tag without it"),
            "horizon": _key(
                Items(Whole(1, 1000), least=1, one=True), "[1, 5, 20]", "in steps of the tag's period"
            ),
            "interval": _key(
                Number(least=0.5, most=0.999), "0.9", "share of values that the band shall hold"
            ),
            "order": _key(Whole(1, 32), "8", "past values that the model looks at"),
            "inputs": _key(
                Names(Items(TAG_PATH, one=True), "list of tags", key="reference"),
                None,
                "tags that drive another",
            ),
        },
        "off or a mapping",
    ),
)

HEALTH = _section(
    {
        "tags": _key(Items(TEXT, one=True), None, "tags or patterns; the device's predicted ones without it"),
        "alarm": _key(Number(above=0, below=1), "0.5", "an event while the score stays under it for hold"),
        "hold": _key(WAITING, "10s", "how long the score must stay under alarm"),
        "warmup": _key(Whole(1, 1_000_000), "400", "samples before the score counts"),
        "reference": _key(
            Choice(("frozen", "slow")), "frozen", "slow: follows the seasons, and forgets a fault that stays"
        ),
        "calibrate": _key(
            _section(
                {
                    "a": _key(Number(), None, "slope", required=True),
                    "b": _key(Number(), None, "offset", required=True),
                }
            ),
            None,
            "score = 1 − 1/(1+exp(−(a·z+b)))",
        ),
    }
)

CONTROLLER = _section(
    {
        "type": _key(
            Choice(("pid", "predictive")), "pid", "predictive: with a model that can be trusted, else pid"
        ),
        "kp": _key(
            Number(least=0),
            "1",
            "gain, output per unit of the pv; predictive takes its PID's from the model without it",
        ),
        "ti": _key(WAITING, "60s", "integral time; 0s: none"),
        "td": _key(WAITING, "0s", "derivative time"),
        "b": _key(Number(least=0, most=1), "0.7", "weight of the setpoint in the proportional part"),
        "c": _key(Number(least=0, most=1), "0", "weight of the setpoint in the derivative part"),
        "n": _key(Number(least=1, most=100), "8", "filter of the derivative: td/n"),
    }
)

MODEL = _section(
    {
        "k": _key(Number(), "1", "gain, pv per output; integrating: per second too"),
        "t1": _key(WAITING, "1s", "time constant; 0s where it is integrating"),
        "t2": _key(WAITING, "0s", "second time constant"),
        "delay": _key(WAITING, "0s", "dead time"),
        "bias": _key(Number(), "0", "pv at output 0; integrating: the output at rest"),
        "integrating": _key(Bool(), "false", "the pv runs on instead of settling"),
        "damping": _key(
            Number(least=0.05, most=1),
            "1",
            "below 1 it oscillates, k/(t1² s² + 2 damping t1 s + 1), without t2",
        ),
        "grade": _key(Choice(("good", "fair", "poor")), "poor", "how far it can be trusted"),
        "noise": _key(Number(least=0), "0", "standard deviation of the pv at rest; 0: not known"),
    }
)

FEED_FORWARD = _section(
    {
        "tag": _key(TAG_PATH, None, "the disturbance that is measured", required=True),
        "gain": _key(Number(), "0", "output per unit of the tag"),
        "lag": _key(WAITING, "0s", "time constant of a filter"),
    }
)

ON_FAIL = Text("hold, release or a number")
FAIL = _section(
    {
        "after": _key(Whole(1, 1000), "3", "scans in a row that are not good"),
        "to": _key(ON_FAIL, "hold", "hold, release or a number"),
        "on_stop": _key(ON_FAIL, "hold", "the same, when the agent stops"),
        "resume": _key(Text("a number of scans, or hand"), "3", "good scans until it goes on, or hand"),
    }
)

HEARTBEAT = Either(
    TAG_PATH,
    _section(
        {
            "tag": _key(TAG_PATH, None, "a register that the PLC watches", required=True),
            "timeout": _key(COUNTING, "3s", "of the PLC; it is counted on at a third of it"),
        },
        "device/tag or a mapping",
    ),
)

LOOP = _section(
    {
        "pv": _key(TAG_PATH, None, "the value that is controlled", required=True),
        "out": _key(TAG_PATH, None, "the value that is written", required=True),
        "setpoint": _key(Text("a number or device/tag"), None, "a number or a tag", required=True),
        "setpoint_limits": _key(Pair(), None, "bounds of the setpoint"),
        "ramp": _key(Number(above=0), None, "of the setpoint, per second; at once without it"),
        "every": _key(COUNTING, None, "the pv's period without it"),
        "mode": _key(Choice(MODES), "shadow", "after start; shadow computes and writes nothing"),
        "controller": _key(CONTROLLER, None, "how the output is computed"),
        "model": _key(MODEL, None, "the process, as tune prints it"),
        "action": _key(Choice(("reverse", "direct")), "reverse", "reverse: more output raises the pv"),
        "limits": _key(Pair(), None, "of the output; its write range without it"),
        "rate": _key(Number(above=0), None, "of the output, per second; at once without it"),
        "deadband": _key(Number(least=0), "0", "smaller changes of the output are not written"),
        "feed_forward": _key(FEED_FORWARD, None, "a measured disturbance"),
        "trip": _key(Pair(), None, "of the pv or its forecast: outside, the loop fails"),
        "fail": _key(FAIL, None, "what happens when the loop cannot go on"),
        "heartbeat": _key(HEARTBEAT, None, "a register that the PLC watches"),
        "interlock": _key(Items(TAG_PATH, one=True), None, "all must be good and true"),
        "remote": _key(Items(Choice(("setpoint", "mode")), one=True), None, "what commands may change"),
    }
)

ROOT = _section(
    {
        "gateway": _key(
            Text("letters, digits, _, . and -", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"), None, "name, no other's"
        ),
        "state_dir": _key(FILE, None, "$STATE_DIRECTORY or /var/lib/edgetwin without it"),
        "log": _key(_section({"level": _key(Choice(LEVELS), "info", "how much is logged")}), None, "logging"),
        "mqtt": _key(MQTT, None, "the way to the central side"),
        "commands": _key(
            _section(
                {
                    "enabled": _key(Bool(), "false", "whether the central side may change anything"),
                    "skew": _key(WAITING, "30s", "how far the sender's clock may be off"),
                    "hmac": _key(
                        Either(Choice(("false", "off", "no")), SECRET.mapping),
                        "false",
                        "key that signs commands",
                    ),
                }
            ),
            None,
            "commands from the central side",
        ),
        "page": _key(
            Either(
                Choice(("off", "on")),
                _section(
                    {
                        "listen": _key(Text("host:port"), "127.0.0.1:8080", "where it listens"),
                        "control": _key(Bool(), "false", "whether the page may change anything"),
                        "token": _key(SECRET, None, "what a person shows to change something"),
                    },
                    "off or a mapping",
                ),
            ),
            None,
            "status page",
        ),
        "devices": _key(Names(DEVICE, "device"), None, "Modbus devices by name"),
        "predict": _key(PREDICT, None, "forecasts"),
        "health": _key(Names(HEALTH, "device", key="reference"), None, "health scores by device"),
        "loops": _key(Names(LOOP, "loop"), None, "control loops by name"),
    }
)
"""The whole file."""
