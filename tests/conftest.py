from neurotome.lazy import mend_torchvision

mend_torchvision()
