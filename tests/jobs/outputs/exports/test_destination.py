import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.outputs.exports.destination import refuse_unsafe


@pytest.mark.parametrize(
    ("images", "destination"),
    [
        ("s3://b/plates/", "s3://b/plates/png/"),
        ("s3://b/plates", "s3://b/plates/"),
        ("/data/in", "/data/in/../in/masks"),
        ("/data/in/*.png", "/data/in"),
        ("/data/in/*", "/data/in"),
        ("/data/*/images/*.tif", "/data/night/images"),
        ("/data/*/images/*.png", "/data/night"),
        ("/data/**/*.png", "/data/a/b/c"),
        ("/data/in/**", "/data/in/masks"),
    ],
)
def test_a_destination_that_would_be_an_input_is_refused(images, destination):
    with pytest.raises(JobError, match=r"is inside the input .*, and the next run would take the masks for images"):
        refuse_unsafe(destination, output="/out", images=images)


@pytest.mark.parametrize(
    ("images", "destination"),
    [
        ("s3://b/plates/", "s3://b/plates-png/"),
        ("/data/in", "/data/masks"),
        ("/data/in/*.jpg", "/data/in"),
        ("/data/in/*.png", "/data/in/masks"),
        ("/data/*/images/*.png", "/data/night/masks"),
        ("/data/list.csv", "/data/masks"),
    ],
)
def test_other_destinations_are_fine(images, destination):
    refuse_unsafe(destination, output="/out", images=images)


def test_the_output_is_no_destination():
    with pytest.raises(JobError, match="/out/masks is inside the output /out; export to another place"):
        refuse_unsafe("/out/masks", output="/out", images="/in")
