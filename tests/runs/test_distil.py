"""A folder of images in one call, with tiny settings."""

import pytest
from PIL import Image
from small_runs import NARROW, matching
from small_world import protocol_file, striped

import ldd
from ldd import DistilledSet, PixelPrior, UserError
from ldd.evaluation import Report


@pytest.fixture
def photos(tmp_path):
    """Two classes of striped noise."""
    for split, count, seed in (("train", 8, 1), ("val", 4, 2)):
        images, labels = striped(count, seed)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            if label < 2:
                file = tmp_path / "photos" / split / f"class{label}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "photos"


def distil(photos, tmp_path, **settings):
    tiny = {"steps": 2, "networks": {"narrow": NARROW}, "repeats": 1, "num_workers": 1}
    tiny |= {"protocol": protocol_file(tmp_path), "objective": matching(), "out": tmp_path / "run"}
    return ldd.distil(photos, **tiny | settings)


def test_with_a_prior_of_its_own(photos, tmp_path):
    made = distil(photos, tmp_path, images_per_class=2, prior_steps=4)
    assert made.set.counts == [2, 2]
    assert [info.name for info in made.set.classes] == ["class0", "class1"]
    assert set(made.report.scores()) == {"distilled", "random_real", "initial"}
    run = tmp_path / "run"
    assert made.prior == run / "prior"
    assert ldd.LatentDiffusionPrior(str(made.prior)).image_size == 32
    assert DistilledSet.load(run).manifest.step == 2
    assert Report.read(run).rows == made.report.rows
    with pytest.raises(UserError, match=r"out \(.*run\) is not empty; name a new folder"):
        distil(photos, tmp_path)


def test_with_a_given_prior(photos, tmp_path):
    made = distil(photos, tmp_path, prior=PixelPrior(32))
    assert made.prior is None
    assert made.set.counts == [1, 1]
    assert not (tmp_path / "run" / "prior").exists()


def test_a_prior_needs_steps_for_both_its_parts(photos, tmp_path):
    with pytest.raises(UserError, match=r"prior_steps \(1\) must be at least 2"):
        distil(photos, tmp_path, prior_steps=1)
