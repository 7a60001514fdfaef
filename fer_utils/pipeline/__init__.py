"""The runner behind ./run_all.sh.

cli.py           options, exit codes, main
planning.py      data, profile, device and parameters of a run, and why each stage has to run
console.py       what is printed: list of stages, plan, messages, live lines
lock.py          only one run at a time
runner.py        runs the stages of a plan, one after another
schedule.py      runs several stages at once

stages.py        the notebooks: what they need and give, and their parameters per profile
notebooks.py     reads code cells and parameters of a notebook without running it
execution.py     executes one notebook with papermill, checks and cleans it; engine.py is the papermill engine
publish.py       copies the files of a finished stage to reports/ and outputs/
freshness.py     manifests and records: is a stage up to date?
code_hash.py     hashes of code that ignore comments and layout
provenance.py    commit, data, versions and device of a run

page/            the content of the report: summary, claims, report.html, tables in docs/
takeaways.py     reads what a notebook asks, and what its readers take away
report_files.py  builds the report when something changed, and records its files
verify.py        checks published files against their records
"""
