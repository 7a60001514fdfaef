"""Faces in pictures: landmarks, detection, crops, photos, videos."""
