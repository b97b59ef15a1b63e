"""Run by Swift's own interpreter: where accounts, containers and objects lie. One disk, one copy, one server of each kind.

python rings.py FOLDER account=PORT container=PORT object=PORT
"""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Write a ring per kind into the folder."""
    folder, *kinds = sys.argv[1:]
    for kind, port in (word.split("=") for word in kinds):
        # The part power decides where an object lies, so it can never change.
        builder = RingBuilder(6, 1, 0)
        address = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "disk", "meta": "", **address})
        builder.rebalance()
        builder.get_ring().save(str(Path(folder) / f"{kind}.ring.gz"))


if __name__ == "__main__":
    main()
