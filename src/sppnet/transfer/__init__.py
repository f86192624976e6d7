"""A linear SVM on the features of a trained or pretrained network (paper, sections 3.2 and 3.3).

- `task`, `splits`: the command's keys, the identity of a table row, and random splits (neither module imports torch)
- `extractor`, `features`, `feature_file`: the network, one pass over the images, and the feature files
- `svm`, `average_precision`, `protocols`: fitting and scoring on the splits
- `comparison`: the table of rows, and confidence intervals for the differences between rows
"""
