"""A linear SVM on the features of a trained or pretrained network (paper, sections 3.2 and 3.3).

- `task`: the command's keys and the identity of a row; `splits`: random splits (both without torch)
- `extractor`, `features`, `feature_file`: the network, one pass over the images, and the files of features
- `svm`, `average_precision`, `protocols`: fit and score on the splits
- `comparison`: the table of rows and the intervals of their differences
"""
