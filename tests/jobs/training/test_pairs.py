import numpy as np
import pytest
from conftest import draw_pairs
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.training.pairs import place_of, read_pairs


def job(images, masks, *, output="/nowhere", **settings):
    return Job.of({
        "input": str(images or "/nowhere"),
        "output": str(output),
        "weights": "nuclei",
        "cluster": {"decoders": 1},
        "finetune": {"images": str(images), "masks": str(masks)} | settings,
    })  # fmt: skip


def read(*arguments, classes=2, base_values=(0, 255), **settings):
    work = job(*arguments, **settings)
    return read_pairs(work, limits_of(work, channels=3, min_side=16), classes=classes, base_values=base_values)


def test_the_split_follows_content_and_has_the_stated_share():
    contents = [str(number).encode() for number in range(4000)]
    assert abs(np.mean([place_of(content) < 0.2 for content in contents]) - 0.2) < 0.03


def test_two_folders_become_pairs(tmp_path):
    images, masks = draw_pairs(tmp_path)
    (images / "notes.txt").write_text("not an image")
    pairs = read(images, masks)
    together = sorted([*pairs.training, *pairs.validation], key=lambda pair: pair.key)
    assert [pair.key for pair in together] == [f"{number:03}.png" for number in range(12)]
    for pair in together:
        assert (pair.image == np.asarray(Image.open(images / pair.key))).all()
        assert (pair.truth * 255 == np.asarray(Image.open(masks / pair.key))).all()
        held = place_of((images / pair.key).read_bytes()) < 0.2
        assert (pair.key in [other.key for other in pairs.validation]) is held
    assert pairs.values == (0, 255)


def test_names_do_not_affect_the_split_and_every_byte_affects_the_digest(tmp_path):
    images, masks = draw_pairs(tmp_path)
    before = read(images, masks)
    for folder in (images, masks):
        (folder / "000.png").rename(folder / "zzz.png")
    after = read(images, masks)
    assert len(before.validation) == len(after.validation)
    for path in (masks / "001.png", images / "002.png"):
        digest = after.digest
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        after = read(images, masks)
        assert after.digest != digest


def test_pairs_may_lie_beside_the_folders_of_the_output(tmp_path):
    images, masks = draw_pairs(tmp_path, 6)
    assert read(images, masks, output=tmp_path).values == (0, 255)
    for name in ("masks", "finetune"):
        with pytest.raises(JobError, match=rf"finetune.masks .*/{name}/x is inside the job's own output"):
            read(images, tmp_path / name / "x", output=tmp_path)


def test_a_pattern_names_the_mask_of_an_image(tmp_path):
    images, masks = draw_pairs(tmp_path)
    (masks / "deep").mkdir()
    for path in masks.glob("*.png"):
        path.rename(masks / "deep" / f"{path.stem}_mask.png")
    pairs = read(images, masks, mask_name="deep/{name}_mask")
    assert len(pairs.training) + len(pairs.validation) == 12


def test_pairs_in_a_bucket_equal_those_on_disk(tmp_path, bucket):
    import s3fs

    images, masks = draw_pairs(tmp_path)
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    for folder in (images, masks):
        filesystem.put(str(folder), f"{bucket}/{folder.name}", recursive=True)
    assert read(f"{bucket}/pairs/", f"{bucket}/truth/").digest == read(images, masks).digest


def test_masks_are_scaled_with_their_images(tmp_path):
    images, masks = draw_pairs(tmp_path)
    half = Job.of({"input": "a", "output": "b", "weights": "nuclei", "inference": {"scale": 0.5}}).inference
    work = job(images, masks).model_copy(update={"inference": half})
    limits = limits_of(work, channels=3, min_side=16)
    pairs = read_pairs(work, limits, classes=2, base_values=(0, 255))
    assert {pair.truth.shape for pair in pairs.training} == {(20, 24), (24, 20)}
    assert all(pair.image.shape[:2] == pair.truth.shape for pair in pairs.training)


def missing_mask(images, masks):
    (masks / "003.png").unlink()


