"""``python -m ambient.cli`` is ``ambient``."""

from __future__ import annotations

from ambient.cli.main import main

main()
