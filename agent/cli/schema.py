"""`edgetwin schema`: the JSON Schema of the configuration, or of each MQTT body."""

from __future__ import annotations

import argparse
import json

HELP = (
    "Prints the JSON Schema (draft 2020-12) of the configuration, for editors that complete and check YAML; "
    "with --mqtt one object with the schema of each MQTT body."
)
EXAMPLE = "edgetwin schema > edgetwin.schema.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Which schema."""
    parser.add_argument("--mqtt", action="store_true", help="the MQTT bodies instead of the configuration")


def main(args: argparse.Namespace) -> int:
    """Prints one JSON object."""
    if args.mqtt:
        from agent.cloud.schema import mqtt_schemas

        print(json.dumps(mqtt_schemas(), indent=2))
        return 0
    from agent.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
