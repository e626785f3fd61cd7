"""A write that is right, and four that are not: what reaches the PLC, and is the sender told?"""

from __future__ import annotations

from pathlib import Path

from peer import Device, Job, Peer
from rig import rig

ADDRESS = 46
CASES = {
    "777": "in range",
    "70000": "no uint16",
    "-1": "no uint16",
    "abc": "not a number",
    "elsewhere": "an address not configured",
}
ANSWERED_WITHIN = 4.0


def writes(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """One message for each case; where the tool has limits, they are 0 to 1000."""
    rows: dict[str, str] = {}
    with rig(peer, folder) as bench:
        job = Job((Device("d1", bench.plc.port, 1, range(50)),), bench.port, commands=(ADDRESS,))
        process = bench.run(job)
        bench.settle()
        bench.wait(2.0)
        for case, title in CASES.items():
            row = f"write {case if case != 'elsewhere' else ''}".rstrip() + f" ({title})"
            message = peer.write(job, case)
            if message is None:
                rows[row] = "n/a"
                continue
            starts = process.starts
            bench.plc.note()
            begin = len(bench.subscriber.messages)
            bench.publish(message.topic, message.body)
            bench.wait(ANSWERED_WITHIN)
            wrote = [value for one in bench.plc.note() if not one.exception for value in one.written]
            answers = [one for one in bench.subscriber.messages[begin:] if peer.answers(one.topic, one.body)]
            rows[row] = "; ".join(
                [
                    f"wrote {', '.join(map(str, wrote))}" if wrote else "no write",
                    "answered" if answers else "no answer",
                    *(["it ended"] if process.starts > starts or not process.alive else []),
                ]
            )
            bench.wait(10.0, lambda: process.alive)
    return rows
