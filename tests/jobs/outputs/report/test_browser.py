"""The report in a browser: loads nothing, works by keyboard, and has no barrier that axe-core knows."""

import pytest
from browsers import FEW, SIZES, chromium, opened, violations
from conftest import draw_images

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.report.run import run
from maskfleet.jobs.outputs.report.write import report, report_of_nights

HOSTILE = "<img src=x onerror=alert(1)>'\".png"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_file):
    """A report of the second of two nights, `report.html`, and one of both, `nights.html`."""
    folder = tmp_path_factory.mktemp("browser")
    images = draw_images(folder / "in", 12)
    (images / "broken.png").write_bytes(b"broken")
    table = {"input": str(images), "output": str(folder / "out"), "weights": weights_file}
    job = Job.of(table, ["run.max_error_rate=0.01", "cluster.threads=1"])
    run(job)
    for path in [*images.rglob("image-*.png"), *images.rglob("*.jpg")]:
        (images / f"{path.stem}-{HOSTILE}").write_bytes(path.read_bytes())
    run(job)
    (folder / "report.html").write_bytes(report(job.output, to_output=False)[1])
    (folder / "nights.html").write_bytes(report_of_nights(job.output, 2, to_output=False)[1])
    return folder


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_report(browser, folder, width, scheme):
    with opened(browser, folder / "report.html", width=width, scheme=scheme) as page:
        assert violations(page) == []
        page.locator("button.look").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog").is_visible()
        assert violations(page) == []
        masked = page.locator(".stage img").get_attribute("src")
        page.keyboard.press("m")
        assert page.locator(".stage img").get_attribute("src") != masked
        assert page.locator("dialog [data-do=mask]").get_attribute("aria-pressed") == "false"
        page.keyboard.press("ArrowRight")
        assert page.locator(".place").inner_text().startswith("2 of ")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("m")
        assert page.locator(".stage img").get_attribute("src") == masked
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        assert page.evaluate("document.activeElement.classList.contains('look')")
        assert HOSTILE in page.inner_text("#gallery").replace("\n", "")


@pytest.mark.parametrize(("width", "scheme"), FEW)
def test_nights_beside_each_other(browser, folder, width, scheme):
    with opened(browser, folder / "nights.html", width=width, scheme=scheme) as page:
        assert violations(page) == []


def test_the_report_is_printed_without_what_paper_cannot_do(browser, folder):
    with opened(browser, folder / "report.html", width=1000, scheme="dark") as page:
        page.emulate_media(media="print")
        assert not page.locator(".controls").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("button.look").count() > 4
