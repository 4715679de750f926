"""INT8: ranges measured on images, thresholds, Q/DQ graphs and the search for layers that stay in float."""
