"""Evaluation: a row of scores per pair, comparisons of methods, the Learn2Reg submission."""
