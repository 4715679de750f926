"""INT8: ranges measured on images, thresholds, Q/DQ graphs and the search for the layers to keep in float."""
