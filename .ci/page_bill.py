"""Add what the page in `h2kbus/pages` is built of to a bill of materials (CycloneDX): `make sbom`.

Its packages from npm are inside of the bundle, so that no installer ever sees them. What only builds it, the
lock file's `dev` packages, is left out.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def main() -> None:
    """`page_bill.py LOCK BILL`: the bill is written anew."""
    lock, bill = map(Path, sys.argv[1:])
    told: dict[str, Any] = json.loads(bill.read_text(encoding="utf-8"))
    told["components"] += components(json.loads(lock.read_text(encoding="utf-8"))["packages"])
    bill.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def components(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The packages of a `package-lock.json` that end up in the bundle."""
    shipped = {path: each for path, each in entries.items() if path and not each.get("dev")}
    return [component(path.rpartition("node_modules/")[2], shipped[path]) for path in sorted(shipped)]


def component(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One package in the words of CycloneDX; its hash is that of the archive that npm installs."""
    purl = f"pkg:npm/{quote(name)}@{entry['version']}"
    digest = entry["integrity"].removeprefix("sha512-")
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": entry["version"],
        "purl": purl,
        "hashes": [{"alg": "SHA-512", "content": base64.b64decode(digest).hex()}],
    }


if __name__ == "__main__":
    main()
