"""Benchmarks: one file, one question; peers and a C reference beside us in one run.

    python -m bench                 everything but the longest, about ten minutes
    python -m bench roundtrip       one question
    python -m bench --list          the questions

Each question runs in an interpreter of its own (`runner`), which interleaves the contenders
(`harness`, `peers`, `reference`) and hands raw figures back; `report` makes tables and plots.
What the numbers cannot tell is in README.md.
"""
