"""Soft labels: networks that label images, the labels as they are stored, and the labels of every crop."""
