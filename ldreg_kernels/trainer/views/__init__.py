"""Random views of images: recipes as plain data, crops in the data workers, the rest on the device."""

from .build import Views, build_views
from .device import DeviceViews

__all__ = ["DeviceViews", "Views", "build_views"]
