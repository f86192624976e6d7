"""Features of a trained or given network and a linear SVM on them (paper, sections 3.2 and 3.3).

- `task`: the command's keys and what fits together; `splits`: who trains and who is tested (both without torch)
- `extractor`, `features`, `feature_file`: the network, one pass over the images, and the files that keep its features
- `svm`, `protocols`: fit and score; `comparison`: rows, and how sure it is that one is better than another
"""
