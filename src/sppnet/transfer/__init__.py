"""Features of a trained or given network and a linear SVM on them (paper, sections 3.2 and 3.3).

- `options`: the verb's keys and what fits together; `splits`: who trains and who is tested (both without torch)
- `extractor`, `features`, `store`: the network, one pass over the images, and the files that keep what it made
- `svm`, `protocols`: fit and score; `table`: rows, and how sure it is that one is better than another
"""
