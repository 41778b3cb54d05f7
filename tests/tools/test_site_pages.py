"""What the site makes of links and of the order of guides."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools/site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("place", "written", "expected"),
    [
        ("guides/recipe.md", "[a](masks.md#kinds)", "[a](masks.md#kinds)"),
        ("guides/recipe.md", "[a](../../CONTRIBUTING.md)", "[a](https://example.org/tree/main/CONTRIBUTING.md)"),
        (
            "hooks/README.md",
            "[a](../../plugins/rewards/model)",
            "[a](https://example.org/tree/main/plugins/rewards/model)",
        ),
        ("guides/recipe.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("guides/recipe.md", "[a](gone.md)", "[a](gone.md)"),  # mkdocs says so
        (
            "guides/recipe.md",
            "```text\n[a](../../CONTRIBUTING.md)\n```\n",
            "```text\n[a](../../CONTRIBUTING.md)\n```\n",
        ),
        ("index.md", "[a](guides/README.md)", "[a](guides/README.md)"),
        ("index.md", "[a](Makefile)", "[a](https://example.org/tree/main/Makefile)"),
    ],
)
def test_links_out_of_the_docs_lead_to_the_repository(
    site: ModuleType, place: str, written: str, expected: str
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    assert site.on_page_markdown(written, page, SimpleNamespace(repo_url="https://example.org"), None) == expected


def test_without_an_address_they_are_text(site: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/recipe.md"))
    assert site.on_page_markdown("[a](../../Makefile) b", page, SimpleNamespace(repo_url=""), None) == "a b"


def test_every_guide_has_its_place(site: ModuleType) -> None:
    config = site.on_config(SimpleNamespace(nav=None))
    guides = next(part["Guides"] for part in config.nav if "Guides" in part)
    assert set(guides) == {f"guides/{path.name}" for path in (ROOT / "docs/guides").glob("*.md")}
    for part in config.nav:
        for pages in part.values():
            for page in [pages] if isinstance(pages, str) else pages:
                assert isinstance(page, dict) or page == "index.md" or (ROOT / "docs" / page).is_file()
