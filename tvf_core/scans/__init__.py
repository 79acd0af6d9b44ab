"""Scans of one's own: files in and out, grids in world coordinates, transforms that ITK and ANTs read."""
