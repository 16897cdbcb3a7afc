"""Images of two and four bands, as stored, from GeoTIFF to a georeferenced mask; GDAL writes and reads them."""

import numpy as np
import pytest
from drawn_programs import Builder

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.exports.export import export
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights
from maskfleet.unet.programs.network import ProgramNetwork
from maskfleet.unet.programs.program import Value

rasterio = pytest.importorskip("rasterio")


@pytest.mark.parametrize("bands", [2, 4])
def test_images_of_any_bands_become_masks_in_their_place(bands, tmp_path):
    made = Builder()
    network = ProgramNetwork(made.program(made.conv(Value(0), bands, 2)), made.tensors, n_channels=bands, multiple=2)
    (tmp_path / "w.safetensors").write_bytes(weights.save(network))
    (tmp_path / "in").mkdir()
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(5e5, 5e6, 10, 10)}
    for dtype in ("uint8", "uint16"):
        values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (bands, 32, 48)).astype(dtype)
        form = {"driver": "GTiff", "width": 48, "height": 32, "count": bands, "dtype": dtype}
        with rasterio.open(tmp_path / f"in/{dtype}.tif", "w", **form, **place) as file:
            file.write(values)
    table = {"input": f"{tmp_path}/in", "output": f"{tmp_path}/out", "weights": f"{tmp_path}/w.safetensors"}
    assert run(Job.of(table, ["inference.precision=fp32"])).ok == 2
    export(f"{tmp_path}/out", "geotiff", f"{tmp_path}/tiff")
    for dtype in ("uint8", "uint16"):
        with rasterio.open(tmp_path / f"tiff/{dtype}.tif") as mask:
            assert (mask.count, mask.crs, mask.transform) == (1, place["crs"], place["transform"])
            np.testing.assert_array_equal(mask.read(1), open_output(f"{tmp_path}/out").mask(f"{dtype}.tif"))
