"""Writes what the page has to know of the contract, from the contract itself."""

import json
import sys

from subjects.builtin import BUILT_IN
from subjects.codes import CODES
from subjects.events import SEQ_STRIDE
from subjects.states import LEASED, TERMINAL, State


def facts() -> str:
    """The content of `src/contract.json`."""
    known = {
        "states": [state.value for state in State],
        "terminal": sorted(TERMINAL),
        "leased": sorted(LEASED),
        "seqStride": SEQ_STRIDE,
        "advice": {code.value: info.advice for code, info in CODES.items()},
        "operations": {each.name: each.summary for each in BUILT_IN},
    }
    return json.dumps(known, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(facts())
