"""Where a C kernel may be missing: without a compiler, or where it was asked not to be built. Elsewhere its tests must run."""

from __future__ import annotations

import pytest


def needs_kernel(state: str) -> pytest.MarkDecorator:
    """Skip where ``state`` says that there is none for a reason that is no fault of ours; one that does not build fails."""
    return pytest.mark.skipif(lacks_kernel(state), reason=state)


def lacks_kernel(state: str) -> bool:
    return state.startswith(("portable: no C compiler", "portable: ARELU_TL_FUSED"))
