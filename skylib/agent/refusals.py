"""How long Ray is asked again for what it refuses. Pure."""

from __future__ import annotations

from typing import Optional

__all__ = ["LIMIT_S", "pause_after"]

LIMIT_S = 300.0
_PAUSES_S = (1.0, 2.0, 5.0, 10.0)


def pause_after(refusals: int) -> Optional[float]:
    """Seconds until Ray is asked again after so many refusals, one at least; None after about LIMIT_S of pauses."""
    last = len(_PAUSES_S) - 1
    waited = sum(_PAUSES_S[min(number, last)] for number in range(refusals - 1))
    return None if waited >= LIMIT_S else _PAUSES_S[min(refusals - 1, last)]
