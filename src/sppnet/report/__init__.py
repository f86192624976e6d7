"""A study's runs as a `table`: `rows` and `unplanned` read directories, `compare` judges.

`text`, `figure` and `page` show it; `names` says what rows are called, `place` where a report goes.
"""
