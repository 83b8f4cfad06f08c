"""farwire beside execnet and beside what the machine can do; ``python -m benchmarks --help`` says how to run it."""
