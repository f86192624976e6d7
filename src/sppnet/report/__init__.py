"""Reports on studies: tables, statistics and figures from run directories.

1. `collect.py` builds the tables of a study (see `table.py`) from its run directories, and `unplanned_runs.py` builds
   the rows of runs that no sweep planned. `run_results.py` reads one run, and `row_names.py` names the rows.
2. `summary.py` adds the statistics and formats each cell as text.
3. `table_formats.py` (Markdown, CSV, LaTeX), `figures.py` (SVG) and `html.py` (one page for all studies) render the
   tables.
4. `output_paths.py` chooses the output folder and protects reports on other runs from being replaced.
"""
