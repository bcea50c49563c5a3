"""The real node agent with other rules, or with the other order of removal: for comparison only.

    python -m benchmarks.enrolling.agent ambient|istio-published drain|delete

``delete`` takes the rules away first, as Istio does, and only then tells ztunnel; everything else is the
product's agent as it is.
"""

from __future__ import annotations

import sys

from ambient.redirect import __main__ as product
from ambient.redirect import backend
from benchmarks.enrolling.rules import published, published_drained


def main() -> int:
    """Exchange what was asked for, then be the agent."""
    rules, unenroll = sys.argv[1:3]
    if rules == "istio-published":
        vars(backend).update(capture_plan=published, drain_plan=published_drained)
    if unenroll == "delete":
        backend.drain = backend.remove
    return product.main()


if __name__ == "__main__":
    sys.exit(main())
