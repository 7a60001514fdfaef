"""The demo: a page for photos, the webcam and videos, with one face to the visitor and two ways to compute.

app.js, app.css  the page; it knows nothing of Python and calls a backend, whose methods app.js describes
widget.js        the backend for notebooks: it sends pictures to Python
widget.py        Demo, the other end of widget.js
predictor.py     Predictor, which finds and classifies faces
page/            how Voila shows the widget as a page of its own; connection.py: how it talks to the browser

web/ has a second backend, which computes in the browser; fer_utils/web.py builds the page around it.
"""
