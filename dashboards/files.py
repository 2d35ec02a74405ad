"""The pages as files: what compose provisions, in a folder for each language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dashboards.grafana import page_json, uid
from dashboards.pages import PAGES
from dashboards.texts import LANGUAGES
from exchange.errors import ConfigError

PROVISIONED = Path("deploy/grafana/provisioning/dashboards")
"""From the root of the repository; the services' Grafana reads it."""


def page_files() -> Iterator[tuple[str, str]]:
    """Return every page in every language: its path in the folder, and its text."""
    for language in LANGUAGES:
        for page in PAGES:
            yield f"{language}/{uid(page.name, language)}.json", page_json(page, language)


def write(folder: Path) -> list[Path]:
    """Write every page; those of earlier versions that are none any more go. Return the files that changed."""
    files = {folder / name: text for name, text in page_files()}
    changed = []
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    for file in _found(folder):
        if file not in files:
            file.unlink()
            changed.append(file)
    return changed


def read(folder: Path) -> dict[str, str]:
    """Return the pages of a folder by path. Raises: ConfigError where there are none, or one is no text."""
    files = _found(folder)
    if not files:
        raise ConfigError(str(folder), "folder", str(folder), "must hold pages: dashboards build")
    pages = {}
    for file in files:
        try:
            pages[str(file.relative_to(folder))] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                str(file), "page", str(file), f"must be readable text: {error}"
            ) from None
    return pages


def _found(folder: Path) -> list[Path]:
    return sorted(
        file for language in LANGUAGES for file in (folder / language).glob("onestreet-*.json")
    )
