"""Random views of images: recipes as plain data, crops in the data workers, the rest on the device."""
