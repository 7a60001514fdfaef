"""The report: summary, claims, anchors, report.html, and the tables in docs/.

build.py     writes all files of the report from what the notebooks published
render.py    the page report.html, section by section; its layout is assets/report.html.j2
story.py     what the front page tells, which figures tell what a notebook found, which claims are shown first
chart.py     the chart of all models
tables.py    the tables of anchors, claims, results and times
names.py     code names and fractions as a reader expects them: "ResNet-50, fused, attention", 64.2 %
html.py      tables and Markdown as HTML
pictures.py  figures, re-encoded so that the page stays small
"""

from fer_utils.pipeline.page.build import build_report

__all__ = ["build_report"]
