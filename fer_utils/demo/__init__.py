"""The demo: a page for photos, the webcam and videos, with one face to the visitor and two ways to compute.

app.js, app.css  the page; it knows nothing of Python and calls a backend, whose methods app.js describes
widget.js        the backend for notebooks: it sends pictures to Python
widget.py        Demo, the other end of widget.js
predictor.py     Predictor, which finds and classifies faces
page/            how Voila shows the widget as a page of its own; connection.py: how it talks to the browser

Another page can use app.js with a backend of its own, for example one that computes in the browser.
"""
