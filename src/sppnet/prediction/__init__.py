"""What a trained network sees in images without labels: classes, and the bins that speak for them."""
