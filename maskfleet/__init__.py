"""Segmentation of image collections by the million, on Ray, with a U-Net resident on every GPU."""
