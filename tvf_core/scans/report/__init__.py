"""The report of a registration: one HTML file that needs no network.

Where the browser runs scripts it has a slider between before and after; where not, static pictures.
"""

from .case import AffineSummary, ReportCase
from .page import write
from .words import folding_numbers

__all__ = ["AffineSummary", "ReportCase", "folding_numbers", "write"]
