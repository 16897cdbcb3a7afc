import json

import pytest
from typer.testing import CliRunner

from maskfleet.cluster.cli.bench import _shape
from maskfleet.cluster.cli.main import app
from maskfleet.jobs.errors import JobError


def test_measurements_are_printed_as_a_table_or_as_json(weights_file):
    forward = CliRunner().invoke(
        app, ["bench", "forward", "--weights", weights_file, "--shape", "32x48", "--pairs", "1", "--json"]
    )
    assert forward.exit_code == 0, forward.output
    (row,) = json.loads(forward.stdout)
    assert (row["height"], row["width"]) == (48, 32)
    assert row["images_per_second"] > 0
    codecs = CliRunner().invoke(app, ["bench", "codecs", "--images", "8", "--side", "32"])
    assert codecs.exit_code == 0, codecs.output
    assert "decode per second" in codecs.stdout


@pytest.mark.parametrize("text", ["256", "8x256", "256x", "axb"])
def test_a_wrong_shape_is_refused(text):
    with pytest.raises(JobError, match="such as 256x256"):
        _shape(text)
