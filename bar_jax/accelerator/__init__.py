"""What `launch/accelerator.sh` runs: is the program right on this machine, and how fast is it.

`rows` says what is measured, in order of worth; `__main__` runs a row after another, each in a
process of its own (`work`), and `table` writes down what they found. `right` holds the checks.
"""
