"""What samples, verdicts and divergences of many questions show: the analyses, from numbers to numbers.

Floor 3: definitions and formulas, explained in docs/analyses.md. A question is the unit of every interval. Refuses to know
models, tokenizers and where anything lies.
"""
