"""What hypothesis draws: any bytes, any JSON, and valid samples with something changed in them."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ANY_CHARACTER = st.characters(codec=None, exclude_categories=())
"""Lone surrogates too: what JSON may spell and UTF-8 cannot hold."""

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(ANY_CHARACTER, max_size=8)
    | st.sampled_from(["", "/", "..", "\0", "\x1b[2J", "1" * 5000, "9999-12-31T23:59:59Z"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(ANY_CHARACTER, max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)

thorough = settings(
    max_examples=200, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def spoiled(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """Any bytes, or one of the samples with pieces taken out, put in, doubled or overwritten."""
    if not samples or draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(data))), draw(st.sampled_from((0, 1, 4, 16)))
        data[at : at + length] = draw(st.binary(max_size=8) | st.just(bytes(data[at : at + 40])))
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of the samples, all JSON, with any value in the place of one of its own."""
    document = [json.loads(draw(st.sampled_from(samples)))]
    node: Any = document
    key: Any = 0
    for _ in range(draw(st.integers(1, 6))):
        inside = node[key]
        if not isinstance(inside, (dict, list)) or not inside:
            break
        node, key = (
            inside,
            draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside)))),
        )
    node[key] = draw(JSON)
    return json.dumps(document[0]).encode()
