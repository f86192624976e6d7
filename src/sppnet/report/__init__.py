"""Reports of studies: tables, statistics and figures from run directories.

1. `collect.py` builds the `Table`s of a study (`table.py`) from its run directories; `unplanned_runs.py` does so for
   runs without a plan. `run_results.py` reads one run, `row_names.py` names the rows.
2. `summary.py` adds the statistics and formats each cell as text.
3. `table_formats.py` (Markdown, CSV, LaTeX), `figures.py` (SVG) and `html.py` (one page of all studies) render it.
4. `output_paths.py` chooses the folder and protects the reports of other runs.
"""
