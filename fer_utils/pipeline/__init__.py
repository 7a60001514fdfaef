"""The runner behind ./run_all.sh. In the order in which a run needs them:

stages.py       which notebooks there are, what they need and give, and their parameters per profile
notebooks.py    reads a notebook's code cells and parameters without running it
meaning.py      what code does, whatever its words and layout, and which modules it imports
freshness.py    what a stage depends on, whether it is up to date, and the record of this in its manifest
planning.py     settles data, profile, device and parameters, and why each stage has to run
execution.py    runs one notebook with papermill and checks that it really ran; engine.py is its papermill engine
publish.py      brings what a notebook made to where it belongs
provenance.py   commit, data, versions and times, for the report
published.py    the report as a whole: built from what is published, and checked against its records
page.py         summary, claims, report.html and the tables in docs/, from what all notebooks published
runner.py       the command line, which puts all of this together
"""