def missing_image(images, masks):
    (images / "003.png").unlink()


def double_mask(images, masks):
    Image.open(masks / "003.png").save(masks / "003.tif")


def double_image(images, masks):
    Image.open(images / "003.png").save(images / "003.tif")


def other_size(images, masks):
    Image.open(masks / "003.png").resize((20, 20)).save(masks / "003.png")


def blurred(images, masks):
    Image.open(masks / "003.png").save(masks / "003.jpg", quality=40)
    (masks / "003.png").unlink()


def unknown_value(images, masks):
    pixels = np.array(Image.open(masks / "003.png"))
    pixels[0, 0] = 9
    Image.fromarray(pixels).save(masks / "003.png")


def truncated_image(images, masks):
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:60])


def empty_mask(images, masks):
    (masks / "003.png").write_bytes(b"")


def all_renamed(images, masks):
    for path in masks.iterdir():
        path.rename(masks / f"other-{path.name}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            missing_mask,
            r"image .*/pairs/003.png has no mask 003.\* in .*/truth; add it, set finetune.mask_name, or skip",
        ),
        (missing_image, r"mask .*/truth/003.png has no image in .*/pairs; add it"),
        (double_mask, r"finetune.masks has two files .*/truth/003.png and .*/truth/003.tif; remove one"),
        (double_image, r"finetune.images has two files .*/pairs/003.png and .*/pairs/003.tif; remove one"),
        (
            other_size,
            r"mask .*/truth/003.png has 20×20 px, but image .*/003.png has 40×48 px; export the mask at the size",
        ),
        (
            blurred,
            r"mask.*/truth/003.jpg.*JPEG compression, smoothing or resizing may have blurred it; export it as PNG",
        ),
        (unknown_value, r"masks contain 0, 9, 255, but the weights have 2 classes; .*/003.png"),
        (truncated_image, r"/pairs/003.png cannot be used for training: the (image|PNG)"),
        (empty_mask, r"/truth/003.png cannot be used for training: the file is empty"),
    ],
)
def test_wrong_pairs_are_refused_with_file_and_remedy(tmp_path, spoil, message):
    images, masks = draw_pairs(tmp_path, 6)
    spoil(images, masks)
    with pytest.raises(JobError, match=message):
        read(images, masks)


def test_a_value_outside_the_stated_ones_is_refused(tmp_path):
    images, masks = draw_pairs(tmp_path, 4)
    unknown_value(images, masks)
    with pytest.raises(JobError, match=r"mask .*003.png contains 9, but the classes are 0, 255"):
        read(images, masks, values=[0, 255])


def test_both_sets_need_pairs(tmp_path):
    images, masks = draw_pairs(tmp_path, 3)
    with pytest.raises(
        JobError, match=r"the split gives 3 training and 0 validation pairs, .* change finetune.validation_share"
    ):
        read(images, masks, validation_share=1e-9)


def test_a_job_without_pairs_is_refused(tmp_path):
    images, masks = draw_pairs(tmp_path, 3)
    all_renamed(images, masks)
    with pytest.raises(JobError, match=r"no image in .*/pairs has a mask in .*/truth; correct the folders"):
        read(images, masks, unpaired="skip")
    with pytest.raises(JobError, match="set finetune.images and finetune.masks"):
        read_pairs(work := job("", ""), limits_of(work, channels=3, min_side=16), classes=2, base_values=None)


def test_unpaired_files_are_skipped_on_request(tmp_path):
    images, masks = draw_pairs(tmp_path)
    missing_mask(images, masks)
    (images / "005.png").unlink()
    pairs = read(images, masks, unpaired="skip")
    assert len(pairs.training) + len(pairs.validation) == 10


def test_a_mask_for_two_images_is_refused(tmp_path):
    images, masks = draw_pairs(tmp_path, 4)
    (images / "other").mkdir()
    (images / "000.png").rename(images / "other" / "001.png")
    with pytest.raises(JobError, match=r"mask .*001.png matches two images, .*001.png and .*001.png; use"):
        read(images, masks, mask_name="{name}")
