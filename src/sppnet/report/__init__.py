"""A study's runs as a `table`: `rows` reads directories, `compare` judges, `text`, `figure` and `page` show."""
