"""Curves that people already have: from the logs of other tools into a curve directory. One file for each format.

None of them holds the learning rate of every optimiser step unless it was logged at every step; rates.py says how it is
found, checked, or asked for.
"""

from cptplan.importers.convert import Imported as Imported
from cptplan.importers.convert import ImportOptions as ImportOptions
from cptplan.importers.convert import import_curve as import_curve
from cptplan.importers.convert import import_into as import_into
from cptplan.importers.option_text import parse_lr as parse_lr
from cptplan.importers.option_text import parse_pairs as parse_pairs
from cptplan.importers.option_text import parse_record as parse_record
