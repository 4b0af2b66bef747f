from neurotome.lazy import mend_torchvision

mend_torchvision()


def compute_features(patch, extractor):
    """The features of every pixel of a patch (channels, y, x), shape (features, y, x)."""
    height, width = patch.shape[-2:]
    return extractor.prepare(patch)(slice(0, height), slice(0, width))


LONGEST = ("test_training_fit", "test_cli", "test_fine_tune", "test_kill_points", "test_figures", "test_configs")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
