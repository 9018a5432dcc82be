"""Shared suites explain their failures as test files do."""

import pytest

pytest.register_assert_rewrite("support.kubernetes_contract")
