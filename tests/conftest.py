from neurotome.lazy import mend_torchvision

mend_torchvision()


def compute_features(patch, extractor):
    """The features of every pixel of a patch (channels, y, x), shape (features, y, x)."""
    height, width = patch.shape[-2:]
    return extractor.prepare(patch)(slice(0, height), slice(0, width))
