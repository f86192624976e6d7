"""A study's runs as a `table`: `collect` and `unplanned_runs` read directories, `summary` judges.

`table_formats`, `figures` and `html` show it; `row_names` names its rows, `output_paths` says where a report goes.
"""
