"""Data sets: how files on disk become labelled images.

1. `base.py` defines `ImageSet`, the interface that every data set implements.
2. `file_names.py` decides which files are images and which folders hold parts (train, val, test), mostly by name.
3. `listing.py` defines the list of files; `folder_walk.py` and `class_folders.py` build it from class folders.
4. `file_digests.py` hashes the contents of these files for the fingerprint; `digest_cache.py` saves the hashes.
5. `image_files.py`, `table.py`, `cifar.py` and `digits.py` define the data sets; `table_rows.py` and `table_files.py`
   read a table and find its files. `unlabelled.py` lists the images to predict.
"""
