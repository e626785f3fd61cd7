"""Writes what gateways send into a database, every reading once.   consumer.py BROKER DATABASE [SHARE]

BROKER is mqtt://[user:password@]host[:port] or mqtts://…, DATABASE postgresql://… (needs psycopg) or a file
for SQLite. Consumers with the same SHARE share the work; $CLIENT_ID names the session of this one; $CA, $CERT
and $KEY are files for mqtts. A message is acknowledged after its commit, and the broker keeps the session:
killed and started again, it loses and doubles nothing.
"""

import importlib
import json
import os
import sqlite3
import sys
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

STATUS = (  # an offline of another boot than the last one known says nothing
    "(gateway) DO UPDATE SET boot = excluded.boot, status = excluded.status, ts = excluded.ts"
    " WHERE excluded.status = 'online' OR gateway.boot = excluded.boot"
)


def rows_of(topic, data):
    """What a message says, as {table: rows}. Raises ValueError and others for what is no such message."""
    body = json.loads(zlib.decompress(data) if data[:1] == b"\x78" else data)
    gateway, kind, *device = topic.split("/v1/", 1)[1].split("/")  # …/2 and on: parts of a split body
    if kind == "state":
        return {"gateway": [(gateway, body["boot"], body["status"], body["ts"])]}
    key = (gateway, device[0], body["stream"])
    if kind == "gap":
        return {"gap": [(*key, body["from"], body["to"], body["reason"])]}
    key, rows, count = (*key, body["seq"]), [], Counter()
    for group in body["groups"]:
        for tag, column in group["c"].items():
            quality = dict(group["q"].get(tag, ()))
            for i, (t, value) in enumerate(zip(group["t"], column, strict=True)):
                v, s = (None, value) if isinstance(value, str | None) else (float(value), None)
                rows.append((*key, tag, count[tag], t, v, s, quality.get(i, "good")))
                count[tag] += 1
    return {"batch": [(*key, *body.get("part", (1, 1)))]} | ({"reading": rows} if rows else {})


def on_message(client, database, message):
    try:
        todo = rows_of(message.topic, message.payload)
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
        todo = print(f"{message.topic}: left out, {error!r}", file=sys.stderr) or {}
    mark = "?" if isinstance(database, sqlite3.Connection) else "%s"
    for table, rows in todo.items():
        text = f"INSERT INTO {table} VALUES ({', '.join([mark] * len(rows[0]))}) ON CONFLICT "
        database.cursor().executemany(text + (STATUS if table == "gateway" else "DO NOTHING"), rows)
    database.commit()  # an error of the database ends the program: what was not acknowledged comes again
    client.ack(message.mid, message.qos)


def open_database(name):
    if name.startswith("postgres"):  # its tables are made once by hand: psql -f consumer.sql
        return importlib.import_module("psycopg").connect(name)
    database = sqlite3.connect(name)
    if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
        database.executescript(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    return database


def on_connect(client, _database, _flags, reason, _properties):
    if reason.is_failure:
        sys.exit(f"the broker refuses: {reason}")
    share = f"$share/{sys.argv[3]}/" if len(sys.argv) > 3 else ""
    filters = [f"{share}edgetwin/v1/+/{kind}/#" for kind in ("data", "backfill", "gap")]
    client.subscribe([(one, mqtt.SubscribeOptions(qos=1)) for one in [*filters, "edgetwin/v1/+/state"]])


if __name__ == "__main__":
    url, session = urlsplit(sys.argv[1]), Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 7 * 86400  # seconds the broker keeps what comes while this is down
    name = os.environ.get("CLIENT_ID", "consumer")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5, manual_ack=True)
    client.user_data_set(open_database(sys.argv[2]))
    client.on_connect, client.on_message = on_connect, on_message
    if url.username:
        client.username_pw_set(unquote(url.username), unquote(url.password or ""))
    if url.scheme == "mqtts":
        client.tls_set(os.environ.get("CA"), os.environ.get("CERT"), os.environ.get("KEY"))
    port = url.port or {"mqtt": 1883, "mqtts": 8883}[url.scheme]
    client.connect(url.hostname, port, clean_start=False, properties=session)
    client.loop_forever()
