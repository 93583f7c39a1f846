"""Fixtures of the deployment tests: every composition, rendered once."""

from __future__ import annotations

import pytest

from tests.deploy.rendering import COMPOSED, Rendered, kustomize, render_all


@pytest.fixture(scope="session")
def all_rendered() -> dict[str, Rendered]:
    """Every composition by name."""
    if kustomize() is None:
        pytest.skip("needs kustomize 5, or kubectl 1.27 or newer; `make check-deploy` requires it")
    return {rendered.name: rendered for rendered in render_all()}


@pytest.fixture(params=COMPOSED)
def rendered(request: pytest.FixtureRequest, all_rendered: dict[str, Rendered]) -> Rendered:
    """One composition after the other."""
    return all_rendered[request.param]
