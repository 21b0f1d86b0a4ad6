"""python -m eval.report: see `eval.report.tables`."""

from eval.report.tables import main

main()
