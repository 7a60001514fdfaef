"""Helpers for a notebook course on facial expression recognition with FER2013."""
