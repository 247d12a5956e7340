from __future__ import annotations

from tests.data.conftest import processors, toy  # noqa: F401 - fixtures
