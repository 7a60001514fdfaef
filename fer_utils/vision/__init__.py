"""Faces in pictures: landmarks, detection, regions, photos and videos."""
