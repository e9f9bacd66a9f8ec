"""What an acceptor knows of workers, and what they counted, on a page."""

from collections.abc import Callable, Iterable
from pathlib import Path

from marship.engines.figures import sheets
from marship.engines.figures.families import Page
from marship.serving import sheet
from marship.serving.hosts.direct.seats import Staff


def page_of(folder: Path, staff: Iterable[Staff], connections: int) -> Page:
    """The page of all versions that there are.

    Args:
        folder: Of the sheets.
        staff: Workers of each version.
        connections: How many clients are connected.
    """
    page, staff = Page(), list(staff)
    add_staff(page, staff)
    page.family("marship_connections", "gauge").add({}, connections)
    sheets.add_to(page, sheet.read(folder), shown(staff))
    sheets.begin(page, [(each.model, each.version) for each in staff])
    return page


def shown(staff: Iterable[Staff]) -> Callable[[str, str], bool]:
    """Whether a version is one of these."""
    known = {(each.model, each.version) for each in staff}
    return lambda model, version: (model, version) in known


def add_staff(page: Page, staff: Iterable[Staff]) -> None:
    """Show how many workers there are, and should be, and what they have in hand."""
    for each in staff:
        labels = {"model_name": each.model, "model_version": each.version}
        page.family("marship_workers", "gauge").add(labels, each.ready)
        page.family("marship_workers_wanted", "gauge").add(labels, each.wanted)
        page.family("marship_requests_in_flight", "gauge").add(labels, each.ongoing)
