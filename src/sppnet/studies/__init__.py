"""Many runs: plan a sweep, start its jobs here or on a cluster, see how they stand."""
